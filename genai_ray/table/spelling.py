"""How the files of a table spell their values, so that CSV can be written, and read back, as the source was.

What a column writes otherwise than Arrow does is its `Spelling`; what separates cells, and the encoding, is a
`FileSpelling`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, date, datetime, time
from typing import Any

import pyarrow as pa

from genai_ray.table import delimited, values
from genai_ray.table.dialect import Dialect
from genai_ray.table.numerals import APOSTROPHES, SPACES, Affix, Numerals
from genai_ray.table.values import pc

#: Distinct strings by which a spelling is found: it must make all of them again.
_TRIED = 1000
_WHOLE = re.compile(r"[+-]?\d+")
_ISO_FORMS = tuple(
    f"%Y-%m-%d{between}{clock}{zone}"
    for between in " T"
    for clock in ("%H:%M:%S", "%H:%M", "%H:%M:%S.%3f", "%H:%M:%S.%f", "%H")
    for zone in ("", "Z", "+00:00", "%z")
)


@dataclass(frozen=True)
class Spelling:
    """How a column writes values.

    form: of dates and times, as in strptime; %-d is a day without a zero before it, %3f are milliseconds. words: for
    true and for false. decimal, thousands: separators of numbers. decimals: their fixed number. whole: whole numbers
    end in .0. null: a missing value. prefix, suffix: before and after all numbers.
    """

    form: str = ""
    words: tuple[str, ...] = ()
    decimal: str = "."
    thousands: str = ""
    decimals: int | None = None
    whole: bool = False
    null: str = ""
    prefix: str = ""
    suffix: str = ""

    def to_json(self) -> dict[str, Any]:
        defaults = {f.name: f.default for f in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if v != defaults[k]}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Spelling":
        return cls(**{**stored, "words": tuple(stored.get("words", ()))})


@dataclass(frozen=True)
class FileSpelling:
    """How a file of CSV is written. columns: by name, of those that Arrow would write otherwise."""

    delimiter: str = ","
    encoding: str = "utf-8"
    escape: str = "double"
    columns: Mapping[str, Spelling] = field(default_factory=dict[str, Spelling])

    @property
    def dialect(self) -> Dialect:
        return Dialect(self.delimiter, self.escape)

    def to_json(self) -> dict[str, str]:
        return {"delimiter": self.delimiter, "encoding": self.encoding, "escape": self.escape}


# --- what a column does --------------------------------------------------------------------------


def of_dates(strings: Any, moments: Any, form: str | None) -> Spelling | None:
    """The spelling of dates or times; None if it is Arrow's, or none that is known.

    Args:
        strings, moments: distinct cells (Arrow arrays), before and after they were read. form: by which, None for
            ISO 8601.
    """
    if values.tick_ns(moments.type) == 1:  # of which Python has no type
        return None
    cells: list[tuple[str, Any]] = list(zip(*(a[:_TRIED].to_pylist() for a in (strings, moments)), strict=True))
    forms = _ISO_FORMS if form is None else (form, re.sub(r"%([dmHI])", r"%-\1", form), *_half_padded(form))
    if moments[:_TRIED].cast(pa.string()).equals(strings[:_TRIED].cast(pa.string())):
        return None
    return next((Spelling(form=f) for f in forms if all(_moment(m, f) == s for s, m in cells)), None)


def _half_padded(form: str) -> tuple[str, ...]:
    """Days and months without a zero before them beside hours with one, and the reverse."""
    return re.sub(r"%([dm])", r"%-\1", form), re.sub(r"%([HI])", r"%-\1", form)


def of_booleans(strings: Sequence[str], meanings: Sequence[bool], counts: Sequence[int]) -> Spelling | None:
    """The most frequent words for true and for false; None if they are Arrow's."""
    words: list[str] = []
    for meaning in (True, False):
        used = [(n, s) for s, m, n in zip(strings, meanings, counts, strict=True) if m == meaning]
        words.append(max(used)[1] if used else str(meaning).lower())
    return None if words == ["true", "false"] else Spelling(words=tuple(words))


