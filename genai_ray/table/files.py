"""Files of a table, CSV or Parquet, one or many, as one Arrow table whose rows know where they come from."""

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from genai_ray.errors import UserError
from genai_ray.storage import Store
from genai_ray.table.spec import TableSpec
from genai_ray.table.values import dense, pc, supported, whole

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".parquet")
#: Cells of CSV as dictionary-encoded strings: most columns have few distinct values.
STRINGS = pa.dictionary(pa.int32(), pa.string())


@dataclass(frozen=True)
class File:
    """A file and its rows."""

    field: str  # of the spec, that names it
    store: Store
    key: str
    rows: int


@dataclass(frozen=True)
class Files:
    """All rows, those of `data.holdout_root` last.

    from_csv: whether they come from CSV, with cells of type STRINGS that say nothing of the column's type.
    held: rows at the end that are kept from training.
    """

    spec: TableSpec
    table: pa.Table
    from_csv: bool
    parts: tuple[File, ...]
    held: int = 0

    def location(self, row: int) -> str:
        """File and row, counted from 1 as people do; for CSV also the line."""
        for part in self.parts:
            if row < part.rows:
                where = f"{part.key}, row {row + 1}" if part.key else f"row {row + 1}"
                if not self.from_csv:
                    return where
                line = _line(_content(part.store, part.key, part.field, self.spec), self.spec, row)
                return f"{where} (line {line})"
            row -= part.rows
        raise IndexError(row)


def read_files(spec: TableSpec, root: str, holdout_root: str | None) -> Files:
    """The files under `data.root` and `data.holdout_root`.

    Raises:
        UserError: if there are none, they cannot be read, or their columns differ.
    """
    parts: list[File] = []
    tables: list[pa.Table] = []
    held = 0
    for field, uri in (("data.root", root), ("data.holdout_root", holdout_root)):
        if uri is None:
            continue
        store, keys = _keys(field, uri)
        for key in keys:
            table = _read(spec, field, store, key)
            _same_columns(field, key, table, parts, tables)
            tables.append(table)
            parts.append(File(field, store, key, table.num_rows))
            held += table.num_rows if field == "data.holdout_root" else 0
    try:
        joined = pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(
            "data.root", root, f"must hold files whose columns are of one type ({error})", "Write them with one schema."
        ) from None
    return Files(spec, joined, not _is_parquet(parts[0].key), tuple(parts), held)


def _is_parquet(key: str) -> bool:
    return key.lower().endswith(".parquet")


def _keys(field: str, uri: str) -> tuple[Store, list[str]]:
    """The store and the keys of a path: one file, or those in a folder."""
    remote = "://" in uri
    folder, _, name = uri.rstrip("/").rpartition("/")
    if not remote:
        path = Path(uri).expanduser()
        if not path.exists():
            raise UserError(field, uri, "must be a file or a folder that exists", "Check the path.")
        if path.is_file():
            return Store(str(path.parent), field), [path.name]
        uri = str(path)
    elif folder.count("/") > 1 and (parent := Store(folder, field)).exists(name):
        return parent, [name]
    store = Store(uri, field)
    # Names with these in front are of tools, such as the receipts of a data set of ours.
    seen = [k for k in store.list() if not any(p.startswith((".", "_")) for p in k.split("/"))]
    keys = [k for k in seen if k.lower().endswith(SUFFIXES)]
    if not keys:
        raise UserError(
            field,
            uri,
            f"must hold files ({', '.join(SUFFIXES)}), and holds none",
            "Check the path, or name a file of another suffix, which is read as CSV.",
        )
    kinds = {_is_parquet(k) for k in keys}
    if len(kinds) > 1:
        raise UserError(field, uri, "holds both CSV and Parquet", "Name the files of one kind.")
    return store, keys


