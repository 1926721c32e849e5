"""Networks for images. The depth follows from the size: halve until the side is 4 to 7 pixels."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from genai_ray.data.image import ImageCodec
from genai_ray.errors import UserError
from genai_ray.presets import Variant

_WIDEST = 8  # times the width of the finest layer


def grid(size: int) -> tuple[int, int]:
    """(side of the coarsest feature map, number of halvings) for images of a size."""
    side, halvings = size, 0
    while side >= 8:
        if side % 2:
            raise UserError(
                "data.size", size, "must be 4, 5, 6 or 7 times a power of 2 for conv networks",
                "Use 28, 32, 64, …, or model.network=mlp.",
            )  # fmt: skip
        side //= 2
        halvings += 1
    return side, halvings


def _channels(width: int, halvings: int) -> list[int]:
    """Channels from the finest feature map to the coarsest."""
    return [width * min(2**i, _WIDEST) for i in range(halvings + 1)]


class ConditionalBatchNorm(nn.Module):
    """Batch norm whose gain and bias depend on the class (Dumoulin et al. 2017); plain without."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=not classes)
        self.gain = nn.Embedding(classes, channels) if classes else None
        self.bias = nn.Embedding(classes, channels) if classes else None
        if self.gain is not None and self.bias is not None:
            nn.init.ones_(self.gain.weight)
            nn.init.zeros_(self.bias.weight)

    def forward(self, x_NCHW: Tensor, labels: Tensor | None) -> Tensor:
        x_NCHW = self.norm(x_NCHW)
        if self.gain is None or self.bias is None:
            return x_NCHW
        return x_NCHW * self.gain(labels)[:, :, None, None] + self.bias(labels)[:, :, None, None]


class ConvGenerator(nn.Module):
    """(noise (N, latent), labels (N,)?) -> images NCHW in -1..1, by transposed convolutions.

    The class joins the noise one-hot and steers every norm: either alone is learnt more slowly.
    """

    def __init__(self, variant: Variant, codec: ImageCodec, classes: int):
        super().__init__()
        self.classes = classes
        side, halvings = grid(codec.size)
        channels = _channels(variant.width, halvings)[::-1]
        self.shape = (channels[0], side, side)
        self.dense = nn.Linear(variant.latent + classes, channels[0] * side * side)
        self.norms = nn.ModuleList(ConditionalBatchNorm(c, classes) for c in channels)
        # The norm takes the bias away again, so these have none.
        self.ups = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, stride=2, padding=1, bias=False)
            for a, b in pairwise(channels)
        )
        self.last = nn.Conv2d(channels[-1], codec.channels, 3, padding=1)

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        x = self.dense(_with_class(noise, labels, self.classes)).unflatten(1, self.shape)
        x = F.relu(self.norms[0](x, labels))
        for up, norm in zip(self.ups, list(self.norms)[1:], strict=True):
            x = F.relu(norm(up(x), labels))
        return torch.tanh(self.last(x))


class MlpGenerator(nn.Module):
    """(noise (N, latent), labels (N,)?) -> images NCHW in -1..1; the class joins the noise."""

    def __init__(self, variant: Variant, codec: ImageCodec, classes: int):
        super().__init__()
        self.classes = classes
        self.shape = (codec.channels, codec.size, codec.size)
        pixels = codec.channels * codec.size**2
        widths = (variant.latent + classes, *variant.generator_widths)
        self.layers = nn.Sequential(*_dense(widths), nn.Linear(widths[-1], pixels))

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        noise = _with_class(noise, labels, self.classes)
        return torch.tanh(self.layers(noise)).unflatten(1, self.shape)


class ConvTrunk(nn.Module):
    """images NCHW -> features (N, F): strided convolutions down to the coarsest grid."""

    def __init__(self, variant: Variant, codec: ImageCodec, *, batch_norm: bool):
        super().__init__()
        side, halvings = grid(codec.size)
        channels = _channels(variant.width, halvings)
        layers: list[nn.Module] = [_normed(nn.Conv2d(codec.channels, channels[0], 3, padding=1),
                                           variant.spectral_norm), nn.LeakyReLU(0.2)]  # fmt: skip
        for a, b in pairwise(channels):
            layers.append(_normed(nn.Conv2d(a, b, 4, stride=2, padding=1), variant.spectral_norm))
            if batch_norm:
                layers.append(nn.BatchNorm2d(b))
            layers += [nn.LeakyReLU(0.2), nn.Dropout(variant.dropout)]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.features = channels[-1] * side**2

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class MlpTrunk(nn.Module):
    """images NCHW -> features (N, F) of the last hidden layer."""

    def __init__(self, variant: Variant, codec: ImageCodec, *, batch_norm: bool):
        super().__init__()
        pixels = codec.channels * codec.size**2
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise((pixels, *variant.discriminator_widths)):
            layers.append(_normed(nn.Linear(inputs, outputs), variant.spectral_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(outputs))
            layers += [nn.LeakyReLU(0.2), nn.Dropout(variant.dropout)]
        self.layers = nn.Sequential(*layers)
        self.features = variant.discriminator_widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Discriminator(nn.Module):
    """(images NCHW, labels (N,)?) -> logits (N,); the class enters by projection.

    Miyato and Koyama 2018, arXiv 1802.05637.
    """

    def __init__(self, variant: Variant, codec: ImageCodec, classes: int):
        super().__init__()
        self.trunk = TRUNKS[variant.network](variant, codec, batch_norm=False)
        features = self.trunk.features
        self.logit = _normed(nn.Linear(features, 1), variant.spectral_norm)
        self.classes = (
            _normed(nn.Embedding(classes, features), variant.spectral_norm) if classes else None
        )

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        features = self.trunk(images)
        logits = self.logit(features)[:, 0]
        if self.classes is not None:
            logits = logits + (self.classes(labels) * features).sum(1)
        return logits


class Encoder(nn.Module):
    """(images NCHW, labels (N,)?) -> mean and log variance of the latents, each (N, latent)."""

    def __init__(self, variant: Variant, codec: ImageCodec, classes: int):
        super().__init__()
        self.classes = classes
        self.trunk = TRUNKS[variant.network](variant, codec, batch_norm=True)
        self.head = nn.Linear(self.trunk.features + classes, 2 * variant.latent)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        features = _with_class(self.trunk(images), labels, self.classes)
        mean, log_variance = self.head(features).chunk(2, 1)
        return mean, log_variance


class ImageSampler(nn.Module):
    """A generator that ends in what is shipped: (noise, labels?) -> images NHWC, uint8, 0..255."""

    def __init__(self, generator: nn.Module):
        super().__init__()
        self.generator = generator

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        images = self.generator(noise, labels)
        return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


GENERATORS = {"mlp": MlpGenerator, "conv": ConvGenerator}
TRUNKS = {"mlp": MlpTrunk, "conv": ConvTrunk}


def _with_class(x: Tensor, labels: Tensor | None, classes: int) -> Tensor:
    """(N, F) with the class one-hot behind it, (N, F + classes); as it is without labels."""
    return x if labels is None else torch.cat([x, F.one_hot(labels, classes).to(x.dtype)], 1)


def _dense(widths: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2)]
    return layers


def _normed(layer: nn.Module, spectral: bool) -> nn.Module:
    return spectral_norm(layer) if spectral else layer
