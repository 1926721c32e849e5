"""Losses: functions of tensors, each a mean over the batch unless it says otherwise."""

import torch
from torch import Tensor
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


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)), summed over latents, averaged over the batch.

    -1/2 sum(1 + log var - mean^2 - var); Kingma and Welling 2013, appendix B.
    """
    terms = 1 + log_variance - mean.square() - log_variance.exp()
    return -0.5 * terms.flatten(1).sum(1).mean()


def squared_error(reconstruction: Tensor, target: Tensor) -> Tensor:
    """-log N(target; reconstruction, 1) less its constant: half the squared error, summed over
    pixels, averaged over the batch.
    """
    return 0.5 * (reconstruction - target).square().flatten(1).sum(1).mean()


#: name -> (discriminator loss, generator loss)
ADVERSARIAL = {
    "nonsaturating": (nonsaturating_discriminator, nonsaturating_generator),
    "hinge": (hinge_discriminator, hinge_generator),
}


def accuracy(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Share of real and generated samples that the discriminator tells apart, 0..1."""
    with torch.no_grad():
        return ((real_logits > 0).float().mean() + (fake_logits <= 0).float().mean()) / 2