def _same_columns(field: str, key: str, table: pa.Table, parts: list[File], tables: list[pa.Table]) -> None:
    if not tables:
        return
    first, names = parts[0].key, tables[0].column_names
    if _is_parquet(parts[0].key) != _is_parquet(key):
        raise UserError(field, key, f"must be of the kind of {first}", "Use CSV or Parquet.")
    if table.column_names != names:
        odd = sorted(set(names) ^ set(table.column_names))
        what = f"column {odd[0]!r} is in one of them" if odd else "their order differs"
        raise UserError(
            field,
            key,
            f"must have the columns of {first}; {what}",
            "Write all files with the same columns in the same order.",
        )


def _read(spec: TableSpec, field: str, store: Store, key: str) -> pa.Table:
    if _is_parquet(key):
        if spec.names is not None:
            raise UserError("data.table.names", spec.names, f"is for CSV, and {key} is Parquet", "Drop it.")
        table = _parquet(field, store, key)
    else:
        table = _csv(spec, field, key, _content(store, key, field, spec))
    names = table.column_names
    for name in names:
        if names.count(name) > 1 or not name:
            rule = f"has {names.count(name)} columns" if name else "has a column without a name"
            shown = f" named {name!r}" if name else ""
            raise UserError(field, key, f"{rule}{shown}", "Rename one; for CSV without a header give data.table.names.")
    if not table.num_rows:
        raise UserError(field, key, "must have rows, and has none", "Remove the file or fill it.")
    return table


def _parquet(field: str, store: Store, key: str) -> pa.Table:
    try:
        table = pq.read_table(io.BytesIO(store.read(key))).replace_schema_metadata(None)
    except (FileNotFoundError, pa.ArrowInvalid, OSError) as error:
        raise UserError(field, key, f"must be readable Parquet ({error})", "Check the file.") from None
    for i, column in enumerate(table.schema):
        if pa.types.is_duration(column.type):
            raise UserError(
                field,
                f"{key}: {column.name}",
                f"is a column of type {column.type}, for which CSV has no notation",
                "Store it as a number, such as of seconds.",
            )
        if pa.types.is_string_view(column.type):  # strings all the same
            table = table.set_column(i, column.name, table.column(i).cast(pa.string()))
            continue
        if not (supported(column.type) or pa.types.is_null(column.type)):
            raise UserError(
                field,
                f"{key}: {column.name}",
                f"is a column of type {column.type}, which no model here makes",
                f"Flatten it, or set data.table.columns.{column.name}=drop and leave it out of the file.",
            )
    return table


# --- CSV -----------------------------------------------------------------------------------------


def _content(store: Store, key: str, field: str, spec: TableSpec) -> bytes:
    """A CSV file as UTF-8 with the same line numbers: comment lines become empty, and runs of spaces one space where
    they separate cells.
    """
    content = store.read(key)
    if key.lower().endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(field, key, f"must be gzip ({error})", "Check the file.") from None
    try:
        codec = codecs.lookup(spec.encoding).name
        # Decoded even if it is UTF-8 already: what is not UTF-8 is noticed here.
        text = content.decode(codec)
    except LookupError:
        raise UserError(
            "data.table.encoding",
            spec.encoding,
            "must be an encoding that Python knows",
            "Try utf8, latin-1, cp1252 or utf-16.",
        ) from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(
            field,
            key,
            f"must be {spec.encoding}, and line {line} is not ({error.reason})",
            "Set data.table.encoding, such as latin-1, cp1252 or utf-16.",
        ) from None
    if codec != "utf-8":
        content = text.encode()
    del text
    content = content.removeprefix(codecs.BOM_UTF8)
    if spec.comment:
        mark = re.escape(spec.comment.encode())
        content = re.sub(rb"(?m)^" + mark + rb"[^\r\n]*", b"", content)
    if spec.delimiter == "space":
        content = b"\n".join(b" ".join(line.split()) for line in content.split(b"\n"))
    return content


def _delimiter(spec: TableSpec) -> str:
    return " " if spec.delimiter == "space" else spec.delimiter


