"""Delimited text (CSV) as an Arrow table of strings, by a dialect and an encoding that are found or given."""

import codecs
import csv
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from genai_ray.errors import UserError
from genai_ray.table import dialect as dialects
from genai_ray.table import encodings
from genai_ray.table.dialect import Dialect, First, rows_of
from genai_ray.table.spec import DELIMITERS, TableSpec
from genai_ray.table.values import pc, whole

GZIP = b"\x1f\x8b"
#: First bytes of files that are no text.
_OTHERS = {
    b"PK\x03\x04": "an Excel workbook or a zip file",
    b"\xd0\xcf\x11\xe0": "an Excel workbook",
    b"ARROW1": "an Arrow file",
    b"ORC": "an ORC file",
    b"Obj\x01": "an Avro file",
    b"SQLite format 3": "an SQLite database",
    b"BZh": "compressed by bzip2",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"\xfd7zXZ": "compressed by xz",
}
#: How text begins that is no table of delimited cells.
_MARKED_UP = (
    (re.compile(rb"\s*[{\[]\s*(\[\s*)?[{\"]"), "JSON"),
    (re.compile(rb"(?i)\s*<(!doctype|html|table|\?xml)"), "HTML or XML"),
    (re.compile(rb"(?i)\s*@relation\s"), "an ARFF file"),
)
#: Spaces between a delimiter and a quote.
_PADDED = re.compile(r'(?<=[,;|\t]) +(?=")')
#: Cells of CSV as dictionary-encoded strings: most columns have few distinct values.
STRINGS = pa.dictionary(pa.int32(), pa.string())
#: Bytes that Arrow parses at once; more where a row is longer.
_BLOCK = 1 << 20
#: Rows that are looked at for how a file may be meant that cannot be read.
_LOOKED_AT = 1000


