"""Files of a shard hold the pixels that went in, open in common readers, and say synthetic."""

import datetime
import hashlib
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn
from numpy.typing import NDArray
from PIL import Image

from genai_ray import modalities
from genai_ray.image import folder
from genai_ray.image.codec import ImageCodec
from genai_ray.image.encoding import Stamp, decode, encode, encode_jpeg, encode_png, encode_webp
from genai_ray.image.folder import write_images
from genai_ray.image.parquet import parquet_schema, write_parquet
from genai_ray.image.rows import SUFFIXES, ImageRead, ImageRows, class_folders
from genai_ray.image.webdataset import write_webdataset
from genai_ray.labels import AIGC_KEYS, DIGITAL_SOURCE_TYPE, read_label
from genai_ray.modality import Sink, discard
from genai_ray.storage import Store
from genai_ray.table.sinks import CSV, TableRead, TableRows, retyped

NAMES = ("T-shirt/top", "Trouser", "Ankle boot")
PROVENANCE = {"seed": 7, "model": "ab" * 32, "start": 40, "fingerprint": "0123456789abcdef" * 4}
PRODUCER = "001191110102MAD55U9H0F10002"
EXTRA = pa.table(
    {
        "weight": pa.array([0.5, 1.5, None, float("nan"), 2.0, 3.0, 4.0], pa.float32()),
        "site": ["a", "b", "a", "ü", None, "c", "a"],
        "day": [datetime.date(2026, 11, day) for day in range(1, 8)],
        "retry": [True, False] * 3 + [True],
    }
)


def pixels(n: int, size: int, channels: int) -> NDArray[np.uint8]:
    generator = np.random.Generator(np.random.Philox(0))
    return generator.integers(0, 256, (n, size, size, channels), np.uint8)


def shard(
    *,
    channels: int = 1,
    classes: tuple[str, ...] | None = NAMES,
    encoding: str = "png",
    n: int = 7,
    producer: str | None = None,
    extra: pa.Table | None = None,
) -> ImageRows:
    labels = np.arange(n, dtype=np.int64) % len(classes) if classes else None
    codec = ImageCodec(8, channels, classes)
    return ImageRows(2, 40, pixels(n, 8, channels), labels, codec, encoding, PROVENANCE, producer=producer, extra=extra)


def image_sink(name: str) -> Sink[Any]:
    return modalities.modality("image").sinks[name]()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "set"))


def written(rows: ImageRows, store: Store) -> Path:
    """The path of the Parquet file of a shard."""
    (record,) = write_parquet(rows, store)
    return Path(store.uri) / record.path


# --- PNG -----------------------------------------------------------------------------------------

IMAGES = stn.arrays(
    np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 3]))
)


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
    images = np.concatenate([np.full((1, 128, 128, channels), fill, np.uint8), pixels(1, 128, channels)])
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


# --- JPEG and WebP -------------------------------------------------------------------------------

ENCODINGS = pytest.mark.parametrize("encoding", ["png", "jpeg", "webp", "raw"])
FILES = pytest.mark.parametrize("encoding", list(SUFFIXES))


def smooth(n: int, size: int, channels: int) -> NDArray[np.uint8]:
    """Images that a lossy encoding keeps nearly as they are."""
    ramp = np.linspace(40, 200, size)
    plane = (ramp[:, None] + ramp[None, :]) / 2
    shades = np.linspace(0.5, 1, n * channels).reshape(n, 1, 1, channels)
    return (plane[None, :, :, None] * shades).astype(np.uint8)


@ENCODINGS
@pytest.mark.parametrize("channels", [1, 3])
def test_what_was_encoded_decodes(encoding: str, channels: int):
    rows = replace(shard(channels=channels, encoding=encoding), images=smooth(7, 8, channels))
    for cell, image in zip(encode(rows), rows.images, strict=True):
        found = decode(cell, rows.codec, encoding)
        assert found.dtype == np.uint8
        lossless = encoding in ("png", "raw")
        np.testing.assert_allclose(found, image.astype(float), atol=0 if lossless else 12)


@pytest.mark.parametrize("encoder", [encode_jpeg, encode_webp])
def test_a_higher_quality_is_nearer_and_larger(encoder: Any):
    images = pixels(4, 32, 3)
    low, high = (encoder(images, quality) for quality in (20, 95))
    codec = ImageCodec(32, 3, None)

    def error(files: list[bytes]) -> float:
        found = np.stack([decode(file, codec, "jpeg") for file in files])
        return float(np.abs(found.astype(float) - images).mean())

    assert error(high) < error(low)
    assert sum(map(len, high)) > sum(map(len, low))
    assert encoder(images, 95) == high


