"""The VAE family: VAE, beta-VAE and regularised autoencoders are values of a `VaeSpec`."""

import torch
from torch import Tensor, nn

from genai_ray import losses, rng
from genai_ray.families import Batch, Draws, Moment, Phase
from genai_ray.image import augment, nets
from genai_ray.image.codec import ImageCodec
from genai_ray.image.mixture import Mixture, fit_mixture
from genai_ray.image.spec import AutoencoderSpec, VaeSpec

_FITTED = 10_000  # samples that a latent prior is fitted to
_CHUNK = 1024  # images that are encoded at once


class Vae:
    """An encoder and a decoder, moved together (Kingma and Welling 2013, arXiv 1312.6114)."""

    given = "one"
    averaged = "autoencoder"

    def __init__(self, variant: VaeSpec, codec: ImageCodec, classes: int):
        self.variant, self.classes = variant, classes
        self.dropout = variant.dropout
        self.prior_samples = prior_samples(variant)
        self.latent = variant.latent
        self.uniforms = 1 if variant.mirror else 0
        self.sampler_latent = sampler_latent(variant)
        self.phases = (Phase("autoencoder", "autoencoder"),)
        self.nets = nn.ModuleDict({"autoencoder": autoencoder(variant, codec, classes)})

    def loss(self, phase: Phase, batch: Batch, draws: Draws, moment: Moment) -> tuple[Tensor, dict[str, Tensor]]:
        """The negative ELBO, with beta times the KL term; see `Family.loss`.

        For points: the squared error, beta times half the squared length of the latents, and decoder_decay times the
        squared weights of the decoder (RAE-L2 of Ghosh et al. 2020).
        """
        parts: nn.ModuleDict = self.nets[phase.net]  # pyright: ignore[reportAssignmentType]
        images = shown(batch, draws, self.variant)
        latents, divergence = encode(parts, images, batch.labels, draws.normal, self.variant)
        reconstruction = parts["decoder"](latents, batch.labels)
        error = losses.squared_error(reconstruction.float(), images.float())
        loss = error + self.variant.beta * warm_up(moment, self.variant) * divergence
        name = "loss_kl" if self.variant.posterior == "gaussian" else "loss_latent"
        logs = {"loss_reconstruction": error.detach(), name: divergence.detach()}
        if self.variant.decoder_decay:
            decay = losses.squared_weights(parts["decoder"])
            loss = loss + self.variant.decoder_decay * decay
            logs["loss_decay"] = decay.detach()
        return loss, logs

    def fit(self, net: nn.Module, batch: Batch, seed: int) -> None:
        fit_prior(net, batch, self.variant, self.classes, seed)

    def sampler(self) -> nn.Module:
        return sampler(self.nets["autoencoder"])


# --- what the families with an encoder share -----------------------------------------------------


def autoencoder(variant: AutoencoderSpec, codec: ImageCodec, classes: int) -> nn.ModuleDict:
    """The parts encoder, decoder and, if it is a mixture, prior."""
    parts: dict[str, nn.Module] = {
        "encoder": nets.Encoder(variant, codec, classes),
        "decoder": nets.GENERATORS[variant.network](variant, codec, classes),
    }
    if variant.generator_spectral_norm:
        nets.spectral(parts["decoder"])
    if variant.prior == "mixture":
        parts["prior"] = Mixture(variant.latent, variant.mixture_components, classes)
    return nn.ModuleDict(parts)


def shown(batch: Batch, draws: Draws, variant: AutoencoderSpec) -> Tensor:
    """The real images of a step, NCHW, half of them mirrored if the variant says so."""
    return augment.mirror(batch.values, draws.uniform) if variant.mirror else batch.values


def encode(
    parts: nn.ModuleDict, images: Tensor, labels: Tensor | None, normal: Tensor, variant: AutoencoderSpec
) -> tuple[Tensor, Tensor]:
    """Latents (N, L) of the posterior, and how far they are from N(0, 1): the KL term of a Gaussian, half the squared
    length of a point.
    """
    mean, log_variance = (x.float() for x in parts["encoder"](images, labels))
    if variant.is_point:
        return mean, losses.squared_length(mean)
    latents = mean + torch.exp(0.5 * log_variance) * normal
    return latents, losses.gaussian_kl(mean, log_variance)


def warm_up(moment: Moment, variant: AutoencoderSpec) -> float:
    """What beta is multiplied by: rises to 1 with the samples shown (Bowman et al. 2016)."""
    return min(1.0, moment.samples / variant.kl_warm_up) if variant.kl_warm_up else 1.0


@torch.no_grad()
def fit_prior(net: nn.Module, batch: Batch, variant: AutoencoderSpec, classes: int, seed: int) -> None:
    """Set the mixture of `net`, if it has one, to the latents of real images.

    The latents are drawn from the posteriors where these are Gaussian, because their mixture over all images is what
    the decoder has learnt to read. Means alone have less spread: on digits, samples of a mixture fitted to them were
    more alike (recall 0.68 in place of 0.88).
    """
    if variant.prior != "mixture":
        return
    parts: nn.ModuleDict = net  # pyright: ignore[reportAssignmentType]
    prior: Mixture = parts["prior"]  # pyright: ignore[reportAssignmentType]
    n, stream = len(batch.values), rng.Stream.TRAIN_NOISE
    normal = torch.from_numpy(rng.normal(rng.fold(seed, stream), stream, 0, n, variant.latent))
    was_training = net.training
    net.eval()
    latents = []
    for start in range(0, n, _CHUNK):
        part = slice(start, start + _CHUNK)
        device = prior.means.device
        labels = None if batch.labels is None else batch.labels[part].to(device)
        images, noise = batch.values[part].to(device), normal[part].to(device)
        latents.append(encode(parts, images, labels, noise, variant)[0].cpu())
    net.train(was_training)
    labels = None if batch.labels is None else batch.labels.cpu().numpy()
    prior.set(fit_mixture(torch.cat(latents).numpy(), labels, classes, variant.mixture_components, seed))


def prior_samples(variant: AutoencoderSpec) -> int:
    """Real samples that the prior is fitted to."""
    return _FITTED if variant.prior == "mixture" else 0


def sampler_latent(variant: AutoencoderSpec) -> int:
    """Numbers in the noise vector of one sample: a mixture takes one more, to pick a component."""
    return variant.latent + (1 if variant.prior == "mixture" else 0)


def sampler(net: nn.Module) -> nn.Module:
    """(noise (N, sampler_latent), labels (N,)?) -> uint8 NHWC, from the parts of an autoencoder."""
    parts: nn.ModuleDict = net  # pyright: ignore[reportAssignmentType]
    if "prior" not in parts:
        return nets.ImageSampler(parts["decoder"])
    return nets.ImageSampler(_FromPrior(parts["prior"], parts["decoder"]))


class _FromPrior(nn.Module):
    """(noise, labels?) -> images NCHW in -1..1."""

    def __init__(self, prior: nn.Module, decoder: nn.Module):
        super().__init__()
        self.prior, self.decoder = prior, decoder

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.decoder(self.prior(noise, labels), labels)
