"""A Gaussian mixture as the prior of the latents, from which an autoencoder is sampled.

Ghosh et al. 2020, arXiv 1903.12436, section 4: the latents of a trained autoencoder do not follow N(0, 1), and a
density that is fitted to them afterwards gives better samples than retraining does. Shapes: C classes (1 if
unconditional), K components for each, L latents.
"""

import warnings
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# Above every noise; finite, because the average of the weights takes differences of buffers.
_ABOVE_ALL = 1e9
# Samples per latent that a component is fitted to at least: it has L (L + 3) / 2 parameters.
_SAMPLES_PER_LATENT = 4
# Of the mean variance of all latents, on the diagonal of each covariance: no direction is left flat where a component
# has hardly more samples than latents.
_RIDGE = 1e-3


class Gaussians(NamedTuple):
    """Mixtures, one for each class, as float64.

    weights: (C, K), each row adds up to 1; a class with fewer components ends in zeros.
    means: (C, K, L). factors: (C, K, L, L), lower triangles whose squares are the covariances.
    """

    weights: NDArray[np.float64]
    means: NDArray[np.float64]
    factors: NDArray[np.float64]


class Mixture(nn.Module):
    """(noise (N, L + 1), labels (N,)?) -> latents (N, L); the standard normal until it is set.

    The last normal of a noise vector picks the component, by where it falls among the quantiles of the cumulative
    weights; the others are scaled and shifted. So a sample remains a function of its noise alone, and the graph needs
    neither a random operation nor an inverse error function.
    """

    upper: Tensor
    means: Tensor
    factors: Tensor

    def __init__(self, latent: int, components: int, classes: int):
        super().__init__()
        groups = max(1, classes)
        self.register_buffer("upper", torch.full((groups, components), _ABOVE_ALL))
        self.register_buffer("means", torch.zeros(groups, components, latent))
        self.register_buffer("factors", torch.eye(latent).repeat(groups, components, 1, 1))

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        normals, chooser = noise[:, :-1], noise[:, -1:]
        components = self.upper.shape[1]
        upper = self.upper[:1] if labels is None else self.upper[labels]
        # The last end is above every noise, so this counts to components - 1 at most.
        index = (chooser > upper).sum(1)
        if labels is not None:
            index = index + labels * components
        scaled = self.factors.flatten(0, 1)[index] @ normals[:, :, None]
        return self.means.flatten(0, 1)[index] + scaled[:, :, 0]

    def set(self, gaussians: Gaussians) -> None:
        upper = np.vectorize(_quantile)(np.cumsum(gaussians.weights, 1))
        for buffer, values in ((self.upper, upper), (self.means, gaussians.means), (self.factors, gaussians.factors)):
            assert buffer.shape == values.shape, (buffer.shape, values.shape)
            buffer.copy_(torch.from_numpy(values))


def fit_mixture(
    latents: NDArray[np.floating], labels: NDArray[np.int64] | None, classes: int, components: int, seed: int
) -> Gaussians:
    """Mixtures of full covariances by expectation maximisation, one for each class.

    A component needs 4 samples per latent: a class with too few samples for K components gets fewer of them, and one
    with too few for a single component gets the mixture of all classes.

    latents: (N, L), finite. labels: (N,) in 0..classes-1; None if classes is 0. components: K, at most, for each class.
    seed: of the k-means that it begins with.
    """
    latents = np.asarray(latents, np.float64)
    ridge = max(_RIDGE * float(latents.var(0).mean()), 1e-8)
    groups = [latents] if labels is None else [latents[labels == c] for c in range(classes)]
    few = [len(group) < _SAMPLES_PER_LATENT * latents.shape[1] for group in groups]
    pooled = _fit_one(latents, components, ridge, seed) if any(few) else None
    fits = [
        pooled if pooled is not None and is_few else _fit_one(group, components, ridge, seed)
        for group, is_few in zip(groups, few, strict=True)
    ]
    return Gaussians(*(np.stack(parts) for parts in zip(*fits, strict=True)))


def _fit_one(
    latents: NDArray[np.float64], components: int, ridge: float, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Weights (K,), means (K, L) and factors (K, L, L) of one mixture."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    n, latent = latents.shape
    used = min(components, max(1, n // (_SAMPLES_PER_LATENT * latent)))
    model = GaussianMixture(used, reg_covar=ridge, max_iter=200, random_state=seed % 2**32)
    # With several threads the order of summation, and so the last bits, would vary.
    with threadpool_limits(1), warnings.catch_warnings():
        # A mixture that has not converged after 200 steps samples as well.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(latents)
        fitted_factors = np.linalg.cholesky(np.asarray(model.covariances_))
    # Unused components have no weight and stay the standard normal.
    weights, means = np.zeros(components), np.zeros((components, latent))
    factors = np.tile(np.eye(latent), (components, 1, 1))
    weights[:used], means[:used], factors[:used] = model.weights_, model.means_, fitted_factors
    return weights, means, factors


def _quantile(share: float) -> float:
    """The standard normal quantile, with finite ends."""
    if share <= 0:
        return -_ABOVE_ALL
    # Rounding leaves a sum of weights just below 1.
    return NormalDist().inv_cdf(share) if share < 1 - 1e-9 else _ABOVE_ALL
