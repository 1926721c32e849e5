"""What cannot be learnt is reported before training; what is large is measured as what is small."""

from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, load_resident
from PIL import Image

from genai_ray.errors import UserError
from genai_ray.image.extractor import train_extractor
from genai_ray.image.spec import ImageRun
from genai_ray.modalities import load
from genai_ray.pipeline import run
from genai_ray.storage import Store

DIGITS = Path(__file__).resolve().parents[1] / "jobs" / "specs" / "digits.yaml"


def pictures(root: Path, classes: list[str], size: int, *, constant: bool = False) -> None:
    random = np.random.Generator(np.random.Philox(0))
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(12):
            level = 90 if constant else random.integers(0, 256)
            pixels = np.full((size, size, 3), level, np.uint8)
            if not constant:
                pixels[: size // 2] = random.integers(0, 256, 3)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


def spec_of(tmp_path: Path, *overrides: str) -> ImageRun:
    source = ["data.source=folder", f"data.root={tmp_path / 'pictures'}", "data.size=16", f"store={tmp_path}"]
    spec = load(DIGITS, [*SMALL, "name=own", *source, "generate.samples=40", "data.holdout=0.4", *overrides])
    assert isinstance(spec, ImageRun)
    return spec


def test_images_that_are_all_alike(tmp_path: Path):
    pictures(tmp_path / "pictures", ["a", "b"], 16, constant=True)
    with pytest.raises(UserError, match="training images that are all the same") as caught:
        run(spec_of(tmp_path))
    assert caught.value.field == "data.source"
    assert not list((tmp_path / "own").glob("train/*"))


def test_a_condition_with_one_class(tmp_path: Path):
    pictures(tmp_path / "pictures", ["only"], 16)
    with pytest.raises(UserError, match=r"needs two classes or more, and the source has one \(only\)"):
        run(spec_of(tmp_path))
    assert not list((tmp_path / "own").glob("train/*"))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_way_at_256_pixels(tmp_path: Path, ray_cluster: None):
    pictures(tmp_path / "pictures", ["a", "b"], 256)
    spec = spec_of(tmp_path, "data.size=256", "model.width=2", "train.samples=64", "train.global_batch=8")
    images = load_resident(spec.data)
    # Of two steps: a whole one takes minutes here.
    extractor = train_extractor(images.train_images, images.train_labels, 2, seed=0, steps=2)
    Store(spec.run_uri).put(f"report/extractor-{images.digest[:8]}.pt", extractor.to_bytes())
    assert run(spec).evaluate.samples > 5
