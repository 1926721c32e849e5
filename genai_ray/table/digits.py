"""Dates and times that a table writes as whole numbers: 20240131, 202401, 93015.

A format is as in strptime, of %Y %y %m %d %H %M %S alone. Such a column is modelled in days, minutes or seconds, so
that every number of it is a date or a time; its cells stay whole numbers.
"""

import re

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genai_ray.table import values

#: Formats that are looked for; no whole number is meant by two of them.
_FORMATS = ("%Y%m%d", "%Y%m", "%Y%m%d%H%M%S", "%Y%m%d%H%M", "%y%m%d", "%H%M%S", "%H%M")
#: What the name of a column says, of dates and of times.
_DATE_NAME = re.compile(r"(?i)date|datum|day|month|ymd|dt$|日期")
_TIME_NAME = re.compile(r"(?i)time|hour|hms|hhmm|clock|时间")
#: Years that a date of a table may be in; the year 9999 means for ever.
_YEARS = (1800, 2200)
_FOR_EVER = 9999
#: Years that two digits mean, as in strptime.
_SHORT = (1969, 2068)
#: Values of a column that mark something among its dates, and dates that it has at least.
_MARKS, _DATES = 3, 20
#: Whole numbers are dates if the chance that random ones of their range all read as dates is below this.
_CHANCE = 1e-6


def is_digits(form: str) -> bool:
    """Whether a format makes a whole number."""
    return re.fullmatch(r"(%[YymdHMS])+", form) is not None


def kind(form: str) -> pa.DataType:
    """The Arrow type of what a format means."""
    if "%H" not in form:
        return pa.date32()
    return pa.timestamp("s") if "%Y" in form else pa.time32("s")


def unit_ns(form: str) -> int:
    """The step in which columns of a format are modelled, in nanoseconds."""
    seconds = 1 if "%S" in form else 60
    return seconds * 10**9 if "%H" in form else values.DAY_NS


def named(name: str) -> bool:
    """Whether the name of a column says that it holds dates."""
    return _DATE_NAME.search(name) is not None


def read(cells: pa.ChunkedArray | pa.Array, form: str) -> NDArray[np.float64]:
    """Whole numbers (N,) as counts of the format's unit since 1970 or midnight; NaN for what is no date or time."""
    numbers = values.numbers(cells)
    return _counts(np.where(np.isnan(numbers), -1, numbers).astype(np.int64), form)


def _counts(left: NDArray[np.int64], form: str) -> NDArray[np.float64]:
    found: dict[str, NDArray[np.int64]] = {}
    for name in reversed(form.split("%")[1:]):
        left, found[name] = np.divmod(left, 10_000 if name == "Y" else 100)
    one, zero = np.ones_like(left), np.zeros_like(left)
    short = found.get("y", 70 * one)
    year = found.get("Y", short + np.where(short < _SHORT[0] % 100, 2000, 1900))
    month, day = found.get("m", one), found.get("d", one)
    hour, minute, second = (found.get(name, zero) for name in "HMS")
    valid = (left == 0) & (year >= 1) & (month >= 1) & (month <= 12) & (hour < 24) & (minute < 60) & (second < 60)
    months = np.where(valid, (year - 1970) * 12 + month - 1, 0)
    start, end = (m.astype("M8[M]").astype("M8[D]").astype(np.int64) for m in (months, months + 1))
    valid &= (day >= 1) & (day <= end - start)
    seconds = (start + day - 1) * 86_400 + hour * 3600 + minute * 60 + second
    return np.where(valid, seconds // (unit_ns(form) // 10**9), np.nan)


def write(counts: NDArray[np.float64], form: str) -> NDArray[np.int64]:
    """Counts (N,) of the format's unit as whole numbers; those beyond its years, or a day, become the last."""
    step = unit_ns(form) // 10**9
    first, last = (-62_135_596_800, 253_402_300_799) if "%Y" in form else (0, 86_399)
    if "%y" in form:
        first, last = (int(np.datetime64(f"{year}", "s").astype(np.int64)) for year in (_SHORT[0], _SHORT[1] + 1))
        last -= 1
    seconds = np.clip(np.rint(counts).astype(np.int64) * step, first, last)
    days, clock = np.divmod(seconds, 86_400)
    months = days.astype("M8[D]").astype("M8[M]")
    month = months.astype(np.int64)
    found = {
        "Y": month // 12 + 1970,
        "y": (month // 12 + 1970) % 100,
        "m": month % 12 + 1,
        "d": days - months.astype("M8[D]").astype(np.int64) + 1,
        "H": clock // 3600,
        "M": clock // 60 % 60,
        "S": clock % 60,
    }
    out = np.zeros_like(seconds)
    for name in form.split("%")[1:]:
        out = out * (10_000 if name == "Y" else 100) + found[name]
    return out


def infer(name: str, cells: pa.Array) -> str:
    """The format of whole numbers (N,) that are dates or times; empty if they are none.

    All of them are, in years of today or 9999, and the name of the column says so, or it can be no chance, as most
    numbers between them are not.
    """
    distinct = np.unique(values.numbers(cells))
    distinct = distinct[~np.isnan(distinct)].astype(np.int64)
    for form in _FORMATS:
        if not len(distinct) or distinct[-1] < (1000 if form == "%H%M" else 10_000):
            continue
        year = distinct // 10 ** (2 * form.count("%") - 2)
        usual = "%Y" not in form or np.all((year == _FOR_EVER) | ((year >= _YEARS[0]) & (year <= _YEARS[1])))
        if not usual or np.isnan(_counts(distinct, form)).any():
            continue
        if form == "%y%m%d" and _TIME_NAME.search(name):
            continue
        named = (_DATE_NAME if "%m" in form else _TIME_NAME).search(name)
        if named or len(distinct) * np.log(_share(distinct, form)) < np.log(_CHANCE):
            return form
    return ""


def marks(name: str, cells: pa.Array) -> tuple[str, NDArray[np.int64]]:
    """The format of whole numbers (N,) that are dates but for a few values, such as 0 and 99999999, and those; empty if
    they are none.
    """
    distinct = np.unique(values.numbers(cells))
    distinct = distinct[~np.isnan(distinct)].astype(np.int64)
    for form in ("%Y%m%d", "%Y%m", "%y%m%d"):
        odd = np.isnan(_counts(distinct, form))
        dates = distinct[~odd]
        if 0 < odd.sum() <= _MARKS and len(dates) >= _DATES and infer(name, pa.array(dates)) == form:
            return form, distinct[odd]
    return "", distinct[:0]


def _share(distinct: NDArray[np.int64], form: str) -> float:
    """Of the whole numbers between some, in their step and without the last few, the share that fit a format; at most
    1,000 are looked at.
    """
    step = max(1, int(np.gcd.reduce(np.diff(distinct))))
    last = (distinct[max(0, int(0.95 * len(distinct)) - 1)] - distinct[0]) // step
    between = distinct[0] + step * np.unique(np.linspace(0, last, 1000).astype(np.int64))
    return max(float((~np.isnan(_counts(between, form))).mean()), 1e-3)
