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
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genai_ray import cluster
from genai_ray.errors import IncompleteError, UserError
from genai_ray.image.cache import fetched
from genai_ray.image.codec import SIZES, ImageCodec, common_codec
from genai_ray.image.decode import Record, Scales, make_shard, shard_name, stack
from genai_ray.image.files import list_source
from genai_ray.image.items import Pieces, Source
from genai_ray.image.listing import few
from genai_ray.image.pixels import joined, scales_of
from genai_ray.image.spec import ImageDataSpec
from genai_ray.image.summary import lines_of
from genai_ray.order import split
from genai_ray.progress import Progress
from genai_ray.storage import Store

_FORMAT = 2  # 1 dropped transparency, and took all depth for 16 bits
# The most that a shard holds: items, bytes of pixels, bytes of the source.
_SHARD_ITEMS = 2048
_SHARD_BYTES = 32 << 20
_SOURCE_BYTES = 256 << 20
_THREADS = 4
_MAX_BLOCKS = 4_000  # of the Ray Data job
_FETCHERS = 8
_TRIES = 3
_PARTS = 4  # of the cache that a window of blocks takes one of


@dataclass(frozen=True, eq=False)
class Spool:
    """A finished spool of N images.

    labels: (N,) int64, -1 for an image without a class that trains; or None. skipped: names of what does not decode.
    trained: how many images train, which are the first, where splits of the source say so. digest: SHA-256 of the
    images and labels that train. found: what the source held, for people.
    """

    shards: "Shards"
    labels: NDArray[np.int64] | None
    skipped: tuple[str, ...]
    trained: int | None
    digest: str
    found: dict[str, Any]


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
    return Spool(shards, labels, tuple(header["skipped"]), header["trained"], header["digest"], header["found"])


def _shards(spec: ImageDataSpec, store: Store, header: dict[str, Any]) -> "Shards":
    codec, cache = ImageCodec.from_json(header["codec"]), int(spec.cache_gb * 1e9)
    return Shards(store, codec, header["rows"], header["channels"], header["contents"], cache)


def _key(spec: ImageDataSpec, source: Source) -> str:
    shaping = ("source", "size", "channels", "holdout", "splits", "on_corrupt", "background", "depth")
    shaping += ("image_column", "label_column", "unlabelled")
    about = {"format": _FORMAT, "source": source.stamp, "data": {k: getattr(spec, k) for k in shaping}}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


# --- writing -------------------------------------------------------------------------------------


def _prepare(spec: ImageDataSpec, source: Source, store: Store) -> dict[str, Any]:
    """Write the shards that are missing, then labels and header; returns the header."""
    kept = np.ones(len(source.nbytes), bool)
    if spec.on_corrupt == "fail":
        source.labels(kept)  # what is wrong with them is said before anything is decoded
    if "://" not in str(spec.root):  # tasks run in folders of their own
        spec = spec.model_copy(update={"root": str(Path(str(spec.root)).resolve())})
    cuts = _cuts(spec, source.nbytes)
    records, codec = _make_shards(spec, source, store, cuts)
    if list_source(spec).stamp != source.stamp:
        raise UserError("data.root", spec.root, "changed while it was read", "Run again when nothing writes there.")
    kept[[cut + i for cut, record in zip(cuts, records, strict=False) for i, _ in record.skipped]] = False
    trained = None if source.trained is None else int(kept[: source.trained].sum())
    left_out = dict(source.chosen.left_out) | {"no image": len(kept) - int(kept.sum())}
    labels, classes = source.labels(kept)
    if labels is not None and classes is not None:
        without = int((labels < 0).sum())
        train, _ = train_and_holdout(spec, len(labels), trained, labels)
        labels, classes = of_training(labels, classes, train)
        left_out["no label"], left_out["class that does not train"] = without, int((labels < 0).sum()) - without
        store.put("labels.raw", labels.astype("<i8").tobytes())
    header: dict[str, Any] = {
        "codec": replace(codec, classes=classes).to_json(),
        "rows": [r.rows for r in records],
        "channels": [r.channels for r in records],
        "contents": hashlib.sha256("".join(r.digest for r in records).encode()).hexdigest(),
        "skipped": [name for r in records for _, name in r.skipped],
        "trained": trained,
        "found": _found(spec, records, left_out, source.chosen.splits),
    }
    shards = _shards(spec, store, header)
    header["digest"] = _digest(shards, labels, train_and_holdout(spec, len(shards), trained, labels)[0])
    store.put("spool.json", json.dumps(header).encode())
    return header


def _make_shards(
    spec: ImageDataSpec, source: Source, store: Store, cuts: Sequence[int]
) -> tuple[list[Record], ImageCodec]:
    """The records of all shards, and the shape of all images, without classes.

    What is white in deep images is known when all have been read. So they are first taken to use all that their type
    can hold, and the shards for which that was wrong are made again.
    """
    records, make = _records(store), _by_ray if _ray_runs() else _by_threads
    sizes: set[tuple[int, int]] = set()
    modes: set[str] = set()

    def check(record: Record) -> None:
        sizes.update((int(w), int(h)) for w, _, h in (size.partition("x") for size in record.sizes))
        modes.update(record.modes)
        if sizes:
            common_codec(spec, sizes, modes)

    for record in records.values():
        check(record)
    bounds = list(pairwise(cuts))
    scales = scales_of(spec, {})
    wanted = [i for i in range(len(bounds)) if i not in records]
    while True:
        work = ((i, source.pieces(*bounds[i])) for i in wanted)
        progress = Progress("decode", sum(b - a for a, b in (bounds[i] for i in wanted)))
        for index, record in make(spec, store, work, scales):
            records[index] = record
            check(record)
            progress.update(progress.done + record.items)
        scales = scales_of(spec, joined(record.depths for record in records.values()))
        wanted = [i for i, record in records.items() if not record.follows(scales)]
        if not wanted:
            break
    if not sizes:
        raise UserError("data.root", spec.root, "holds no image that decodes", "Check the files.")
    return [records[i] for i in range(len(bounds))], common_codec(spec, sizes, modes)


