"""Alarms say what was seen; measurements choose the state that is kept."""

import builtins
import shutil
from pathlib import Path

import pytest
from conftest import small_spec

from genai_ray.errors import UserError
from genai_ray.export import export
from genai_ray.runs import read_metrics
from genai_ray.storage import Store
from genai_ray.training import checkpoint
from genai_ray.training.log import alarms
from genai_ray.training.train import finished, train

MEASURED = ["train.evaluate_every=320", "train.evaluate_samples=200"]


def test_a_saturated_discriminator_is_told():
    right = [{"samples": i, "accuracy_discriminator": 1.0} for i in range(20)]
    (alarm,) = alarms(right)
    assert "right in at least 100.0% of its answers for 20 rows" in alarm
    assert not alarms(right[1:])
    assert not alarms([*right[1:], {"samples": 20, "accuracy_discriminator": 0.9}])


def test_falling_coverage_is_told():
    def rows(*coverage: float) -> list[dict]:
        return [{"samples": i, "coverage": c} for i, c in enumerate(coverage)]

    (alarm,) = alarms(rows(0.1, 0.8, 0.3, 0.2))
    assert "coverage fell from 0.80 to 0.20" in alarm
    assert not alarms(rows(0.1, 0.8, 0.3))
    assert not alarms(rows(0.1, 0.8, 0.2, 0.7))
    assert not alarms([])


@pytest.fixture
def store_with_extractor(trained_store: Path, tmp_path: Path) -> Path:
    """An empty run, but for the feature extractor, which takes long to train."""
    shutil.copytree(trained_store / "small" / "report", tmp_path / "small" / "report")
    return tmp_path


def test_the_best_state_is_kept_and_exported(store_with_extractor: Path):
    spec = small_spec(store_with_extractor, *MEASURED, "train.keep=best")
    train(spec)
    store = Store(spec.run_uri)
    scores = {r["samples"]: r["fid"] for r in read_metrics(store) if "fid" in r}
    assert sorted(scores) == [320, 640, 960, 1280]
    state = checkpoint.best(store)
    assert state is not None
    assert state["samples"] == min(scores, key=lambda s: scores[s])
    assert state["progress"]["best"] == min(scores.values())
    export(spec)


def test_training_ends_when_nothing_gets_better(store_with_extractor: Path):
    # Steps so small that nothing changes: the second measurement is no better than the first.
    unmoved = ["train.patience=1", "model.learning_rate=1e-30", "model.ema_half_life=0"]
    spec = small_spec(store_with_extractor, *MEASURED, *unmoved, "train.samples=6400")
    result = train(spec)
    assert result.samples < 6400
    assert finished(Store(spec.run_uri), spec) == result.samples
    assert train(spec).seconds == 0
    export(spec)


@pytest.mark.parametrize("field", ["train.keep=best", "train.patience=2"])
def test_what_needs_measurements_says_so(field: str):
    with pytest.raises(UserError, match="needs measurements while training"):
        small_spec("/nowhere", field)


def test_rows_hold_gradient_norms(tmp_path: Path):
    spec = small_spec(tmp_path)
    train(spec)
    rows = read_metrics(Store(spec.run_uri))
    assert all(r["gradient_discriminator"] > 0 and r["gradient_generator"] > 0 for r in rows)


def test_mlflow_gets_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # A folder needs no server; MLflow would rather have a data base.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow")
    spec = small_spec(tmp_path / "store", f"train.mlflow={(tmp_path / 'ml').as_uri()}")
    train(spec)
    client = mlflow.MlflowClient(tracking_uri=spec.train.mlflow)
    experiment = client.get_experiment_by_name("genai_ray")
    (run,) = client.search_runs([experiment.experiment_id])
    rows = read_metrics(Store(spec.run_uri))
    history = client.get_metric_history(run.info.run_id, "loss_discriminator")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [
        (r["samples"], r["loss_discriminator"]) for r in rows
    ]
    assert run.data.params["model.width"] == "8"


def test_without_mlflow_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def absent(name: str, *args, **kwargs):
        if name.split(".")[0] == "mlflow":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(UserError, match=r"pip install 'genai-ray\[mlflow\]'"):
        train(small_spec(tmp_path, "train.mlflow=x"))
    assert not list(tmp_path.iterdir())
