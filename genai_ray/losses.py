"""Losses: functions of tensors, each a mean over the batch unless it says otherwise."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def nonsaturating_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """-log D(x) - log(1 - D(G(z))) on logits (Goodfellow et al. 2014)."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def nonsaturating_generator(fake_logits: Tensor) -> Tensor:
    """-log D(G(z)) on logits: strong gradients where the generator is still bad."""
    return F.softplus(-fake_logits).mean()


def hinge_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Hinge loss (Lim and Ye 2017, arXiv 1705.02894)."""
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def hinge_generator(fake_logits: Tensor) -> Tensor:
    return -fake_logits.mean()


def least_squares_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Half the squared distance to 1 for real and to 0 for generated (Mao et al. 2017, eq. 9)."""
    return 0.5 * ((real_logits - 1).square().mean() + fake_logits.square().mean())


def least_squares_generator(fake_logits: Tensor) -> Tensor:
    return 0.5 * (fake_logits - 1).square().mean()


def wasserstein_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """The negative of the estimated Wasserstein distance (Arjovsky et al. 2017, arXiv 1701.07875)."""
    return fake_logits.mean() - real_logits.mean()


def wasserstein_generator(fake_logits: Tensor) -> Tensor:
    return -fake_logits.mean()


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)), summed over latents, averaged over the batch.

    -1/2 sum(1 + log var - mean^2 - var); Kingma and Welling 2013, appendix B.
    """
    terms = 1 + log_variance - mean.square() - log_variance.exp()
    return -0.5 * terms.flatten(1).sum(1).mean()


def squared_error(reconstruction: Tensor, target: Tensor) -> Tensor:
    """-log N(target; reconstruction, 1) without its constant: half the squared error, summed over pixels, averaged over
    the batch.
    """
    return 0.5 * (reconstruction - target).square().flatten(1).sum(1).mean()


#: name -> (discriminator loss, generator loss)
ADVERSARIAL = {
    "nonsaturating": (nonsaturating_discriminator, nonsaturating_generator),
    "hinge": (hinge_discriminator, hinge_generator),
    "least_squares": (least_squares_discriminator, least_squares_generator),
    "wasserstein": (wasserstein_discriminator, wasserstein_generator),
}


def accuracy(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Share of real and generated samples that the discriminator tells apart, 0..1."""
    with torch.no_grad():
        return ((real_logits > 0).float().mean() + (fake_logits <= 0).float().mean()) / 2


def squared_length(latents: Tensor) -> Tensor:
    """Half of |z|^2, summed over latents, averaged over the batch: it keeps the latents of an encoder without noise
    together (the latent term of Ghosh et al. 2020, arXiv 1903.12436).
    """
    return 0.5 * latents.square().flatten(1).sum(1).mean()


def squared_weights(net: nn.Module) -> Tensor:
    """Sum of the squares of all weights, gains and biases."""
    return torch.stack([p.float().square().sum() for p in net.parameters()]).sum()


def feature_error(features: Tensor, target: Tensor, images: Tensor) -> Tensor:
    """Squared error of features (N, F) against those of the images, in the units of `squared_error`: the two are equal
    if the features are the pixels.

    It is the share of the target's variance that is not reproduced, times half the variance of the images, summed over
    pixels; all variances are over the batch. Larsen et al. 2016 leave features at their own scale, which changes with
    the discriminator; this error weighs against a KL term as pixels do.
    """
    missed = (features - target).square().sum() / _scatter(target).clamp_min(1e-12)
    return 0.5 * missed * _scatter(images) / len(images)


def _scatter(x: Tensor) -> Tensor:
    """Sum of squared distances from the mean of the batch."""
    return (x - x.mean(0)).square().sum()
