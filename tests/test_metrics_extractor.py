"""The extractor learns real digits, follows its seed and survives being written down."""

import gzip
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from genai_ray.image.extractor import Extractor, train_extractor
from genai_ray.metrics.fidelity import frechet_distance

MNIST = Path(__file__).resolve().parents[2] / "shared" / "data" / "MNIST" / "raw"


def noise(n: int, size: int, channels: int) -> np.ndarray:
    rng = np.random.Generator(np.random.Philox(0))
    return rng.integers(0, 256, size=(n, size, size, channels), dtype=np.uint8)


@pytest.fixture(scope="module")
def digits():
    """(train images, train labels, test images, test labels), 1,437 and 360 real digits 8x8."""
    datasets = pytest.importorskip("sklearn.datasets")
    pixels, labels = datasets.load_digits(return_X_y=True)
    images = np.round(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    order = np.random.Generator(np.random.Philox(0)).permutation(len(images))
    train, test = order[:1437], order[1437:]
    return images[train], labels[train], images[test], labels[test]


@pytest.fixture(scope="module")
def trained(digits) -> Extractor:
    images, labels, _, _ = digits
    return train_extractor(images, labels, 10, seed=0, steps=600)


def test_it_reads_unseen_digits(digits, trained):
    _, _, images, labels = digits
    assert trained.accuracy(images, labels) >= 0.97


def test_features_are_standardised_on_the_training_images(digits, trained):
    features = trained.features(digits[0])
    assert features.shape == (1437, 64)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(features.std(axis=0), 1, atol=1e-4)


def test_features_do_not_depend_on_the_batch(digits, trained):
    images = digits[2]
    np.testing.assert_allclose(trained.features(images[:7]), trained.features(images)[:7], atol=1e-4)


def test_noise_is_farther_from_digits_than_digits_are(digits, trained):
    train, _, test, _ = digits
    real, fake = trained.features(train), trained.features(noise(360, 8, 1))
    assert frechet_distance(real, fake) > 10 * frechet_distance(real, trained.features(test))


@pytest.mark.parametrize(
    "copy", [lambda e: Extractor.from_bytes(e.to_bytes()), lambda e: pickle.loads(pickle.dumps(e))]
)
def test_a_round_trip_changes_nothing(digits, trained, copy):
    other = copy(trained)
    np.testing.assert_array_equal(other.features(digits[2]), trained.features(digits[2]))
    np.testing.assert_array_equal(other.classify(digits[2]), trained.classify(digits[2]))
    assert other.digest == trained.digest


def test_the_name_holds_the_digest(trained):
    assert trained.name == f"cnn64@{trained.digest[:8]}"
    assert len(trained.digest) == 64


def test_an_unknown_format_is_refused():
    buffer = io.BytesIO()
    torch.save({"format": 99}, buffer)
    with pytest.raises(ValueError, match="format 99"):
        Extractor.from_bytes(buffer.getvalue())


def test_the_seed_decides_everything(digits):
    images, labels, _, _ = digits
    names = [train_extractor(images, labels, 10, seed=seed, steps=5).name for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]


def test_global_random_state_is_left_alone(digits):
    torch_state = torch.get_rng_state()
    train_extractor(digits[0], digits[1], 10, seed=0, steps=2)
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_without_labels_it_learns_a_code(digits):
    images, _, test, _ = digits
    extractor = train_extractor(images, None, None, seed=0, steps=200)
    assert extractor.name.startswith("ae64@")
    again = Extractor.from_bytes(extractor.to_bytes())
    np.testing.assert_array_equal(again.features(test), extractor.features(test))
    real = extractor.features(images)
    noise_distance = frechet_distance(real, extractor.features(noise(360, 8, 1)))
    assert noise_distance > 10 * frechet_distance(real, extractor.features(test))


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize(("size", "channels"), [(8, 3), (13, 1), (32, 3), (256, 1)])
def test_every_size_trains(size, channels, labelled):
    images = noise(6, size, channels)
    images.flags.writeable = False  # as arrays from Ray's object store are
    known = (np.arange(6) % 2, 2) if labelled else (None, None)
    extractor = train_extractor(images, *known, seed=0, steps=2)
    features = extractor.features(images)
    assert features.shape == (6, 64)
    assert np.isfinite(features).all()


def read_idx(name: str, offset: int) -> np.ndarray:
    path = MNIST / f"{name}-ubyte.gz"
    if not path.exists():
        pytest.skip(f"MNIST is not at {MNIST}")
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=offset)


@pytest.mark.slow
def test_it_reads_unseen_mnist():
    images = read_idx("train-images-idx3", 16).reshape(-1, 28, 28, 1)
    extractor = train_extractor(images, read_idx("train-labels-idx1", 8), 10, seed=0, steps=1_200)
    test_images = read_idx("t10k-images-idx3", 16).reshape(-1, 28, 28, 1)
    assert extractor.accuracy(test_images, read_idx("t10k-labels-idx1", 8)) >= 0.98
