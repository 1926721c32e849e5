"""How the numbers of a table are written: decimal comma or point, and what separates thousands.

Most numbers say it themselves (3,50 and 1.234,56 have a decimal comma; 1,234,567 has thousands). 1,234 says nothing: it
is read as the other columns are, and if they say nothing either, it is the user who decides.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genai_ray.errors import UserError
from genai_ray.table.spec import SEPARATORS, TableSpec
from genai_ray.table.values import pc

PLAIN = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
#: Separators of thousands: also spaces that do not break, and the typographic apostrophe.
SPACES, APOSTROPHES = " \u00a0\u2009\u202f", "'\u2019"
#: Patterns of the separators that a spec can name.
_CLASSES = {".": r"\.", ",": ",", " ": f"[{SPACES}]", "'": f"[{APOSTROPHES}]"}
_ANY = rf"^[+-]?[.,]?\d[\d.,{APOSTROPHES}{SPACES}]*([eE][+-]?\d+)?$"
#: Signs of currencies, before or after a number, and percent signs.
_CURRENCY = "(?:[$€£¥₹]|USD|EUR|GBP|CHF|JPY|CNY|RMB|INR)"
_AFFIXED = re.compile(rf"-?({_CURRENCY}\s?)?[\d.,].*?(\s?(?:{_CURRENCY}|[%‰]))?$")
_SEPARATED = rf"^[+-]?\d*[.,{APOSTROPHES}{SPACES}]\d"
#: A column of strings with more categories than this may be free text.
MANY = 50
#: As many different cells such as 1,234, beside some of three digits and none of four, are in thousands.
_GROUPS = 10


@dataclass(frozen=True)
class Affix:
    """What stands before and after all numbers of a column: a currency or a percent sign."""

    prefix: str = ""
    suffix: str = ""

    @classmethod
    def of(cls, strings: Any, asked: bool = False) -> "Affix":
        """That of distinct strings (an Arrow array), none if they do not share one. asked: also of few strings, which
        are categories otherwise.
        """
        first = _AFFIXED.match(strings[0].as_py()) if len(strings) and (asked or len(strings) > MANY) else None
        found = cls(first[1] or "", first[2] or "") if first else cls()
        return found if found == cls() or bool(_like(strings, found._pattern).all()) else cls()

    @property
    def _pattern(self) -> str:
        before, after = re.escape(self.prefix), re.escape(self.suffix)
        return rf"^-?{before}[.,]?\d[\d.,{APOSTROPHES}{SPACES}]*{after}$"

    def stripped(self, strings: Any) -> Any:
        """Strings (an Arrow array) without it."""
        if self == Affix():
            return strings
        without = pc.replace_substring_regex(strings, f"^(-?){re.escape(self.prefix)}", r"\1")
        return pc.replace_substring_regex(without, f"{re.escape(self.suffix)}$", "")

    def added(self, string: str) -> str:
        return f"-{self.prefix}{string[1:]}{self.suffix}" if string[:1] == "-" else self.prefix + string + self.suffix


@dataclass(frozen=True)
class Numerals:
    decimal: str = "."
    thousands: str = ""

    @cached_property
    def _pattern(self) -> str:
        point = _CLASSES[self.decimal]
        number = rf"\d+|\d*{point}\d+"
        if self.thousands:
            number += rf"|[1-9]\d{{0,2}}({_CLASSES[self.thousands]}\d{{3}})+({point}\d+)?"
        return rf"^[+-]?({number})([eE][+-]?\d+)?$"

    def plain(self, strings: Any) -> Any:
        """Strings (an Arrow array), those that are numbers with a decimal point and without thousands.

        Where all strings are plain numbers and some are none as these numerals have them, all stay as they are.
        """
        if self == Numerals():
            return strings
        fits = pc.match_substring_regex(strings, self._pattern)
        if pc.all(pc.match_substring_regex(strings, PLAIN)).as_py() and not pc.all(fits).as_py():
            return strings
        out = strings
        if self.thousands:
            out = pc.replace_substring_regex(out, _CLASSES[self.thousands], "")
        if self.decimal != ".":
            out = pc.replace_substring(out, self.decimal, ".")
        return pc.if_else(fits, out, strings)


def find(columns: Mapping[str, Any], spec: TableSpec) -> tuple[Numerals, dict[str, str]]:
    """The numerals of a table, and by key of `data.table` the evidence.

    Args:
        columns: by name, the distinct strings of the columns that may hold numbers.

    Raises:
        UserError: for a column of numbers such as 1,234, in a table that does not say how they are meant.
    """
    votes = {name: v for name, strings in columns.items() if (v := _votes(strings)) is not None}
    evidence: dict[str, str] = {}
    decimal, thousands = spec.decimal, spec.thousands
    if decimal is None:
        commas = {n: v.decimal[","] for n, v in votes.items() if "," in v.decimal}
        if spec.thousands == "":  # then no comma separates thousands
            commas |= {n: v.unclear[","] for n, v in votes.items() if "," in v.unclear}
        decimal = "," if commas and thousands != "," else "."
        if decimal == ",":
            evidence["decimal"] = "comma: column {!r} has {}".format(*next(iter(commas.items())))
    if thousands is None:
        seen = [(s, n, cell) for n, v in votes.items() for s, cell in v.thousands.items() if s != decimal]
        if not seen and decimal == "." and (spec.decimal or any("." in v.decimal for v in votes.values())):
            seen = [(",", n, v.unclear[","]) for n, v in votes.items() if "," in v.unclear]
        thousands = seen[0][0] if seen else ""
        if seen:
            evidence["thousands"] = f"{_name(thousands)}: column {seen[0][1]!r} has {seen[0][2]}"
        _refuse_unclear(votes, Numerals(decimal, thousands))
    return Numerals(decimal, thousands), evidence


@dataclass(frozen=True)
class _Votes:
    """What the numbers of a column say, each with an example: by separator, that it is of decimals, that it is of
    thousands, or that it is one of the two.
    """

    decimal: dict[str, str]
    thousands: dict[str, str]
    unclear: dict[str, str]


def _votes(strings: Any) -> _Votes | None:
    """What a column says; None if most of its distinct strings are no numbers, or none has a separator."""
    if not pc.any(pc.match_substring_regex(strings, _SEPARATED)).as_py():
        return None
    numbers = strings.filter(pc.match_substring_regex(strings, _ANY))
    if 2 * len(numbers) <= len(strings):
        return None
    out = _Votes({}, {}, {})
    for separator, other in ((",", "."), (".", ",")):
        _of_points(separator, other, numbers, out)
    for separator, other in ((",", "."), (".", ",")):
        if separator in out.unclear and other in out.decimal:
            out.thousands[separator] = out.unclear.pop(separator)
    for separator in (" ", "'"):
        _of_spaces(separator, numbers, out)
    return out


def _of_points(separator: str, other: str, numbers: Any, out: _Votes) -> None:
    """Whether a comma or point is of decimals or of thousands, where all numbers of the column agree."""
    mark, point = _CLASSES[separator], _CLASSES[other]
    lead = r"^[+-]?[1-9]\d{0,2}"
    grouped = _like(numbers, rf"{lead}(({mark}\d{{3}}){{2,}}({point}\d+)?|({mark}\d{{3}})+{point}\d+)$")
    unclear = _like(numbers, rf"{lead}{mark}\d{{3}}$")
    fraction = _like(numbers, rf"^[+-]?\d*{mark}\d+([eE][+-]?\d+)?$") & ~unclear
    of_thousands = _like(numbers, rf"^[+-]?([1-9]\d{{0,2}}({mark}\d{{3}})+|\d+)({point}\d+)?$").all()
    groups = "|".join(c for s, c in _CLASSES.items() if s != separator)
    of_decimals = _like(numbers, rf"^[+-]?(\d*|[1-9]\d{{0,2}}(({groups})\d{{3}})+)({mark}\d+)?([eE][+-]?\d+)?$").all()
    if fraction.any() and of_decimals:
        out.decimal[separator] = _example(numbers, fraction)
    elif grouped.any() and of_thousands:
        out.thousands[separator] = _example(numbers, grouped)
        _add_decimals(other, numbers, out)
    elif unclear.any() and of_decimals and of_thousands:
        small, long = _like(numbers, r"^[+-]?\d{1,3}$"), _like(numbers, r"^[+-]?\d{4,}$")
        sure = separator == "," and unclear.sum() >= _GROUPS and small.any() and not long.any()
        (out.thousands if sure else out.unclear)[separator] = _example(numbers, unclear)


def _of_spaces(separator: str, numbers: Any, out: _Votes) -> None:
    """Thousands by spaces or apostrophes, unless the numbers are all of one length, as those of telephones are."""
    grouped = _like(numbers, rf"^[+-]?[1-9]\d{{0,2}}({_CLASSES[separator]}\d{{3}})+([.,]\d+)?$")
    if not grouped.any() or not (grouped | _like(numbers, r"^[+-]?\d{1,3}([.,]\d+)?$")).all():
        return
    lengths = np.unique(np.asarray(pc.utf8_length(numbers)))
    if len(lengths) > 1 or _like(numbers, r"[.,]\d+$").any():
        out.thousands[separator] = _example(numbers, grouped)
        for point in ",.":
            _add_decimals(point, numbers, out)


def _add_decimals(point: str, numbers: Any, out: _Votes) -> None:
    """Numbers with thousands by another separator end in decimals."""
    with_point = _like(numbers, rf"{_CLASSES[point]}\d+$")
    if with_point.any():
        out.decimal.setdefault(point, _example(numbers, with_point))


def _refuse_unclear(votes: Mapping[str, _Votes], numerals: Numerals) -> None:
    """Report a column of which it is not clear whether its numbers have decimals or thousands."""
    for name, vote in votes.items():
        for separator, cell in vote.unclear.items():
            if separator in (numerals.decimal, numerals.thousands):
                continue
            word = _name(separator)
            other = "data.table.thousands=none" if separator == "." else f"data.table.decimal={word}"
            raise UserError(
                f"data.table.columns.{name}",
                cell,
                f"may mean {cell.replace(separator, '')} or {cell.replace(separator, '.')}, and nothing shows which",
                f"Say which: data.table.thousands={word} or {other}.",
            )


def _name(separator: str) -> str:
    return next(n for n, c in SEPARATORS.items() if c == separator)


def _like(strings: Any, pattern: str) -> NDArray[np.bool_]:
    return np.asarray(pc.match_substring_regex(strings, pattern))


def _example(strings: Any, mask: NDArray[np.bool_]) -> str:
    return strings[int(np.flatnonzero(mask)[0])].as_py()
