"""Every preset at every size learns from its loss alone, and the losses are those of the papers."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from variants import presets_of, variant

from genai_ray import losses, modalities
from genai_ray.errors import UserError
from genai_ray.families import Batch, Draws, Family, Moment, Phase, build
from genai_ray.image.codec import ImageCodec
from genai_ray.image.nets import ConditionalBatchNorm, ConvGenerator, ConvTrunk, ImageSampler, grid

IMAGES = presets_of("image")

CLASSES = ("a", "b", "c")
SHAPES = [(8, 1), (8, 3), (16, 1), (28, 1), (28, 3), (56, 3), (112, 1)]


#: Widths cut down, so that a test takes milliseconds.
NARROW = {"width": 8, "latent": 8, "generator_widths": (8, 8), "discriminator_widths": (8, 8)}


def made(preset: str, size: int = 8, channels: int = 1, *, conditional: bool = False, **values: Any) -> Family:
    torch.manual_seed(0)
    codec = ImageCodec(size, channels, CLASSES if conditional else None)
    return build(variant(preset, NARROW, **values), codec, len(CLASSES) if conditional else 0)


def batch(family: Family, size: int = 8, channels: int = 1, n: int = 6) -> tuple[Batch, Draws, Moment]:
    """Real samples and randomness for the first step."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(n, channels, size, size, generator=generator) * 2 - 1
    labels = torch.arange(n) % family.classes if family.classes else None
    normal = torch.randn(n, family.latent, generator=generator)
    uniform = torch.rand(n, family.uniforms, generator=generator)
    return Batch(images, labels), Draws(normal, uniform), Moment(0, 0)


def sampled(family: Family, n: int = 6) -> Tensor:
    """Noise for the sampler."""
    return torch.randn(n, family.sampler_latent, generator=torch.Generator().manual_seed(2))


def moved(net: nn.Module) -> bool:
    """Whether any weight has a gradient that is not zero."""
    return any(p.grad is not None and bool(p.grad.any()) for p in net.parameters())


CASES = [
    pytest.param(p, s, c, k, id=f"{p}-{s}x{c}{'-classes' if k else ''}")
    for p, (s, c), k in itertools.product(IMAGES, SHAPES, [False, True])
    # Every network at every size, and every preset at the smallest and at a common one.
    if p in ("mlp_gan", "dcgan", "sngan", "vae") or (s, c) in ((8, 1), (28, 3))
]


@pytest.mark.parametrize(("preset", "size", "channels", "conditional"), CASES)
def test_each_phase_moves_its_net(preset: str, size: int, channels: int, conditional: bool):
    family = made(preset, size, channels, conditional=conditional)
    given = batch(family, size, channels)
    for phase in family.phases:
        family.nets.zero_grad(set_to_none=True)
        for name, net in family.nets.items():
            net.requires_grad_(name == phase.net)
        loss, logs = family.loss(phase, *given)
        assert loss.shape == ()
        assert math.isfinite(loss.item())
        assert logs
        assert all(math.isfinite(v.item()) and not v.requires_grad for v in logs.values())
        loss.backward()
        net = family.nets[phase.net]
        assert moved(net)
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        assert all(g.isfinite().all() for g in grads)
        # Attention begins as the identity, and a penalty does not see what is only added.
        assert len(grads) >= 0.9 * len(list(net.parameters()))


@pytest.mark.parametrize(("preset", "size", "channels", "conditional"), CASES)
def test_the_sampler_gives_what_is_shipped(preset: str, size: int, channels: int, conditional: bool):
    family = made(preset, size, channels, conditional=conditional)
    real, _, _ = batch(family, size, channels)
    noise = sampled(family)
    images = family.sampler().eval()(noise, real.labels)
    assert images.dtype == torch.uint8
    assert images.shape == (len(noise), size, size, channels)
    # Samples differ, so the noise is heard: faintly by a large decoder that has learnt nothing.
    assert len(images.flatten(1).unique(dim=0)) > 1


