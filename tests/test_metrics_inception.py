"""The network of published FIDs: its weights are checked, its arithmetic is the published one."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_resident, small_spec
from torch import Tensor, nn

from genai_ray.errors import UserError
from genai_ray.image import inception
from genai_ray.image.inception import Inception, build, read_weights, resize
from genai_ray.metrics.fidelity import frechet_distance

RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def weights() -> bytes:
    """Random ones, in the file format of the published ones."""
    torch.manual_seed(0)
    buffer = io.BytesIO()
    torch.save(build().state_dict(), buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def network(weights: bytes) -> Inception:
    return Inception(weights, "cpu")


def test_resize_takes_the_pixels_of_the_first_tensorflow() -> None:
    """From 2 to 4: positions 0, 1/2, 1 and 3/2, the last beyond the last pixel."""
    row = torch.tensor([[[[10.0, 20.0]]]])
    assert torch.equal(resize(row, 4)[0, 0, 0], torch.tensor([10.0, 15.0, 20.0, 20.0]))
    image = torch.rand(2, 3, 8, 8)
    assert torch.equal(resize(image, 8), image)
    torch.testing.assert_close(resize(image.mT, 20), resize(image, 20).mT)


def test_a_block_pools_within_the_border() -> None:
    """The mean of equal pixels is that pixel, at the border too; torchvision's own is less."""
    seen: list[Tensor] = []
    for name in ("Mixed_5b", "Mixed_6b", "Mixed_7b"):
        block = build().get_submodule(name).eval()
        pool = block.get_submodule("branch_pool")
        pool.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        channels = next(m for m in pool.modules() if isinstance(m, nn.Conv2d)).in_channels
        block(torch.ones(1, channels, 9, 9))
        assert torch.allclose(seen[-1], torch.ones(()), atol=1e-6)
        assert not torch.allclose(seen[-2], torch.ones(()), atol=1e-6)


def test_the_last_block_pools_by_the_largest() -> None:
    seen: list[Tensor] = []
    block = build().get_submodule("Mixed_7c").eval()
    pool = block.get_submodule("branch_pool")
    pool.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x = torch.zeros(1, 2048, 8, 8)
    x[:, :, 4, 4] = 9
    block(x)
    assert seen[-1][0, 0].eq(9).sum() == 9


def test_moments_in_batches_are_those_of_the_whole(network: Inception, monkeypatch: pytest.MonkeyPatch) -> None:
    images = RANDOM.integers(0, 256, (3, 8, 8, 1), dtype=np.uint8)
    features = network.features(images)
    assert features.shape == (3, 2048)
    monkeypatch.setattr(inception, "_BATCH", 2)
    parts = network.moments(images)
    assert parts.n == 3
    np.testing.assert_allclose(parts.mean(), features.mean(axis=0), rtol=1e-4)
    # Grey is three equal channels.
    np.testing.assert_allclose(features, network.features(images.repeat(3, axis=3)), rtol=1e-4)


def test_another_file_is_refused(weights: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(UserError, match=r"evaluate.inception: .* must be a file"):
        read_weights(str(path))
    path.write_bytes(weights)
    with pytest.raises(UserError, match="must have a SHA-256 that begins with 6726825d, and has"):
        read_weights(str(path))


def test_weights_are_asked_for_before_anything_is_written(tmp_path: Path) -> None:
    from genai_ray.pipeline import run

    options = [f"evaluate.inception={tmp_path}/none.pth", "evaluate.inception_samples=1000"]
    with pytest.raises(UserError, match=r"evaluate.inception: .* must be a file"):
        run(small_spec(tmp_path / "store", *options))
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("ray_cluster")
def test_a_report_with_published_features(weights: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On few images, and with random weights in the file: what is tested is the way there."""
    from PIL import Image

    from genai_ray.pipeline import run

    monkeypatch.setattr(inception, "DIGEST", hashlib.sha256(weights).hexdigest()[:8])
    (tmp_path / "weights.pth").write_bytes(weights)
    (tmp_path / "pictures").mkdir()
    for i in range(60):
        pixels = RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i:02}.png")
    spec = small_spec(
        tmp_path,
        "data.source=folder",
        f"data.root={tmp_path}/pictures",
        "train.samples=128",
        "model.conditional=false",
        f"evaluate.inception={tmp_path}/weights.pth",
        "evaluate.inception_samples=40",
        "generate.samples=100",
    )
    result = run(spec).evaluate
    assert result.fake["fid_inception"] > result.real["fid_inception"] > 0
    # Held-out images beside the whole training set, with its other number of images.
    data = load_resident(spec.data)
    network = Inception(weights, "cpu")
    expected = frechet_distance(network.features(data.train_images), network.features(data.holdout_images))
    assert result.real["fid_inception"] == pytest.approx(expected, rel=1e-2)
