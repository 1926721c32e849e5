"""Files of a shard hold the pixels that went in, open in common readers, and say synthetic."""

import hashlib
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from numpy.typing import NDArray
from PIL import Image

from genai_ray.data.image import ImageCodec
from genai_ray.provenance import DIGITAL_SOURCE_TYPE
from genai_ray.sinks import (
    SINKS,
    Rows,
    class_folders,
    discard,
    encode_png,
    write_images,
    write_parquet,
)
from genai_ray.storage import Store

NAMES = ("T-shirt/top", "Trouser", "Ankle boot")
PROVENANCE = {"seed": 7, "model": "ab" * 32, "start": 40}


def pixels(n: int, size: int, channels: int) -> NDArray[np.uint8]:
    generator = np.random.Generator(np.random.Philox(0))
    return generator.integers(0, 256, (n, size, size, channels), np.uint8)


def shard(
    *, channels: int = 1, classes: tuple[str, ...] | None = NAMES, encoding: str = "png", n: int = 7
) -> Rows:
    labels = np.arange(n, dtype=np.int64) % len(classes) if classes else None
    codec = ImageCodec(8, channels, classes)
    return Rows(2, 40, pixels(n, 8, channels), labels, codec, encoding, PROVENANCE)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "set"))


def written(rows: Rows, store: Store) -> Path:
    """The path of the Parquet file of a shard."""
    (record,) = write_parquet(rows, store)
    return Path(store.uri) / record.path


# --- PNG -----------------------------------------------------------------------------------------

IMAGES = stn.arrays(
    np.uint8,
    st.tuples(
        st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3])
    ),
)  # fmt: skip


def decoded(png: bytes) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(png))
    array = np.asarray(image)
    return array[..., None] if image.mode == "L" else array


@settings(deadline=None, max_examples=80)
@given(IMAGES)
def test_a_png_decodes_to_what_went_in(images: NDArray[np.uint8]):
    pngs = encode_png(images)
    assert len(pngs) == len(images)
    for png, image in zip(pngs, images, strict=True):
        np.testing.assert_array_equal(decoded(png), image)


@pytest.mark.parametrize("fill", [0, 255])
@pytest.mark.parametrize("channels", [1, 3])
def test_large_flat_images_and_noise_decode(fill: int, channels: int):
    images = np.concatenate(
        [np.full((1, 128, 128, channels), fill, np.uint8), pixels(1, 128, channels)]
    )
    for png, image in zip(encode_png(images), images, strict=True):
        np.testing.assert_array_equal(decoded(png), image)


def test_images_that_do_not_lie_in_one_piece_decode():
    images = pixels(2, 8, 3).transpose(0, 2, 1, 3)[:, ::-1]
    assert not images.flags.c_contiguous
    for png, image in zip(encode_png(images), images, strict=True):
        np.testing.assert_array_equal(decoded(png), image)


def chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Tag and body of each chunk of a PNG, its checksum verified."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    at = 8
    while at < len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        tag, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        crc = int.from_bytes(png[at + 8 + length : at + 12 + length], "big")
        assert crc == zlib.crc32(tag + body)
        yield tag, body
        at += 12 + length


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_says_once_that_it_is_synthetic(channels: int):
    for png in encode_png(pixels(3, 8, channels)):
        parts = list(chunks(png))
        assert [tag for tag, _ in parts] == [b"IHDR", b"iTXt", b"IDAT", b"IEND"]
        assert parts[1][1].startswith(b"XML:com.adobe.xmp\0")
        assert png.count(b"<x:xmpmeta") == 1
        assert png.count(DIGITAL_SOURCE_TYPE.encode()) == 1
        assert DIGITAL_SOURCE_TYPE in str(Image.open(io.BytesIO(png)).info["xmp"])


# --- Parquet -------------------------------------------------------------------------------------

ENCODINGS = pytest.mark.parametrize("encoding", ["png", "raw"])


@ENCODINGS
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [NAMES, None])
def test_parquet_bytes_hang_on_the_shard_alone(
    tmp_path: Path, encoding: str, channels: int, classes: tuple[str, ...] | None
):
    rows = shard(encoding=encoding, channels=channels, classes=classes)
    paths = [written(rows, Store(str(tmp_path / name))) for name in ("a", "b")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].name == "part-000002.parquet"


@ENCODINGS
def test_other_pixels_labels_or_provenance_are_other_bytes(tmp_path: Path, encoding: str):
    rows = shard(encoding=encoding)
    assert rows.labels is not None
    others = [
        Rows(2, 40, ~rows.images, rows.labels, rows.codec, encoding, PROVENANCE),
        Rows(2, 40, rows.images, rows.labels[::-1], rows.codec, encoding, PROVENANCE),
        Rows(2, 41, rows.images, rows.labels, rows.codec, encoding, PROVENANCE),
        Rows(2, 40, rows.images, rows.labels, rows.codec, encoding, PROVENANCE | {"seed": 8}),
    ]
    files = [
        written(r, Store(str(tmp_path / str(i)))).read_bytes()
        for i, r in enumerate([rows, *others])
    ]
    assert len(set(files)) == len(files)


@ENCODINGS
def test_a_parquet_file_says_what_made_it(store: Store, encoding: str):
    metadata = pq.read_schema(written(shard(encoding=encoding), store)).metadata
    assert json.loads(metadata[b"genai_ray"]) == PROVENANCE
    assert metadata[b"DigitalSourceType"] == DIGITAL_SOURCE_TYPE.encode()


