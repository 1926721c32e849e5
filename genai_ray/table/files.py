"""Files of a table, CSV or Parquet, one or many, as one Arrow table whose rows know where they come from."""

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from genai_ray.errors import UserError
from genai_ray.hive import columns_in_path
from genai_ray.spec import assignment
from genai_ray.storage import Store
from genai_ray.table import delimited, numerals
from genai_ray.table.delimited import GZIP, STRINGS
from genai_ray.table.dialect import Dialect, First
from genai_ray.table.numerals import Affix, Numerals
from genai_ray.table.spec import TableSpec
from genai_ray.table.values import dense, is_number, is_string, pc, retyped, supported, whole

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".pq", ".parq")
PLAIN = Numerals()
_PARQUET = b"PAR1"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
#: Keys by which folders are known whose files may hold rows that were deleted.
_TABLE_FORMATS = {
    r"(^|/)_delta_log/": "Delta Lake",
    r"(^|/)\.hoodie/": "Apache Hudi",
    r"(^|/)metadata/.*\.metadata\.json$": "Apache Iceberg",
}
#: Files of other suffixes whose first bytes are looked at, in a folder that has none of these.
_LOOKED_AT = 1000


@dataclass(frozen=True)
class File:
    """A file and its rows. dialect, encoding: of CSV."""

    field: str  # of the spec, that names it
    store: Store
    key: str
    rows: int
    dialect: Dialect | None = None
    encoding: str = "utf-8"


@dataclass(frozen=True)
class Files:
    """All rows, those of `data.holdout_root` last.

    from_csv: whether they come from CSV, with cells of type STRINGS that say nothing of the column's type.
    held: rows at the end that are kept from training. numerals: how numbers are written. facts: for people, how the
    files were read and what was left out.
    """

    spec: TableSpec
    table: pa.Table
    from_csv: bool
    parts: tuple[File, ...]
    held: int = 0
    numerals: Numerals = PLAIN
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def location(self, row: int) -> str:
        """File and row, counted from 1 as people do; for CSV also the line."""
        for part in self.parts:
            if row < part.rows:
                where = f"{part.key}, row {row + 1}" if part.key else f"row {row + 1}"
                if part.dialect is None:
                    return where
                first = First(part.dialect, self.table.column_names)
                file = delimited.decode(self.spec, part.field, part.key, part.store.read(part.key), first)
                return f"{where} (line {file.line(row)})"
            row -= part.rows
        raise IndexError(row)


@dataclass(frozen=True)
class _Entry:
    """A file that is to be read, and the values of its folders named `column=value`."""

    field: str
    store: Store
    key: str
    partitions: dict[str, str | None]


