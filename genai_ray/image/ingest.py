"""Batches of a stream of images, read and decoded by Ray Data while the model trains.

    pieces of the order -> read (Parquet: a window) -> decode a chunk -> batches, in order

Tasks reserve no processor, since workers may hold all of them; how many run at once is bounded
here. A chunk is a block of one row: a few megabytes, of which back-pressure lets only so many
exist. No credentials travel: a task finds them in its environment, as every Store does.
"""

import contextlib
import json
import logging
import math
import queue
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genai_ray.errors import IncompleteError, UserError
from genai_ray.image import stream as streams
from genai_ray.image.codec import ImageCodec
from genai_ray.image.stream import CorruptImageWarning, Decoded, Encoded, ImageStream, Share

_T = TypeVar("_T")

_PIECES = 512  # in one execution of a plan; executions follow one another without end
_CHUNK_BYTES = (1 << 20, 16 << 20)  # of decoded pixels, least and most
_CHUNK_ROWS = 2048
_CHUNKS_IN_MEMORY = 16
_FAREWELL_S = 10.0  # for the tasks that run when nobody wants more
# Of the object store, for all workers together. What is released takes a second to leave it.
_STORE_SHARE = 0.3


def batches(
    stream: ImageStream,
    *,
    seed: int,
    global_batch: int,
    first_step: int,
    lo: int,
    hi: int,
    wait_s: float = 600.0,
) -> Generator[tuple[NDArray[np.uint8], NDArray[np.int64] | None], None, None]:
    """Samples lo..hi of each global batch from a first step on, without end.

    Runs in a worker of Ray Train, or in any process that has joined Ray. Close the iterator (or
    drop it) to stop the tasks behind it.

    Yields:
        images (hi - lo, H, W, C), writable, and labels (hi - lo,) or None without classes.

    Raises:
        UserError: naming an image that does not decode, or is of another size.
        IncompleteError: if nothing came for `wait_s` seconds.
    """
    assert 0 <= lo < hi <= global_batch
    share, size = Share(seed, global_batch, lo, hi), hi - lo
    shape, labelled = _shape(stream.codec), stream.codec.classes is not None
    images, labels = np.empty((size, *shape), np.uint8), np.empty(size, np.int64)
    filled = 0
    chunks = _ahead(lambda: _chunks(stream, share, first_step * size), wait_s)
    with contextlib.closing(chunks):
        for chunk in chunks:
            for note in chunk.skipped:
                warnings.warn(note, CorruptImageWarning, stacklevel=2)
            at = 0
            while at < len(chunk.images):
                count = min(size - filled, len(chunk.images) - at)
                images[filled : filled + count] = chunk.images[at : at + count]
                if chunk.labels is not None:
                    labels[filled : filled + count] = chunk.labels[at : at + count]
                at, filled = at + count, filled + count
                if filled == size:
                    yield images, labels if labelled else None
                    images, labels, filled = np.empty_like(images), np.empty_like(labels), 0


