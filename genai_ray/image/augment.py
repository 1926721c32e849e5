"""Differentiable random augmentation of images; the randomness is an argument.

Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training", arXiv 2006.10738: real and generated
images are changed alike, in every phase, so the discriminator cannot learn the few real ones by heart and the generator
does not learn the changes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

#: Uniforms that `augment` reads of each sample.
UNIFORMS = 7


def augment(images: Tensor, uniform: Tensor, policy: Sequence[str]) -> Tensor:
    """images NCHW in -1..1, changed by each step of the policy; uniform: (N, 7) in 0..1.

    color: brightness by up to 0.5 of half the range, saturation times 0..2, contrast times 0.5..1.5. translation: by up
    to 1/8 of the side, zeros (grey) where nothing was. cutout: a square of half the side set to grey.
    """
    if "color" in policy:
        images = _color(images, uniform[:, 0:3])
    if "translation" in policy:
        images = shift(images, uniform[:, 3:5])
    if "cutout" in policy:
        images = _cutout(images, uniform[:, 5:7])
    return images


def mirror(images: Tensor, uniform: Tensor) -> Tensor:
    """Left and right exchanged where uniform (N, 1) is below a half."""
    return torch.where(uniform[:, :1, None, None] < 0.5, images.flip(3), images)


def shift(images: Tensor, uniform: Tensor) -> Tensor:
    """Moved by -s..s pixels with s an eighth of the side; uniform (N, 2): down and right."""
    n, _, height, width = images.shape
    reach = max(1, height // 8)
    steps = (uniform * (2 * reach + 1)).long().clamp(max=2 * reach)
    padded = F.pad(images, [reach] * 4)
    rows = steps[:, :1] + torch.arange(height, device=images.device)
    columns = steps[:, 1:2] + torch.arange(width, device=images.device)
    sample = torch.arange(n, device=images.device)[:, None, None]
    # Indexing with a slice between puts the channels last: (N, H, W, C).
    return padded[sample, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _color(images: Tensor, uniform: Tensor) -> Tensor:
    brightness, saturation, contrast = (u[:, None, None, None] for u in uniform.unbind(1))
    images = images + (brightness - 0.5)
    grey = images.mean(1, keepdim=True)
    images = (images - grey) * (2 * saturation) + grey
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + 0.5) + mean


def _cutout(images: Tensor, uniform: Tensor) -> Tensor:
    height, width = images.shape[2:]
    half = height // 4
    # The centre lies anywhere in the image, so part of the square may fall outside.
    row = (uniform[:, 0] * height).long()[:, None, None]
    column = (uniform[:, 1] * width).long()[:, None, None]
    rows = torch.arange(height, device=images.device)[None, :, None]
    columns = torch.arange(width, device=images.device)[None, None, :]
    inside = ((rows - row).abs() <= half) & ((columns - column).abs() <= half)
    return images * ~inside[:, None]
