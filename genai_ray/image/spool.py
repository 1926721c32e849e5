"""Images decoded once: raw shards of a run, from which training and evaluation read rows.

    <run>/spool/<key>/shard-000000.raw     uint8 (rows, H, W, C), of consecutive items of the source
                      shard-000000.json    what is in it; after it
                      labels.raw           int64, little-endian, where there are classes
                      spool.json           last: nothing is read before it is there

The key is a digest of what the source holds and of the keys that shape pixels. Shards are made by Ray
Data where Ray runs, else by threads of this process: the same bytes either way.
"""

import contextlib
import hashlib
import json
import logging
import math
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from genai_ray import cluster
from genai_ray.errors import IncompleteError, UserError
from genai_ray.image.cache import fetched
from genai_ray.image.codec import GREY_MODES, SIZES, ImageCodec, common_codec
from genai_ray.image.files import CORRUPT, Item, Pieces, Source, items, list_source, open_image
from genai_ray.image.spec import ImageDataSpec
from genai_ray.order import split
from genai_ray.progress import Progress
from genai_ray.storage import Store

_FORMAT = 1
# The most that a shard holds: items, bytes of pixels, bytes of the source.
_SHARD_ITEMS = 2048
_SHARD_BYTES = 32 << 20
_SOURCE_BYTES = 256 << 20
# Of one process, of which Ray runs one for each CPU.
_THREADS = 4  # that read and decode
_PIXELS = 25_000_000  # decoded at once: one photo of 24 megapixels
_PILLOW_BLOCK = 128 << 20
_MAX_BLOCKS = 4_000  # of the Ray Data job
_FETCHERS = 8
_TRIES = 3
_PARTS = 4  # of the cache that a window of blocks takes one of


@dataclass(frozen=True, eq=False)
class Spool:
    """A finished spool of N images. labels: (N,) int64 or None. skipped: names of what does not decode.
    digest: SHA-256 of the images and labels that train.
    """

    shards: "Shards"
    labels: NDArray[np.int64] | None
    skipped: tuple[str, ...]
    digest: str


def open_spool(spec: ImageDataSpec, source: Source, run: Store, *, on_cluster: bool) -> Spool:
    """The spool of a source; what is missing of it is made first, by the cluster if that is wanted, else by Ray where
    it runs already, else by threads.

    Raises:
        UserError: for a source that is corrupt, or without one shape.
        IncompleteError: if the Ray job fails.
    """
    store = run.at(f"spool/{_key(spec, source)}")
    try:
        header = json.loads(store.read("spool.json"))
    except FileNotFoundError:
        if on_cluster:
            cluster.connect(run)
        header = _prepare(spec, source, store)
    shards, labels = _shards(spec, store, header), None
    if shards.codec.classes is not None:
        labels = np.frombuffer(store.read("labels.raw"), "<i8").astype(np.int64, copy=False)
    return Spool(shards, labels, tuple(header["skipped"]), header["digest"])


def _shards(spec: ImageDataSpec, store: Store, header: dict[str, Any]) -> "Shards":
    codec, cache = ImageCodec.from_json(header["codec"]), int(spec.cache_gb * 1e9)
    return Shards(store, codec, header["rows"], header["channels"], header["contents"], cache)


def _key(spec: ImageDataSpec, source: Source) -> str:
    shaping = ("source", "size", "channels", "holdout", "on_corrupt", "image_column", "label_column")
    about = {"format": _FORMAT, "source": source.stamp, "data": {k: getattr(spec, k) for k in shaping}}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


# --- writing -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Record:
    """A shard: its items in the source, of which it holds rows; positions and names of those that do not
    decode; sizes (W, H) and modes of the others; SHA-256 of its bytes.
    """

    items: int
    rows: int
    channels: int
    skipped: list[tuple[int, str]]
    sizes: list[Sequence[int]]
    modes: list[str]
    digest: str