@pytest.mark.parametrize("encoding", ["png", "jpeg", "webp"])
def test_what_is_no_image_does_not_decode(encoding: str):
    rows = shard(encoding=encoding)
    (file, *_) = encode(rows)
    for broken in (b"", b"abc", file[: len(file) // 2]):
        with pytest.raises(ValueError, match="no whole image"):
            decode(broken, rows.codec, encoding)
    with pytest.raises(ValueError, match="reshape"):
        decode(file, ImageCodec(4, 1, None), encoding)


# --- labels --------------------------------------------------------------------------------------


@FILES
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("producer", [None, PRODUCER])
def test_every_image_has_its_label_once(encoding: str, channels: int, producer: str | None):
    files = encode(shard(encoding=encoding, channels=channels, producer=producer))
    for number, file in enumerate(files, 40):
        label = read_label(file)
        assert label.source == DIGITAL_SOURCE_TYPE
        assert file.count(b"<x:xmpmeta") == 1
        if producer is None:
            assert label.aigc is None
            assert b"AIGC" not in file
            continue
        assert file.count(b"TC260:AIGC>") == 2  # the element's start and its end
        assert label.aigc is not None
        produced = f"0123456789abcdef-{number:012d}"
        values = ("1", producer, produced, "", producer, produced, "")
        assert label.aigc == dict(zip(AIGC_KEYS, values, strict=True))


@FILES
def test_pillow_finds_the_label(encoding: str):
    for number, file in enumerate(encode(shard(encoding=encoding, producer="A&B<C>")), 40):
        image = Image.open(io.BytesIO(file))
        image.load()
        root = ElementTree.fromstring(image.info["xmp"])
        (source,) = [v for e in root.iter() for k, v in e.attrib.items() if "SourceType" in k]
        assert source == DIGITAL_SOURCE_TYPE
        (aigc,) = root.iter("{http://www.tc260.org.cn/ns/AIGC/1.0/}AIGC")
        label = json.loads(str(aigc.text))
        assert list(label) == list(AIGC_KEYS)
        assert (label["ContentProducer"], label["ContentPropagator"]) == ("A&B<C>",) * 2
        assert label["ProduceID"] == label["PropagateID"] == f"0123456789abcdef-{number:012d}"


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**12 - 100), st.integers(1, 99), st.from_regex(r"[!#-\[\]-~]{1,40}", fullmatch=True))
def test_the_checksum_of_any_label_is_right(start: int, n: int, producer: str):
    pngs = encode_png(np.zeros((n, 2, 2, 1), np.uint8), Stamp(producer, "a-", start))
    for number, png in enumerate(pngs, start):
        assert [tag for tag, _ in chunks(png)] == [b"IHDR", b"iTXt", b"IDAT", b"IEND"]
        label = read_label(png).aigc
        assert label is not None
        assert (label["ContentProducer"], label["ProduceID"]) == (producer, f"a-{number:012d}")


@FILES
def test_the_label_changes_no_pixel(encoding: str):
    plain, labelled = (shard(encoding=encoding, producer=p) for p in (None, PRODUCER))
    for one, other in zip(encode(plain), encode(labelled), strict=True):
        np.testing.assert_array_equal(decode(one, plain.codec, encoding), decode(other, plain.codec, encoding))


# --- Parquet -------------------------------------------------------------------------------------


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
        ImageRows(2, 40, ~rows.images, rows.labels, rows.codec, encoding, PROVENANCE),
        ImageRows(2, 40, rows.images, rows.labels[::-1], rows.codec, encoding, PROVENANCE),
        ImageRows(2, 41, rows.images, rows.labels, rows.codec, encoding, PROVENANCE),
        ImageRows(2, 40, rows.images, rows.labels, rows.codec, encoding, PROVENANCE | {"seed": 8}),
    ]
    files = [written(r, Store(str(tmp_path / str(i)))).read_bytes() for i, r in enumerate([rows, *others])]
    assert len(set(files)) == len(files)


@ENCODINGS
def test_a_parquet_file_says_what_made_it(store: Store, encoding: str):
    metadata = pq.read_schema(written(shard(encoding=encoding), store)).metadata
    assert json.loads(metadata[b"genai_ray"]) == PROVENANCE
    assert metadata[b"DigitalSourceType"] == DIGITAL_SOURCE_TYPE.encode()
    assert b"AIGC" not in metadata


