"""Exact counts, well mixed: the class of sample i is a function of (counts, seed, i)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from genai_ray import rng
from genai_ray.errors import UserError


class Quotas:
    """Exact class counts, well mixed: a random permutation maps sample i to an index of the sorted classes."""

    def __init__(self, counts: list[int], seed: int):
        self.counts, self.seed = counts, seed
        self._ends = np.cumsum(counts)

    def classes(self, start: int, stop: int) -> NDArray[np.int64]:
        """The classes of samples start..stop, (N,)."""
        stream, n = rng.Stream.SAMPLE_CLASS, int(self._ends[-1])
        indices = rng.permute(self.seed, stream, np.arange(start, stop), n)
        return np.searchsorted(self._ends, indices, side="right").astype(np.int64)


def counts_of(field: str, values: Sequence[float], samples: int) -> list[int]:
    """Counts that add up to the number of samples, given as counts or as shares of 1.

    Raises:
        UserError: naming the field, if they do not.
    """
    total = sum(values)
    if abs(total - samples) < 1e-6 and all(v == int(v) for v in values):
        return [int(v) for v in values]
    return shares_as_counts(field, values, samples)


def shares_as_counts(field: str, values: Sequence[float], samples: int) -> list[int]:
    """Shares of 1 as counts that add up to the number of samples.

    Raises:
        UserError: naming the field, if they do not add up to 1.
    """
    total = sum(values)
    if abs(total - 1) > 1e-6:
        raise UserError(
            field,
            list(values),
            f"add up to {total:g}; counts must give generate.samples={samples}, shares must give 1",
            "Correct the numbers.",
        )
    # The method of largest remainders.
    exact = [v * samples for v in values]
    counts = [int(e) for e in exact]
    by_remainder = sorted(range(len(values)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: samples - sum(counts)]:
        counts[i] += 1
    return counts
