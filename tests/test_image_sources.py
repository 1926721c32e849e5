"""Folders and Parquet of images as people have them: what is read, what is left out, and what is said of both."""

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import load_resident
from numpy.typing import NDArray
from PIL import Image
from test_image_data import everything, folder, gradient, labels, parquet, png, same_images, saved

from genai_ray import modalities
from genai_ray.errors import UserError
from genai_ray.image.codec import ImageCodec
from genai_ray.image.describe import describe, recognised
from genai_ray.image.inception import read_weights
from genai_ray.image.listing import image_suffixes
from genai_ray.image.source import ImageData, load
from genai_ray.image.spec import ImageDataSpec
from genai_ray.inspect import inspect

WHITE = 255


def pictures(root: Path, count: int = 6, *, start: int = 0, suffix: str = ".png") -> None:
    """Grey images of 8x8 of one level each: start, start + 1, ..."""
    for level in range(start, start + count):
        saved(root / f"{level:03d}{suffix}", np.full((8, 8), level, np.uint8))


def levels(images: NDArray[np.uint8]) -> list[int]:
    return sorted(images[:, 0, 0, 0].tolist())


def described(source: str, root: Path, **values: Any) -> dict[str, Any]:
    return describe(ImageDataSpec.model_validate({"source": source, "root": str(root), **values}))


def seen(data: ImageData) -> dict[str, int]:
    """How many images each class has."""
    names = labels(data)
    return {name: names.count(name) for name in sorted(set(names))}


# --- which files ---------------------------------------------------------------------------------


def test_links_to_folders_and_files_are_followed_and_loops_are_not(tmp_path: Path):
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    pictures(root / "cat")
    pictures(elsewhere / "dogs")
    (root / "dog").symlink_to(elsewhere / "dogs")
    (root / "cat" / "linked.png").symlink_to(elsewhere / "dogs" / "003.png")
    (root / "cat" / "above").symlink_to(root)
    (root / "cat" / "nowhere.png").symlink_to(tmp_path / "none.png")
    data = folder(root)
    assert seen(data) == {"cat": 7, "dog": 6}
    assert data.summary["left out"] == {"link or folder that cannot be followed": 2}


def test_what_systems_leave_is_no_data(tmp_path: Path):
    for name in ("cat", "dog"):
        pictures(tmp_path / name)
    for junk in (".ipynb_checkpoints", "__MACOSX/cat", "_temporary/0", "cat/.hidden", "dog/@eaDir", "cat/@__thumb"):
        pictures(tmp_path / junk, 2)
    (tmp_path / "cat" / "._000.png").write_bytes(b"resource fork")
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store"):
        (tmp_path / "cat" / name).write_bytes(b"x")
    data = folder(tmp_path)
    assert seen(data) == {"cat": 6, "dog": 6}
    assert data.summary["left out"] == {"hidden": 16}


def test_every_format_that_pillow_decodes_is_read(tmp_path: Path):
    formats = {".bmp": 1, ".tif": 2, ".gif": 3, ".TIFF": 4, ".ppm": 5, ".tga": 6, ".jfif": 7, ".jp2": 8, ".pcx": 9}
    for suffix, level in formats.items():
        pictures(tmp_path, 1, start=level, suffix=suffix)
    for suffix in (".pdf", ".eps", ".h5", ".mpg", ".svg", ""):
        (tmp_path / f"other{suffix}").write_bytes(b"x")
    data = folder(tmp_path, channels=1)
    assert levels(everything(data)) == [*range(1, 10)]
    assert data.summary["left out"] == dict.fromkeys(
        ["no suffix", *(f"suffix {s}" for s in (".eps", ".h5", ".mpg", ".pdf", ".svg"))], 1
    )


def test_what_can_be_written_only_is_no_format_to_read():
    assert not image_suffixes() & {".pdf", ".palm", ".eps", ".ps", ".wmf", ".h5", ".grib", ".bufr", ".mpeg"}
    assert image_suffixes() >= {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".gif", ".avif", ".ico", ".pgm"}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "JPEG2000"])
def test_images_without_a_suffix_are_known_by_their_first_bytes(tmp_path: Path, kind: str):
    for i, name in enumerate(["cat", "dog"]):
        (tmp_path / name).mkdir()
        for j in range(6):
            Image.new("RGB", (8, 8), (40 * i + j, 99, 99)).save(tmp_path / name / f"{j:032x}", kind)
    (tmp_path / "LICENSE").write_text("Python software")
    data = folder(tmp_path)
    assert seen(data) == {"cat": 6, "dog": 6}
    assert data.summary["left out"] == {"no suffix": 1}
    assert inspect(str(tmp_path)) == data.summary


def test_a_look_at_what_is_no_source_says_what_is_there(tmp_path: Path):
    with pytest.raises(UserError, match="must exist"):
        inspect(str(tmp_path / "none"))
    (tmp_path / "a.svg").write_text("<svg/>")
    with pytest.raises(UserError, match=r"holds files of \.svg \(1\)"):
        inspect(str(tmp_path))


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path):
    (tmp_path / "photos.zip").write_bytes(b"x")
    with pytest.raises(UserError, match=r"suffix \.zip: 1") as caught:
        folder(tmp_path)
    assert caught.value.remedy == "Unpack the archives there."
    table(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"suffix \.parquet: 1") as caught:
        folder(tmp_path)
    assert "data.source=parquet" in caught.value.remedy
    assert len(everything(parquet(tmp_path))) == 6
    pictures(tmp_path / "pictures")
    with pytest.raises(UserError, match=r"suffix \.png: 6") as caught:
        parquet(tmp_path / "pictures")
    assert "data.source=folder" in caught.value.remedy


