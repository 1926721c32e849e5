"""Images are decoded once into raw shards: whole or not used, the same by any way, and read in an order that
depends on (seed, step) alone, in bounded memory.
"""

import contextlib
import hashlib
import io
import itertools
import json
import os
import pickle
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import kill_when, load_resident, small_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from test_image_data import bomb, gradient, png, saved

from genai_ray import modalities, rng
from genai_ray.errors import UserError
from genai_ray.image import source as images
from genai_ray.image import spool as spools
from genai_ray.image.codec import ImageCodec
from genai_ray.image.decode import make_shard
from genai_ray.image.files import list_source
from genai_ray.image.pixels import FULL
from genai_ray.image.source import Spooled, in_memory, load_images
from genai_ray.image.spec import ImageDataSpec
from genai_ray.image.spool import Rows
from genai_ray.order import Blocks, split
from genai_ray.storage import Store
from genai_ray.training import checkpoint
from genai_ray.training.train import train

Shown = tuple[NDArray[np.uint8], NDArray[np.int64] | None]


def numbered(count: int, size: int = 8) -> NDArray[np.uint8]:
    """Images (N, H, W, 1) of which no two are alike: the first two pixels are the number."""
    pixels = np.repeat(gradient(size, 1)[None], count, axis=0)
    pixels[:, 0, 0, 0], pixels[:, 0, 1, 0] = np.divmod(np.arange(count), 256)
    return pixels


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


MAKERS: dict[str, Any] = {"folder": folder, "parquet": parquet}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spools, "_SHARD_ITEMS", 7)


def opened(spec: ImageDataSpec, run: Path | str, **values: Any) -> Spooled:
    data = load_images(spec.model_copy(update=values), Store(str(run)))
    assert isinstance(data.train_images, Rows)
    return data  # pyright: ignore[reportReturnType]


def files(run: Path) -> dict[str, str]:
    """Digests of the files of all spools of a run."""
    paths = sorted(p for p in run.rglob("*") if p.is_file())
    return {p.relative_to(run).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def numbers(pixels: NDArray[np.uint8]) -> list[int]:
    """What `numbered` gave the images."""
    return (pixels[:, 0, 0, 0].astype(int) * 256 + pixels[:, 0, 1, 0]).tolist()


def assert_same(one: Shown, other: Shown) -> None:
    np.testing.assert_array_equal(one[0], other[0])
    assert (one[1] is None) == (other[1] is None)
    if one[1] is not None and other[1] is not None:
        np.testing.assert_array_equal(one[1], other[1])


# --- the order -----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", MAKERS)
def test_a_spool_is_shown_in_the_order_of_arrays(tmp_path: Path, source: str):
    spec = MAKERS[source](tmp_path / "source")
    data = opened(spec, tmp_path)
    arrays = in_memory(data)
    assert data.digest == images.ImageData(arrays.codec, *_four(arrays)).digest
    n = data.n
    order = [rng.permute(rng.fold(5, e), rng.Stream.TRAIN_ORDER, np.arange(n), n) for e in range(3)]
    assert arrays.train_labels is not None
    expected = np.concatenate(order)
    shown = data.at(5, 0, 3 * n)
    assert_same(shown, (arrays.train_images[expected], arrays.train_labels[expected]))
    assert shown[0].flags.writeable
    assert_same(data.at(5, 13, 40), arrays.at(5, 13, 40))


def _four(arrays: Any) -> Any:
    return arrays.train_images, arrays.train_labels, arrays.holdout_images, arrays.holdout_labels


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=30).filter(sum),
    st.integers(1, 12),
    st.integers(0, 2**32),
    st.integers(0, 10**5),
)
def test_the_order_of_blocks(sizes: list[int], window: int, seed: int, start: int):
    order = Blocks(np.cumsum(sizes), window)
    n = sum(sizes)
    first = start // n * n
    epoch = order.rows_at(seed, first, first + n)
    assert sorted(epoch) == list(range(n))
    # What stands at an index can be said without what stands before, and over the end of an epoch.
    around = order.rows_at(seed, start, start + 2 * n)
    alone = [int(order.rows_at(seed, start + i, start + i + 1)[0]) for i in range(2)]
    assert alone == around[:2].tolist()


