"""Autoencoders: losses by hand, the mixture that is sampled from, and the phases of a VAE-GAN."""

import copy
import io
import math
from statistics import NormalDist
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from variants import variant

from genai_ray import losses
from genai_ray.families import Batch, Draws, Family, Moment, build
from genai_ray.image import vae
from genai_ray.image.codec import ImageCodec
from genai_ray.image.mixture import Gaussians, Mixture, fit_mixture
from genai_ray.image.nets import ImageSampler
from genai_ray.image.vae import Vae
from genai_ray.image.vae_gan import VaeGan

CLASSES = ("a", "b", "c")
START = Moment(0, 0)
FAMILIES = ["vae", "vae_mixture", "rae", "vae_gan"]


NARROW = {"width": 8, "latent": 4}


def made(preset: str, *, conditional: bool = False, **values: Any) -> Family:
    torch.manual_seed(0)
    codec = ImageCodec(8, 1, CLASSES if conditional else None)
    return build(variant(preset, NARROW, **values), codec, len(CLASSES) if conditional else 0)


def given_batch(family: Family, n: int = 6) -> tuple[Batch, Draws]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(n, 1, 8, 8, generator=generator) * 2 - 1
    labels = torch.arange(n) % family.classes if family.classes else None
    normal = torch.randn(n, family.latent, generator=generator)
    return Batch(images, labels), Draws(normal, torch.rand(n, family.uniforms, generator=generator))


def draws(normal: Tensor, uniform: float = 1.0) -> Draws:
    return Draws(normal, torch.full((len(normal), 1), uniform))