@pytest.mark.parametrize("sink", ["parquet", "images"])
def test_a_parquet_file_has_a_label_of_its_own(store: Store, sink: str):
    (record,) = image_sink(sink).write(shard(producer=PRODUCER), store)
    metadata = pq.read_schema(Path(store.uri) / record.path).metadata
    label = json.loads(metadata[b"AIGC"])
    assert list(label) == list(AIGC_KEYS)
    assert label["ContentProducer"] == PRODUCER
    assert label["ProduceID"] == "0123456789abcdef-part-000002"


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


@FILES
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("classes", [NAMES, None])
def test_hugging_face_shows_images_and_class_names(
    store: Store, tmp_path: Path, encoding: str, channels: int, classes: tuple[str, ...] | None
):
    from datasets import ClassLabel, Dataset
    from datasets import Image as ImageFeature

    rows = shard(channels=channels, classes=classes, encoding=encoding, extra=EXTRA)
    found: Any = Dataset.from_parquet(str(written(rows, store)), cache_dir=str(tmp_path / "cache"))
    assert isinstance(found.features["image"], ImageFeature)
    assert found["site"][:] == EXTRA["site"].to_pylist()
    assert found.features["weight"].dtype == "float32"
    for row, cell in zip(found, encode(rows), strict=True):
        assert isinstance(row["image"], Image.Image)
        mode = "L" if channels == 1 else "RGB"
        image = decode(cell, rows.codec, encoding)
        np.testing.assert_array_equal(np.asarray(row["image"].convert(mode)).reshape(image.shape), image)
    if classes:
        label = found.features["label"]
        assert isinstance(label, ClassLabel)
        assert tuple(label.names) == classes
        assert rows.labels is not None
        assert found["label"][:] == rows.labels.tolist()
    else:
        assert "label" not in found.features


