"""How like the real table another is: columns alone, columns in pairs, what is covered.

Both are encoded together (`genai_ray.table.matrix`). The definitions are those of SDMetrics (KSComplement,
TVComplement, CorrelationSimilarity, ContingencySimilarity, CategoryCoverage, RangeCoverage;
https://docs.sdv.dev/sdmetrics), so that figures can be compared; each docstring says where one goes further. All scores
are 0..1, 1 is best. Real columns compared with real ones do not reach 1 either: compare with a holdout of as many rows.
"""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from genai_ray.table.matrix import MISSING, Columns, sample

#: Bins of a number that is paired with a category.
BINS = 10
_PAIRED_ROWS = 50_000
#: Pairs of columns, at most: those of some 316 columns; of more they are sampled.
_PAIRS = 50_000
#: Contingency tables of more cells than this are counted by sorting.
_CELLS = 4_000_000


def column_shapes(real: Columns, other: Columns) -> dict[str, float]:
    """How like each column is to the same real one: name -> 0..1.

    Categories: 1 - total variation distance, missing counting as one more category. Numbers and dates: the lesser
    of 1 - Kolmogorov-Smirnov statistic of the values that are not missing and 1 - difference of the missing shares.
    Without missing numbers this is what SDMetrics gives; with some, SDMetrics does not look at the shares.
    """
    scores = {name: _number_shape(real.numbers[:, j], other.numbers[:, j]) for j, name in enumerate(real.number_names)}
    for j, name in enumerate(real.category_names):
        scores[name] = 1 - total_variation(real.categories[:, j], other.categories[:, j])
    return {name: scores[name] for name in real.names}


def pair_trends(real: Columns, other: Columns, *, seed: int = 0) -> dict[tuple[str, str], float]:
    """How alike each pair of columns is related in both tables: (name, name) -> 0..1.

    Two numbers: 1 - half the difference of the Pearson correlations, each of the rows in which neither is missing.
    Two categories: 1 - total variation distance of the contingency tables, missing counting as one more category.
    A number with a category: the same, the number cut into 10 bins of equal width between the least and the greatest
    real value, plus one for missing; values outside count to the bin at that end.

    A pair of numbers whose correlation is undefined in the real table (one is constant) is left out; one that is
    undefined only in the other counts as correlation 0 there, where SDMetrics would leave it out too. Of larger
    tables 50,000 rows are sampled, and of wider ones 50,000 pairs. Scores are high for independent pairs, as in
    SDMetrics.
    """
    a, b = (side.take(sample(len(side), _PAIRED_ROWS, seed)) for side in (real, other))
    scores: dict[tuple[str, str], float] = {}
    total = len(real.names) * (len(real.names) - 1) // 2
    kept = np.zeros(total, bool)
    kept[sample(total, _PAIRS, seed)] = True
    keeps = iter(kept.tolist())
    correlations = correlation(a.numbers), correlation(b.numbers)
    for i, j in combinations(range(len(a.number_names)), 2):
        was, now = (float(c[i, j]) for c in correlations)
        if next(keeps) and not np.isnan(was):
            gap = abs(was - (0.0 if np.isnan(now) else now))
            scores[a.number_names[i], a.number_names[j]] = 1 - gap / 2
    names = [*a.category_names, *a.number_names]
    codes = _as_codes(a, a), _as_codes(a, b)
    sizes = [*a.sizes, *[BINS + 1] * len(a.number_names)]
    for i, j in combinations(range(len(names)), 2):
        if i < len(a.category_names) and next(keeps):
            cells = sizes[i] * sizes[j]
            both = (c[:, i] * sizes[j] + c[:, j] for c in codes)
            scores[names[i], names[j]] = 1 - total_variation(*both, cells=cells)
    pairs = (((i, j), (j, i)) for i, j in combinations(real.names, 2))
    return {pair: scores[key] for pair, mirrored in pairs for key in (pair, mirrored) if key in scores}


def category_coverage(real: Columns, other: Columns, *, rare: int = 1) -> dict[str, float]:
    """Share of the real categories of each column that occur in the other table: name -> 0..1.

    Missing is no category here. Categories with fewer than `rare` real rows do not count, as a model must not
    generate them; a column without any other is left out.
    """
    scores = {}
    for j, name in enumerate(real.category_names):
        wanted = real.counts(j) >= max(rare, 1)
        wanted[MISSING] = False
        if wanted.any():
            scores[name] = float((other.counts(j)[wanted] > 0).mean())
    return scores


def range_coverage(real: Columns, other: Columns) -> dict[str, float]:
    """Share of the range of each real number or date that the other table reaches: name -> 0..1.

    The range is from the least to the greatest real value, as in SDMetrics, so a single outlier widens it, also for
    the holdout beside which the score is read. Of a constant real column the score is 1 if the constant lies in the
    range of the other and else 0. Columns without real values are left out; a column without other values scores 0.
    """
    scores = {}
    for j, name in enumerate(real.number_names):
        known, reached = _present(real.numbers[:, j]), _present(other.numbers[:, j])
        if not len(known):
            continue
        low, high = known.min(), known.max()
        if not len(reached):
            scores[name] = 0.0
        elif low == high:
            scores[name] = float(reached.min() <= low <= reached.max())
        else:
            short = max(reached.min() - low, 0) + max(high - reached.max(), 0)
            scores[name] = max(0.0, float(1 - short / (high - low)))
    return scores


