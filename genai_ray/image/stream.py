"""Images larger than memory: what is where, the order it is shown in, and how a part is decoded.

Nothing here knows Ray: `genai_ray.image.ingest` calls these functions in tasks. A sample is known by its
number, in the order of object names and rows. A position counts the samples shown since the first
step of training, epoch after epoch; which sample stands at a position depends on the seed and on
the names, sizes and footers of the files alone.

A folder is shown in the order in which training shows it from memory. Parquet can only be read by
row groups, so there the row groups of an epoch are shuffled, and then the rows within a window of
several row groups: each row group is read once an epoch.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from genai_ray import rng
from genai_ray.errors import UserError
from genai_ray.image.codec import GREY_MODES, SIZES, ImageCodec
from genai_ray.image.source import (
    CORRUPT,
    SUFFIXES,
    class_names,
    common_codec,
    corrupt,
    decode_image,
    empty_label,
    existing,
    folder_classes,
    no_parquet,
    nothing_decodes,
    parquet_root,
    raw_image,
    raw_shape,
    unreadable,
)
from genai_ray.image.spec import ImageDataSpec
from genai_ray.order import split
from genai_ray.storage import Store

#: Of the training images, and of those held out, that are kept for measurements.
SAMPLE = 10_000
_SAMPLE_GROUPS = 32  # row groups that a sample is drawn from, at least
_HEADS = 256  # images whose size and colours are looked at before anything is decoded
_HEAD_GROUPS = 8
_WINDOW_ROWS = 4096
_WINDOW_GROUPS = 4
_WINDOW_BYTES = 256 << 20  # a window is read as a whole, so few large images make a small one
_FIRST_ROWS = 64
_SUBSTITUTES = 1000  # tried before a source is taken to be broken
_READ_THREADS = 16


class CorruptImageWarning(UserWarning):
    """An image was left out of training, and another stands in its place."""


@dataclass(frozen=True, eq=False)
class FolderIndex:
    """Image files. names: their keys, UTF-8, one after another; ends: (N,) where each key ends.

    labels: (N,) numbers of the classes, or None. digest: SHA-256 of names and sizes.
    """

    names: NDArray[np.uint8]
    ends: NDArray[np.int64]
    labels: NDArray[np.int32] | None
    digest: str

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, sample: int) -> str:
        start = self.ends[sample - 1] if sample else 0
        return self.names[start : self.ends[sample]].tobytes().decode()

    def read(
        self, spec: ImageDataSpec, samples: NDArray[np.int64]
    ) -> tuple[pa.LargeBinaryArray, NDArray[np.int64] | None]:
        """Files and labels of some samples.

        Raises:
            UserError: naming a file that is not there.
        """
        store = _store(str(spec.root))
        try:
            with ThreadPoolExecutor(_READ_THREADS) as pool:
                contents = list(pool.map(lambda i: store.read(self.name(i)), samples))
        except FileNotFoundError as error:
            raise UserError(
                "data.root",
                spec.root,
                f"must stay as it was, and be seen by every node ({error})",
                "Restore the file; on several nodes use an s3:// URI or a shared folder.",
            ) from None
        labels = None if self.labels is None else self.labels[samples].astype(np.int64)
        return pa.array(contents, pa.large_binary()), labels

    def parts(self, samples: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Ascending samples cut into parts that are best read together."""
        return np.split(samples, range(_HEADS, len(samples), _HEADS))


