"""The GAN family: SNGAN, DCGAN, conditional and fully connected ones are values of a Variant."""

import torch
from torch import Tensor, nn

from genai_ray.data.image import ImageCodec
from genai_ray.models import image, losses
from genai_ray.models.families import Batch, Phase
from genai_ray.presets import Variant


class Gan:
    """A generator and a discriminator (Goodfellow et al. 2014), moved in turn."""

    averaged = "generator"

    def __init__(self, variant: Variant, codec: ImageCodec, classes: int):
        self.latent, self.classes = variant.latent, classes
        self.phases = (
            Phase("discriminator", "discriminator"),
            Phase("generator", "generator", interval=variant.n_dis),
        )
        self.nets = nn.ModuleDict(
            {
                "generator": image.GENERATORS[variant.network](variant, codec, classes),
                "discriminator": image.Discriminator(variant, codec, classes),
            }
        )
        if variant.network == "conv":
            self.nets.apply(_init)
        self._discriminator_loss, self._generator_loss = losses.ADVERSARIAL[variant.loss]

    def loss(self, phase: Phase, batch: Batch, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Family.loss`. Generated samples are asked for the classes of the real ones."""
        generator, discriminator = self.nets["generator"], self.nets["discriminator"]
        labels = batch.labels
        if phase.name == "generator":
            loss = self._generator_loss(discriminator(generator(noise, labels), labels).float())
            return loss, {"loss_generator": loss.detach()}
        with torch.no_grad():
            fake = generator(noise, labels)
        # One pass over both halves: half as many kernel launches, and weights are read once.
        both = torch.cat([batch.images, fake.to(batch.images.dtype)])
        logits = discriminator(both, None if labels is None else torch.cat([labels, labels]))
        real_logits, fake_logits = logits.float().chunk(2)
        loss = self._discriminator_loss(real_logits, fake_logits)
        return loss, {
            "loss_discriminator": loss.detach(),
            "accuracy_discriminator": losses.accuracy(real_logits, fake_logits),
        }

    def sampler(self) -> nn.Module:
        return image.ImageSampler(self.nets["generator"])


def _init(module: nn.Module) -> None:
    """N(0, 0.02) for every convolution and dense layer (Radford et al. 2015, section 3)."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
