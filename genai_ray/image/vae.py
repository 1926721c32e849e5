"""The VAE family: VAE, beta-VAE and regularised autoencoders are values of a `VaeSpec`."""

import torch
from torch import Tensor, nn

from genai_ray import losses, rng
from genai_ray.families import Batch, Draws, Family, Moment, Phase
from genai_ray.image import augment, nets
from genai_ray.image.codec import ImageCodec
from genai_ray.image.mixture import Mixture, fit_mixture
from genai_ray.image.spec import AutoencoderSpec, VaeSpec

_PRIOR_SAMPLES = 10_000  # that a latent prior is fitted to
_CHUNK = 1024  # images that are encoded at once


class Autoencoder(Family):
    """What the families with an encoder share: `nets["autoencoder"]` with the parts encoder, decoder and, if it is a
    mixture, prior.
    """

    averaged = "autoencoder"
    model: AutoencoderSpec

    def __init__(self, model: AutoencoderSpec, codec: ImageCodec, classes: int):
        self.model, self.classes = model, classes
        self.dropout = model.dropout
        self.latent = self.sampler_latent = model.latent
        self.uniforms = 1 if model.mirror else 0
        parts: dict[str, nn.Module] = {
            "encoder": nets.Encoder(model, codec, classes),
            "decoder": nets.GENERATORS[model.network](model, codec, classes),
        }
        if model.generator_spectral_norm:
            nets.spectral(parts["decoder"])
        if model.prior == "mixture":
            parts["prior"] = Mixture(model.latent, model.mixture_components, classes)
            self.prior_samples = _PRIOR_SAMPLES
            self.sampler_latent += 1  # picks the component
        self.nets = nn.ModuleDict({"autoencoder": nn.ModuleDict(parts)})

    @property
    def parts(self) -> nn.ModuleDict:
        return self.nets["autoencoder"]  # pyright: ignore[reportReturnType]

    def real_images(self, batch: Batch, draws: Draws) -> Tensor:
        """The real images of a step, NCHW; half of them mirrored if the model says so."""
        return augment.mirror(batch.values, draws.uniform) if self.model.mirror else batch.values

    def encode(
        self, parts: nn.ModuleDict, images: Tensor, labels: Tensor | None, normal: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Latents (N, L) of the posterior and their divergence from N(0, 1): the KL term of a Gaussian, half the
        squared length of a point.
        """
        mean, log_variance = (x.float() for x in parts["encoder"](images, labels))
        if self.model.is_point:
            return mean, losses.squared_length(mean)
        return mean + torch.exp(0.5 * log_variance) * normal, losses.gaussian_kl(mean, log_variance)

    def beta(self, moment: Moment) -> float:
        """The weight of the divergence; it rises with the samples shown (Bowman et al. 2016)."""
        warm_up = self.model.kl_warm_up
        return self.model.beta * (min(1.0, moment.samples / warm_up) if warm_up else 1.0)

    @torch.no_grad()
    def fit(self, net: nn.Module, batch: Batch, seed: int) -> None:
        """Fit the mixture of `net`, if it has one, to the latents of real images.

        The latents are drawn from the posteriors where these are Gaussian, because their mixture over all images is
        what the decoder has learnt to read. Means alone have less spread: on digits, samples of a mixture fitted to
        them were more alike (recall 0.68 in place of 0.88).
        """
        if self.model.prior != "mixture":
            return
        parts: nn.ModuleDict = net  # pyright: ignore[reportAssignmentType]
        prior: Mixture = parts["prior"]  # pyright: ignore[reportAssignmentType]
        n, stream = len(batch.values), rng.Stream.TRAIN_NOISE
        normal = torch.from_numpy(rng.normal(rng.fold(seed, stream), stream, 0, n, self.model.latent))
        was_training = net.training
        net.eval()
        latents = []
        for start in range(0, n, _CHUNK):
            chunk = slice(start, start + _CHUNK)
            device = prior.means.device
            labels = None if batch.labels is None else batch.labels[chunk].to(device)
            images, noise = batch.values[chunk].to(device), normal[chunk].to(device)
            latents.append(self.encode(parts, images, labels, noise)[0].cpu())
        net.train(was_training)
        labels = None if batch.labels is None else batch.labels.cpu().numpy()
        components = self.model.mixture_components
        prior.set(fit_mixture(torch.cat(latents).numpy(), labels, self.classes, components, seed))

    def sampler(self) -> nn.Module:
        """(noise (N, sampler_latent), labels (N,)?) -> images NHWC, uint8; see `Family.sampler`."""
        decoder = self.parts["decoder"]
        generator = _FromPrior(self.parts["prior"], decoder) if "prior" in self.parts else decoder
        return nets.ImageSampler(generator, self.classes)


class Vae(Autoencoder):
    """An encoder and a decoder, trained together (Kingma and Welling 2013, arXiv 1312.6114)."""

    model: VaeSpec
    phases = (Phase("autoencoder", "autoencoder"),)

    def loss(self, phase: Phase, batch: Batch, draws: Draws, moment: Moment) -> tuple[Tensor, dict[str, Tensor]]:
        """The negative ELBO, with beta times the KL term; see `Family.loss`.

        For points: the squared error, beta times half the squared length of the latents, and decoder_decay times the
        squared weights of the decoder (RAE-L2 of Ghosh et al. 2020).
        """
        images = self.real_images(batch, draws)
        latents, divergence = self.encode(self.parts, images, batch.labels, draws.normal)
        reconstruction = self.parts["decoder"](latents, batch.labels)
        error = losses.squared_error(reconstruction.float(), images.float())
        loss = error + self.beta(moment) * divergence
        name = "loss_latent" if self.model.is_point else "loss_kl"
        logs = {"loss_reconstruction": error.detach(), name: divergence.detach()}
        if self.model.decoder_decay:
            decay = losses.squared_weights(self.parts["decoder"])
            loss = loss + self.model.decoder_decay * decay
            logs["loss_decay"] = decay.detach()
        return loss, logs


class _FromPrior(nn.Module):
    """(noise, labels?) -> images NCHW in -1..1."""

    def __init__(self, prior: nn.Module, decoder: nn.Module):
        super().__init__()
        self.prior, self.decoder = prior, decoder

    def forward(self, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.decoder(self.prior(noise, labels), labels)
