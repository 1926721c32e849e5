"""Ids: texts of one pattern, of which every row gets its own.

A pattern is a regular expression of literals, classes and fixed counts: `[A-Z]{3}-\\d{6}`. Its
texts are numbered, as if each place were a digit of a number; a row's id is the text whose number a
pseudorandom permutation gives to the row's number. So no two rows share an id, whoever makes them
and in which order.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from genai_ray import rng
from genai_ray.errors import UserError

_CLASSES = {"d": "0123456789", "w": "A-Z a-z 0-9 _"}
_SPECIAL = set("()|*+?^$.{}]")
#: Numbers that a permutation is made of; beyond, an id has more places than it needs.
_LARGEST = 2**62


@dataclass(frozen=True)
class Pattern:
    """The characters that each place of an id may have."""

    text: str
    places: tuple[str, ...]

    @cached_property
    def _runs(self) -> list[tuple[str, int]]:
        """Characters of places, and how many such places follow each other."""
        return [(letters, len(list(run))) for letters, run in groupby(self.places)]

    @cached_property
    def _like(self) -> re.Pattern[str]:
        out = ""
        for letters, count in self._runs:
            out += f"{_written(letters)}{{{count if len(letters) == 1 else 1},{count}}}"
        return re.compile(out)

    def fits(self, text: str) -> bool:
        """Whether a text is of this pattern, or has only fewer places of a class that is repeated:
        a pattern may make longer ids than there are.
        """
        return self._like.fullmatch(text) is not None

    def wider(self, least: int) -> str:
        """The pattern with so many more places in its longest class that it has `least` ids."""
        classes = [i for i, (letters, _) in enumerate(self._runs) if len(letters) > 1]
        if not classes:
            return self.text + "[0-9]" * len(str(least - 1))
        longest = max(classes, key=lambda i: (self._runs[i][1], len(self._runs[i][0]), i))
        size, more = self.size, 0
        while size < least:
            size, more = size * len(self._runs[longest][0]), more + 1
        out = ""
        for i, (letters, count) in enumerate(self._runs):
            places = count + (more if i == longest else 0)
            out += _written(letters) + (f"{{{places}}}" if places > 1 else "")
        return out

    @cached_property
    def size(self) -> int:
        """How many ids there are."""
        size = 1
        for place in self.places:
            size *= len(place)
        return size

    def ids(self, rows: NDArray[np.int64], seed: int, salt: int) -> NDArray[np.str_]:
        """The ids of rows (N,), texts (N,): a bijection of the row number for a seed.

        salt: which column it is, so that two id columns do not go together.

        Raises:
            ValueError: if a row number is not below `size`.
        """
        out = np.empty((len(rows), len(self.places)), np.uint32)
        for block, (places, size) in enumerate(self._blocks()):
            # The first block alone is unique; those after it are only as random as it.
            index = rows if block == 0 else rows % size
            number = rng.permute(rng.fold(seed, salt, block), rng.Stream.SAMPLE_ID, index, size)
            for place in reversed(places):
                letters = np.array([ord(c) for c in self.places[place]], np.uint32)
                number, digit = np.divmod(number, len(letters))
                out[:, place] = letters[digit]
        return out.view(f"<U{len(self.places)}")[:, 0]

    def _blocks(self) -> list[tuple[list[int], int]]:
        """Places from the last on, in blocks of fewer than _LARGEST texts each."""
        blocks: list[tuple[list[int], int]] = [([], 1)]
        for place in reversed(range(len(self.places))):
            places, size = blocks[-1]
            if size * len(self.places[place]) > _LARGEST:
                blocks.append(([place], len(self.places[place])))
            else:
                blocks[-1] = ([place, *places], size * len(self.places[place]))
        return blocks


def parse(text: str, field: str) -> Pattern:
    """The pattern that a regular expression of the small language means.

    Raises:
        UserError: for anything else in it.
    """

    def wrong(rule: str) -> UserError:
        return UserError(
            field, text, rule, "Use literals, classes such as [A-Z0-9], \\d and fixed counts: INV-[0-9]{6}."
        )

    places: list[str] = []
    rest = text.removeprefix("^")
    rest = rest[:-1] if rest.endswith("$") and not rest.endswith("\\$") else rest
    while rest:
        if found := re.match(r"\[((?:\\.|[^\]\\])+)\]", rest, re.DOTALL):
            letters = _class(found[1], wrong)
        elif rest == "\\":
            raise wrong("ends in a backslash")
        elif found := re.match(r"\\(.)", rest, re.DOTALL):
            letters = _expand(_CLASSES[found[1]]) if found[1] in _CLASSES else found[1]
            if found[1].isalnum() and found[1] not in _CLASSES:
                raise wrong(f"has \\{found[1]}, which is not supported")
        elif rest[0] in _SPECIAL or rest[0] == "[":
            raise wrong(f"has {rest[0]!r} where a character or a class is expected")
        else:
            found, letters = re.match(r".", rest, re.DOTALL), rest[0]
        assert found is not None
        rest = rest[found.end() :]
        count = 1
        if fixed := re.match(r"\{(\d+)\}", rest):
            count, rest = int(fixed[1]), rest[fixed.end() :]
        if len(places) + count > 256:
            raise wrong("must have between 1 and 256 characters")
        places += [letters] * count
    if not places:
        raise wrong("must have between 1 and 256 characters")
    return Pattern(text, tuple(places))


def _expand(parts: str) -> str:
    """The characters of ranges with spaces between: `A-Z 0-9`."""
    out = ""
    for part in parts.split(" "):
        last = part[-1]
        out += "".join(chr(c) for c in range(ord(part[0]), ord(last) + 1))
    return out


def _written(letters: str) -> str:
    """One character, or the class of several, as `parse` reads it."""
    if len(letters) == 1:
        return re.escape(letters)
    points = sorted(map(ord, letters))
    ranges: list[list[int]] = []
    for point in points:
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    out = ""
    for first, last in ranges:
        out += re.escape(chr(first)) + ("-" if last > first + 1 else "")
        out += re.escape(chr(last)) if last > first else ""
    return f"[{out}]"


def _class(inside: str, wrong: Callable[[str], UserError]) -> str:
    """The characters of a class, each once, in order."""
    if inside.startswith("^"):
        raise wrong("has a class of what is excluded, which is not supported")
    letters: list[str] = []
    tokens = re.findall(r"\\.|.", inside, re.DOTALL)
    i = 0
    while i < len(tokens):
        token = tokens[i]
        odd = next((t for t in tokens[i : i + 3] if re.match(r"\\[^\W_]", t)), None)
        if odd and odd[1] not in _CLASSES:
            raise wrong(f"has {odd}, which is not supported")
        ranges = i + 2 < len(tokens) and tokens[i + 1] == "-"
        if ranges and odd:
            raise wrong(f"has the range {token}-{tokens[i + 2]}, whose end is a class")
        if odd == token:
            letters += _expand(_CLASSES[token[1]])
        elif ranges:
            first, last = ord(token[-1]), ord(tokens[i + 2][-1])
            if last < first:
                raise wrong(f"has the empty range {token}-{tokens[i + 2]}")
            letters += [chr(c) for c in range(first, last + 1)]
            i += 2
        else:
            letters.append(token[-1])
        i += 1
    return "".join(dict.fromkeys(letters))


def infer(distinct: list[str]) -> str | None:
    """A pattern that texts, which all differ, seem to be made by; None if they seem not to be.

    They have one length and each place its kind of character, or one prefix and then a number.
    """
    if not distinct or not all(distinct):
        return None
    length = {len(t) for t in distinct}
    if len(length) == 1:
        return _by_place(np.array(distinct, f"<U{length.pop()}"))
    prefix = _common_prefix(distinct).rstrip("0123456789")
    tails = [t[len(prefix) :] for t in distinct]
    if not all(t.isascii() and t.isdigit() for t in tails):
        return None
    return f"{re.escape(prefix)}[0-9]{{{max(map(len, tails))}}}"


def _by_place(texts: NDArray[np.str_]) -> str | None:
    points = texts.view(np.uint32).reshape(len(texts), -1)
    kinds = [_kind(np.unique(points[:, i])) for i in range(points.shape[1])]
    # Zeros before a number are its digits too.
    digit = [k == "[0-9]" or k.isdigit() for k in kinds]
    for place, kind in enumerate(kinds):
        if kind == "[0-9]":
            for step in (-1, 1):
                near = place + step
                while 0 <= near < len(kinds) and digit[near]:
                    kinds[near] = "[0-9]"
                    near += step
    # Hexadecimal digits: letters at one place and digits at the next are of one kind.
    varied = [k for k in kinds if k.startswith("[")]
    if "?" in kinds or not any("0-9" in k for k in varied):
        return None
    for hexadecimal in ("[0-9a-f]", "[0-9A-F]"):
        if hexadecimal in varied and all(k in (hexadecimal, "[0-9]") for k in varied):
            kinds = [hexadecimal if k == "[0-9]" else k for k in kinds]
    out = ""
    for place, kind in enumerate(kinds):
        if place and kind == kinds[place - 1] and kind.startswith("["):
            continue
        run = next((i for i, k in enumerate(kinds[place:]) if k != kind), len(kinds) - place)
        counted = kind.startswith("[") and run > 1
        out += kind + (f"{{{run}}}" if counted else "")
    return out


def _kind(points: NDArray[np.uint32]) -> str:
    letters = [chr(p) for p in points]
    if len(letters) == 1:
        return re.escape(letters[0])
    for name in ("0-9", "A-Z", "a-z", "0-9a-f", "0-9A-F", "A-Z0-9", "a-z0-9", "A-Za-z0-9"):
        allowed = set(re.findall(f"[{name}]", _ALL))
        if set(letters) <= allowed:
            return f"[{name}]"
    return "?"


_ALL = "".join(chr(c) for c in range(32, 127))


def _common_prefix(texts: list[str]) -> str:
    first, last = min(texts), max(texts)
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((i for i, (a, b) in pairs if a != b), len(first))]
