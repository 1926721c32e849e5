"""The families for tables: CTGAN, TVAE, and columns one after another."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genai_ray import losses, penalties
from genai_ray.families import Batch, Draws, Moment, Phase
from genai_ray.table.autoregressive import ArSampler
from genai_ray.table.codec import TableCodec
from genai_ray.table.nets import Layout, PackedDiscriminator, ResidualMlp, ScalarMlp, SetNetwork, TableSampler, mlp
from genai_ray.table.spec import TableArSpec, TableGanSpec, TableVaeSpec


class TableGan:
    """CTGAN (Xu et al. 2019, arXiv 1907.00503), with the Wasserstein or another loss."""

    averaged = "generator"
    prior_samples = 0
    given = "one"

    def __init__(self, variant: TableGanSpec, codec: TableCodec, classes: int):
        self.variant, self.classes = variant, classes
        self.dropout = variant.dropout
        self.layout = layout = Layout(codec)
        self.latent = variant.latent
        self.sampler_latent = variant.latent + len(layout.parts)
        # Gumbel noise of every code, and the position between real and generated.
        self.uniforms = layout.codes + (1 if variant.penalty == "gradient" else 0)
        condition = layout.condition if classes else 0
        self.phases = (Phase("discriminator", "discriminator"), Phase("generator", "generator", interval=variant.n_dis))
        self.nets = nn.ModuleDict(
            {
                "generator": ResidualMlp(variant.latent + condition, variant.generator_widths, layout.width),
                "discriminator": PackedDiscriminator(layout.width + condition, variant),
            }
        )
        self._discriminator_loss, self._generator_loss = losses.ADVERSARIAL[variant.loss]

    def loss(self, phase: Phase, batch: Batch, draws: Draws, moment: Moment) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Family.loss`. Generated rows are conditioned on the categories of the real ones."""
        layout, labels = self.layout, batch.labels
        requested = None if labels is None else layout.requested(labels)
        discriminator = self.nets["discriminator"]
        if phase.name == "generator":
            raw = self._raw(draws, requested)
            logits = discriminator(self._activated(raw, draws), requested).float()
            loss = self._generator_loss(logits)
            logs = {"loss_generator": loss.detach()}
            if labels is not None:
                missed = self._missed(raw.float(), labels)
                loss = loss + missed
                logs["loss_condition"] = missed.detach()
            return loss, logs

        with torch.no_grad():
            fake = self._activated(self._raw(draws, requested), draws)
        real = layout.one_hot(batch.values)
        twice = None if requested is None else requested.repeat(2, 1)
        logits = discriminator(torch.cat([real, fake]), twice).float().chunk(2)
        loss = self._discriminator_loss(logits[0], logits[1])
        logs = {"loss_discriminator": loss.detach(), "accuracy_discriminator": losses.accuracy(logits[0], logits[1])}
        if self.variant.penalty != "none" and moment.step % self.variant.penalty_interval == 0:
            penalty = self._penalty(real, fake, requested, draws)
            loss = loss + self.variant.penalty_weight * self.variant.penalty_interval * penalty
            logs["penalty"] = penalty.detach()
        return loss, logs

    def fit(self, net: nn.Module, batch: Batch, seed: int) -> None:
        """Nothing: a GAN samples from the noise it was trained with."""

    def sampler(self) -> nn.Module:
        return TableSampler(self.nets["generator"], self.layout, self.latent, bool(self.classes))

    def _raw(self, draws: Draws, requested: Tensor | None) -> Tensor:
        noise = draws.normal if requested is None else torch.cat([draws.normal, requested], 1)
        return self.nets["generator"](noise)

    def _activated(self, raw: Tensor, draws: Draws) -> Tensor:
        """Rows (N, W) that gradients pass through: a Gumbel-softmax for each code (Jang et al. 2017, arXiv 1611.01144),
        tanh for each scalar.
        """
        uniform = draws.uniform[:, : self.layout.codes]
        noisy = raw[:, : self.layout.codes].float() - torch.log(-torch.log(uniform))
        noisy = noisy / self.variant.temperature
        soft = [part.softmax(1) for part in noisy.split(self.layout.sizes, 1)]
        return torch.cat([*soft, self.layout.scalars(raw).float().tanh()], 1)

    def _missed(self, raw: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the requested categories, averaged over the rows."""
        logits, total = self.layout.logits(raw), raw.new_zeros(())
        for i in self.layout.discrete:
            total = total + F.cross_entropy(logits[i], labels[:, i], ignore_index=-1, reduction="sum")
        return total / len(raw)

    def _penalty(self, real: Tensor, fake: Tensor, requested: Tensor | None, draws: Draws) -> Tensor:
        # `forward` in place of a call: not the compiled one, which has no second derivative.
        discriminator = self.nets["discriminator"].forward
        with torch.autocast(real.device.type, enabled=False):
            real, fake = real.float(), fake.float()
            if self.variant.penalty != "gradient":
                return penalties.r1(discriminator, real, requested)
            # One position for all rows of a pack, which are one sample of the discriminator.
            first = draws.uniform[:: self.variant.pack, -1:]
            share = first.repeat_interleave(self.variant.pack, 0)
            return penalties.gradient_penalty(discriminator, real, fake, requested, share)


class TableVae:
    """TVAE (Xu et al. 2019, arXiv 1907.00503): categories by cross-entropy, scalars by a normal distribution whose
    width is learnt for each.
    """

    averaged = "autoencoder"
    prior_samples = 0
    given = "one"

    def __init__(self, variant: TableVaeSpec, codec: TableCodec, classes: int):
        self.variant, self.classes = variant, classes
        self.dropout = 0.0
        self.layout = layout = Layout(codec)
        self.latent, self.uniforms = variant.latent, 0
        self.sampler_latent = variant.latent + len(layout.parts) + len(layout.numeric)
        self.phases = (Phase("autoencoder", "autoencoder"),)
        condition = layout.condition if classes else 0
        self.nets = nn.ModuleDict(
            {
                "autoencoder": nn.ModuleDict(
                    {
                        "encoder": mlp(layout.width + condition, variant.discriminator_widths, 2 * variant.latent),
                        "decoder": ScalarMlp(variant.latent + condition, variant, layout),
                    }
                )
            }
        )
        self._has_scalar = _table([[float(x) for x in row] for row in layout.has_scalar()])

    def loss(self, phase: Phase, batch: Batch, draws: Draws, moment: Moment) -> tuple[Tensor, dict[str, Tensor]]:
        """The negative ELBO with the reconstruction weighted; see `Family.loss`."""
        parts: Any = self.nets[phase.net]
        layout, variant = self.layout, self.variant
        requested = [] if batch.labels is None else [layout.requested(batch.labels)]
        rows = layout.one_hot(batch.values)
        encoded = parts["encoder"](torch.cat([rows, *requested], 1)).float()
        mean, log_variance = encoded.chunk(2, 1)
        latents = mean + torch.exp(0.5 * log_variance) * draws.normal
        raw = parts["decoder"](torch.cat([latents, *requested], 1)).float()
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
        numeric = self.layout.of_numeric(codes)
        return has[torch.arange(len(self.layout.numeric), device=codes.device), numeric]


class TableAr:
    """Columns drawn one after another, each given those that are known, in any order (Uria et al. 2014, arXiv
    1310.1757; the objective of Hoogeboom et al. 2022, arXiv 2110.02037, eq. 5).

    So any columns can be fixed. Half of the training rows hide a suffix, which is what generation
    without conditions meets; the others hide columns at random.
    """

    averaged = "model"
    prior_samples = 0
    given = "any"

    def __init__(self, variant: TableArSpec, codec: TableCodec, classes: int):
        self.variant, self.classes = variant, classes
        self.dropout = variant.dropout
        self.layout = layout = Layout(codec)
        self.parts = len(layout.parts)
        self.latent = 0
        # How many columns are known, by which of the two ways, and in which order.
        self.uniforms = 2 + self.parts
        self.sampler_latent = self.parts + len(layout.numeric)
        self.phases = (Phase("model", "model"),)
        self.nets = nn.ModuleDict({"model": SetNetwork(variant, layout)})

    def loss(self, phase: Phase, batch: Batch, draws: Draws, moment: Moment) -> tuple[Tensor, dict[str, Tensor]]:
        """Less the log-likelihood of the hidden columns, scaled up to that of the whole row."""
        codes = batch.values[:, : self.parts].long()
        count = (draws.uniform[:, :1] * self.parts).long()
        rank = draws.uniform[:, 2:].argsort(1).argsort(1)
        natural = torch.arange(self.parts, device=codes.device)
        known = torch.where(draws.uniform[:, 1:2] < 0.5, natural, rank) < count
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


def _table(rows: list[list[float]]) -> Tensor:
    """Rows of different lengths as one tensor, filled with zeros."""
    width = max(map(len, rows), default=0)
    return torch.tensor([row + [0.0] * (width - len(row)) for row in rows]).reshape(len(rows), width)
