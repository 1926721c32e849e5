"""Penalties on the gradient of a discriminator with respect to its input.

Each takes the discriminator as a function (samples (N, ...), labels) -> logits, so a caller can pass one that is not
compiled: a compiled function cannot be differentiated twice. Each is a mean over logits; a logit is for one sample, or
for a pack of neighbours. Beyond these the discriminator must not mix samples, so it must not use batch norm.
Call them in float32, outside autocast: in bf16 the gradients are off by some 2 %.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Discriminator = Callable[[Tensor, Tensor | None], Tensor]


def input_gradient(discriminator: Discriminator, images: Tensor, labels: Tensor | None) -> Tensor:
    """dD(x)/dx of every logit, flattened to (logits, -1); itself differentiable."""
    images = images.detach().requires_grad_()
    logits = discriminator(images, labels)
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.reshape(len(logits), -1)


def gradient_penalty(
    discriminator: Discriminator, real: Tensor, fake: Tensor, labels: Tensor | None, uniform: Tensor
) -> Tensor:
    """(|dD/dx| - 1)^2 at a random point between each real sample and a generated one.

    Gulrajani et al. 2017, arXiv 1704.00028, eq. 3. uniform: (N, 1) in 0..1, the position between the two.
    """
    share = uniform[:, :1].reshape(-1, *[1] * (real.dim() - 1))
    between = share * real + (1 - share) * fake
    return (input_gradient(discriminator, between, labels).norm(dim=1) - 1).square().mean()


def r1(discriminator: Discriminator, real: Tensor, labels: Tensor | None) -> Tensor:
    """Half the squared gradient at real samples (Mescheder et al. 2018, 1801.04406, eq. 9)."""
    return 0.5 * input_gradient(discriminator, real, labels).square().sum(1).mean()


def dragan(discriminator: Discriminator, real: Tensor, labels: Tensor | None, uniform: Tensor) -> Tensor:
    """(|dD/dx| - 1)^2 near real samples (Kodali et al. 2017, arXiv 1705.07215).

    uniform: (N, 1 + C*H*W) in 0..1: the length of the perturbation, then its direction for each pixel, scaled by half
    the standard deviation of the batch's pixels.
    """
    share, direction = uniform[:, :1, None, None], uniform[:, 1:].view_as(real)
    near = real + share * 0.5 * real.std() * direction
    return (input_gradient(discriminator, near, labels).norm(dim=1) - 1).square().mean()
