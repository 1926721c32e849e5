"""Networks and families for tables: a row is a code for each part, and scalars beside numbers.

Shapes: N rows, P parts of which D are discrete and M are numbers; W = all codes one-hot, and M
scalars. See `genai_ray.data.table` for what a part is.
"""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genai_ray.data.table import TableCodec
from genai_ray.models import losses, penalties
from genai_ray.models.families import Batch, Draws, Moment, Phase
from genai_ray.presets import Variant


class Layout:
    """Where the parts of a codec lie in a row of W."""

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

    def asked(self, labels: Tensor) -> Tensor:
        """Labels (N, P), codes or -1, as the one-hot (N, C) of the discrete parts."""
        hot = [F.one_hot(labels[:, i] + 1, self.sizes[i] + 1)[:, 1:] for i in self.discrete]
        return torch.cat(hot, 1).float()

    def logits(self, raw: Tensor) -> list[Tensor]:
        """The columns of each part's codes."""
        return list(raw[:, : self.codes].split(self.sizes, 1))

    def scalars(self, raw: Tensor) -> Tensor:
        return raw[:, self.codes :]

    def has_scalar(self) -> list[list[bool]]:
        """For each number, which of its codes have a scalar beside them."""
        return [[scale > 0 for scale in self.parts[i].scale] for i in self.numeric]


# --- networks ------------------------------------------------------------------------------------


