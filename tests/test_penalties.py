"""Penalties and augmentation at places where the answer is known."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from genai_ray import modalities, penalties
from genai_ray.errors import UserError
from genai_ray.export import fold_parametrizations
from genai_ray.image import augment, nets
from genai_ray.modalities import parse

N, SHAPE = 5, (2, 4, 4)


def linear(slope: Tensor):
    """D(x) = <slope, x>, whose gradient is the slope everywhere."""
    return lambda images, labels: (images.flatten(1) * slope.flatten()).sum(1)


def images(seed: int = 0) -> Tensor:
    return torch.randn(N, *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("length", [0.0, 1.0, 3.0])
def test_penalties_of_a_linear_discriminator(length: float):
    slope = torch.ones(SHAPE)
    slope *= length / slope.norm()
    uniform = torch.rand(N, 1 + slope.numel())
    off = (length - 1) ** 2
    assert penalties.gradient_penalty(linear(slope), images(0), images(1), None, uniform).item() == pytest.approx(
        off, abs=1e-5
    )
    assert penalties.dragan(linear(slope), images(), None, uniform).item() == pytest.approx(off, abs=1e-5)
    assert penalties.r1(linear(slope), images(), None).item() == pytest.approx(0.5 * length**2, abs=1e-5)


def test_the_gradient_penalty_is_taken_between_real_and_fake():
    """D(x) = |x|^2 / 2 has the gradient x, so the penalty shows where it was taken."""
    square = lambda x, labels: 0.5 * x.square().flatten(1).sum(1)  # noqa: E731
    real, fake = images(0), images(1)
    for share, where in ((1.0, real), (0.0, fake), (0.25, 0.25 * real + 0.75 * fake)):
        expected = (where.flatten(1).norm(dim=1) - 1).square().mean()
        found = penalties.gradient_penalty(square, real, fake, None, torch.full((N, 1), share))
        torch.testing.assert_close(found, expected)


def test_dragan_moves_real_samples_up_by_half_a_deviation_at_most():
    seen = []

    def record(x: Tensor, labels: Tensor | None) -> Tensor:
        seen.append(x.detach())
        return x.flatten(1).sum(1)

    real = images()
    penalties.dragan(record, real, None, torch.ones(N, 1 + real[0].numel()))
    torch.testing.assert_close(seen[0] - real, (0.5 * real.std()).expand_as(real))


def test_a_penalty_reaches_the_weights():
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.Softplus(), nn.Linear(8, 1))
    penalty = penalties.r1(lambda x, labels: net(x)[:, 0], images(), None)
    penalty.backward()
    first = net[1]
    assert isinstance(first, nn.Linear)
    assert first.weight.grad is not None
    assert first.weight.grad.any()


def test_a_penalty_refuses_a_critic_with_batch_norm():
    with pytest.raises(UserError, match=r"model.discriminator_norm: got 'batch'; mixes the sampl"):
        parse({"name": "x", "model": {"penalty": "gradient", "discriminator_norm": "batch"}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attention": True}, "model.attention: got True; .* network=conv; it needs network=resnet"),
        ({"hierarchical": True}, "model.hierarchical: got True; .* it needs network=resnet"),
        ({"preset": "vae", "network": "resnet"}, "model.network: got 'resnet'; must be one of 'mlp' or 'conv'"),
        ({"preset": "vae", "posterior": "point"}, "model.prior: got 'normal'; does not fit"),
        ({"preset": "vae", "penalty": "r1"}, "model.penalty: got 'r1'; is not a key of the spec for model.preset=vae"),
        ({"preset": "vae_gan", "posterior": "point"}, "model.posterior: got 'point'; is not a key of the spec"),
    ],
)
def test_values_that_do_not_go_together(values: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        parse({"name": "x", "model": values})


# --- augmentation --------------------------------------------------------------------------------

PICTURES = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
MIDDLE = torch.full((4, augment.UNIFORMS), 0.5)


def test_the_middle_of_every_draw_changes_no_colour_and_moves_nothing():
    torch.testing.assert_close(augment.augment(PICTURES, MIDDLE, ["color"]), PICTURES)
    assert torch.equal(augment.augment(PICTURES, MIDDLE, ["translation"]), PICTURES)
    assert torch.equal(augment.augment(PICTURES, MIDDLE, []), PICTURES)


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_shift_moves_by_whole_pixels_and_fills_with_grey(down: float, right: float):
    uniform = torch.tensor([[down, right]]).repeat(4, 1)
    moved = augment.shift(PICTURES, uniform)
    assert moved.shape == PICTURES.shape
    rows = min(int(torch.tensor(down) * 5), 4) - 2
    columns = min(int(torch.tensor(right) * 5), 4) - 2
    expected = torch.zeros_like(PICTURES)
    for r in range(16):
        for c in range(16):
            if 0 <= r + rows < 16 and 0 <= c + columns < 16:
                expected[:, :, r, c] = PICTURES[:, :, r + rows, c + columns]
    assert torch.equal(moved, expected)


def test_a_cutout_is_a_grey_square_of_half_the_side():
    cut = augment.augment(torch.ones(4, 3, 16, 16), MIDDLE, ["cutout"])
    assert (cut == 0).sum() == 4 * 3 * 9 * 9
    assert torch.equal(cut[:, :, 4:13, 4:13], torch.zeros(4, 3, 9, 9))


def test_brightness_adds_and_contrast_multiplies():
    up = MIDDLE.clone()
    up[:, 0] = 1.0
    torch.testing.assert_close(augment.augment(PICTURES, up, ["color"]), PICTURES + 0.5)
    flat = MIDDLE.clone()
    flat[:, 2] = 0.0
    spread = augment.augment(PICTURES, flat, ["color"]).std() / PICTURES.std()
    assert spread.item() == pytest.approx(0.5, abs=0.01)


def test_half_of_the_draws_mirror():
    uniform = torch.tensor([[0.0], [0.49], [0.5], [0.99]])
    mirrored = augment.mirror(PICTURES, uniform)
    assert torch.equal(mirrored[:2], PICTURES[:2].flip(3))
    assert torch.equal(mirrored[2:], PICTURES[2:])


@pytest.mark.parametrize("policy", [["color"], ["translation"], ["cutout"]])
def test_gradients_pass_through(policy: list[str]):
    pictures = PICTURES.clone().requires_grad_()
    augment.augment(pictures, torch.rand(4, 7), policy).sum().backward()
    assert pictures.grad is not None
    assert pictures.grad.any()


# --- spectral norm and weights -------------------------------------------------------------------


def test_spectral_norm_makes_the_largest_singular_value_one_and_folds_to_the_same():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 20), nn.Linear(20, 6))
    nets.spectral(net)
    x = torch.randn(3, 12)
    for _ in range(50):
        net(x)
    net.eval()
    before = net(x)
    fold_parametrizations(net)
    torch.testing.assert_close(net(x), before)
    for layer in net:
        assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1, abs=1e-3)
    assert set(dict(net.named_parameters())) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_weights_are_drawn_as_asked():
    torch.manual_seed(0)
    layer = nn.Linear(300, 200)
    nets.initialise(layer, "normal")
    assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
    nets.initialise(layer, "xavier")
    assert layer.weight.abs().max().item() == pytest.approx((6 / 500) ** 0.5, rel=0.01)
    nets.initialise(layer, "orthogonal")
    torch.testing.assert_close(layer.weight @ layer.weight.T, torch.eye(200))
    assert not layer.bias.any()


def test_attention_begins_as_the_identity():
    layer = nets.SelfAttention(16)
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(layer(x), x)


def test_every_preset_says_what_it_is_and_where_it_comes_from():
    for preset in modalities.presets().values():
        assert preset.about
        assert any(word in preset.source for word in ("arXiv", "ICLR"))