@pytest.mark.parametrize("preset", [p for p in IMAGES if modalities.presets()[p].values["family"] == "gan"])
@pytest.mark.parametrize("conditional", [False, True])
def test_the_discriminator_phase_leaves_the_generator_alone(preset: str, conditional: bool):
    family = made(preset, conditional=conditional)
    first, second = family.phases
    assert (first.net, second.net) == ("discriminator", "generator")
    loss, _ = family.loss(first, *batch(family))
    loss.backward()
    assert moved(family.nets["discriminator"])
    assert all(p.grad is None for p in family.nets["generator"].parameters())


@pytest.mark.parametrize("preset", IMAGES)
def test_a_conditional_sample_hangs_on_its_label_and_an_unconditional_one_cannot(preset: str):
    family = made(preset, conditional=True)
    with torch.no_grad():
        # Class gains and biases begin equal; training tells them apart.
        for parameter in family.nets.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    sampler = family.sampler().eval()
    noise = sampled(family, 1).repeat(len(CLASSES), 1)
    images = sampler(noise, torch.arange(len(CLASSES))).flatten(1)
    assert len(images.unique(dim=0)) == len(CLASSES)
    assert torch.equal(images[:1], sampler(noise[:1], torch.tensor([0])).flatten(1))
    plain = made(preset)
    assert plain.classes == 0
    assert torch.equal(*(plain.sampler().eval()(noise[:1]) for _ in range(2)))


@pytest.mark.parametrize("preset", ["dcgan", "mlp_gan"])
def test_the_discriminator_hears_the_label(preset: str):
    family = made(preset, conditional=True)
    discriminator = family.nets["discriminator"].eval()
    image = torch.rand(1, 1, 8, 8).repeat(len(CLASSES), 1, 1, 1)
    logits = discriminator(image, torch.arange(len(CLASSES)))
    assert logits.shape == (len(CLASSES),)
    assert len(logits.unique()) == len(CLASSES)


def test_classes_of_a_batch_norm_are_their_own():
    """Only the gains and biases of the classes in a batch get a gradient."""
    family = made("dcgan", conditional=True)
    _, (noise, _), _ = batch(family)
    generator = family.nets["generator"]
    assert isinstance(generator, ConvGenerator)
    generator(noise, torch.zeros(len(noise), dtype=torch.int64)).square().sum().backward()
    norm = generator.norms[-1]
    assert isinstance(norm, ConditionalBatchNorm)
    assert norm.bias is not None
    gradient = norm.bias.weight.grad
    assert gradient is not None
    assert gradient[:, 0].any()
    assert not gradient[:, 1:].any()


@pytest.mark.parametrize("interval", [1, 3])
def test_the_generator_steps_every_n_dis(interval: int):
    phases = made("dcgan", n_dis=interval).phases
    assert phases == (Phase("discriminator", "discriminator"), Phase("generator", "generator", interval))


@pytest.mark.parametrize("preset", ["dcgan", "vae", "mlp_gan"])
def test_a_step_downhill_lowers_the_loss(preset: str):
    family = made(preset, dropout=0.0, ema_half_life=0)
    given = batch(family)
    phase = family.phases[-1]
    parameters = list(family.nets[phase.net].parameters())
    before, _ = family.loss(phase, *given)
    gradients = torch.autograd.grad(before, parameters)
    norm = sum(g.square().sum() for g in gradients) ** 0.5
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter -= 1e-2 * gradient / norm
    after, _ = family.loss(phase, *given)
    assert after < before


# --- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (4, (4, 0)),
        (7, (7, 0)),
        (8, (4, 1)),
        (10, (5, 1)),
        (12, (6, 1)),
        (14, (7, 1)),
        (16, (4, 2)),
        (28, (7, 2)),
        (32, (4, 3)),
        (56, (7, 3)),
        (64, (4, 4)),
        (96, (6, 4)),
        (112, (7, 4)),
        (128, (4, 5)),
        (512, (4, 7)),
    ],
)
def test_depth_follows_the_size(size: int, expected: tuple[int, int]):
    assert grid(size) == expected


@pytest.mark.parametrize("size", [9, 18, 30, 100, 511])
def test_a_size_that_cannot_be_halved_is_named(size: int):
    with pytest.raises(UserError) as caught:
        grid(size)
    assert (caught.value.field, caught.value.value) == ("data.size", size)