def test_the_next_window_is_the_one_that_comes():
    order = Blocks(np.cumsum([10] * 12), 3)
    rows = order.rows_at(1, 0, 240)
    blocks = np.searchsorted(order.ends, rows, "right")
    for window in range(7):
        coming = set(blocks[(window + 1) * 30 : (window + 2) * 30].tolist())
        assert set(order.next_window(1, window * 30 + 17).tolist()) == coming
        assert len(coming) == 3, "a window mixes whole blocks, and each is read once an epoch"
    assert len(set(blocks[:8].tolist())) == 3, "the samples of a window are shuffled, not blocks alone"


@pytest.mark.parametrize("cache_gb", [1.0, 1e-6])
@pytest.mark.parametrize("source", MAKERS)
def test_neither_workers_nor_the_first_step_change_what_is_shown(tmp_path: Path, source: str, cache_gb: float):
    data = opened(MAKERS[source](tmp_path / "source"), tmp_path, cache_gb=cache_gb)
    assert (data.blocks is None) == (cache_gb == 1.0)
    batch, steps = 12, 30
    whole = numbers(data.at(1, 0, steps * batch)[0])
    n = data.n
    for epoch in range(len(whole) // n):
        assert sorted(whole[epoch * n : (epoch + 1) * n]) == sorted(numbers(in_memory(data).train_images))
    other = pickle.loads(pickle.dumps(data))
    parts = []
    for bounds in ([0, 4, 8, 12], [0, 1, 12]):
        for step in range(steps):
            for lo, hi in itertools.pairwise(bounds):
                parts += numbers(other.at(1, step * batch + lo, step * batch + hi)[0])
        assert parts == whole
        parts = []


# --- what is written -----------------------------------------------------------------------------


def test_pixels_are_those_of_the_codec_whatever_stands_beside(tmp_path: Path):
    rgb = gradient(40, 3)
    pictures = {
        "0-tall.jpg": Image.fromarray(rgb[:, :20]),
        "1-square.webp": Image.fromarray(rgb),
        "2-alpha.png": Image.fromarray(rgb).convert("RGBA"),
        "3-palette.png": Image.fromarray(rgb).convert("P"),
        "4-cmyk.jpeg": Image.fromarray(rgb).convert("CMYK"),
        "5-grey.png": Image.fromarray(rgb).convert("L").resize((33, 21)),
        "6-grey-alpha.png": Image.fromarray(rgb).convert("LA"),
        "7-deep.png": Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64),
        "8-bits.png": Image.fromarray(rgb).convert("1"),
    }
    for i, (name, image) in enumerate(pictures.items()):
        for copy in range(7):  # a shard of each
            (tmp_path / "source").mkdir(exist_ok=True)
            image.save(tmp_path / "source" / f"{i}-{copy}-{name}")
    spec = ImageDataSpec(source="folder", root=str(tmp_path / "source"), size=16)
    data = opened(spec, tmp_path)
    assert data.codec == ImageCodec(16, 3, None)
    shards = data.train_images.shards
    assert set(shards.channels) == {1, 3}
    stored = shards.read(np.arange(len(shards)))
    for row, path in zip(stored, sorted((tmp_path / "source").iterdir()), strict=True):
        np.testing.assert_array_equal(row, data.codec.encode(Image.open(path)), err_msg=path.name)