def _found(
    spec: ImageDataSpec, records: Sequence[Record], left_out: Mapping[str, int], splits: Mapping[str, str]
) -> dict[str, Any]:
    """What the source held, for people."""
    sizes, modes = Counter[str](), Counter[str]()
    for record in records:
        sizes.update(record.sizes)
        modes.update(record.modes)
    depths, several = joined(record.depths for record in records), sum(record.frames for record in records)
    lines = lines_of(spec, sizes, modes, depths, several)
    return {**lines, "left out": few(left_out), "splits": dict(splits)}


def train_and_holdout(
    spec: ImageDataSpec, n: int, trained: int | None, labels: NDArray[np.int64] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of n rows train and which are held out, both ascending: those of the splits of the source, else by a share;
    without rows that have no label.

    trained: rows of the split that trains, which come first; None: there are no splits.

    Raises:
        UserError: if one part would be empty.
    """
    if trained is None:
        train, holdout = split(spec.holdout, n, "image")
    else:
        train, holdout = np.arange(trained), np.arange(trained, n)
    if labels is not None:
        train, holdout = train[labels[train] >= 0], holdout[labels[holdout] >= 0]
    if not len(train) or not len(holdout):
        rule = f"leaves {len(train)} images to train and {len(holdout)} for the holdout"
        share = "data.holdout=0.5 to hold out more" if trained is None else "data.holdout=0.2 to hold out a share"
        raise UserError("data.root", spec.root, rule, f"Add images, or set {share}.")
    return train, holdout


def of_training(
    labels: NDArray[np.int64], names: tuple[str, ...], train: NDArray[np.int64]
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels and names of the classes that have images to train on; -1 for the other classes."""
    used = np.unique(labels[train])
    renumbered = np.full(len(names), -1, np.int64)
    renumbered[used] = np.arange(len(used))
    return np.where(labels >= 0, renumbered[labels], -1), tuple(names[i] for i in used)


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


def _records(store: Store) -> dict[int, Record]:
    """Of the shards that an earlier call finished."""
    keys = [key for key in store.list("shard-") if key.endswith(".json")]
    with ThreadPoolExecutor(_THREADS) as pool:
        records = [Record(**json.loads(content)) for content in pool.map(store.read, keys)]
    return {int(key[len("shard-") : -len(".json")]): r for key, r in zip(keys, records, strict=True)}


def _digest(shards: "Shards", labels: NDArray[np.int64] | None, train: NDArray[np.int64]) -> str:
    """SHA-256 of the images and labels that train."""
    digest, rows = hashlib.sha256(), Rows(shards, train)
    for start in range(0, len(train), _SHARD_ITEMS):
        digest.update(rows[start : start + _SHARD_ITEMS].tobytes())
    if labels is not None:
        digest.update(labels[train].tobytes())
    return digest.hexdigest()


# --- all shards ----------------------------------------------------------------------------------

_Work = Iterable[tuple[int, Pieces]]


def _by_threads(spec: ImageDataSpec, store: Store, work: _Work, scales: Scales) -> Iterator[tuple[int, Record]]:
    for index, pieces in work:
        yield index, make_shard(spec, store, index, pieces, scales)


def _ray_runs() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def _by_ray(spec: ImageDataSpec, store: Store, work: _Work, scales: Scales) -> Iterator[tuple[int, Record]]:
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
    job = shards.map_batches(_task, fn_kwargs={"spec": spec, "uri": store.uri, "scales": scales}, batch_size=1)
    try:
        for row in job.iter_rows():
            if row["error"]:
                raise UserError(*json.loads(row["error"]))
            yield row["index"], Record(**json.loads(row["record"]))
    except (RayError, TimeoutError) as error:
        raise IncompleteError(f"{store.uri}: the job failed, the same command resumes: {error}") from error


def _task(batch: dict[str, NDArray[Any]], *, spec: ImageDataSpec, uri: str, scales: Scales) -> dict[str, list[Any]]:
    index, record, problem = int(batch["index"][0]), "", ""
    try:
        pieces = json.loads(batch["pieces"][0])
        record = json.dumps(asdict(make_shard(spec, Store(uri), index, pieces, scales)))
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
            content = self.store.read_range(shard_name(shard), row * size, (row + 1) * size)
            return np.frombuffer(content, np.uint8).reshape(shape)

        with ThreadPoolExecutor(_THREADS) as pool:
            images = list(pool.map(one, *(a.tolist() for a in self._places(rows))))
        return stack(images, self.codec.channels)

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
            f"must be seen by every node, and {shard_name(shard)} is not there",
            "On several nodes use an s3:// URI or a shared folder; or delete the folder spool of the run.",
        )

    def _path(self, shard: int) -> Path:
        nbytes = self.rows[shard] * self.codec.size**2 * self.channels[shard]
        local = self.store.path(shard_name(shard))
        return local or fetched(self.store, shard_name(shard), nbytes, self.contents[:32], self.cache)


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a spool, in the place of an array of images."""

    shards: Shards
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, key: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.shards.read(self.index[key])