class Encoded(nn.Module):
    """An encoder whose answer is given: mean and log variance."""

    def __init__(self, mean: Tensor, log_variance: Tensor):
        super().__init__()
        self.answer = mean, log_variance

    def forward(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.answer


class Decoded(nn.Module):
    """A decoder that writes the latents into the image, times a weight of 1."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(2))

    def forward(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        return latents.reshape(len(latents), 1, 2, 2) * self.gain


def by_hand(mean: Tensor, log_variance: Tensor, **values: Any) -> Vae:
    """A VAE of 2x2 images whose parts are known."""
    preset = "rae" if values.get("posterior") == "point" else "vae"
    family = Vae(variant(preset, NARROW, **values), ImageCodec(8, 1, None), 0)
    family.nets["autoencoder"] = nn.ModuleDict({"encoder": Encoded(mean, log_variance), "decoder": Decoded()})
    return family


IMAGES = torch.tensor([[0.5, -0.5, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]).reshape(2, 1, 2, 2)
MEAN = IMAGES.flatten(1)
HALF_SQUARE = (0.25 + 0.25 + 1) / 2 / 2  # of the means, averaged over the two


# --- losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_the_elbo_by_hand(beta: float):
    # Without noise the reconstruction is perfect, and the KL term is all that is left.
    family = by_hand(MEAN, torch.zeros(2, 4), beta=beta)
    phase, batch = family.phases[0], Batch(IMAGES, None)
    loss, logs = family.loss(phase, batch, draws(torch.zeros(2, 4)), START)
    assert loss.item() == pytest.approx(beta * HALF_SQUARE)
    assert logs["loss_reconstruction"].item() == 0
    assert logs["loss_kl"].item() == pytest.approx(HALF_SQUARE)

    # Noise of 2 standard deviations of 1 moves each of 4 pixels by 2.
    loss, logs = family.loss(phase, batch, draws(torch.full((2, 4), 2.0)), START)
    assert logs["loss_reconstruction"].item() == pytest.approx(4 * 0.5 * 2**2)
    assert loss.item() == pytest.approx(4 * 0.5 * 2**2 + beta * HALF_SQUARE)

    # A log variance of log 4 doubles the standard deviation.
    family = by_hand(MEAN, torch.full((2, 4), math.log(4)), beta=beta)
    loss, logs = family.loss(phase, batch, draws(torch.ones(2, 4)), START)
    assert logs["loss_reconstruction"].item() == pytest.approx(4 * 0.5 * 2**2)
    assert logs["loss_kl"].item() == pytest.approx(HALF_SQUARE + 4 * 0.5 * (4 - 1 - math.log(4)))


@pytest.mark.parametrize(
    ("over", "samples", "factor"), [(0, 0, 1), (0, 500, 1), (200, 0, 0), (200, 50, 0.25), (200, 200, 1), (200, 900, 1)]
)
@pytest.mark.parametrize("posterior", ["gaussian", "point"])
def test_beta_warms_up_with_the_samples_shown(posterior: str, over: int, samples: int, factor: float):
    family = by_hand(MEAN, torch.zeros(2, 4), beta=3.0, kl_warm_up=over, posterior=posterior, decoder_decay=0.0)
    loss, _ = family.loss(family.phases[0], Batch(IMAGES, None), draws(torch.zeros(2, 4)), Moment(7, samples))
    assert loss.item() == pytest.approx(3 * factor * HALF_SQUARE)


@pytest.mark.parametrize(("preset", "name"), [("vae", "loss_kl"), ("rae", "loss_latent"), ("vae_gan", "loss_kl")])
def test_beta_weighs_one_term_of_the_loss(preset: str, name: str):
    results = []
    for beta in (1.0, 4.0):
        family = made(preset, beta=beta)
        loss, logs = family.loss(family.phases[-1], *given_batch(family), START)
        results.append((loss.item(), logs[name].item()))
    (one, term), (four, same_term) = results
    assert same_term == term > 0
    assert four - one == pytest.approx(3 * term, rel=1e-4)


def test_points_hear_no_noise_and_pay_for_their_length():
    mean = MEAN + torch.tensor([0.0, 0.0, 0.0, 2.0])
    family = by_hand(mean, torch.full((2, 4), 9.0), posterior="point", beta=0.1, decoder_decay=0.0)
    loss, logs = family.loss(family.phases[0], Batch(IMAGES, None), draws(torch.full((2, 4), 5.0)), START)
    assert logs.keys() == {"loss_reconstruction", "loss_latent"}
    assert logs["loss_reconstruction"].item() == pytest.approx(0.5 * 2**2)
    assert logs["loss_latent"].item() == pytest.approx(HALF_SQUARE + 0.5 * 2**2)
    assert loss.item() == pytest.approx(2 + 0.1 * (HALF_SQUARE + 2))


@pytest.mark.parametrize("posterior", ["gaussian", "point"])
def test_the_decay_of_the_decoder_by_hand(posterior: str):
    family = by_hand(MEAN, torch.zeros(2, 4), posterior=posterior, beta=0.0, decoder_decay=0.5)
    decoder = family.nets.get_submodule("autoencoder.decoder")
    with torch.no_grad():
        decoder.get_parameter("gain").copy_(torch.tensor([1.0, 3.0]))
    loss, logs = family.loss(family.phases[0], Batch(0 * IMAGES, None), draws(-MEAN * (posterior == "gaussian")), START)
    assert logs["loss_decay"].item() == pytest.approx(1 + 9)
    assert loss.item() == pytest.approx(logs["loss_reconstruction"].item() + 0.5 * (1 + 9))
    loss.backward()
    if posterior == "gaussian":  # the latents are 0, so that decay alone has a gradient
        assert decoder.get_parameter("gain").grad.tolist() == [0.5 * 2 * 1, 0.5 * 2 * 3]  # pyright: ignore


def test_what_is_mirrored_is_both_shown_and_asked_for():
    family = by_hand(IMAGES.flip(3).flatten(1), torch.zeros(2, 4), mirror=True)
    assert family.uniforms == 1
    for uniform, error in ((0.1, 0.0), (0.9, 0.5 * (1 + 1 + 1 + 1) / 2)):
        _, logs = family.loss(family.phases[0], Batch(IMAGES, None), draws(torch.zeros(2, 4), uniform), START)
        assert logs["loss_reconstruction"].item() == pytest.approx(error)


def test_squares_by_hand():
    assert losses.squared_length(torch.tensor([[3.0, 4.0], [0.0, 1.0]])).item() == 0.5 * 26 / 2
    linear = nn.Linear(2, 1)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 2.0]]))
        linear.bias.fill_(-3.0)
    assert losses.squared_weights(linear).item() == 14


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.floats(0.01, 100), st.floats(-5, 5))
def test_the_error_of_features_is_that_of_pixels_at_any_scale(seed: int, scale: float, at: float):
    a, b = torch.rand(2, 5, 12, generator=torch.Generator().manual_seed(seed)).double()
    expected = losses.squared_error(a, b)
    given_error = losses.feature_error(a * scale + at, b * scale + at, b.reshape(5, 3, 2, 2))
    torch.testing.assert_close(given_error, expected)


def test_the_error_of_features_by_hand():
    # Target features scatter by 1 + 1, images by 4 + 4; a miss of 1 in one of two images.
    images = torch.tensor([[2.0], [-2.0]])
    error = losses.feature_error(torch.tensor([[2.0], [-1.0]]), torch.tensor([[1.0], [-1.0]]), images)
    assert error.item() == pytest.approx(0.5 * (1 / 2) * (8 / 2))
    # A discriminator that tells nothing apart gives no NaN.
    same = torch.ones(2, 3)
    assert losses.feature_error(same, same, images).item() == 0


# --- the mixture ---------------------------------------------------------------------------------

TRUTH = Gaussians(
    weights=np.array([[0.5, 0.3, 0.2]]),
    means=np.array([[[0.0, 0.0], [8.0, 0.0], [0.0, -9.0]]]),
    factors=np.array([[[[1.0, 0.0], [0.5, 0.5]], [[0.3, 0.0], [0.0, 2.0]], [[1.0, 0.0], [-0.7, 0.2]]]]),
)


def mixture(gaussians: Gaussians, classes: int = 0) -> Mixture:
    groups, components, latent = gaussians.means.shape
    assert groups == max(1, classes)
    prior = Mixture(latent, components, classes)
    prior.set(gaussians)
    return prior.eval()


def known(gaussians: Gaussians, n: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Draws of an unconditional mixture by numpy, and the component of each."""
    generator = np.random.default_rng(seed)
    which = generator.choice(len(gaussians.weights[0]), n, p=gaussians.weights[0])
    normal = generator.standard_normal((n, gaussians.means.shape[2]))
    return gaussians.means[0, which] + np.einsum("nij,nj->ni", gaussians.factors[0, which], normal), which


def noise(n: int, size: int, seed: int = 0) -> Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed))


