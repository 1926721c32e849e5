"""The samples of a shard, before they are written and after they are read."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genai_ray.image.codec import ImageCodec
from genai_ray.labels import ID_DIGITS, produce_id

#: Encoding -> suffix of its files; `raw` is no file format.
SUFFIXES = {"png": "png", "jpeg": "jpg", "webp": "webp"}

#: Names of columns in the files of every sink: no further column may have them.
RESERVED = frozenset({"id", "label", "image"})


@dataclass(frozen=True)
class ImageRows:
    """What a shard holds: samples start..start+N.

    images: (N, H, W, C) uint8. labels: (N,) int64, or None without classes.
    provenance: goes into every Parquet file as it is.
    quality: of jpeg and webp, 1..100.
    producer: name or code of the provider; given, each file carries the label of GB 45438-2025. extra: N rows of
    further columns, none of them named as one of ours.
    """

    index: int
    start: int
    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    codec: ImageCodec
    encoding: str
    provenance: dict[str, Any]
    quality: int = 90
    producer: str | None = None
    extra: pa.Table | None = None

    @property
    def attempts(self) -> int:
        """Samples drawn; images are never rejected."""
        return len(self.images)

    @property
    def ids(self) -> range:
        return range(self.start, self.start + len(self.images))

    @property
    def keys(self) -> list[str]:
        """The ids as written in names of files and in labels."""
        return [f"{i:0{ID_DIGITS}d}" for i in self.ids]

    @property
    def part_id(self) -> str:
        """The unique id of a file that holds the whole shard."""
        return produce_id(self.provenance, f"part-{self.index:06d}")


@dataclass(frozen=True)
class ImageRead:
    """What a file holds: ids (N,), labels (N,) or None, and the images, encoded or as raw pixels."""

    ids: NDArray[np.int64]
    labels: NDArray[np.int64] | None
    cells: list[bytes]
    raw: bool = False

    @property
    def count(self) -> int:
        return len(self.cells)

    @property
    def labelled(self) -> list[bytes]:
        return [] if self.raw else self.cells


def class_folders(codec: ImageCodec) -> list[str]:
    """A folder name for each class: letters, digits and `._-`, distinct."""
    names = [re.sub(r"[^\w.-]+", "-", name) for name in codec.classes or ()]
    if len(set(names)) < len(names) or any(not name.strip(".") for name in names):
        names = [f"{i}-{name}" for i, name in enumerate(names)]
    return names