def test_many_rows_are_cut_into_groups(store: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("genai_ray.image.parquet._ROW_GROUP_BYTES", 4 * 64)
    file = pq.ParquetFile(written(shard(encoding="raw", n=50), store))
    assert file.num_row_groups > 5
    assert file.read()["id"].to_pylist() == list(range(40, 90))


def test_further_columns_stand_between_label_and_image(store: Store):
    rows = shard(extra=EXTRA)
    table = pq.read_table(written(rows, store))
    assert table.column_names == ["id", "label", "weight", "site", "day", "retry", "image"]
    assert table.schema.equals(parquet_schema(rows.codec, "png", True, PROVENANCE, EXTRA.schema), check_metadata=True)
    for name in EXTRA.column_names:
        assert table[name].type == EXTRA[name].type
        np.testing.assert_equal(table[name].to_pylist(), EXTRA[name].to_pylist())


@pytest.mark.parametrize(
    "kind",
    [
        pa.int8(),
        pa.uint16(),
        pa.float16(),
        pa.float64(),
        pa.bool_(),
        pa.string(),
        pa.large_string(),
        pa.date32(),
        pa.timestamp("us"),
        pa.timestamp("ms", tz="UTC"),
        pa.time64("us"),
    ],
    ids=str,
)
def test_hugging_face_reads_back_the_type(kind: pa.DataType):
    from datasets import Features

    schema = parquet_schema(ImageCodec(8, 1, None), "png", False, {}, pa.schema({"more": kind}))
    assert b"huggingface" in (schema.metadata or {})
    assert Features.from_arrow_schema(schema).arrow_schema.field("more").type == kind


def test_a_type_without_a_name_leaves_the_features_out(store: Store, tmp_path: Path):
    from datasets import Dataset

    lists = pa.table({"box": [[1, 2]] * 7})
    path = written(shard(extra=lists), store)
    assert b"huggingface" not in pq.read_schema(path).metadata
    found: Any = Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    assert found["box"][0] == [1, 2]


# --- images --------------------------------------------------------------------------------------


@FILES
@pytest.mark.parametrize("classes", [NAMES, None])
def test_hugging_face_opens_the_folder_with_its_table(
    store: Store, tmp_path: Path, encoding: str, classes: tuple[str, ...] | None
):
    from datasets import ClassLabel, load_dataset

    rows = shard(encoding=encoding, classes=classes, extra=EXTRA)
    write_images(rows, store)
    write_images(replace(rows, index=3, start=47), store)
    found: Any = load_dataset("imagefolder", data_dir=f"{store.uri}/data", split="train", cache_dir=str(tmp_path / "c"))
    assert sorted(found["id"]) == list(range(40, 54))
    files = encode(rows)
    for row in found:
        at = (row["id"] - 40) % 7
        mode = "L"
        np.testing.assert_array_equal(
            np.asarray(row["image"].convert(mode))[..., None], decode(files[at], rows.codec, encoding)
        )
        assert row["site"] == EXTRA["site"][at].as_py()
        if classes:
            assert row["label"] == at % len(classes)
    if classes:
        assert isinstance(found.features["label"], ClassLabel)
        assert tuple(found.features["label"].names) == classes
    else:
        assert "label" not in found.features


@pytest.mark.parametrize("channels", [1, 3])
def test_image_folder_of_torchvision_opens_a_shard(store: Store, channels: int):
    from torchvision.datasets import ImageFolder

    rows = shard(channels=channels)
    write_images(rows, store)
    folder = ImageFolder(f"{store.uri}/data/part-000002")
    folders = class_folders(rows.codec)
    assert set(folder.classes) == set(folders)
    assert len(folder) == len(rows.images)
    for path, label in folder.samples:
        index = int(Path(path).stem)
        assert rows.labels is not None
        assert folder.classes[label] == folders[rows.labels[index - 40]]
        np.testing.assert_array_equal(decoded(Path(path).read_bytes()), rows.images[index - 40])


def test_without_classes_all_images_lie_in_one_folder(store: Store):
    write_images(shard(classes=None, n=2, encoding="jpeg"), store)
    assert store.list() == [
        "data/part-000002/all/000000000040.jpg",
        "data/part-000002/all/000000000041.jpg",
        "data/part-000002/metadata.parquet",
    ]


def test_the_table_lists_every_image(store: Store):
    (record,) = write_images(shard(encoding="webp"), store)
    listed = list(folder.IMAGES.objects(record, store.read(record.path)))
    assert record.rows == len(listed) == 7
    assert sorted(path for path, _, _ in listed) == store.list()[:-1]
    for path, digest, size in listed:
        data = store.read(path)
        assert (digest, size) == (hashlib.sha256(data).hexdigest(), len(data))


def test_an_image_that_was_altered_or_is_gone_is_refused(store: Store):
    (record,) = write_images(shard(), store)
    data = store.read(record.path)
    path = "data/part-000002/Trouser/000000000041.png"
    store.put(path, store.read(path) + b"x")
    with pytest.raises(ValueError, match=r"000000000041\.png is not what its table says"):
        folder.IMAGES.read(record, data, store)
    store.delete(path)
    with pytest.raises(ValueError, match=r"000000000041\.png is missing"):
        folder.IMAGES.read(record, data, store)


# --- WebDataset ----------------------------------------------------------------------------------


@FILES
@pytest.mark.parametrize("classes", [NAMES, None])
def test_webdataset_reads_its_samples(store: Store, encoding: str, classes: tuple[str, ...] | None):
    webdataset: Any = pytest.importorskip("webdataset")
    rows = shard(encoding=encoding, classes=classes, extra=EXTRA, producer=PRODUCER)
    (record,) = write_webdataset(rows, store)
    found = list(webdataset.WebDataset(f"{store.uri}/{record.path}", shardshuffle=False).decode())
    raw = list(webdataset.WebDataset(f"{store.uri}/{record.path}", shardshuffle=False))
    suffix = SUFFIXES[encoding]
    for at, (sample, plain, file) in enumerate(zip(found, raw, encode(rows), strict=True)):
        assert sample["__key__"] == f"{40 + at:012d}"
        assert plain[suffix] == file
        about = sample["json"]
        assert about["id"] == 40 + at
        assert about["site"] == EXTRA["site"][at].as_py()
        assert about["day"] == f"2026-11-0{at + 1}"
        label = read_label(file).aigc
        assert label is not None
        assert about["provenance"] == {
            "DigitalSourceType": DIGITAL_SOURCE_TYPE,
            "ProduceID": label["ProduceID"],
            **{name: PROVENANCE[name] for name in ("seed", "model", "fingerprint")},
        }
        assert sample.get("cls") == (None if classes is None else at % 3)
        assert about.get("label") == (None if classes is None else classes[at % 3])
    assert found[2]["json"]["weight"] is found[3]["json"]["weight"] is None


def test_hugging_face_reads_webdataset(store: Store, tmp_path: Path):
    from datasets import load_dataset

    rows = shard()
    (record,) = write_webdataset(rows, store)
    found: Any = load_dataset(
        "webdataset", data_files=f"{store.uri}/{record.path}", split="train", cache_dir=str(tmp_path / "cache")
    )
    for row, image in zip(found, rows.images, strict=True):
        np.testing.assert_array_equal(np.asarray(row["png"])[..., None], image)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_a_tar_file_is_the_one_that_tarfile_writes(sizes: list[int]):
    size = max(sizes)
    rows = shard(n=len(sizes))
    rows = replace(rows, images=pixels(len(sizes), size, 1), codec=ImageCodec(size, 1, NAMES))
    store = Kept()
    (record,) = write_webdataset(rows, store)
    written = store.objects[record.path]
    file = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(written)) as theirs,
        tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for member in theirs:
            again = tarfile.TarInfo(member.name)
            again.size = member.size
            tar.addfile(again, theirs.extractfile(member))
    assert file.getvalue() == written


