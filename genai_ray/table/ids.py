"""Ids: strings of one pattern, of which every row gets its own.

A pattern is a regular expression of literals, classes and fixed counts: `[A-Z]{3}-\\d{6}`. Its strings are numbered, as
if each character were a digit of a number; a row's id is the string whose number a pseudorandom permutation gives to
the row's index. So no two rows share an id, whoever makes them and in which order.

Beyond regular expressions, a pattern may end with a check digit, `[0-9]{12}<ean>`, or be one number between two
strings: `user_<1..30000>`, zero-padded `K<0001..0900>`, or in steps `<100..9000/100>`. Rows beyond the last of them
count on, so that no id is wider than it must be.
"""

import os.path
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import groupby
from math import prod

# Private: what its trees look like is pinned by a test.
from re import _constants as op  # pyright: ignore[reportAttributeAccessIssue]
from re import _parser  # pyright: ignore[reportAttributeAccessIssue]
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genai_ray import rng
from genai_ray.errors import UserError
from genai_ray.spec import assignment
from genai_ray.table import values

#: Check digits, by name: weights from the digit before the check digit on, in turn, the modulus, and whether the
#: digits of a product are added.
_CHECKS: dict[str, tuple[tuple[int, ...], int, bool]] = {
    "luhn": ((2, 1), 10, True),
    "ean": ((3, 1), 10, False),
    "isbn10": (tuple(range(2, 11)), 11, False),
}
#: Its strings are no regular expressions, and so have none of their characters.
_COUNTED = re.compile(r"([^<>\[\]{}\\]*)<(\d+)\.\.(\d+)(?:/(\d+))?>([^<>\[\]{}\\]*)")
#: Chance that a character of a class does not occur, below which it is no character of the ids.
_CHANCE = 1e-6
#: Numbers are counted on if the ids are at least this share of those between the least and the greatest.
_DENSE = 0.5
#: Numbers that a permutation is made of; ids of longer patterns are permuted in blocks.
_LARGEST = 2**62
_DIGITS = "[0-9]"
_NAMED_CLASSES = {
    op.CATEGORY_DIGIT: "0123456789",
    op.CATEGORY_WORD: "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_",
}
_REPEATS = (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT)
_REFUSED = {
    op.ANY: "'.', any character",
    op.AT: "a boundary other than ^ at the start and $ at the end",
    op.BRANCH: "'|'",
    op.SUBPATTERN: "a group",
    op.IN: "a class that excludes characters, or a named one other than \\d and \\w",
    op.NOT_LITERAL: "a class that excludes characters",
    **dict.fromkeys(_REPEATS, "a repeat of no fixed count ('+', '*', '?' or {2,3})"),
}