def sorted_by_weight(gaussians: Gaussians, group: int = 0) -> Gaussians:
    order = np.argsort(-gaussians.weights[group])
    return Gaussians(*(part[group][order] for part in gaussians))


@pytest.mark.parametrize("classes", [0, 3])
def test_before_the_fit_it_is_the_standard_normal(classes: int):
    prior, z = Mixture(4, 5, classes), noise(50, 5)
    assert not list(prior.parameters())
    assert torch.equal(prior(z, torch.arange(50) % 3 if classes else None), z[:, :4])


def test_noise_is_scaled_by_the_factor_and_shifted_by_the_mean():
    latents = mixture(TRUTH)(torch.tensor([[1.0, 1.0, -5.0], [1.0, 1.0, 0.5], [1.0, 1.0, 5.0]]))
    expected = TRUTH.means[0] + TRUTH.factors[0].sum(-1)
    np.testing.assert_allclose(latents.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("shares", [(1,), (4, 4, 8), (1, 15), (3, 0, 13), (0, 16), (16, 0, 0), (2,) * 8])
def test_each_component_gets_exactly_its_share(shares: tuple[int, ...]):
    """Counted over evenly spread quantiles: normals that are equally likely."""
    inverse = NormalDist().inv_cdf
    normals = torch.tensor([inverse((i + 0.5) / 4096) for i in range(4096)])
    weights = np.array([shares]) / sum(shares)
    # The mean of a component is its number, and nothing else.
    means = np.arange(len(shares), dtype=float)[None, :, None]
    prior = mixture(Gaussians(weights, means, np.zeros((1, len(shares), 1, 1))))
    picked = prior(torch.stack([normals, normals], 1))[:, 0].long()
    counts = torch.bincount(picked, minlength=len(shares))
    assert counts.tolist() == [4096 * share // sum(shares) for share in shares]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=12).filter(lambda w: sum(w) > 1e-3),
    st.lists(st.floats(-6, 6), min_size=1, max_size=20),
)
def test_the_component_is_where_the_noise_falls(weights: list[float], choosers: list[float]):
    shares = np.array(weights) / sum(weights)
    means = np.arange(len(shares), dtype=float)[None, :, None]
    prior = mixture(Gaussians(shares[None], means, np.zeros((1, len(shares), 1, 1))))
    z = torch.tensor([[0.0, c] for c in choosers])
    ends = np.cumsum(shares)
    cdf = np.array([NormalDist().cdf(float(c)) for c in z[:, 1]])
    clear = np.abs(cdf[:, None] - ends).min(1) > 1e-6  # away from an end, where rounding decides
    expected = np.searchsorted(ends, cdf)
    assert prior(z)[:, 0].numpy()[clear].tolist() == expected[clear].tolist()


def test_a_fit_finds_the_truth_and_samples_like_it():
    latents, which = known(TRUTH, 10_000, seed=0)
    fitted = fit_mixture(latents, None, 0, 3, seed=5)
    found, truth = sorted_by_weight(fitted), sorted_by_weight(TRUTH)
    np.testing.assert_allclose(found.weights, np.bincount(which) / 10_000, atol=1e-3)
    np.testing.assert_allclose(found.means, truth.means, atol=0.06)
    found_covariances = found.factors @ found.factors.swapaxes(1, 2)
    np.testing.assert_allclose(found_covariances, truth.factors @ truth.factors.swapaxes(1, 2), atol=0.12)

    sampled = mixture(fitted)(noise(20_000, 3)).double().numpy()
    np.testing.assert_allclose(sampled.mean(0), latents.mean(0), atol=0.1)
    np.testing.assert_allclose(np.cov(sampled.T), np.cov(latents.T), atol=0.3)
    nearest = np.linalg.norm(sampled[:, None] - TRUTH.means[0], axis=2).argmin(1)
    np.testing.assert_allclose(np.bincount(nearest) / 20_000, [0.5, 0.3, 0.2], atol=0.012)


def test_each_class_has_its_own_mixture():
    latents, which = known(TRUTH, 3000, seed=1)
    fitted = fit_mixture(latents, which, 3, 2, seed=0)
    assert fitted.means.shape == (3, 2, 2)
    prior = mixture(fitted, classes=3)
    for label in range(3):
        sampled = prior(noise(2000, 3, label), torch.full((2000,), label)).numpy()
        own = latents[which == label]
        np.testing.assert_allclose(sampled.mean(0), own.mean(0), atol=0.15)
        np.testing.assert_allclose(np.cov(sampled.T), np.cov(own.T), atol=0.35)


def test_few_samples_give_few_components_and_fewer_still_the_mixture_of_all():
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2, 3], [400, 25, 7, 0])  # 2 latents: 8 for a component
    latents = generator.standard_normal((len(labels), 2)) + labels[:, None]
    weights, means, factors = fitted = fit_mixture(latents, labels, 4, 5, seed=0)
    np.testing.assert_allclose(weights.sum(1), 1)
    assert (weights > 0).sum(1).tolist() == [5, 3, 5, 5]
    pooled = fit_mixture(latents, None, 0, 5, seed=0)
    for label in (2, 3):
        assert all(np.array_equal(part[label], whole[0]) for part, whole in zip(fitted, pooled, strict=True))
    # What is left over is never picked, however large the noise.
    z = torch.cat([noise(500, 3), torch.full((1, 3), 8.5)])
    latents_of_1 = mixture(fitted, classes=4)(z, torch.ones(501, dtype=torch.int64))
    used = means[1, :3][:, None] + np.einsum("kij,nj->kni", factors[1, :3], z[:, :2].numpy())
    misses = np.abs(latents_of_1.numpy() - used).max(2).min(0)
    assert misses.max() < 1e-4


