"""Networks for images. The depth follows from the size: halve until the side is 4 to 7 pixels."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from genai_ray.errors import UserError
from genai_ray.image.codec import ImageCodec
from genai_ray.image.spec import AutoencoderSpec, GanSpec, ImageAdversarialSpec, ImageModelSpec

_WIDEST = 8  # times the width of the finest layer
_RES_SIDE = 8  # pixels of the last feature map of a residual discriminator, at most
_WEIGHTED = nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.Embedding
#: Norms by `ImageAdversarialSpec.discriminator_norm`. Spectral norm is no layer: `spectral` puts it on the whole net.
_NORMS_2D: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm2d, "layer": partial(nn.GroupNorm, 1)}
_NORMS_1D: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


def grid(size: int) -> tuple[int, int]:
    """(side of the coarsest feature map, number of halvings) for images of a size."""
    side, halvings = size, 0
    while side >= 8:
        if side % 2:
            rule = "must be 4, 5, 6 or 7 times a power of 2 for conv networks"
            raise UserError("data.size", size, rule, "Use 28, 32, 64, …, or model.network=mlp.")
        side //= 2
        halvings += 1
    return side, halvings


def _channels(width: int, halvings: int) -> list[int]:
    """Channels from the finest feature map to the coarsest."""
    return [width * min(2**i, _WIDEST) for i in range(halvings + 1)]


class ConditionalBatchNorm(nn.Module):
    """Batch norm with gain and bias from a condition vector (Dumoulin et al. 2017); plain without.

    For a one-hot condition the two matrices are the gain and the bias of each class.
    """

    def __init__(self, channels: int, features: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=not features)
        self.gain = nn.Linear(features, channels, bias=False) if features else None
        self.bias = nn.Linear(features, channels, bias=False) if features else None

    def forward(self, x_NCHW: Tensor, condition: Tensor | None) -> Tensor:
        x_NCHW = self.norm(x_NCHW)
        if self.gain is None or self.bias is None:
            return x_NCHW
        gain, bias = 1 + self.gain(condition), self.bias(condition)
        return x_NCHW * gain[:, :, None, None] + bias[:, :, None, None]


class ConvGenerator(nn.Module):
    """(noise (N, latent), labels (N,)?) -> images NCHW in -1..1, by transposed convolutions.

    The class is concatenated one-hot to the noise and conditions every norm: either alone is learnt more slowly.
    """

    def __init__(self, model: ImageModelSpec, codec: ImageCodec, classes: int):
        super().__init__()
        self.classes = classes
        side, halvings = grid(codec.size)
        channels = _channels(model.width, halvings)[::-1]
        self.shape = (channels[0], side, side)
        self.dense = nn.Linear(model.latent + classes, channels[0] * side * side)
        self.norms = nn.ModuleList(ConditionalBatchNorm(c, classes) for c in channels)
        # Without bias, which the norm would remove again.
        ups = (nn.ConvTranspose2d(a, b, 4, stride=2, padding=1, bias=False) for a, b in pairwise(channels))
        self.ups = nn.ModuleList(ups)
        self.last = nn.Conv2d(channels[-1], codec.channels, 3, padding=1)

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        condition = _one_hot(labels, self.classes, noise)
        x = self.dense(_joined(noise, condition)).unflatten(1, self.shape)
        x = F.relu(self.norms[0](x, condition))
        for up, norm in zip(self.ups, list(self.norms)[1:], strict=True):
            x = F.relu(norm(up(x), condition))
        return torch.tanh(self.last(x))


class MlpGenerator(nn.Module):
    """(noise (N, latent), labels (N,)?) -> images NCHW in -1..1; the class is concatenated one-hot to the noise."""

    def __init__(self, model: ImageModelSpec, codec: ImageCodec, classes: int):
        super().__init__()
        self.classes = classes
        self.shape = (codec.channels, codec.size, codec.size)
        pixels = codec.channels * codec.size**2
        widths = (model.latent + classes, *model.generator_widths)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], pixels))

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        noise = _joined(noise, _one_hot(labels, self.classes, noise))
        return torch.tanh(self.layers(noise)).unflatten(1, self.shape)


class ResGenerator(nn.Module):
    """(noise (N, latent), labels (N,)?) -> images NCHW in -1..1, by residual blocks.

    Gulrajani et al. 2017 and Miyato et al. 2018; `hierarchical` as in Brock et al. 2019: the first part of the noise
    makes the coarsest map, and each block is conditioned on its own part and the class.
    """

    _EMBEDDING = 128

    def __init__(self, model: GanSpec, codec: ImageCodec, classes: int):
        super().__init__()
        self.classes = classes
        side, halvings = grid(codec.size)
        channels = [model.width * 2 * 2 ** max(0, i - 3) for i in range(halvings, -1, -1)]
        self.shape = (channels[0], side, side)
        parts = halvings + 1 if model.hierarchical else 1
        self.parts = [model.latent - (parts - 1) * (model.latent // parts)]
        self.parts += [model.latent // parts] * (parts - 1)
        self.embedding = nn.Linear(classes, self._EMBEDDING, bias=False) if classes and model.hierarchical else None
        features = self.parts[-1] + (self._EMBEDDING if classes else 0) if model.hierarchical else classes
        self.dense = nn.Linear(self.parts[0], channels[0] * side * side)
        self.blocks = nn.ModuleList(UpBlock(a, b, features) for a, b in pairwise(channels))
        self.attention_at = halvings - 1 if model.attention else None
        self.attention = SelfAttention(channels[halvings - 1]) if model.attention else None
        self.norm = nn.BatchNorm2d(channels[-1])
        self.last = nn.Conv2d(channels[-1], codec.channels, 3, padding=1)

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        condition = _one_hot(labels, self.classes, noise)
        if self.embedding is not None:
            condition = self.embedding(condition)
        first, *rest = noise.split(self.parts, 1)
        x = self.dense(first).unflatten(1, self.shape)
        for index, block in enumerate(self.blocks):
            if index == self.attention_at and self.attention is not None:
                x = self.attention(x)
            x = block(x, _joined(rest[index], condition) if rest else condition)
        return torch.tanh(self.last(F.relu(self.norm(x))))


class UpBlock(nn.Module):
    """x NCHW -> twice the side: norm, ReLU, double, conv, norm, ReLU, conv, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, features: int):
        super().__init__()
        self.norm1 = ConditionalBatchNorm(inputs, features)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm2 = ConditionalBatchNorm(outputs, features)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        y = self.conv1(_doubled(F.relu(self.norm1(x, condition))))
        y = self.conv2(F.relu(self.norm2(y, condition)))
        # A 1x1 convolution and doubling commute; this order costs a quarter.
        return y + _doubled(self.shortcut(x))