def _prepare(spec: ImageDataSpec, source: Source, store: Store) -> dict[str, Any]:
    """Write the shards that are missing, then labels and header; returns the header."""
    kept = np.ones(len(source.nbytes), bool)
    if spec.on_corrupt == "fail":
        source.labels(kept)  # what is wrong with them is said before anything is decoded
    if "://" not in str(spec.root):  # tasks run in folders of their own
        spec = spec.model_copy(update={"root": str(Path(str(spec.root)).resolve())})
    cuts = _cuts(spec, source.nbytes)
    done, by_index = _records(store), {}
    work = ((i, source.pieces(a, b)) for i, (a, b) in enumerate(pairwise(cuts)) if i not in done)
    make = _by_ray if _ray_runs() else _by_threads
    progress = Progress("decode", len(source.nbytes))
    sizes: set[tuple[int, int]] = set()
    modes: set[str] = set()
    for index, record in chain(done.items(), make(spec, store, work)):
        by_index[index] = record
        sizes |= {(width, height) for width, height in record.sizes}
        modes |= set(record.modes)
        if sizes:
            common_codec(spec, sizes, modes)
        progress.update(progress.done + record.items)
    records = [by_index[i] for i in range(len(cuts) - 1)]
    if not sizes:
        raise UserError("data.root", spec.root, "holds no image that decodes", "Check the files.")
    if list_source(spec).stamp != source.stamp:
        raise UserError("data.root", spec.root, "changed while it was read", "Run again when nothing writes there.")
    kept[[cut + i for cut, record in zip(cuts, records, strict=False) for i, _ in record.skipped]] = False
    labels, classes = source.labels(kept)
    codec = replace(common_codec(spec, sizes, modes), classes=classes)
    contents = hashlib.sha256("".join(r.digest for r in records).encode()).hexdigest()
    header: dict[str, Any] = {
        "codec": codec.to_json(),
        "rows": [r.rows for r in records],
        "channels": [r.channels for r in records],
        "contents": contents,
        "skipped": [name for r in records for _, name in r.skipped],
    }
    if labels is not None:
        store.put("labels.raw", labels.astype("<i8").tobytes())
    header["digest"] = _digest(spec, _shards(spec, store, header), labels)
    store.put("spool.json", json.dumps(header).encode())
    return header