@dataclass(frozen=True, eq=False)
class ParquetIndex:
    """Row groups, G of them, in the order of file names.

    files: key and bytes of each file. file, group: (G,) the file of a row group, and its number
    there. ends: (G,) rows up to and with it. nbytes: (G,) of its images. column: the path of the
    images in the schema. shape: (H, W, C) of raw pixels, None for image files. values: the labels
    of the classes in order, None where labels are the numbers of classes. labelled: whether there
    are any. digest: SHA-256 of names, sizes, row groups and values.
    """

    files: tuple[tuple[str, int], ...]
    file: NDArray[np.int32]
    group: NDArray[np.int32]
    ends: NDArray[np.int64]
    nbytes: NDArray[np.int64]
    column: str
    shape: tuple[int, ...] | None
    values: tuple[Any, ...] | None
    labelled: bool
    digest: str

    def __len__(self) -> int:
        return int(self.ends[-1])

    def name(self, sample: int) -> str:
        group = int(self.group_of(np.array([sample]))[0])
        same_file = np.flatnonzero(self.file == self.file[group])[0]
        row = sample - (self.ends[same_file - 1] if same_file else 0)
        return f"{self.files[self.file[group]][0]} row {row}"

    def group_of(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self.ends, samples, side="right")

    def read(
        self, spec: ImageDataSpec, samples: NDArray[np.int64]
    ) -> tuple[pa.LargeBinaryArray, NDArray[np.int64] | None]:
        """Cells and labels of some samples; each of their row groups is read once.

        Raises:
            UserError: if a file cannot be read any more, or a label is missing.
        """
        groups = self.group_of(samples)
        order = np.argsort(groups, kind="stable")
        present, firsts = np.unique(groups[order], return_index=True)
        rows = np.split(samples[order], firsts[1:])
        with ThreadPoolExecutor(4) as pool:
            parts = list(pool.map(lambda g, r: self._rows(spec, int(g), r), present, rows))
        back = np.argsort(order)
        contents = pa.concat_arrays([c for c, _ in parts]).take(pa.array(back))
        if not self.labelled:
            return contents, None
        return contents, np.concatenate([x for _, x in parts if x is not None])[back]

    def parts(self, samples: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Ascending samples cut into parts that are best read together."""
        return np.split(samples, np.flatnonzero(np.diff(self.group_of(samples))) + 1)

    def _rows(
        self, spec: ImageDataSpec, group: int, samples: NDArray[np.int64]
    ) -> tuple[pa.LargeBinaryArray, NDArray[np.int64] | None]:
        rows = pa.array(samples - (self.ends[group - 1] if group else 0))
        columns = [self.column, *([spec.label_column] if self.labelled else [])]
        try:
            with _parquet_file(spec, *self.files[self.file[group]]) as file:
                table = file.read_row_group(int(self.group[group]), columns, use_threads=False)
        except (OSError, pa.ArrowInvalid) as error:
            raise unreadable(spec, error) from None
        contents = _cells(table.column(spec.image_column)).take(rows)
        if not self.labelled:
            return contents, None
        labels = table.column(spec.label_column).take(rows)
        if labels.null_count:
            raise empty_label(spec)
        numbers = labels.combine_chunks()
        if self.values is not None:
            number = {value: i for i, value in enumerate(self.values)}
            coded = numbers.dictionary_encode()
            present = np.array([number[v] for v in coded.dictionary.to_pylist()])
            return contents, present[coded.indices.to_numpy()]
        return contents, numbers.to_numpy().astype(np.int64)


@dataclass(frozen=True, eq=False)
class ImageStream:
    """Real images that are decoded while they are shown; small, and can be pickled.

    Stands where ImageData stands: `codec`, `digest`, and images and labels, of which it holds a
    fixed random choice of at most SAMPLE. These are decoded when first asked for.

    train: (n,) the numbers of the samples that train, ascending: the same that train from memory,
    except that an image that does not decode counts here.
    """

    spec: ImageDataSpec
    codec: ImageCodec
    index: FolderIndex | ParquetIndex
    train: NDArray[np.int64]

    resident: ClassVar[bool] = False

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}  # not what is cached

    @property
    def n(self) -> int:
        """Training samples of an epoch."""
        return len(self.train)

    @property
    def holdout_n(self) -> int:
        return len(self.holdout_images)

    @property
    def digest(self) -> str:
        """SHA-256 of names, sizes, labels and shape; not of pixels, which nobody has seen yet."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        about = {"codec": self.codec.to_json(), "files": self.index.digest, "train": self.n}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()

    @property
    def train_images(self) -> NDArray[np.uint8]:
        return self._train_sample[0]

    @property
    def train_labels(self) -> NDArray[np.int64] | None:
        return self._train_sample[1]

    @property
    def holdout_images(self) -> NDArray[np.uint8]:
        return self._holdout_sample[0]

    @property
    def holdout_labels(self) -> NDArray[np.int64] | None:
        return self._holdout_sample[1]

    @property
    def skipped(self) -> tuple[str, ...]:
        """Names of images of the choice that do not decode."""
        return self._train_sample[2] + self._holdout_sample[2]

    @cached_property
    def _train_sample(self) -> "_Sample":
        return _sample(self, self.train)

    @cached_property
    def _holdout_sample(self) -> "_Sample":
        held = np.ones(len(self.index), bool)
        held[self.train] = False
        return _sample(self, np.flatnonzero(held))

    def at(self, seed: int, start: int, stop: int) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
        raise NotImplementedError("a stream is read in order, by ingest.batches")

    def samples(self, seed: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the samples at some positions; every sample stands once in an epoch."""
        found = np.empty(len(positions), np.int64)
        epochs, offsets = np.divmod(positions, self.n)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            found[here] = self._in_epoch(seed, epoch, offsets[here])
        return found

    def window(self, seed: int, position: int) -> range:
        """The positions around one that are shuffled among themselves."""
        epoch, offset = divmod(position, self.n)
        starts = self.starts(seed, epoch)
        after = int(np.searchsorted(starts, offset, side="right"))
        first = epoch * self.n
        return range(first + int(starts[after - 1]), first + int(starts[after]))

    def starts(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """(W + 1,) where the windows of an epoch begin, as offsets in it, and where it ends."""
        if isinstance(self.index, FolderIndex):
            return np.array([0, self.n])
        return self._windows(self.index, seed, epoch)[2]

    def _in_epoch(self, seed: int, epoch: int, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
        order = rng.Stream.TRAIN_ORDER
        if isinstance(self.index, FolderIndex):
            return self.train[rng.permute(rng.fold(seed, epoch), order, offsets, self.n)]
        groups, cuts, starts = self._windows(self.index, seed, epoch)
        bounds = self._bounds(self.index)
        found = np.empty(len(offsets), np.int64)
        window_of = np.searchsorted(starts, offsets, side="right") - 1
        for window in np.unique(window_of).tolist():
            here = window_of == window
            mixed = groups[cuts[window] : cuts[window + 1]]
            members = np.concatenate([self.train[bounds[g] : bounds[g + 1]] for g in mixed])
            within = offsets[here] - starts[window]
            seed_here = rng.fold(seed, epoch, window)
            found[here] = members[rng.permute(seed_here, order, within, len(members))]
        return found

    def _windows(
        self, index: ParquetIndex, seed: int, epoch: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Row groups of an epoch in order, (W + 1,) cuts in it, and (W + 1,) offsets in rows."""
        count = len(index.ends)
        order = rng.Stream.TRAIN_ORDER
        groups = rng.permute(rng.fold(seed, epoch), order, np.arange(count), count)
        rows = np.diff(self._bounds(index))[groups]
        cuts = _cuts(rows.tolist(), index.nbytes[groups].tolist())
        return groups, cuts, np.concatenate([[0], np.cumsum(rows)])[cuts]

    def _bounds(self, index: ParquetIndex) -> NDArray[np.int64]:
        """(G + 1,) where the training samples of each row group begin in `train`."""
        return np.searchsorted(self.train, np.concatenate([[0], index.ends]))


_Sample = tuple[NDArray[np.uint8], NDArray[np.int64] | None, tuple[str, ...]]


def _cuts(rows: list[int], nbytes: list[int]) -> NDArray[np.int64]:
    """(W + 1,) cuts between row groups, so that each window has rows enough, or bytes enough."""
    cuts = [0]
    some_rows = some_bytes = 0
    for last, (more_rows, more_bytes) in enumerate(zip(rows, nbytes, strict=True), start=1):
        some_rows, some_bytes = some_rows + more_rows, some_bytes + more_bytes
        mixed = some_rows >= _WINDOW_ROWS and last - cuts[-1] >= _WINDOW_GROUPS
        if mixed or (some_rows and some_bytes >= _WINDOW_BYTES):
            cuts.append(last)
            some_rows = some_bytes = 0
    # What is left over is no window of its own, but part of the last.
    return np.array([*cuts[: max(1, len(cuts) - 1)], len(rows)])


def _sample(stream: ImageStream, among: NDArray[np.int64]) -> _Sample:
    """Images, labels and the names of those left out, of a fixed random choice."""
    codec, index = stream.codec, stream.index
    room = stream.spec.resident_gb * 1e9 / 2 // (codec.size * codec.size * codec.channels)
    count = min(SAMPLE, max(1000, int(room)))
    if isinstance(index, ParquetIndex):
        among = _in_some_groups(index, among, count)
    chosen = np.sort(among[_some(len(among), count)])
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        parts = list(pool.map(lambda part: _decode_part(stream, part), index.parts(chosen)))
    if not any(len(images) for images, _, _ in parts):
        raise nothing_decodes(stream.spec)
    images = np.concatenate([p[0] for p in parts])
    labels = [p[1] for p in parts if p[1] is not None]
    skipped = tuple(name for p in parts for name in p[2])
    return images, np.concatenate(labels) if labels else None, skipped


def _in_some_groups(index: ParquetIndex, among: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Those of some samples that lie in a random choice of row groups: the rest is not read."""
    groups = index.group_of(among)
    order = _some(len(index.ends), len(index.ends))
    rows = np.cumsum(np.bincount(groups, minlength=len(order))[order])
    enough = max(_SAMPLE_GROUPS, int(np.searchsorted(rows, count)) + 1)
    return among[np.isin(groups, order[:enough])]


def _decode_part(stream: ImageStream, samples: NDArray[np.int64]) -> _Sample:
    contents, labels = stream.index.read(stream.spec, samples)
    codec = stream.codec
    images = np.empty((len(samples), codec.size, codec.size, codec.channels), np.uint8)
    good = [
        _decode_into(images[i], stream, int(sample), cell.as_py())
        for i, (sample, cell) in enumerate(zip(samples, contents, strict=True))
    ]
    names = tuple(stream.index.name(int(s)) for s in samples[~np.array(good, bool)])
    return images[good], None if labels is None else labels[good], names


def _some(n: int, count: int) -> NDArray[np.int64]:
    """At most `count` of 0..n-1, chosen at random once and for all."""
    return rng.permute(0, rng.Stream.EVALUATE, np.arange(min(n, count)), n)


# --- one worker's share of the order -------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """What one worker shows: positions lo..hi of every global batch of `batch` positions.

    A turn counts the samples that the worker has shown, from the first step of training.
    """

    seed: int
    batch: int
    lo: int
    hi: int

    def positions(self, first: int, stop: int) -> NDArray[np.int64]:
        """The positions of turns first..stop."""
        step, within = np.divmod(np.arange(first, stop), self.hi - self.lo)
        return step * self.batch + self.lo + within

    def turns_before(self, position: int) -> int:
        step, within = divmod(position, self.batch)
        return step * (self.hi - self.lo) + min(max(within - self.lo, 0), self.hi - self.lo)


def pieces(stream: ImageStream, share: Share, first: int, rows: int) -> Iterator[tuple[int, int]]:
    """Turns (start, stop) to be read together, from a first turn on, without end.

    A window of Parquet is one piece; a folder has pieces of `rows` samples, the first ones fewer so
    that they are there soon.
    """
    if isinstance(stream.index, FolderIndex):
        size = min(rows, _FIRST_ROWS)
        while True:
            yield first, first + size
            first, size = first + size, min(rows, 2 * size)
    epoch = int(share.positions(first, first + 1)[0]) // stream.n
    while True:
        for stop in stream.starts(share.seed, epoch)[1:].tolist():
            turn = share.turns_before(epoch * stream.n + stop)
            if turn > first:
                yield first, turn
                first = turn
        epoch += 1


@dataclass(frozen=True, eq=False)
class Encoded:
    """Samples as they are stored: contents and labels (N,) of samples at positions (N,)."""

    positions: NDArray[np.int64]
    samples: NDArray[np.int64]
    contents: pa.LargeBinaryArray
    labels: NDArray[np.int64] | None


@dataclass(frozen=True, eq=False)
class Decoded:
    """images: (N, H, W, C). skipped: names that do not decode, each with what is in its place."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    skipped: tuple[str, ...]


def read(stream: ImageStream, share: Share, first: int, stop: int, rows: int) -> Iterator[Encoded]:
    """Read a piece, and cut it into chunks of at most `rows` samples.

    Raises:
        UserError: if a file is gone or cannot be read.
    """
    positions = share.positions(first, stop)
    samples = stream.samples(share.seed, positions)
    contents, labels = stream.index.read(stream.spec, samples)
    for start in range(0, len(samples), rows):
        part = slice(start, start + rows)
        yield Encoded(
            positions[part], samples[part], contents[part], None if labels is None else labels[part]
        )


def decode(stream: ImageStream, share: Share, encoded: Encoded) -> Decoded:
    """Decode a chunk. With data.on_corrupt=skip the next sample of the window that decodes stands
    in for one that does not, whichever worker would show it.

    Raises:
        UserError: naming an image that does not decode, or is of another size or kind.
    """
    codec, skipped = stream.codec, []
    count = len(encoded.samples)
    images = np.empty((count, codec.size, codec.size, codec.channels), np.uint8)
    labels = None if encoded.labels is None else encoded.labels.copy()
    for i, sample in enumerate(encoded.samples.tolist()):
        if not _decode_into(images[i], stream, sample, encoded.contents[i].as_py()):
            position = int(encoded.positions[i])
            other, label = _substitute(images[i], stream, share, position)
            if labels is not None:
                labels[i] = label
            name, instead = stream.index.name(sample), stream.index.name(other)
            skipped.append(f"{name} does not decode; {instead} is shown in its place")
    return Decoded(images, labels, tuple(skipped))


def _substitute(out: NDArray[np.uint8], stream: ImageStream, share: Share, position: int) -> tuple[int, int]:
    """Decode the next sample that can be into `out`; its number and label (0 if there is none)."""
    window = stream.window(share.seed, position)
    for ahead in range(1, min(_SUBSTITUTES, len(window))):
        after = window[(position - window.start + ahead) % len(window)]
        sample = stream.samples(share.seed, np.array([after]))
        contents, labels = stream.index.read(stream.spec, sample)
        if _decode_into(out, stream, int(sample[0]), contents[0].as_py()):
            return int(sample[0]), 0 if labels is None else int(labels[0])
    raise nothing_decodes(stream.spec)


def _decode_into(out: NDArray[np.uint8], stream: ImageStream, sample: int, content: bytes | None) -> bool:
    """Decode one image into `out` (H, W, C); says whether it could, or raises if it must."""
    spec, index = stream.spec, stream.index
    try:
        if isinstance(index, ParquetIndex) and index.shape and content is not None:
            image = raw_image(content, index.shape)
        else:
            image = decode_image(content)
    except CORRUPT as error:
        if spec.on_corrupt == "fail":
            raise corrupt(spec, index.name(sample), error) from None
        return False
    size, (width, height) = stream.codec.size, image.size
    if spec.size is None and (width, height) != (size, size):
        raise UserError(
            "data.size",
            None,
            f"is needed, since {index.name(sample)} measures {width}x{height} and others {size}x{size}",
            f"Choose one of {SIZES}.",
        )
    if spec.channels is None and stream.codec.channels == 1 and image.mode not in GREY_MODES:
        raise UserError(
            "data.channels",
            None,
            f"is needed, since {index.name(sample)} has colours and others have none",
            "Choose 1 or 3.",
        )
    out[:] = stream.codec.encode(image)
    return True


# --- seeing what is there ------------------------------------------------------------------------


def open_stream(spec: ImageDataSpec) -> ImageStream | None:
    """See what a folder or Parquet holds; None if it is to be held in memory.

    Lists names and reads footers, labels and the heads of a few images. data.ingest=auto streams
    what decodes to more than data.resident_gb.

    Raises:
        UserError: for a source that is missing, empty, or without one shape.
    """
    if spec.ingest == "resident":
        return None
    index, classes = _INDEXES[spec.source](spec)
    limit = np.inf if spec.ingest == "stream" else spec.resident_gb * 1e9
    if spec.ingest == "auto" and spec.size and 3 * len(index) * spec.size**2 <= limit:
        return None
    sizes, modes = _heads(spec, index)
    if spec.ingest == "auto":
        pixels = spec.size**2 if spec.size else max((w * h for w, h in sizes), default=0)
        grey = modes <= set(GREY_MODES)
        if len(index) * pixels * (spec.channels or (1 if grey else 3)) <= limit:
            return None
    if not sizes:
        raise nothing_decodes(spec)
    codec = common_codec(spec, sizes, modes)
    codec = ImageCodec(codec.size, codec.channels, classes)
    if "://" not in str(spec.root):  # tasks run in folders of their own
        spec = spec.model_copy(update={"root": str(Path(str(spec.root)).resolve())})
    return ImageStream(spec, codec, index, split(spec.holdout, len(index), "image")[0])


def _folder_index(spec: ImageDataSpec) -> tuple[FolderIndex, tuple[str, ...] | None]:
    listing = _listing(spec, _store(str(spec.root)))
    keys = [k for k in sorted(listing) if k.lower().endswith(SUFFIXES)]
    classes = folder_classes(spec, keys)
    digest = hashlib.sha256("".join(f"{k}\0{listing[k]}\n" for k in keys).encode()).hexdigest()
    encoded = [k.encode() for k in keys]
    names = np.frombuffer(b"".join(encoded), np.uint8)
    ends = np.cumsum([len(k) for k in encoded])
    labels = None
    if classes:
        number = {name: i for i, name in enumerate(classes)}
        labels = np.array([number[k.split("/")[0]] for k in keys], np.int32)
    return FolderIndex(names, ends, labels, digest), classes


def _parquet_index(spec: ImageDataSpec) -> tuple[ParquetIndex, tuple[str, ...] | None]:
    store, name = parquet_root(spec)
    listing = _listing(spec, store, name)
    files = tuple(
        (k, listing[k]) for k in sorted(listing) if k == name or (not name and k.endswith(".parquet"))
    )
    if not files:
        if name:
            raise unreadable(spec, FileNotFoundError(f"there is no {spec.root}"))
        raise no_parquet(spec)
    try:
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            footers = list(pool.map(lambda f: _footer(store.uri, *f), files))
    except (OSError, pa.ArrowInvalid) as error:
        raise unreadable(spec, error) from None
    schema = footers[0].schema.to_arrow_schema()
    shape = raw_shape(spec, schema, files[0][0])
    for (key, _), footer in zip(files, footers, strict=True):
        other = footer.schema.to_arrow_schema()
        if raw_shape(spec, other, key) != shape:
            raise UserError(
                "data.root",
                spec.root,
                f"holds images in another form in {key}",
                "Keep files of one form together.",
            )
        if other.get_field_index(spec.label_column) != schema.get_field_index(spec.label_column):
            raise UserError(
                "data.root", spec.root, f"has other columns in {key}", "Keep files of one schema together."
            )
    is_struct = pa.types.is_struct(schema.field(spec.image_column).type)
    column = f"{spec.image_column}.bytes" if is_struct else spec.image_column
    groups = [
        (f, g, footer.row_group(g)) for f, footer in enumerate(footers) for g in range(footer.num_row_groups)
    ]
    rows = np.array([group.num_rows for _, _, group in groups], np.int64)
    if not rows.sum():
        raise UserError("data.root", spec.root, "must hold rows, and holds none", "Check the path.")
    labelled = spec.label_column in schema.names
    values, classes = None, None
    if labelled and (classes := class_names(spec, schema)) is None:
        values = _distinct_labels(spec, files)
        classes = tuple(str(v) for v in values)
    about = json.dumps([files, rows.tolist(), classes])
    index = ParquetIndex(
        files=files,
        file=np.array([f for f, _, _ in groups], np.int32),
        group=np.array([g for _, g, _ in groups], np.int32),
        ends=np.cumsum(rows),
        nbytes=np.array([_column_bytes(group, column) for _, _, group in groups], np.int64),
        column=column,
        shape=shape,
        values=values,
        labelled=labelled,
        digest=hashlib.sha256(about.encode()).hexdigest(),
    )
    return index, classes


_INDEXES: dict[str, Any] = {"folder": _folder_index, "parquet": _parquet_index}


def _distinct_labels(spec: ImageDataSpec, files: tuple[tuple[str, int], ...]) -> tuple[Any, ...]:
    """All values of the label column, sorted."""

    def of_file(file: tuple[str, int]) -> set[Any]:
        with _parquet_file(spec, *file) as opened:
            column = opened.read([spec.label_column], use_threads=False).column(0)
        if column.null_count:
            raise empty_label(spec)
        return set(column.unique().to_pylist())

    with ThreadPoolExecutor(_READ_THREADS) as pool:
        return tuple(sorted(set().union(*pool.map(of_file, files))))


def _column_bytes(group: Any, column: str) -> int:
    """Bytes of a column of a row group when it is read."""
    columns = (group.column(i) for i in range(group.num_columns))
    return sum(c.total_uncompressed_size for c in columns if c.path_in_schema == column)


def _heads(spec: ImageDataSpec, index: FolderIndex | ParquetIndex) -> tuple[set[tuple[int, int]], set[str]]:
    """Sizes (W, H) and modes of a fixed random choice of images, without decoding them."""
    if isinstance(index, ParquetIndex) and index.shape:
        height, width, channels = (*index.shape, 1)[:3]
        return {(width, height)}, {"L" if channels == 1 else "RGB"}
    sizes, modes = set(), set()
    for sample, content in _first_bytes(spec, index):
        try:
            image = Image.open(io.BytesIO(content or b""))
        except CORRUPT as error:
            # Left to the resident way, which sees all of them, where it may yet be chosen.
            if spec.on_corrupt == "fail" and spec.ingest == "stream":
                raise corrupt(spec, index.name(sample), error) from None
        else:
            sizes.add(image.size)
            modes.add(image.mode)
    return sizes, modes


def _first_bytes(
    spec: ImageDataSpec, index: FolderIndex | ParquetIndex
) -> Iterator[tuple[int, bytes | None]]:
    """Numbers and contents of a fixed random choice of samples."""
    if isinstance(index, FolderIndex):
        samples = np.sort(_some(len(index), _HEADS))
        contents, _ = index.read(spec, samples)
        yield from zip(samples.tolist(), contents.to_pylist(), strict=True)
        return
    for group in np.sort(_some(len(index.ends), _HEAD_GROUPS)).tolist():
        first = int(index.ends[group - 1]) if group else 0
        try:
            with _parquet_file(spec, *index.files[index.file[group]]) as file:
                batches = file.iter_batches(
                    batch_size=_HEADS // _HEAD_GROUPS,
                    row_groups=[int(index.group[group])],
                    columns=[index.column],
                    use_threads=False,
                )
                table = pa.Table.from_batches([next(batches)])
        except StopIteration:  # a row group without rows
            continue
        except (OSError, pa.ArrowInvalid) as error:
            raise unreadable(spec, error) from None
        yield from enumerate(_cells(table.column(0)).to_pylist(), start=first)


# --- objects in parts ----------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _store(uri: str) -> Store:
    """One connection for all that a process reads from a store."""
    return Store(uri)


def _listing(spec: ImageDataSpec, store: Store, prefix: str = "") -> dict[str, int]:
    """Key to bytes of every object."""
    sizes = store.sizes(prefix)
    if not sizes and not prefix:
        existing(spec, store)  # says what is wrong with a folder that is not there
    return sizes


class _Ranges(io.RawIOBase):
    """An object as a file, of which each read is one request for a range."""

    def __init__(self, store: Store, key: str, size: int):
        self._store, self._key, self._size, self._at = store, key, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        stop = self._size if size < 0 else min(self._size, self._at + size)
        data = self._store.read_range(self._key, self._at, stop)
        self._at += len(data)
        return data


def _parquet_file(spec: ImageDataSpec, key: str, size: int) -> pq.ParquetFile:
    """A Parquet file that is read in parts."""
    uri = parquet_root(spec)[0].uri
    return _opened(uri, key, size, _footer(uri, key, size))


@lru_cache(maxsize=512)
def _footer(uri: str, key: str, size: int) -> pq.FileMetaData:
    with _opened(uri, key, size) as file:
        return file.metadata


def _opened(uri: str, key: str, size: int, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
    store = _store(uri)
    source: Any = _Ranges(store, key, size) if store.uri.startswith("s3://") else Path(store.uri) / key
    return pq.ParquetFile(source, metadata=footer)


def _cells(column: pa.ChunkedArray) -> pa.LargeBinaryArray:
    """The images in a column, whichever of the forms of bytes it has."""
    if pa.types.is_struct(column.type):
        column = column.flatten()[column.type.get_field_index("bytes")]
    return column.cast(pa.large_binary()).combine_chunks()
