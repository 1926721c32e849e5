"""A small feature extractor that is trained on the real images of a run.

Stands in for ImageNet networks, which cannot be downloaded everywhere and whose features do not fit digits, scans or
spectra. Distances depend on the extractor, so quote every score with its `name`, and compare scores only where the
names agree.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from genai_ray.metrics.distances import blocks
from genai_ray.storage import Store

DIMENSIONS = 64
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Extractor:
    """A trained network with the feature statistics of the images it was trained on.

    Takes uint8 images (n, size, size, channels). `classes` is None when it was trained without labels. Build it with
    `train_extractor` or `from_bytes`; it can be pickled.
    """

    size: int
    channels: int
    classes: int | None
    network: nn.Sequential
    mean: np.ndarray
    std: np.ndarray

    def features(self, images: np.ndarray) -> np.ndarray:
        """Features (n, 64) float32, with mean 0 and standard deviation 1 on the training images."""
        return ((self._codes(images) - self.mean) / self.std).astype(np.float32)

    def classify(self, images: np.ndarray) -> np.ndarray:
        """Most likely class of each image, (n,) int64, of an extractor that was trained with labels."""
        assert self.classes is not None
        with torch.inference_mode():
            logits = self.network.get_submodule("head")(torch.from_numpy(self._codes(images)))
        return logits.argmax(dim=1).numpy()

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Share of `images`, 0..1, classified as `labels` (n,)."""
        return float(np.mean(self.classify(images) == np.asarray(labels)))

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of everything that decides the features; equal after a round trip."""
        digest = sha256(repr((_FORMAT, self.size, self.channels, self.classes)).encode())
        for name, tensor in sorted(self._tensors().items()):
            array = tensor.numpy()
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    @property
    def name(self) -> str:
        """Kind, dimensions and the first digits of `digest`, such as `cnn64@1a2b3c4d`."""
        kind = "ae" if self.classes is None else "cnn"
        return f"{kind}{DIMENSIONS}@{self.digest[:8]}"

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        header = {"format": _FORMAT, "size": self.size, "channels": self.channels}
        torch.save({**header, "classes": self.classes or 0, "tensors": self._tensors()}, buffer)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Extractor":
        """Inverse of `to_bytes`; raises ValueError for the format of another version. Loads no code."""
        saved = torch.load(io.BytesIO(data), weights_only=True)
        if saved.get("format") != _FORMAT:
            reason = f"extractor file has format {saved.get('format')}, this version reads {_FORMAT}"
            raise ValueError(f"{reason}; train the extractor again")
        tensors, classes = saved["tensors"], saved["classes"] or None
        mean, std = tensors.pop("features.mean"), tensors.pop("features.std")
        network = _build(saved["size"], saved["channels"], classes)
        network.load_state_dict(tensors)
        network.eval().requires_grad_(False)
        return cls(saved["size"], saved["channels"], classes, network, mean.numpy(), std.numpy())

    def _tensors(self) -> dict[str, Tensor]:
        statistics = {"features.mean": torch.from_numpy(self.mean), "features.std": torch.from_numpy(self.std)}
        return dict(self.network.state_dict()) | statistics

    def _codes(self, images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.uint8
        assert images.shape[1:] == (self.size, self.size, self.channels), "other images than in training"
        codes = np.empty((len(images), DIMENSIONS), dtype=np.float32)
        encoder = self.network.get_submodule("encoder")
        with torch.inference_mode():
            for rows in blocks(len(images), 512):
                codes[rows] = encoder(_pixels(images[rows]))
        return codes


def train_extractor(
    images: np.ndarray, labels: np.ndarray | None, classes: int | None, *, seed: int, steps: int
) -> Extractor:
    """Train an extractor: a classifier if there are labels, else an autoencoder.

    images: (n, size, size, channels) uint8, n >= 2, size >= 8, channels 1 or 3. Use the training split only, or the
    real-versus-real comparison flatters itself.
    labels, classes: (n,) integers in 0..classes-1, and at least 2; or None for both.
    steps: optimiser steps of 128 images. 1,200 take about 20 s for 28x28 grey images on 2 CPU cores, and the time grows
    with the number of pixels.

    The result depends only on the arguments, on one machine with one thread count; torch's global random state is left
    as it was.
    """
    assert len(images) >= 2
    assert (labels is None) == (classes is None)
    size, channels = images.shape[1], images.shape[3]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = _build(size, channels, classes)
        decoder = nn.Identity() if labels is not None else _decoder(size, channels)
        _optimise(network, decoder, images, labels, seed=seed, steps=steps)
    network.eval().requires_grad_(False)

    unscaled = np.zeros(DIMENSIONS, np.float32), np.ones(DIMENSIONS, np.float32)
    raw = Extractor(size, channels, classes, network, *unscaled).features(images)
    std = np.maximum(raw.std(axis=0), 1e-6)
    return Extractor(size, channels, classes, network, raw.mean(axis=0), std)


def stored_extractor(
    store: Store, digest: str, images: np.ndarray, labels: np.ndarray | None, classes: int
) -> Extractor:
    """The extractor of a run's training images (SHA-256 `digest`), trained once and stored beside the reports. A
    classifier if there are two classes or more.
    """
    key = f"report/extractor-{digest[:8]}.pt"
    try:
        return Extractor.from_bytes(store.read(key))
    except FileNotFoundError:
        known = (labels, classes) if labels is not None and classes > 1 else (None, None)
        extractor = train_extractor(images, *known, seed=0, steps=1_200)
        store.put(key, extractor.to_bytes())
        return extractor


def _optimise(
    network: nn.Sequential, decoder: nn.Module, images: np.ndarray, labels: np.ndarray | None, *, seed: int, steps: int
) -> None:
    modules = nn.ModuleList([network, decoder]).train()
    optimiser = torch.optim.Adam(modules.parameters(), weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=5e-3, total_steps=steps)
    for chosen, shifted in _batches(images, seed=seed, steps=steps):
        pixels = _pixels(shifted)
        if labels is None:
            loss = functional.mse_loss(decoder(network(pixels)), pixels)
        else:
            loss = functional.cross_entropy(network(pixels), torch.from_numpy(labels[chosen]).long())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()


def _batches(images: np.ndarray, *, seed: int, steps: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices and randomly shifted images, every image once per pass; borders are repeated."""
    rng = np.random.Generator(np.random.Philox(seed))
    n, size = images.shape[:2]
    batch = min(128, n)
    reach = max(1, size // 14)
    passes = -(-steps * batch // n)
    order = np.concatenate([rng.permutation(n) for _ in range(passes)])
    for step in range(steps):
        chosen = order[step * batch : (step + 1) * batch]
        shift = rng.integers(-reach, reach + 1, size=(2, batch, 1))
        rows, columns = np.clip(np.arange(size) + shift, 0, size - 1)
        yield chosen, images[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]


def _build(size: int, channels: int, classes: int | None) -> nn.Sequential:
    network = nn.Sequential()
    network.add_module("encoder", _encoder(size, channels))
    if classes is not None:
        network.add_module("head", nn.Sequential(nn.ReLU(), nn.Linear(DIMENSIONS, classes)))
    return network


def _encoder(size: int, channels: int) -> nn.Sequential:
    """Images (n, channels, size, size) -> codes (n, 64), by halving down to at most 7 pixels."""
    layers: list[nn.Module] = []
    width_in, width = channels, 32
    for _ in _halvings(size):
        layers += _conv(width_in, width, stride=2)
        width_in, width = width, 64
    layers += _conv(width_in, 64, stride=1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(64 * 4 * 4, DIMENSIONS))


def _decoder(size: int, channels: int) -> nn.Sequential:
    """Codes (n, 64) -> images (n, channels, size, size), the encoder reversed."""
    layers: list[nn.Module] = [nn.Linear(DIMENSIONS, 64 * 4 * 4), nn.Unflatten(1, (64, 4, 4))]
    width_in = 64
    for side in reversed(_halvings(size)):
        layers += [nn.Upsample(size=(side, side)), *_conv(width_in, 32, stride=1)]
        width_in = 32
    return nn.Sequential(*layers, nn.Upsample(size=(size, size)), nn.Conv2d(32, channels, 3, padding=1))


def _halvings(size: int) -> list[int]:
    """Side lengths after each halving: 28 -> [14, 7]."""
    sides = []
    while size > 7:
        size = (size + 1) // 2
        sides.append(size)
    return sides


def _conv(width_in: int, width: int, *, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(width_in, width, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]


def _pixels(images_NHWC: np.ndarray) -> Tensor:
    # Copies, as torch warns about sharing read-only memory such as np.frombuffer's or Ray's.
    return torch.tensor(images_NHWC).permute(0, 3, 1, 2).float() / 127.5 - 1
