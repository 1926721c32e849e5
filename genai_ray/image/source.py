"""Images: from digits, torchvision, folders and Parquet to uint8 arrays of one shape.

Shapes: N images, H = W = size pixels, C = 1 or 3 channels; arrays are NHWC, uint8, 0..255.
"""

import hashlib
import io
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from genai_ray.errors import UserError
from genai_ray.image.codec import GREY_MODES, SIZES, ImageCodec
from genai_ray.image.spec import ImageDataSpec, ImageRun
from genai_ray.order import rows_at, split
from genai_ray.spec import Spec
from genai_ray.storage import Store

if TYPE_CHECKING:
    from genai_ray.image.stream import ImageStream

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
#: What Pillow raises for content that is not a whole image.
CORRUPT = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class ImageData:
    """Real images, split once and for all into what trains and what judges.

    The split depends on the data alone, so runs with different seeds are judged alike.
    """

    codec: ImageCodec
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64] | None
    holdout_images: NDArray[np.uint8]
    holdout_labels: NDArray[np.int64] | None
    skipped: tuple[str, ...] = ()

    resident: ClassVar[bool] = True

    @property
    def n(self) -> int:
        """Training samples of an epoch."""
        return len(self.train_images)

    @property
    def holdout_n(self) -> int:
        return len(self.holdout_images)

    @property
    def digest(self) -> str:
        """SHA-256 of the training images and labels."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(self.train_images.tobytes())
        if self.train_labels is not None:
            digest.update(self.train_labels.tobytes())
        return digest.hexdigest()

    def at(self, seed: int, start: int, stop: int) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
        """Images (N, H, W, C) and labels (N,) at places of the line; see `Data.at`."""
        rows = rows_at(seed, start, stop, self.n)
        # Fancy indexing copies, so the batch is writable though the shared array is not.
        labels = None if self.train_labels is None else self.train_labels[rows]
        return self.train_images[rows], labels


def load(spec: Spec) -> "ImageData | ImageStream":
    """Read the source that a spec names; see `load_images`."""
    assert isinstance(spec, ImageRun)
    return load_images(spec.data, conditional=spec.model.conditional)


def load_images(spec: ImageDataSpec, *, conditional: bool = False) -> "ImageData | ImageStream":
    """Read the source that the spec names, or see what is there if it is to be streamed.

    Args:
        spec: the `data` section.
        conditional: whether the model will ask for classes.

    Raises:
        UserError: for a source that is missing, empty, corrupt, or without the classes asked for.
    """
    from genai_ray.image import stream  # which is made of the parts below

    data = stream.open_stream(spec) if spec.source in ("folder", "parquet") else None
    data = data or _SOURCES[spec.source](spec)
    if conditional and data.codec.classes is None:
        raise UserError(
            "model.conditional",
            True,
            f"needs labels, but {spec.root or spec.source} has none",
            "Put each class in a sub-folder (or a label column), or set model.conditional=false.",
        )
    return data


# --- sources -------------------------------------------------------------------------------------


def _digits(spec: ImageDataSpec) -> ImageData:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    # The bundled digits count 0..16 in each pixel.
    grey = np.rint(images * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    names = tuple(str(i) for i in range(10))
    return _split(spec, _reshape(spec, grey), np.asarray(labels, np.int64), names)


def _torchvision(dataset: str, archives: str) -> Callable[[ImageDataSpec], ImageData]:
    def load(spec: ImageDataSpec) -> ImageData:
        parts = [_torchvision_part(spec, dataset, archives, train) for train in (True, False)]
        (images, labels), (test_images, test_labels) = (
            (_reshape(spec, np.asarray(p.data)), np.asarray(p.targets, np.int64)) for p in parts
        )
        # MNIST's are "0 - zero", ...; the number alone is what people type.
        classes = tuple(name.split(" - ")[0] for name in parts[0].classes)
        if spec.holdout is not None:
            return _split(spec, images, labels, classes)
        codec = ImageCodec(images.shape[1], images.shape[3], classes)
        return ImageData(codec, images, labels, test_images, test_labels)

    return load


def _torchvision_part(spec: ImageDataSpec, dataset: str, archives: str, train: bool) -> Any:
    """A torchvision data set from `data.root` (unpacked or as archives), else downloaded."""
    from torchvision import datasets

    make = getattr(datasets, dataset)
    cache = Path.home() / ".cache" / "genai_ray"
    root = Path(spec.root).expanduser() if spec.root else cache
    try:
        return make(root, train=train, download=False)
    except RuntimeError:
        packed = sorted(root.glob(archives))
    try:
        if packed:
            with tempfile.TemporaryDirectory() as staged:
                for archive in packed:
                    copy = Path(staged) / archive.relative_to(root)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(archive, copy)
                # With the archives in place this checks their MD5 and unpacks; nothing is fetched.
                return make(staged, train=train, download=True)
        if spec.download:
            return make(root, train=train, download=True)
        reason = "it is not there and data.download is false"
    except (RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
    raise UserError(
        "data.root",
        spec.root,
        f"must hold {dataset} ({archives}): {reason}",
        "Put the publisher's archives there, or allow the download.",
    )


def folder_classes(spec: ImageDataSpec, keys: Sequence[str]) -> tuple[str, ...] | None:
    """The sub-folders that images lie in; None where images lie in the folder itself.

    Raises:
        UserError: if there is no image, or there are both kinds.
    """
    if not keys:
        raise UserError(
            "data.root",
            spec.root,
            f"must hold images ({', '.join(SUFFIXES)}), and holds none",
            "Check the path; classes are sub-folders.",
        )
    nested = [k for k in keys if "/" in k]
    if nested and len(nested) < len(keys):
        loose = next(k for k in keys if "/" not in k)
        raise UserError(
            "data.root",
            spec.root,
            f"has images both beside ({loose}) and in ({nested[0]}) sub-folders",
            "Put every image in the sub-folder of its class, or none.",
        )
    return tuple(sorted({k.split("/")[0] for k in keys})) if nested else None


def _folder(spec: ImageDataSpec) -> ImageData:
    assert spec.root is not None
    store = Store(spec.root)
    keys = [k for k in existing(spec, store) if k.lower().endswith(SUFFIXES)]
    classes = folder_classes(spec, keys)
    with ThreadPoolExecutor(16) as pool:
        contents = pool.map(store.read, keys)
        named = zip(keys, contents, strict=True)
        images, kept, skipped = _decode(spec, named, decode_image)
    labels = None
    if classes:
        index = {name: i for i, name in enumerate(classes)}
        labels = np.array([index[keys[i].split("/")[0]] for i in kept], np.int64)
    return _split(spec, _encode(spec, images), labels, classes, skipped)


def parquet_root(spec: ImageDataSpec) -> tuple[Store, str]:
    """The store that Parquet files are in, and the name of the only one to read; empty: all."""
    assert spec.root is not None
    if not spec.root.endswith(".parquet"):
        return Store(spec.root), ""
    root, _, name = spec.root.rpartition("/")
    return Store(root or "."), name


def no_parquet(spec: ImageDataSpec) -> UserError:
    return UserError("data.root", spec.root, "must hold .parquet files, and holds none", "Check the path.")


def unreadable(spec: ImageDataSpec, error: Exception) -> UserError:
    return UserError("data.root", spec.root, f"must be readable Parquet ({error})", "Check the file.")


def raw_shape(spec: ImageDataSpec, schema: pa.Schema, key: str) -> tuple[int, ...] | None:
    """(H, W, C) of the pixels in the image column; None if it holds image files.

    Raises:
        UserError: if there is no such column, or no images are in it.
    """
    columns = schema.names
    if spec.image_column not in columns:
        raise UserError(
            "data.image_column",
            spec.image_column,
            f"is not a column of {key}",
            f"Columns: {', '.join(columns)}.",
        )
    field = schema.field(spec.image_column)
    kind = field.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    raw = pa.types.is_fixed_size_binary(kind) and b"shape" in (field.metadata or {})
    if not (raw or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError(
            "data.image_column",
            spec.image_column,
            f"must hold images, and holds {field.type}",
            f"Columns: {', '.join(columns)}.",
        )
    return tuple(json.loads(field.metadata[b"shape"])) if raw else None


def raw_image(content: bytes | None, shape: tuple[int, ...]) -> Image.Image:
    """Pixels as they lie in memory: uint8, or float32 in 0..1.

    Raises:
        ValueError: for another number of bytes, and for floats that are NaN or outside 0..1.
    """
    content, count = content or b"", int(np.prod(shape))
    if len(content) == 4 * count:
        floats = np.frombuffer(content, "<f4")
        wrong = ~((floats >= 0) & (floats <= 1))  # true of NaN as well
        if wrong.any():
            raise ValueError(
                f"{wrong.sum()} of {count} floats are not in 0..1, the first is {floats[wrong][0]}"
            )
        content = np.rint(floats * 255).astype(np.uint8).tobytes()
    return Image.fromarray(np.frombuffer(content, np.uint8).reshape(shape).squeeze())


def _parquet(spec: ImageDataSpec) -> ImageData:
    store, name = parquet_root(spec)
    keys = [name] if name else [k for k in existing(spec, store) if k.endswith(".parquet")]
    if not keys:
        raise no_parquet(spec)
    try:
        tables = [pq.read_table(io.BytesIO(store.read(k))) for k in keys]
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise unreadable(spec, error) from None
    columns = tables[0].schema.names
    shape = raw_shape(spec, tables[0].schema, keys[0])
    cells = [c for t in tables for c in t.column(spec.image_column).to_pylist()]
    named = ((f"row {i}", c["bytes"] if isinstance(c, dict) else c) for i, c in enumerate(cells))
    decode = partial(raw_image, shape=shape) if shape else decode_image
    images, kept, skipped = _decode(spec, named, decode)
    labels, classes = None, None
    if spec.label_column in columns:
        values = [v for t in tables for v in t.column(spec.label_column).to_pylist()]
        labels, classes = _label_column(spec, tables[0].schema, [values[i] for i in kept])
    return _split(spec, _encode(spec, images), labels, classes, skipped)


_SOURCES: dict[str, Callable[[ImageDataSpec], ImageData]] = {
    "digits": _digits,
    "mnist": _torchvision("MNIST", "MNIST/raw/*.gz"),
    "fashion_mnist": _torchvision("FashionMNIST", "FashionMNIST/raw/*.gz"),
    "cifar10": _torchvision("CIFAR10", "cifar-10-python.tar.gz"),
    "folder": _folder,
    "parquet": _parquet,
}


# --- steps that sources share --------------------------------------------------------------------


def existing(spec: ImageDataSpec, store: Store) -> list[str]:
    """Sorted keys of a folder, which must be there."""
    if not store.uri.startswith("s3://") and not Path(store.uri).is_dir():
        raise UserError("data.root", spec.root, "must be a folder that exists", "Check the path.")
    return store.list()


def decode_image(content: bytes | None) -> Image.Image:
    """An image file, read to its last pixel; raises one of CORRUPT."""
    image = Image.open(io.BytesIO(content or b""))
    image.load()
    return image


def corrupt(spec: ImageDataSpec, name: str, error: Exception) -> UserError:
    return UserError(
        "data.root",
        f"{spec.root}: {name}",
        f"must be an image that decodes ({error})",
        "Remove it, or set data.on_corrupt=skip to leave such files out.",
    )


def nothing_decodes(spec: ImageDataSpec) -> UserError:
    return UserError("data.root", spec.root, "holds no image that decodes", "Check the files.")


def _decode(
    spec: ImageDataSpec,
    named: Iterable[tuple[str, bytes | None]],
    decode: Callable[[bytes | None], Image.Image],
) -> tuple[list[Image.Image], list[int], tuple[str, ...]]:
    """The images that decode, their positions, and the names of those that do not."""
    images, kept, skipped = [], [], []
    for position, (name, content) in enumerate(named):
        try:
            image = decode(content)
        except CORRUPT as error:
            if spec.on_corrupt == "fail":
                raise corrupt(spec, name, error) from None
            skipped.append(name)
        else:
            images.append(image)
            kept.append(position)
    if not images:
        raise nothing_decodes(spec)
    return images, kept, tuple(skipped)


def common_codec(spec: ImageDataSpec, sizes: set[tuple[int, int]], modes: set[str]) -> ImageCodec:
    """The codec for images of these sizes and modes, without classes.

    Raises:
        UserError: if the spec names no size, and they have not one that can be taken.
    """
    size = spec.size
    if size is None:
        width, height = next(iter(sizes))
        if len(sizes) > 1 or width != height or width not in SIZES:
            shown = ", ".join(f"{w}x{h}" for w, h in sorted(sizes)[:4])
            raise UserError(
                "data.size",
                None,
                f"is needed, since the images measure {shown}{', …' if len(sizes) > 4 else ''}",
                f"Choose one of {SIZES}.",
            )
        size = width
    return ImageCodec(size, spec.channels or (1 if modes <= set(GREY_MODES) else 3), None)


def _encode(spec: ImageDataSpec, images: Sequence[Image.Image]) -> NDArray[np.uint8]:
    codec = common_codec(spec, {i.size for i in images}, {i.mode for i in images})
    return np.stack([codec.encode(image) for image in images])


def _reshape(spec: ImageDataSpec, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Arrays of one size, (N, H, W) or NHWC, brought to the size and channels of the spec."""
    images = images.reshape(*images.shape[:3], -1)
    size, channels = spec.size or images.shape[1], spec.channels or images.shape[3]
    if (size, channels) == (images.shape[1], images.shape[3]):
        return np.ascontiguousarray(images)
    codec = ImageCodec(size, channels, None)
    return np.stack([codec.encode(Image.fromarray(i.squeeze())) for i in images])