def test_deep_images_of_all_shards_share_a_scale(tmp_path: Path):
    """The largest value is in one shard, and what it makes of the others does not depend on the way there."""
    values = np.full((25, 8, 8), 200, np.uint16)
    values[:, 0, 0] = np.arange(25)
    values[12, 1, 1] = 4000
    for i, image in enumerate(values):
        saved(tmp_path / "source" / f"{i:02d}.png", image if i % 5 else image.astype(np.uint8) % 250)
    spec = ImageDataSpec(source="folder", root=str(tmp_path / "source"))
    data = opened(spec, tmp_path / "run")
    pixels = data.train_images.shards.read(np.arange(25))[..., 0]
    for i in range(25):
        assert pixels[i, 4, 4] == (round(200 * 255 / 4095) if i % 5 else 200)
    before = files(tmp_path / "run")
    (header,) = (tmp_path / "run").rglob("spool.json")
    header.unlink()
    for name in ("shard-000001.json", "shard-000003.json"):
        header.with_name(name).unlink()
    opened(spec, tmp_path / "run")
    assert files(tmp_path / "run") == before


def test_what_was_scaled_too_early_is_made_again_after_a_kill(tmp_path: Path):
    for i in range(15):
        saved(tmp_path / "source" / f"{i:02d}.png", np.full((8, 8), 100 * i, np.uint16))
    spec = ImageDataSpec(source="folder", root=str(tmp_path / "source"))
    opened(spec, tmp_path / "run")
    after = files(tmp_path / "run")
    run = Store(str(tmp_path / "run" / next((tmp_path / "run" / "spool").iterdir()).relative_to(tmp_path / "run")))
    run.delete("spool.json")
    source = list_source(spec)
    for index in range(3):  # as the first reading leaves them
        make_shard(spec, run, index, source.pieces(7 * index, min(15, 7 * index + 7)), FULL)
    assert files(tmp_path / "run") != after
    opened(spec, tmp_path / "run")
    assert files(tmp_path / "run") == after


def test_splits_are_read_in_blocks_of_what_trains(tmp_path: Path):
    for i, image in enumerate(numbered(60)):
        saved(tmp_path / "source" / ("test" if i < 25 else "train") / "ab"[i % 2] / f"{i:02d}.png", image)
    spec = ImageDataSpec(source="folder", root=str(tmp_path / "source"), cache_gb=1e-6)
    data = opened(spec, tmp_path / "run")
    assert data.blocks is not None
    assert sorted(numbers(data.at(3, 0, data.n)[0])) == [*range(25, 60)]
    assert sorted(numbers(in_memory(data).holdout_images)) == [*range(25)]
    assert len(data.blocks.ends) == 5


def test_a_spool_is_used_again_and_no_partial_one_ever(tmp_path: Path):
    spec = folder(tmp_path / "source")
    opened(spec, tmp_path / "run")
    before = files(tmp_path / "run")
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    opened(spec, tmp_path / "run")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == stamps
    (header,) = (tmp_path / "run").rglob("spool.json")
    header.unlink()
    header.with_name("shard-000003.json").unlink()
    header.with_name("shard-000003.raw").write_bytes(b"a part")
    opened(spec, tmp_path / "run")
    assert files(tmp_path / "run") == before
    kept = header.with_name("shard-000002.raw")
    assert kept.stat().st_mtime_ns == stamps[kept]


def test_a_killed_spool_resumes_to_the_same_bytes(tmp_path: Path):
    spec = folder(tmp_path / "source", 200)
    opened(spec, tmp_path / "whole")
    code = f"""
from genai_ray.image.spec import ImageDataSpec
from genai_ray.image import source, spool
from genai_ray.storage import Store
spool._SHARD_ITEMS = 7
source.load_images(ImageDataSpec(source="folder", root={spec.root!r}), Store({str(tmp_path / "killed")!r}))
"""
    kill_when(lambda: list((tmp_path / "killed").rglob("shard-000003.json")), code)
    assert not list((tmp_path / "killed").rglob("spool.json"))
    opened(spec, tmp_path / "killed")
    left = {k: v for k, v in files(tmp_path / "killed").items() if "/.tmp-" not in k}
    assert left == files(tmp_path / "whole")


