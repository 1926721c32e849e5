"""Distances between the distributions of real and generated features.

Shapes: features are (n, d) arrays of finite numbers, one row per sample. All sums run in float64.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from genai_ray.metrics.distances import blocks, squared_distances

#: `kernel_distance`: the largest set that is taken whole; beyond it, the number and the size of subsets.
_WHOLE, _SUBSETS, _SUBSET = 10_000, 100, 1_000
#: Rows of a matrix of distances or kernels in memory at a time.
_BALL_ROWS, _KERNEL_ROWS = 512, 1_024


@dataclass(frozen=True)
class Moments:
    """Sufficient statistics of a feature set; shards add up with `+`, in any order.

    `n` samples, their `sum` (d,) and the sum of their outer products `outer` (d, d), float64. The covariance cancels
    when the mean is large against the spread, so standardise features before taking moments.
    """

    n: int
    sum: np.ndarray
    outer: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> Self:
        """Moments of (n, d) features; n may be 0, so that empty shards need no special case."""
        x = _features(features)
        return cls(len(x), x.sum(axis=0), x.T @ x)

    def __add__(self, other: Self) -> Self:
        return type(self)(self.n + other.n, self.sum + other.sum, self.outer + other.outer)

    def mean(self) -> np.ndarray:
        return self.sum / self.n

    def covariance(self) -> np.ndarray:
        """Unbiased covariance (d, d)."""
        return (self.outer - np.outer(self.sum, self.mean())) / (self.n - 1)


def frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """Fréchet distance between Gaussians fitted to two feature sets (Heusel et al. 2017, FID).

    In squared feature units, 0 or above, lower is better. Biased upwards at finite n, by an amount that depends on the
    model (Chong & Forsyth 2020): compare only equal n, and prefer `kernel_distance` below some 10,000 samples.
    """
    real, fake = _pair(real, fake)
    # The distance does not depend on the origin; the moments' rounding error does.
    centre = real.mean(axis=0)
    return frechet_from_moments(Moments.of(real - centre), Moments.of(fake - centre))


def frechet_from_moments(real: Moments, fake: Moments) -> float:
    """`frechet_distance` from merged `Moments`: memory O(d^2), however many samples there were."""
    assert min(real.n, fake.n) >= 2, "a covariance needs 2 samples"
    shift = real.mean() - fake.mean()
    covariance_real, covariance_fake = real.covariance(), fake.covariance()
    # tr sqrt(AA' BB') is the sum of the singular values of A'B. Unlike a matrix square root of the product, this stays
    # real and exact to rounding when a covariance is singular.
    cross = np.linalg.norm(_factor(covariance_real).T @ _factor(covariance_fake), ord="nuc")
    distance = shift @ shift + np.trace(covariance_real) + np.trace(covariance_fake) - 2 * cross
    return max(0.0, float(distance))


def kernel_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy with a cubic kernel (Binkowski et al. 2018, KID).

    Kernel (x.y / d + 1)^3. Around 0 for equal distributions, where it may be slightly negative; lower is better. Being
    unbiased, it can be compared across sample counts. Sets of more than 10,000 samples are averaged over 100 random
    subsets of 1,000 samples drawn without replacement, always the same ones.
    """
    real, fake = _pair(real, fake)
    if max(len(real), len(fake)) <= _WHOLE:
        return _mmd(real, fake)
    size = min(_SUBSET, len(real), len(fake))
    rng = np.random.Generator(np.random.Philox(0))
    estimates = [
        _mmd(real[rng.choice(len(real), size, replace=False)], fake[rng.choice(len(fake), size, replace=False)])
        for _ in range(_SUBSETS)
    ]
    return float(np.mean(estimates))


def prdc(real: np.ndarray, fake: np.ndarray, *, k: int) -> dict[str, float]:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Each sample owns the open ball that reaches to its k-th nearest neighbour in its own set.

    - precision: share of fake inside a real ball. Are the samples realistic?
    - recall: share of real inside a fake ball. Could the model produce every real sample?
    - density: real balls around a fake sample over k. Precision that outliers cannot inflate;
      1 is expected for equal distributions, more is possible.
    - coverage: share of real balls that hold a fake sample. Recall that outliers cannot inflate.

    Use equally many real and fake samples, since the balls shrink as n grows. A sample repeated more than k times has a
    ball of radius 0, which holds exactly its copies. Memory is O(n), and 1 <= k < n in both sets.
    """
    real, fake = _pair(real, fake)
    assert 1 <= k < min(len(real), len(fake))
    centre = real.mean(axis=0)
    real, fake = real - centre, fake - centre
    real_radii, fake_radii = _squared_radii(real, k), _squared_radii(fake, k)

    balls_around_fake = np.zeros(len(fake), dtype=np.int64)
    recalled = np.zeros(len(real), dtype=bool)
    covered = np.zeros(len(real), dtype=bool)
    for rows in blocks(len(real), _BALL_ROWS):
        squared = squared_distances(real[rows], fake)
        in_real_ball = _inside(squared, real_radii[rows, None])
        balls_around_fake += in_real_ball.sum(axis=0)
        covered[rows] = in_real_ball.any(axis=1)
        recalled[rows] = _inside(squared, fake_radii).any(axis=1)
    return {
        "precision": float(np.mean(balls_around_fake > 0)),
        "recall": float(recalled.mean()),
        "density": float(balls_around_fake.mean() / k),
        "coverage": float(covered.mean()),
    }


def _features(features: np.ndarray) -> np.ndarray:
    x = np.asarray(features, dtype=np.float64)
    assert np.isfinite(x).all(), "features are not finite"
    return x


def _pair(real: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    assert min(len(real), len(fake)) >= 2
    assert real.shape[1:] == fake.shape[1:], "features are of two extractors"
    return _features(real), _features(fake)


def _factor(covariance: np.ndarray) -> np.ndarray:
    """A matrix A with A A' = covariance; a Cholesky factor would not exist for singular ones."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0))


def _mmd(real: np.ndarray, fake: np.ndarray) -> float:
    return (
        _mean_kernel_of_pairs(real)
        + _mean_kernel_of_pairs(fake)
        - 2 * _kernel_sum(real, fake) / (len(real) * len(fake))
    )


def _mean_kernel_of_pairs(x: np.ndarray) -> float:
    # A sample paired with itself would bias the estimate, so the diagonal is left out.
    n, d = x.shape
    diagonal = float(_kernel(np.einsum("ij,ij->i", x, x), d).sum())
    return (_kernel_sum(x, x) - diagonal) / (n * (n - 1))


def _kernel_sum(a: np.ndarray, b: np.ndarray) -> float:
    d = a.shape[1]
    return sum(float(_kernel(a[rows] @ b.T, d).sum()) for rows in blocks(len(a), _KERNEL_ROWS))


def _kernel(products: np.ndarray, d: int) -> np.ndarray:
    base = products / d + 1
    return base * base * base  # base**3 goes through pow(), which is far slower


def _squared_radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of every row to its k-th nearest other row, (n,)."""
    radii = np.empty(len(x))
    for rows in blocks(len(x), _BALL_ROWS):
        squared = squared_distances(x[rows], x)
        own = np.arange(rows.start, rows.stop)
        squared[own - rows.start, own] = np.inf
        radii[rows] = np.partition(squared, k - 1, axis=1)[:, k - 1]
    return radii


def _inside(squared: np.ndarray, squared_radii: np.ndarray) -> np.ndarray:
    # The margin keeps the k-th neighbour itself outside the open ball, whatever its last bit.
    return (squared < squared_radii * (1 - 1e-9)) | (squared == 0)