@dataclass(frozen=True)
class Delimited:
    """A file of delimited text. content: in UTF-8, with the line numbers of the file, without comments, skipped lines
    and runs of spaces. evidence: by key of `data.table`, why it is read so.
    """

    content: bytes
    dialect: Dialect
    encoding: str
    evidence: dict[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """(line, cells) of every row, the header among them."""
        return rows_of(self.content.decode(), self.dialect)

    def line(self, row: int) -> int:
        """The line on which a row ends."""
        wanted = row + self.dialect.header
        # Arrow and `csv` may see other rows where quotes are not closed.
        return next((line for i, (line, _) in enumerate(self.rows) if i == wanted), wanted + 1)


def decode(spec: TableSpec, field: str, key: str, content: bytes, first: First | None = None) -> Delimited:
    """The text of a file, and how it is written. first: the file of the same table that was read first.

    Raises:
        UserError: for text that is not in the encoding of the spec, and where two readings fit.
    """
    content = _unpacked(field, key, content)
    evidence: dict[str, str] = {}
    encoding = spec.encoding or _encoding(field, key, content, evidence)
    try:
        codec = codecs.lookup(encoding).name
        # Decoded even if it is UTF-8 already: what is not UTF-8 is noticed here.
        string = content.decode(codec)
    except LookupError:
        raise UserError(
            "data.table.encoding",
            encoding,
            "must be an encoding that Python knows",
            "Set data.table.encoding=null to have it detected.",
        ) from None
    except UnicodeDecodeError as error:
        rule = f"must be {encoding}, and {_where(content, error)} is not ({error.reason})"
        raise UserError(field, key, rule, "Set data.table.encoding=null to have it detected.") from None
    string = string.removeprefix("\ufeff")
    kind = next((kind for start, kind in _MARKED_UP if start.match(string[:_LOOKED_AT].encode())), None)
    if kind is not None and spec.skip is None and spec.comment is None:
        raise UserError(field, key, f"is {kind}, which is not read", "Save it as CSV or Parquet.")
    skip, named = dialects.skipped_lines(string, spec)
    if skip:
        string = re.sub(r"(?m)^[^\r\n]*", "", string, count=skip)
    if spec.comment:
        string = re.sub(rf"(?m)^{re.escape(spec.comment)}[^\r\n]*", "", string)
    if '""' not in string and '\\"' not in string:  # so that no quoted cell can hold what is matched
        string = _PADDED.sub("", string)
    dialect, found = dialects.detect(string, spec, (field, key), named, first)
    content = string.encode()
    if dialect.delimiter == "space":
        content = b"\n".join(b" ".join(line.split()) for line in content.split(b"\n"))
    return Delimited(content, dialect, codec, evidence | found)


def _unpacked(field: str, key: str, content: bytes) -> bytes:
    if not content.startswith(GZIP) and not key.lower().endswith(".gz"):
        kind = next((kind for start, kind in _OTHERS.items() if content.startswith(start)), None)
        if kind is not None:
            raise UserError(field, key, f"is {kind}, which is not read", "Save it as CSV or Parquet, or as .csv.gz.")
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(field, key, f"must be gzip ({error})", "Check the file.") from None


def _where(content: bytes, error: UnicodeDecodeError) -> str:
    line = content.count(b"\n", 0, error.start) + 1
    return f"line {line}"


def _encoding(field: str, key: str, content: bytes, evidence: dict[str, str]) -> str:
    found = encodings.detect(content)
    if found.codec is not None:
        if found.codec != "utf-8":
            evidence["encoding"] = f"{found.codec}: {found.why}"
        return found.codec
    try:
        content.decode()
        raise AssertionError("UTF-8 is never in doubt")
    except UnicodeDecodeError as error:
        rule = f"must be UTF-8, and {_where(content, error)} is not ({found.why})"
    shown = "; ".join(f"{codec} reads {word!r} there" for codec, word in found.options.items())
    choices = " or ".join(f"data.table.encoding={codec}" for codec in found.options)
    remedy = f"Say which: {choices}." if choices else "Correct the line."
    raise UserError(field, key, f"{rule}; {shown}" if shown else rule, remedy)


# --- to a table ----------------------------------------------------------------------------------


def parse(content: bytes, dialect: Dialect, kind: pa.DataType, names: Sequence[str] | None = None) -> pa.Table:
    """Delimited text in UTF-8 as a table of strings, `kind` (dictionary-encoded or not); only an empty cell without
    quotes is missing, if the type is not STRINGS.

    Raises:
        pa.ArrowInvalid: for rows of different lengths.
    """
    written = dialect.header and names is not None
    options = pacsv.ReadOptions(
        column_names=None if names is None else list(names),
        autogenerate_column_names=names is None and not dialect.header,
        skip_rows_after_names=int(written),
    )
    rules = pacsv.ParseOptions(
        delimiter=dialect.character,
        double_quote=dialect.escape == "double",
        escape_char="\\" if dialect.escape == "backslash" else False,
        # Slower, so only where a quote could hold an end of line.
        newlines_in_values=b'"' in content or dialect.escape == "backslash",
        ignore_empty_lines=kind == STRINGS,
    )
    nulls = kind != STRINGS
    convert = pacsv.ConvertOptions(
        default_column_type=kind,
        strings_can_be_null=nulls,
        null_values=[""] if nulls else None,
        quoted_strings_can_be_null=False,
    )
    options.block_size = _BLOCK
    while True:
        try:
            return pacsv.read_csv(pa.BufferReader(content), options, rules, convert)
        except pa.ArrowInvalid as error:
            # A row that is longer than a block: Arrow reports it in several ways.
            if options.block_size > len(content) or not re.search("block|chunk", str(error)):
                raise
            options.block_size *= 8


def read(spec: TableSpec, field: str, key: str, file: Delimited) -> tuple[pa.Table, dict[str, dict[str, int]]]:
    """The rows of a file, and by column how many cells have each string that is read as missing.

    Raises:
        UserError: for rows of different lengths, naming the first.
    """
    names = None if spec.names is None else list(spec.names)
    try:
        table = parse(file.content, file.dialect, STRINGS, names or _completed(file))
    except pa.ArrowInvalid as error:
        raise _unreadable(spec, field, key, file, error) from None
    table = table.rename_columns(_names(spec, table, file))
    if spec.names is not None and table.num_rows and not file.dialect.header:
        first = [str(c[0]).strip() for c in table.columns]
        if first == names:
            raise UserError(
                "data.table.names",
                names,
                f"is also the first line of {key}",
                "Leave data.table.names out, as the file has a header: data.table.names=null.",
            )
    missing: dict[str, dict[str, int]] = {}
    cells = []
    # From arrays, since names may occur twice, which is checked later.
    for name, column in zip(table.column_names, table.columns, strict=True):
        own = spec.columns[name].nulls if name in spec.columns else None
        array, counts = _cells(column, spec.nulls if own is None else own)
        cells.append(array)
        if counts:
            missing[name] = counts
    return pa.table(cells, table.column_names), missing


def _completed(file: Delimited) -> list[str] | None:
    """The names of a header that lacks one; None if it lacks none."""
    if not file.dialect.unnamed:
        return None
    _, names = next(file.rows)
    return ["", *names] if file.dialect.unnamed == "first" else [*names, ""]


def _names(spec: TableSpec, table: pa.Table, file: Delimited) -> list[str]:
    """Names of the columns, also of those that have none in the file."""
    if spec.names is None and not file.dialect.header:
        return [f"column_{i + 1}" for i in range(table.num_columns)]
    names = [n.strip() for n in table.column_names]
    # As pandas calls them.
    named = [n or f"Unnamed: {i}" for i, n in enumerate(names)]
    if named != names:
        absent = ", ".join(repr(n) for n, before in zip(named, names, strict=True) if not before)
        file.evidence["names"] = f"{absent}: without a name in the file"
    return named


def _cells(column: pa.ChunkedArray, nulls: Sequence[str]) -> tuple[pa.Array, dict[str, int]]:
    """Strings without spaces around them, and missing where they mean that, each string once; and how often each string
    means it.
    """
    array = whole(column)
    trimmed = pc.utf8_trim_whitespace(array.dictionary)
    missing = pc.is_in(trimmed, value_set=pa.array(nulls, pa.string()))
    # Strings that differed by spaces alone are the same now.
    encoded = pc.if_else(missing, pa.scalar(None, pa.string()), trimmed).dictionary_encode()
    indices = encoded.indices.take(array.indices)
    counts: Counter[str] = Counter()
    for i in np.flatnonzero(np.asarray(missing)):
        counts[trimmed[int(i)].as_py()] += int(pc.sum(pc.equal(array.indices, int(i))).as_py() or 0)
    return pa.DictionaryArray.from_arrays(indices.cast(pa.int32()), encoded.dictionary), dict(counts)


def _unreadable(spec: TableSpec, field: str, key: str, file: Delimited, error: pa.ArrowInvalid) -> UserError:
    """The error in a file that Arrow cannot read."""
    if not file.content.strip():
        return UserError(field, key, "must have rows, and is empty", "Check the file.")
    expected = None if spec.names is None else len(spec.names)
    rows: Any = file.rows
    try:
        for number, (line, cells) in enumerate(rows):
            if expected is None:
                expected = len(cells)
            elif len(cells) != expected:
                what = "are named" if spec.names and number == 0 else "are expected"
                row = number + (not file.dialect.header)
                return UserError(
                    field,
                    f"{key}, row {row} (line {line})",
                    f"has {len(cells)} cells where {expected} {what}",
                    _other_reading(file, expected),
                )
    except csv.Error as reason:
        error = pa.ArrowInvalid(str(reason))
    return UserError(field, key, f"must be readable CSV ({error})", "Check the file.")


def _other_reading(file: Delimited, expected: int) -> str:
    """How a file whose rows have different lengths may be meant."""
    ways: list[str] = []
    lengths = [(line, len(cells)) for line, cells in islice(file.rows, _LOOKED_AT)]
    usual = Counter(n for _, n in lengths).most_common(1)[0][0]
    before = next(i for i, (_, n) in enumerate(lengths) if n == usual)
    if 0 < before and all(n == usual for _, n in lengths[before:]):
        ways.append(f"data.table.skip={lengths[before - 1][0]} if the table begins after that line")
    absent = next((n for n in ("tab", "pipe", "semicolon") if DELIMITERS[n].encode() not in file.content), None)
    if expected == 1 and absent is not None:
        ways.append(f"data.table.delimiter={absent} if it is one column")
    shown = dialects.name_of(file.dialect.delimiter)
    return f"Set {', or '.join(ways)}." if ways else f"Correct the line, or set data.table.delimiter (now {shown})."