def test_names_that_are_no_utf_8(tmp_path: Path):
    """As an archive of another system leaves them: here in GBK."""
    for name, start in (("\u9e1f", 0), ("\u72d7", 6)):
        pictures(tmp_path / "new" / name, start=start)
        os.rename(tmp_path / "new" / name, os.fsencode(tmp_path) + b"/new/" + name.encode("gbk"))
    data = folder(tmp_path / "new")
    assert data.codec.classes == ("\\xb9\\xb7", "\\xc4\\xf1")
    assert levels(everything(data)) == [*range(12)]
    json.dumps(data.summary).encode()


# --- classes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_a_class_without_an_image_that_decodes_is_none(tmp_path: Path, source: str):
    for name in ("cat", "dog"):
        pictures(tmp_path / name)
    (tmp_path / "fox").mkdir()
    for i in range(5):
        (tmp_path / "fox" / f"{i}.jpg").write_bytes(b"<html>404 Not Found</html>")
    if source == "parquet":
        files = sorted(p for p in tmp_path.rglob("*") if p.is_file())
        table(tmp_path / "a.parquet", [p.read_bytes() for p in files], [p.parent.name for p in files])
    data = (folder if source == "folder" else parquet)(tmp_path, on_corrupt="skip")
    assert data.codec.classes == ("cat", "dog")
    assert seen(data) == data.summary["classes"] == {"cat": 6, "dog": 6}
    assert data.summary["left out"]["no image"] == len(data.skipped) == 5


def test_a_class_whose_only_image_is_held_out_is_none(tmp_path: Path):
    pictures(tmp_path, 10)
    held = levels(folder(tmp_path).holdout_images)[0]
    for level in range(10):
        path = tmp_path / ("rare" if level == held else "often") / f"{level:03d}.png"
        path.parent.mkdir(exist_ok=True)
        (tmp_path / f"{level:03d}.png").rename(path)
    order = [p.parent.name for p in sorted(tmp_path.rglob("*.png"))]
    data = folder(tmp_path, holdout=0.2)
    trained = data.codec.classes or ()
    if "rare" not in trained:
        assert data.summary["left out"] == {"class that does not train": order.count("rare")}
    assert set(labels(data)) == set(trained)


def test_names_of_classes_that_no_row_has_are_none(tmp_path: Path):
    table(tmp_path / "a.parquet", label=[0, 2] * 3, names=["cat", "dog", "fox"])
    assert parquet(tmp_path).codec.classes == ("cat", "fox")


def test_class_folders_may_be_written_as_hive_does(tmp_path: Path):
    for name in ("label=cat", "label=hot%20dog"):
        pictures(tmp_path / name)
    assert folder(tmp_path).codec.classes == ("cat", "hot dog")
    pictures(tmp_path / "x=y")
    assert folder(tmp_path).codec.classes == ("label=cat", "label=hot%20dog", "x=y")


# --- splits --------------------------------------------------------------------------------------


def splits(root: Path, *names: str, classes: bool = True) -> Path:
    """Folders of splits with images of other levels each: 0.., 20.., 40.., ..."""
    for i, name in enumerate(names):
        for j, kind in enumerate(["cat", "dog"] if classes else [""]):
            pictures(root / name / kind, 6, start=20 * i + 10 * j)
    return root


