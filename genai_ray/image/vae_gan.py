"""The VAE-GAN family: a VAE that is judged by the features of a discriminator, not by pixels."""

import torch
from torch import Tensor, nn

from genai_ray import losses
from genai_ray.families import Batch, Draws, Moment, Phase
from genai_ray.image import nets, vae
from genai_ray.image.codec import ImageCodec
from genai_ray.image.spec import VaeGanSpec


class VaeGan:
    """A VAE and a discriminator, moved in turn (Larsen et al. 2016, arXiv 1512.09300)."""

    given = "one"
    averaged = "autoencoder"

    def __init__(self, variant: VaeGanSpec, codec: ImageCodec, classes: int):
        self.variant, self.classes = variant, classes
        self.dropout = variant.dropout
        self.prior_samples = vae.prior_samples(variant)
        self.latent = 2 * variant.latent  # of the posterior, and of the prior
        self.uniforms = 1 if variant.mirror else 0
        self.sampler_latent = vae.sampler_latent(variant)
        self.phases = (
            Phase("discriminator", "discriminator"),
            Phase("autoencoder", "autoencoder", interval=variant.n_dis),
        )
        discriminator = nets.Discriminator(variant, codec, classes)
        if variant.network != "mlp":
            nets.initialise(discriminator, variant.init)
        if variant.discriminator_norm == "spectral":
            nets.spectral(discriminator)
        self.nets = nn.ModuleDict(
            {"autoencoder": vae.autoencoder(variant, codec, classes), "discriminator": discriminator}
        )
        self._discriminator_loss, self._generator_loss = losses.ADVERSARIAL[variant.loss]

    def loss(self, phase: Phase, batch: Batch, draws: Draws, moment: Moment) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Family.loss`. Both reconstructions and samples of the prior count as generated.

        The autoencoder minimises the error of its reconstructions in the features of the discriminator
        (`losses.feature_error`), beta times the KL term, and `adversarial` times the generator loss; the last moves the
        decoder alone.
        """
        parts: nn.ModuleDict = self.nets["autoencoder"]  # pyright: ignore[reportAssignmentType]
        images, labels = vae.shown(batch, draws, self.variant), batch.labels
        posterior, prior = draws.normal.chunk(2, 1)
        if phase.name == "discriminator":
            return self._discriminate(parts, images, labels, posterior, prior)

        latents, kl = vae.encode(parts, images, labels, posterior, self.variant)
        reconstruction = parts["decoder"](latents, labels)
        trunk: nn.Module = self.nets["discriminator"].trunk  # pyright: ignore[reportAssignmentType]
        with torch.no_grad():
            target = trunk(images)
        error = losses.feature_error(trunk(reconstruction).float(), target.float(), images.float())
        # Decoded anew: batch norm would else hand gradients on between the two uses.
        generated = parts["decoder"](torch.cat([latents.detach(), prior]), _repeated(labels, 2))
        logits = self.nets["discriminator"](generated, _repeated(labels, 2)).float()
        adversarial = self._generator_loss(logits)
        loss = (
            error + self.variant.beta * vae.warm_up(moment, self.variant) * kl + self.variant.adversarial * adversarial
        )
        pixels = losses.squared_error(reconstruction.detach().float(), images.float())
        return loss, {
            "loss_features": error.detach(),
            "loss_kl": kl.detach(),
            "loss_generator": adversarial.detach(),
            "loss_reconstruction": pixels,
        }

    def _discriminate(
        self, parts: nn.ModuleDict, images: Tensor, labels: Tensor | None, posterior: Tensor, prior: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            latents, _ = vae.encode(parts, images, labels, posterior, self.variant)
            generated = parts["decoder"](torch.cat([latents, prior]), _repeated(labels, 2))
        # One pass over all of them, as in `Gan`.
        both = torch.cat([images, generated.to(images.dtype)])
        logits = self.nets["discriminator"](both, _repeated(labels, 3)).float()
        real_logits, fake_logits = logits[: len(images)], logits[len(images) :]
        loss = self._discriminator_loss(real_logits, fake_logits)
        return loss, {
            "loss_discriminator": loss.detach(),
            "accuracy_discriminator": losses.accuracy(real_logits, fake_logits),
        }

    def fit(self, net: nn.Module, batch: Batch, seed: int) -> None:
        vae.fit_prior(net, batch, self.variant, self.classes, seed)

    def sampler(self) -> nn.Module:
        return vae.sampler(self.nets["autoencoder"])


def _repeated(labels: Tensor | None, times: int) -> Tensor | None:
    return None if labels is None else labels.repeat(times)
