"""Numbers as a code and a scalar beside it.

Atoms: exact values that many rows have get a code of their own. Other values are coded by the mode
of a Gaussian mixture that it belongs to (mode-specific normalisation, Xu et al. 2019, arXiv
1907.00503, section 4.2), or by a bin of equal counts, both with a scalar that says where in it.

No mode and no bin spans a wide gap, so that a mark such as -999 or 9999-12-31 is a value of its own, whatever its
share. Where a bin at an end holds a long tail, it is halved by counts, so that sums are kept.
"""

import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from genai_ray import rng
from genai_ray.table.columns import Part
from genai_ray.table.values import spacing

#: A value of at least this share of the rows is an atom.
ATOM_SHARE = 0.01
#: A number with at most FEW distinct values has only atoms, if the share of rows with rare ones is at most FEW_REST.
FEW, FEW_REST = 50, 0.05
COMPONENTS, CONCENTRATION, LEAST_WEIGHT = 10, 0.001, 0.005
SAMPLE = 10_000
BINS = 64
#: A gap is wide if it exceeds GAP times what the rows of a bin on either side span, and GAP_SHARE of what most span.
GAP, GAP_SHARE = 4.0, 0.25
#: A tail is long if filling its bin evenly would move the mean by this share of the mean distance from the median.
LONG_TAIL = 0.1
#: Scalars of modes reach this far, four standard deviations being 1.
REACH = 0.99
_CHUNK = 65_536


def fit_parts(
    parts: Sequence[Part], columns: Sequence[NDArray[np.float64]], how: Literal["modes", "quantiles"], rare: int
) -> list[Part]:
    """The parts with codes for the numbers of their columns, (N,) each with NaN for missing.

    The parts come with name, low, high, decimals, and `missing` 0 where a value may be missing;
    `shares` is left to the caller.
    """
    from threadpoolctl import threadpool_limits

    def fit(part: Part, values: NDArray[np.float64]) -> Part:
        return _fit(part, values, _modes if how == "modes" else _bins, rare)

    # Mixtures of 10,000 numbers are too small for BLAS to share out, and its threads would make
    # the sums, and so the modes, depend on how many there are. The mixtures of several columns run
    # side by side: NumPy lets go of the interpreter.
    with threadpool_limits(1), warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        warnings.simplefilter("ignore")  # ConvergenceWarning: 100 rounds are near enough
        return list(pool.map(fit, parts, columns))


#: Of numbers (N,), `rare`, and the share of the codes that they may take: offsets, scales and weights of their codes.
Rest = Callable[[NDArray[np.float64], int, float], tuple[list[float], list[float], list[float]]]


def _fit(part: Part, values: NDArray[np.float64], rest_of: Rest, rare: int) -> Part:
    present = values[~np.isnan(values)]
    distinct, counts = np.unique(present, return_counts=True)
    common = counts >= max(rare, np.ceil(ATOM_SHARE * len(values)))
    often = counts >= rare
    all_atoms = len(distinct) <= FEW and counts[~often].sum() <= FEW_REST * len(present)
    common = often if all_atoms else common
    rest = np.clip(present[~common[np.searchsorted(distinct, present)]], part.low, part.high)
    atoms: list[float] = distinct[common].tolist()
    enough = len(rest) >= rare and not (len(distinct) <= FEW and len(rest) <= FEW_REST * len(present))
    if atoms and not (len(rest) and enough):
        return _with_codes(part, atoms, [], [], [], [])
    groups = [rest]
    intervals = _between_gaps(np.sort(np.append(rest, np.repeat(atoms, rare))), rare)
    if len(intervals) > 1:
        inside = (rest[(rest >= low) & (rest <= high)] for low, high in intervals)
        groups = [group for group in inside if len(group) >= rare]
    offset, scale, weights = [], [], []
    ranges: list[tuple[float, float]] = []
    spaced: list[NDArray[np.float64]] = []
    for group in groups:
        # The atoms may lie outside of it, and so the column's own range is no bound for it.
        low, high = span(np.sort(group), rare)
        if low == high:
            atoms = sorted({*atoms, low})
            continue
        share = len(group) / sum(map(len, groups))
        more = rest_of(np.clip(group, low, high), rare, share)
        offset, scale = offset + more[0], scale + more[1]
        weights += more[2] if share == 1 else [w * share for w in more[2]]
        ranges += [(low, high)] * len(more[0])
        spaced.append(group)
    if spaced:
        step, phase = spacing(np.concatenate(spaced), part.decimals)
        part = replace(part, step=step, phase=phase)
    # Bins have no values beyond their ends anyway.
    gaps = len(intervals) > 1 and (weights or len(groups) > 1)
    return _with_codes(part, atoms, offset, scale, weights, ranges if gaps else [])