@pytest.mark.parametrize("source", MAKERS)
def test_a_source_that_changed_is_noticed(tmp_path: Path, source: str):
    spec = MAKERS[source](tmp_path / "source")
    data = opened(spec, tmp_path / "run")
    first = next(p for p in sorted(Path(str(spec.root)).rglob("*")) if p.is_file())
    os.utime(first)
    assert opened(spec, tmp_path / "run").digest == data.digest
    assert len(list((tmp_path / "run").rglob("spool.json"))) == 2
    spoil(spec, training_number(spec), png(255 - numbered(1)[0]))
    assert opened(spec, tmp_path / "run").digest != data.digest
    other = [opened(spec, tmp_path / "run", **v).digest for v in ({"size": 16}, {"holdout": 0.5})]
    assert len({data.digest, *other}) == 3


def test_a_run_does_not_resume_on_other_samples(tmp_path: Path):
    spec = folder(tmp_path / "source", 100)
    run = small_spec(tmp_path, "data.source=folder", f"data.root={spec.root}")
    train(run)
    Store(run.run_uri).delete(checkpoint.key(1280))
    spoil(spec, training_number(spec), png(255 - numbered(1)[0]))
    with pytest.raises(UserError, match="holds other samples"):
        train(run)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("source", MAKERS)
def test_ray_and_threads_write_the_same(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch):
    spec = MAKERS[source](tmp_path / "source")
    opened(spec, tmp_path / "ray")
    monkeypatch.setattr(spools, "_ray_runs", lambda: False)
    opened(spec, tmp_path / "threads")
    assert files(tmp_path / "ray") == files(tmp_path / "threads")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_what_is_wrong_with_an_image_reaches_the_driver(tmp_path: Path):
    spec = folder(tmp_path / "source")
    name = spoil(spec, 20, b"not an image")
    with pytest.raises(UserError, match="must be an image that decodes") as caught:
        opened(spec, tmp_path)
    assert type(caught.value) is UserError
    assert name in str(caught.value.value)
    assert opened(spec, tmp_path, on_corrupt="skip").skipped == (name,)


# --- images that are not as they should be -------------------------------------------------------


def spoil(spec: ImageDataSpec, number: int, content: bytes) -> str:
    """Put other content in the place of an image; what a message calls it."""
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


def training_number(spec: ImageDataSpec) -> int:
    """The number of an image that trains."""
    return sorted(numbers(load_resident(spec).train_images))[-2]


@pytest.mark.parametrize("source", MAKERS)
def test_a_corrupt_image_is_named_or_left_out(tmp_path: Path, source: str):
    spec = MAKERS[source](tmp_path / "source")
    whole = load_resident(spec)
    name = spoil(spec, 17, bomb())
    with pytest.raises(UserError) as caught:
        opened(spec, tmp_path)
    assert name in str(caught.value.value)
    assert "on_corrupt=skip" in caught.value.remedy
    data = opened(spec, tmp_path, on_corrupt="skip")
    assert data.skipped == (name,)
    labels = dict(zip(*map(_list, labelled(whole)), strict=True))
    found = dict(zip(*map(_list, labelled(in_memory(data))), strict=True))
    assert found == {number: label for number, label in labels.items() if number != 17}


def labelled(data: Any) -> tuple[Any, Any]:
    pixels = np.concatenate([data.train_images, data.holdout_images])
    return np.array(numbers(pixels)), np.concatenate([data.train_labels, data.holdout_labels])


def _list(array: Any) -> list[int]:
    return array.tolist()


def test_nothing_but_corrupt_images(tmp_path: Path):
    for i in range(15):
        (tmp_path / f"{i:02d}.png").write_bytes(b"x")
    spec = ImageDataSpec(source="folder", root=str(tmp_path))
    with pytest.raises(UserError, match="no image that decodes"):
        opened(spec, tmp_path / "run", on_corrupt="skip")
    with pytest.raises(UserError, match=r"00\.png.*must be an image that decodes"):
        opened(spec, tmp_path / "run")


