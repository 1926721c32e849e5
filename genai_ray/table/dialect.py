"""How a file of delimited text is written: what separates its cells, how quotes are escaped, whether it has a header.

Found in its first rows, each answer with its evidence. Where two readings fit, it is the user who decides.
"""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from genai_ray.errors import UserError
from genai_ray.table.spec import DELIMITERS, TableSpec

#: Characters and rows from which a dialect is found; it is checked on the whole file when that is parsed.
PREFIX = 1 << 20
_ROWS = 1000
#: Share of the rows that must have one number of cells. The others are reported as errors when the file is parsed.
_REGULAR = 0.9
#: By how much more of its cells a delimiter must make numbers, dates or booleans to be preferred to another.
_PLAINLY = 0.25
#: Delimiters that are looked for where no usual one divides the rows, those of Hive and of ASCII first.
_RARE = "\x01\x1f~^:"
_ENOUGH = 20  # rows whose first cells all differ, for these to be names of rows
_SEP_LINE = re.compile(r'\A"?sep=(.)"?[ \t]*\r?\n', re.IGNORECASE)
_VALUE = re.compile(
    r"""[-+]?\d[\d.,'\u2019\ \u00a0]*([eE][-+]?\d+)?\ ?%?      # numbers
    | [-+]?[.,]\d+
    | \d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}([T ]\d.*)?    # dates
    | \d{1,2}:\d{2}(:\d{2}.*)?
    | true | false""",
    re.IGNORECASE | re.VERBOSE,
)
_WHOLE = re.compile(r"\d{1,9}")
_DECIMAL = re.compile(r"([-+]?\d*(,\d+)?|\"[-+]?\d*(,\d+)?\")\r?")
_YEAR = re.compile(r"(19|20)\d\d")


@dataclass(frozen=True)
class Dialect:
    """delimiter: one character, or `space` for any run of spaces and tabs. escape: how a quote is written within
    quotes. skip: lines before the header, or before the rows if there is none. unnamed: the column that a header with
    one cell less than all rows does not name, `first` (names of rows, as R writes them) or `last` (rows end in a
    delimiter).
    """

    delimiter: str = ","
    escape: str = "double"
    header: bool = True
    skip: int = 0
    unnamed: str = ""

    @property
    def character(self) -> str:
        return " " if self.delimiter == "space" else self.delimiter


@dataclass(frozen=True)
class First:
    """The file of a table that was read first, and the names of its columns."""

    dialect: Dialect
    names: Sequence[str]


def name_of(delimiter: str) -> str:
    """A delimiter as it can be given on a command line."""
    if not delimiter.isprintable() and delimiter != "\t":
        return repr(delimiter)
    return {" ": "'\" \"'", **{c: n for n, c in reversed(DELIMITERS.items())}}.get(delimiter, delimiter)


