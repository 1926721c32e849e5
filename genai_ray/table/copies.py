"""Copying alarms for tables: does the generator repeat itself, or its training rows?

These are alarms, not privacy proofs. Rows that pass can still betray who was in the training set ("The DCR Delusion",
Yao et al. 2025, arXiv 2505.01524): never call data private because of a number from this module.
"""

from collections.abc import Collection

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genai_ray.metrics.memorisation import nearest
from genai_ray.table.matrix import MISSING, Columns, ranked, row_keys, sample

#: Categories of a column that the distance distinguishes; the others count as one.
_DISTINGUISHED = 64
#: Synthetic rows whose nearest neighbours are searched, at most.
_QUERIES = 5_000


def exact_copy_rate(train: pa.Table, table: pa.Table, *, skip: Collection[str] = ()) -> float:
    """Share of the rows of `table`, 0..1, that equal a training row in every column but `skip`.

    Tables of few or coarse columns hold equal rows without any copying: compare with a holdout.
    """
    known, rows = row_keys((train, table), skip=skip)
    return float(np.isin(rows, known).mean())


def duplicate_rate(table: pa.Table, *, skip: Collection[str] = ()) -> float:
    """Share of the rows, 0..1, that repeat an earlier row in every column but `skip`.

    It grows with the number of rows: compare tables of equal size.
    """
    (keys,) = row_keys((table,), skip=skip)
    return 1 - len(np.unique(keys)) / len(keys)


def closest_share(train: Columns, holdout: Columns, table: Columns, *, seed: int = 0) -> tuple[float, dict[str, float]]:
    """Share of synthetic rows nearer to a training row than to any holdout row, and medians; of tables that were
    encoded together.

    0.5 is expected of a generator that learnt the distribution and 1 of one that repeats its training rows; ties
    count half. Both sides have equally many rows, as the nearest of more rows is nearer: the larger one is cut to the
    size of the smaller by a seeded choice. At most 5,000 rows of `table` are queries; the references are never
    thinned out further, which would hide copies. The standard error of the share is about 0.5 / sqrt(queries).

    The distance is Euclidean: a number counts by its rank among the training values (0..1), and two categories are
    1 apart if they differ, as is a missing value from any other. Beyond the 63 most frequent training categories of
    a column all count as one.

    An alarm, not a privacy proof (Yao et al. 2025, arXiv 2505.01524).

    Returns:
        The share, and the median distances to the nearest row: {"train": ..., "holdout": ...}.
    """
    size = min(len(train), len(holdout))
    queries = _embed(train, table.take(sample(len(table), _QUERIES, seed)))
    sides = {
        name: nearest(queries, _embed(train, side.take(sample(len(side), size, seed))), chunk=1_024)[0]
        for name, side in (("train", train), ("holdout", holdout))
    }
    gap = sides["holdout"] - sides["train"]
    # Distances that differ by rounding are ties.
    share = (gap > 1e-9).mean() + (np.abs(gap) <= 1e-9).mean() / 2
    return float(share), {name: float(np.median(side)) for name, side in sides.items()}


def _embed(train: Columns, columns: Columns) -> NDArray[np.float64]:
    """Rows as points: ranks of numbers with an indicator of missing, and categories as one-hot / √2."""
    parts = [np.zeros((len(columns), 1))]  # a table of no columns has points all the same
    for j in range(len(columns.number_names)):
        values, known = columns.numbers[:, j], train.numbers[:, j]
        known = np.sort(known[~np.isnan(known)])
        ends = [np.searchsorted(known, values, side=side) for side in ("left", "right")]
        missing = np.isnan(values)
        # A missing value lies at 1/2 and √3/2 off the line, so between √3/2 and 1 from the others.
        rank = np.where(missing, 0.5, (ends[0] + ends[1]) / (2 * max(len(known), 1)))
        parts.append(np.stack([rank, missing * np.sqrt(0.75)], axis=1))
    for j in range(len(columns.category_names)):
        counts = train.counts(j)
        counts[MISSING] = len(train) + 1  # which is never lumped together with others
        rank = ranked(counts, _DISTINGUISHED)
        parts.append(np.eye(rank.max() + 1)[rank[columns.categories[:, j]]] * np.sqrt(0.5))
    return np.concatenate(parts, axis=1)