def read_files(spec: TableSpec, root: str, holdout_root: str | None) -> Files:
    """The files under `data.root` and `data.holdout_root`.

    Raises:
        UserError: if there are none, they cannot be read, or their columns differ.
    """
    left_out: Counter[str] = Counter()
    entries: list[_Entry] = []
    for name, uri in (("data.root", root), ("data.holdout_root", holdout_root)):
        if uri is not None:
            store, keys = _keys(name, uri, left_out)
            entries += [_Entry(name, store, key, columns_in_path(key)) for key in keys]
    reader = _Reader(spec, entries)
    for entry in entries:
        reader.add(entry)
    try:
        table = pa.concat_tables(reader.tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(
            "data.root", root, f"must hold files whose columns are of one type ({error})", "Write them with one schema."
        ) from None
    from_csv = reader.parts[0].dialect is not None
    number, evidence = _numerals(spec, table) if from_csv else (_given_numerals(spec), {})
    facts = {"read": reader.read | evidence, "missing": reader.missing, "left out": {**left_out, **reader.left_out}}
    held = sum(p.rows for p in reader.parts if p.field == "data.holdout_root")
    kept = {name: fact for name, fact in facts.items() if fact}
    return Files(spec, table, from_csv, tuple(reader.parts), held, number, kept)


class _Reader:
    """Files as tables with the columns of the first, and what people want to know of it."""

    def __init__(self, spec: TableSpec, entries: Sequence[_Entry]):
        self.spec = spec
        self.parts: list[File] = []
        self.tables: list[pa.Table] = []
        self.read: dict[str, str] = {}
        self.missing: dict[str, dict[str, int]] = {}
        self.left_out: dict[str, str] = {}
        self._partitions = _partition_types(entries)

    def add(self, entry: _Entry) -> None:
        """Raises:
        UserError: for a file that cannot be read, or that has other columns.
        """
        spec, field, key = self.spec, entry.field, entry.key
        content = entry.store.read(key)
        dialect, encoding = None, "utf-8"
        if content.startswith(_PARQUET) or key.lower().endswith(".parquet"):
            _refuse_keys_of_csv(spec, key)
            table = _parquet(spec, field, key, content, self.left_out)
        else:
            file = delimited.decode(spec, field, key, content, self._first)
            dialect, encoding = file.dialect, file.encoding
            table, missing = delimited.read(spec, field, key, file)
            self._note(key, file.evidence, missing)
        table = self._with_partitions(table, entry, dialect is not None)
        _check(field, key, table, dialect is not None)
        self._same_columns(field, key, table, dialect is not None)
        self.tables.append(table)
        self.parts.append(File(field, entry.store, key, table.num_rows, dialect, encoding))

    @property
    def _first(self) -> First | None:
        """The first file, if it is CSV: the others are probably written alike."""
        if not self.parts or self.parts[0].dialect is None:
            return None
        return First(self.parts[0].dialect, self.tables[0].column_names)

    def _note(self, key: str, evidence: Mapping[str, str], missing: Mapping[str, Mapping[str, int]]) -> None:
        for name, why in evidence.items():
            before = self.read.setdefault(name, why)
            if before.partition(":")[0] != why.partition(":")[0] and key not in before:
                self.read[name] = f"{before}; in {key} {why}"
        for name, counts in missing.items():
            self.missing[name] = dict(Counter(self.missing.get(name, {})) + Counter(counts))

    def _with_partitions(self, table: pa.Table, entry: _Entry, from_csv: bool) -> pa.Table:
        """The table and a column for each folder `column=value`, unless the files have one of that name."""
        for name, value in entry.partitions.items():
            if name in table.column_names:
                continue
            kind = self._partitions[name]
            if value is not None and pa.types.is_integer(kind):
                value = str(int(value))
            index = pa.array([0] * table.num_rows if value is not None else [None] * table.num_rows, pa.int32())
            values = pa.array([value or ""]).cast(pa.string() if from_csv else kind) if value is not None else None
            dictionary = pa.array([], pa.string() if from_csv else kind) if values is None else values
            table = table.append_column(name, pa.DictionaryArray.from_arrays(index, dictionary))
            self.read[name] = "a column by the names of folders"
        return table

    def _same_columns(self, field: str, key: str, table: pa.Table, from_csv: bool) -> None:
        if not self.tables:
            return
        first, names = self.parts[0], self.tables[0].column_names
        if (first.dialect is not None) != from_csv:
            kinds = ("Parquet", "CSV") if from_csv else ("CSV", "Parquet")
            rule = f"is {kinds[1]} and {first.key} is {kinds[0]}: a table is not read from both CSV and Parquet"
            raise UserError(field, key, rule, "Name the files of one kind.")
        if table.column_names != names:
            odd = sorted(set(names) ^ set(table.column_names))
            what = f"column {odd[0]!r} is in one of them" if odd else "their order differs"
            raise UserError(
                field,
                key,
                f"must have the columns of {first.key}; {what}",
                "Write all files with the same columns in the same order.",
            )


def strings(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column of strings as dictionary<int32, string>, each string once."""
    if column.type == STRINGS:
        return whole(column)
    return dense(column).cast(pa.string()).dictionary_encode()


def recognised(uri: str) -> dict[str, Any]:
    """The `data` section that reads a file or a folder of CSV, or of Parquet without images; empty for all else."""
    section = {"source": "table", "root": uri}
    path = Path(uri).expanduser()
    try:
        if path.is_file() and not uri.lower().endswith(SUFFIXES):
            store, start = Store(str(path.parent)), path.open("rb").read(_LOOKED_AT)
            is_string = b"\0" not in start or start.startswith(_UTF_16)
            is_table = not _has_images(store, path.name) if start.startswith(_PARQUET) else is_string
        else:
            store, keys = _keys("uri", uri, Counter())
            is_table = not _has_images(store, keys[0])
    except (UserError, OSError, pa.ArrowException):
        return {}
    return section if is_table else {}


def _has_images(store: Store, key: str) -> bool:
    if not key.lower().endswith((".parquet", ".pq", ".parq")):
        return False
    path = store.path(key)
    schema = pq.read_schema(path if path is not None else io.BytesIO(store.read(key)))
    return any(
        (pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0)
        or (f.name == "image" and (pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type)))
        for f in schema
    )


# --- which files ---------------------------------------------------------------------------------


def _keys(field: str, uri: str, left_out: Counter[str]) -> tuple[Store, list[str]]:
    """The store and the keys of a path: one file, or those in a folder. What is left out is counted."""
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
    every = store.list()
    for mark, kind in _TABLE_FORMATS.items():
        if any(re.search(mark, k) for k in every):
            rule = f"is a table of {kind}, whose log says which of the files count; it is not read"
            raise UserError(field, uri, rule, "Export its rows to Parquet or CSV.")
    seen = [k for k in every if not any(map(_hidden, k.split("/")))]
    keys = [k for k in seen if k.lower().endswith(SUFFIXES)]
    if not keys:
        keys = [k for k in seen[:_LOOKED_AT] if store.read_range(k, 0, 4).startswith((_PARQUET, GZIP))]
    if not keys:
        raise UserError(
            field,
            uri,
            f"must hold files ({', '.join(SUFFIXES)}), and holds none",
            "Check the path, or name a file of another suffix, which is read as CSV.",
        )
    if len(every) > len(seen):
        left_out["hidden"] += len(every) - len(seen)
    for key in set(seen) - set(keys):
        left_out[f"suffix {Path(key).suffix}" if Path(key).suffix else "without a suffix"] += 1
    return store, keys


def _hidden(name: str) -> bool:
    """Names with these in front are of tools, such as the receipts of a data set of ours."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name) or name == "__MACOSX"


def _partition_types(entries: Sequence[_Entry]) -> dict[str, pa.DataType]:
    """Types of the partition columns, as pyarrow infers them: whole numbers or strings. 01234 is a code, 01 a month.

    Raises:
        UserError: for files that are not all partitioned by the same columns.
    """
    first = entries[0]
    for entry in entries:
        if list(entry.partitions) != list(first.partitions):
            raise UserError(
                entry.field,
                entry.key,
                f"must be in folders of the columns of {first.key}",
                "Name the folder whose files are all partitioned alike.",
            )
    types: dict[str, pa.DataType] = {}
    for name in first.partitions:
        values = [v for e in entries if (v := e.partitions[name]) is not None]
        whole_numbers = bool(values) and all(re.fullmatch(r"-?(0?\d|[1-9]\d{1,17})", v) for v in values)
        small = whole_numbers and all(abs(int(v)) < 2**31 for v in values)
        types[name] = pa.int32() if small else pa.int64() if whole_numbers else pa.string()
    return types


# --- what they hold ------------------------------------------------------------------------------


def _check(field: str, key: str, table: pa.Table, from_csv: bool) -> None:
    """That columns have names that differ, and that there are rows."""
    names = table.column_names
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        name = twice[0]
        others = [n if n not in names[:i] else f"{n}_{i + 1}" for i, n in enumerate(names)]
        ways = f"Name them all: {assignment(('data', 'table', 'names'), others)} data.table.header=true."
        rule = f"has {names.count(name)} columns named {name!r}"
        raise UserError(field, key, rule, ways if from_csv else "Rename one in the file.")
    if not table.num_rows:
        raise UserError(field, key, "must have rows, and has none", "Remove the file or fill it.")


def _parquet(spec: TableSpec, field: str, key: str, content: bytes, left_out: dict[str, str]) -> pa.Table:
    """The rows of a Parquet file, its strings as such; dropped columns of types that tables cannot have are empty."""
    try:
        table = pq.read_table(io.BytesIO(content))
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(field, key, f"must be readable Parquet ({error})", "Check the file.") from None
    for name in _pandas_index(table.schema):
        if name in table.column_names and name not in spec.columns:
            table = table.drop_columns([name])
            left_out[name] = "the index of pandas, which has no name"
    odd: dict[str, str] = {}
    for i, column in enumerate(table.schema):
        if pa.types.is_string_view(column.type):  # strings all the same
            table = table.set_column(i, column.name, table.column(i).cast(pa.string()))
        elif not (supported(column.type) or pa.types.is_null(column.type)):
            odd[column.name] = str(column.type)
            table = table.set_column(i, column.name, pa.nulls(table.num_rows))
    kept = {n: kind for n, kind in odd.items() if n not in spec.columns or spec.columns[n].type != "drop"}
    if kept:
        said: dict[str, Any] = {n: c.model_dump(exclude_defaults=True) for n, c in spec.columns.items()}
        without = assignment(("data", "table", "columns"), said | dict.fromkeys(kept, "drop"))
        raise UserError(
            field,
            f"{key}: {', '.join(f'{n} ({kind})' for n, kind in kept.items())}",
            "has columns of types that no model here makes and CSV has no notation for",
            f"Leave them out: {without}; or store durations as numbers, lists and structs as columns of their parts.",
        )
    return _without_nulls(spec, key, table).replace_schema_metadata(None)


def _refuse_keys_of_csv(spec: TableSpec, key: str) -> None:
    """Report keys that say how text is read."""
    unset = {"delimiter": (None, ","), "encoding": (None, "utf8")}  # also the defaults of earlier versions
    for name in ("names", "header", "delimiter", "escape", "skip", "comment", "encoding"):
        value = getattr(spec, name)
        if value not in unset.get(name, (None,)):
            rule = f"is for CSV, and {key} is Parquet"
            raise UserError(f"data.table.{name}", value, rule, f"Set data.table.{name}=null.")


def _without_nulls(spec: TableSpec, key: str, table: pa.Table) -> pa.Table:
    """Strings that the spec says mean a missing value, as such; Parquet has none but those."""
    for name, column in spec.columns.items():
        if column.nulls is None or name not in table.column_names:
            continue
        cells = table.column(name)
        if not (is_string(cells.type) or is_number(cells.type)):
            rule = f"are strings or numbers, and {key} has a column of type {cells.type}"
            raise UserError(f"data.table.columns.{name}.nulls", column.nulls, rule, "Leave them out.")
        table = table.set_column(table.column_names.index(name), name, without(cells, column.nulls))
    return table


def without(cells: pa.ChunkedArray | pa.Array, nulls: Sequence[str]) -> pa.Array:
    """A column whose cells are missing where they read as one of some strings."""
    plain = dense(cells)
    missing = pc.is_in(plain.cast(pa.string()), value_set=pa.array(nulls, pa.string()))
    return retyped(pc.if_else(missing, pa.scalar(None, plain.type), plain), cells.type)


def _pandas_index(schema: pa.Schema) -> list[str]:
    """Columns that hold an index of pandas that has no name."""
    index: list[Any] = (schema.pandas_metadata or {}).get("index_columns", [])
    return [n for n in index if isinstance(n, str) and re.fullmatch(r"__index_level_\d+__", n)]


def _given_numerals(spec: TableSpec) -> Numerals:
    return Numerals(spec.decimal or ".", spec.thousands or "")


def _numerals(spec: TableSpec, table: pa.Table) -> tuple[Numerals, dict[str, str]]:
    """How the numbers of CSV are written, and why; columns that the spec says are none have no say."""
    said = {n for n, c in spec.columns.items() if c.type not in (None, "numerical") or c.pattern or c.datetime_format}
    distinct = {n: strings(table.column(n)).dictionary for n in table.column_names if n not in said}
    asked = {n for n, c in spec.columns.items() if c.type == "numerical"}
    return numerals.find({n: Affix.of(d, n in asked).stripped(d) for n, d in distinct.items()}, spec)