class ResidualMlp(nn.Module):
    """(N, inputs) -> (N, outputs); each hidden layer's output stands beside its input."""

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
    """Rows (N, W) and what they were asked for (N, C) -> logits (N / pack,).

    Packs of neighbours are judged together, so that a generator that repeats itself is seen (Lin
    et al. 2018, arXiv 1712.04086).
    """

    def __init__(self, width: int, variant: Variant):
        super().__init__()
        layers: list[nn.Module] = []
        self.pack = variant.pack
        sizes = [width * self.pack, *variant.discriminator_widths]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2), nn.Dropout(variant.dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, rows: Tensor, asked: Tensor | None) -> Tensor:
        x = rows if asked is None else torch.cat([rows, asked], 1)
        return self.layers(x.reshape(len(x) // self.pack, -1)).squeeze(1)


def mlp(inputs: int, widths: tuple[int, ...], outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))


# --- the GAN -------------------------------------------------------------------------------------


class TableGan:
    """CTGAN (Xu et al. 2019, arXiv 1907.00503), with the Wasserstein or another loss."""

    averaged = "generator"
    given = "one"

    def __init__(self, variant: Variant, codec: TableCodec, classes: int):
        self.variant, self.classes = variant, classes
        self.layout = layout = Layout(codec)
        self.latent = variant.latent
        self.sampler_latent = variant.latent + len(layout.parts)
        # Gumbel noise of every code, and the place between real and generated.
        self.uniforms = layout.codes + (1 if variant.penalty == "gradient" else 0)
        asked = layout.condition if classes else 0
        self.phases = (
            Phase("discriminator", "discriminator"),
            Phase("generator", "generator", interval=variant.n_dis),
        )
        self.nets = nn.ModuleDict(
            {
                "generator": ResidualMlp(variant.latent + asked, variant.generator_widths, layout.width),
                "discriminator": PackedDiscriminator(layout.width + asked, variant),
            }
        )
        self._discriminator_loss, self._generator_loss = losses.ADVERSARIAL[variant.loss]

    def loss(
        self, phase: Phase, batch: Batch, draws: Draws, moment: Moment
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Family.loss`. Generated rows are asked for the categories of the real ones."""
        layout, labels = self.layout, batch.labels
        asked = None if labels is None else layout.asked(labels)
        discriminator = self.nets["discriminator"]
        if phase.name == "generator":
            raw = self._raw(draws, asked)
            logits = discriminator(self._activated(raw, draws), asked).float()
            loss = self._generator_loss(logits)
            logs = {"loss_generator": loss.detach()}
            if labels is not None:
                missed = self._missed(raw.float(), labels)
                loss = loss + missed
                logs["loss_condition"] = missed.detach()
            return loss, logs

        with torch.no_grad():
            fake = self._activated(self._raw(draws, asked), draws)
        real = layout.one_hot(batch.values)
        twice = None if asked is None else asked.repeat(2, 1)
        logits = discriminator(torch.cat([real, fake]), twice).float().chunk(2)
        loss = self._discriminator_loss(logits[0], logits[1])
        logs = {
            "loss_discriminator": loss.detach(),
            "accuracy_discriminator": losses.accuracy(logits[0], logits[1]),
        }
        if self.variant.penalty != "none" and moment.step % self.variant.penalty_interval == 0:
            penalty = self._penalty(real, fake, asked, draws)
            loss = loss + self.variant.penalty_weight * self.variant.penalty_interval * penalty
            logs["penalty"] = penalty.detach()
        return loss, logs

    def fit(self, net: nn.Module, batch: Batch, seed: int) -> None:
        """Nothing: a GAN samples from the noise it was trained with."""

    def sampler(self) -> nn.Module:
        return TableSampler(self.nets["generator"], self.layout, self.latent, bool(self.classes))

    def _raw(self, draws: Draws, asked: Tensor | None) -> Tensor:
        noise = draws.normal if asked is None else torch.cat([draws.normal, asked], 1)
        return self.nets["generator"](noise)

    def _activated(self, raw: Tensor, draws: Draws) -> Tensor:
        """Rows (N, W) that gradients pass through: a Gumbel-softmax for each code (Jang et al.
        2017, arXiv 1611.01144), tanh for each scalar.
        """
        uniform = draws.uniform[:, : self.layout.codes]
        noisy = raw[:, : self.layout.codes].float() - torch.log(-torch.log(uniform))
        noisy = noisy / self.variant.temperature
        soft = [part.softmax(1) for part in noisy.split(self.layout.sizes, 1)]
        return torch.cat([*soft, self.layout.scalars(raw).float().tanh()], 1)

    def _missed(self, raw: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the categories that were asked for, averaged over the rows."""
        logits, total = self.layout.logits(raw), raw.new_zeros(())
        for i in self.layout.discrete:
            total = total + F.cross_entropy(logits[i], labels[:, i], ignore_index=-1, reduction="sum")
        return total / len(raw)

    def _penalty(self, real: Tensor, fake: Tensor, asked: Tensor | None, draws: Draws) -> Tensor:
        # `forward` in place of a call: not the compiled one, which has no second derivative.
        discriminator = self.nets["discriminator"].forward
        with torch.autocast(real.device.type, enabled=False):
            real, fake = real.float(), fake.float()
            if self.variant.penalty != "gradient":
                return penalties.r1(discriminator, real, asked)
            # One place for all rows of a pack, which are one sample of the discriminator.
            first = draws.uniform[:: self.variant.pack, -1:]
            share = first.repeat_interleave(self.variant.pack, 0)
            return penalties.gradient_penalty(discriminator, real, fake, asked, share)


# --- the VAE -------------------------------------------------------------------------------------


class TableVae:
    """TVAE (Xu et al. 2019, arXiv 1907.00503): categories by cross-entropy, scalars by a normal
    distribution whose width is learnt for each.
    """

    averaged = "autoencoder"
    given = "one"

    def __init__(self, variant: Variant, codec: TableCodec, classes: int):
        self.variant, self.classes = variant, classes
        self.layout = layout = Layout(codec)
        self.latent, self.uniforms = variant.latent, 0
        self.sampler_latent = variant.latent + len(layout.parts) + len(layout.numeric)
        self.phases = (Phase("autoencoder", "autoencoder"),)
        asked = layout.condition if classes else 0
        self.nets = nn.ModuleDict(
            {
                "autoencoder": nn.ModuleDict(
                    {
                        "encoder": mlp(
                            layout.width + asked, variant.discriminator_widths, 2 * variant.latent
                        ),
                        "decoder": ScalarMlp(variant.latent + asked, variant, layout),
                    }
                )
            }
        )
        self._has_scalar = _table([[float(x) for x in row] for row in layout.has_scalar()])

    def loss(
        self, phase: Phase, batch: Batch, draws: Draws, moment: Moment
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The negative ELBO with the reconstruction weighted; see `Family.loss`."""
        parts: Any = self.nets[phase.net]
        layout, variant = self.layout, self.variant
        asked = [] if batch.labels is None else [layout.asked(batch.labels)]
        rows = layout.one_hot(batch.values)
        encoded = parts["encoder"](torch.cat([rows, *asked], 1)).float()
        mean, log_variance = encoded.chunk(2, 1)
        latents = mean + torch.exp(0.5 * log_variance) * draws.normal
        raw = parts["decoder"](torch.cat([latents, *asked], 1)).float()
        codes = batch.values[:, : len(layout.parts)].long()
        error = raw.new_zeros(())
        for i, logits in enumerate(layout.logits(raw)):
            error = error + F.cross_entropy(logits, codes[:, i], reduction="sum")
        target, sigma = layout.scalars(rows), parts["decoder"].sigma()
        miss = 0.5 * ((target - layout.scalars(raw).tanh()) / sigma).square() + sigma.log()
        error = (error + (miss * self._beside(codes)).sum()) / len(rows)
        divergence = losses.gaussian_kl(mean, log_variance)
        warm = min(1.0, moment.samples / variant.kl_warm_up) if variant.kl_warm_up else 1.0
        loss = variant.reconstruction * error + variant.beta * warm * divergence
        return loss, {"loss_reconstruction": error.detach(), "loss_kl": divergence.detach()}

    def fit(self, net: nn.Module, batch: Batch, seed: int) -> None:
        """Nothing: the prior is a standard normal."""

    def sampler(self) -> nn.Module:
        parts: Any = self.nets["autoencoder"]
        return TableSampler(parts["decoder"], self.layout, self.latent, bool(self.classes))

    def _beside(self, codes: Tensor) -> Tensor:
        """(N, M): 1 where the code of a number has a scalar beside it, else 0."""
        has = self._has_scalar = self._has_scalar.to(codes.device)
        numeric = codes[:, self.layout.numeric]
        return has[torch.arange(len(self.layout.numeric), device=codes.device), numeric]


class ScalarMlp(nn.Module):
    """A decoder, and the standard deviation of each scalar around what it says."""

    def __init__(self, inputs: int, variant: Variant, layout: Layout):
        super().__init__()
        self.layers = mlp(inputs, variant.generator_widths, layout.width)
        self.log_sigma = nn.Parameter(torch.full((len(layout.numeric),), math.log(0.1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)

    def sigma(self) -> Tensor:
        return self.log_sigma.exp().clamp(0.01, 1.0)


# --- one column after another --------------------------------------------------------------------


class TableAr:
    """Columns drawn one after another, each given those that are known, in any order (Uria et al.
    2014, arXiv 1310.1757; the objective of Hoogeboom et al. 2022, arXiv 2110.02037, eq. 5).

    So any columns can be fixed. Half of the training rows hide a suffix, which is what generation
    without conditions meets; the others hide columns at random.
    """

    averaged = "model"
    given = "any"

    def __init__(self, variant: Variant, codec: TableCodec, classes: int):
        self.variant, self.classes = variant, classes
        self.layout = layout = Layout(codec)
        self.parts = len(layout.parts)
        self.latent = 0
        # How many columns are known, by which of the two ways, and in which order.
        self.uniforms = 2 + self.parts
        self.sampler_latent = self.parts + len(layout.numeric)
        self.phases = (Phase("model", "model"),)
        self.nets = nn.ModuleDict({"model": SetNetwork(variant, layout)})

    def loss(
        self, phase: Phase, batch: Batch, draws: Draws, moment: Moment
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Less the log-likelihood of the hidden columns, scaled up to that of the whole row."""
        codes = batch.values[:, : self.parts].long()
        count = (draws.uniform[:, :1] * self.parts).long()
        place = draws.uniform[:, 2:].argsort(1).argsort(1)
        natural = torch.arange(self.parts, device=codes.device)
        known = torch.where(draws.uniform[:, 1:2] < 0.5, natural, place) < count
        logits = self.nets["model"](torch.where(known, codes, -1)).float()
        weight = ~known * (self.parts / (self.parts - count))
        total = logits.new_zeros(())
        for i, part in enumerate(logits.split(self.layout.sizes, 1)):
            error = F.cross_entropy(part, codes[:, i], reduction="none")
            total = total + (error * weight[:, i]).sum()
        loss = total / len(codes)
        return loss, {"loss_likelihood": loss.detach()}

    def fit(self, net: nn.Module, batch: Batch, seed: int) -> None:
        """Nothing: there is no latent."""

    def sampler(self) -> nn.Module:
        return ArSampler(self.nets["model"], self.layout)


class SetNetwork(nn.Module):
    """Codes (N, P), -1 where unknown -> logits (N, sum of sizes) of all parts."""

    def __init__(self, variant: Variant, layout: Layout):
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
        """From the sum of what is known (N, first width) to what the heads read (N, last width)."""
        for block in self.blocks:
            made = block(x)
            x = x + made if made.shape == x.shape else made
        return self.norm(x).relu()

    def embedded(self, part: int, codes: Tensor) -> Tensor:
        return F.embedding(codes + self.starts[part], self.values.weight)


class ArSampler(nn.Module):
    """(noise (N, P + M), labels (N, P) int64) -> codes (N, D) int64, values (N, M) float64.

    One number picks the code of each part, one the place inside the bin or mode of each number.
    """

    def __init__(self, net: nn.Module, layout: Layout):
        super().__init__()
        self.net, self.layout = net, layout
        self.values = BusinessValues(layout)

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        net: Any = self.net
        layout, parts = self.layout, len(self.layout.sizes)
        uniform = normal_cdf(noise)
        free = torch.full_like(noise[:, :parts], -1).long() if labels is None else labels
        known = [torch.where(free[:, i] >= 0, free[:, i], size) for i, size in enumerate(layout.sizes)]
        total = torch.stack([net.embedded(i, code) for i, code in enumerate(known)]).sum(0)
        codes = []
        for i in range(parts):
            head = slice(layout.starts[i], layout.starts[i] + layout.sizes[i])
            logits = F.linear(net.hidden(total), net.heads.weight[head], net.heads.bias[head])
            drawn = pick(logits, uniform[:, i : i + 1])
            code = torch.where(free[:, i] >= 0, free[:, i], drawn)
            total = total - net.embedded(i, known[i]) + net.embedded(i, code)
            codes.append(code)
        stacked = torch.stack(codes, 1)
        scalars = self._scalars(uniform[:, parts:], noise[:, parts:])
        return stacked[:, layout.discrete], self.values(stacked[:, layout.numeric], scalars)

    def _scalars(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """Places inside bins are uniform; inside modes, normal of a quarter of their scale."""
        if self.layout.bins:
            return 2 * uniform - 1
        return (0.25 * normal).clamp(-0.99, 0.99)


# --- sampling ------------------------------------------------------------------------------------


class TableSampler(nn.Module):
    """(noise (N, L), labels (N, P) int64?) -> codes (N, D) int64, values (N, M) float64.

    The noise is the latent of the network, then one number for each part, which picks its code, and
    where scalars have a width one for each of them. A code that is asked for is taken. Values are
    in the units of the source: clipped, rounded, NaN where missing.
    """

    def __init__(self, net: nn.Module, layout: Layout, latent: int, conditional: bool):
        super().__init__()
        self.net, self.layout, self.latent, self.conditional = net, layout, latent, conditional
        self.values = BusinessValues(layout)

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        layout, parts = self.layout, len(self.layout.parts)
        latents = noise[:, : self.latent]
        if labels is not None and self.conditional:
            latents = torch.cat([latents, layout.asked(labels)], 1)
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
        return codes[:, layout.discrete], self.values(codes[:, layout.numeric], scalars)


class BusinessValues(nn.Module):
    """(codes (N, M), scalars (N, M)) -> values (N, M) float64: offset + scale * scalar of the code,
    within the range, rounded, NaN where missing.
    """

    offset: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor
    unit: Tensor
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
            "low": [p.low for p in parts],
            "high": [p.high for p in parts],
            # 0 stands for: not rounded.
            "unit": [0.0 if p.decimals is None else 10.0**p.decimals for p in parts],
        }
        for name, values in flat.items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64), False)
        missing = [-1 if p.missing is None else p.missing for p in parts]
        self.register_buffer("missing", torch.tensor(missing), False)
        self.register_buffer("starts", torch.tensor(starts[:-1]), False)

    def forward(self, codes: Tensor, scalars: Tensor) -> Tensor:
        at = codes + self.starts
        values = self.offset[at] + self.scale[at] * scalars.double()
        values = torch.minimum(torch.maximum(values, self.low), self.high)
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


def _table(rows: list[list[float]]) -> Tensor:
    """Rows of different lengths as one tensor, filled with zeros."""
    width = max(map(len, rows), default=0)
    return torch.tensor([row + [0.0] * (width - len(row)) for row in rows])