@pytest.mark.parametrize("channels", [1, 3])
def test_raw_pixels_come_back(store: Store, channels: int):
    rows = shard(channels=channels, encoding="raw")
    table = pq.read_table(written(rows, store))
    about = table.schema.field("image").metadata
    shape = json.loads(about[b"shape"])
    flat = b"".join(table["image"].to_pylist())
    back = np.frombuffer(flat, about[b"dtype"].decode()).reshape(-1, *shape)
    np.testing.assert_array_equal(back, rows.images)
    assert table["id"].to_pylist() == list(range(40, 47))


def test_pandas_opens_it(store: Store):
    rows = shard()
    frame = pd.read_parquet(written(rows, store))
    assert rows.labels is not None
    assert frame["id"].tolist() == list(range(40, 47))
    assert frame["label"].tolist() == rows.labels.tolist()
    for cell, image in zip(frame["image"], rows.images, strict=True):
        np.testing.assert_array_equal(decoded(cell["bytes"]), image)


def test_duckdb_opens_it(store: Store):
    rows = shard()
    found = duckdb.execute(
        "select id, label, image.bytes, image.path from read_parquet(?) where id >= 44 order by id",
        [str(written(rows, store))],
    ).fetchall()
    assert [row[0] for row in found] == [44, 45, 46]
    for index, label, png, path in found:
        assert label == (index - 40) % len(NAMES)
        assert path == f"{index:012d}.png"
        np.testing.assert_array_equal(decoded(png), rows.images[index - 40])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [NAMES, None])
def test_hugging_face_shows_images_and_class_names(
    store: Store, tmp_path: Path, channels: int, classes: tuple[str, ...] | None
):
    from datasets import ClassLabel, Dataset
    from datasets import Image as ImageFeature

    rows = shard(channels=channels, classes=classes)
    found: Any = Dataset.from_parquet(str(written(rows, store)), cache_dir=str(tmp_path / "cache"))
    assert isinstance(found.features["image"], ImageFeature)
    for row, image in zip(found, rows.images, strict=True):
        assert isinstance(row["image"], Image.Image)
        np.testing.assert_array_equal(np.asarray(row["image"]).reshape(image.shape), image)
    if classes:
        label = found.features["label"]
        assert isinstance(label, ClassLabel)
        assert tuple(label.names) == classes
        assert rows.labels is not None
        assert found["label"][:] == rows.labels.tolist()
    else:
        assert "label" not in found.features


def test_many_rows_are_cut_into_groups(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("genai_ray.sinks._ROW_GROUP_BYTES", 4 * 64)
    file = pq.ParquetFile(written(shard(encoding="raw", n=50), store))
    assert file.num_row_groups > 5
    assert file.read()["id"].to_pylist() == list(range(40, 90))


# --- images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_image_folder_of_torchvision_opens_it(store: Store, channels: int):
    from torchvision.datasets import ImageFolder

    rows = shard(channels=channels)
    records = write_images(rows, store)
    folder = ImageFolder(str(Path(store.uri) / "data"))
    folders = class_folders(rows.codec)
    assert set(folder.classes) == set(folders)
    assert len(folder) == len(records) == len(rows.images)
    for path, label in folder.samples:
        index = int(Path(path).stem)
        assert rows.labels is not None
        assert folder.classes[label] == folders[rows.labels[index - 40]]
        np.testing.assert_array_equal(decoded(Path(path).read_bytes()), rows.images[index - 40])


def test_without_classes_all_images_lie_in_one_folder(store: Store):
    write_images(shard(classes=None, n=2), store)
    assert store.list() == ["data/all/000000000040.png", "data/all/000000000041.png"]


# --- records -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sink", ["parquet", "images"])
@ENCODINGS
def test_records_are_of_the_files(store: Store, sink: str, encoding: str):
    rows = shard(encoding=encoding)
    records = SINKS[sink](rows, store)
    assert sorted(r.path for r in records) == store.list()
    assert sum(r.rows for r in records) == len(rows.images)
    for record in records:
        data = store.read(record.path)
        assert record.bytes == len(data)
        assert record.sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("sink", ["parquet", "images"])
def test_writing_again_changes_nothing(store: Store, sink: str):
    first = SINKS[sink](shard(), store)
    keys = store.list()
    assert SINKS[sink](shard(), store) == first
    assert store.list() == keys


def test_discard_writes_nothing(store: Store):
    assert discard(shard(), store) == []
    assert store.list() == []


# --- names of classes ----------------------------------------------------------------------------

SAFE = re.compile(r"[\w.-]+")


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (NAMES, ["T-shirt-top", "Trouser", "Ankle-boot"]),
        (("0", "1"), ["0", "1"]),
        (("a/b", "a b"), ["0-a-b", "1-a-b"]),
        (("..", "a"), ["0-..", "1-a"]),
        (("", "a"), ["0-", "1-a"]),
    ],
)
def test_class_folders(classes: tuple[str, ...], expected: list[str]):
    assert class_folders(ImageCodec(8, 1, classes)) == expected


@settings(deadline=None)
@given(st.lists(st.text(max_size=6), min_size=1, max_size=5, unique=True))
def test_class_folders_are_distinct_and_safe(classes: list[str]):
    folders = class_folders(ImageCodec(8, 1, tuple(classes)))
    assert len(set(folders)) == len(classes)
    assert all(SAFE.fullmatch(f) and f not in (".", "..") for f in folders)