def _with_codes(
    part: Part,
    atoms: list[float],
    offset: list[float],
    scale: list[float],
    weights: list[float],
    ranges: list[tuple[float, float]],
) -> Part:
    """The part with codes for the atoms, then for the bins or modes, then for missing. ranges: of the bins or modes."""
    weights = [0.0] * len(atoms) + weights if weights else []
    ranges = [(a, a) for a in atoms] + ranges if ranges else []
    offset, scale = atoms + offset, [0.0] * len(atoms) + scale
    missing = None
    if part.missing is not None:
        missing = len(offset)
        offset, scale = [*offset, 0.0], [*scale, 0.0]
        weights = [*weights, 0.0] if weights else []
        ranges = [*ranges, (0.0, 0.0)] if ranges else []
    return replace(
        part,
        size=len(offset),
        offset=tuple(offset),
        scale=tuple(scale),
        missing=missing,
        weights=tuple(weights) if any(weights) else (),
        lows=tuple(low for low, _ in ranges),
        highs=tuple(high for _, high in ranges),
    )


def ranges_of(ascending: NDArray[np.float64], rare: int) -> tuple[tuple[float, float], ...]:
    """The ranges of sorted numbers (N,) between their wide gaps, each as `span` leaves it; none without gaps."""
    ranges = _between_gaps(ascending, rare)
    groups = (ascending[(ascending >= low) & (ascending <= high)] for low, high in ranges)
    return tuple(span(group, rare) for group in groups) if len(ranges) > 1 else ()