class Kept(Store):
    """A store in memory."""

    def __init__(self) -> None:
        super().__init__("/nowhere")
        self.objects: dict[str, bytes] = {}

    def put(self, key: str, data: bytes) -> None:
        self.objects[key] = data


# --- what was written is read --------------------------------------------------------------------


@pytest.mark.parametrize("classes", [NAMES, None])
@pytest.mark.parametrize(
    ("sink", "encoding"),
    [
        *(("parquet", e) for e in ("png", "jpeg", "webp", "raw")),
        *((s, e) for s in ("images", "webdataset") for e in SUFFIXES),
    ],
)
def test_reading_gives_ids_labels_and_images(store: Store, sink: str, encoding: str, classes: tuple[str, ...] | None):
    rows = shard(encoding=encoding, classes=classes, extra=EXTRA, producer=PRODUCER)
    (record,) = image_sink(sink).write(rows, store)
    data = store.read(record.path)
    file = image_sink(sink).read(record, data, store)
    assert isinstance(file, ImageRead)
    assert file.ids.dtype == np.int64
    assert file.ids.tolist() == list(rows.ids)
    assert file.cells == encode(rows)
    if rows.labels is None:
        assert file.labels is None
    else:
        assert file.labels is not None
        assert file.labels.tolist() == rows.labels.tolist()
    if sink != "images":
        assert list(image_sink(sink).objects(record, data)) == []


# --- records -------------------------------------------------------------------------------------

WRITING = pytest.mark.parametrize("sink", ["parquet", "images", "webdataset", "iceberg"])


@WRITING
@FILES
def test_records_are_of_the_files(store: Store, sink: str, encoding: str):
    rows = shard(encoding=encoding)
    (record,) = image_sink(sink).write(rows, store)
    data = store.read(record.path)
    assert record.rows == len(rows.images)
    assert record.bytes == len(data)
    assert record.sha256 == hashlib.sha256(data).hexdigest()
    images = [path for path, _, _ in image_sink(sink).objects(record, data)]
    assert sorted([record.path, *images]) == store.list()


@WRITING
@FILES
def test_writing_again_changes_nothing(store: Store, sink: str, encoding: str):
    rows = shard(encoding=encoding, extra=EXTRA, producer=PRODUCER)
    first = image_sink(sink).write(rows, store)
    before = {key: store.read(key) for key in store.list()}
    assert image_sink(sink).write(rows, store) == first
    assert {key: store.read(key) for key in store.list()} == before


def test_discard_writes_nothing(store: Store):
    assert discard().write(shard(), store) == []
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


# --- tables --------------------------------------------------------------------------------------


def test_rows_of_every_type_come_back_from_csv(store: Store):
    rows = pa.table(
        {
            "kind": pa.array(["a", None, 'b, "c"\n']).dictionary_encode(),
            "price": pa.array([1.25, None, -3.5], pa.float32()),
            "sent": pa.array([1, None, 3], pa.date32()),
            "time": pa.array([1, None, 86_399], pa.int32()).cast(pa.time32("s")),
            "at": pa.array([0, None, 1_700_000_000_000], pa.timestamp("ms")),
            "gift": pa.array([True, False, None]),
        }
    )
    (record,) = CSV.write(TableRows(0, 0, rows, {}), store)
    found = CSV.read(record, store.read(record.path), store)
    assert isinstance(found, TableRead)
    assert retyped(found.table, rows.schema).equals(rows)


def test_one_column_with_a_missing_value_keeps_its_rows(store: Store):
    rows = pa.table({"x": pa.array([1, None, 3])})
    (record,) = CSV.write(TableRows(0, 0, rows, {}), store)
    found = CSV.read(record, store.read(record.path), store)
    assert isinstance(found, TableRead)
    assert retyped(found.table, rows.schema).equals(rows)
