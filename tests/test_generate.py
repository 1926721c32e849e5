"""Exactly once, the same for any number of workers, and clear about what cannot be done."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from conftest import images_of, kill_when, small_spec
from fault_proxy import FaultProxy

from genai_ray import local
from genai_ray.dataset.generate import AttemptCounter, ShardWorker, generate
from genai_ray.dataset.manifest import read_manifest
from genai_ray.dataset.plan import Plan, Shard, open_plan, read_fields
from genai_ray.dataset.shards import with_settled_rows
from genai_ray.errors import IncompleteError, UserError
from genai_ray.export import export
from genai_ray.image.encoding import encode_png
from genai_ray.onnx_session import open_session
from genai_ray.provenance import MODEL_KEY
from genai_ray.spec import Spec
from genai_ray.storage import Store, StoreUnavailableError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def files(store: Store) -> dict[str, str]:
    """Key to digest of everything in a finished data set."""
    return {k: hashlib.sha256(store.read(k)).hexdigest() for k in store.list()}


def dataset(spec: Spec) -> Store:
    return Store(spec.run_uri).at("dataset")


@pytest.fixture(scope="module")
def undisturbed(trained_store: Path, tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> dict[str, str]:
    store = Path(shutil.copytree(trained_store, tmp_path_factory.mktemp("undisturbed") / "s"))
    spec = small_spec(store)
    result = generate(spec)
    assert (result.rows, result.files) == (1000, 4)
    return files(dataset(spec))


def test_two_workers_give_the_same_bytes(run_store: Path, undisturbed: dict[str, str]) -> None:
    spec = small_spec(run_store, "generate.workers=2", "generate.batch=64")
    generate(spec)
    assert files(dataset(spec)) == undisturbed


def test_three_workers_give_the_same_bytes(run_store: Path, undisturbed: dict[str, str]) -> None:
    spec = small_spec(run_store, "generate.workers=3", "generate.cpus_per_worker=0.5")
    generate(spec)
    assert files(dataset(spec)) == undisturbed


def test_s3_gives_the_same_bytes(run_store: Path, s3_uri: str, undisturbed: dict[str, str]) -> None:
    spec = small_spec(s3_uri)
    model = Store(str(run_store)).read(f"small/{MODEL_KEY}")
    Store(spec.run_uri).put(MODEL_KEY, model)
    generate(spec)
    assert files(dataset(spec)) == undisturbed


def test_rows_do_not_depend_on_the_shard(run_store: Path, undisturbed: dict[str, str]) -> None:
    spec = small_spec(run_store, "generate.shard_rows=77", "generate.batch=10")
    generate(spec)
    made = open_plan(small_spec(run_store, "generate.batch=999"))
    images, labels = images_of(made).images(0, 1000)
    rows = [
        r for k in dataset(spec).list("data/") for r in pq.read_table(run_store / "small" / "dataset" / k).to_pylist()
    ]
    assert [r["id"] for r in rows] == list(range(1000))
    assert labels is not None
    assert [r["label"] for r in rows] == labels.tolist()
    # Another batch may round a value on the edge of two grey levels the other way on some
    # processors; on one processor type they are equal.
    assert [r["image"]["bytes"] for r in rows] == encode_png(images)


def test_lost_receipts_are_made_again(run_store: Path, undisturbed: dict[str, str]) -> None:
    spec = small_spec(run_store)
    generate(spec)
    store = dataset(spec)
    for key in ("manifest.json", "_receipts/000001.json", "_receipts/000003.json", "data/part-000003.parquet"):
        store.delete(key)
    # A file whose receipt was never written may be there in part.
    store.put("data/part-000001.parquet", b"half a file")
    generate(spec)
    assert files(store) == undisturbed


def test_finished_work_is_not_repeated(run_store: Path) -> None:
    spec = small_spec(run_store)
    assert generate(spec).rate > 0
    again = generate(spec)
    assert again.seconds == 0
    assert again.rows == 1000


@pytest.mark.slow
def test_killed_driver_resumes_to_the_same_bytes(run_store: Path, undisturbed: dict[str, str]) -> None:
    spec = small_spec(run_store)
    kill_when(
        lambda: dataset(spec).list("_receipts/"),
        f"from genai_ray.dataset.generate import generate; generate(small_spec({str(run_store)!r}))",
    )
    generate(spec)
    assert files(dataset(spec)) == undisturbed


def test_poison_shard_is_a_failure_and_all_others_are_done(run_store: Path, undisturbed: dict[str, str]) -> None:
    spec = small_spec(run_store)
    # Nothing can be put where a folder is.
    blocked = run_store / "small" / "dataset" / "data" / "part-000002.parquet"
    blocked.mkdir(parents=True)
    with pytest.raises(IncompleteError, match=r"1 shards failed 3 times each.*shard 2: IsADir"):
        generate(spec)
    assert len(dataset(spec).list("_receipts/")) == 3
    assert not dataset(spec).exists("manifest.json")
    blocked.rmdir()
    generate(spec)
    assert files(dataset(spec)) == undisturbed


def test_attempts_of_dead_processes_count(run_store: Path) -> None:
    import ray

    spec = small_spec(run_store)
    made = open_plan(spec)
    counter = ray.remote(AttemptCounter).options(num_cpus=0).remote()
    for _ in range(3):
        ray.get(counter.begin.remote(0), timeout=30)
    worker = ShardWorker(made.store.uri, made.fields, spec.generate.model_dump(), [counter])
    assert worker({"item": np.array([0])})["error"] == ["its process died each time"]
    assert worker({"item": np.array([1])})["error"] == [""]
    assert made.store.list("_receipts/") == ["_receipts/000001.json"]


@pytest.mark.parametrize(
    "options",
    [
        ["generate.sink=webdataset", "generate.encoding=jpeg"],
        pytest.param(["generate.sink=images"], marks=pytest.mark.slow),
        pytest.param(["generate.encoding=webp"], marks=pytest.mark.slow),
        pytest.param(["generate.encoding=raw"], marks=pytest.mark.slow),
    ],
)
def test_every_sink_is_the_same_for_any_workers(run_store: Path, options: list[str]) -> None:
    options = [*options, "generate.samples=300", "generate.shard_rows=128"]
    one, two = (small_spec(run_store, *options, f"generate.workers={w}", f"generate.into=by-{w}") for w in (1, 2))
    assert generate(one).rows == generate(two).rows == 300
    there = [files(Store(s.run_uri).at(s.generate.into)) for s in (one, two)]
    assert there[0] == there[1]


def test_shards_of_a_number_of_bytes(run_store: Path) -> None:
    spec = small_spec(run_store, "generate.shard_bytes=100_000")
    generate(spec)
    sizes = [len(dataset(spec).read(k)) for k in dataset(spec).list("data/")]
    assert len(sizes) > 2
    assert all(80_000 < size < 125_000 for size in sizes[:-1])
    # What was settled stays, whatever another machine would measure.
    fields = read_fields(dataset(spec))
    assert fields is not None
    assert with_settled_rows(open_plan(spec)).spec.shard_rows == fields["generate.shard_rows"]
    assert generate(spec).seconds == 0


def test_several_data_sets_of_one_model(run_store: Path, undisturbed: dict[str, str]) -> None:
    first, second = (small_spec(run_store, f"generate.seed={seed}", f"generate.into=seed-{seed}") for seed in (0, 1))
    generate(first)
    generate(second)
    there = files(Store(first.run_uri).at("seed-0"))
    assert there == undisturbed
    other = files(Store(second.run_uri).at("seed-1"))
    assert not set(other.values()) & set(there.values())


def test_a_store_that_is_gone_is_no_fault_of_the_shard(
    run_store: Path, s3_uri: str, s3_stack: local.Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    spec = small_spec(s3_uri)
    model = Store(str(run_store)).read(f"small/{MODEL_KEY}")
    Store(spec.run_uri).put(MODEL_KEY, model)
    made = open_plan(spec)
    counter = ray.remote(AttemptCounter).options(num_cpus=0).remote()
    proxy = FaultProxy(s3_stack.s3_port, {}, seed=0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    monkeypatch.setattr("genai_ray.s3._PATIENCE_S", 0.5)
    with proxy.running():
        worker = ShardWorker(made.store.uri, made.fields, spec.generate.model_dump(), [counter])
        proxy.faults = {"error": 1.0}
        with pytest.raises(StoreUnavailableError, match=r"failed for 0.5 s"):
            worker({"item": np.array([0])})
        proxy.faults = {}
        assert worker({"item": np.array([0])})["error"] == [""]


# --- conditions ----------------------------------------------------------------------------------


def test_a_table_of_conditions_is_followed_row_by_row(run_store: Path) -> None:
    labels = [str(i % 3) for i in range(300)]
    table = pa.table({"patient": pa.array(range(1000, 1300)), "label": labels})
    path = run_store / "asked.csv"
    pacsv.write_csv(table, path)
    spec = small_spec(run_store, f"generate.conditions={path}", "generate.samples=300", "generate.shard_rows=128")
    generate(spec)
    path.unlink()  # kept with the data set, so a shard can still be made again
    made = pq.read_table(run_store / "small" / "dataset" / "data" / "part-000002.parquet")
    assert made["label"].to_pylist() == [i % 3 for i in range(256, 300)]
    assert made["patient"].to_pylist() == list(range(1256, 1300))
    assert made["id"].to_pylist() == list(range(256, 300))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"class": ["1"]}, r"must have a column 'label'; it has class"),
        ({"label": ["1", "2"]}, r"has 2 rows for generate.samples=1"),
        ({"label": ["ten"]}, r"got 'ten'; in row 0 of .* is not a class of the model"),
        ({"label": [10]}, r"got 10; in row 0"),
        ({"label": pa.array([None], pa.string())}, r"got None; in row 0"),
        ({"label": ["1"], "id": [7]}, r"column 'id' is one of sink=parquet's own"),
    ],
)
def test_bad_conditions(run_store: Path, table: dict[str, list], message: str) -> None:
    path = run_store / "asked.parquet"
    pq.write_table(pa.table(table), path)
    spec = small_spec(run_store, f"generate.conditions={path}", "generate.samples=1")
    assert_refused(run_store, spec, message)


def test_conditions_that_are_not_there(run_store: Path) -> None:
    spec = small_spec(run_store, f"generate.conditions={run_store}/none.csv")
    assert_refused(run_store, spec, "must be a Parquet or CSV file")


# --- what is refused -----------------------------------------------------------------------------


def assert_refused(store: Path, spec: Spec, message: str) -> None:
    before = sorted(store.rglob("*"))
    with pytest.raises(UserError, match=message):
        generate(spec)
    assert sorted(store.rglob("*")) == before


def test_altered_model(run_store: Path) -> None:
    path = run_store / "small" / MODEL_KEY
    data = bytearray(path.read_bytes())
    data[data.index(b'"latent":16') + len('"latent":1')] = ord("7")
    path.write_bytes(bytes(data))
    assert_refused(run_store, small_spec(run_store), "was altered after its export")
    whole = export(small_spec(run_store))
    assert whole.parity is not None  # the remedy that the error names
    assert generate(small_spec(run_store)).rows == 1000
    assert export(small_spec(run_store)) == replace(whole, parity=None, difference=None)


def test_foreign_model(run_store: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    other = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [other])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)])
    path = run_store / "small" / MODEL_KEY
    onnx.save(model, path)
    assert_refused(run_store, small_spec(run_store), "must be an ONNX file with a genai_ray card")
    path.write_bytes(b"no model at all")
    assert_refused(run_store, small_spec(run_store), "must be an ONNX file")


def test_no_model_yet(tmp_path: Path) -> None:
    with pytest.raises(IncompleteError, match="genai-ray train"):
        generate(small_spec(tmp_path))


def test_other_values_than_the_data_set_was_begun_with(run_store: Path) -> None:
    generate(small_spec(run_store, "generate.samples=300"))
    spec = small_spec(run_store, "generate.samples=400", "generate.seed=5")
    assert_refused(run_store, spec, r"generate.samples is 300 in the store and 400 here; seed is 0 in the store")


def test_gpu_that_is_not_there(run_store: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="need 1 CPU, 1 GPU, and the cluster has 2 CPU, 0 GPU"):
        generate(small_spec(run_store, "generate.device=cuda"))
    made = open_plan(small_spec(run_store))
    spec = small_spec(run_store, "generate.device=cuda")
    with pytest.raises(UserError, match=r"CUDAExecutionProvider, which does not load here"):
        open_session(made.model, spec.generate)


def test_shards_cover_every_row_once(run_store: Path) -> None:
    made: Plan = open_plan(small_spec(run_store, "generate.samples=1001"))
    shards = [made.shard(i) for i in range(made.shard_count)]
    assert shards[0] == Shard(0, 0, 256)
    assert shards[-1] == Shard(3, 768, 1001)
    assert [s.start for s in shards[1:]] == [s.stop for s in shards[:-1]]


def test_a_manifest_lists_what_the_receipts_say(run_store: Path) -> None:
    spec = small_spec(run_store)
    result = generate(spec)
    manifest = read_manifest(dataset(spec))
    assert manifest is not None
    assert [f["rows"] for f in manifest.files] == [256, 256, 256, 232]
    assert [s["start"] for s in manifest.shards] == [0, 256, 512, 768]
    assert manifest.bytes == result.bytes == sum(f["bytes"] for f in manifest.files)
    assert result.files == len(manifest.files)


# --- lower precision -----------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp16", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_lower_precision_is_smaller_and_near(run_store: Path, precision: str) -> None:
    whole = Store(str(run_store)).read(f"small/{MODEL_KEY}")
    spec = small_spec(run_store, f"export.precision={precision}", "generate.samples=300")
    made = export(spec)
    assert made.difference is not None
    assert 0 < made.difference < 1
    assert made.bytes < 0.8 * len(whole)
    assert open_plan(spec).card.precision == precision
    assert generate(spec).rows == 300
    assert export(spec).parity is None  # kept