@pytest.mark.parametrize(
    ("names", "held", "left_out"),
    [
        (("Train", "TEST", "val"), 1, {"split validation": 12}),
        (("train", "valid"), 1, {}),
        (("training", "dev", "eval"), 2, {"split validation": 12}),
        (("train2017", "val2017"), 1, {}),
        (("training_set", "test_set"), 1, {}),
        (("Training Data", "Validation Data"), 1, {}),
    ],
)
@pytest.mark.parametrize("classes", [True, False])
@pytest.mark.parametrize("inside", ["", "data/", "my test project/"])
def test_the_split_that_trains_and_the_one_that_is_held_out(
    tmp_path: Path, names: tuple[str, ...], held: int, left_out: dict[str, int], classes: bool, inside: str
):
    data = folder(splits(tmp_path, *(inside + name for name in names), classes=classes))
    tens = [0, 10] if classes else [0]
    assert levels(data.train_images) == [ten + i for ten in tens for i in range(6)]
    assert levels(data.holdout_images) == [20 * held + ten + i for ten in tens for i in range(6)]
    assert data.codec.classes == (("cat", "dog") if classes else None)
    out = data.summary.get("left out", {})
    assert out == {name: count if classes else count // 2 for name, count in left_out.items()}
    assert data.summary["splits"]["train"] == "trains"
    assert str(len(data.holdout_images)) in data.summary["holdout"]


def test_a_share_that_is_asked_for_is_of_what_trains(tmp_path: Path):
    data = folder(splits(tmp_path, "train", "test"), holdout=0.25)
    assert levels(everything(data)) == [*range(6), *range(10, 16)]
    assert data.holdout_n == 3
    assert data.summary["left out"] == {"split test": 12}


def test_a_test_split_without_classes_cannot_judge_classes(tmp_path: Path):
    splits(tmp_path, "train")
    pictures(tmp_path / "test", 5, start=100)
    data = folder(tmp_path)
    assert levels(everything(data)) == [*range(6), *range(10, 16)]
    assert data.summary["splits"]["test"] == "left out, as it has no labels"


def test_a_class_of_the_holdout_that_never_trains_is_left_out(tmp_path: Path):
    splits(tmp_path, "train", "test")
    pictures(tmp_path / "test" / "fox", 3, start=90)
    data = folder(tmp_path)
    assert data.codec.classes == ("cat", "dog")
    assert data.holdout_n == 12
    assert data.summary["left out"] == {"class that does not train": 3}


def test_a_test_split_of_other_classes_cannot_judge(tmp_path: Path):
    """As in Tiny ImageNet, whose val/images is no class."""
    splits(tmp_path, "train")
    pictures(tmp_path / "val" / "images", 5, start=100)
    for found in (folder(tmp_path).summary, described("folder", tmp_path)):
        assert found["classes"] == {"cat": 6, "dog": 6}
        assert found["splits"]["validation"] == "left out, as it has none of the classes that train"


def test_a_look_knows_the_classes_that_train(tmp_path: Path):
    splits(tmp_path, "train", "test")
    pictures(tmp_path / "test" / "fox", 3, start=90)
    assert described("folder", tmp_path) == folder(tmp_path).summary


def test_loose_images_may_name_their_split(tmp_path: Path):
    for i in range(12):
        saved(tmp_path / f"{'train' if i % 3 else 'test'}_{i}.png", np.full((8, 8), i, np.uint8))
    assert levels(folder(tmp_path).holdout_images) == [0, 3, 6, 9]
    saved(tmp_path / "other.png", np.full((8, 8), 99, np.uint8))
    assert folder(tmp_path).n + folder(tmp_path).holdout_n == 13


@pytest.mark.parametrize(
    "names", [("test1", "test2"), ("train1", "train2"), ("control", "test1", "test2"), ("bus", "train set")]
)
def test_classes_with_numbers_are_no_splits(tmp_path: Path, names: tuple[str, ...]):
    for name in names:
        pictures(tmp_path / name)
    assert folder(tmp_path).codec.classes == names


def test_one_name_in_two_spellings_of_unicode_is_one_class(tmp_path: Path):
    for i, name in enumerate(["th\u00e9", "the\u0301", "tea"]):
        pictures(tmp_path / name, start=10 * i)
    assert folder(tmp_path).summary["classes"] == {"th\u00e9": 12, "tea": 6}


def test_splits_within_classes(tmp_path: Path):
    for i, kind in enumerate(["cat", "dog"]):
        pictures(tmp_path / kind / "train", 6, start=10 * i)
        pictures(tmp_path / kind / "test", 2, start=100 + 10 * i)
    data = folder(tmp_path)
    assert levels(data.holdout_images) == [100, 101, 110, 111]
    assert seen(data) == {"cat": 8, "dog": 8}


@pytest.mark.parametrize(
    "names",
    [("train/a", "test/a", "extra/a"), ("val/a", "test/a"), ("train/a", "more"), ("d/train/a", "d/test/a", "d/x/a")],
)
def test_a_layout_that_does_not_say_what_trains_is_refused(tmp_path: Path, names: tuple[str, ...]):
    for i, name in enumerate(names):
        pictures(tmp_path / name, 6, start=10 * i)
    with pytest.raises(UserError, match="does not say what trains") as caught:
        folder(tmp_path)
    assert caught.value.field == "data.root"
    named = Path(caught.value.remedy.rpartition("data.root=")[2].rstrip("."))
    assert named.name == ("train" if any("train/a" in name for name in names) else "test")
    assert len(everything(folder(named))) == 6
    assert "data.splits=none" in caught.value.remedy
    assert len(everything(folder(tmp_path, splits="none"))) == 6 * len(names)


def test_a_folder_beside_splits_of_longer_names_is_asked_about(tmp_path: Path):
    """As in a well-known set of landscapes: seg_train, seg_test and seg_pred, which has no classes."""
    splits(tmp_path, "seg_train", "seg_test")
    pictures(tmp_path / "seg_pred", start=100)
    with pytest.raises(UserError, match="does not say what trains") as caught:
        folder(tmp_path)
    root = Path(caught.value.remedy.rpartition("data.root=")[2].rstrip("."))
    assert levels(everything(folder(root))) == [*range(6), *range(10, 16)]


def test_a_class_may_be_called_train(tmp_path: Path):
    for name in ("bus", "car", "train"):
        pictures(tmp_path / name)
    assert folder(tmp_path).codec.classes == ("bus", "car", "train")


# --- transparency --------------------------------------------------------------------------------


def ring() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Random colours (8, 8, 3), and alpha (8, 8) that shows their middle."""
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    alpha = np.zeros((8, 8), np.uint8)
    alpha[2:6, 2:6] = 255
    return colours, alpha


def transparent(mode: str) -> Image.Image:
    """`ring` as an image of a mode."""
    colours, alpha = ring()
    image = Image.fromarray(np.dstack([colours, alpha]))
    if mode == "P":
        flat = Image.fromarray(np.where(alpha == 255, colours[..., 0] // 2 + 1, 0).astype(np.uint8)).convert("P")
        flat.info["transparency"] = 0
        return flat
    if mode in ("L", "RGB"):
        flat = image.convert("RGB").convert(mode)
        hidden = np.asarray(flat).copy()
        hidden[alpha == 0] = 7
        flat = Image.fromarray(hidden)
        flat.info["transparency"] = 7 if mode == "L" else (7, 7, 7)
        return flat
    return image.convert("LA") if mode == "LA" else image


@pytest.mark.parametrize(
    ("background", "colour"), [("white", (255, 255, 255)), ("#102030", (16, 32, 48)), ("black", (0, 0, 0))]
)
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_transparent_pixels_lie_on_the_background(tmp_path: Path, mode: str, background: str, colour: tuple[int, ...]):
    picture = transparent(mode)
    for i in range(5):
        picture.save(tmp_path / f"{i}.png")
    data = folder(tmp_path, background=background)
    _, alpha = ring()
    grey = mode in ("L", "LA") and len(set(colour)) == 1
    assert data.codec.channels == (1 if grey else 3)
    for image in everything(data):
        shown = np.broadcast_to(image, (8, 8, 3))
        assert np.unique(shown[alpha == 0], axis=0).tolist() == [list(colour)]
        expected = np.asarray(picture.convert("RGBA").convert("RGB"))
        np.testing.assert_array_equal(shown[alpha == 255], expected[alpha == 255])


def test_half_transparent_pixels_are_mixed(tmp_path: Path):
    for i in range(5):
        Image.new("RGBA", (8, 8), (200, 0, 100, 51)).save(tmp_path / f"{i}.png")
    expected = [round(c * 0.2 + 255 * 0.8) for c in (200, 0, 100)]
    assert np.unique(everything(folder(tmp_path)).reshape(-1, 3), axis=0).tolist() == [expected]


@pytest.mark.parametrize("clear", [0, 1])
def test_a_transparent_value_of_one_bit(tmp_path: Path, clear: int):
    """A PNG of one bit a pixel, black and white, of which one is transparent."""
    pixels = np.zeros((8, 8), bool)
    pixels[:4] = True
    for i in range(5):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png", transparency=clear)
    found = everything(folder(tmp_path, background="#808080"))
    assert np.unique(found[:, :4]).tolist() == [128 if clear else 255]
    assert np.unique(found[:, 4:]).tolist() == [0 if clear else 128]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "La", "RGBa"])
def test_an_opaque_image_is_as_if_it_had_no_alpha(mode: str):
    colours = gradient(8, 3)
    image = Image.fromarray(np.dstack([colours, np.full((8, 8), 255, np.uint8)]))
    image = image.convert("LA") if mode in ("LA", "La") else image
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    expected = image.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, mode)).convert("RGBA").convert("RGB")
    np.testing.assert_array_equal(ImageCodec(8, 3, None).encode(image, background="red"), np.asarray(expected))


@pytest.mark.parametrize("background", ["nocolour", "#12345", "#ff000080"])
def test_a_background_that_is_no_colour(background: str):
    with pytest.raises(UserError) as caught:
        modalities.parse({"name": "x", "data": {"source": "folder", "root": "x", "background": background}})
    assert caught.value.field == "data.background"


def test_colours_of_other_spaces(tmp_path: Path):
    from PIL import ImageCms

    colour = (180, 60, 90)
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(Image.new("RGB", (8, 8), colour), *profiles, outputMode="LAB")
    assert lab is not None
    for i in range(5):
        lab.save(tmp_path / f"{i}.tif")
    for i in range(5):
        Image.new("RGB", (8, 8), colour).convert("YCbCr").save(tmp_path / f"{5 + i}.tif")
    data = folder(tmp_path)
    assert data.summary["modes"]["LAB"] == 5
    assert abs(everything(data).astype(int) - colour).max() <= 3


# --- depth ---------------------------------------------------------------------------------------


def deep(root: Path, values: NDArray[Any], suffix: str = ".png", **options: Any) -> None:
    """Images (N, H, W) of one channel."""
    root.mkdir(parents=True, exist_ok=True)
    for i, array in enumerate(values):
        Image.fromarray(array).save(root / f"{i}{suffix}", **options)


RAMP = np.linspace(0, 1, 5 * 64).reshape(5, 8, 8)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_the_bits_that_a_source_uses_are_its_depth(tmp_path: Path, bits: int):
    deep(tmp_path, np.rint(RAMP * (2**bits - 1)).astype(np.uint16))
    data = folder(tmp_path)
    found = np.sort(everything(data), axis=None).astype(int)
    assert (found[0], found[-1]) == (0, 255)
    assert np.abs(found - np.sort((RAMP * 255).ravel())).max() <= 1
    assert f"0 to {2**bits - 1}; 0 is black, {2**bits - 1} white" in data.summary["depth"]["integers"]


def test_one_grey_means_the_same_in_all_images_of_a_source(tmp_path: Path):
    values = np.full((6, 8, 8), 1000, np.uint16)
    values[:, 0, 0] = [1000, 1010, 1020, 2000, 3000, 4080]
    deep(tmp_path, values)
    found = everything(folder(tmp_path))
    assert np.unique(found[:, 4, 4]).tolist() == [round(1000 * 255 / 4095)]
    assert found.max() == round(4080 * 255 / 4095)


@pytest.mark.parametrize("values", [np.arange(65536, dtype=np.uint16)])
def test_values_of_all_16_bits_are_as_ever(tmp_path: Path, values: NDArray[np.uint16]):
    deep(tmp_path, values.reshape(16, 64, 64))
    found = everything(folder(tmp_path))
    assert sorted(found.ravel().tolist()) == (np.arange(65536) // 257).tolist()


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        ("auto", 4000 * 255 / 4095),
        ("full", 4000 // 257),
        ("range", 255),
        (12, 4000 * 255 / 4095),
        (14, 62.3),
        (10, 255),
    ],
)
def test_the_depth_can_be_chosen(tmp_path: Path, depth: Any, expected: float):
    values = np.full((5, 8, 8), 4000, np.uint16)
    values[:, 0, 0] = 1000
    deep(tmp_path, values)
    found = everything(folder(tmp_path, depth=depth))
    assert np.unique(found[:, 4:]).tolist() == [round(expected)]
    assert (found[:, 0, 0] == 0).all() == (depth == "range")


@pytest.mark.parametrize(
    ("low", "high", "black", "white"),
    [
        (0, 1, 0, 255),
        (0, 255, 0, 255),
        (0, 0.5, 0, 128),
        (0, 1e-3, 0, 255),
        (-1, 1, 0, 255),
        (-1000, 3000, 0, 255),
        (0, 70_000, 0, 255),
    ],
)
def test_floats(tmp_path: Path, low: float, high: float, black: int, white: int):
    deep(tmp_path, (RAMP * (high - low) + low).astype(np.float32), ".tif")
    found = everything(folder(tmp_path))
    assert (found.min(), found.max()) == (black, white)


def test_big_endian_and_signed_integers(tmp_path: Path):
    values = np.rint(RAMP * 4095).astype(np.uint16)
    deep(tmp_path / "little", values, ".tif")
    (tmp_path / "big").mkdir()
    for i, array in enumerate(values):
        Image.frombytes("I;16B", (8, 8), array.astype(">u2").tobytes()).save(tmp_path / "big" / f"{i}.tif")
    np.testing.assert_array_equal(everything(folder(tmp_path / "big")), everything(folder(tmp_path / "little")))
    deep(tmp_path / "signed", values.astype(np.int32) - 1000, ".tif")
    found = everything(folder(tmp_path / "signed"))
    assert (found.min(), found.max()) == (0, 255)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_white_may_be_zero(tmp_path: Path, kind: Any):
    """As X-rays are stored (MONOCHROME1), and scans; Pillow inverts those of 8 bits alone."""
    deep(tmp_path, (RAMP * (1 if kind is np.float32 else np.iinfo(kind).max)).astype(kind), ".tif")
    before = everything(folder(tmp_path)).astype(int)
    black_is_zero, white_is_zero = (struct.pack("<HHII", 262, 3, 1, value) for value in (1, 0))
    for file in tmp_path.iterdir():
        content = file.read_bytes()
        assert content.count(black_is_zero) == 1
        file.write_bytes(content.replace(black_is_zero, white_is_zero))
    assert np.abs(everything(folder(tmp_path)) - (255 - before)).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_masks_that_are_nearly_black_are_refused_or_stretched(tmp_path: Path, channels: int):
    """Class numbers 0 to 5 in 8 bits look black, and train to black."""
    deep(tmp_path, np.random.default_rng(0).integers(0, 6, (10, 8, 8, channels)).squeeze().astype(np.uint8))
    assert described("folder", tmp_path)["depth"] == {"bytes": "0 to 5; 0 is black, 255 white"}
    overrides = {"source": "folder", "root": str(tmp_path)}
    values = {"name": "masks", "store": str(tmp_path / "runs"), "train": {"workers": 0}, "data": overrides}
    with pytest.raises(UserError, match=r"data\.depth=range.*data\.depth=8"):
        load(modalities.parse(values))
    stretched = everything(folder(tmp_path, depth="range"))
    assert np.unique(stretched).tolist() == [0, 51, 102, 153, 204, 255]
    assert everything(folder(tmp_path, depth=8)).max() == 5
    load(modalities.parse(values | {"data": overrides | {"depth": 8}}))


def test_a_float_that_is_not_finite_is_named(tmp_path: Path):
    values = RAMP.astype(np.float32)
    values[3, 2, 1] = np.nan
    deep(tmp_path, values, ".tif")
    with pytest.raises(UserError, match=r"3\.tif.*nan"):
        folder(tmp_path)
    assert folder(tmp_path, on_corrupt="skip").skipped == ("3.tif",)


def test_a_transparent_value_of_16_bits(tmp_path: Path):
    values = np.full((5, 8, 8), 2000, np.uint16)
    values[:, :4] = 123
    deep(tmp_path, values, transparency=123)
    found = everything(folder(tmp_path, depth=12))
    assert np.unique(found[:, :4]).tolist() == [WHITE]
    assert np.unique(found[:, 4:]).tolist() == [round(2000 * 255 / 4095)]


def colour_of_16_bits(path: Path, pixels: NDArray[np.uint16]) -> None:
    """A PNG (H, W, 3) of 16 bits a channel, which Pillow reads and does not write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    parts = (struct.pack(">I", len(b)) + tag + b + struct.pack(">I", zlib.crc32(tag + b)) for tag, b in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_16_bit_colour_is_taken_where_it_fills_its_bits_and_else_refused(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 4096, (5, 8, 8, 3)).astype(np.uint16)
    for i, image in enumerate(pixels):
        colour_of_16_bits(tmp_path / "dark" / f"{i}.png", image)
        colour_of_16_bits(tmp_path / "full" / f"{i}.png", image * 16)
    assert same_images(everything(folder(tmp_path / "full")), (pixels * 16 >> 8).astype(np.uint8))
    with pytest.raises(UserError, match="uses 12 of the 16") as caught:
        folder(tmp_path / "dark")
    assert caught.value.field == "data.depth"
    assert same_images(everything(folder(tmp_path / "dark", depth="full")), (pixels >> 8).astype(np.uint8))


# --- labels of Parquet ---------------------------------------------------------------------------

ARRAYS = np.stack([np.full((8, 8, 1), i, np.uint8) for i in range(6)])
PNGS = [png(a) for a in ARRAYS]


def table(
    path: Path, image: Any = PNGS, label: Any = None, *, names: list[str] | None = None, paths: Any = None
) -> Path:
    """Parquet as `datasets` writes it, where names or paths are given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {"image": image}
    if paths is not None:
        columns["image"] = pa.array([{"bytes": b, "path": p} for b, p in zip(image, paths, strict=True)], STRUCT)
    if label is not None:
        columns["label"] = label
    made = pa.table(columns)
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        made = made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(made, path)
    return path


STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("unlabelled", [-1, None])
def test_rows_without_a_label_are_named_or_left_out(tmp_path: Path, unlabelled: int | None):
    table(tmp_path / "a.parquet", label=[0, 1] * 3, names=["cat", "dog"])
    table(tmp_path / "b.parquet", label=[0, 1, 1, unlabelled, 0, unlabelled], names=["cat", "dog"])
    with pytest.raises(UserError, match=r"row 3 of b\.parquet, and 1 more of 12 rows") as caught:
        parquet(tmp_path)
    assert caught.value.field == "data.label_column"
    assert "data.unlabelled=skip" in caught.value.remedy
    data = parquet(tmp_path, unlabelled="skip")
    assert seen(data) == {"cat": 5, "dog": 5}
    assert data.summary["left out"] == {"no label": 2}


def test_an_empty_string_is_no_class(tmp_path: Path):
    table(tmp_path / "a.parquet", label=["cat", "", "cat", "dog", "dog", "dog"])
    with pytest.raises(UserError, match=r"has empty cells: row 1 of a\.parquet, and 0 more of 6 rows"):
        parquet(tmp_path)
    assert parquet(tmp_path, unlabelled="skip").codec.classes == ("cat", "dog")


@pytest.mark.parametrize("label", [2, -2, 99])
def test_a_number_that_names_no_class_is_refused(tmp_path: Path, label: int):
    table(tmp_path / "a.parquet", label=[0, 1, 0, 1, label, 0], names=["cat", "dog"])
    with pytest.raises(UserError, match=rf"is {label} in row 4 of a\.parquet, and ClassLabel names 2 classes"):
        parquet(tmp_path)


@pytest.mark.parametrize(
    ("one", "other", "named"),
    [
        (["0", "1"] * 3, [0, 1] * 3, "int64"),
        ([0, 1] * 3, [0.5, 1.5] * 3, "double"),
        ([True, False] * 3, [0] * 6, "int64"),
    ],
)
def test_labels_of_another_type_in_another_file(tmp_path: Path, one: Any, other: Any, named: str):
    table(tmp_path / "a.parquet", label=one)
    table(tmp_path / "b.parquet", label=other)
    with pytest.raises(UserError, match=rf"\({named}\) in b\.parquet") as caught:
        parquet(tmp_path)
    assert f"data.root={tmp_path}/a.parquet" in caught.value.remedy
    assert len(everything(parquet(tmp_path / "a.parquet"))) == 6


def test_types_that_say_the_same_go_together(tmp_path: Path):
    table(tmp_path / "a.parquet", label=pa.array(["x", "y"] * 3).dictionary_encode())
    table(tmp_path / "b.parquet", label=pa.array(["x", "z"] * 3, pa.large_string()))
    assert seen(parquet(tmp_path)) == {"x": 6, "y": 3, "z": 3}


def test_class_names_of_another_order_in_another_file(tmp_path: Path):
    table(tmp_path / "a.parquet", label=[0, 1] * 3, names=["cat", "dog"])
    table(tmp_path / "b.parquet", label=[0, 1] * 3, names=["dog", "cat"])
    with pytest.raises(UserError, match=r"other class names in b\.parquet"):
        parquet(tmp_path)


@pytest.mark.parametrize("label", [[[0, 1]] * 6, [{"a": 1}] * 6, [b"cat"] * 6])
def test_a_column_that_holds_no_labels(tmp_path: Path, label: Any):
    table(tmp_path / "a.parquet", label=label)
    with pytest.raises(UserError, match="must hold strings or whole numbers") as caught:
        parquet(tmp_path)
    assert caught.value.field == "data.label_column"
    assert "data.label_column=null" in caught.value.remedy
    assert parquet(tmp_path, label_column=None).codec.classes is None


def test_whole_numbers_that_pandas_made_floats_are_whole(tmp_path: Path):
    table(tmp_path / "a.parquet", PNGS * 2, pa.array([0.0, 1.0, None, 1.0] * (len(PNGS) // 2)))
    assert parquet(tmp_path, unlabelled="skip").codec.classes == ("0", "1")


def test_a_number_beyond_64_bits_is_no_label(tmp_path: Path):
    table(tmp_path / "a.parquet", PNGS, pa.array([0] * (len(PNGS) - 1) + [2**63], pa.uint64()))
    with pytest.raises(UserError, match=r"beyond those of 64 bits in a\.parquet") as caught:
        parquet(tmp_path)
    assert caught.value.field == "data.label_column"


def test_a_damaged_file_is_named_and_a_pointer_is_fetched(tmp_path: Path):
    table(tmp_path / "a.parquet", PNGS, [0] * len(PNGS))
    (tmp_path / "b.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:200])
    with pytest.raises(UserError, match=r"b\.parquet is not"):
        parquet(tmp_path)
    (tmp_path / "b.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match="`git lfs pull`"):
        parquet(tmp_path)
    pictures(tmp_path / "images")
    (tmp_path / "b.parquet").rename(tmp_path / "images" / "b.png")
    with pytest.raises(UserError, match="`git lfs pull`"):
        folder(tmp_path / "images")


def test_one_parquet_file_can_be_inspected_by_its_uri(tmp_path: Path):
    table(tmp_path / "a.parquet", PNGS, [0, 1] * (len(PNGS) // 2) + [0] * (len(PNGS) % 2))
    assert inspect(f"file://{tmp_path}/a.parquet")["samples"] == len(PNGS)


def test_two_columns_of_one_name_are_refused(tmp_path: Path):
    columns = [pa.array(PNGS), pa.array([0] * len(PNGS)), pa.array([1] * len(PNGS))]
    pq.write_table(pa.table(columns, names=["image", "label", "label"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"two columns of one name in a\.parquet"):
        parquet(tmp_path)


def test_a_suffix_of_capitals_and_cells_of_bytes_alone(tmp_path: Path):
    cells = pa.array([{"bytes": content} for content in PNGS])
    table(tmp_path / "A.PARQUET", cells, ["cat", "dog"] * (len(PNGS) // 2))
    for root in (tmp_path, tmp_path / "A.PARQUET"):
        assert inspect(str(root)) == parquet(root).summary


def test_a_label_column_that_is_misspelt(tmp_path: Path):
    table(tmp_path / "a.parquet", label=[0, 1] * 3)
    with pytest.raises(UserError, match=r"is not a column of a\.parquet"):
        parquet(tmp_path, label_column="labels")


def test_where_labels_could_be_is_said(tmp_path: Path):
    table(tmp_path / "kind=cat" / "a.parquet")
    table(tmp_path / "kind=dog" / "a.parquet")
    spec = ImageDataSpec(source="parquet", root=str(tmp_path))
    with pytest.raises(UserError, match="needs labels") as caught:
        load_resident(spec, conditional=True)
    assert "data.label_column to one of image, kind;" in caught.value.remedy
    data = load_resident(spec.model_copy(update={"label_column": "kind"}), conditional=True)
    assert data.codec.classes == ("cat", "dog")


@pytest.mark.parametrize("values", [("cat", "dog%20food"), ("10", "2")])
def test_folders_of_hive_are_labels(tmp_path: Path, values: tuple[str, str]):
    for value in values:
        table(tmp_path / f"label={value}" / "part-0.parquet")
    data = parquet(tmp_path)
    assert data.codec.classes == (("cat", "dog food") if "cat" in values else ("2", "10"))
    assert set(seen(data).values()) == {6}


def test_splits_of_hugging_face(tmp_path: Path):
    for i, name in enumerate(["train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001", "validation"]):
        cells = [png(a + np.uint8(20 * i)) for a in ARRAYS]
        table(tmp_path / "data" / f"{name}.parquet", cells, [0, 1] * 3, names=["cat", "dog"])
    data = parquet(tmp_path)
    assert levels(data.train_images) == [*range(6), *range(20, 26)]
    assert levels(data.holdout_images) == [*range(40, 46)]
    assert data.summary["splits"] == {"train": "trains", "test": "holdout", "validation": "left out"}
    assert levels(everything(parquet(tmp_path, splits="none"))) == [20 * i + j for i in range(4) for j in range(6)]


def test_a_test_split_whose_labels_are_kept_secret(tmp_path: Path):
    table(tmp_path / "train.parquet", label=[0, 1] * 3, names=["cat", "dog"])
    table(tmp_path / "test.parquet", label=[-1] * 6, names=["cat", "dog"])
    data = parquet(tmp_path)
    assert data.n + data.holdout_n == 6
    assert data.summary["splits"]["test"] == "left out, as it has no labels"


def test_a_test_split_without_the_column_of_labels(tmp_path: Path):
    table(tmp_path / "train.parquet", label=[0, 1] * 3)
    table(tmp_path / "test.parquet")
    assert parquet(tmp_path).summary["splits"]["test"] == "left out, as it has no labels"


@pytest.mark.parametrize("name", ["photos.parquet", "photos"])
def test_a_folder_that_spark_wrote(tmp_path: Path, name: str):
    table(tmp_path / name / "part-00000-abc.snappy.parquet")
    (tmp_path / name / "_SUCCESS").write_bytes(b"")
    assert levels(everything(parquet(tmp_path / name))) == [*range(6)]
    assert recognised(f"{tmp_path}/{name}")["source"] == "parquet"


def test_files_that_no_reader_takes_for_data(tmp_path: Path):
    table(tmp_path / "a.parquet")
    table(tmp_path / "_temporary" / "0" / "a.parquet")
    table(tmp_path / "_delta_log" / "a.parquet")
    table(tmp_path / ".b.parquet")
    (tmp_path / "_SUCCESS").write_bytes(b"")
    assert parquet(tmp_path).summary["left out"] == {"hidden": 4}


# --- cells ---------------------------------------------------------------------------------------


def test_a_cell_with_a_path_is_read_from_beside_its_file(tmp_path: Path):
    pictures(tmp_path / "data" / "images")
    paths = [f"images/{i:03d}.png" for i in range(6)]
    table(tmp_path / "data" / "a.parquet", [None] * 6, [0, 1] * 3, paths=paths)
    assert levels(everything(parquet(tmp_path))) == [*range(6)]


@pytest.mark.parametrize("path", ["none.png", "/etc/hostname", "../../secret.png", None])
def test_a_cell_without_an_image_is_named(tmp_path: Path, path: str | None):
    (tmp_path / "secret.png").write_bytes(PNGS[0])
    table(tmp_path / "a" / "b" / "a.parquet", [*PNGS[:5], None], paths=[None] * 5 + [path])
    with pytest.raises(UserError, match=r"row 5.*the cell") as caught:
        parquet(tmp_path / "a" / "b")
    assert "0x" not in str(caught.value)
    assert (path or "is empty") in caught.value.rule
    assert parquet(tmp_path / "a" / "b", on_corrupt="skip").skipped == ("a.parquet row 5",)


def test_what_is_no_image_is_shown_by_its_beginning(tmp_path: Path):
    pictures(tmp_path)
    (tmp_path / "x.png").write_bytes(b"<html>404 Not Found</html>")
    with pytest.raises(UserError, match="it begins with b'<html>404 No'") as caught:
        folder(tmp_path)
    assert "0x" not in str(caught.value)


def test_whatever_a_decoder_meets_is_an_image_that_does_not_decode(tmp_path: Path):
    random = np.random.default_rng(0)
    pictures(tmp_path, 3)
    picture = Image.fromarray(gradient(8, 3))
    for suffix in (
        ".png",
        ".jpg",
        ".gif",
        ".bmp",
        ".tif",
        ".webp",
        ".ico",
        ".icns",
        ".tga",
        ".dds",
        ".jp2",
        ".qoi",
        ".pcx",
    ):
        picture.save(tmp_path / f"whole{suffix}")
        whole = (tmp_path / f"whole{suffix}").read_bytes()
        for i in range(12):
            content = bytearray(whole[: len(whole) - i % 2 * int(random.integers(1, len(whole)))])
            for place in random.integers(0, len(content), 1 + i):
                content[place] = random.integers(0, 256)
            (tmp_path / f"{i}{suffix}").write_bytes(content)
    data = folder(tmp_path, on_corrupt="skip", size=8)
    assert data.summary["left out"]["no image"] == len(data.skipped) > 50
    assert described("folder", tmp_path, size=8)["samples"] >= data.n + data.holdout_n


# --- roots ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("root", "remedy"),
    [
        ("hf://datasets/u/x", "`hf download u/x --repo-type dataset --local-dir x`; then data.root=x."),
        ("gs://b/photos", "`gcloud storage cp -r gs://b/photos .`; then data.root=photos."),
        ("https://example.org/a.zip", "`curl -fLO https://example.org/a.zip`; then data.root=a.zip."),
        ("ftp://example.org/a", "Copy it to a folder or to an S3 bucket"),
        ("s3://", "Write s3://bucket/prefix."),
    ],
)
@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_a_root_that_cannot_be_read_names_the_root(source: Any, root: str, remedy: str):
    with pytest.raises(UserError) as caught:
        load_resident(ImageDataSpec(source=source, root=root))
    assert (caught.value.field, caught.value.value) == ("data.root", root)
    assert remedy in caught.value.remedy


def test_other_keys_that_name_files_are_named_themselves():
    with pytest.raises(UserError) as caught:
        read_weights("hf://u/weights.pt")
    assert caught.value.field == "evaluate.inception"


def test_a_root_in_the_home_folder():
    assert ImageDataSpec(source="folder", root="~/photos").root == str(Path.home() / "photos")


def test_an_archive_is_unpacked_by_the_command_that_is_shown(tmp_path: Path):
    import subprocess
    import zipfile

    pictures(tmp_path / "in")
    archive = tmp_path / "my photos.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for path in (tmp_path / "in").iterdir():
            zipped.write(path, path.name)
    with pytest.raises(UserError, match="is an archive") as caught:
        folder(archive)
    assert caught.value.field == "data.root"
    subprocess.run(caught.value.remedy.split("`")[1], shell=True, check=True)
    assert caught.value.remedy.endswith(f"'data.root={tmp_path}/my photos'.")
    assert levels(everything(folder(tmp_path / "my photos"))) == [*range(6)]


def test_a_root_that_is_a_file(tmp_path: Path):
    pictures(tmp_path)
    with pytest.raises(UserError, match="is a file") as caught:
        folder(tmp_path / "000.png")
    assert f"data.root={tmp_path}." in caught.value.remedy
    with pytest.raises(UserError, match="is a file") as caught:
        folder(table(tmp_path / "a.parquet"))
    assert "data.source=parquet" in caught.value.remedy


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path: Path):
    pictures(tmp_path)
    (tmp_path / "003.png").chmod(0)
    with pytest.raises(UserError, match=r"003\.png"):
        folder(tmp_path)


# --- what is said --------------------------------------------------------------------------------


def test_a_run_and_a_look_say_the_same(tmp_path: Path):
    root = splits(tmp_path / "root", "train", "test")
    Image.fromarray(np.dstack([gradient(8, 3), gradient(8, 1)])).save(root / "train" / "cat" / "x.png")
    (root / "train" / "notes.txt").write_text("x")
    expected = {
        "samples": 25,
        "classes": {"cat": 13, "dog": 12},
        "holdout": "12, the split test",
        "sizes": {"8x8": 25},
        "modes": {"L": 24, "RGBA": 1},
        "transparency": "of 1 images, laid on white",
        "left out": {"suffix .txt": 1},
        "splits": {"train": "trains", "test": "holdout"},
    }
    assert folder(root).summary == expected
    assert described("folder", root) == expected
    assert list(described("folder", root)) == list(expected)
    json.dumps(expected)


def test_a_look_at_parquet(tmp_path: Path):
    table(tmp_path / "a.parquet", [*PNGS[:5], b"x"], [0, 1] * 3, names=["cat", "dog"])
    found = described("parquet", tmp_path)
    assert found == {
        "samples": 5,
        "classes": {"cat": 3, "dog": 2},
        "holdout": "1, a share of 0.2",
        "sizes": {"8x8": 5},
        "modes": {"L": 5},
        "depth": {"bytes": "0 to 4; 0 is black, 255 white"},
        "left out": {"no image": 1},
    }


def test_a_look_leaves_out_what_is_no_image(tmp_path: Path):
    for name in ("cat", "dog"):
        pictures(tmp_path / name)
    (tmp_path / "fox").mkdir()
    (tmp_path / "fox" / "0.jpg").write_bytes(b"<html>")
    frames = [Image.fromarray(np.full((8, 8), level, np.uint8)) for level in (0, 255)]
    frames[0].save(tmp_path / "cat" / "two.gif", save_all=True, append_images=frames[1:])
    found = described("folder", tmp_path)
    assert found["classes"] == {"cat": 7, "dog": 6}
    assert found["left out"] == {"no image": 1}
    assert found == folder(tmp_path, on_corrupt="skip").summary
    assert found["frames"].startswith("1 files hold several images")


def test_a_look_at_very_many_images_is_at_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from genai_ray.image import describe as looks

    pictures(tmp_path, 40)
    monkeypatch.setattr(looks, "_LOOKED_AT", 12)
    monkeypatch.setattr(looks, "_RUN", 3)
    found = described("folder", tmp_path)
    assert found["samples"] == 40
    assert found["sizes"] == {"8x8": 12}
    assert found["looked at"] == "12 of 40, for sizes, modes and depth"


def test_the_digits_say_what_they_are():
    found = load_resident(ImageDataSpec()).summary
    assert found == describe(ImageDataSpec())
    assert (found["samples"], found["sizes"], found["holdout"]) == (1797, {"8x8": 1797}, "359, a share of 0.2")
    assert found["classes"]["3"] == 183


def test_sources_of_images_are_recognised(tmp_path: Path):
    pictures(tmp_path / "folder" / "cat")
    assert recognised(f"{tmp_path}/folder") == {"source": "folder", "root": f"{tmp_path}/folder"}
    table(tmp_path / "hf" / "a.parquet", paths=["a"] * 6)
    for root in (f"{tmp_path}/hf", f"{tmp_path}/hf/a.parquet"):
        assert recognised(root) == {"source": "parquet", "root": root, "image_column": "image", "label_column": "label"}
    pq.write_table(pa.table({"picture": PNGS}), tmp_path / "plain.parquet")
    assert recognised(f"{tmp_path}/plain.parquet")["image_column"] == "picture"


def test_what_is_no_source_of_images_is_not_recognised(tmp_path: Path):
    (tmp_path / "tables").mkdir()
    pq.write_table(pa.table({"a": [1, 2], "b": [b"x", b"y"]}), tmp_path / "tables" / "a.parquet")
    (tmp_path / "tables" / "b.csv").write_text("a,b\n1,2\n")
    pictures(tmp_path / "tables", 1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "spec.yaml").write_text("")
    pictures(tmp_path / "run" / "dataset" / "data")
    for uri in ("/tables", "/tables/a.parquet", "/tables/b.csv", "/none", "/run"):
        assert recognised(f"{tmp_path}{uri}") == {}, uri
