"""The items of a folder of images or of Parquet: names, sizes, labels and content.

An item is an image file or a row of Parquet. Items are numbered in the order of object names and rows; those of a split
that is held out come last.
"""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from genai_ray.image.cells import parquet_items, parquet_source
from genai_ray.image.items import Item, Labels, Pieces, Source, check_root, listed, root_error, stamp, store_of
from genai_ray.image.listing import choose_images, class_of, plain_names, readable, without_suffix
from genai_ray.image.spec import ImageDataSpec

_READERS = 16
#: First bytes of PNG, JPEG, GIF, TIFF and JPEG 2000; WebP has marks at two offsets.
_BEGINNINGS = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"GIF87a",
    b"GIF89a",
    b"II*\x00",
    b"MM\x00*",
    b"\x00\x00\x00\x0cjP  \r\n\x87\n",
)


def list_source(spec: ImageDataSpec) -> Source:
    """List a folder or Parquet; of its objects only footers are read.

    Raises:
        UserError: for a source that is missing, empty, or whose files do not fit together.
    """
    check_root(spec)
    return (_folder if spec.source == "folder" else parquet_source)(spec)


def items(spec: ImageDataSpec, pieces: Pieces) -> Iterator[Item]:
    """The items of some pieces in order. Raises UserError for unreadable Parquet, `Item.read` for an image."""
    if spec.source == "folder":
        yield from (Item(readable(key), partial(_read_file, spec, key)) for (key,) in pieces)
    else:
        for piece in pieces:
            yield from parquet_items(spec, piece)


def open_image(content: bytes, shape: tuple[int, ...] | None) -> Image.Image:
    """An image whose size is known and whose pixels may not be decoded yet; raises anything if it is none."""
    return raw_image(content, shape) if shape else Image.open(io.BytesIO(content))


@lru_cache(maxsize=1_000_000)
def begins_as_image(uri: str, key: str, version: str) -> bool:
    """Whether an object begins as an image of a format that a few bytes tell. version: see `Store.listing`."""
    try:
        prefix = store_of(uri).read_range(key, 0, max(map(len, _BEGINNINGS)))
    except (FileNotFoundError, PermissionError):
        return False
    return prefix.startswith(_BEGINNINGS) or (prefix[:4] == b"RIFF" and prefix[8:12] == b"WEBP")


def raw_image(content: bytes, shape: tuple[int, ...]) -> Image.Image:
    """An image of raw pixels: uint8, or float32 in 0..1.

    Raises:
        ValueError: for another number of bytes, and for floats that are NaN or outside 0..1.
    """
    count = int(np.prod(shape))
    if len(content) == 4 * count:
        floats = np.frombuffer(content, "<f4")
        wrong = ~((floats >= 0) & (floats <= 1))  # true of NaN as well
        if wrong.any():
            raise ValueError(f"{wrong.sum()} of {count} floats are not in 0..1, the first is {floats[wrong][0]}")
        content = np.rint(floats * 255).astype(np.uint8).tobytes()
    return Image.fromarray(np.frombuffer(content, np.uint8).reshape(shape).squeeze())


def _folder(spec: ImageDataSpec) -> Source:
    objects, lost = listed(spec, store_of(str(spec.root)))
    uri = str(spec.root)

    def begins(key: str) -> bool:
        return begins_as_image(uri, key, objects[key][1])

    with ThreadPoolExecutor(_READERS) as pool:  # so that the answers are known when they are asked for
        list(pool.map(begins, without_suffix(objects)))
    chosen = choose_images(spec, objects, lost, begins)
    keys, trained = chosen.keys, len(chosen.train)
    folders = plain_names([class_of(key, chosen.class_depth) for key in keys])
    labelled = folders[0] is not None

    def labels(kept: NDArray[np.bool_]) -> Labels:
        if not labelled:
            return None, None
        names = tuple(sorted({name for name in folders if name is not None}))
        index = {name: i for i, name in enumerate(names)}
        return np.array([-1 if name is None else index[name] for name in folders], np.int64)[kept], names

    nbytes = np.array([objects[key][0] for key in keys], np.int64)
    pieces = [[key] for key in keys]
    return Source(
        stamp=stamp(objects, keys),
        nbytes=nbytes,
        pieces=lambda start, stop: pieces[start:stop],
        labelled=labelled,
        labels=labels,
        columns=(),
        trained=None if chosen.holdout is None else trained,
        chosen=chosen,
    )


def _read_file(spec: ImageDataSpec, key: str) -> bytes:
    try:
        return store_of(str(spec.root)).read(key)
    except (FileNotFoundError, PermissionError) as error:
        rule = f"must stay as it was, and be readable on every node ({error})"
        remedy = "Restore the file or its rights; on several nodes use an s3:// URI or a shared folder."
        raise root_error(spec, rule, remedy) from None
