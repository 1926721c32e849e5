"""A stream shows what memory shows, in an order that hangs on no machine, in bounded memory."""

import contextlib
import itertools
import json
import pickle
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from test_image_data import bomb, gradient, png, saved

from genai_ray import modalities, rng
from genai_ray.errors import IncompleteError, UserError
from genai_ray.image import ingest
from genai_ray.image import stream as streams
from genai_ray.image.codec import ImageCodec
from genai_ray.image.source import ImageData, load_images, split
from genai_ray.image.spec import ImageDataSpec
from genai_ray.image.stream import CorruptImageWarning, ImageStream, ParquetIndex, Share, decode, pieces, read
from genai_ray.storage import Store

Shown = tuple[NDArray[np.uint8], NDArray[np.int64] | None]


def numbered(count: int, size: int = 8) -> NDArray[np.uint8]:
    """Images (N, H, W, 1) of which no two are alike: the first two pixels are the number."""
    images = np.repeat(gradient(size, 1)[None], count, axis=0)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.divmod(np.arange(count), 256)
    return images


def folder(root: Path, count: int = 41) -> ImageDataSpec:
    for i, image in enumerate(numbered(count)):
        saved(root / "abc"[i % 3] / f"{i:03d}.png", image)
    return ImageDataSpec(source="folder", root=str(root))


def parquet(root: Path, count: int = 300, group: int = 17, files: int = 2) -> ImageDataSpec:
    root.mkdir(parents=True, exist_ok=True)
    cells, labels = [png(i) for i in numbered(count)], [f"class {i % 5}" for i in range(count)]
    for f in range(files):
        part = slice(f * count // files, (f + 1) * count // files)
        table = pa.table({"label": labels[part], "image": cells[part]})
        pq.write_table(table, root / f"{f}.parquet", row_group_size=group)
    return ImageDataSpec(source="parquet", root=str(root))


def raw_parquet(root: Path, count: int = 12_000, group: int = 700) -> ImageDataSpec:
    """Many images of noise that need no decoding, as a sink writes them."""
    root.mkdir(parents=True, exist_ok=True)
    images = numbered(count) ^ np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), np.uint8)
    pixels = pa.array([i.tobytes() for i in images], pa.binary(64))
    field = pa.field("image", pixels.type, metadata={"shape": "[8, 8, 1]", "dtype": "uint8"})
    pq.write_table(pa.table([pixels], pa.schema([field])), root / "a.parquet", row_group_size=group)
    return ImageDataSpec(source="parquet", root=str(root))


MAKERS: dict[str, Any] = {"folder": folder, "parquet": parquet}


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_WINDOW_ROWS", 60)


def opened(spec: ImageDataSpec, **values: Any) -> ImageStream:
    stream = load_images(spec.model_copy(update={"ingest": "stream", **values}))
    assert isinstance(stream, ImageStream)
    return stream


def resident(spec: ImageDataSpec, **values: Any) -> ImageData:
    data = load_images(spec.model_copy(update={"ingest": "resident", **values}))
    assert isinstance(data, ImageData)
    return data


def numbers(images: NDArray[np.uint8]) -> list[int]:
    """What `numbered` gave the images."""
    return (images[:, 0, 0, 0].astype(int) * 256 + images[:, 0, 1, 0]).tolist()


def shown(stream: ImageStream, share: Share, first: int, count: int, rows: int = 7) -> Shown:
    """`count` samples from a turn on, by the functions that tasks call, in this process."""
    chunks = (
        decode(stream, share, encoded)
        for start, stop in pieces(stream, share, first, rows)
        for encoded in read(stream, share, start, stop, rows)
    )
    images, labels, have = [], [], 0
    while have < count:
        chunk = next(chunks)
        images.append(chunk.images)
        labels.append(chunk.labels)
        have += len(chunk.images)
    return np.concatenate(images)[:count], (None if labels[0] is None else np.concatenate(labels)[:count])