class DownBlock(nn.Module):
    """x NCHW -> half the side (or the same): ReLU, conv, ReLU, conv, mean, beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, norm: str, *, first: bool, down: bool):
        super().__init__()
        self.first, self.down = first, down
        self.norm1 = nn.Identity() if first else _NORMS_2D.get(norm, nn.Identity)(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = _NORMS_2D.get(norm, nn.Identity)(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if down or inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        # The first block sees pixels, which ReLU must not cut.
        y = self.conv1(x if self.first else F.relu(self.norm1(x)))
        y = self.conv2(F.relu(self.norm2(y)))
        if self.down:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        return y + (x if self.shortcut is None else self.shortcut(x))


class SelfAttention(nn.Module):
    """x NCHW -> x + gain * attention over all positions; the gain begins at 0.

    Zhang et al. 2019, arXiv 1805.08318; keys and values at half the side, as in Brock et al. 2019.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.query = nn.Conv2d(channels, max(1, channels // 8), 1, bias=False)
        self.key = nn.Conv2d(channels, max(1, channels // 8), 1, bias=False)
        self.value = nn.Conv2d(channels, max(1, channels // 2), 1, bias=False)
        self.out = nn.Conv2d(max(1, channels // 2), channels, 1, bias=False)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2)
        key = F.max_pool2d(self.key(x), 2).flatten(2)
        value = F.max_pool2d(self.value(x), 2).flatten(2)
        weights = torch.softmax(query.transpose(1, 2) @ key, dim=2)
        attended = (value @ weights.transpose(1, 2)).unflatten(2, x.shape[2:])
        return x + self.gain * self.out(attended)


class ConvTrunk(nn.Module):
    """images NCHW -> features (N, F): strided convolutions down to the coarsest grid."""

    def __init__(self, model: ImageModelSpec, codec: ImageCodec, norm: str):
        super().__init__()
        side, halvings = grid(codec.size)
        channels = _channels(model.width, halvings)
        layers: list[nn.Module] = [nn.Conv2d(codec.channels, channels[0], 3, padding=1), nn.LeakyReLU(0.2)]
        for a, b in pairwise(channels):
            layers += [nn.Conv2d(a, b, 4, stride=2, padding=1), _NORMS_2D.get(norm, nn.Identity)(b)]
            layers += [nn.LeakyReLU(0.2), nn.Dropout(model.dropout)]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.features = channels[-1] * side**2

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class MlpTrunk(nn.Module):
    """images NCHW -> features (N, F) of the last hidden layer."""

    def __init__(self, model: ImageModelSpec, codec: ImageCodec, norm: str):
        super().__init__()
        pixels = codec.channels * codec.size**2
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise((pixels, *model.discriminator_widths)):
            layers += [nn.Linear(inputs, outputs), _NORMS_1D.get(norm, nn.Identity)(outputs)]
            layers += [nn.LeakyReLU(0.2), nn.Dropout(model.dropout)]
        self.layers = nn.Sequential(*layers)
        self.features = model.discriminator_widths[-1]

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class ResTrunk(nn.Module):
    """images NCHW -> features (N, F): residual blocks down to 5 to 8 pixels, two more, then pooled.

    Miyato et al. 2018, table 4 (32x32); each halving after the second doubles the channels.
    """

    def __init__(self, model: GanSpec, codec: ImageCodec, norm: str):
        super().__init__()
        halvings, side = 1, codec.size // 2
        while side > _RES_SIDE:
            halvings, side = halvings + 1, side // 2
        channels = [codec.channels, *(model.width * 2 ** max(0, i - 2) for i in range(1, halvings + 1))]
        blocks: list[nn.Module] = []
        for index, (a, b) in enumerate(pairwise(channels)):
            blocks.append(DownBlock(a, b, norm, first=index == 0, down=True))
            if index == 0 and model.attention:
                blocks.append(SelfAttention(b))
        last = channels[-1]
        blocks += [DownBlock(last, last, norm, first=False, down=False) for _ in range(2)]
        self.blocks = nn.Sequential(*blocks)
        self.drop = nn.Dropout(model.dropout)
        self.mean = model.pooling == "mean"
        self.features = last

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.blocks(images))
        return self.drop(x.mean((2, 3)) if self.mean else x.sum((2, 3)))


class Discriminator(nn.Module):
    """(images NCHW, labels (N,)?) -> logits (N,); the class enters by projection.

    Miyato and Koyama 2018, arXiv 1802.05637.
    """

    def __init__(self, model: ImageAdversarialSpec, codec: ImageCodec, classes: int):
        super().__init__()
        self.trunk = TRUNKS[model.network](model, codec, model.discriminator_norm)
        self.logit = nn.Linear(self.trunk.features, 1)
        self.classes = nn.Embedding(classes, self.trunk.features) if classes else None

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        features = self.trunk(images)
        logits = self.logit(features)[:, 0]
        if self.classes is not None:
            logits = logits + (self.classes(labels) * features).sum(1)
        return logits


class Encoder(nn.Module):
    """(images NCHW, labels (N,)?) -> mean and log variance of the latents, each (N, latent)."""

    def __init__(self, model: AutoencoderSpec, codec: ImageCodec, classes: int):
        super().__init__()
        self.classes = classes
        self.trunk = TRUNKS[model.network](model, codec, "batch")
        self.head = nn.Linear(self.trunk.features + classes, 2 * model.latent)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        features = self.trunk(images)
        mean, log_variance = self.head(_joined(features, _one_hot(labels, self.classes, features))).chunk(2, 1)
        return mean, log_variance


class ImageSampler(nn.Module):
    """A generator whose output is rounded: (noise, labels?) -> images NHWC, uint8, 0..255.

    classes: labels outside 0..classes - 1 are an error, in torch and in ONNX Runtime, whose one-hot vectors would be
    all zeros: images of no class.
    """

    def __init__(self, generator: nn.Module, classes: int = 0):
        super().__init__()
        self.generator, self.classes = generator, classes

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is not None and self.classes:
            known = torch.arange(self.classes, device=labels.device)
            # A negative index would count from the end.
            labels = known.index_select(0, torch.where(labels < 0, self.classes, labels))
        images = self.generator(noise, labels)
        return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


GENERATORS: dict[str, Callable[..., nn.Module]] = {"mlp": MlpGenerator, "conv": ConvGenerator, "resnet": ResGenerator}
Trunk = ConvTrunk | MlpTrunk | ResTrunk
TRUNKS: dict[str, Callable[..., Trunk]] = {"mlp": MlpTrunk, "conv": ConvTrunk, "resnet": ResTrunk}


def initialise(module: nn.Module, kind: str) -> None:
    """Draw the weights of all convolutions and dense layers again; biases become 0.

    normal: N(0, 0.02) (Radford et al. 2015, section 3). xavier: uniform, with gain sqrt 2 within residual blocks
    (Gulrajani et al. 2017). orthogonal: Saxe et al. 2013, as in Brock et al. 2019.
    Conditional norms begin as plain ones.
    """
    inner = {id(c) for b in module.modules() if isinstance(b, UpBlock | DownBlock) for c in (b.conv1, b.conv2)}
    for layer in module.modules():
        if isinstance(layer, _WEIGHTED):
            if kind == "normal":
                nn.init.normal_(layer.weight, 0.0, 0.02)
            elif kind == "xavier":
                nn.init.xavier_uniform_(layer.weight, 2**0.5 if id(layer) in inner else 1.0)
            else:
                nn.init.orthogonal_(layer.weight)
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    for linear in _conditional(module):
        nn.init.zeros_(linear.weight)


def spectral(module: nn.Module) -> None:
    """Divide the weight of every layer by its largest singular value, by one power iteration a step (Miyato et al.
    2018). Gains of conditional norms are left as they are: they begin at 0.
    """
    skipped = {id(linear) for linear in _conditional(module)}
    for layer in list(module.modules()):
        if isinstance(layer, _WEIGHTED) and id(layer) not in skipped:
            spectral_norm(layer)


def _conditional(module: nn.Module) -> list[nn.Linear]:
    """The layers that give gain and bias of conditional norms."""
    norms = [norm for norm in module.modules() if isinstance(norm, ConditionalBatchNorm)]
    return [linear for norm in norms for linear in (norm.gain, norm.bias) if linear is not None]


def _one_hot(labels: Tensor | None, classes: int, like: Tensor) -> Tensor | None:
    return None if labels is None else F.one_hot(labels, classes).to(like.dtype)


def _joined(x: Tensor, condition: Tensor | None) -> Tensor:
    return x if condition is None else torch.cat([x, condition.to(x.dtype)], 1)


def _doubled(x_NCHW: Tensor) -> Tensor:
    return F.interpolate(x_NCHW, scale_factor=2.0, mode="nearest")
