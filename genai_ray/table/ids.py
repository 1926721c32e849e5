"""Ids: strings of one pattern, of which every row gets its own.

A pattern is a regular expression of literals, classes and fixed counts: `[A-Z]{3}-\\d{6}`. Its strings are numbered, as
if each character were a digit of a number; a row's id is the string whose number a pseudorandom permutation gives to
the row's index. So no two rows share an id, whoever makes them and in which order.
"""

import os.path
import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from math import prod

# Private: what its trees look like is pinned by a test.
from re import _constants as op  # pyright: ignore[reportAttributeAccessIssue]
from re import _parser  # pyright: ignore[reportAttributeAccessIssue]
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genai_ray import rng
from genai_ray.errors import UserError

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
    """letters: by position in an id, its possible characters, in order."""

    regex: str
    letters: tuple[str, ...]

    @cached_property
    def _runs(self) -> list[tuple[str, int]]:
        """Letters, and at how many consecutive positions they are the same."""
        return [(letters, len(list(run))) for letters, run in groupby(self.letters)]

    @cached_property
    def _like(self) -> re.Pattern[str]:
        least = [count if len(letters) == 1 else 1 for letters, count in self._runs]
        each = zip(self._runs, least, strict=True)
        return re.compile("".join(f"{_written(c)}{{{least},{most}}}" for (c, most), least in each))

    def fits(self, string: str) -> bool:
        """Whether a string is of this pattern, or only has a class that is repeated fewer times: a pattern may make
        longer ids than the source has.
        """
        return self._like.fullmatch(string) is not None

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
        return "".join(w + (f"{{{n}}}" if n > 1 else "") for w, n in zip(written, counts, strict=True))

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
        return out.view(f"<U{len(self.letters)}")[:, 0]

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


def parse_pattern(regex: str, field: str) -> Pattern:
    """The pattern that a regular expression of the small language means.

    Raises:
        UserError: for anything else in it.
    """

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
    return Pattern(regex, tuple(out))


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

    They have one length and at each position a kind of character, or one prefix and then a number.
    """
    if not distinct or not all(distinct):
        return None
    lengths = {len(t) for t in distinct}
    if len(lengths) == 1:
        return _by_position(np.array(distinct, f"<U{lengths.pop()}"))
    prefix = os.path.commonprefix(distinct).rstrip("0123456789")  # noqa: RUF071 (these are no paths)
    tails = [t[len(prefix) :] for t in distinct]
    if not all(t.isascii() and t.isdigit() for t in tails):
        return None
    return f"{re.escape(prefix)}{_DIGITS}{{{max(map(len, tails))}}}"


def _by_position(strings: NDArray[np.str_]) -> str | None:
    points = strings.view(np.uint32).reshape(len(strings), -1)
    kinds: list[str] = []
    for digits, run in groupby(map(_kind, points.T), key=lambda kind: kind == _DIGITS or kind.isdigit()):
        run = list(run)
        # Zeros before a number are its digits too.
        kinds += [_DIGITS] * len(run) if digits and _DIGITS in run else run
    varied = {k for k in kinds if k.startswith("[")}
    if "?" in kinds or not any("0-9" in k for k in varied):
        return None
    # Hexadecimal digits: letters at one position and digits at the next are of one kind.
    for hexadecimal in ("[0-9a-f]", "[0-9A-F]"):
        if hexadecimal in varied and varied <= {hexadecimal, _DIGITS}:
            kinds = [hexadecimal if k == _DIGITS else k for k in kinds]
    runs = [(kind, len(list(run))) for kind, run in groupby(kinds)]
    return "".join(f"{k}{{{n}}}" if k.startswith("[") and n > 1 else k * n for k, n in runs)


def _kind(points: NDArray[np.uint32]) -> str:
    """The narrowest class that has all of some characters; ? for none."""
    letters = "".join(map(chr, np.unique(points)))
    if len(letters) == 1:
        return re.escape(letters)
    for name in ("0-9", "A-Z", "a-z", "0-9a-f", "0-9A-F", "A-Z0-9", "a-z0-9", "A-Za-z0-9"):
        if re.fullmatch(f"[{name}]+", letters):
            return f"[{name}]"
    return "?"