def _csv(spec: TableSpec, field: str, key: str, content: bytes) -> pa.Table:
    names = None if spec.names is None else list(spec.names)
    try:
        table = pacsv.read_csv(
            pa.BufferReader(content),
            pacsv.ReadOptions(column_names=names),
            pacsv.ParseOptions(
                delimiter=_delimiter(spec),
                # Slower, so only where a quote could hold an end of line.
                newlines_in_values=b'"' in content,
            ),
            pacsv.ConvertOptions(default_column_type=STRINGS, strings_can_be_null=False),
        )
    except pa.ArrowInvalid as error:
        raise _unreadable(spec, field, key, content, error) from None
    table = table.rename_columns([n.strip() for n in table.column_names])
    if table.num_rows:
        _check_header(spec, field, key, table)
    nulls = pa.array(spec.nulls, pa.string())
    # From arrays, since names may occur twice, which is checked later.
    cells = [_cells(column, nulls) for column in table.columns]
    return pa.table(cells, table.column_names)


def _check_header(spec: TableSpec, field: str, key: str, table: pa.Table) -> None:
    """Reject a header that is read as cells, and cells that are read as a header."""
    names = table.column_names
    if spec.names is not None:
        first = [str(c[0]).strip() for c in table.columns]
        if first == names:
            raise UserError(
                "data.table.names",
                names,
                f"is also the first line of {key}",
                "Leave data.table.names out: the file has a header.",
            )
    elif all(re.fullmatch(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", n, re.IGNORECASE) for n in names):
        # Columns that were numbered are called 0, 1, 2 or 1, 2, 3.
        counted = [[str(i + s) for i in range(len(names))] for s in (0, 1)]
        if names not in counted:
            raise UserError(
                field,
                key,
                f"has a first line of numbers ({', '.join(names[:4])}), not of names",
                "Give data.table.names for files without a header.",
            )


def _cells(column: pa.ChunkedArray, nulls: pa.Array) -> pa.Array:
    """Strings without spaces around them, and missing where they mean that; each string once."""
    array = whole(column)
    trimmed = pc.utf8_trim_whitespace(array.dictionary)
    missing = pc.is_in(trimmed, value_set=nulls)
    # Strings that differed by spaces alone are the same now.
    encoded = pc.if_else(missing, pa.scalar(None, pa.string()), trimmed).dictionary_encode()
    indices = encoded.indices.take(array.indices)
    return pa.DictionaryArray.from_arrays(indices.cast(pa.int32()), encoded.dictionary)


def _rows(spec: TableSpec, content: bytes) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every row that is not empty, the header among them."""
    text = io.TextIOWrapper(io.BytesIO(content), "utf8", newline="")
    reader = csv.reader(text, delimiter=_delimiter(spec))
    for cells in reader:
        if cells:
            yield reader.line_num, cells


def _line(content: bytes, spec: TableSpec, row: int) -> int:
    """The line on which a row ends."""
    wanted = row + (spec.names is None)
    # Arrow and `csv` may see other rows where quotes are not closed.
    return next((line for i, (line, _) in enumerate(_rows(spec, content)) if i == wanted), wanted + 1)


def _unreadable(spec: TableSpec, field: str, key: str, content: bytes, error: pa.ArrowInvalid) -> UserError:
    """The error in a file that Arrow cannot read."""
    if not content.strip():
        return UserError(field, key, "must have rows, and is empty", "Check the file.")
    expected = None if spec.names is None else len(spec.names)
    try:
        for number, (line, cells) in enumerate(_rows(spec, content)):
            if expected is None:
                expected = len(cells)
            elif len(cells) != expected:
                what = "are named" if spec.names and number == 0 else "are expected"
                row = number + (spec.names is not None)
                return UserError(
                    field,
                    f"{key}, row {row} (line {line})",
                    f"has {len(cells)} cells where {expected} {what}",
                    f"Correct the line, or data.table.delimiter ({spec.delimiter!r}), data.table.names or the quotes.",
                )
    except csv.Error as reason:
        error = pa.ArrowInvalid(str(reason))
    return UserError(field, key, f"must be readable CSV ({error})", "Check the file.")


def strings(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column of strings as dictionary<int32, string>, each string once."""
    if column.type == STRINGS:
        return whole(column)
    return dense(column).cast(pa.string()).dictionary_encode()
