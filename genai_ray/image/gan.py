"""The GAN family: each GAN preset is a set of values of a GanSpec."""

import torch
from torch import Tensor, nn

from genai_ray import losses, penalties
from genai_ray.families import Batch, Draws, Family, Moment, Phase
from genai_ray.image import augment, nets
from genai_ray.image.codec import ImageCodec
from genai_ray.image.spec import GanSpec


class Gan(Family):
    """A generator and a discriminator (Goodfellow et al. 2014), trained in turn."""

    averaged = "generator"

    def __init__(self, model: GanSpec, codec: ImageCodec, classes: int):
        self.model, self.classes = model, classes
        self.dropout = model.dropout
        self.latent = self.sampler_latent = model.latent
        self.phases = (Phase("discriminator", "discriminator"), Phase("generator", "generator", interval=model.n_dis))
        generator = nets.GENERATORS[model.network](model, codec, classes)
        discriminator = nets.Discriminator(model, codec, classes)
        self.nets = nn.ModuleDict({"generator": generator, "discriminator": discriminator})
        if model.network != "mlp":
            nets.initialise(self.nets, model.init)
        if model.discriminator_norm == "spectral":
            nets.spectral(discriminator)
        if model.generator_spectral_norm:
            nets.spectral(generator)
        self._discriminator_loss, self._generator_loss = losses.ADVERSARIAL[model.loss]
        self._columns = _columns(model, codec.channels * codec.size**2)
        self.uniforms = max((c.stop for c in self._columns.values()), default=0)

    def loss(self, phase: Phase, batch: Batch, draws: Draws, moment: Moment) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Family.loss`. Generated samples have the classes of the real ones."""
        generator, discriminator = self.nets["generator"], self.nets["discriminator"]
        uniform = {name: draws.uniform[:, columns] for name, columns in self._columns.items()}
        labels = batch.labels
        if phase.name == "generator":
            fake = self._augmented(generator(draws.normal, labels), uniform.get("augment_fake"))
            loss = self._generator_loss(discriminator(fake, labels).float())
            return loss, {"loss_generator": loss.detach()}

        with torch.no_grad():
            fake = generator(draws.normal, labels).to(batch.values.dtype)
        real = batch.values
        if "mirror" in uniform:
            real = augment.mirror(real, uniform["mirror"])
        seen = [self._augmented(real, uniform.get("augment_real")), self._augmented(fake, uniform.get("augment_fake"))]
        if "consistency" in uniform:
            seen.append(augment.shift(real, uniform["consistency"]))
        # One pass over all of them: fewer kernel launches, and weights are read once.
        repeated = None if labels is None else labels.repeat(len(seen))
        logits = discriminator(torch.cat(seen), repeated).float().chunk(len(seen))
        loss = self._discriminator_loss(logits[0], logits[1])
        logs = {
            "loss_discriminator": loss.detach(),
            "accuracy_discriminator": losses.accuracy(logits[0], logits[1]),
            "logit_real": logits[0].detach().mean(),
            "logit_fake": logits[1].detach().mean(),
        }
        if "consistency" in uniform:
            # Zhang et al. 2020, arXiv 1910.12027: a shifted image is as real as it was.
            difference = (logits[0] - logits[2]).square().mean()
            loss = loss + self.model.consistency * difference
            logs["loss_consistency"] = difference.detach()
        if self.model.penalty != "none" and moment.step % self.model.penalty_interval == 0:
            penalty = self._penalty(real, fake, labels, uniform)
            loss = loss + self.model.penalty_weight * self.model.penalty_interval * penalty
            logs["penalty"] = penalty.detach()
        return loss, logs

    def sampler(self) -> nn.Module:
        return nets.ImageSampler(self.nets["generator"], self.classes)

    def _augmented(self, images: Tensor, uniform: Tensor | None) -> Tensor:
        return images if uniform is None else augment.augment(images, uniform, self.model.augment)

    def _penalty(self, real: Tensor, fake: Tensor, labels: Tensor | None, uniform: dict[str, Tensor]) -> Tensor:
        # `forward` in place of a call: not the compiled one, which has no second derivative.
        discriminator = self.nets["discriminator"].forward
        with torch.autocast(real.device.type, enabled=False):
            real, fake = real.float(), fake.float()
            if self.model.penalty == "gradient":
                return penalties.gradient_penalty(discriminator, real, fake, labels, uniform["penalty"])
            if self.model.penalty == "r1":
                return penalties.r1(discriminator, real, labels)
            return penalties.dragan(discriminator, real, labels, uniform["penalty"])


def _columns(model: GanSpec, pixels: int) -> dict[str, slice]:
    """The columns of the uniforms by what they are used for; nothing is drawn that the model does not use."""
    widths = {
        "mirror": 1 if model.mirror else 0,
        "consistency": 2 if model.consistency else 0,
        "augment_real": augment.UNIFORMS if model.augment else 0,
        "augment_fake": augment.UNIFORMS if model.augment else 0,
        "penalty": {"gradient": 1, "dragan": 1 + pixels}.get(model.penalty, 0),
    }
    columns, start = {}, 0
    for name, width in widths.items():
        if width:
            columns[name] = slice(start, start + width)
            start += width
    return columns
