"""Cells of one column as numbers, booleans, dates or strings: four readers, tried in order.

Strings of CSV are numbers, booleans or dates if all of them read as such. Strings of Parquet
stay strings, but where a spec says that they are something else.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genai_ray.table import spelling, values
from genai_ray.table.files import Files, strings
from genai_ray.table.numerals import MANY, PLAIN, Affix
from genai_ray.table.problems import Choice, ColumnError
from genai_ray.table.spec import ColumnSpec
from genai_ray.table.spelling import Spelling
from genai_ray.table.values import first_true, pc

#: As many different strings among others may mean a missing value.
_FEW = 3
#: Characters of a cell that an error shows.
_SHOWN = 80
_WHOLE = r"^[+-]?\d{1,18}$"
_LONG = r"^[+-]?\d{17,}$"
_WHOLE_ID = r"^([1-9]\d{0,17}|0)$"
INFINITE = r"^(?i:[+-]?inf(inity)?)$"
#: 007 and 01234 are codes, such as postal ones, whose zeros would be lost.
_CODE = r"^[+-]?0\d"
#: 1E5 is a code, such as one of diseases, where no number of the column has a point or a signed exponent; +491234567 is
#: a telephone number where all cells have a plus.
_POWER, _TELEPHONE, _MEASURE = r"^\d+E\d+$", r"^\+\d{7,}$", r"\.|[eE][+-]"
_BOOLS = {"true": True, "false": False}
_MORE_BOOLS = _BOOLS | {"yes": True, "no": False, "y": True, "n": False, "t": True, "f": False, "1": True, "0": False}
_MORE_BOOLS |= {"ja": True, "nein": False, "j": True, "oui": True, "non": False, "是": True, "否": False}
#: Shapes of dates that are not ISO 8601, and how each may be meant.
_DAYS = (
    (r"\d{1,2}/\d{1,2}/\d{4}", ("%d/%m/%Y", "%m/%d/%Y")),
    (r"\d{1,2}-\d{1,2}-\d{4}", ("%d-%m-%Y", "%m-%d-%Y")),
    (r"\d{1,2}\.\d{1,2}\.\d{4}", ("%d.%m.%Y",)),
    (r"\d{4}/\d{1,2}/\d{1,2}", ("%Y/%m/%d",)),
    (r"\d{1,2} [A-Za-z]{3} \d{4}", ("%d %b %Y",)),
    (r"\d{1,2}-[A-Za-z]{3}-\d{4}", ("%d-%b-%Y",)),
)
_TIMES = (
    (r"\d{1,2}:\d{2}:\d{2}", "%H:%M:%S"),
    (r"\d{1,2}:\d{2}", "%H:%M"),
    (r"\d{1,2}:\d{2}:\d{2} [AaPp][Mm]", "%I:%M:%S %p"),
    (r"\d{1,2}:\d{2} [AaPp][Mm]", "%I:%M %p"),
)
_DATES = (
    *((rf"^{shape}$", forms) for shape, forms in _DAYS),
    *((rf"^{shape}$", (form,)) for shape, form in _TIMES),
    *((rf"^{day} {clock}$", tuple(f"{f} {form}" for f in forms)) for day, forms in _DAYS for clock, form in _TIMES),
)
#: Forms of dates and times that are not read unasked.
_ASKED = (
    *(f"%d{c}%m{c}%y" for c in "/.-"),
    *("%m/%d/%y", "%y/%m/%d", "%y-%m-%d", "%d.%m.%y %H:%M", "%m/%d/%y %H:%M", "%d%m%Y", "%y%m%d", "%Y%m%dT%H%M%S"),
    *("%B %d, %Y", "%b %d, %Y", "%b %d %Y", "%d %B %Y", "%d. %B %Y", "%d%b%Y", "%Y年%m月%d日", "%Y.%m.%d"),
    *("%a %b %d %H:%M:%S %Y", "%a, %d %b %Y %H:%M:%S %z", "%d/%b/%Y:%H:%M:%S %z", "%H%M", "%H%M%S"),
)
_ISO_DAY = r"^\d{4}-\d{2}-\d{2}$"
_ISO = r"^\d{4}-\d{2}-\d{2}[T ]\d{2}(:\d{2}){0,2}(\.\d{1,9})?(Z|[+-]\d{2}(:?\d{2})?)?$"
_FINE = r"\.\d{7,}"
_ISO_ZONED = r"[T ].*(Z|[+-]\d{2}(:?\d{2})?)$"


@dataclass(frozen=True)
class Source:
    """A column as the files have it, and what the spec says of it. repeated: an id that may come several times."""

    files: Files
    name: str
    spec: ColumnSpec
    cells: pa.ChunkedArray
    repeated: bool = False

    @property
    def field(self) -> str:
        return f"data.table.columns.{self.name}"

    @property
    def rare(self) -> int:
        return self.files.spec.rare

    @cached_property
    def strings(self) -> Any:
        """Its cells as dictionary<int32, string>, each string once."""
        return strings(self.cells)

    @property
    def distinct(self) -> Any:
        return self.strings.dictionary

    @property
    def null(self) -> str:
        """The string that most often means a missing value in CSV."""
        counts: Mapping[str, int] = self.files.facts.get("missing", {}).get(self.name, {})
        return max(counts, key=lambda string: (counts[string], string), default="")

    @cached_property
    def plain(self) -> Any:
        """Its distinct strings, numbers among them with a decimal point and without thousands."""
        return self.files.numerals.plain(self.affix.stripped(self.distinct))

    @cached_property
    def affix(self) -> Affix:
        """The sign of all its numbers; few distinct strings with one are categories, unless the spec says otherwise."""
        if not self.files.from_csv or self.spec.type not in (None, "numerical"):
            return Affix()
        return Affix.of(self.distinct, self.spec.type == "numerical")

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """How many cells each distinct string has."""
        return np.bincount(self.strings.indices.drop_null().to_numpy(), minlength=len(self.distinct))

    def like(self, pattern: str, *, plain: bool = False) -> NDArray[np.bool_]:
        """Which distinct strings match a regular expression; plain: with their numbers made plain."""
        return np.asarray(pc.match_substring_regex(self.plain if plain else self.distinct, pattern))

    def per_cell(self, meaning: Any) -> pa.Array:
        """The cells, given the meaning of each distinct string."""
        return meaning.take(self.strings.indices)

    def nulls(self, odd: NDArray[np.bool_]) -> list[Choice]:
        """The choice that a few odd distinct strings mean a missing value; none if there are many."""
        found = self.distinct.filter(pa.array(odd)).to_pylist()
        before = self.files.facts.get("missing", {}).get(self.name, {})
        return [{"nulls": [*before, *found]}] if 0 < len(found) <= _FEW else []

    def wrong(
        self, rule: str, remedy: str = "", row: int | None = None, value: Any = None, choices: Sequence[Choice] = ()
    ) -> ColumnError:
        """choices: what the spec may say of the column instead, the likeliest first."""
        if isinstance(value, str) and len(value) > _SHOWN:
            value = f"{value[:_SHOWN]}… ({len(value):,} characters)"
        where = f"{self.files.location(row)}: {value}" if row is not None else value
        return ColumnError(self.name, where, rule, remedy, tuple(choices))

    def wrong_cell(
        self, rule: str, remedy: str = "", odd: NDArray[np.bool_] | None = None, choices: Sequence[Choice] = ()
    ) -> ColumnError:
        """At the first cell whose distinct string is odd; None: at the first that is not missing."""
        index = self.strings.indices.fill_null(-1).to_numpy()
        row = first_true(index >= 0 if odd is None else np.append(odd, False)[index])
        assert row is not None
        return self.wrong(rule, remedy, row, self.strings[row].as_py(), choices)


class Reading(NamedTuple):
    """Cells of their type. why: the reason for the type. decimals: of numbers, if the strings say it. spelling: of CSV,
    if it is another than Arrow's.
    """

    array: pa.Array
    why: str
    decimals: int | None = None
    spelling: Spelling | None = None


def read_cells(source: Source) -> Reading:
    """The cells of a column of strings.

    Raises:
        UserError: for a cell that is not what the spec says, numbers with a few words among them,
            and dates that may be meant in two ways.
    """
    readings = (reader(source) for reader in (_numbers, _booleans, _dates))
    reading = next((r for r in readings if r is not None), None) or _strings(source)
    if source.null:
        reading = reading._replace(spelling=replace(reading.spelling or Spelling(), null=source.null))
    return reading


def _untyped(source: Source) -> bool:
    """Whether the cells may be read as what they look like."""
    return source.files.from_csv and source.spec.type in (None, "categorical", "constant")


def _strings(source: Source) -> Reading:
    array = source.strings.dictionary_decode() if source.files.from_csv else values.whole(source.cells)
    return Reading(array, f"{len(source.distinct)} different strings")


def _numbers(source: Source) -> Reading | None:
    wanted = source.spec.type
    if wanted == "id" and source.files.from_csv and source.like(_WHOLE_ID).all():
        return Reading(source.per_cell(source.distinct.cast(pa.int64())), "")
    if wanted != "numerical" and not _untyped(source):
        return None
    number = source.like(PLAIN, plain=True) | source.like(INFINITE)
    if wanted == "numerical" and not number.all():
        rule = "is not a number, as data.table.columns demands"
        raise source.wrong_cell(rule, "Correct the cell, or change the type.", ~number, [None])
    if wanted != "numerical":
        code = source.like(_CODE, plain=True)
        if not source.like(_MEASURE, plain=True).any():
            code |= source.like(_POWER)
        if source.like(_TELEPHONE).all():
            code[:] = True
        if code.any() and number.all():
            return None  # a column with such codes is one of codes
        number &= ~code
        if wanted is None and number.any() and not number.all():
            _refuse_mixed(source, number)
        if not number.all() or source.like(_LONG, plain=True).any():
            return None
    plain = pc.replace_substring_regex(source.plain, r"^\+", "")
    affix, style = source.affix, None
    if source.files.from_csv:
        style = spelling.of_numbers(affix.stripped(source.distinct), plain, source.files.numerals)
    if affix != Affix():
        style = replace(style or Spelling(), prefix=affix.prefix, suffix=affix.suffix)
    sign = f" with {(affix.prefix or affix.suffix).strip()}" if affix != Affix() else ""
    if style is not None and source.spec.decimals is not None:
        style = replace(style, decimals=source.spec.decimals or None)
    if np.all(pc.match_substring_regex(plain, _WHOLE)):
        return Reading(source.per_cell(plain.cast(pa.int64())), f"all cells are whole numbers{sign}", 0, style)
    numbers = plain.cast(pa.float64())
    point = np.asarray(pc.find_substring(plain, "."))
    decimals = int(np.where(point < 0, 0, np.asarray(pc.utf8_length(plain)) - point - 1).max())
    if np.any(pc.match_substring_regex(plain, "[eE]")):
        decimals = values.decimals_of(numbers.to_numpy())
    # What is written as 880.0 is whole, if all cells are.
    fewest = values.decimals_of(numbers.drop_null().to_numpy())
    decimals = None if decimals is None or decimals > 12 else min(decimals, 12 if fewest is None else fewest)
    return Reading(source.per_cell(numbers), f"all cells are numbers{sign}", decimals, style)


def _refuse_mixed(source: Source, number: NDArray[np.bool_]) -> None:
    """Numbers with a few strings among them are an error; few distinct values of both are categories."""
    odd, rows = source.counts[~number].sum(), source.counts.sum()
    if odd > rows / 2 or (number.sum() <= MANY and odd >= source.rare):
        return
    raise source.wrong_cell(
        f"mixes numbers and strings; this is the first of {odd} cells that are no number",
        "Correct the cell, or add it to data.table.nulls if it means a missing value.",
        ~number,
        [*source.nulls(~number), "categorical"],
    )


def _booleans(source: Source) -> Reading | None:
    wanted = source.spec.type
    words: Mapping[str, bool] = _MORE_BOOLS if wanted == "boolean" else _BOOLS
    if wanted != "boolean" and not _untyped(source):
        return None
    meanings = [words.get(t.lower()) for t in source.distinct.to_pylist()]
    odd = np.array([t is None for t in meanings])
    if not odd.any():
        style = spelling.of_booleans(source.distinct.to_pylist(), [bool(m) for m in meanings], source.counts.tolist())
        style = style if source.files.from_csv else None
        return Reading(source.per_cell(pa.array(meanings, pa.bool_())), "true and false", None, style)
    if wanted == "boolean":
        remedy = f"Use {', '.join(words)}, or another type."
        raise source.wrong_cell("is not true or false", remedy, odd, [None])
    return None


def _dates(source: Source) -> Reading | None:
    wanted = source.spec.type
    if wanted != "datetime" and not (source.files.from_csv and wanted is None):
        return None
    parsed = _parsed_dates(source)
    if parsed is None and wanted == "datetime":
        rule = "does not read as dates"
        raise source.wrong_cell(rule, "Give datetime_format, such as %d/%m/%Y.", choices=[None])
    if parsed is None:
        return None
    moments, form = parsed
    style = spelling.of_dates(source.distinct, moments, form) if source.files.from_csv else None
    return Reading(source.per_cell(moments), "all cells read as dates or times", None, style)


def as_dates(source: Source) -> pa.Array | None:
    """The cells as dates, times or points in time; None if they are none of them.

    Raises:
        UserError: for a cell that does not fit the format of the spec; without one, for dates that
            may be meant in two ways.
    """
    parsed = _parsed_dates(source)
    return None if parsed is None else source.per_cell(parsed[0])


def _parsed_dates(source: Source) -> tuple[pa.Array, str | None] | None:
    """The distinct cells as `as_dates` reads them, and their format, None for ISO 8601."""
    form = source.spec.datetime_format
    if form is not None:
        parsed = spelling.strptime(source.distinct, form)
        if parsed.null_count:
            raise source.wrong_cell(
                f"does not fit datetime_format={form}",
                f"Correct the format or the cell; what means a missing value belongs in {source.field}.nulls.",
                parsed.is_null().to_numpy(zero_copy_only=False),
                [None],
            )
        return _compact(parsed, form), form
    if source.like(f"({_ISO})|({_ISO_DAY})").all():
        moments = _iso_dates(source)
        return None if moments is None else (moments, None)
    for shape, forms in _DATES:
        if not source.like(shape).all():
            continue
        parsed = {f: p for f in forms if not (p := spelling.strptime(source.distinct, f)).null_count}
        if len(parsed) > 1:
            raise source.wrong_cell(
                f"may be meant as {' or '.join(parsed)}",
                "Say which.",
                choices=[{"datetime_format": form} for form in parsed],
            )
        for form, array in parsed.items():
            return _compact(array, form), form
    return None


def asked_forms(source: Source) -> list[str]:
    """Forms of dates and times, none of those that are read unasked, that all cells have."""
    parts = (source.distinct[:MANY], source.distinct)
    return [f for f in _ASKED if all(not spelling.strptime(part, f).null_count for part in parts)]


def no_dates(source: Source) -> NDArray[np.bool_]:
    """Which distinct strings do not look like dates or times that are read unasked."""
    shapes = "|".join(f"({shape})" for shape in (_ISO, _ISO_DAY, *(shape for shape, _ in _DATES)))
    return ~source.like(shapes) | source.like(r"^0000-00-00|^0?0([/.-])0?0[/.-]0000")


def _iso_dates(source: Source) -> pa.Array | None:
    """Distinct cells of ISO 8601 as dates or times."""
    days, zoned = source.like(_ISO_DAY), source.like(_ISO_ZONED)
    if zoned.any() and not zoned.all():
        return None
    try:
        if days.all():
            return source.distinct.cast(pa.date32())
        unit = "ns" if source.like(_FINE).any() else "us"
        moments = source.distinct.cast(pa.timestamp(unit, "UTC" if zoned.all() else None))
    except pa.ArrowInvalid:  # a day that no month has
        return None
    return _compact(moments, "%H")


def _compact(array: pa.Array, form: str) -> pa.Array:
    """Timestamps as time of day if the format has no date; as dates if it has no time; else in milliseconds if that is
    exact.
    """
    if not re.search("%[aAwdbBmyYjUWcxGuVDFe]", form) and re.search("%[HI]", form) and form != "%H":
        # Not in seconds, which Parquet does not have.
        fine = values.step_ns(array) < 10**6
        return array.cast(pa.time64("us") if fine else pa.time32("ms"), safe=False)
    if not re.search("%[HIMSpfcXTR]", form):
        return array.cast(pa.date32(), safe=False)
    step = values.step_ns(array)
    unit = "ms" if step >= 10**6 else "us" if step >= 10**3 else "ns"
    return array.cast(pa.timestamp(unit, array.type.tz))