def _label_column(
    spec: ImageDataSpec, schema: pa.Schema, values: list[Any]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    if any(v is None for v in values):
        raise empty_label(spec)
    if (names := class_names(spec, schema)) is not None:
        return np.array(values, np.int64), names
    distinct = sorted(set(values))
    index = {value: i for i, value in enumerate(distinct)}
    return np.array([index[v] for v in values], np.int64), tuple(str(v) for v in distinct)


def empty_label(spec: ImageDataSpec) -> UserError:
    return UserError(
        "data.label_column", spec.label_column, "has empty cells", "Fill them, or name another column."
    )


def class_names(spec: ImageDataSpec, schema: pa.Schema) -> tuple[str, ...] | None:
    """Names of the numbers in the label column, where Hugging Face `datasets` noted them."""
    hugging_face = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = hugging_face.get("info", {}).get("features", {}).get(spec.label_column, {})
    return tuple(feature["names"]) if "names" in feature else None


def _split(
    spec: ImageDataSpec,
    images: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    classes: tuple[str, ...] | None,
    skipped: tuple[str, ...] = (),
) -> ImageData:
    train, holdout = split(spec.holdout, len(images), "image")
    return ImageData(
        ImageCodec(images.shape[1], images.shape[3], classes),
        images[train],
        None if labels is None else labels[train],
        images[holdout],
        None if labels is None else labels[holdout],
        skipped,
    )