@pytest.mark.parametrize("n", [2, 3, 10])
def test_a_handful_of_samples_is_enough(n: int):
    latents = np.random.default_rng(0).standard_normal((n, 6))
    fitted = fit_mixture(latents, None, 0, 4, seed=0)
    assert fitted.weights.tolist() == [[1, 0, 0, 0]]
    np.testing.assert_allclose(fitted.means[0, 0], latents.mean(0))
    # Latents that do not vary (a collapsed encoder) are sampled as they are.
    fitted = fit_mixture(np.ones((n, 6)), None, 0, 4, seed=0)
    np.testing.assert_allclose(mixture(fitted)(noise(9, 7)).numpy(), 1, atol=1e-3)


def test_a_fit_is_a_function_of_its_arguments():
    latents, which = known(TRUTH, 2000, seed=2)
    one, two = (fit_mixture(latents, which, 3, 4, seed=2**40 + 1) for _ in range(2))
    assert all(a.tobytes() == b.tobytes() for a, b in zip(one, two, strict=True))


def test_the_average_of_weights_keeps_a_fitted_mixture():
    """The training loop moves buffers of the average to those of the live net, which are equal."""
    prior = mixture(fit_mixture(known(TRUTH, 500, seed=3)[0], None, 0, 3, seed=0))
    for buffer in (copy.deepcopy(b) for b in prior.buffers()):
        for weight in (1e-3, 0.3, 0.9):
            assert torch.equal(buffer.lerp(buffer, weight), buffer)