@pytest.mark.parametrize("source", MAKERS)
def test_an_image_of_another_size_in_another_shard(tmp_path: Path, source: str):
    spec = MAKERS[source](tmp_path / "source")
    spoil(spec, 40, png(gradient(16, 1)))
    for _ in range(2):  # the second time from the records
        with pytest.raises(UserError, match="8x8, 16x16") as caught:
            opened(spec, tmp_path)
        assert caught.value.field == "data.size"
    assert opened(spec, tmp_path, size=8).codec.size == 8


@pytest.mark.parametrize("source", MAKERS)
def test_a_coloured_image_in_another_shard(tmp_path: Path, source: str):
    spec = MAKERS[source](tmp_path / "source")
    grey = in_memory(opened(spec, tmp_path))
    number = training_number(spec)
    spoil(spec, number, png(gradient(8, 3)))
    data = in_memory(opened(spec, tmp_path))
    assert (grey.codec.channels, data.codec.channels) == (1, 3)
    place = numbers(grey.train_images).index(number)
    np.testing.assert_array_equal(data.train_images[place], gradient(8, 3))
    others = np.delete(data.train_images, place, axis=0)
    np.testing.assert_array_equal(others, np.repeat(np.delete(grey.train_images, place, axis=0), 3, axis=3))


def test_files_of_parquet_that_do_not_fit_together(tmp_path: Path):
    spec = parquet(tmp_path / "source")
    pq.write_table(pa.table({"image": [png(numbered(1)[0])]}), tmp_path / "source" / "2.parquet")
    with pytest.raises(UserError, match=r"other columns in 2\.parquet"):
        opened(spec, tmp_path)


def test_keys_of_the_stream_say_what_became_of_them():
    for key, value in (("ingest", "stream"), ("resident_gb", 4.0)):
        with pytest.raises(UserError, match="decoded once") as caught:
            modalities.parse({"name": "run", "data": {"source": "digits", key: value}})
        assert caught.value.field == f"data.{key}"
        assert "Drop the key" in caught.value.remedy


# --- evaluation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", MAKERS)
def test_of_very_many_images_evaluation_takes_a_fixed_choice(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
):
    data = opened(MAKERS[source](tmp_path / "source"), tmp_path)
    truth = in_memory(data)
    monkeypatch.setattr(images, "_IN_MEMORY", 0)
    monkeypatch.setattr(images, "_CHOICE", 6)
    monkeypatch.setattr(images, "_LEAST_CHOICE", 6)
    choice = in_memory(data)
    assert (len(choice.train_images), len(choice.holdout_images)) == (6, 6)
    assert choice.digest == truth.digest == data.digest
    labels = dict(zip(*map(_list, labelled(truth)), strict=True))
    assert all(labels[i] == label for i, label in zip(*labelled(choice), strict=True))
    assert set(numbers(choice.train_images)) < set(numbers(truth.train_images))
    assert_same((in_memory(data).train_images, None), (choice.train_images, None))


# --- S3 ------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def uploaded(spec: ImageDataSpec, uri: str) -> ImageDataSpec:
    local, remote = Store(str(spec.root)), Store(uri)
    for key in local.list():
        remote.put(key, local.read(key))
    return spec.model_copy(update={"root": uri})


def cached(cache: Path) -> list[Path]:
    return sorted(cache.rglob("shard-*.raw"))


def cached_bytes(cache: Path) -> int:
    total = 0
    for path in cached(cache):
        with contextlib.suppress(FileNotFoundError):  # removed since it was listed
            total += path.stat().st_size
    return total


