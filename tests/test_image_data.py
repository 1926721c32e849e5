"""Real images of every source arrive as arrays of one shape, and what does not is named."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SHARED_DATA, load_resident, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from genai_ray.errors import UserError
from genai_ray.image.codec import ImageCodec
from genai_ray.image.parquet import write_parquet
from genai_ray.image.rows import ImageRows
from genai_ray.image.source import ImageData
from genai_ray.image.spec import ImageDataSpec
from genai_ray.storage import Store

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def gradient(size: int, channels: int) -> NDArray[np.uint8]:
    """An image (H, W, C) whose every pixel is another."""
    values = np.arange(size * size * channels) * 255 // (size * size * channels - 1)
    return values.astype(np.uint8).reshape(size, size, channels)


def saved(path: Path, array: NDArray[Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.squeeze()).save(path, **options)
    return path


def png(array: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array.squeeze()).save(buffer, "png")
    return buffer.getvalue()


def everything(data: ImageData) -> NDArray[np.uint8]:
    return np.concatenate([data.train_images, data.holdout_images])


def labels(data: ImageData) -> list[str]:
    """Class names of all images, in the order of `everything`."""
    assert data.train_labels is not None
    assert data.holdout_labels is not None
    assert data.codec.classes is not None
    both = np.concatenate([data.train_labels, data.holdout_labels])
    return [data.codec.classes[i] for i in both]


def folder(root: Path, **values: Any) -> ImageData:
    return load_resident(ImageDataSpec(source="folder", root=str(root), **values))


def parquet(root: Path, **values: Any) -> ImageData:
    return load_resident(ImageDataSpec(source="parquet", root=str(root), **values))


def same_images(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> bool:
    """Whether two batches hold the same images in any order."""
    return sorted(i.tobytes() for i in found) == sorted(i.tobytes() for i in expected)


# --- digits and splits ---------------------------------------------------------------------------


def test_digits():
    data = load_resident(ImageDataSpec())
    assert data.codec == ImageCodec(8, 1, tuple("0123456789"))
    assert data.train_images.shape == (1438, 8, 8, 1)
    assert data.holdout_images.shape == (359, 8, 8, 1)
    assert data.train_images.dtype == np.uint8
    images = everything(data)
    assert (images.min(), images.max()) == (0, 255)
    # The 17 grey levels of the source, spread over all bytes.
    assert np.unique(images).tolist() == np.rint(np.arange(17) * 255 / 16).astype(int).tolist()
    assert np.bincount([int(x) for x in labels(data)]).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.mark.parametrize(("size", "channels"), [(16, 1), (8, 3), (28, 3)])
def test_digits_of_another_shape(size: int, channels: int):
    data = load_resident(ImageDataSpec(size=size, channels=channels))  # pyright: ignore[reportArgumentType]
    assert data.train_images.shape == (1438, size, size, channels)
    assert (data.codec.size, data.codec.channels) == (size, channels)
    plain = load_resident(ImageDataSpec())
    assert data.train_labels is not None
    assert plain.train_labels is not None
    assert data.train_labels.tolist() == plain.train_labels.tolist()
    assert data.train_images.mean() == pytest.approx(plain.train_images.mean(), rel=0.05)


@pytest.mark.parametrize("holdout", [0.1, 0.5, 0.9])
def test_a_split_is_a_partition_that_hangs_on_the_data_alone(holdout: float):
    from sklearn.datasets import load_digits

    pixels: Any = load_digits(return_X_y=True)[0]
    source = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    one, two = (load_resident(ImageDataSpec(holdout=holdout)) for _ in range(2))
    np.testing.assert_array_equal(one.train_images, two.train_images)
    np.testing.assert_array_equal(one.holdout_images, two.holdout_images)
    assert len(one.holdout_images) == round(1797 * holdout)
    assert same_images(everything(one), source)


def test_a_split_takes_from_everywhere():
    data = load_resident(ImageDataSpec(holdout=0.5))
    assert data.holdout_labels is not None
    counts = np.bincount(data.holdout_labels, minlength=10)
    assert counts.min() > 60
    assert counts.max() < 120


def test_the_digest_is_of_images_and_labels():
    data = load_resident(ImageDataSpec())
    assert data.digest == load_resident(ImageDataSpec()).digest
    codec, images, truth = data.codec, data.train_images, data.train_labels
    assert truth is not None
    others = [
        ImageData(codec, ~images, truth, images, truth),
        ImageData(codec, images, truth[::-1], images, truth),
        ImageData(codec, images, None, images, None),
    ]
    assert len({data.digest, *(o.digest for o in others)}) == 4
    assert ImageData(codec, images, truth, images[:1], truth[:1]).digest == data.digest


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_images_to_split(tmp_path: Path, count: int):
    for i in range(count):
        saved(tmp_path / f"{i}.png", gradient(8, 1))
    with pytest.raises(UserError, match=f"of {count} images") as caught:
        folder(tmp_path)
    assert caught.value.field == "data.holdout"


# --- folders -------------------------------------------------------------------------------------


def test_sub_folders_are_classes(tmp_path: Path):
    expected = {}
    for i, name in enumerate(["b", "a", "c d"] * 3):
        array = gradient(8, 3) ^ np.uint8(i)
        saved(tmp_path / name / f"{i}.png", array)
        expected[array.tobytes()] = name
    saved(tmp_path / "a" / "deeper" / "x.png", gradient(8, 3) ^ np.uint8(99))
    expected[(gradient(8, 3) ^ np.uint8(99)).tobytes()] = "a"
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    data = folder(tmp_path)
    assert data.codec == ImageCodec(8, 3, ("a", "b", "c d"))
    found = dict(zip([i.tobytes() for i in everything(data)], labels(data), strict=True))
    assert found == expected
    assert data.skipped == ()


def test_loose_images_have_no_classes(tmp_path: Path):
    arrays = np.stack([gradient(8, 1) ^ np.uint8(i) for i in range(5)])
    for i, array in enumerate(arrays):
        saved(tmp_path / f"{i}.PNG", array)
    data = folder(tmp_path)
    assert data.codec == ImageCodec(8, 1, None)
    assert data.train_labels is None
    assert data.holdout_labels is None
    assert same_images(everything(data), arrays)


def test_labels_that_are_not_there_cannot_be_asked_for(tmp_path: Path):
    for i in range(5):
        saved(tmp_path / f"{i}.png", gradient(8, 1))
    spec = ImageDataSpec(source="folder", root=str(tmp_path))
    with pytest.raises(UserError, match="needs labels") as caught:
        load_resident(spec, conditional=True)
    assert caught.value.field == "model.conditional"
    assert "sub-folder" in caught.value.remedy
    assert load_resident(spec, conditional=False).codec.classes is None


def test_sizes_and_modes_may_be_mixed(tmp_path: Path):
    rgb = gradient(40, 3)
    Image.fromarray(rgb[:, :20]).save(tmp_path / "tall.jpg")
    Image.fromarray(rgb).save(tmp_path / "square.webp")
    Image.fromarray(rgb).convert("RGBA").save(tmp_path / "alpha.png")
    Image.fromarray(rgb).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "cmyk.jpeg")
    saved(tmp_path / "grey.png", gradient(9, 1))
    saved(tmp_path / "deep.png", np.arange(256, dtype=np.uint16).reshape(16, 16) * 257)
    data = folder(tmp_path, size=16)
    assert data.codec == ImageCodec(16, 3, None)
    assert everything(data).shape == (7, 16, 16, 3)
    # Each is a gradient from dark to light, whatever its mode.
    for image in everything(data):
        assert image[:4].mean() + 60 < image[-4:].mean()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16"])
def test_grey_stays_grey(tmp_path: Path, mode: str):
    for i in range(5):
        if mode == "I;16":
            saved(tmp_path / f"{i}.png", gradient(8, 1).astype(np.uint16) * 257)
        else:
            Image.fromarray(gradient(8, 1)[..., 0]).convert(mode).save(tmp_path / f"{i}.png")
    data = folder(tmp_path)
    assert data.codec.channels == 1
    if mode != "1":
        np.testing.assert_array_equal(data.train_images[0], gradient(8, 1))
    assert folder(tmp_path, channels=3).codec.channels == 3


def test_colour_can_be_made_grey(tmp_path: Path):
    for i in range(5):
        saved(tmp_path / f"{i}.png", np.full((8, 8, 3), GREEN, np.uint8))
    data = folder(tmp_path, channels=1)
    # ITU-R 601-2: L = 0.587 G.
    assert np.unique(everything(data)).tolist() == [150]


def test_one_colour_image_makes_the_set_colour(tmp_path: Path):
    for i in range(4):
        saved(tmp_path / f"{i}.png", gradient(8, 1))
    saved(tmp_path / "5.png", gradient(8, 3))
    assert folder(tmp_path).codec.channels == 3


def test_a_palette_with_transparency(tmp_path: Path):
    image = Image.fromarray(np.full((8, 8, 3), BLUE, np.uint8)).convert("P")
    for i in range(5):
        image.save(tmp_path / f"{i}.png", transparency=bytes(range(256)))
    # Blue has the index 190 and so the alpha 190 of 255, on white.
    assert np.unique(everything(folder(tmp_path)).reshape(-1, 3), axis=0).tolist() == [[65, 65, 255]]


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (2, (0, 1)), (3, (1, 1)), (6, (0, 1)), (8, (1, 0))])
def test_cameras_orientation_is_followed(tmp_path: Path, orientation: int, corner: tuple[int, int]):
    """The red quarter is at the top left of the stored image; EXIF says where it belongs."""
    array = np.full((16, 16, 3), BLUE, np.uint8)
    array[:8, :8] = RED
    exif = Image.Exif()
    exif[0x0112] = orientation
    for i in range(5):
        saved(tmp_path / f"{i}.png", array, exif=exif)
    image = folder(tmp_path).train_images[0]
    expected = np.full((16, 16, 3), BLUE, np.uint8)
    row, column = (8 * c for c in corner)
    expected[row : row + 8, column : column + 8] = RED
    np.testing.assert_array_equal(image, expected)


def test_an_image_is_cropped_at_its_centre(tmp_path: Path):
    array = np.full((8, 24, 3), RED, np.uint8)
    array[:, 8:16] = GREEN
    for i in range(5):
        saved(tmp_path / f"{i}.png", array)
    found = everything(folder(tmp_path, size=8))
    assert np.unique(found.reshape(-1, 3), axis=0).tolist() == [list(GREEN)]


def test_a_resized_image_is_antialiased(tmp_path: Path):
    board = np.indices((64, 64)).sum(0) % 2 * 255
    for i in range(5):
        saved(tmp_path / f"{i}.png", board.astype(np.uint8))
    found = everything(folder(tmp_path, size=8))
    assert np.abs(found.astype(int) - 127).max() < 10


@pytest.mark.parametrize("sizes", [[(8, 8), (16, 16)], [(8, 16)], [(9, 9)]])
def test_a_size_is_needed_when_there_is_not_one(tmp_path: Path, sizes: list[tuple[int, int]]):
    for i in range(6):
        width, height = sizes[i % len(sizes)]
        saved(tmp_path / f"{i}.png", np.zeros((height, width), np.uint8))
    with pytest.raises(UserError) as caught:
        folder(tmp_path)
    assert caught.value.field == "data.size"
    assert all(f"{w}x{h}" in caught.value.rule for w, h in sizes)
    assert "data.size=8," in caught.value.remedy
    assert folder(tmp_path, size=8).codec.size == 8


@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_a_folder_that_is_missing_or_empty(tmp_path: Path, source: Any):
    for root, rule in [(tmp_path / "none", "exists"), (tmp_path, "holds none")]:
        with pytest.raises(UserError, match=rule) as caught:
            load_resident(ImageDataSpec(source=source, root=str(root)))
        assert caught.value.field == "data.root"
        assert caught.value.value == str(root)


def test_loose_and_nested_images_do_not_mix(tmp_path: Path):
    saved(tmp_path / "loose.png", gradient(8, 1))
    saved(tmp_path / "a" / "nested.png", gradient(8, 1))
    with pytest.raises(UserError, match=r"loose\.png.*a/nested\.png"):
        folder(tmp_path)


def bomb() -> bytes:
    """A PNG whose header claims 2 x 10^9 pixels."""

    def chunk(tag: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))

    header = struct.pack(">IIBBBBB", 50_000, 40_000, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


CORRUPT = {
    "empty": b"",
    "text": b"not an image",
    "truncated": png(gradient(64, 3))[:200],
    "flipped": png(gradient(8, 3)).replace(b"IDAT", b"IDAX"),
    "bomb": bomb(),
}


@pytest.mark.parametrize("content", CORRUPT.values(), ids=CORRUPT)
def test_a_corrupt_image_is_named_or_counted(tmp_path: Path, content: bytes):
    arrays = np.stack([gradient(8, 1) ^ np.uint8(i) for i in range(5)])
    for i, array in enumerate(arrays):
        saved(tmp_path / "ab"[i % 2] / f"{i}.png", array)
    (tmp_path / "a" / "1-bad.png").write_bytes(content)
    with pytest.raises(UserError, match=r"a/1-bad\.png") as caught:
        folder(tmp_path)
    assert "on_corrupt=skip" in caught.value.remedy
    data = folder(tmp_path, on_corrupt="skip")
    assert data.skipped == ("a/1-bad.png",)
    assert same_images(everything(data), arrays)
    for image, label in zip(everything(data), labels(data), strict=True):
        assert label == "ab"[int((image[0, 0, 0] ^ gradient(8, 1)[0, 0, 0]) % 2)]


def test_a_folder_of_nothing_but_corrupt_images(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(UserError, match="no image that decodes"):
        folder(tmp_path, on_corrupt="skip")


# --- Parquet -------------------------------------------------------------------------------------

ARRAYS = np.stack([gradient(8, 3) ^ np.uint8(i) for i in range(6)])
PNGS = [png(a) for a in ARRAYS]


def table(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def images_with_labels(data: ImageData) -> dict[bytes, str]:
    return dict(zip([i.tobytes() for i in everything(data)], labels(data), strict=True))


def test_a_data_set_of_hugging_face(tmp_path: Path):
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    features = Features({"img": ImageFeature(), "y": ClassLabel(names=["cat", "dog"])})
    values = {"img": [Image.fromarray(a) for a in ARRAYS], "y": [1, 0, 1, 0, 1, 0]}
    Dataset.from_dict(values, features=features).to_parquet(str(tmp_path / "d.parquet"))
    data = parquet(tmp_path, image_column="img", label_column="y")
    assert data.codec == ImageCodec(8, 3, ("cat", "dog"))
    names = ["dog", "cat"] * 3
    assert images_with_labels(data) == dict(zip([a.tobytes() for a in ARRAYS], names, strict=True))


@pytest.mark.parametrize("root", ["", "one.parquet"])
def test_a_plain_binary_column(tmp_path: Path, root: str):
    table(tmp_path / "one.parquet", image=PNGS)
    data = parquet(tmp_path / root)
    assert data.codec == ImageCodec(8, 3, None)
    assert same_images(everything(data), ARRAYS)


def test_labels_may_be_words(tmp_path: Path):
    names = ["dog", "cat", "ant", "dog", "cat", "ant"]
    table(tmp_path / "one.parquet", image=PNGS, label=names)
    data = parquet(tmp_path)
    assert data.codec.classes == ("ant", "cat", "dog")
    expected = dict(zip([a.tobytes() for a in ARRAYS], names, strict=True))
    assert images_with_labels(data) == expected


def test_labels_may_be_numbers_with_gaps(tmp_path: Path):
    table(tmp_path / "one.parquet", image=PNGS, label=[10, 2, 10, 2, 10, 2])
    assert parquet(tmp_path).codec.classes == ("2", "10")


def test_files_are_read_in_the_order_of_their_names(tmp_path: Path):
    table(tmp_path / "b.parquet", image=PNGS[3:], label=["b"] * 3)
    table(tmp_path / "a.parquet", image=PNGS[:3], label=["a"] * 3)
    data = parquet(tmp_path)
    assert data.digest == parquet(tmp_path).digest
    expected = dict(zip([a.tobytes() for a in ARRAYS], "aaabbb", strict=True))
    assert images_with_labels(data) == expected


@pytest.mark.parametrize("encoding", ["png", "raw"])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_a_sink_wrote_comes_back(tmp_path: Path, encoding: str, channels: int):
    codec = ImageCodec(8, channels, ("T-shirt/top", "Bag"))
    arrays = ARRAYS[..., :channels]
    truth = np.array([0, 1, 1, 0, 0, 1])
    write_parquet(ImageRows(0, 0, arrays, truth, codec, encoding, {}), Store(str(tmp_path)))
    data = parquet(tmp_path)
    assert data.codec == codec
    assert same_images(everything(data), arrays)
    expected = {a.tobytes(): ("T-shirt/top", "Bag")[i] for a, i in zip(arrays, truth, strict=True)}
    assert images_with_labels(data) == expected


def test_a_missing_column_lists_the_columns(tmp_path: Path):
    table(tmp_path / "one.parquet", picture=PNGS, label=[0] * 6)
    with pytest.raises(UserError) as caught:
        parquet(tmp_path)
    assert (caught.value.field, caught.value.value) == ("data.image_column", "image")
    assert "picture, label" in caught.value.remedy


@pytest.mark.parametrize(
    "column",
    [["a.png"] * 6, [1.5] * 6, pa.array([b"12"] * 6, pa.binary(2)), [{"path": "a.png"}] * 6],
    ids=["text", "number", "fixed-size", "path"],
)
def test_a_column_without_images_is_refused(tmp_path: Path, column: Any):
    table(tmp_path / "one.parquet", image=column)
    with pytest.raises(UserError) as caught:
        parquet(tmp_path)
    assert caught.value.field == "data.image_column"


def test_a_label_that_is_missing_is_refused(tmp_path: Path):
    table(tmp_path / "one.parquet", image=PNGS, label=["a", None, "a", "a", "a", "a"])
    with pytest.raises(UserError, match="empty cells") as caught:
        parquet(tmp_path)
    assert caught.value.field == "data.label_column"


@pytest.mark.parametrize("bad", [b"not an image", None])
def test_a_corrupt_cell_is_named_or_counted(tmp_path: Path, bad: bytes | None):
    table(tmp_path / "one.parquet", image=[*PNGS[:2], bad, *PNGS[2:]], label=list("abXabab"))
    with pytest.raises(UserError, match="row 2"):
        parquet(tmp_path)
    data = parquet(tmp_path, on_corrupt="skip")
    assert data.skipped == ("one.parquet row 2",)
    expected = dict(zip([a.tobytes() for a in ARRAYS], "ababab", strict=True))
    assert images_with_labels(data) == expected


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path):
    (tmp_path / "one.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(UserError, match="readable Parquet"):
        parquet(tmp_path)


# --- data sets of torchvision --------------------------------------------------------------------

GARMENTS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@pytest.mark.parametrize(
    ("source", "classes", "counts"),
    [
        pytest.param(
            "mnist",
            tuple("0123456789"),
            [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
            marks=needs_shared("MNIST"),
        ),
        pytest.param("fashion_mnist", GARMENTS, [1000] * 10, marks=needs_shared("FashionMNIST")),
    ],
)
def test_the_official_test_split_judges(source: Any, classes: tuple[str, ...], counts: list[int]):
    before = sorted(SHARED_DATA.rglob("*"))
    data = load_resident(ImageDataSpec(source=source, root=str(SHARED_DATA), download=False))
    assert sorted(SHARED_DATA.rglob("*")) == before
    assert data.codec == ImageCodec(28, 1, classes)
    assert data.train_images.shape == (60_000, 28, 28, 1)
    assert data.holdout_images.shape == (10_000, 28, 28, 1)
    assert data.holdout_labels is not None
    assert np.bincount(data.holdout_labels).tolist() == counts


@pytest.mark.parametrize("source", ["mnist", "fashion_mnist", "cifar10"])
def test_a_source_that_may_not_be_downloaded(tmp_path: Path, source: Any):
    with pytest.raises(UserError, match=r"data\.download is false") as caught:
        load_resident(ImageDataSpec(source=source, root=str(tmp_path), download=False))
    assert caught.value.field == "data.root"
    assert list(tmp_path.iterdir()) == []


# --- the codec -----------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.integers(8, 512), st.sampled_from([1, 3]), st.none() | st.lists(st.text(), min_size=1, unique=True).map(tuple)
)
def test_a_codec_survives_json(size: int, channels: int, classes: tuple[str, ...] | None):
    codec = ImageCodec(size, channels, classes)
    values = json.loads(json.dumps(codec.to_json()))
    assert values["modality"] == "image"
    assert ImageCodec.from_json(values) == codec


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_of_the_right_shape_is_unchanged(channels: int):
    codec = ImageCodec(16, channels, None)
    array = gradient(16, channels)
    np.testing.assert_array_equal(codec.encode(Image.fromarray(array.squeeze())), array)


def raw_floats(path: Path, images: np.ndarray) -> None:
    """Parquet of pixels as float32 in rows of fixed size."""
    size = images[0].size * 4
    shape = json.dumps(images.shape[1:]).encode()
    field = pa.field("image", pa.binary(size), metadata={b"shape": shape})
    cells = pa.array([i.astype("<f4").tobytes() for i in images], pa.binary(size))
    pq.write_table(pa.Table.from_arrays([cells], schema=pa.schema([field])), path)


def test_floats_are_pixels_in_0_to_1_and_nan_is_named(tmp_path: Path):
    images = np.random.default_rng(0).random((20, 8, 8, 1), np.float32)
    raw_floats(tmp_path / "a.parquet", images)
    data = parquet(tmp_path)
    assert same_images(everything(data), np.rint(images * 255).astype(np.uint8))
    images[7, 3, 3] = np.nan
    raw_floats(tmp_path / "a.parquet", images)
    with pytest.raises(UserError, match=r"row 7.*1 of 64 floats are not in 0..1, the first is nan"):
        parquet(tmp_path)
    assert parquet(tmp_path, on_corrupt="skip").skipped == ("a.parquet row 7",)