def of_numbers(strings: Any, plain: Any, numerals: Numerals) -> Spelling | None:
    """The spelling of numbers; None if it is Arrow's.

    Args:
        strings: distinct cells. plain: the same with a decimal point and without thousands.
    """
    cells, numbers = (a[:_TRIED].to_pylist() for a in (strings, plain))
    grouped = numerals.thousands and any(cell != number for cell, number in zip(cells, numbers, strict=True))
    separators = {c for cell in cells for c in cell if c in f".,{SPACES}{APOSTROPHES}"} - {numerals.decimal}
    thousands = min(separators) if grouped and len(separators) == 1 else ""
    fractions = {-1 if "e" in n.lower() else len(n.partition(".")[2]) for n in numbers}
    fixed = fractions.pop() if len(fractions) == 1 else 0
    decimal = numerals.decimal if any(numerals.decimal in cell for cell in cells) else "."
    plainest = Spelling(decimal=decimal, thousands=thousands)
    styles = (*([replace(plainest, decimals=fixed)] if fixed > 0 else []), replace(plainest, whole=True), plainest)
    parsed = [int(n) if _WHOLE.fullmatch(n) else float(n) for n in numbers]
    exact = (s for s in styles if all(_number(n, s) == c for c, n in zip(cells, parsed, strict=True)))
    style = next(exact, Spelling(decimal=decimal))
    return None if style == Spelling() else style


# --- values as strings ---------------------------------------------------------------------------


def spelled(column: Any, spelling: Spelling | None) -> Any:
    """A column (an Arrow array) as strings; null where a missing value is an empty cell."""
    array = values.dense(column)
    if spelling is None or replace(spelling, null="") == Spelling():
        strings = array.cast(pa.string())
    else:
        strings = _by_value(array, lambda value: _spell(value, spelling), pa.string())
    return pc.fill_null(strings, spelling.null) if spelling and spelling.null else strings


def _spell(value: Any, spelling: Spelling) -> str:
    if isinstance(value, bool):
        return spelling.words[0 if value else 1] if spelling.words else str(value).lower()
    if isinstance(value, date | time):
        return _moment(value, spelling.form)
    return value if isinstance(value, str) else Affix(spelling.prefix, spelling.suffix).added(_number(value, spelling))


def _number(value: float, spelling: Spelling) -> str:
    grouping = "," if spelling.thousands else ""
    if spelling.decimals is not None:
        string = f"{value:{grouping}.{spelling.decimals}f}"
    elif float(value).is_integer() and abs(value) < 1e16:
        string = f"{int(value):{grouping}d}" + (".0" if spelling.whole else "")
    else:
        string = f"{value:{grouping}}" if grouping else repr(value)
    swapped = {",": spelling.thousands, ".": spelling.decimal}
    return "".join(swapped.get(c, c) for c in string)


def _moment(value: Any, form: str) -> str:
    """A date or time by a form; `strftime` of some systems knows neither %-d nor years before 1000."""

    def part(match: re.Match[str]) -> str:
        directive = match[0]
        if directive == "%Y":
            return f"{value.year:04d}"
        if directive == "%3f":
            return f"{value.microsecond // 1000:03d}"
        if directive.startswith("%-"):
            return value.strftime(f"%{directive[2]}").lstrip("0") or "0"
        return value.strftime(directive)

    return re.sub(r"%(-?[A-Za-z]|3f|%)", part, form)


# --- strings as values ---------------------------------------------------------------------------