@pytest.mark.s3
@pytest.mark.parametrize("source", MAKERS)
def test_a_spool_on_s3_is_read_through_a_cache_that_survives(tmp_path: Path, source: str, s3_uri: str, cache: Path):
    local = MAKERS[source](tmp_path / "source", 30)
    spec = uploaded(local, f"{s3_uri}/source")
    data, truth = opened(spec, f"{s3_uri}/run"), opened(local, tmp_path)
    assert data.digest == truth.digest
    assert_same(data.at(3, 20, 120), truth.at(3, 20, 120))
    stamps = [p.stat().st_ctime_ns for p in cached(cache)]
    assert len(stamps) == len(data.train_images.shards.ends)
    again = opened(spec, f"{s3_uri}/run")
    for path in cached(cache):
        path.chmod(0o600)  # which a file that is fetched again has not
    assert_same(again.at(3, 20, 120), truth.at(3, 20, 120))
    assert {p.stat().st_mode & 0o777 for p in cached(cache)} == {0o600}


@pytest.mark.s3
def test_a_cache_with_a_limit_evicts_and_gives_the_same(
    tmp_path: Path, s3_uri: str, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    spec = parquet(tmp_path / "source")
    monkeypatch.setattr(spools, "_SHARD_ITEMS", 30)
    limit = 4 * 30 * 64  # four of ten shards
    truth = opened(spec, tmp_path, cache_gb=limit / 1e9)
    data = opened(spec, f"{s3_uri}/run", cache_gb=limit / 1e9)
    assert data.blocks is not None
    assert data.blocks.window == 1
    most = 0
    for step in range(60):
        assert_same(data.at(3, 10 * step, 10 * step + 10), truth.at(3, 10 * step, 10 * step + 10))
        most = max(most, cached_bytes(cache))
    assert 0 < most <= limit
    assert_same((in_memory(data).train_images, None), (in_memory(truth).train_images, None))


@pytest.mark.s3
def test_a_choice_is_read_by_ranges(tmp_path: Path, s3_uri: str, cache: Path, monkeypatch: pytest.MonkeyPatch):
    data = opened(folder(tmp_path / "source"), f"{s3_uri}/run")
    for path in cached(cache):
        path.unlink()
    whole = in_memory(opened(folder(tmp_path / "source"), tmp_path))
    monkeypatch.setattr(images, "_IN_MEMORY", 0)
    assert_same((in_memory(data).train_images, None), (whole.train_images, None))
    assert cached(cache) == []


@pytest.mark.s3
def test_a_cache_that_cannot_be_written_is_an_error_of_the_user(
    tmp_path: Path, s3_uri: str, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="needs a disk") as caught:
        opened(folder(tmp_path / "source"), f"{s3_uri}/run")
    assert caught.value.field == "data.cache_gb"
    assert "XDG_CACHE_HOME" in caught.value.remedy


def test_a_shard_that_a_node_does_not_see(tmp_path: Path):
    data = opened(folder(tmp_path / "source"), tmp_path)
    for path in tmp_path.rglob("shard-*.raw"):
        path.unlink()
    with pytest.raises(UserError, match="must be seen by every node"):
        pickle.loads(pickle.dumps(data)).at(0, 0, 10)


@pytest.mark.s3
@pytest.mark.usefixtures("s3_stack")
def test_a_parquet_file_of_s3_is_read_in_parts(tmp_path: Path, s3_uri: str, monkeypatch: pytest.MonkeyPatch):
    from genai_ray.image import files as sources
    from genai_ray.image import ranges

    pixels = np.random.default_rng(0).integers(0, 256, (12_000, 64), np.uint8)
    cells = pa.array([i.tobytes() for i in pixels], pa.binary(64))
    field = pa.field("image", cells.type, metadata={"shape": "[8, 8, 1]"})
    buffer = io.BytesIO()
    pq.write_table(pa.table([cells], pa.schema([field])), buffer, row_group_size=700)
    Store(s3_uri).put("a.parquet", buffer.getvalue())
    read_bytes = 0
    real = ranges.Ranges.read

    def counted(self: Any, size: int = -1) -> bytes:
        nonlocal read_bytes
        data = real(self, size)
        read_bytes += len(data)
        return data

    monkeypatch.setattr(ranges.Ranges, "read", counted)
    spec = ImageDataSpec(source="parquet", root=f"{s3_uri}/a.parquet")
    source = sources.list_source(spec)
    assert read_bytes < len(buffer.getvalue()) / 4
    (item,) = sources.items(spec, source.pieces(5007, 5008))
    assert item.read() == pixels[5007].tobytes()
    assert item.name == "a.parquet row 5007"
    assert read_bytes < len(buffer.getvalue()) / 2
    with pytest.raises(UserError, match="must be readable Parquet"):
        sources.list_source(spec.model_copy(update={"root": f"{s3_uri}/b.parquet"}))


# --- memory --------------------------------------------------------------------------------------


def measured(code: str, *arguments: str) -> dict[str, Any]:
    """The last line that code prints in a Python of its own, as JSON."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


_PREPARE = """
import json, resource, sys
from genai_ray.image.spec import ImageDataSpec
from genai_ray.image.source import load_images
from genai_ray.storage import Store
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = load_images(ImageDataSpec(source="folder", root=sys.argv[1], size=64), Store(sys.argv[2]))
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"n": data.n + data.holdout_n, "grown": grown * 1024}))
"""


@pytest.mark.slow
def test_few_large_photos_are_in_memory_at_once(tmp_path: Path):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    (tmp_path / "source").mkdir()
    for i in range(12):
        photo.resize((6000, 4000)).save(tmp_path / "source" / f"{i}.jpg", quality=50)
    found = measured(_PREPARE, str(tmp_path / "source"), str(tmp_path / "run"))
    assert found["n"] == 12
    assert found["grown"] < 4 * 6000 * 4000 * 4  # bytes of a photo in Pillow; twelve would be 1.2 GB


_EPOCH = """
import json, sys, zlib
import psutil
from genai_ray.image.spec import ImageDataSpec
from genai_ray.image.source import load_images
from genai_ray.storage import Store
data = load_images(ImageDataSpec(**json.loads(sys.argv[1])), Store(sys.argv[2]))
sums, grown = 0, []
for start in range(0, data.n, 100):
    images, _ = data.at(0, start, start + 100)
    sums += sum(zlib.crc32(i.tobytes()) for i in images)
    memory = psutil.Process().memory_info()
    grown.append(memory.rss - memory.shared)  # what is mapped can be dropped by the system at any time
