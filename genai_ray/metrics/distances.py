"""Pairwise Euclidean distances in blocks, the one primitive behind every neighbour score."""

from collections.abc import Iterator

import numpy as np

# Rounding of |a|^2 + |b|^2 - 2ab relative to |a|^2 + |b|^2, with room for some thousand dimensions.
_ROUNDING = 1e-13


def blocks(n: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` rows that cover 0..n in order."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances, (n, d) and (m, d) float64 -> (n, m) float64, never negative.

    Distances that rounding could explain are exactly 0, so that equal rows are at distance 0. Centre the data first if
    its mean is far from the origin.
    """
    scale = np.einsum("ij,ij->i", a, a)[:, None] + np.einsum("ij,ij->i", b, b)
    squared = scale - 2 * (a @ b.T)
    squared[squared <= _ROUNDING * scale] = 0
    return squared