def _cuts(spec: ImageDataSpec, nbytes: NDArray[np.int64]) -> list[int]:
    """Where shards begin among the items of the source, and where the last ends."""
    image_bytes = (spec.size or max(SIZES)) ** 2 * (spec.channels or 3)
    most = max(1, min(_SHARD_ITEMS, _SHARD_BYTES // image_bytes))
    before = np.concatenate([[0], np.cumsum(nbytes)])
    cuts = [0]
    while cuts[-1] < len(nbytes):
        full = int(np.searchsorted(before, before[cuts[-1]] + _SOURCE_BYTES, "right")) - 1
        cuts.append(min(len(nbytes), cuts[-1] + most, max(full, cuts[-1] + 1)))
    return cuts


def _records(store: Store) -> dict[int, _Record]:
    """Of the shards that an earlier call finished."""
    keys = [key for key in store.list("shard-") if key.endswith(".json")]
    with ThreadPoolExecutor(_THREADS) as pool:
        records = [_Record(**json.loads(content)) for content in pool.map(store.read, keys)]
    return {int(key[len("shard-") : -len(".json")]): r for key, r in zip(keys, records, strict=True)}


def _digest(spec: ImageDataSpec, shards: "Shards", labels: NDArray[np.int64] | None) -> str:
    """SHA-256 of the images and labels that train."""
    train, _ = split(spec.holdout, len(shards), "image")
    digest, rows = hashlib.sha256(), Rows(shards, train)
    for start in range(0, len(train), _SHARD_ITEMS):
        digest.update(rows[start : start + _SHARD_ITEMS].tobytes())
    if labels is not None:
        digest.update(labels[train].tobytes())
    return digest.hexdigest()


# --- one shard -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Decoded:
    """pixels: (H, W, C), of one channel if the image is grey; None if it has a size that none may have."""

    pixels: NDArray[np.uint8] | None
    size: tuple[int, int]
    mode: str


class _Room:
    """Bounds the pixels that are decoded at once; one image that is larger is let in alone."""

    def __init__(self, most: int):
        self._most, self._held, self._changed = most, 0, threading.Condition()

    @contextlib.contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + pixels <= self._most)
            self._held += pixels
        try:
            yield
        finally:
            with self._changed:
                self._held -= pixels
                self._changed.notify_all()


def _make_shard(spec: ImageDataSpec, store: Store, index: int, pieces: Pieces) -> _Record:
    """Decode the items of a shard and put it, and then its record.

    Raises:
        UserError: naming an item that does not decode, unless data.on_corrupt=skip.
    """
    # So large that freed ones go back to the system, and do not stay with the thread that had them.
    Image.core.set_block_size(_PILLOW_BLOCK)
    decode, names, decoded = partial(_decode, spec, _Room(_PIXELS)), [], []
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: deque[tuple[str, Future[_Decoded | None]]] = deque()
        for item in items(spec, pieces):
            waiting.append((item.name, pool.submit(decode, item)))
            if len(waiting) > 2 * _THREADS:  # of which the content is in memory
                name, future = waiting.popleft()
                names.append(name)
                decoded.append(future.result())
        names += [name for name, _ in waiting]
        decoded += [future.result() for _, future in waiting]
    good = [image for image in decoded if image is not None]
    sizes, modes = sorted({i.size for i in good}), sorted({i.mode for i in good})
    pixels = [image.pixels for image in good if image.pixels is not None]
    channels = max((p.shape[2] for p in pixels), default=1)
    uniform = len({p.shape[:2] for p in pixels}) == 1 and len(pixels) == len(good)
    content = _stack(pixels, channels).tobytes() if uniform else b""
    record = _Record(
        items=len(names),
        rows=len(pixels) if uniform else 0,
        channels=channels,
        skipped=[(i, name) for i, name in enumerate(names) if decoded[i] is None],
        sizes=sizes,
        modes=modes,
        digest=hashlib.sha256(content).hexdigest(),
    )
    store.put(_name(index), content)
    store.put(f"shard-{index:06d}.json", json.dumps(asdict(record)).encode())
    return record


def _name(index: int) -> str:
    return f"shard-{index:06d}.raw"


def _stack(images: list[NDArray[np.uint8]], channels: int) -> NDArray[np.uint8]:
    """Images (N, H, W, C); a grey one among coloured ones has three equal channels."""
    stacked = np.empty((len(images), *images[0].shape[:2], channels), np.uint8)
    for row, image in zip(stacked, images, strict=True):
        row[:] = image
    return stacked


def _decode(spec: ImageDataSpec, room: _Room, item: Item) -> _Decoded | None:
    """An image of the run's shape; None if it does not decode and is to be left out."""
    content = item.read()
    with contextlib.ExitStack() as stack:
        try:
            image = open_image(content, item.shape)
            stack.enter_context(room.hold(image.width * image.height))
            image.load()
        except CORRUPT as error:
            if spec.on_corrupt == "skip":
                return None
            raise UserError(
                "data.root",
                f"{spec.root}: {item.name}",
                f"must be an image that decodes ({error})",
                "Remove it, or set data.on_corrupt=skip to leave such files out.",
            ) from None
        size, mode = image.size, image.mode
        side = spec.size or (size[0] if size[0] == size[1] and size[0] in SIZES else None)
        channels = spec.channels or (1 if mode in GREY_MODES else 3)
        pixels = None if side is None else ImageCodec(side, channels, None).encode(image)
        return _Decoded(pixels, size, mode)


# --- all shards ----------------------------------------------------------------------------------

_Work = Iterable[tuple[int, Pieces]]


def _by_threads(spec: ImageDataSpec, store: Store, work: _Work) -> Iterator[tuple[int, _Record]]:
    for index, pieces in work:
        yield index, _make_shard(spec, store, index, pieces)


def _ray_runs() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def _by_ray(spec: ImageDataSpec, store: Store, work: _Work) -> Iterator[tuple[int, _Record]]:
    """Shards in the order in which they are done; one that goes wrong ends the job.

    Raises:
        UserError: from a task.
        IncompleteError: if the job fails, or does nothing for as long as Ray Data waits.
    """
    import ray.data
    from ray.exceptions import RayError

    rows = [{"index": index, "pieces": json.dumps(pieces)} for index, pieces in work]
    if not rows:
        return
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # It warns when bars are off, as they are here because the driver draws its own.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    shards: Any = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MAX_BLOCKS))
    job = shards.map_batches(_task, fn_kwargs={"spec": spec, "uri": store.uri}, batch_size=1)
    try:
        for row in job.iter_rows():
            if row["error"]:
                raise UserError(*json.loads(row["error"]))
            yield row["index"], _Record(**json.loads(row["record"]))
    except (RayError, TimeoutError) as error:
        raise IncompleteError(f"{store.uri}: the job failed, the same command resumes: {error}") from error


def _task(batch: dict[str, NDArray[Any]], *, spec: ImageDataSpec, uri: str) -> dict[str, list[Any]]:
    index, record, problem = int(batch["index"][0]), "", ""
    try:
        record = json.dumps(asdict(_make_shard(spec, Store(uri), index, json.loads(batch["pieces"][0]))))
    except UserError as error:
        # As a value: raised in a task it would arrive as a failure of Ray.
        problem = json.dumps([error.field, error.value, error.rule, error.remedy])
    return {"index": [index], "record": [record], "error": [problem]}


# --- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Shards:
    """The rows of a finished spool, memory-mapped. Pickled, it is as small as its list of shards.

    rows, channels: of each shard. contents: SHA-256 of all. cache: bytes of them that a node keeps if
    they lie on S3.
    """

    store: Store
    codec: ImageCodec
    rows: Sequence[int]
    channels: Sequence[int]
    contents: str
    cache: int

    def __reduce__(self) -> Any:
        return Shards, (self.store, self.codec, self.rows, self.channels, self.contents, self.cache)

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """(S,) rows up to and with each shard."""
        return np.cumsum(self.rows)

    @cached_property
    def _maps(self) -> dict[int, NDArray[np.uint8]]:
        return {}

    @cached_property
    def _ahead(self) -> list[int]:
        """The shards that were fetched ahead last."""
        return []

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def nbytes(self) -> int:
        return self.codec.size**2 * int(np.dot(self.rows, self.channels))

    @property
    def window(self) -> int | None:
        """Shards that are shuffled together; None: all, as the cache of a node holds them."""
        if self.nbytes <= self.cache:
            return None
        return max(1, int(self.cache // _PARTS * len(self.ends) // self.nbytes))

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Some rows (N, H, W, C), in memory of their own."""
        shards, within = self._places(rows)
        present = np.unique(shards).tolist()
        missing = [shard for shard in present if shard not in self._maps]
        if self.store.path() is None and len(missing) > 1:
            with ThreadPoolExecutor(_FETCHERS) as pool:
                list(pool.map(self._map, missing))
        images = np.empty((len(rows), self.codec.size, self.codec.size, self.codec.channels), np.uint8)
        for shard in present:
            chosen = shards == shard
            images[chosen] = self._map(shard)[within[chosen]]
        return images

    def read_few(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """As `read`, of rows so far apart that shards on S3 are not worth fetching for them."""
        if self.store.path() is not None:
            return self.read(rows)

        def one(shard: int, row: int) -> NDArray[np.uint8]:
            shape = (self.codec.size, self.codec.size, self.channels[shard])
            size = math.prod(shape)
            content = self.store.read_range(_name(shard), row * size, (row + 1) * size)
            return np.frombuffer(content, np.uint8).reshape(shape)

        with ThreadPoolExecutor(_THREADS) as pool:
            images = list(pool.map(one, *(a.tolist() for a in self._places(rows))))
        return _stack(images, self.codec.channels)

    def fetch_ahead(self, shards: NDArray[np.int64]) -> None:
        """Begin to fetch some shards that will be read soon."""
        wanted = shards.tolist()
        if self.store.path() is not None or wanted == self._ahead:
            return
        self._ahead[:] = wanted

        def fetch() -> None:
            with contextlib.suppress(Exception):  # met again, and raised, by who reads the shard
                for shard in wanted:
                    self._path(shard)

        threading.Thread(target=fetch, daemon=True, name="spool").start()

    def _places(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The shards of some rows, and their rows within."""
        shards = np.searchsorted(self.ends, rows, "right")
        return shards, rows - np.concatenate([[0], self.ends])[shards]

    def _map(self, shard: int) -> NDArray[np.uint8]:
        if (known := self._maps.get(shard)) is not None:
            return known
        shape = (self.rows[shard], self.codec.size, self.codec.size, self.channels[shard])
        for _ in range(_TRIES):
            # Another process may remove a file of the cache before it is mapped; after that it may.
            with contextlib.suppress(FileNotFoundError):
                array = np.asarray(np.memmap(self._path(shard), np.uint8, "r", shape=shape))
                if self.window and len(self._maps) > 2 * self.window:
                    self._maps.clear()  # what the cache has removed takes room while it is mapped
                self._maps[shard] = array
                return array
        raise UserError(
            "store",
            self.store.uri,
            f"must be seen by every node, and {_name(shard)} is not there",
            "On several nodes use an s3:// URI or a shared folder; or delete the folder spool of the run.",
        )

    def _path(self, shard: int) -> Path:
        nbytes = self.rows[shard] * self.codec.size**2 * self.channels[shard]
        local = self.store.path(_name(shard))
        return local or fetched(self.store, _name(shard), nbytes, self.contents[:32], self.cache)


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a spool, in the place of an array of images."""

    shards: Shards
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.shards.read(self.index[key])