def unspelled(column: Any, kind: pa.DataType, spelling: Spelling | None) -> Any:
    """A column of strings in its own type.

    Raises:
        pa.ArrowInvalid: for a string that is none of its values.
    """
    array = values.dense(column)
    cells = values.value_type(kind)
    if spelling is not None and spelling.null:
        array = pc.if_else(pc.equal(array, spelling.null), pa.scalar(None, pa.string()), array)
    if spelling is None or values.is_string(kind):
        out = _cast(array, cells)
    elif spelling.form:
        out = _by_array(array, lambda distinct: strptime(distinct, spelling.form)).cast(cells, safe=False)
    elif spelling.words:
        known = pc.is_in(array, value_set=pa.array(spelling.words))
        out = pc.if_else(known, pc.equal(array, spelling.words[0]), pa.scalar(None, pa.bool_()))
    else:
        bare = Affix(spelling.prefix, spelling.suffix).stripped(array)
        removed = pc.replace_substring(bare, spelling.thousands, "") if spelling.thousands else bare
        out = _cast(pc.replace_substring(removed, spelling.decimal, "."), cells)
    if out.null_count > array.null_count:
        raise pa.ArrowInvalid(f"a cell is not spelled as {spelling}")
    return values.retyped(out, kind)


def _cast(array: Any, kind: pa.DataType) -> Any:
    if pa.types.is_float16(kind):
        return array.cast(pa.float32()).cast(kind)
    if pa.types.is_time(kind):  # no cast is there
        return pc.binary_join_element_wise("1970-01-01", array, " ").cast(pa.timestamp(kind.unit)).cast(kind)
    if pa.types.is_integer(kind):  # a spelling may end in .0
        array = pc.replace_substring_regex(array, r"\.0+$", "")
    return array.cast(kind)


def strptime(distinct: Any, form: str) -> Any:
    """Strings as timestamps in microseconds, null where they do not fit the form."""
    form = re.sub(r"%-([A-Za-z])", r"%\1", form).replace("%3f", "%f")
    if not re.search("%[fzZpcxXGuVU]", form):
        return pc.strptime(distinct, format=form, unit="us", error_is_null=True)
    parsed: list[datetime | None] = []
    for string in distinct.to_pylist():
        try:
            parsed.append(datetime.strptime(string, form))
        except ValueError:
            parsed.append(None)
    zoned = any(p is not None and p.tzinfo for p in parsed)
    if zoned:
        parsed = [p and p.astimezone(UTC) for p in parsed]
    return pa.array(parsed, pa.timestamp("us", "UTC" if zoned else None))


def _by_value(array: Any, function: Callable[[Any], Any], kind: pa.DataType) -> Any:
    """A function of each value that is not missing, called once for each distinct one."""
    return _by_array(array, lambda distinct: pa.array([function(v) for v in distinct.to_pylist()], kind))


def _by_array(array: Any, function: Callable[[Any], Any]) -> Any:
    encoded = array.dictionary_encode()
    return function(encoded.dictionary).take(encoded.indices)


# --- a file --------------------------------------------------------------------------------------


def write(table: pa.Table, own: FileSpelling) -> bytes:
    """A table as CSV with a header. A missing value is an empty cell, an empty string is in quotes.

    Raises:
        UnicodeEncodeError: for a value that the encoding does not have.
    """
    names = pa.array(table.column_names, pa.string())
    cells = [spelled(table.column(name), own.columns.get(name)) for name in table.column_names]
    header = _quoted(names, own).to_pylist()
    lines = pc.binary_join_element_wise(*(pc.fill_null(_quoted(c, own), "") for c in cells), own.dialect.character)
    content = "\n".join([own.dialect.character.join(header), *lines.to_pylist(), ""])
    return content.encode(own.encoding)


def _quoted(strings: Any, own: FileSpelling) -> Any:
    """Strings in quotes where they need them."""
    mark = '""' if own.escape == "double" else '\\"'
    inner = strings if own.escape == "double" else pc.replace_substring(strings, "\\", "\\\\")
    inner = pc.replace_substring(inner, '"', mark)
    wrapped = pc.binary_join_element_wise('"', inner, '"', "")
    special = rf'^$|[\n\r"\\{re.escape(own.dialect.character)}]'
    return pc.if_else(pc.match_substring_regex(strings, special), wrapped, strings)


def read(content: bytes, own: FileSpelling) -> pa.Table:
    """The rows of `write`, every column as strings.

    Raises:
        ValueError: for content that is no such file.
    """
    string = content.decode(own.encoding)
    return delimited.parse(string.encode(), own.dialect, pa.string())