def rows_of(string: str, dialect: Dialect, *, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """(line, cells) of every row that is not empty, the header among them.

    Raises:
        csv.Error: in a strict reading, for a quote that ends within a cell.
    """
    csv.field_size_limit(2**31 - 1)  # a cell may have any length
    doubled = dialect.escape == "double"
    lines = io.StringIO(string, newline="")
    reader = csv.reader(
        (" ".join(line.split()) + "\n" for line in lines) if dialect.delimiter == "space" else lines,
        delimiter=dialect.character,
        doublequote=doubled,
        escapechar=None if doubled else "\\",
        strict=strict,
    )
    for cells in reader:
        if cells:
            yield reader.line_num, cells


def skipped_lines(string: str, spec: TableSpec) -> tuple[int, str | None]:
    """How many lines come before the header, and the delimiter that the line `sep=` of Excel names."""
    match = _SEP_LINE.match(string)
    if match and spec.skip in (None, 1):
        return 1, match[1]
    return spec.skip or 0, None


def detect(
    string: str, spec: TableSpec, where: tuple[str, str], named: str | None, first: First | None
) -> tuple[Dialect, dict[str, str]]:
    """The dialect of a file, and by key of `data.table` the evidence for what was found.

    Args:
        string: the file from its start, without comments and skipped lines.
        where: the field of the spec that names the file, and its key, for errors.
        named: a delimiter that the file itself names. first: another file of the table, after which doubts are decided.

    Raises:
        UserError: if two readings fit; the remedy says which.
    """
    cut = len(string) > PREFIX
    head = string[: string.rfind("\n", 0, PREFIX) + 1 or PREFIX] if cut else string
    evidence: dict[str, str] = {}
    alike = None if first is None else _alike(head, spec, first, cut)
    chosen = alike or _chosen(head, spec, where, named, cut)
    if spec.delimiter is None and chosen.width > 1:
        why = "the line sep= names it" if named else chosen.why
        evidence["delimiter"] = f"{name_of(chosen.dialect.delimiter)}: {why}"
    elif spec.delimiter is None:
        evidence["delimiter"] = "none: no character divides the rows into as many cells each"
    if spec.escape is None and chosen.dialect.escape == "backslash":
        evidence["escape"] = "backslash: quotes or delimiters stand after one"
    names = [] if first is None else list(first.names)
    header = _header(chosen, spec, where, evidence, names)
    return replace(chosen.dialect, header=header, unnamed=_unnamed(chosen) if header else ""), evidence


@dataclass(frozen=True)
class _Trial:
    """The first rows read by a dialect, and the line on which each ends. malformed: a quote ends within a cell."""

    dialect: Dialect
    rows: Sequence[Sequence[str]]
    malformed: bool
    lines: Sequence[int] = ()

    @classmethod
    def of(cls, string: str, dialect: Dialect, cut: bool) -> "_Trial":
        rows: list[list[str]] = []
        lines: list[int] = []
        malformed = False
        try:
            for line, cells in rows_of(string, dialect, strict='"' in string):
                rows.append(cells)
                lines.append(line)
                if len(rows) == _ROWS:
                    break
            else:
                rows = rows[: len(rows) - cut] or rows  # the last one may be cut
        except csv.Error:
            malformed = True
            rows = [cells for _, (_, cells) in zip(range(_ROWS), rows_of(string, dialect), strict=False)]
            lines = [line for _, (line, _) in zip(range(_ROWS), rows_of(string, dialect), strict=False)]
        return cls(dialect, rows, malformed, lines)

    @cached_property
    def width(self) -> int:
        """The most frequent number of cells of a row."""
        return Counter(map(len, self.rows)).most_common(1)[0][0] if self.rows else 0

    @cached_property
    def regular(self) -> float:
        """Share of the rows that have this number."""
        return sum(len(r) == self.width for r in self.rows) / max(1, len(self.rows))

    @property
    def divides(self) -> bool:
        return self.width > 1 and self.regular >= _REGULAR

    @cached_property
    def values(self) -> float:
        """Share of the cells that are numbers, dates, booleans or empty."""
        cells = [c.strip() for row in self.rows[1:] or self.rows for c in row]
        return sum(not c or bool(_VALUE.fullmatch(c)) for c in cells) / max(1, len(cells))

    @property
    def why(self) -> str:
        n = len(self.rows)
        return f"{sum(len(r) == self.width for r in self.rows)} of the first {n} rows have {self.width} cells"

    def column(self, index: int) -> list[str]:
        return [row[index].strip() for row in self.rows if index < len(row)]


def _alike(head: str, spec: TableSpec, first: First, cut: bool) -> _Trial | None:
    """Read as another file of the table, if that gives as many cells in its first row."""
    if spec.delimiter is not None or spec.escape is not None:
        return None
    trial = _Trial.of(head, replace(first.dialect, skip=0), cut)
    return trial if trial.width == len(first.names) and trial.regular >= _REGULAR else None


def _chosen(head: str, spec: TableSpec, where: tuple[str, str], named: str | None, cut: bool) -> _Trial:
    """The reading of the first rows."""
    given = spec.delimiter or named
    if given is not None:
        return _escaped(head, given, spec, cut)
    tried = [_escaped(head, d, spec, cut) for d in ",;\t|" if d in head]
    trials = [t for t in tried if t.divides] or _unusual(head, spec, cut)
    if not trials:
        # Rows of other lengths are reported when the file is parsed.
        ragged = [t for t in tried if t.width > 1 and t.regular > 0.5 and len(t.rows[0]) == t.width]
        return max(ragged, key=lambda t: t.regular) if ragged else _by_spaces(head, spec, where, cut)
    best = max(t.regular for t in trials)
    # A delimiter that the first row has as well: a header names every column.
    whole = [t for t in trials if len(t.rows[0]) == t.width] or trials
    trials = [t for t in whole if t.regular == best] or [max(whole, key=lambda t: t.regular)]
    # Text has commas, semicolons and bars in it, but no tabs.
    trials = [t for t in trials if t.dialect.delimiter == "\t"] or sorted(trials, key=lambda t: -t.values)
    if len(trials) > 1 and trials[0].values < trials[1].values + _PLAINLY:
        names = [name_of(t.dialect.delimiter) for t in trials]
        raise _doubt(where, f"may be divided by {' or '.join(names)}, and each gives rows of one length", *_set(names))
    return trials[0]


def _unusual(head: str, spec: TableSpec, cut: bool) -> list[_Trial]:
    """Readings by characters that few files use, in which the header and all rows have as many cells."""
    trials = [_escaped(head, d, spec, cut) for d in _RARE if d in head.partition("\n")[0]]
    return [t for t in trials if t.divides and t.regular == 1 and len(t.rows[0]) == t.width and len(t.rows) > 1]


def _escaped(head: str, delimiter: str, spec: TableSpec, cut: bool) -> _Trial:
    """Read with a delimiter, and quotes that are doubled unless only a backslash makes sense of them."""
    if spec.escape is not None:
        return _Trial.of(head, Dialect(delimiter, spec.escape), cut)
    doubled = _Trial.of(head, Dialect(delimiter), cut)
    if not re.search(r'\\["' + re.escape(doubled.dialect.character) + "]", head):
        return doubled
    escaped = _Trial.of(head, Dialect(delimiter, "backslash"), cut)
    better = doubled.malformed or escaped.regular > doubled.regular
    return escaped if better and not escaped.malformed and escaped.regular >= doubled.regular else doubled


def _by_spaces(head: str, spec: TableSpec, where: tuple[str, str], cut: bool) -> _Trial:
    """A file of one column, or of columns divided by runs of spaces."""
    one = _Trial.of(head, Dialect(",", spec.escape or "double"), cut)
    absent = next((d for d in ";\t|" if d not in head), None)
    if one.width == 2 and len(one.rows[0]) == 1 and absent and all(map(_DECIMAL.fullmatch, head.split("\n")[1:])):
        return _Trial.of(head, Dialect(absent), cut)  # the commas are those of numbers
    if '"' in head:  # as R writes tables: one space, and quotes around strings
        single = _Trial.of(head, Dialect(" "), cut)
        return single if single.divides and not single.malformed and one.width == 1 else one
    spaced = _Trial.of(head, Dialect("space"), cut)
    if spaced.width < 2 or spaced.regular < 1 or len(spaced.rows) < 2:
        return one
    bodies = [spaced.column(i)[1:] for i in range(spaced.width)]
    numbers = [all(re.fullmatch(r"[-+]?\d*\.?\d+([eE][-+]?\d+)?", c) for c in body) for body in bodies]
    if all(numbers) or (any(numbers) and spaced.width > 2):
        return spaced
    if any(numbers) or (spaced.width > 2 and len(spaced.rows) >= _ENOUGH and spaced.values < 1):
        rule = f"may be one column, or {spaced.width} that are divided by spaces"
        raise _doubt(where, rule, *_set(["space", "comma"]))
    return one


def _set(names: Sequence[str]) -> list[str]:
    return [f"data.table.delimiter={name}" for name in names]


def _doubt(where: tuple[str, str], rule: str, *remedies: str) -> UserError:
    return UserError(*where, rule, f"Say which: {' or '.join(remedies)}.")


# --- header --------------------------------------------------------------------------------------


def _header(
    trial: _Trial, spec: TableSpec, where: tuple[str, str], evidence: dict[str, str], names: Sequence[str]
) -> bool:
    """Whether the first row names the columns. names: of another file of the table, if there is one."""
    if spec.header is not None:
        return spec.header
    if spec.names is not None:
        return False
    first = [c.strip() for c in trial.rows[0]] if trial.rows else []
    if len(trial.rows) < 2 or first == list(names):
        return True
    if len(first) - sum(map(bool, first)) > max(1, len(first) // 2):
        raise _titled(trial, where)
    named, alike = _signs(trial, first, spec.nulls)
    if not alike:
        shown = f", as {first[named[0]]!r} over values of another kind" if named else ""
        evidence["header"] = f"true: the first row differs from the others{shown}"
        return True
    if len(named) > len(alike):
        evidence["header"] = f"true: {first[named[0]]!r} and {len(named) - 1} more stand over values of another kind"
        return True
    numbers = "a first line of numbers" if all(_VALUE.fullmatch(c) for c in first) else "a first line"
    cells = ", ".join(c[:20] for c in first[:4])
    raise UserError(
        *where,
        f"has {numbers} ({cells}) that looks like the rows below it, not like names",
        "Say which: data.table.header=true or data.table.header=false; without one the columns are named column_1, "
        "column_2 and so on, or by data.table.names.",
    )


def _titled(trial: _Trial, where: tuple[str, str]) -> UserError:
    """The error of a first line that names few columns, such as the title of a sheet."""
    full = next((i for i, row in enumerate(trial.rows) if len(row) == trial.width and all(map(str.strip, row))), 0)
    below = f"data.table.skip={trial.lines[full] - 1} if the names are in line {trial.lines[full]}, or " if full else ""
    cells = ", ".join(c[:20] for c in trial.rows[0] if c.strip())
    rule = f"has a first line that names few of its {trial.width} columns ({cells})"
    return UserError(*where, rule, f"Set {below}data.table.header=true if these are names.")


def _unnamed(trial: _Trial) -> str:
    """Which column the header does not name; see `Dialect`. Names of rows all differ."""
    head, *rows = trial.rows or [[]]
    if len(head) < 2 or not rows or len(head) + 1 != trial.width or any(len(row) != trial.width for row in rows):
        return ""
    if not any(row[-1] for row in rows):
        return "last"
    names = [row[0] for row in rows]
    return "first" if len(set(names)) == len(names) and (len(names) >= _ENOUGH or _counted(names)) else ""


def _signs(trial: _Trial, first: Sequence[str], nulls: Sequence[str]) -> tuple[list[int], list[int]]:
    """Columns whose first cell is of another kind than the cells below, and those whose first cell is like them.

    Where no column has a kind, it counts whether the first cells are values of the rows below.
    """
    if _counted(first):
        return [], []
    named: list[int] = []
    alike: list[int] = []
    plain: list[int] = []
    repeated: list[int] = []
    for i, cell in enumerate(first):
        body = [c for c in trial.column(i)[1:] if c not in nulls]
        if not body or not cell:
            continue
        shapes = {_shape(c) for c in body}
        values = all(_VALUE.fullmatch(c) for c in body)
        if values or (len(shapes) == 1 and any("0" in s for s in shapes)):
            same = bool(_VALUE.fullmatch(cell)) if values else _shape(cell) in shapes
            (alike if same else named).append(i)
        else:
            plain.append(i)
            repeated += [i] if cell in body else []
    if _evenly_spaced([first[i] for i in alike]):
        alike = []  # such as the years of a table that was pivoted
    if len(first) > 1:
        alike = [i for i in alike if not _only_year(trial.column(i))]
    if not named and len(repeated) > len(plain) / 2:
        alike += repeated
    return named, alike


def _shape(cell: str) -> str:
    """A cell with 0 for its digits and a for its letters."""
    return re.sub(r"[^\W\d_]", "a", re.sub(r"\d", "0", cell))


def _counted(names: Sequence[str]) -> bool:
    """Columns that were numbered are called 0, 1, 2 or 1, 2, 3."""
    return any(list(names) == [str(i + start) for i in range(len(names))] for start in (0, 1))


def _only_year(column: Sequence[str]) -> bool:
    """Whether the first cell is a year and none of the others is."""
    years = [bool(_YEAR.fullmatch(cell)) for cell in column]
    return years[0] and not any(years[1:])


def _evenly_spaced(names: Sequence[str]) -> bool:
    if not all(_WHOLE.fullmatch(n) for n in names):
        return False
    numbers = list(map(int, names))
    if len(numbers) < 3 and not all(_YEAR.fullmatch(n) for n in names):
        return False
    steps = {b - a for a, b in pairwise(numbers)}
    return len(steps) == 1 and steps.pop() > 0
