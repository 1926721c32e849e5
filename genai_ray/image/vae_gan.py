"""The VAE-GAN family: a VAE whose error is measured in the features of a discriminator, not in pixels."""

import torch
from torch import Tensor, nn

from genai_ray import losses
from genai_ray.families import Batch, Draws, Moment, Phase
from genai_ray.image import nets
from genai_ray.image.codec import ImageCodec
from genai_ray.image.spec import VaeGanSpec
from genai_ray.image.vae import Autoencoder


class VaeGan(Autoencoder):
    """A VAE and a discriminator, trained in turn (Larsen et al. 2016, arXiv 1512.09300)."""

    model: VaeGanSpec

    def __init__(self, model: VaeGanSpec, codec: ImageCodec, classes: int):
        discriminator = nets.Discriminator(model, codec, classes)
        if model.network != "mlp":
            nets.initialise(discriminator, model.init)
        if model.discriminator_norm == "spectral":
            nets.spectral(discriminator)
        super().__init__(model, codec, classes)
        self.nets["discriminator"] = discriminator
        self.latent = 2 * model.latent  # of the posterior, and of the prior
        self.phases = (
            Phase("discriminator", "discriminator"),
            Phase("autoencoder", "autoencoder", interval=model.n_dis),
        )
        self._discriminator_loss, self._generator_loss = losses.ADVERSARIAL[model.loss]

    def loss(self, phase: Phase, batch: Batch, draws: Draws, moment: Moment) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Family.loss`. Both reconstructions and samples of the prior count as generated.

        The autoencoder minimises the error of its reconstructions in the features of the discriminator
        (`losses.feature_error`), beta times the KL term, and `adversarial` times the generator loss; the last moves the
        decoder alone.
        """
        images, labels = self.real_images(batch, draws), batch.labels
        posterior, prior = draws.normal.chunk(2, 1)
        if phase.name == "discriminator":
            return self._discriminator_step(images, labels, posterior, prior)

        latents, kl = self.encode(self.parts, images, labels, posterior)
        reconstruction = self.parts["decoder"](latents, labels)
        trunk: nn.Module = self.nets["discriminator"].trunk  # pyright: ignore[reportAssignmentType]
        with torch.no_grad():
            target = trunk(images)
        error = losses.feature_error(trunk(reconstruction).float(), target.float(), images.float())
        # Decoded again: batch norm would otherwise pass gradients between the two uses.
        generated = self.parts["decoder"](torch.cat([latents.detach(), prior]), _repeated(labels, 2))
        logits = self.nets["discriminator"](generated, _repeated(labels, 2)).float()
        adversarial = self._generator_loss(logits)
        loss = error + self.beta(moment) * kl + self.model.adversarial * adversarial
        pixels = losses.squared_error(reconstruction.detach().float(), images.float())
        return loss, {
            "loss_features": error.detach(),
            "loss_kl": kl.detach(),
            "loss_generator": adversarial.detach(),
            "loss_reconstruction": pixels,
        }

    def _discriminator_step(
        self, images: Tensor, labels: Tensor | None, posterior: Tensor, prior: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            latents, _ = self.encode(self.parts, images, labels, posterior)
            generated = self.parts["decoder"](torch.cat([latents, prior]), _repeated(labels, 2))
        # One pass over all of them, as in `Gan`.
        both = torch.cat([images, generated.to(images.dtype)])
        logits = self.nets["discriminator"](both, _repeated(labels, 3)).float()
        real_logits, fake_logits = logits[: len(images)], logits[len(images) :]
        loss = self._discriminator_loss(real_logits, fake_logits)
        accuracy = losses.accuracy(real_logits, fake_logits)
        return loss, {"loss_discriminator": loss.detach(), "accuracy_discriminator": accuracy}


def _repeated(labels: Tensor | None, times: int) -> Tensor | None:
    return None if labels is None else labels.repeat(times)