def _between_gaps(ascending: NDArray[np.float64], rare: int) -> list[tuple[float, float]]:
    """The ranges that sorted numbers (N,) leave between their wide gaps, in order, of at least `rare` numbers each.

    Up to `rare` - 1 numbers inside a gap do not hide it.
    """
    worth = max(2 * rare, len(ascending) // BINS)
    ranges: list[tuple[float, float]] = []
    parts = [ascending]
    while parts:
        part = parts.pop()
        cut = _widest_gap(part, rare, worth)
        if cut is None:
            ranges.append((float(part[0]), float(part[-1])))
        else:
            parts += [part[:cut], part[cut:]]
    return sorted(ranges)


def _widest_gap(ascending: NDArray[np.float64], rare: int, worth: int) -> int | None:
    """Where the numbers behind the widest gap begin; None if no gap is wide. worth: rows of a bin."""
    n = len(ascending)
    first = np.arange(rare, n - 2 * rare + 2)  # index of the first number that may lie inside the gap
    if not len(first):
        return None
    before, after = first - 1, first + rare - 1
    widths = ascending[after] - ascending[before]
    left = ascending[before] - ascending[np.maximum(first - worth, 0)]
    right = ascending[np.minimum(after + worth - 1, n - 1)] - ascending[after]
    most = ascending[int(0.95 * (n - 1))] - ascending[int(0.05 * (n - 1))]
    wide = (widths > GAP * np.maximum(left, right)) & (widths > GAP_SHARE * most)
    if not wide.any():
        return None
    start = int(first[np.where(wide, widths, -np.inf).argmax()])
    return start + int(np.diff(ascending[start - 1 : start + rare]).argmax())


def span(ascending: NDArray[np.float64], rare: int) -> tuple[float, float]:
    """The range that leaves of sorted numbers (N,), N > 0: `rare` of them lie at or beyond either end. Of so few that
    the ends would cross, the value that `rare` rows have, or else their mean.
    """
    if len(ascending) < 2 * rare:
        middle = ascending[len(ascending) // 2]
        if (ascending == middle).sum() < rare and ascending[0] < ascending[-1]:
            middle = ascending.mean()
        return float(middle), float(middle)
    return float(ascending[rare - 1]), float(ascending[-rare])


def _modes(rest: NDArray[np.float64], rare: int, share: float) -> tuple[list[float], list[float], list[float]]:
    """Means, four standard deviations and weights of the modes, by mean."""
    from sklearn.mixture import BayesianGaussianMixture

    chosen = rest
    if len(rest) > SAMPLE:
        chosen = rest[rng.permute(0, rng.Stream.TABLE_MODES, np.arange(SAMPLE), len(rest))]
    mean, spread = chosen.mean(), chosen.std()
    if spread == 0:  # of those chosen; others differ
        mean, spread = rest.mean(), rest.std()
        return [_digits(mean, spread, 5)], [4 * _digits(spread, spread, 5)], [1.0]
    scaled = ((chosen - mean) / spread)[:, None]
    mixture = BayesianGaussianMixture(
        n_components=min(max(1, round(COMPONENTS * share)), len(np.unique(scaled))),
        weight_concentration_prior_type="dirichlet_process",
        weight_concentration_prior=CONCENTRATION,
        random_state=0,
    ).fit(scaled)
    weights = mixture.weights_
    # A mode of a few rows would reveal them; its weight, by the prior, may be that of more.
    rows = mixture.predict_proba(scaled).sum(0)
    kept = (weights > LEAST_WEIGHT) & (rows >= rare)
    if not kept.any():
        return [_digits(mean, spread, 5)], [4 * _digits(spread, spread, 5)], [1.0]
    means = mixture.means_[kept, 0] * spread + mean
    deviations = np.sqrt(mixture.covariances_[kept, 0, 0]) * spread
    order = np.argsort(means)
    # Last digits differ between processors and are not needed.
    rounded = [_digits(d, d, 5) for d in deviations[order]]
    return (
        [_digits(m, d, 5) for m, d in zip(means[order], deviations[order], strict=True)],
        [4 * d for d in rounded],
        [_digits(w, w, 5) for w in weights[kept][order] / weights[kept].sum()],
    )


def _digits(value: float, unit: float, count: int) -> float:
    """A value rounded to `count` digits of a unit."""
    decimals = count - 1 - int(np.floor(np.log10(abs(unit))))
    return float(np.round(value, decimals)) if decimals < 300 else float(value)


def _bins(rest: NDArray[np.float64], rare: int, share: float) -> tuple[list[float], list[float], list[float]]:
    """Centres and half widths of bins of about equal counts, none of fewer than `rare` rows."""
    distinct, counts = np.unique(rest, return_counts=True)
    reached = counts.cumsum()
    wanted = int(np.clip(len(rest) // max(1, rare), 1, max(1, round(BINS * share))))
    cuts = np.searchsorted(reached, len(rest) * np.arange(1, wanted) / wanted)
    cuts = np.unique(cuts[cuts < len(distinct) - 1])  # a bin ends with each of these
    while len(cuts):
        held = np.diff(reached[cuts], prepend=0, append=len(rest))
        least = int(held.argmin())
        if held[least] >= rare:
            break
        # Joined with the smaller neighbour.
        left, right = (held[i] if 0 <= i < len(held) else len(rest) for i in (least - 1, least + 1))
        cuts = np.delete(cuts, least - 1 if left < right else least)
    last = len(distinct) - 2
    cuts = np.array(_with_long_tail(cuts.tolist(), distinct, counts, rare), np.int64)
    mirrored = _with_long_tail((last - cuts[::-1]).tolist(), -distinct[::-1], counts[::-1], rare)
    cuts = last - np.array(mirrored[::-1], np.int64)
    # Midway between values, so that no value lies on an edge, and no edge is a value.
    inner = (distinct[cuts] + distinct[cuts + 1]) / 2
    edges = np.concatenate([distinct[:1], inner, distinct[-1:]])
    centre, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    return centre.tolist(), half.tolist(), []


def _with_long_tail(cuts: list[int], distinct: NDArray[np.float64], counts: NDArray[np.int64], rare: int) -> list[int]:
    """The cuts, at each of which a bin ends, with the last bin halved by counts, and its outer half again, as long as
    filling it evenly would move the mean too far.
    """
    total = counts.sum()
    median = distinct[np.searchsorted(counts.cumsum(), total / 2)]
    limit = LONG_TAIL * (np.abs(distinct - median) @ counts)
    while True:
        first = cuts[-1] + 1 if cuts else 0
        held = counts[first:]
        inner = (distinct[first - 1] + distinct[first]) / 2 if first else distinct[0]
        moved = ((inner + distinct[-1]) / 2 - distinct[first:]) @ held
        inside = held.cumsum()
        free = np.flatnonzero((inside >= rare) & (inside[-1] - inside >= rare))
        if moved <= limit or not len(free):
            return cuts
        cuts = [*cuts, first + int(free[np.abs(inside[free] - inside[-1] / 2).argmin()])]


def _bin_of(edges: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.searchsorted(edges[1:-1], values, side="right")


def encode_numbers(
    part: Part, values: NDArray[np.float64], draws: NDArray[np.float64]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Codes and scalars of numbers, all (N,).

    draws: uniforms in 0..1, by which the mode of a value is drawn from those it may belong to.
    """
    codes = np.empty(len(values), np.int32)
    scalars = np.empty(len(values), np.float32)
    for start in range(0, len(values), _CHUNK):
        cut = slice(start, start + _CHUNK)
        codes[cut], scalars[cut] = _encode(part, values[cut], draws[cut])
    return codes, scalars


def _encode(
    part: Part, values: NDArray[np.float64], draws: NDArray[np.float64]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    offset, scale = np.array(part.offset), np.array(part.scale)
    real = np.arange(part.size) != (-1 if part.missing is None else part.missing)
    missing = np.isnan(values)
    clipped = np.clip(np.where(missing, part.low, values), part.low, part.high)
    atoms, spans = np.flatnonzero(real & (scale == 0)), np.flatnonzero(real & (scale > 0))
    codes = np.zeros(len(values), np.int32)
    open_ = np.ones(len(values), bool)
    if atoms.size:
        near = np.clip(np.searchsorted(offset[atoms], clipped), 0, len(atoms) - 1)
        before = np.maximum(near - 1, 0)
        closer = np.abs(offset[atoms[before]] - clipped) < np.abs(offset[atoms[near]] - clipped)
        nearest = atoms[np.where(closer, before, near)]
        codes = nearest.astype(np.int32)
        open_ = (offset[nearest] != clipped) if spans.size else np.zeros(len(values), bool)
    if spans.size:
        left = clipped[open_]
        if part.weights:
            weights = np.array(part.weights)[spans]
            codes[open_] = spans[_drawn(left, offset[spans], scale[spans] / 4, weights, draws[open_])]
        else:
            edges = np.append(offset[spans] - scale[spans], offset[spans[-1]] + scale[spans[-1]])
            codes[open_] = spans[_bin_of(edges, left)]
    if part.lows:
        codes = _nearest(part, clipped, codes, real)
    limit = REACH if part.weights else 1.0
    width = np.where(scale > 0, scale, 1)[codes]
    scalars = np.clip((clipped - offset[codes]) / width, -limit, limit)
    scalars[(scale[codes] == 0) | missing] = 0
    if part.missing is not None:
        codes[missing] = part.missing
    return codes, scalars.astype(np.float32)


def _nearest(
    part: Part, values: NDArray[np.float64], codes: NDArray[np.int32], real: NDArray[np.bool_]
) -> NDArray[np.int32]:
    """The codes (N,), and for values outside of the range of theirs the code whose range is nearest."""
    lows, highs = np.array(part.lows), np.array(part.highs)
    outside = np.flatnonzero((values < lows[codes]) | (values > highs[codes]))
    far = np.maximum(lows - values[outside, None], values[outside, None] - highs)
    codes = codes.copy()
    codes[outside] = np.where(real, np.maximum(far, 0), np.inf).argmin(1)
    return codes


def _drawn(
    values: NDArray[np.float64],
    means: NDArray[np.float64],
    deviations: NDArray[np.float64],
    weights: NDArray[np.float64],
    draws: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Which mode (N,) each value comes from, drawn from the posterior."""
    logits = np.log(weights / deviations) - 0.5 * ((values[:, None] - means) / deviations) ** 2
    shares = np.exp(logits - logits.max(1, keepdims=True)).cumsum(1)
    chosen = (shares <= draws[:, None] * shares[:, -1:]).sum(1)
    return np.minimum(chosen, len(means) - 1)