def by_ray(stream: ImageStream, steps: int, **arguments: Any) -> Shown:
    """The batches of some steps, one after another."""
    arguments = {"seed": 3, "first_step": 0, "wait_s": 60.0} | arguments
    with contextlib.closing(ingest.batches(stream, **arguments)) as batches:
        taken = list(itertools.islice(batches, steps))
    labels = [x for _, x in taken if x is not None]
    return np.concatenate([i for i, _ in taken]), np.concatenate(labels) if labels else None


def training(data: ImageData | ImageStream) -> Shown:
    return data.train_images, data.train_labels


def assert_same(one: Shown, other: Shown) -> None:
    np.testing.assert_array_equal(one[0], other[0])
    assert (one[1] is None) == (other[1] is None)
    if one[1] is not None and other[1] is not None:
        np.testing.assert_array_equal(one[1], other[1])


# --- the order -----------------------------------------------------------------------------------


def resident_order(data: ImageData, seed: int, count: int) -> Shown:
    """The first samples that training shows from memory."""
    n = len(data.train_images)
    epochs = [
        rng.permute(rng.fold(seed, e), rng.Stream.TRAIN_ORDER, np.arange(n), n) for e in range(count // n + 1)
    ]
    index = np.concatenate(epochs)[:count]
    return data.train_images[index], None if data.train_labels is None else data.train_labels[index]


@pytest.mark.parametrize("seed", [0, 7])
def test_a_folder_is_shown_as_from_memory(tmp_path: Path, seed: int):
    spec = folder(tmp_path)
    expected = resident_order(resident(spec), seed, 100)
    assert_same(shown(opened(spec), Share(seed, 10, 0, 10), 0, 100), expected)


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("source", MAKERS)
def test_an_epoch_shows_every_sample_once(tmp_path: Path, source: str):
    stream = opened(MAKERS[source](tmp_path))
    truth = resident(stream.spec)
    n = stream.n
    images, labels = shown(stream, Share(5, 8, 0, 8), 0, 3 * n)
    assert labels is not None
    epochs = [numbers(images[e * n : (e + 1) * n]) for e in range(3)]
    assert epochs[0] != epochs[1] != epochs[2]
    for epoch in epochs:
        assert sorted(epoch) == sorted(numbers(truth.train_images))
    assert truth.train_labels is not None
    label_of = dict(zip(numbers(truth.train_images), truth.train_labels.tolist(), strict=True))
    assert labels.tolist() == [label_of[i] for i in numbers(images)]


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("source", MAKERS)
def test_shares_join_to_the_batch_and_any_step_can_be_the_first(tmp_path: Path, source: str):
    stream = opened(MAKERS[source](tmp_path))
    batch, steps = 12, 25
    images, _ = shown(stream, Share(1, batch, 0, batch), 0, steps * batch, rows=5)
    whole = np.array(numbers(images)).reshape(steps, batch)
    for bounds in ([0, 4, 8, 12], [0, 1, 12]):
        for first in (0, 7):
            parts = []
            for lo, hi in itertools.pairwise(bounds):
                begin, end = first * (hi - lo), steps * (hi - lo)
                parts.append(shown(stream, Share(1, batch, lo, hi), begin, end - begin))
            joined = np.hstack([np.array(numbers(i)).reshape(steps - first, -1) for i, _ in parts])
            assert joined.tolist() == whole[first:].tolist()


@pytest.mark.usefixtures("small_windows")
def test_a_window_mixes_whole_row_groups(tmp_path: Path):
    stream = opened(parquet(tmp_path))
    assert isinstance(stream.index, ParquetIndex)
    starts = stream.starts(2, 0)
    assert len(starts) > 3
    samples = stream.samples(2, np.arange(stream.n))
    groups = [set(stream.index.group_of(samples[a:b])) for a, b in itertools.pairwise(starts)]
    assert all(len(mixed) >= 4 for mixed in groups)
    assert sum(len(mixed) for mixed in groups) == len(set().union(*groups))
    first = stream.index.group_of(samples[: starts[1]])
    assert len(set(first[:12])) >= 3, "rows of a window are shuffled, not row groups alone"


def synthetic(rows: list[int], nbytes: int, seed: int) -> ImageStream:
    """A stream of Parquet that does not exist, with these rows in its row groups."""
    groups, total = len(rows), sum(rows)
    index = ParquetIndex(
        (("a", 1),),
        np.zeros(groups, np.int32),
        np.arange(groups, dtype=np.int32),
        np.cumsum(rows),
        np.array(rows) * nbytes,
        "image",
        None,
        None,
        False,
        "",
    )
    held = rng.permute(seed, 1, np.arange(total // 3), total)
    train = np.setdiff1d(np.arange(total), held)
    return ImageStream(ImageDataSpec(), ImageCodec(8, 1, None), index, train)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, 3000), min_size=1, max_size=30).filter(sum),
    st.sampled_from([10, 30_000, 10**7]),
    st.integers(0, 2**32),
    st.integers(0, 10**6),
    st.integers(1, 300),
)
def test_the_plan_of_parquet(rows: list[int], nbytes: int, seed: int, start: int, batch: int):
    stream = synthetic(rows, nbytes, seed)
    n, epoch = stream.n, start // stream.n
    starts = stream.starts(seed, epoch)
    assert (starts[0], starts[-1]) == (0, n)
    assert np.all(np.diff(starts) > 0)
    # Every sample once, and each row group in one window.
    samples = stream.samples(seed, epoch * n + np.arange(n))
    assert sorted(samples) == stream.train.tolist()
    assert isinstance(stream.index, ParquetIndex)
    groups = [set(stream.index.group_of(samples[a:b])) for a, b in itertools.pairwise(starts)]
    assert sum(len(mixed) for mixed in groups) == len(set().union(*groups))
    # What stands at a position can be said without what stands before.
    alone = [int(stream.samples(seed, np.array([start + i]))[0]) for i in range(3)]
    assert alone == stream.samples(seed, start + np.arange(3)).tolist()
    window = stream.window(seed, start)
    assert start in window
    assert (window.start - epoch * n, window.stop - epoch * n) in itertools.pairwise(starts)
    # Pieces follow one another, cover what a worker shows, and cross no window.
    lo = seed % batch
    share = Share(seed, batch, lo, min(batch, lo + 1 + seed % 7))
    first = share.turns_before(start)
    assert share.turns_before(int(share.positions(first, first + 1)[0])) == first
    for begin, end in itertools.islice(pieces(stream, share, first, 50), 4):
        assert begin == first < end
        windows = {stream.window(seed, int(p)) for p in share.positions(begin, end)[[0, -1]]}
        assert len(windows) == 1
        first = end