@dataclass(frozen=True)
class Pattern:
    """letters: by position in an id, its possible characters, in order; without the check digit.

    check: the name of the check digit, if there is one.
    """

    regex: str
    letters: tuple[str, ...]
    check: str = ""

    @cached_property
    def _runs(self) -> list[tuple[str, int]]:
        """Letters, and at how many consecutive positions they are the same."""
        return [(letters, len(list(run))) for letters, run in groupby(self.letters)]

    @cached_property
    def _like(self) -> re.Pattern[str]:
        least = [count if len(letters) == 1 else 1 for letters, count in self._runs]
        each = zip(self._runs, least, strict=True)
        check = "" if not self.check else "[0-9X]" if _CHECKS[self.check][1] > 10 else _DIGITS
        return re.compile("".join(f"{_written(c)}{{{least},{most}}}" for (c, most), least in each) + check)

    def fits(self, string: str) -> bool:
        """Whether a string is of this pattern, or only has a class that is repeated fewer times: a pattern may make
        longer ids than the source has.
        """
        right = not self.check or (len(string) > 1 and string[-1] == check_digit(string[:-1], self.check))
        return right and self._like.fullmatch(string) is not None

    def wider(self, least: int) -> str:
        """The pattern with its longest class repeated so much more that it has `least` ids."""
        classes = [i for i, (letters, _) in enumerate(self._runs) if len(letters) > 1]
        if not classes:
            return self.regex + _DIGITS * len(str(least - 1))
        longest = max(classes, key=lambda i: (self._runs[i][1], len(self._runs[i][0]), i))
        size, more = self.size, 0
        while size < least:
            size, more = size * len(self._runs[longest][0]), more + 1
        counts = [count + (more if i == longest else 0) for i, (_, count) in enumerate(self._runs)]
        written = [_written(letters) for letters, _ in self._runs]
        check = f"<{self.check}>" if self.check else ""
        return "".join(w + (f"{{{n}}}" if n > 1 else "") for w, n in zip(written, counts, strict=True)) + check

    def largest(self, rows: int) -> str:
        """The greatest id that `rows` rows can have, if the ids are digits."""
        return "".join(map(max, self.letters)) + ("9" if self.check else "")

    @cached_property
    def size(self) -> int:
        """How many ids there are."""
        return prod(map(len, self.letters))

    def ids(self, rows: NDArray[np.int64], seed: int, salt: int) -> NDArray[np.str_]:
        """The ids of rows (N,), strings (N,): a bijection of the row index for a seed.

        salt: which column it is, so that two id columns do not go together.

        Raises:
            ValueError: if a row index is not below `size`.
        """
        out = np.empty((len(rows), len(self.letters)), np.uint32)
        for block, (positions, size) in enumerate(self._blocks()):
            # The first block alone is unique; those after it are only as random as it.
            index = rows if block == 0 else rows % size
            number = rng.permute(rng.fold(seed, salt, block), rng.Stream.SAMPLE_ID, index, size)
            for position in reversed(positions):
                letters = np.array([ord(c) for c in self.letters[position]], np.uint32)
                number, digit = np.divmod(number, len(letters))
                out[:, position] = letters[digit]
        strings = out.view(f"<U{len(self.letters)}")[:, 0]
        return _with_check_digits(strings, self.check) if self.check else strings

    def _blocks(self) -> list[tuple[list[int], int]]:
        """Positions from the last on, in blocks of fewer than _LARGEST strings each."""
        blocks: list[tuple[list[int], int]] = [([], 1)]
        for position in reversed(range(len(self.letters))):
            positions, size = blocks[-1]
            more = len(self.letters[position])
            if size * more > _LARGEST:
                blocks.append(([position], more))
            else:
                blocks[-1] = ([position, *positions], size * more)
        return blocks


