"""What is measured are the shipped bytes; gates decide on publication."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import images_of, load_resident, small_spec

from genai_ray.dataset.generate import generate
from genai_ray.dataset.manifest import read_files, read_manifest
from genai_ray.dataset.plan import open_plan
from genai_ray.errors import GateError, IncompleteError, UserError
from genai_ray.evaluate import evaluate, gate_outcomes
from genai_ray.image.encoding import encode_png
from genai_ray.image.parquet import write_parquet
from genai_ray.image.rows import ImageRead, ImageRows
from genai_ray.image.source import ImageData, in_memory, load
from genai_ray.image.spec import ImageRun
from genai_ray.storage import Store

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture
def generated(run_store: Path) -> ImageRun:
    spec = small_spec(run_store)
    generate(spec)
    return spec


def ship(spec: ImageRun, images: np.ndarray, labels: np.ndarray, data: ImageData) -> None:
    """Put other images in place of those of a data set of one file, manifest and all."""
    store = Store(spec.run_uri).at("dataset")
    manifest = json.loads(store.read("manifest.json"))
    rows = ImageRows(index=0, start=0, images=images, labels=labels, codec=data.codec, encoding="png", provenance={})
    (record,) = write_parquet(rows, store)
    manifest |= {"rows": len(images), "files": [vars(record)]}
    store.put("manifest.json", json.dumps(manifest).encode())


def test_report_of_a_small_run(generated: ImageRun) -> None:
    result = evaluate(generated)
    store = Store(generated.run_uri)
    assert result.published
    assert result.samples == 359
    assert store.exists("dataset/_SUCCESS")
    assert set(result.fake) == set(result.real)
    assert result.fake["fid"] > result.real["fid"]  # a second of training is not enough
    assert result.real["agreement"] > 0.95
    page = store.read("report/report.html").decode()
    assert 'src="http' not in page
    assert 'href="http' not in page
    assert f"fid@{result.extractor}" in page
    assert store.read("report/preview.png").startswith(b"\x89PNG")
    saved = json.loads(store.read("report/quality.json"))
    assert saved["fake"] == result.fake
    # The extractor is kept, so another evaluation gives the same figures.
    assert evaluate(generated).fake == result.fake


def test_real_images_pass_and_copies_are_caught(generated: ImageRun) -> None:
    data = load_resident(generated.data)
    assert data.holdout_labels is not None
    assert data.train_labels is not None
    ship(generated, data.holdout_images, data.holdout_labels, data)
    real = evaluate(generated)
    assert real.fake["precision"] == 1
    assert real.fake["coverage"] == 1
    assert real.fake["agreement"] > 0.95
    assert real.fake["exact_copy_rate"] == 0

    ship(generated, data.train_images, data.train_labels, data)
    assert evaluate(generated).fake["exact_copy_rate"] == 1

    repeated = np.repeat(data.train_images[:100], 4, axis=0)
    ship(generated, repeated, np.repeat(data.train_labels[:100], 4), data)
    collapsed = evaluate(generated)
    assert collapsed.fake["duplicate_rate"] == 0.75
    assert collapsed.fake["coverage"] < 0.8


def test_wrong_classes_are_seen(generated: ImageRun) -> None:
    data = load_resident(generated.data)
    assert data.holdout_labels is not None
    ship(generated, data.holdout_images, (data.holdout_labels + 1) % 10, data)
    assert evaluate(generated).fake["agreement"] < 0.05


def test_failed_gate_is_not_published(generated: ImageRun) -> None:
    evaluate(generated)
    strict = small_spec(generated.store, "evaluate.gates={fid_ratio_max: 0.01}")
    with pytest.raises(GateError, match=r"fid_ratio_max: .*, limit 0.01"):
        evaluate(strict)
    store = Store(generated.run_uri)
    assert not store.exists("dataset/_SUCCESS")
    assert json.loads(store.read("report/quality.json"))["published"] is False


def test_altered_file_is_refused(generated: ImageRun) -> None:
    path = Path(generated.run_uri) / "dataset" / "data" / "part-000001.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"part-000001.parquet'; is missing or differs from"):
        evaluate(generated)


def test_other_images_than_were_learnt_measure_nothing(generated: ImageRun) -> None:
    data = in_memory(load(generated))
    data.train_images[0] ^= 255
    with pytest.raises(UserError, match=r"data.source: got 'digits'; holds other samples than the run was begun with"):
        evaluate(generated, data)


def test_unfinished_data_set(run_store: Path) -> None:
    with pytest.raises(IncompleteError, match="genai-ray generate"):
        evaluate(small_spec(run_store))


@pytest.mark.parametrize("options", [["generate.sink=images"], ["generate.encoding=raw"]])
def test_every_sink_is_read_back(run_store: Path, options: list[str]) -> None:
    spec = small_spec(run_store, *options, "generate.samples=400")
    generate(spec)
    store = Store(spec.run_uri).at("dataset")
    manifest = read_manifest(store)
    assert manifest is not None
    found = [file for file in read_files(store, manifest) if isinstance(file, ImageRead)]
    images, labels = images_of(open_plan(spec)).images(0, 400)
    cells = [cell for file in found for cell in file.cells]
    expected = [i.tobytes() for i in images] if "raw" in options[0] else encode_png(images)
    assert cells == expected
    assert labels is not None
    assert np.concatenate([np.asarray(f.labels) for f in found]).tolist() == labels.tolist()
    evaluate(spec)


def test_gates() -> None:
    gates = {"fid_ratio_max": 2, "agreement_min": 0.9, "duplicate_rate_max": 0.01}
    fake = {"fid": 3.0, "agreement": 0.89, "duplicate_rate": 0.01}
    outcomes = {g.name: g for g in gate_outcomes(gates, fake, {"fid": 2.0})}
    assert outcomes["fid_ratio_max"].value == 1.5
    assert [g.passed for g in outcomes.values()] == [True, False, True]
    with pytest.raises(UserError, match=r"evaluate.gates.recall_min: got 0.5; recall was not"):
        gate_outcomes({"recall_min": 0.5}, fake, {})