print(json.dumps({"n": data.n, "sums": sums, "grown": max(grown) - grown[0]}))
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("cache_gb", [20.0, 0.1])
@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_an_epoch_of_more_than_the_memory_it_takes(tmp_path: Path, source: str, cache_gb: float):
    noise = np.random.default_rng(0).integers(0, 256, (5000, 32, 32, 3), np.uint8)
    root = tmp_path / "source"
    root.mkdir()
    spec = ImageDataSpec(source="folder", root=str(root), size=128, cache_gb=cache_gb)
    if source == "folder":
        for i, image in enumerate(noise):
            (root / f"{i:04d}.png").write_bytes(png(image))
    else:
        spec = spec.model_copy(update={"source": "parquet"})
        cells = pa.array([i.tobytes() for i in noise], pa.binary(32 * 32 * 3))
        field = pa.field("image", cells.type, metadata={"shape": "[32, 32, 3]"})
        pq.write_table(pa.table([cells], pa.schema([field])), root / "a.parquet", row_group_size=300)
    codec = ImageCodec(128, 3, None)
    truth = sum(
        zlib.crc32(codec.encode(Image.fromarray(noise[i])).tobytes()) for i in split(spec.holdout, 5000, "image")[0]
    )
    found = measured(_EPOCH, spec.model_dump_json(), str(tmp_path / "run"))
    assert found["n"] == 4000
    assert found["sums"] == truth
    assert found["grown"] < found["n"] * 128 * 128 * 3 / 10