@pytest.mark.filterwarnings("ignore")  # the exporter warns of its own internals
@pytest.mark.parametrize("classes", [0, 3])
def test_onnx_runtime_agrees(classes: int):
    latents, which = known(TRUTH, 2000, seed=4)
    prior = mixture(fit_mixture(latents, which if classes else None, classes, 3, seed=0), classes)
    names = ["noise", "label"][: 2 if classes else 1]
    example = (noise(2, 3), torch.arange(2))[: len(names)]
    batch = torch.export.Dim("batch", min=1, max=2**20)
    program = torch.onnx.export(
        prior,
        example,
        dynamo=True,
        opset_version=20,
        verbose=False,
        input_names=names,
        output_names=["latents"],
        dynamic_shapes=tuple({0: batch} for _ in names),
    )
    assert program is not None
    buffer = io.BytesIO()
    onnx.save(program.model_proto, buffer)
    operators = {node.op_type for node in program.model_proto.graph.node}
    assert not {name for name in operators if "Random" in name or name in ("Erf", "Bernoulli")}
    session = ort.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    for n in (1, 7, 300):
        z = noise(n, 3, seed=n)
        arguments = (z, torch.arange(n) % 3)[: len(names)]
        feed = {name: a.numpy() for name, a in zip(names, arguments, strict=True)}
        given_latents = np.asarray(session.run(None, feed)[0])
        np.testing.assert_allclose(given_latents, prior(*arguments).numpy(), rtol=1e-5, atol=1e-6)


# --- fit and sampler -----------------------------------------------------------------------------


