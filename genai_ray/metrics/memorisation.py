"""Copying alarms: does the generator repeat itself, or its training set?

These are alarms, not privacy proofs. Samples that pass can still reveal who was in the training set ("The DCR
Delusion", Yao et al. 2025, arXiv 2505.01524); never call data private because of a value from this module.
"""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from genai_ray.metrics.distances import blocks, squared_distances


def duplicate_rate(rows: Sequence[bytes] | np.ndarray) -> float:
    """Share of rows, 0..1, that repeat an earlier row byte for byte.

    An array (n, ...) counts as n rows. Keeps one 16-byte hash per distinct row, not the row.
    """
    contents = (row if isinstance(row, bytes) else row.tobytes() for row in rows)
    distinct = {blake2b(content, digest_size=16).digest() for content in contents}
    return 1 - len(distinct) / len(rows)


def nearest(queries: np.ndarray, reference: np.ndarray, *, chunk: int = 2_048) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean distance to, and index of, the nearest reference row of each query.

    queries (n, ...) and reference (m, ...) with the same trailing shape, which is flattened -> distances (n,) float64
    and indices (n,) int64. uint8 pixels count as 0..1, so a distance of 1 is one pixel changed from black to white;
    other dtypes are taken as they are. The search is exhaustive, equal rows are at distance exactly 0 and ties go to
    the lowest index; among floats, rows closer to a query than about 1e-6 of its norm count as tied. Memory O(chunk^2).
    """
    assert len(reference), "nothing is nearest"
    assert queries.shape[1:] == reference.shape[1:]
    assert (queries.dtype == np.uint8) == (reference.dtype == np.uint8)
    queries, reference = (rows.reshape(len(rows), -1) for rows in (queries, reference))
    best = np.full(len(queries), np.inf)
    indices = np.zeros(len(queries), dtype=np.int64)
    # Whole grey levels in float64 make every product and sum exact, so uint8 is scaled at the end.
    for columns in blocks(len(reference), chunk):
        candidates = reference[columns].astype(np.float64)
        for rows in blocks(len(queries), chunk):
            squared = squared_distances(queries[rows].astype(np.float64), candidates)
            winners = squared.argmin(axis=1)
            values = squared[np.arange(len(winners)), winners]
            better = values < best[rows]
            best[rows] = np.where(better, values, best[rows])
            indices[rows] = np.where(better, winners + columns.start, indices[rows])
    return _direct_distances(queries, reference, indices, chunk), indices


def copy_rates(train: np.ndarray, holdout: np.ndarray, fake: np.ndarray) -> dict:
    """How often generated samples copy the training set, and how often real samples seem to.

    All three are (n, ...) arrays as in `nearest`; `holdout` is real data the generator never saw.
    Returns `{"fake": rates, "real": rates, "threshold": t}`, where rates holds

    - exact_copy_rate: share, 0..1, that equals a training sample;
    - near_copy_rate: share closer than t to its nearest training sample, exact copies included,

    "fake" measures the generated samples and "real" the holdout. t is the 1 % quantile of the holdout's distances to
    its nearest training samples, so the holdout's own near_copy_rate is about 0.01 and a generator that merely learnt
    the distribution scores about the same. Use a holdout of several hundred samples: below 100, the quantile depends on
    a single one.

    A copying alarm, not a privacy proof: a low rate says nothing about the risk of membership inference.
    """
    real_distances, _ = nearest(holdout, train)
    fake_distances, _ = nearest(fake, train)
    threshold = float(np.quantile(real_distances, 0.01))
    return {
        "fake": _rates(fake_distances, threshold),
        "real": _rates(real_distances, threshold),
        "threshold": threshold,
    }


def _rates(distances: np.ndarray, threshold: float) -> dict[str, float]:
    exact = distances == 0
    # A threshold of 0, from a holdout that overlaps the training set, must not hide exact copies.
    near = exact | (distances < threshold)
    return {"exact_copy_rate": float(exact.mean()), "near_copy_rate": float(near.mean())}


def _direct_distances(queries: np.ndarray, reference: np.ndarray, indices: np.ndarray, chunk: int) -> np.ndarray:
    """Distance of each query to its nearest row by subtraction, free of the expansion's cancellation."""
    distances = np.empty(len(queries))
    for rows in blocks(len(queries), chunk):
        gap = queries[rows].astype(np.float64) - reference[indices[rows]]
        distances[rows] = np.sqrt(np.einsum("ij,ij->i", gap, gap))
    return distances / 255 if queries.dtype == np.uint8 else distances
