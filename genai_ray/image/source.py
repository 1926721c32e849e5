"""Real images: arrays of one shape, in memory or in the spool of a run, split into training samples and a holdout.

Shapes: N images, H = W = size pixels, C = 1 or 3 channels; arrays are NHWC, uint8, 0..255.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from genai_ray import rng
from genai_ray.errors import UserError
from genai_ray.image.codec import ImageCodec
from genai_ray.image.files import list_source
from genai_ray.image.pixels import DARK
from genai_ray.image.spec import ImageDataSpec, ImageRun
from genai_ray.image.spool import Rows, Spool, open_spool, train_and_holdout
from genai_ray.image.summary import share_of, summary_of
from genai_ray.modality import Json
from genai_ray.order import Blocks, rows_at, split
from genai_ray.spec import Spec
from genai_ray.storage import Store

_IN_MEMORY = 4_000_000_000  # bytes of images that evaluation reads; beyond, it reads a random choice
_CHOICE = 10_000  # training images, and as many of the holdout
_CHOICE_BYTES = 2_000_000_000
_LEAST_CHOICE = 1_000

Images = TypeVar("Images", NDArray[np.uint8], Rows, covariant=True)


@dataclass(frozen=True)
class ImageData(Generic[Images]):
    """Real images, split into training samples and a holdout by the data alone, so that runs with different seeds are
    evaluated alike. blocks: the order of a spool that is larger than the cache of a node. known_digest: of a spool.
    summary: see `Data`.
    """

    codec: ImageCodec
    train_images: Images
    train_labels: NDArray[np.int64] | None
    holdout_images: Images
    holdout_labels: NDArray[np.int64] | None
    skipped: tuple[str, ...] = ()
    blocks: Blocks | None = None
    known_digest: str = ""
    summary: Json = field(default_factory=Json)

    @property
    def n(self) -> int:
        return len(self.train_images)

    @property
    def holdout_n(self) -> int:
        return len(self.holdout_images)

    @property
    def digest(self) -> str:
        """SHA-256 of the training images and labels."""
        return self.known_digest or self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(self.train_images[:].tobytes())
        if self.train_labels is not None:
            digest.update(self.train_labels.tobytes())
        return digest.hexdigest()

    def at(self, seed: int, start: int, stop: int) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
        """Images (N, H, W, C) and labels (N,); see `Data.at`."""
        if self.blocks is None:
            rows = rows_at(seed, start, stop, self.n)
        else:
            rows = self.blocks.rows_at(seed, start, stop)
            assert isinstance(self.train_images, Rows)
            self.train_images.shards.fetch_ahead(self.blocks.next_window(seed, stop - 1))
        # Indexing copies, so the batch is writable though its source is not.
        labels = None if self.train_labels is None else self.train_labels[rows]
        return self.train_images[rows], labels


Arrays = ImageData[NDArray[np.uint8]]
Spooled = ImageData[Rows]


def load(spec: Spec) -> Arrays | Spooled:
    assert isinstance(spec, ImageRun)
    data = load_images(
        spec.data, Store(spec.run_uri), conditional=spec.model.conditional, on_cluster=spec.train.workers != 0
    )
    _check_variety(spec, data)
    return data


def _check_variety(spec: ImageRun, data: Arrays | Spooled) -> None:
    """Raises:
    UserError: if there is nothing to learn: images that are all alike or black, or a condition with one class.
    """
    images, at_once = data.train_images, 1024
    first = images[:1]
    if all(bool((images[i : i + at_once] == first).all()) for i in range(0, len(images), at_once)):
        raise UserError(
            "data.source",
            spec.data.source,
            f"has {len(images)} training images that are all the same at {data.codec.size}x{data.codec.size}, so "
            "that there is nothing to learn",
            "Check data.root, data.size and the files.",
        )
    brightest = max(int(images[i : i + at_once].max()) for i in range(0, len(images), at_once))
    if brightest < DARK and spec.data.depth == "auto" and isinstance(data.train_images, Rows):
        raise UserError(
            "data.depth",
            "auto",
            f"takes 255 for white, and the brightest value of the training images is {brightest}: they are all black",
            "Set data.depth=range to make the brightest white, or data.depth=8 to learn the images as they are.",
        )
    if spec.model.conditional and data.codec.label_width < 2:
        raise UserError(
            "model.conditional",
            True,
            f"needs two classes or more, and the source has one ({', '.join(data.codec.classes or ())})",
            "Set model.conditional=false, or name the folder above those of the classes in data.root.",
        )


def load_images(
    spec: ImageDataSpec, run: Store, *, conditional: bool = False, on_cluster: bool = False
) -> Arrays | Spooled:
    """Read a small source into memory, or open the spool that the run `run` has of a folder or Parquet.

    Raises:
        UserError: for a source that is missing, empty, corrupt, or without the classes of a conditional model.
    """
    if (small := in_memory_source(spec)) is not None:
        return small  # all of which have labels
    source = list_source(spec)
    if conditional and not source.labelled:
        remedy = "Put each class in a sub-folder, or set model.conditional=false."
        if spec.source == "parquet":
            columns = ", ".join(source.columns)
            remedy = f"Set data.label_column to one of {columns}; or set model.conditional=false."
        raise UserError("model.conditional", True, f"needs labels, but {spec.root} has none", remedy)
    return _spooled(spec, open_spool(spec, source, run, on_cluster=on_cluster))


def in_memory_source(spec: ImageDataSpec) -> Arrays | None:
    """A source that is small enough to stay in memory; None for a folder and Parquet."""
    load = _SOURCES.get(spec.source)
    return None if load is None else load(spec)


def in_memory(data: Arrays | Spooled) -> Arrays:
    """The images that evaluation reads, as arrays: all, or a fixed random choice if they are too many."""
    train, holdout = data.train_images, data.holdout_images
    if isinstance(train, np.ndarray) or isinstance(holdout, np.ndarray):
        return cast(Arrays, data)
    image_bytes = data.codec.size**2 * data.codec.channels
    if image_bytes * (len(train) + len(holdout)) <= _IN_MEMORY:
        arrays = data.train_images[:], data.train_labels, data.holdout_images[:], data.holdout_labels
    else:
        count = min(_CHOICE, max(_LEAST_CHOICE, _CHOICE_BYTES // image_bytes))
        arrays = *_choice(train, data.train_labels, count), *_choice(holdout, data.holdout_labels, count)
    return ImageData(data.codec, *arrays, data.skipped, known_digest=data.digest, summary=data.summary)


def _choice(
    images: Rows, labels: NDArray[np.int64] | None, count: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    n = len(images)
    chosen = np.sort(rng.permute(0, rng.Stream.EVALUATE, np.arange(min(n, count)), n))
    return images.shards.read_few(images.index[chosen]), None if labels is None else labels[chosen]


# --- sources -------------------------------------------------------------------------------------


def _spooled(spec: ImageDataSpec, spool: Spool) -> Spooled:
    shards, labels = spool.shards, spool.labels
    train, holdout = train_and_holdout(spec, len(shards), spool.trained, labels)
    train_labels, holdout_labels = (None if labels is None else labels[rows] for rows in (train, holdout))
    blocks, held = None, share_of(spec)
    ends = np.searchsorted(train, shards.ends)
    if spool.trained is not None:
        ends = ends[: int(np.searchsorted(ends, len(train))) + 1]  # the shards after them are held out
        held = "the split " + next(name for name, use in spool.found["splits"].items() if use == "holdout")
    if shards.window is not None:
        blocks = Blocks(ends, shards.window)
    return ImageData(
        shards.codec,
        Rows(shards, train),
        train_labels,
        Rows(shards, holdout),
        holdout_labels,
        spool.skipped,
        blocks,
        spool.digest,
        summary_of(shards.codec.classes, labels, len(train) + len(holdout), f"{len(holdout):,}, {held}", spool.found),
    )


def _digits(spec: ImageDataSpec) -> Arrays:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    # Pixels of the bundled digits are 0..16.
    grey = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return _split(spec, _reshape(spec, grey), np.asarray(labels, np.int64), tuple("0123456789"))


def _torchvision(dataset: str, archives: str) -> Callable[[ImageDataSpec], Arrays]:
    def load(spec: ImageDataSpec) -> Arrays:
        halves = [_torchvision_part(spec, dataset, archives, train) for train in (True, False)]
        (images, labels), (test_images, test_labels) = (
            (_reshape(spec, np.asarray(p.data)), np.asarray(p.targets, np.int64)) for p in halves
        )
        # MNIST's are "0 - zero", ...; users type the number alone.
        classes = tuple(name.split(" - ")[0] for name in halves[0].classes)
        if spec.holdout is not None:
            return _split(spec, images, labels, classes)
        arrays = images, labels, test_images, test_labels
        return _arrays(classes, arrays, "the split test")

    return load


def _torchvision_part(spec: ImageDataSpec, dataset: str, archives: str, train: bool) -> Any:
    """A torchvision data set from `data.root` (unpacked or as archives), else downloaded."""
    from torchvision import datasets

    open_dataset = getattr(datasets, dataset)
    cache = Path.home() / ".cache" / "genai_ray"
    root = Path(spec.root).expanduser() if spec.root else cache
    try:
        return open_dataset(root, train=train, download=False)
    except RuntimeError:
        packed = sorted(root.glob(archives))
    try:
        if packed:
            with tempfile.TemporaryDirectory() as staged:
                for archive in packed:
                    copy = Path(staged) / archive.relative_to(root)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(archive, copy)
                # Checks the MD5 of the archives and unpacks them; nothing is downloaded.
                return open_dataset(staged, train=train, download=True)
        if spec.download:
            return open_dataset(root, train=train, download=True)
        reason = "it is not there and data.download is false"
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
    rule = f"must hold {dataset} ({archives}): {reason}"
    raise UserError("data.root", spec.root, rule, "Put the publisher's archives there, or allow the download.")


_SOURCES: dict[str, Callable[[ImageDataSpec], Arrays]] = {
    "digits": _digits,
    "mnist": _torchvision("MNIST", "MNIST/raw/*.gz"),
    "fashion_mnist": _torchvision("FashionMNIST", "FashionMNIST/raw/*.gz"),
    "cifar10": _torchvision("CIFAR10", "cifar-10-python.tar.gz"),
}


def _reshape(spec: ImageDataSpec, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Arrays of one size, (N, H, W) or NHWC, converted to the size and channels of the spec."""
    images = images.reshape(*images.shape[:3], -1)
    size, channels = spec.size or images.shape[1], spec.channels or images.shape[3]
    if (size, channels) == (images.shape[1], images.shape[3]):
        return np.ascontiguousarray(images)
    codec = ImageCodec(size, channels, None)
    return np.stack([codec.encode(Image.fromarray(i.squeeze())) for i in images])


def _split(
    spec: ImageDataSpec, images: NDArray[np.uint8], labels: NDArray[np.int64], classes: tuple[str, ...]
) -> Arrays:
    train, holdout = split(spec.holdout, len(images), "image")
    arrays = images[train], labels[train], images[holdout], labels[holdout]
    return _arrays(classes, arrays, share_of(spec))


def _arrays(
    classes: tuple[str, ...],
    arrays: tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], NDArray[np.int64]],
    held: str,
) -> Arrays:
    """Images and labels that train, and those that are held out."""
    images, labels, held_images, held_labels = arrays
    codec = ImageCodec(images.shape[1], images.shape[3], classes)
    samples = len(images) + len(held_images)
    all_labels = np.concatenate([labels, held_labels])
    found = {"sizes": {f"{codec.size}x{codec.size}": samples}}
    about = summary_of(classes, all_labels, samples, f"{len(held_images):,}, {held}", found)
    return ImageData(codec, *arrays, summary=about)
