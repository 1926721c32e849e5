"""What is known of a column, and the parts that a network models of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genai_ray.table import digits, values
from genai_ray.table.spelling import Spelling

Kind = Literal["numerical", "categorical", "boolean", "datetime", "id", "constant", "formula"]


@dataclass(frozen=True)
class Column:
    """A column of the table that is decoded. Numbers of a temporal column are in steps of `unit` nanoseconds since the
    epoch of its type, and whole.

    categories: plain values (see `values.plain`) of a discrete column, without missing, ascending or in the order of an
    ordered dictionary; a rare or unknown value becomes `other`. low, high: the range of numbers that is generated. min,
    max: the part of it that a spec demands. value: of a constant. spelling: in CSV, if it is another than Arrow's.
    digits: the format of whole numbers that are dates or times, see `digits`. prefix: the column whose category an id
    begins with, before its pattern. ranges: of numbers with wide gaps that are modelled as a distance, those between
    the gaps. exact: dates beyond 2**53 units that enough rows have; float64 holds none of them. why: the reason for
    the kind.
    """

    name: str
    kind: Kind
    type: pa.DataType
    missing: bool = False
    categories: tuple[Any, ...] = ()
    other: int = 0
    low: float | None = None
    high: float | None = None
    min: float | None = None
    max: float | None = None
    decimals: int | None = None
    unit: int = 1
    pattern: str = ""
    value: Any = None
    spelling: Spelling | None = None
    digits: str = ""
    prefix: str = ""
    ranges: tuple[tuple[float, float], ...] = ()
    exact: tuple[int, ...] = ()
    why: str = field(default="", compare=False)

    @property
    def is_number(self) -> bool:
        return self.kind in ("numerical", "datetime", "formula")

    @property
    def is_date(self) -> bool:
        """Whether its cells are days, as a whole: of a date type, or times of which every one is midnight."""
        if self.kind != "datetime" or pa.types.is_time(values.value_type(self.type)):
            return False
        return self.unit == values.DAY_NS

    @property
    def step(self) -> float:
        """The least difference of two of its numbers; 0 if there is none."""
        if self.kind == "datetime":
            return 1.0
        return 0.0 if self.decimals is None else 10.0**-self.decimals

    def codes(self, cells: pa.ChunkedArray, unknown: int) -> NDArray[np.int64]:
        """The index of each cell's category (N,), -1 for missing, `unknown` for any other."""
        which, distinct = values.plain_dictionary(cells)
        known = {v: i for i, v in enumerate(self.categories)}
        return np.array([*(known.get(v, unknown) for v in distinct), -1], np.int64)[which]

    def numbers(self, cells: pa.ChunkedArray | pa.Array) -> NDArray[np.float64]:
        """Cells as numbers (N,), NaN for missing."""
        return digits.read(cells, self.digits) if self.digits else values.numbers(cells, self.unit)

    def cells(self, numbers: NDArray[np.float64]) -> pa.Array:
        """Numbers (N,), NaN for missing, as cells; dates within the years 1 to 9999."""
        if not self.digits:
            return values.from_numbers(numbers, self.type, self.unit, self.decimals, self.exact)
        missing = np.isnan(numbers)
        whole = digits.write(np.where(missing, 0, numbers), self.digits)
        return pa.array(whole, mask=missing).cast(self.type)

    def shown(self, number: float) -> Any:
        """One of its numbers as people write it."""
        return values.shown(number, digits.kind(self.digits) if self.digits else self.type, self.unit)

    @property
    def described_pattern(self) -> str:
        """The pattern of an id, with the column that it begins with."""
        return f"{{{self.prefix}}}{self.pattern}" if self.prefix else self.pattern

    def described(self) -> str:
        if self.kind in ("categorical", "boolean"):
            return f"{self.name} ({len(self.categories)})"
        if self.kind == "id":
            return f"{self.name} ({self.described_pattern})"
        if self.low is None or self.high is None:
            return self.name
        return f"{self.name} ({self.shown(self.low)} .. {self.shown(self.high)})"

    def to_json(self) -> dict[str, Any]:
        out = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "why"}
        out |= {"type": values.type_name(self.type), "categories": list(self.categories), "exact": list(self.exact)}
        out["ranges"] = [list(ends) for ends in self.ranges]
        if self.spelling is not None:
            out["spelling"] = self.spelling.to_json()
        defaults = {f.name: f.default for f in fields(self)}
        return {k: v for k, v in out.items() if v not in (defaults[k], [])}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Column":
        lists = {name: tuple(stored.get(name, ())) for name in ("categories", "exact")}
        lists["ranges"] = tuple(map(tuple, stored.get("ranges", ())))
        spelling = Spelling.from_json(stored["spelling"]) if "spelling" in stored else None
        return cls(**{**stored, **lists, "type": values.type_from_name(stored["type"]), "spelling": spelling})


def combinations(
    columns: Sequence[Column], table: pa.Table, unknown: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The different combinations of category codes (K, columns), and which one (N,) each row has.

    unknown: the code of an unknown category; None: the column's `other`.
    """
    codes = [c.codes(table.column(c.name), c.other if unknown is None else unknown) for c in columns]
    distinct, which = np.unique(np.stack(codes, 1), axis=0, return_inverse=True)
    return distinct, which.reshape(-1)


@dataclass(frozen=True)
class Part:
    """What a network models of a column: a code, and of numbers also a scalar in -1..1.

    A number is offset[code] + scale[code] * scalar in float64, clipped to low..high and rounded to
    `decimals` (None: not rounded); a scale of 0 is an atom, one exact value. `code
    == missing` is a missing value. A category has no offset and scale.

    size: number of codes. shares: of each code in the training rows. weights: of the modes of a
    mixture, for encoding; 0 for what is no mode, empty for bins. lows, highs: the range of each code, of numbers
    with wide gaps; empty for low..high. step, phase: numbers are phase + a multiple of step; 0: of any.
    """

    name: str
    size: int
    shares: tuple[float, ...]
    offset: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    low: float = 0.0
    high: float = 0.0
    decimals: int | None = None
    missing: int | None = None
    weights: tuple[float, ...] = ()
    lows: tuple[float, ...] = ()
    highs: tuple[float, ...] = ()
    step: float = 0.0
    phase: float = 0.0

    @property
    def discrete(self) -> bool:
        """A category: it has no scalar, and can be a condition of a model."""
        return not self.offset

    def reaches(self, low: float, high: float) -> bool:
        """Whether some code makes a number in low..high; there may be gaps between the codes."""
        slack = 1e-9 * max(1.0, abs(self.low), abs(self.high))
        for code in range(self.size):
            if self.lows:
                ends = self.lows[code], self.highs[code]
            else:
                ends = (self.offset[code],) * 2 if self.scale[code] == 0 else (self.low, self.high)
            if code != self.missing and ends[0] - slack <= high and ends[1] + slack >= low:
                return True
        return False

    def to_json(self) -> dict[str, Any]:
        out = {f.name: getattr(self, f.name) for f in fields(self)}
        # Codecs of earlier versions had none of these, and keep their digest.
        out = {k: v for k, v in out.items() if v or k not in ("lows", "highs", "step", "phase")}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in out.items()}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Part":
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        return cls(**fields)