#: Quantiles beyond which a tail lies, on either side.
_TAILS = (0.001, 0.005, 0.01, 0.99, 0.995, 0.999)


def tail_errors(real: Columns, other: Columns) -> dict[str, float]:
    """How far the sum and the tails of each number or date are from the real ones: name -> 0 or more, 0 is best.

    The mean of three errors: of the mean, in mean distances from the median; of the share that the 1 % of the rows that
    are farthest from the real median have in all distances from it; and of the outer quantiles, each in its own
    distance from the median, or the mean one if that is greater. A value that no real row could have moves all three,
    where the Kolmogorov-Smirnov statistic sees only its share of the rows. Columns that are constant or without real
    values are left out; one without other values has an error of 1.
    """
    scores = {}
    for j, name in enumerate(real.number_names):
        known, found = _present(real.numbers[:, j]), _present(other.numbers[:, j])
        if not len(known) or known.min() == known.max():
            continue
        scores[name] = _tail_error(known, found) if len(found) else 1.0
    return scores


def _tail_error(real: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    median = np.median(real)
    spread = np.abs(real - median).mean()
    moved = abs((other - median).mean() - (real - median).mean()) / spread
    top = abs(_top_share(np.abs(other - median)) - _top_share(np.abs(real - median)))
    was, now = (np.quantile(values, _TAILS) for values in (real, other))
    tails = (np.abs(now - was) / np.maximum(np.abs(was - median), spread)).mean()
    return float(np.mean([moved, top, tails]))


def _top_share(distances: NDArray[np.float64]) -> float:
    """The share of the sum that the greatest 1 % of the numbers have, at least one of them."""
    total = distances.sum()
    top = np.sort(distances)[-max(1, len(distances) // 100) :]
    return float(top.sum() / total) if total else 0.0


# --- the distances underneath --------------------------------------------------------------------


def ks_statistic(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Greatest difference of the two empirical distribution functions, 0..1 (two-sample Kolmogorov-Smirnov). Of two
    empty samples 0, of one 1.
    """
    if not len(a) or not len(b):
        return float(len(a) != len(b))
    a, b = np.sort(a), np.sort(b)
    grid = np.concatenate([a, b])
    gaps = np.searchsorted(a, grid, side="right") / len(a) - np.searchsorted(b, grid, side="right") / len(b)
    return float(np.abs(gaps).max())


def total_variation(a: NDArray[np.int64], b: NDArray[np.int64], *, cells: int = 0) -> float:
    """Half the summed difference of the shares of each code, 0..1. Codes lie in 0..cells-1."""
    if cells > _CELLS:
        _, codes = np.unique(np.concatenate([a, b]), return_inverse=True)
        a, b = codes[: len(a)], codes[len(a) :]
    size = int(max(a.max(), b.max())) + 1
    shares = (np.bincount(codes, minlength=size) / len(codes) for codes in (a, b))
    return float(np.abs(np.subtract(*shares)).sum() / 2)


def correlation(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Pearson correlations (M, M) of the columns of (N, M), each of the rows where neither is missing.

    NaN where there are fewer than two such rows or one column is constant in them.
    """
    known = ~np.isnan(numbers)
    x, mask = np.where(known, numbers, 0), known.astype(np.float64)
    counts = np.maximum(mask.sum(axis=0), 1)
    # Centred and scaled first: products of dates in nanoseconds would drown the differences.
    x = (x - x.sum(axis=0) / counts) * mask
    scale = np.sqrt((x * x).sum(axis=0) / counts)
    x /= np.where(scale > 0, scale, 1)
    n, sums, squares = mask.T @ mask, x.T @ mask, (x * x).T @ mask
    with np.errstate(divide="ignore", invalid="ignore"):
        covariance = x.T @ x - sums * sums.T / n
        variance = squares - sums * sums / n
        # What rounding leaves of the variance of a constant is no variance.
        variance[variance <= 1e-12 * n] = np.nan
        return np.clip(covariance / np.sqrt(variance * variance.T), -1, 1)


def _number_shape(real: NDArray[np.float64], fake: NDArray[np.float64]) -> float:
    missing = abs(np.isnan(real).mean() - np.isnan(fake).mean())
    return float(min(1 - ks_statistic(_present(real), _present(fake)), 1 - missing))


def _present(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[~np.isnan(values)]


def _as_codes(real: Columns, columns: Columns) -> NDArray[np.int64]:
    """Categories, then numbers cut into bins: (N, C + M) codes."""
    binned = np.full(columns.numbers.shape, BINS, np.int64)
    for j in range(columns.numbers.shape[1]):
        known = _present(real.numbers[:, j])
        values = columns.numbers[:, j]
        edges = np.linspace(known.min(), known.max(), BINS + 1)[1:-1] if len(known) else []
        cut = np.searchsorted(edges, values, side="right")
        binned[:, j] = np.where(np.isnan(values), BINS, cut)
    return np.concatenate([columns.categories, binned], axis=1)
