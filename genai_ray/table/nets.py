"""Networks for tables: a row is a code for each part, and scalars beside numbers.

Shapes: N rows, P parts of which D are discrete and M are numbers; W = all codes one-hot, and M
scalars. See `columns.Part` for what a part is.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genai_ray.table.codec import TableCodec
from genai_ray.table.spec import TableArSpec, TableGanSpec, TableVaeSpec


class Layout:
    """Offsets of the parts of a codec in a row of W."""

    def __init__(self, codec: TableCodec):
        self.parts = codec.parts
        self.sizes = [p.size for p in codec.parts]
        starts = [0]
        for size in self.sizes:
            starts.append(starts[-1] + size)
        self.starts, self.codes = starts[:-1], starts[-1]
        self.discrete = [i for i, p in enumerate(codec.parts) if p.discrete]
        self.numeric = [i for i, p in enumerate(codec.parts) if not p.discrete]
        self.width = self.codes + len(self.numeric)
        self.bins = all(not codec.parts[i].weights for i in self.numeric)
        self.condition = sum(self.sizes[i] for i in self.discrete)

    def one_hot(self, values: Tensor) -> Tensor:
        """Rows (N, P + M), codes and scalars, as (N, W)."""
        parts = len(self.sizes)
        starts = torch.tensor(self.starts, device=values.device)
        codes = torch.zeros(len(values), self.codes, device=values.device, dtype=values.dtype)
        codes.scatter_(1, values[:, :parts].long() + starts, 1.0)
        return torch.cat([codes, values[:, parts:]], 1)

    def requested(self, labels: Tensor) -> Tensor:
        """Labels (N, P), codes or -1, as the one-hot (N, C) of the discrete parts."""
        hot = [F.one_hot(labels[:, i] + 1, self.sizes[i] + 1)[:, 1:] for i in self.discrete]
        return torch.cat(hot, 1).float()

    def known(self, labels: Tensor) -> Tensor:
        """Labels (N, P), in which a code beyond the last of its part becomes the last, and one below 0 is free."""
        return torch.minimum(labels, torch.tensor(self.sizes, device=labels.device) - 1)

    def logits(self, raw: Tensor) -> list[Tensor]:
        """The columns of each part's codes."""
        return list(raw[:, : self.codes].split(self.sizes, 1))

    def scalars(self, raw: Tensor) -> Tensor:
        return raw[:, self.codes :]

    def of_discrete(self, codes: Tensor) -> Tensor:
        """Of codes (N, P) those of the discrete parts (N, D)."""
        return codes.index_select(1, torch.tensor(self.discrete, dtype=torch.int64, device=codes.device))

    def of_numeric(self, codes: Tensor) -> Tensor:
        """Of codes (N, P) those of the numbers (N, M)."""
        return codes.index_select(1, torch.tensor(self.numeric, dtype=torch.int64, device=codes.device))

    def has_scalar(self) -> list[list[bool]]:
        """For each number, which of its codes have a scalar beside them."""
        return [[scale > 0 for scale in self.parts[i].scale] for i in self.numeric]


# --- networks ------------------------------------------------------------------------------------


class ResidualMlp(nn.Module):
    """(N, inputs) -> (N, outputs); each hidden layer's output is concatenated with its input."""

    def __init__(self, inputs: int, widths: tuple[int, ...], outputs: int):
        super().__init__()
        blocks, width = [], inputs
        for hidden in widths:
            blocks.append(nn.Sequential(nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU()))
            width += hidden
        self.blocks, self.last = nn.ModuleList(blocks), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.cat([block(x), x], 1)
        return self.last(x)


