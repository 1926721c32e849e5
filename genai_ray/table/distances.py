"""A number that `less` bounds below by others, modelled as its distance from the greatest of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from genai_ray.table.columns import Column
from genai_ray.table.constraints import Numbers
from genai_ray.table.values import DAY_NS


@dataclass(frozen=True)
class Distance:
    """A column and its lower bounds; strict: it must not equal one of them either. A column of days and one of times
    are compared by days.

    Where they are all missing, the distance is that from the least value they can have.
    """

    column: Column
    lows: tuple[Column, ...]
    strict: bool

    @property
    def decimals(self) -> int | None:
        each = [c.decimals for c in (self.column, *self.lows)]
        return None if None in each else max(d for d in each if d is not None)

    @property
    def _unit(self) -> int:
        """The finest unit of the columns, in which they are compared, in nanoseconds."""
        return min(c.unit for c in (self.column, *self.lows))

    def _floor(self, number: Numbers) -> NDArray[np.float64]:
        lows = np.stack([self._by_days(c, number(c.name) * (c.unit // self._unit)) for c in self.lows])
        least = max((c.low or 0.0) * (c.unit // self._unit) for c in self.lows)
        floor = np.where(np.isnan(lows), -np.inf, lows).max(0)
        return np.where(np.isinf(floor), least, floor)

    def _by_days(self, low: Column, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """The last number that the column must not be below, or must be above if strict, given those of a bound."""
        day = DAY_NS // self._unit
        if self.column.is_date and not low.is_date:
            return np.floor(numbers / day) * day
        if low.is_date and not self.column.is_date and self.strict:
            return numbers + day - 1
        return numbers

    def measure(self, number: Numbers) -> NDArray[np.float64]:
        """The distance (N,), NaN for missing, of columns of these numbers."""
        ratio = self.column.unit // self._unit
        return np.maximum(number(self.column.name) * ratio - self._floor(number), 0)

    def restore(self, distance: NDArray[np.float64], number: Numbers) -> NDArray[np.float64]:
        """The column's numbers (N,), within its range, given the other columns' numbers."""
        column, ratio, floor = self.column, self.column.unit // self._unit, self._floor(number)
        assert column.low is not None
        assert column.high is not None
        # Rounded up where rounding would go below; `valid` rejects rows in which the range undoes this.
        value = np.clip((floor + distance) / ratio, column.low, column.high)
        if column.decimals is not None:
            value = np.round(value, column.decimals)
            below = value * ratio <= floor if self.strict else value * ratio < floor
            value = np.where(below, np.round(value + column.step, column.decimals), value)
        if column.ranges:
            lows, highs = np.array(column.ranges).T
            nearest = np.maximum(lows - value[:, None], value[:, None] - highs).argmin(1)
            value = np.clip(value, lows[nearest], highs[nearest])
        return value + 0.0