# --- what is there -------------------------------------------------------------------------------


@pytest.mark.parametrize("source", MAKERS)
def test_a_stream_has_the_split_and_the_codec_of_memory(tmp_path: Path, source: str):
    stream = opened(MAKERS[source](tmp_path))
    truth = resident(stream.spec)
    assert stream.codec == truth.codec
    assert stream.n == len(truth.train_images)
    assert_same((stream.train_images, stream.train_labels), (truth.train_images, truth.train_labels))
    assert_same((stream.holdout_images, stream.holdout_labels), (truth.holdout_images, truth.holdout_labels))
    assert stream.skipped == ()


@pytest.mark.parametrize("source", MAKERS)
def test_what_is_kept_for_measurements_is_few_and_from_everywhere(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(streams, "SAMPLE", 12)
    stream = opened(MAKERS[source](tmp_path))
    truth, some = numbers(resident(stream.spec).train_images), numbers(stream.train_images)
    assert len(some) == 12
    assert len(stream.holdout_images) <= 12
    assert set(some) < set(truth)
    assert np.mean(some) == pytest.approx(np.mean(truth), rel=0.5)
    assert numbers(opened(stream.spec).train_images) == some


def test_a_stream_that_travels_is_small(tmp_path: Path):
    stream = opened(folder(tmp_path))
    before = len(pickle.dumps(stream))
    assert len(stream.train_images) == stream.n
    copy: ImageStream = pickle.loads(pickle.dumps(stream))
    assert len(pickle.dumps(stream)) == before < 5000
    assert copy.digest == stream.digest
    assert_same(shown(copy, Share(0, 4, 0, 4), 0, 20), shown(stream, Share(0, 4, 0, 4), 0, 20))


@pytest.mark.parametrize("source", MAKERS)
def test_the_digest_is_of_names_sizes_and_shape(tmp_path: Path, source: str):
    spec = MAKERS[source](tmp_path / "one")
    digest = opened(spec).digest
    assert opened(MAKERS[source](tmp_path / "two")).digest == digest
    assert opened(spec, size=16).digest != digest
    assert opened(spec, holdout=0.5).digest != digest
    assert opened(MAKERS[source](tmp_path / "three", 40)).digest != digest


@pytest.mark.parametrize("source", MAKERS)
def test_auto_streams_what_decodes_to_more_than_may_stay(tmp_path: Path, source: str):
    spec = MAKERS[source](tmp_path)
    count = 41 if source == "folder" else 300
    decoded_gb = count * 64 / 1e9
    for size, gb in ((None, decoded_gb), (16, 4 * decoded_gb)):
        few, enough = (
            spec.model_copy(update={"size": size, "resident_gb": gb * share}) for share in (0.99, 1.01)
        )
        assert isinstance(load_images(few), ImageStream)
        assert isinstance(load_images(enough), ImageData)
    assert isinstance(load_images(spec), ImageData)


def test_only_files_can_be_streamed():
    with pytest.raises(UserError, match="cannot stream the source mnist") as caught:
        modalities.parse({"name": "run", "data": {"source": "mnist", "ingest": "stream"}})
    assert caught.value.field == "data.ingest"


def test_a_stream_without_the_classes_asked_for(tmp_path: Path):
    spec = raw_parquet(tmp_path, 20).model_copy(update={"ingest": "stream"})
    with pytest.raises(UserError, match="needs labels") as caught:
        load_images(spec, conditional=True)
    assert caught.value.field == "model.conditional"


@pytest.mark.parametrize("encoding", ["png", "raw"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_a_sink_wrote_is_streamed(tmp_path: Path, encoding: str, channels: int):
    from genai_ray.image.parquet import write_parquet
    from genai_ray.image.rows import ImageRows

    codec = ImageCodec(8, channels, ("T-shirt/top", "Bag"))
    images = np.repeat(numbered(30), channels, axis=3)
    rows = ImageRows(0, 0, images, np.arange(30) % 2, codec, encoding, {})
    write_parquet(rows, Store(str(tmp_path)))
    stream = opened(ImageDataSpec(source="parquet", root=str(tmp_path)))
    truth = resident(stream.spec)
    assert stream.codec == truth.codec == codec
    assert_same((stream.train_images, stream.train_labels), (truth.train_images, truth.train_labels))


def test_files_of_parquet_that_do_not_fit_together(tmp_path: Path):
    spec = parquet(tmp_path)
    pq.write_table(pa.table({"image": [png(numbered(1)[0])]}), tmp_path / "2.parquet")
    with pytest.raises(UserError, match=r"other columns in 2\.parquet"):
        opened(spec)


# --- images that are not as they should be -------------------------------------------------------


def spoil(spec: ImageDataSpec, number: int, content: bytes) -> str:
    """Put other content in the place of an image that trains; what a message calls it."""
    root = Path(str(spec.root))
    if spec.source == "folder":
        path = root / "abc"[number % 3] / f"{number:03d}.png"
        path.write_bytes(content)
        return path.relative_to(root).as_posix()
    file, row = divmod(number, 150)
    path = root / f"{file}.parquet"
    columns = pq.read_table(path).to_pydict()
    columns["image"][row] = content
    pq.write_table(pa.table(columns), path, row_group_size=17)
    return f"{file}.parquet row {row}"


def trained(spec: ImageDataSpec) -> int:
    """The number of an image that trains, and is not the first one that is looked at."""
    return sorted(numbers(resident(spec).train_images))[-2]


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("source", MAKERS)
def test_a_corrupt_image_is_named_or_replaced(tmp_path: Path, source: str):
    spec = MAKERS[source](tmp_path)
    number = trained(spec)
    stream, share, n = opened(spec), Share(4, 10, 0, 10), opened(spec).n
    whole = numbers(shown(stream, share, 0, n)[0])
    name = spoil(spec, number, bomb())
    skipping = opened(spec, on_corrupt="skip")
    failing = ImageStream(spec, skipping.codec, skipping.index, skipping.train)
    with pytest.raises(UserError) as caught:
        shown(failing, share, 0, n)
    assert name in str(caught.value.value)
    assert "on_corrupt=skip" in caught.value.remedy

    place = whole.index(number)
    window = skipping.window(share.seed, place)
    instead = whole[window.start + (place + 1 - window.start) % len(window)]
    expected = [*whole[:place], instead, *whole[place + 1 :]]
    images, labels = shown(skipping, share, 0, n)
    assert numbers(images) == expected
    assert labels is not None
    assert labels[place] == labels[expected.index(instead)]
    # Neither the share nor the cut into chunks decides what stands in.
    lo = place % 10
    images, _ = shown(skipping, Share(4, 10, lo, lo + 1), place // 10, 1, rows=1)
    assert numbers(images) == [instead]
    assert skipping.skipped == (name,)
    assert number not in numbers(skipping.train_images)


def test_nothing_but_corrupt_images(tmp_path: Path):
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(b"x")
    with pytest.raises(UserError, match="no image that decodes"):
        opened(ImageDataSpec(source="folder", root=str(tmp_path)), on_corrupt="skip")
    with pytest.raises(UserError, match=r"\d\.png.*must be an image that decodes"):
        opened(ImageDataSpec(source="folder", root=str(tmp_path)))


@pytest.mark.parametrize(
    ("other", "field", "rule", "mend"),
    [
        (gradient(16, 1), "data.size", "measures 16x16 and others 8x8", {"size": 8}),
        (gradient(8, 3), "data.channels", "has colours", {"channels": 3}),
    ],
    ids=["size", "colours"],
)
@pytest.mark.parametrize("source", MAKERS)
def test_an_image_of_another_kind_is_named(
    tmp_path: Path,
    source: str,
    other: Any,
    field: str,
    rule: str,
    mend: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
):
    # So few heads are looked at that it is not among them.
    monkeypatch.setattr(streams, "_HEADS", 1)
    monkeypatch.setattr(streams, "_HEAD_GROUPS", 1)
    spec = MAKERS[source](tmp_path)
    name = spoil(spec, trained(spec), png(other))
    stream = opened(spec)
    with pytest.raises(UserError) as caught:
        shown(stream, Share(0, 10, 0, 10), 0, stream.n)
    assert caught.value.field == field
    assert name in caught.value.rule
    assert rule in caught.value.rule
    mended = opened(spec, **mend)
    assert len(shown(mended, Share(0, 10, 0, 10), 0, stream.n)[0]) == stream.n


def test_a_file_that_went_away_is_named(tmp_path: Path):
    stream = opened(folder(tmp_path))
    (tmp_path / "a" / "000.png").unlink()
    (tmp_path / "b" / "001.png").unlink()
    with pytest.raises(UserError, match="must stay as it was"):
        shown(stream, Share(0, 10, 0, 10), 0, stream.n)


# --- Ray -----------------------------------------------------------------------------------------


def uploaded(spec: ImageDataSpec, uri: str) -> ImageDataSpec:
    local, remote = Store(str(spec.root)), Store(uri)
    for key in local.list():
        remote.put(key, local.read(key))
    return spec.model_copy(update={"root": uri})


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_folder_of_s3_is_shown_as_from_memory_over_epochs(tmp_path: Path, s3_uri: str):
    spec = folder(tmp_path)
    stream, expected = opened(uploaded(spec, s3_uri)), resident_order(resident(spec), 3, 70)
    assert stream.digest == opened(spec).digest
    images, labels = by_ray(stream, 5, global_batch=10, lo=0, hi=10, first_step=2)
    assert expected[1] is not None
    assert_same((images, labels), (expected[0][20:], expected[1][20:]))
    assert images.flags.writeable


@pytest.mark.slow
@pytest.mark.s3
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_workers_that_hold_all_processors_are_fed_their_shares(tmp_path: Path, s3_uri: str):
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    stream = opened(uploaded(raw_parquet(tmp_path), s3_uri))
    assert len(stream.starts(3, 0)) > 2
    share = Share(3, 1000, 0, 1000)
    expected = shown(stream, share, 2000, 10_000, rows=999)[0]  # into the second epoch

    def take(lo: int, hi: int) -> NDArray[np.uint8]:
        batches = ingest.batches(stream, seed=3, global_batch=1000, first_step=2, lo=lo, hi=hi, wait_s=60)
        return np.stack([images for images, _ in itertools.islice(batches, 10)])

    group = placement_group([{"CPU": 1}] * 2)
    assert group.wait(60)
    # As the workers of Ray Train, and with tasks kept in the group, which is the harder case.
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
    worker = ray.remote(num_cpus=1, scheduling_strategy=strategy)(take)
    try:
        parts = ray.get([worker.remote(0, 300), worker.remote(300, 1000)], timeout=100)
    finally:
        remove_placement_group(group)
    np.testing.assert_array_equal(np.concatenate(parts, axis=1).reshape(expected.shape), expected)


@pytest.mark.s3
@pytest.mark.usefixtures("s3_stack")
def test_a_parquet_file_of_s3_is_read_in_parts(tmp_path: Path, s3_uri: str, monkeypatch: pytest.MonkeyPatch):
    spec = uploaded(raw_parquet(tmp_path), s3_uri)
    read_bytes = 0
    real = streams._Ranges.read

    def counted(self: Any, size: int = -1) -> bytes:
        nonlocal read_bytes
        data = real(self, size)
        read_bytes += len(data)
        return data

    monkeypatch.setattr(streams._Ranges, "read", counted)
    whole = Path(tmp_path / "a.parquet").stat().st_size
    stream = opened(spec.model_copy(update={"root": f"{s3_uri}/a.parquet"}))
    assert read_bytes < whole / 4
    stream.index.read(stream.spec, np.array([5, 7, 11]))
    assert read_bytes < whole / 2
    with pytest.raises(UserError, match="must be readable Parquet"):
        opened(spec.model_copy(update={"root": f"{s3_uri}/b.parquet"}))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_what_is_wrong_with_an_image_reaches_the_driver(tmp_path: Path):
    spec = folder(tmp_path)
    name = spoil(spec, trained(spec), b"not an image")
    skipping = opened(spec, on_corrupt="skip")
    failing = ImageStream(spec, skipping.codec, skipping.index, skipping.train)
    with pytest.raises(UserError) as caught:
        by_ray(failing, 4, global_batch=10, lo=0, hi=10)
    assert type(caught.value) is UserError
    assert name in str(caught.value.value)
    with pytest.warns(CorruptImageWarning, match=f"{name} does not decode; .* in its place"):
        found = by_ray(skipping, 4, global_batch=10, lo=0, hi=10)
    assert_same(found, shown(skipping, Share(3, 10, 0, 10), 0, 40))


def test_a_wait_has_an_end():
    def late() -> Iterator[int]:
        yield 1
        time.sleep(2)
        yield 2

    with contextlib.closing(ingest._ahead(late, 0.2)) as items:  # pyright: ignore
        assert next(items) == 1
        with pytest.raises(IncompleteError, match=r"no batch of images came for 0\.2 s"):
            next(items)


def test_what_goes_wrong_ahead_is_raised_and_what_is_left_is_closed():
    closed = []

    def endless(fail: bool) -> Iterator[int]:
        try:
            yield from range(10)
            if fail:
                raise UserError("field", 1, "rule", "remedy")
            yield from itertools.count()
        finally:
            closed.append(fail)

    with pytest.raises(UserError, match="field: got 1"):
        list(ingest._ahead(lambda: endless(True), 5))  # pyright: ignore
    with contextlib.closing(ingest._ahead(lambda: endless(False), 5)) as items:  # pyright: ignore
        assert list(itertools.islice(items, 30))[-5:] == [15, 16, 17, 18, 19]
    deadline = time.monotonic() + 10
    while len(closed) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert closed == [True, False]


# --- larger than memory --------------------------------------------------------------------------

_EPOCH = """
import contextlib, itertools, json, sys, zlib
import psutil, ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from genai_ray.image import ingest
from genai_ray.image.source import load_images

ray.init(address="local", num_cpus=2, object_store_memory=80_000_000, include_dashboard=False,
         log_to_driver=False)
state = get_state_from_address(ray.get_runtime_context().gcs_address)
stream = load_images(config.ImageDataSpec(**json.loads(sys.argv[1])))
store = ray.cluster_resources()["object_store_memory"]
sums, used, grown = 0, 0, []
arguments = dict(seed=0, global_batch=100, first_step=0, lo=0, hi=100, wait_s=100)
with contextlib.closing(ingest.batches(stream, **arguments)) as batches:
    for images, _ in itertools.islice(batches, stream.n // 100):
        sums += sum(zlib.crc32(i.tobytes()) for i in images)
        stats = get_memory_info_reply(state).store_stats
        # Pinned ones only: what is released stays until the room is wanted, or a second is over.
        used = max(used, stats.object_store_bytes_primary_copy)
        memory = psutil.Process().memory_info()
        grown.append(memory.rss - memory.shared)  # the store is shared memory
print(json.dumps(dict(n=stream.n, sums=sums, store=store, used=used, grown=grown[-1] - grown[0],
                      spilled=stats.spilled_bytes_total)))
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_an_epoch_of_more_than_the_object_store_holds(tmp_path: Path, source: str):
    noise = np.random.default_rng(0).integers(0, 256, (5000, 32, 32, 3), np.uint8)
    spec = ImageDataSpec(source="folder", root=str(tmp_path), size=128, resident_gb=0.1)
    if source == "folder":
        for i, image in enumerate(noise):
            (tmp_path / f"{i:04d}.png").write_bytes(png(image))
    else:
        spec = spec.model_copy(update={"source": "parquet"})
        cells = pa.array([i.tobytes() for i in noise], pa.binary(32 * 32 * 3))
        field = pa.field("image", cells.type, metadata={"shape": "[32, 32, 3]"})
        table = pa.table([cells], pa.schema([field]))
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    codec = ImageCodec(128, 3, None)
    truth = sum(
        zlib.crc32(codec.encode(Image.fromarray(noise[i])).tobytes()) for i in split(None, 5000, "image")[0]
    )

    done = subprocess.run(
        [sys.executable, "-c", _EPOCH, spec.model_dump_json()], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["n"] == 4000
    assert found["sums"] == truth
    decoded = found["n"] * 128 * 128 * 3
    assert decoded > 2 * found["store"]
    assert found["spilled"] == 0
    assert 0 < found["used"] < 0.5 * found["store"]
    assert found["grown"] < decoded / 4


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(240)
@pytest.mark.usefixtures("ray_cluster")
def test_a_streamed_run_learns_what_a_resident_one_learns(tmp_path: Path):
    from conftest import load_resident, small_spec

    from genai_ray.image.spec import ImageDataSpec
    from genai_ray.training import checkpoint
    from genai_ray.training.train import train

    digits = load_resident(ImageDataSpec())
    assert digits.train_labels is not None
    for number, (image, label) in enumerate(zip(digits.train_images, digits.train_labels, strict=True)):
        path = tmp_path / "pictures" / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
    states = []
    for mode in ("resident", "stream"):
        spec = small_spec(
            tmp_path / mode,
            "data.source=folder",
            f"data.root={tmp_path / 'pictures'}",
            f"data.ingest={mode}",
            "train.workers=1",
        )
        train(spec)
        state = checkpoint.latest(Store(spec.run_uri))
        assert state is not None
        states.append(state["average"])
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