class PackedDiscriminator(nn.Module):
    """Rows (N, W) and the requested codes (N, C) -> logits (N / pack,).

    Neighbouring rows are packed into one sample, so that mode collapse is detected (Lin et al. 2018, arXiv 1712.04086).
    """

    def __init__(self, width: int, variant: TableGanSpec):
        super().__init__()
        layers: list[nn.Module] = []
        self.pack = variant.pack
        sizes = [width * self.pack, *variant.discriminator_widths]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2), nn.Dropout(variant.dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, rows: Tensor, requested: Tensor | None) -> Tensor:
        x = rows if requested is None else torch.cat([rows, requested], 1)
        return self.layers(x.reshape(len(x) // self.pack, -1)).squeeze(1)


def mlp(inputs: int, widths: tuple[int, ...], outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


class ScalarMlp(nn.Module):
    """A decoder, and the standard deviation of each scalar around its output."""

    def __init__(self, inputs: int, variant: TableVaeSpec, layout: Layout):
        super().__init__()
        self.layers = mlp(inputs, variant.generator_widths, layout.width)
        self.log_sigma = nn.Parameter(torch.full((len(layout.numeric),), math.log(0.1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def sigma(self) -> Tensor:
        return self.log_sigma.exp().clamp(0.01, 1.0)


class SetNetwork(nn.Module):
    """Codes (N, P), -1 where unknown -> logits (N, sum of sizes) of all parts."""

    def __init__(self, variant: TableArSpec, layout: Layout):
        super().__init__()
        # After the codes of a part comes one for: not known.
        starts = [0]
        for size in layout.sizes:
            starts.append(starts[-1] + size + 1)
        self.starts, self.sizes = starts[:-1], layout.sizes
        width = variant.generator_widths[0]
        self.values = nn.Embedding(starts[-1], width)
        nn.init.normal_(self.values.weight, std=len(layout.sizes) ** -0.5)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(i), nn.ReLU(), nn.Dropout(variant.dropout), nn.Linear(i, o))
            for i, o in pairwise(variant.generator_widths)
        )
        last = variant.generator_widths[-1]
        self.norm, self.heads = nn.LayerNorm(last), nn.Linear(last, layout.codes)

    def forward(self, codes: Tensor) -> Tensor:
        sizes = torch.tensor(self.sizes, device=codes.device)
        starts = torch.tensor(self.starts, device=codes.device)
        at = torch.where(codes >= 0, codes, sizes) + starts
        return self.heads(self.hidden(F.embedding_bag(at, self.values.weight, mode="sum")))

    def hidden(self, x: Tensor) -> Tensor:
        """From the sum of the known embeddings (N, first width) to the input of the heads (N, last width)."""
        for block in self.blocks:
            output = block(x)
            x = x + output if output.shape == x.shape else output
        return self.norm(x).relu()

    def embedded(self, part: int, codes: Tensor) -> Tensor:
        return F.embedding(codes + self.starts[part], self.values.weight)


# --- sampling ------------------------------------------------------------------------------------


class TableSampler(nn.Module):
    """(noise (N, L), labels (N, P) int64?) -> codes (N, D) int64, values (N, M) float64.

    The noise is the latent of the network, then one number for each part, which picks its code, and
    where scalars have a width one for each of them. A requested code is taken. Values are
    in the units of the source: clipped, rounded, NaN where missing.
    """

    def __init__(self, net: nn.Module, layout: Layout, latent: int, conditional: bool):
        super().__init__()
        self.net, self.layout, self.latent, self.conditional = net, layout, latent, conditional
        self.values = BusinessValues(layout)

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        layout, parts = self.layout, len(self.layout.parts)
        latents = noise[:, : self.latent]
        labels = None if labels is None else layout.known(labels).clamp(min=-1)
        if labels is not None and self.conditional:
            latents = torch.cat([latents, layout.requested(labels)], 1)
        raw = self.net(latents)
        uniform = normal_cdf(noise[:, self.latent : self.latent + parts])
        picked = [pick(logits, uniform[:, i : i + 1]) for i, logits in enumerate(layout.logits(raw))]
        codes = torch.stack(picked, 1)
        if labels is not None:
            codes = torch.where(labels >= 0, labels, codes)
        scalars = layout.scalars(raw).tanh()
        if isinstance(self.net, ScalarMlp):
            spread = self.net.sigma() * noise[:, self.latent + parts :]
            scalars = (scalars + spread).clamp(-1.0, 1.0)
        return layout.of_discrete(codes), self.values(layout.of_numeric(codes), scalars)


class BusinessValues(nn.Module):
    """(codes (N, M), scalars (N, M)) -> values (N, M) float64: offset + scale * scalar of the code, within its range,
    rounded to a multiple and to decimals, NaN where missing.

    Buffers of each code of every number, one after the other: offset, scale, low, high; step and phase, see `Part`, and
    a step of 0 for atoms. Of each number: unit, 10 to the power of its decimals; the code for missing; where its codes
    start.
    """

    offset: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    unit: Tensor
    step: Tensor
    phase: Tensor
    missing: Tensor
    starts: Tensor

    def __init__(self, layout: Layout):
        super().__init__()
        parts = [layout.parts[i] for i in layout.numeric]
        starts = [0]
        for part in parts:
            starts.append(starts[-1] + part.size)
        flat = {
            "offset": [x for p in parts for x in p.offset],
            "scale": [x for p in parts for x in p.scale],
            "low": [x for p in parts for x in p.lows or [p.low] * p.size],
            "high": [x for p in parts for x in p.highs or [p.high] * p.size],
            # 0 means: not rounded.
            "unit": [0.0 if p.decimals is None else 10.0**p.decimals for p in parts],
            "step": [p.step if scale else 0.0 for p in parts for scale in p.scale],
            "phase": [p.phase for p in parts for _ in p.scale],
        }
        self.stepped = any(p.step for p in parts)
        for name, values in flat.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64), False)
        missing = [-1 if p.missing is None else p.missing for p in parts]
        self.register_buffer("missing", torch.tensor(missing, dtype=torch.int64), False)
        self.register_buffer("starts", torch.tensor(starts[:-1], dtype=torch.int64), False)

    def forward(self, codes: Tensor, scalars: Tensor) -> Tensor:
        at = codes + self.starts
        values = self.offset[at] + self.scale[at] * scalars.double()
        values = torch.minimum(torch.maximum(values, self.low[at]), self.high[at])
        if self.stepped:
            step, phase = self.step[at], self.phase[at]
            steps = torch.where(step > 0, step, 1.0)
            values = torch.where(step > 0, phase + torch.round((values - phase) / steps) * steps, values)
        unit = torch.where(self.unit > 0, self.unit, 1.0)
        values = torch.where(self.unit > 0, torch.round(values * unit) / unit, values)
        return torch.where(codes == self.missing, float("nan"), values)


def normal_cdf(x: Tensor) -> Tensor:
    """Standard normals as uniforms in 0..1."""
    return 0.5 * (1 + torch.erf(x * 2**-0.5))


def pick(logits: Tensor, uniform: Tensor) -> Tensor:
    """A code (N,) of softmax(logits (N, K)) by inversion of uniforms (N, 1)."""
    ends = logits.float().softmax(1).cumsum(1)
    return (uniform > ends).sum(1).clamp(max=logits.shape[1] - 1)