@pytest.mark.parametrize(("size", "halvings"), [(8, 1), (16, 2), (28, 2), (64, 4)])
def test_networks_halve_as_often_as_the_grid_says(size: int, halvings: int):
    codec = ImageCodec(size, 1, None)
    generator = ConvGenerator(variant("dcgan", NARROW), codec, 0)
    trunk = ConvTrunk(variant("dcgan", NARROW), codec, "none")
    assert len(generator.ups) == halvings
    strided = [m for m in trunk.layers if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert len(strided) == halvings
    assert generator.shape[0] == trunk.features // generator.shape[1] ** 2 == 8 * min(2**halvings, 8)


# --- what is shipped -----------------------------------------------------------------------------


class Given(nn.Module):
    """A generator whose images are its noise."""

    def forward(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        return noise


def test_the_sampler_maps_minus_one_to_one_onto_all_bytes():
    levels = torch.linspace(-1, 1, 256).reshape(1, 1, 16, 16)
    sampled = ImageSampler(Given())(levels)
    assert sampled.flatten().tolist() == list(range(256))
    beyond = ImageSampler(Given())(torch.tensor([-1.5, 1.5]).reshape(1, 1, 1, 2))
    assert beyond.flatten().tolist() == [0, 255]


def test_the_sampler_puts_channels_last():
    image = torch.arange(12.0).reshape(1, 3, 2, 2) / 12
    assert torch.equal(ImageSampler(Given())(image)[0, 0, 1], ((image[0, :, 0, 1] + 1) * 127.5).round().to(torch.uint8))


@pytest.mark.parametrize("preset", IMAGES)
def test_the_sampler_shares_its_weights_with_what_is_averaged(preset: str):
    family = made(preset)
    averaged = {id(p) for p in family.nets[family.averaged].parameters()}
    assert {id(p) for p in family.sampler().parameters()} <= averaged


# --- losses --------------------------------------------------------------------------------------

LN2 = math.log(2)
REAL, FAKE = torch.tensor([0.0, 2.0]), torch.tensor([-3.0, 1.0])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        # An undecided discriminator: the value 2 log 2 of Goodfellow et al. 2014, theorem 1.
        (losses.nonsaturating_discriminator(torch.zeros(3), torch.zeros(3)), 2 * LN2),
        (
            losses.nonsaturating_discriminator(REAL, FAKE),
            (softplus(0) + softplus(-2)) / 2 + (softplus(-3) + softplus(1)) / 2,
        ),
        (losses.nonsaturating_generator(torch.zeros(3)), LN2),
        (losses.nonsaturating_generator(FAKE), (softplus(3) + softplus(-1)) / 2),
        # max(0, 1-0), max(0, 1-2); max(0, 1-3), max(0, 1+1).
        (losses.hinge_discriminator(REAL, FAKE), (1 + 0) / 2 + (0 + 2) / 2),
        (losses.hinge_generator(FAKE), 1.0),
        # Right: 2 > 0 and -3 <= 0; wrong: 0 and 1.
        (losses.accuracy(REAL, FAKE), 0.5),
        (losses.accuracy(torch.ones(2), -torch.ones(2)), 1.0),
        (losses.squared_error(torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)), 2.0),
        (losses.squared_error(torch.tensor([[3.0], [0.0]]), torch.zeros(2, 1)), 2.25),
        (losses.gaussian_kl(torch.zeros(4, 3), torch.zeros(4, 3)), 0.0),
        (losses.gaussian_kl(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.zeros(2, 2)), 1.25),
    ],
)
def test_losses_by_hand(value: Tensor, expected: float):
    assert value.item() == pytest.approx(expected, rel=1e-6, abs=1e-7)


def test_gaussian_kl_is_that_of_torch():
    mean, log_variance = torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0))
    posterior = Normal(mean, torch.exp(0.5 * log_variance))
    expected = kl_divergence(posterior, Normal(0.0, 1.0)).sum(1).mean()
    torch.testing.assert_close(losses.gaussian_kl(mean, log_variance), expected)


@pytest.mark.parametrize("function", [f for pair in losses.ADVERSARIAL.values() for f in pair])
def test_adversarial_losses_do_not_overflow(function: Any):
    logits = torch.tensor([-1e4, 1e4])
    arguments = [logits] * (2 if "discriminator" in function.__name__ else 1)
    assert math.isfinite(function(*arguments).item())
