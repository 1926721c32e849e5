"""Runs and data sets that version 0 began, as it left them in `tests/v0`: they resume and verify."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from genai_ray.dataset.manifest import read_manifest, read_receipts, write_manifest
from genai_ray.dataset.plan import open_plan, read_fields, refuse_other_fields
from genai_ray.dataset.shards import ShardMaker
from genai_ray.dataset.verify import verify
from genai_ray.errors import UserError
from genai_ray.export import export
from genai_ray.modalities import parse
from genai_ray.runs import saved_spec
from genai_ray.spec import Spec, dump, fingerprint
from genai_ray.storage import Store
from genai_ray.training.train import train

FIXTURE = Path(__file__).resolve().parent / "v0"
RUNS = {"images": 384, "rows": 300}  # and the samples that they were trained on


@pytest.fixture(params=RUNS)
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(shutil.copytree(FIXTURE / request.param, tmp_path / request.param)))


def spec_of(run: Store, **train: Any) -> Spec:
    """The spec of a run, as today's user would write it."""
    saved = saved_spec(run)
    assert saved is not None
    values = dump(saved)
    store, _, name = run.uri.rpartition("/")
    return parse(values | {"store": store, "name": name, "train": values["train"] | train})


def test_its_spec_keeps_its_fingerprint(run: Store):
    document = yaml.safe_load(run.read("spec.yaml"))
    assert "format" not in document
    assert len(document["spec"]["model"]) > 40  # the keys of all families
    spec = saved_spec(run)
    assert spec is not None
    assert len(dump(spec)["model"]) < 30
    assert fingerprint.digest(fingerprint.fields(spec, "train")) == document["fingerprint"]
    assert fingerprint.fields(spec, "generate").items() <= (read_fields(run.at("dataset")) or {}).items()


def test_a_finished_run_is_done(run: Store):
    spec = spec_of(run)
    assert train(spec).rate == 0
    assert export(spec).parity is None  # kept
    assert verify(run.uri).whole


def test_a_run_that_was_stopped_resumes(run: Store):
    samples = RUNS[run.uri.rpartition("/")[2]]
    run.delete(f"train/checkpoint-{samples:012d}.pt")
    run.delete("model/generator.onnx")
    result = train(spec_of(run))
    assert result.samples == samples
    assert result.rate > 0
    assert export(spec_of(run)).parity is not None


def test_a_data_set_that_was_stopped_resumes(run: Store):
    store = run.at("dataset")
    before = read_manifest(store)
    assert before is not None
    for key in ("manifest.json", "_receipts/000001.json", "data/part-000001.parquet"):
        store.delete(key)
    plan = open_plan(spec_of(run))
    refuse_other_fields(plan)
    done = read_receipts(plan)
    assert set(done) == {0, 2}
    done[1] = ShardMaker(plan).make(plan.shard(1)).to_json().encode()
    write_manifest(plan, done)
    after = read_manifest(store)
    assert after is not None
    assert (after.fingerprint, after.fields, after.model) == (before.fingerprint, before.fields, before.model)
    assert [f["path"] for f in after.files] == [f["path"] for f in before.files]
    assert verify(run.uri).whole


def test_other_values_are_still_refused(run: Store):
    with pytest.raises(UserError, match=r"train.global_batch is \d+ in the store and 30 here"):
        train(spec_of(run, global_batch=30))