def test_a_fit_is_to_draws_of_the_posterior_and_for_points_to_the_points():
    n = 900
    mean = noise(n, 4, seed=1) * torch.tensor([1.0, 2.0, 0.5, 0.0])
    log_variance = torch.full((n, 4), math.log(0.25))
    images = torch.zeros(n, 1, 8, 8)
    spread = torch.tensor([1.0, 4.0, 0.25, 0.0])
    for posterior, expected in (("gaussian", spread + 0.25), ("point", spread)):
        family = Vae(variant("rae", NARROW, posterior=posterior, mixture_components=1), ImageCodec(8, 1, None), 0)
        net: Any = family.nets["autoencoder"]
        net["encoder"] = Encoded(mean, log_variance)
        family.fit(net, Batch(images, None), seed=0)
        latents = net["prior"](noise(20_000, 5))
        torch.testing.assert_close(latents.var(0), expected, rtol=0.15, atol=0.01)


@pytest.mark.parametrize("preset", ["vae_mixture", "rae", "vae_gan"])
@pytest.mark.parametrize("conditional", [False, True])
def test_a_fit_sets_the_prior_of_a_copy_and_nothing_else(
    preset: str, conditional: bool, monkeypatch: pytest.MonkeyPatch
):
    family = made(preset, conditional=conditional, prior="mixture", mixture_components=2)
    batch, _ = given_batch(family, 120)
    live = copy.deepcopy(family.nets.state_dict())
    for training in (True, False):
        net = copy.deepcopy(family.nets[family.averaged]).train(training)
        before = copy.deepcopy(net.state_dict())
        family.fit(net, batch, seed=3)
        assert net.training is training
        assert all(part.training is training for part in net.modules())
        after = net.state_dict()
        changed = {name for name in after if not torch.equal(after[name], before[name])}
        assert changed == {"prior.upper", "prior.means", "prior.factors"}
    assert all(torch.equal(value, live[name]) for name, value in family.nets.state_dict().items())

    # The same, but for rounding, when the images are encoded in parts.
    again = copy.deepcopy(net)
    monkeypatch.setattr(vae, "_CHUNK", 37)
    family.fit(again, batch, seed=3)
    torch.testing.assert_close(again.state_dict(), after)


def test_without_a_mixture_there_is_nothing_to_fit():
    family = made("vae")
    net = copy.deepcopy(family.nets["autoencoder"])
    before = copy.deepcopy(net.state_dict())
    family.fit(net, given_batch(family)[0], seed=0)
    assert before.keys() == net.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert family.sampler_latent == family.latent == 4


@pytest.mark.parametrize("preset", ["vae_mixture", "rae", "vae_gan"])
@pytest.mark.parametrize("conditional", [False, True])
def test_the_sampler_decodes_what_the_prior_gives(preset: str, conditional: bool):
    family = made(preset, conditional=conditional, prior="mixture", mixture_components=2)
    assert family.sampler_latent == 5
    net: Any = family.nets[family.averaged]
    batch, _ = given_batch(family, 60)
    family.fit(net, batch, seed=0)
    sampler = family.sampler().eval()
    owned = {id(t) for t in (*net.parameters(), *net.buffers())}
    assert {id(t) for t in (*sampler.parameters(), *sampler.buffers())} <= owned
    z, labels = noise(7, 5), torch.arange(7) % 3 if conditional else None
    with torch.no_grad():
        expected = ImageSampler(net["decoder"].eval())(net["prior"](z, labels), labels)
        assert torch.equal(sampler(z, labels), expected)


# --- VAE-GAN -------------------------------------------------------------------------------------