@dataclass(frozen=True)
class Counted:
    """A number between two strings: low, low + step and so on to high, zero-padded to `width`; 0: not padded."""

    regex: str
    before: str
    low: int
    high: int
    step: int
    width: int
    after: str

    @property
    def _count(self) -> int:
        return (self.high - self.low) // self.step + 1

    @property
    def size(self) -> int:
        """How many ids there are, those included that count on beyond the last."""
        most = 10**self.width - 1 if self.width else _LARGEST
        return (most - self.low) // self.step + 1

    def fits(self, string: str) -> bool:
        """Whether a string is of this pattern, of any number, which may have fewer digits."""
        middle = string.removeprefix(self.before).removesuffix(self.after)
        same = self.before + middle + self.after == string
        return same and middle.isascii() and middle.isdigit() and (bool(self.width) or str(int(middle)) == middle)

    def wider(self, least: int) -> str:
        """The pattern with `least` ids."""
        high = self.low + self.step * (least - 1)
        step = f"/{self.step}" if self.step > 1 else ""
        return f"{self.before}<{str(self.low).zfill(self.width and len(str(high)))}..{high}{step}>{self.after}"

    def largest(self, rows: int) -> str:
        """The greatest id that `rows` rows can have."""
        blocks = -(-rows // self._count)
        return f"{self.before}{self.low + self.step * (blocks * self._count - 1)}{self.after}"

    def ids(self, rows: NDArray[np.int64], seed: int, salt: int) -> NDArray[np.str_]:
        """The ids of rows (N,); see `Pattern.ids`. As many rows as there are numbers up to the last share them out."""
        if len(rows) and rows.max() >= self.size:
            raise ValueError(f"indices must lie in 0..{self.size - 1}")
        block, index = np.divmod(rows, self._count)
        number = rng.permute(rng.fold(seed, salt, 0), rng.Stream.SAMPLE_ID, index, self._count)
        numbers = (self.low + self.step * (block * self._count + number.astype(np.int64))).astype(str)
        numbers = np.char.zfill(numbers, self.width) if self.width else numbers
        return np.char.add(np.char.add(self.before, numbers), self.after)


def beside(
    pattern: Pattern | Counted, rows: NDArray[np.int64], seed: int, salt: int, cells: Sequence[pa.Array]
) -> NDArray[np.str_]:
    """The ids of rows (N,), where ids may repeat beside other cells (N,) of the key: each combination of these has a
    bijection of its own, so that no id comes twice with the same ones.
    """
    if not cells:
        return pattern.ids(rows, seed, salt)
    texts = [cells_.cast(pa.string()).to_pylist() for cells_ in map(values.dense, cells)]
    combinations, which = np.unique(np.array([repr(t) for t in zip(*texts, strict=True)]), return_inverse=True)
    out = np.empty(len(rows), object)
    for i, combination in enumerate(combinations.tolist()):
        mine = np.flatnonzero(which == i)
        out[mine] = pattern.ids(rows[mine], rng.fold(seed, salt, zlib.crc32(combination.encode())), salt)
    return out.astype(str)


def joined(*parts: pa.Array | NDArray[np.str_]) -> NDArray[np.str_]:
    """Strings (N,), one after the other in each row."""
    texts = [p if isinstance(p, np.ndarray) else np.array(values.dense(p).to_pylist(), str) for p in parts]
    return reduce(np.char.add, texts)


def infer_prefix(ids: pa.Array, categories: pa.Array, least: int) -> str | None:
    """The pattern of what follows if each id (N,) begins with the category of its row; None if some do not, or a
    category has fewer than `least` rows.
    """
    for rows in (slice(0, 1000), slice(None)):
        strings, first = ids[rows].to_pylist(), values.dense(categories)[rows].to_pylist()
        if not all(p and s.startswith(p) for s, p in zip(strings, first, strict=True)):
            return None
    if min(Counter(first).values()) < least:
        return None
    return infer_pattern(sorted({s[len(p) :] for s, p in zip(strings, first, strict=True)}))


def check_enough(name: str, pattern: Pattern | Counted, kind: pa.DataType, rows: int) -> None:
    """Check that a column has ids for `rows` rows, and that its type holds them.

    Raises:
        UserError: with a pattern that has enough.
    """
    path = ("data", "table", "columns", name, "pattern")
    if pattern.size < rows:
        longer = assignment(path, pattern.wider(rows))
        rule = f"has {pattern.size} ids, and {rows} rows are requested"
        raise UserError(".".join(path), pattern.regex, rule, f"Give {longer}, or ask for fewer rows.")
    if pa.types.is_integer(kind) and int(pattern.largest(rows)) > values.greatest(kind):
        rule = f"has ids that {kind} does not hold, if {rows} rows are requested"
        raise UserError(".".join(path), pattern.regex, rule, f"Give {assignment(path[:-1], 'drop')}, or fewer rows.")


def check_digit(digits: str, check: str) -> str:
    """The check digit of a string of digits; other characters in it do not count."""
    weights, modulus, added = _CHECKS[check]
    total = 0
    for i, digit in enumerate(reversed([int(c) for c in digits if c.isascii() and c.isdigit()])):
        product = digit * weights[i % len(weights)]
        total += product // 10 + product % 10 if added else product
    left = -total % modulus
    return "X" if left == 10 else str(left)


def _with_check_digits(strings: NDArray[np.str_], check: str) -> NDArray[np.str_]:
    return np.array([s + check_digit(s, check) for s in strings.tolist()])


def parse_pattern(regex: str, field: str) -> Pattern | Counted:
    """The pattern that a regular expression of the small language means, or one with a number or a check digit.

    Raises:
        UserError: for anything else in it.
    """
    counted = _COUNTED.fullmatch(regex)
    if counted is not None:
        before, low, high, step, after = counted.groups()
        width = len(low) if len(low) == len(high) and low.startswith("0") and len(low) > 1 else 0
        ends = int(low), int(high), int(step or 1)
        if ends[0] > ends[1] or ends[1] > _LARGEST or not ends[2]:
            raise UserError(field, regex, "must count from a number to a greater one", "Write it as K<0001..0900>.")
        return Counted(regex, before, *ends, width, after)
    without, _, check = regex.removesuffix(">").rpartition("<")
    if regex.endswith(">") and check in _CHECKS:
        return Pattern(regex, _parse(without, field), check)
    return Pattern(regex, _parse(regex, field))


def _parse(regex: str, field: str) -> tuple[str, ...]:
    """The characters of each position."""

    def wrong(rule: str) -> UserError:
        remedy = "Use literals, classes such as [A-Z0-9], \\d and fixed counts: INV-[0-9]{6}."
        return UserError(field, regex, rule, remedy)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # FutureWarning: [[a] may once mean another thing
            tree = _parser.parse(regex)
    except (re.error, OverflowError) as error:
        raise wrong(f"is no regular expression ({error})") from None
    if tree.state.flags & ~re.UNICODE:
        raise wrong("has a flag")
    items = list(tree)
    items = items[1:] if items[:1] == [(op.AT, op.AT_BEGINNING)] else items
    items = items[:-1] if items[-1:] == [(op.AT, op.AT_END)] else items
    out: list[str] = []
    for operator, argument in items:
        count = 1
        if operator is op.MAX_REPEAT and argument[0] == argument[1]:
            count, _, ((operator, argument),) = argument
        letters = _letters(operator, argument)
        if not letters:
            raise wrong(f"has {_REFUSED.get(operator, operator)}, which is not supported")
        if len(out) + count > 256:
            raise wrong("must have between 1 and 256 characters")
        out += [letters] * count
    if not out:
        raise wrong("must have between 1 and 256 characters")
    return tuple(out)


def _letters(operator: Any, argument: Any) -> str:
    """The characters that a node of the tree may be, each once, in order; empty for other nodes."""
    if operator is op.LITERAL:
        return chr(argument)
    if operator is op.RANGE:
        return "".join(map(chr, range(argument[0], argument[1] + 1)))
    if operator is op.CATEGORY:
        return _NAMED_CLASSES.get(argument, "")
    each = [_letters(*item) for item in argument] if operator is op.IN else [""]
    return "".join(dict.fromkeys("".join(each))) if all(each) else ""


def _written(letters: str) -> str:
    """One character, or the class of several, as `parse_pattern` reads it."""
    if len(letters) == 1:
        return re.escape(letters)
    out = ""
    # Consecutive characters have the same difference from their index.
    for _, run in groupby(enumerate(sorted(letters)), key=lambda x: ord(x[1]) - x[0]):
        first, *rest = (re.escape(c) for _, c in run)
        out += first + ("-" if len(rest) > 1 else "") + (rest[-1] if rest else "")
    return f"[{out}]"


def infer_pattern(distinct: list[str]) -> str | None:
    """A pattern that strings, which all differ, seem to be made by; None if they seem not to be.

    They are one prefix and then numbers of which most are there, or have one length and at each position a kind of
    character, or one prefix and then any number.
    """
    if not distinct or not all(distinct):
        return None
    lengths = {len(t) for t in distinct}
    prefix = os.path.commonprefix(distinct).rstrip("0123456789")  # noqa: RUF071 (these are no paths)
    tails = [t[len(prefix) :] for t in distinct]
    numbered = all(t.isascii() and t.isdigit() for t in tails)
    if numbered and (len(lengths) == 1 or not any(len(t) > 1 and t[0] == "0" for t in tails)):
        counted = _counted(prefix, tails, len(tails[0]) if len(lengths) == 1 else 0)
        if counted:
            return counted
    if len(lengths) == 1:
        return _by_position(distinct)
    if not numbered:
        return None
    padded = any(t[0] == "0" for t in tails)
    return re.escape(prefix) + (f"{_DIGITS}{{{max(map(len, tails))}}}" if padded else infer_whole(tails))


def infer_whole(strings: list[str]) -> str:
    """A pattern that whole numbers, which all differ, seem to be made by; none is negative or begins with 0."""
    counted = _counted("", strings, 0)
    if counted:
        return counted
    longest = max(map(len, strings))
    found = _by_position([s for s in strings if len(s) == longest], whole=True)
    return found or (f"[1-9]{_DIGITS}{{{longest - 1}}}" if longest > 1 else _DIGITS)


def _counted(prefix: str, tails: list[str], width: int) -> str | None:
    """The pattern of a prefix and numbers, of which most of those between the least and the greatest are there."""
    if max(map(len, tails)) > 18 or not _COUNTED.fullmatch(f"{prefix}<0..1>"):
        return None
    numbers = np.unique(np.array(tails, np.int64))
    step = int(np.gcd.reduce(np.diff(numbers))) if len(numbers) > 1 else 0
    if not step or len(numbers) < _DENSE * ((numbers[-1] - numbers[0]) // step + 1):
        return None
    low, high = (str(n).zfill(width) for n in (numbers[0], numbers[-1]))
    return f"{prefix}<{low}..{high}{f'/{step}' if step > 1 else ''}>"


def _by_position(strings: list[str], whole: bool = False) -> str | None:
    """whole: they are numbers, which do not begin with 0."""
    rows = len(strings)
    points = np.array(strings, f"<U{len(strings[0])}").view(np.uint32).reshape(rows, -1)
    letters = ["".join(map(chr, np.unique(column))) for column in points.T]
    kinds: list[str] = []
    for digits, run in groupby(
        (_kind(seen, rows) for seen in letters), key=lambda kind: kind == _DIGITS or kind.isdigit()
    ):
        run = list(run)
        # Zeros before a number are its digits too, unless there are too many rows for that.
        merged = digits and _DIGITS in run and not whole and _by_chance(1, 10, rows)
        kinds += [_DIGITS] * len(run) if merged else run
    varied = {k for k in kinds if k.startswith("[")}
    if "?" in kinds or not any(len(seen) > 1 and set(seen) & set("0123456789") for seen in letters):
        return None
    # Hexadecimal digits: letters at one position and digits at the next are of one kind.
    for hexadecimal, known in (("[0-9a-f]", "0123456789abcdef"), ("[0-9A-F]", "0123456789ABCDEF")):
        if hexadecimal in varied and all(set(seen) <= set(known) for seen in letters if len(seen) > 1):
            kinds = [hexadecimal if k == _DIGITS else k for k in kinds]
    if whole and kinds[0] == _DIGITS:
        kinds[0] = "[1-9]"
    check = _check_of(strings)
    kinds = kinds[:-1] if check else kinds
    runs = [(kind, len(list(run))) for kind, run in groupby(kinds)]
    return "".join(f"{k}{{{n}}}" if k.startswith("[") and n > 1 else k * n for k, n in runs) + check


def _check_of(strings: list[str]) -> str:
    """The check digit that all strings end with, as a pattern has it; empty if there is none."""
    if len(strings) < 10 or len(strings[0]) < 8 or not all(s[:-1].isdigit() for s in strings):
        return ""
    for check in _CHECKS:
        fits = check != "isbn10" or len(strings[0]) == 10
        if fits and all(s[-1] == check_digit(s[:-1], check) for s in strings):
            return f"<{check}>"
    return ""


def _kind(seen: str, rows: int) -> str:
    """The narrowest class that has all of some characters of `rows` rows; ? for none."""
    if len(seen) == 1:
        return re.escape(seen)
    for name in ("0-9", "A-Z", "a-z", "0-9a-f", "0-9A-F", "A-Z0-9", "a-z0-9", "A-Za-z0-9"):
        if re.fullmatch(f"[{name}]+", seen):
            known = len(_letters(*_parser.parse(f"[{name}]")[0]))
            return f"[{name}]" if len(seen) == known or _by_chance(len(seen), known, rows) else _written(seen)
    return "?"


def _by_chance(seen: int, known: int, rows: int) -> bool:
    """Whether some of the known characters may be missing among those of `rows` rows by chance."""
    return (known - seen) * (1 - 1 / known) ** rows > _CHANCE
