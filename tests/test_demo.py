"""The demo, killed while it trains and resumed by the same command."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow.dataset as pads
import pytest
from conftest import SHARED_DATA

from genai_ray import local, modalities
from genai_ray.errors import UserError
from genai_ray.pipeline import run
from genai_ray.storage import Store

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "model.width=16",
    "train.samples=12800",
    "train.checkpoint_every=1280",
    "generate.samples=4000",
    "generate.shard_rows=512",
    "evaluate.gates={}",
]


def test_classes_that_do_not_add_up_are_reported_before_the_training(tmp_path: Path) -> None:
    wrong = 'generate.classes={"7": 0.5, "8": 0.6}'
    spec = modalities.load(ROOT / "jobs/specs/digits.yaml", [f"store={tmp_path}", wrong])
    with pytest.raises(UserError, match=r"generate.classes: .* add up to 1.1"):
        run(spec)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_killed_demo_resumes_by_the_same_command(tmp_path: Path) -> None:
    folder, output = tmp_path / "stack", tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "genai_ray.cli",
        "local",
        "run",
        "jobs/specs/digits.yaml",
        *SMALL,
        "--folder",
        str(folder),
        "--output",
        str(output),
    ]
    with (tmp_path / "log").open("wb") as log:
        first = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    deadline = time.monotonic() + 120
    while not _has_checkpoint(folder):
        assert first.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait(10)
    assert not (output / "report.html").exists()

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "published: yes" in done.stdout
    assert (output / "report.html").exists()
    assert (output / "preview.png").exists()
    assert json.loads((output / "quality.json").read_text())["counts"]["generated"] == 4000
    stack = local.find(folder)
    assert stack is not None
    assert not stack.alive


def _has_checkpoint(folder: Path) -> bool:
    """Whether the run in the stack's store has come to its first checkpoint."""
    stack = local.find(folder)
    if stack is None or not local.answers(stack):
        return False
    with local.environment(stack.environment):
        keys = Store(f"s3://{local.BUCKET}/runs/digits/train").list()
    return any(k.startswith("checkpoint-") for k in keys)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("source", ["mnist", "fashion_mnist"])
def test_torchvision_sets_go_the_whole_way(source: str, tmp_path: Path) -> None:
    names = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
    if not (SHARED_DATA / names[source]).exists():
        pytest.skip(f"needs ../shared/data/{names[source]}")
    spec = modalities.parse(
        {
            "name": source,
            "store": str(tmp_path),
            "data": {"source": source, "root": str(SHARED_DATA), "download": False},
            "model": {"preset": "vae", "conditional": True, "width": 16},
            "train": {"workers": 1, "samples": 12_800, "global_batch": 64},
            "generate": {"samples": 2_000, "shard_rows": 1_000},
            "evaluate": {"samples": 2_000},
        }
    )
    result = run(spec)
    assert result.evaluate.published
    # Far from good after seconds, and far from noise, which is right one time in ten.
    assert result.evaluate.fake["agreement"] > 0.25
    assert result.evaluate.real["agreement"] > 0.85
    table = pads.dataset(tmp_path / source / "dataset" / "data").to_table(columns=["id", "label"])
    assert pd.Series(table["label"]).value_counts().tolist() == [200] * 10


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("preset", ["table_ar", "tvae", "ctgan"])
def test_a_table_goes_the_whole_way(preset: str, tmp_path: Path) -> None:
    """The wines of jobs/specs/table.yaml, with less training: two workers, then one job."""
    from genai_ray.dataset.verify import verify
    from genai_ray.pipeline import run

    spec = modalities.load(
        ROOT / "jobs" / "specs" / "table.yaml",
        [
            f"store={tmp_path}",
            f"model.preset={preset}",
            "train.samples=6000",
            "generate.samples=1000",
            "generate.shard_rows=300",
            "evaluate.gates={}",
        ],
    )
    result = run(spec)
    assert result.evaluate.published
    assert result.evaluate.fake["duplicate_rate"] < 0.1
    assert verify(spec.run_uri, regenerate=1).whole
    table = pads.dataset(tmp_path / "wine" / "dataset" / "data").to_table()
    counts = pd.Series(table["target"]).value_counts()
    assert counts.loc[["class_0", "class_1", "class_2"]].tolist() == [400, 300, 300]
    assert run(spec).train.rate == 0, "what is finished is left alone"


#: spec -> (its file in ../shared/data, columns)
TABLES = {"adult": ("adult/adult.data", 15), "turbofan": ("cmapss/train_FD001.txt", 25)}


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("name", TABLES)
def test_a_business_table_passes_its_gates(name: str, tmp_path: Path) -> None:
    from genai_ray.dataset.verify import verify
    from genai_ray.pipeline import run

    path, columns = TABLES[name]
    if not (SHARED_DATA / path).exists():
        pytest.skip(f"needs ../shared/data/{path}")
    spec = modalities.load(
        ROOT / "jobs" / "specs" / f"{name}.yaml",
        [f"store={tmp_path}", f"data.root={SHARED_DATA / path}", "generate.samples=20000", "train.samples=600000"],
    )
    assert run(spec).evaluate.published
    assert verify(spec.run_uri, regenerate=2).whole
    table = pads.dataset(tmp_path / name / "dataset" / "data").to_table()
    assert (table.num_rows, table.num_columns) == (20_000, columns)