def gradients(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def moves(net: nn.Module) -> bool:
    return any(bool(g.any()) for g in gradients(net).values())


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("norm", ["none", "spectral", "batch", "layer"])
def test_each_phase_moves_its_own_net(norm: str, conditional: bool):
    family = made("vae_gan", conditional=conditional, discriminator_norm=norm)
    assert [phase.net for phase in family.phases] == ["discriminator", "autoencoder"]
    batch, given_draws = given_batch(family)
    autoencoder, discriminator = (family.nets[n] for n in ("autoencoder", "discriminator"))

    loss, logs = family.loss(family.phases[0], batch, given_draws, START)
    loss.backward()
    assert moves(discriminator)
    assert not gradients(autoencoder)
    assert 0 <= logs["accuracy_discriminator"].item() <= 1

    family.nets.zero_grad(set_to_none=True)
    discriminator.requires_grad_(False)  # as the training loop does
    loss, logs = family.loss(family.phases[1], batch, given_draws, START)
    loss.backward()
    assert moves(autoencoder.get_submodule("encoder"))
    assert moves(autoencoder.get_submodule("decoder"))
    assert not gradients(discriminator)
    assert all(not value.requires_grad for value in logs.values())


@pytest.mark.parametrize("norm", ["none", "spectral"])
def test_the_adversarial_gradient_stops_at_the_latents(norm: str):
    results = []
    for weight in (0.0, 5.0):
        family = made("vae_gan", adversarial=weight, discriminator_norm=norm)
        family.nets["discriminator"].requires_grad_(False)
        loss, _ = family.loss(family.phases[1], *given_batch(family), START)
        loss.backward()
        parts = (family.nets.get_submodule(f"autoencoder.{n}") for n in ("encoder", "decoder"))
        results.append([gradients(part) for part in parts])
    (encoder, decoder), (same_encoder, other_decoder) = results
    torch.testing.assert_close(encoder, same_encoder, rtol=0, atol=0)
    assert any(not torch.allclose(decoder[name], other_decoder[name]) for name in decoder)


class Brightness(nn.Module):
    """A discriminator whose logit is the mean pixel, and whose features are the pixels."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Flatten()

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        return images.mean((1, 2, 3))


def test_the_losses_of_the_vae_gan_by_hand():
    values = {"beta": 0.5, "kl_warm_up": 100, "adversarial": 3.0, "prior": "normal"}
    family = VaeGan(variant("vae_gan", NARROW, **values), ImageCodec(8, 1, None), 0)
    assert (family.latent, family.sampler_latent) == (8, 4)
    family.nets["autoencoder"] = nn.ModuleDict({"encoder": Encoded(MEAN, torch.zeros(2, 4)), "decoder": Decoded()})
    family.nets["discriminator"] = Brightness()
    # The posterior is off by 1 in each pixel; the prior's images are grey levels -1 and 2.
    prior = torch.tensor([-1.0, 2.0])[:, None].expand(2, 4)
    given_draws = draws(torch.cat([torch.ones(2, 4), prior], 1))
    generated = torch.tensor([0.25 + 1, 0 + 1, -1, 2])
    real = torch.tensor([0.25, 0])

    loss, _ = family.loss(family.phases[0], Batch(IMAGES, None), given_draws, START)
    assert loss.item() == pytest.approx(losses.nonsaturating_discriminator(real, generated).item())

    loss, logs = family.loss(family.phases[1], Batch(IMAGES, None), given_draws, Moment(1, 50))
    adversarial = losses.nonsaturating_generator(generated).item()
    assert logs["loss_features"].item() == pytest.approx(4 * 0.5)
    assert logs["loss_reconstruction"].item() == pytest.approx(4 * 0.5)
    assert logs["loss_kl"].item() == pytest.approx(HALF_SQUARE)
    assert logs["loss_generator"].item() == pytest.approx(adversarial)
    assert loss.item() == pytest.approx(2 + 0.5 * 0.5 * HALF_SQUARE + 3 * adversarial)


@pytest.mark.parametrize("preset", FAMILIES)
def test_a_net_of_dense_layers_does_as_well(preset: str):
    family = made(preset, network="mlp", generator_widths=(8,), discriminator_widths=(8, 8))
    batch, given_draws = given_batch(family)
    for phase in family.phases:
        loss, _ = family.loss(phase, batch, given_draws, START)
        assert math.isfinite(loss.item())
    assert family.sampler().eval()(noise(3, family.sampler_latent)).shape == (3, 8, 8, 1)
