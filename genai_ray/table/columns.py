"""What is known of a column, and the parts that a network models of it."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import pyarrow as pa

from genai_ray.table.values import type_from_text, type_to_text

Kind = Literal["numerical", "categorical", "boolean", "datetime", "id", "constant", "formula"]


@dataclass(frozen=True)
class Column:
    """A column of the table that is decoded. Numbers of a temporal column are in steps of `unit`
    nanoseconds since the epoch of its type, and whole.

    categories: plain values (see `values.plain`) of a discrete column, ascending, without missing;
    of them `other` is what a rare or unknown value becomes. low, high: the range of numbers that
    leaves. min, max: the part of it that a spec demands. value: of a constant. why: how the kind
    came about.
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
    why: str = field(default="", compare=False)

    @property
    def is_number(self) -> bool:
        return self.kind in ("numerical", "datetime", "formula")

    @property
    def step(self) -> float:
        """The least difference of two of its numbers; 0 if there is none."""
        if self.kind == "datetime":
            return 1.0
        return 0.0 if self.decimals is None else 10.0**-self.decimals

    def to_json(self) -> dict[str, Any]:
        out = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "why"}
        out |= {"type": type_to_text(self.type), "categories": list(self.categories)}
        defaults = {f.name: f.default for f in fields(self)}
        return {k: v for k, v in out.items() if v not in (defaults[k], [])}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Column":
        return cls(
            **{
                **values,
                "type": type_from_text(values["type"]),
                "categories": tuple(values.get("categories", ())),
            }
        )


@dataclass(frozen=True)
class Part:
    """What a network models of a column: a code, and of numbers also a scalar in -1..1.

    A number is offset[code] + scale[code] * scalar in float64, clipped to low..high and rounded to
    `decimals` (None: not rounded); a scale of 0 is an atom, a value that stands for itself. `code
    == missing` is a missing value. A category has no offset and scale.

    size: number of codes. shares: of each code in the training rows. weights: of the modes of a
    mixture, for encoding; 0 for what is no mode, empty for bins.
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

    @property
    def discrete(self) -> bool:
        """A category: it has no scalar, and can be a condition of a model."""
        return not self.offset

    def to_json(self) -> dict[str, Any]:
        out = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in out.items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Part":
        given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**given)