def _chunks(stream: ImageStream, share: Share, first: int) -> Generator[Decoded, None, None]:
    """Decoded chunks of one worker's share in order, from a turn on, without end."""
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # It warns when bars are off.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    resources = ray.cluster_resources()
    part = (share.hi - share.lo) / share.batch
    memory = _STORE_SHARE * part * resources["object_store_memory"]
    image_bytes = math.prod(_shape(stream.codec))
    least, most = _CHUNK_BYTES
    chunk_bytes = min(most, max(least, int(memory) // _CHUNKS_IN_MEMORY))
    rows = min(_CHUNK_ROWS, max(1, chunk_bytes // image_bytes))
    # One more than there are processors, for the time that one waits for the store.
    tasks = math.ceil(resources.get("CPU", 1) * part) + 1
    arguments = {"stream": ray.put(stream), "share": share, "rows": rows}
    waiting = streams.pieces(stream, share, first, rows)
    while True:
        some = list(islice(waiting, _PIECES))
        expected = sum(math.ceil((stop - start) / rows) for start, stop in some)
        dataset = _plan(some, expected, arguments, tasks, part)
        blocks = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
        with contextlib.closing(iter(blocks)) as blocks:
            for block in blocks:
                yield _unpack_decoded(block, stream.codec)
                expected -= 1
        if expected:  # as when Ray is shut down in the middle
            raise IncompleteError("Ray ended the stream of images before its end")


def _plan(
    pieces: list[tuple[int, int]], chunks: int, arguments: dict[str, Any], tasks: int, part: float
) -> Any:
    """The data set of some pieces: rows of one decoded chunk each, `chunks` of them, in order."""
    import ray.data
    from ray.data import TaskPoolStrategy

    items = [{"start": start, "stop": stop} for start, stop in pieces]
    dataset: Any = ray.data.from_items(items, override_num_blocks=len(items))
    context = dataset.context
    context.execution_options.preserve_order = True
    context.override_object_store_memory_limit_fraction = _STORE_SHARE * part
    context.target_max_block_size = 1  # so that each row is a block
    # Of Ray 2.60: it holds decoding back by what the iterator reported last, which stays as it was
    # while the iterator waits, and so for ever once reading has filled its part of the store.
    context.downstream_capacity_backpressure_ratio = None
    context.execution_no_progress_timeout_s = -1  # training may pause as long as it likes
    context.enable_progress_bars = False
    context.issue_detectors_config.detectors = []
    options: dict[str, Any] = {
        "batch_size": 1,
        "batch_format": "pyarrow",
        "num_cpus": 0,
        "fn_kwargs": arguments,
        "label_selector": _nodes_with_processors(),
    }
    pool = TaskPoolStrategy(size=min(tasks, chunks))  # more than there is to do is warned of
    if chunks == len(pieces):
        return dataset.map_batches(_read_and_decode, compute=pool, **options)
    # Two windows, so that the next is read while one is decoded. Memory that only one of the two
    # steps asks for keeps Ray from fusing them, which would decode a window in one task.
    readers = TaskPoolStrategy(size=min(2, len(pieces)))
    dataset = dataset.map_batches(_read, compute=readers, memory=256 << 20, **options)
    return dataset.map_batches(_decode, compute=pool, **options)


def _nodes_with_processors() -> dict[str, str] | None:
    """Leaves out nodes such as a head that offers no CPU, where a task of 0 CPU could run too."""
    import ray

    without = [n["NodeID"] for n in ray.nodes() if n["Alive"] and not n["Resources"].get("CPU")]
    return {"ray.io/node-id": f"!in({','.join(without)})"} if without else None


# --- in tasks ------------------------------------------------------------------------------------


def _read(block: pa.Table, *, stream: Any, share: Share, rows: int) -> Iterator[pa.Table]:
    import ray

    source: ImageStream = ray.get(stream)
    start, stop = (block.column(name)[0].as_py() for name in ("start", "stop"))
    try:
        for encoded in streams.read(source, share, start, stop, rows):
            yield _pack_encoded(encoded)
    except UserError as error:
        yield _pack_error(error)


def _decode(block: pa.Table, *, stream: Any, share: Share, rows: int) -> pa.Table:
    import ray

    if "error" in block.column_names:
        return block
    try:
        return _pack_decoded(streams.decode(ray.get(stream), share, _unpack_encoded(block)))
    except UserError as error:
        return _pack_error(error)


def _read_and_decode(block: pa.Table, *, stream: Any, share: Share, rows: int) -> Iterator[pa.Table]:
    for encoded in _read(block, stream=stream, share=share, rows=rows):
        yield _decode(encoded, stream=stream, share=share, rows=rows)


# --- a chunk as a table of one row, each cell a list ---------------------------------------------


def _pack(**cells: Any) -> pa.Table:
    arrays = {k: v if isinstance(v, pa.Array) else pa.array(v) for k, v in cells.items()}
    return pa.table(
        {k: pa.LargeListArray.from_arrays(pa.array([0, len(v)], pa.int64()), v) for k, v in arrays.items()}
    )


def _cell(block: pa.Table, name: str) -> Any:
    return block.column(name)[0].values


def _pack_encoded(chunk: Encoded) -> pa.Table:
    labels = {} if chunk.labels is None else {"labels": chunk.labels}
    return _pack(positions=chunk.positions, samples=chunk.samples, contents=chunk.contents, **labels)


def _unpack_encoded(block: pa.Table) -> Encoded:
    labels = _cell(block, "labels").to_numpy() if "labels" in block.column_names else None
    positions, samples = (_cell(block, k).to_numpy() for k in ("positions", "samples"))
    return Encoded(positions, samples, _cell(block, "contents"), labels)


def _pack_decoded(chunk: Decoded) -> pa.Table:
    labels = {} if chunk.labels is None else {"labels": chunk.labels}
    return _pack(pixels=chunk.images.reshape(-1), skipped=pa.array(chunk.skipped, pa.string()), **labels)


def _unpack_decoded(block: pa.Table, codec: ImageCodec) -> Decoded:
    if "error" in block.column_names:
        raise UserError(*json.loads(_cell(block, "error")[0].as_py()))
    labels = _cell(block, "labels").to_numpy() if "labels" in block.column_names else None
    images = _cell(block, "pixels").to_numpy().reshape(-1, *_shape(codec))
    return Decoded(images, labels, tuple(_cell(block, "skipped").to_pylist()))


def _pack_error(error: UserError) -> pa.Table:
    # As a value: raised in a task it would arrive as a failure of Ray.
    return _pack(error=[json.dumps([error.field, error.value, error.rule, error.remedy])])


def _shape(codec: ImageCodec) -> tuple[int, int, int]:
    return codec.size, codec.size, codec.channels


# --- waiting -------------------------------------------------------------------------------------


def _ahead(make: Callable[[], Generator[_T, None, None]], wait_s: float) -> Generator[_T, None, None]:
    """What a generator yields, drawn one ahead in a thread, so that a wait can have an end.

    Raises:
        IncompleteError: if nothing came for `wait_s` seconds.
    """
    box: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=1)
    stopped = threading.Event()

    def put(came: bool, value: Any) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                box.put((came, value), timeout=0.2)
                return

    def draw() -> None:
        try:
            with contextlib.closing(make()) as items:
                for item in items:
                    put(True, item)
                    if stopped.is_set():
                        return
        except BaseException as error:
            put(False, error)

    # A daemon, as nothing can end it while it waits inside Ray.
    thread = threading.Thread(target=draw, daemon=True, name="ingest")
    thread.start()
    try:
        while True:
            try:
                came, value = box.get(timeout=wait_s)
            except queue.Empty:
                raise IncompleteError(
                    f"no batch of images came for {wait_s:g} s: the store may hang, or the "
                    "cluster have no node to decode on; the same command goes on from here"
                ) from None
            if not came:
                raise value
            yield value
    finally:
        stopped.set()
        thread.join(_FAREWELL_S)
