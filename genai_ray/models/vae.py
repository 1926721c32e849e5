"""The VAE family: VAE and beta-VAE are values of a Variant."""

import torch
from torch import Tensor, nn

from genai_ray.data.image import ImageCodec
from genai_ray.models import image, losses
from genai_ray.models.families import Batch, Phase
from genai_ray.presets import Variant


class Vae:
    """A Gaussian encoder and a decoder, moved together (Kingma and Welling 2013)."""

    averaged = "autoencoder"

    def __init__(self, variant: Variant, codec: ImageCodec, classes: int):
        self.latent, self.classes = variant.latent, classes
        self.beta = variant.beta
        self.phases = (Phase("autoencoder", "autoencoder"),)
        parts = {
            "encoder": image.Encoder(variant, codec, classes),
            "decoder": image.GENERATORS[variant.network](variant, codec, classes),
        }
        self.nets = nn.ModuleDict({"autoencoder": nn.ModuleDict(parts)})

    def loss(self, phase: Phase, batch: Batch, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The negative ELBO, with beta times the KL term. See `Family.loss`."""
        parts: nn.ModuleDict = self.nets[phase.net]  # pyright: ignore[reportAssignmentType]
        mean, log_variance = parts["encoder"](batch.images, batch.labels)
        latents = mean + torch.exp(0.5 * log_variance) * noise
        reconstruction = parts["decoder"](latents, batch.labels)
        error = losses.squared_error(reconstruction.float(), batch.images.float())
        kl = losses.gaussian_kl(mean.float(), log_variance.float())
        logs = {"loss_reconstruction": error.detach(), "loss_kl": kl.detach()}
        return error + self.beta * kl, logs

    def sampler(self) -> nn.Module:
        parts: nn.ModuleDict = self.nets["autoencoder"]  # pyright: ignore[reportAssignmentType]
        return image.ImageSampler(parts["decoder"])
