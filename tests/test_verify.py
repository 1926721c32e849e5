"""A data set against its manifest and its model: what is whole, damaged, foreign, repaired."""

import hashlib
import json
from pathlib import Path

import pytest
from conftest import small_spec

from genai_ray.cli import main
from genai_ray.dataset.generate import generate
from genai_ray.dataset.verify import verify
from genai_ray.errors import IncompleteError, UserError
from genai_ray.spec import Spec
from genai_ray.storage import Store

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

SINKS = {
    "parquet": "part-000001.parquet",
    "images": "part-000001/metadata.parquet",
    "webdataset": "part-000001.tar",
}


def made(run_store: Path, sink: str = "parquet") -> Spec:
    spec = small_spec(
        run_store,
        "generate.samples=400",
        "generate.shard_rows=128",
        f"generate.sink={sink}",
        "provenance.producer=001191110102MAD55U9H0F10002",
    )
    generate(spec)
    return spec


def digests(store: Store) -> dict[str, str]:
    return {k: hashlib.sha256(store.read(k)).hexdigest() for k in store.list()}


@pytest.mark.parametrize("sink", SINKS)
def test_a_whole_data_set(run_store: Path, sink: str) -> None:
    spec = made(run_store, sink)
    result = verify(spec.run_uri, regenerate=2, seed=0)
    assert result.whole
    assert (result.rows, result.files) == (400, 4)
    assert len(result.regenerated) == 2
    assert result.strays == []


@pytest.mark.parametrize("sink", SINKS)
def test_damage_is_found_and_repaired_to_the_same_bytes(run_store: Path, sink: str) -> None:
    spec = made(run_store, sink)
    store = Store(spec.run_uri).at("dataset")
    before = digests(store)
    key = f"data/{SINKS[sink]}"
    data = bytearray(store.read(key))
    data[len(data) // 2] ^= 1
    store.put(key, bytes(data))
    last = store.list("data/")[-1]
    store.delete(last)
    found = verify(store.uri)
    assert set(found.faults) == {1, 3}
    assert "SHA-256 differs" in found.faults[1]
    repaired = verify(store.uri, repair=True)
    assert repaired.whole
    assert repaired.repaired == [1, 3]
    assert digests(store) == before


def test_one_image_of_many(run_store: Path) -> None:
    spec = made(run_store, "images")
    store = Store(spec.run_uri).at("dataset")
    image = next(k for k in store.list("data/part-000002/") if k.endswith(".png"))
    store.put(image, store.read(image)[:-1] + b"x")
    assert set(verify(store.uri).faults) == {2}
    assert verify(store.uri, repair=True).whole


def test_what_nobody_listed_is_told(run_store: Path) -> None:
    spec = made(run_store)
    store = Store(spec.run_uri).at("dataset")
    store.put("data/part-000009.parquet", b"of a run before")
    result = verify(store.uri)
    assert result.whole
    assert result.strays == ["data/part-000009.parquet"]


def test_another_seed_in_the_manifest_is_caught_by_making_shards_again(run_store: Path) -> None:
    spec = made(run_store)
    store = Store(spec.run_uri).at("dataset")
    manifest = json.loads(store.read("manifest.json"))
    manifest["fields"]["seed"] = 1
    store.put("manifest.json", json.dumps(manifest).encode())
    assert verify(store.uri).whole  # the bytes are those that are listed
    result = verify(store.uri, regenerate=1, repair=True)
    (fault,) = result.faults.values()
    assert "not repaired: made again it has other bytes" in fault


def test_a_manifest_that_misses_rows(run_store: Path) -> None:
    spec = made(run_store)
    store = Store(spec.run_uri).at("dataset")
    manifest = json.loads(store.read("manifest.json"))
    del manifest["files"][1], manifest["shards"][1]
    store.put("manifest.json", json.dumps(manifest).encode())
    with pytest.raises(UserError, match="do not cover every row once"):
        verify(store.uri)


def test_the_command_says_so_by_its_exit_code(run_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = made(run_store)
    store = Store(spec.run_uri).at("dataset")

    def call(*options: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            main(["verify", spec.run_uri, *options])
        return int(end.value.code or 0), capsys.readouterr().out

    assert call("--regenerate", "1")[0] == 0
    store.delete("data/part-000000.parquet")
    code, out = call()
    assert code == 3
    assert "shard 0: data/part-000000.parquet is missing" in out
    code, out = call("--repair", "--json")
    assert code == 0
    assert json.loads(out)["repaired"] == [0]


def test_what_cannot_be_verified(run_store: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be a data set or a run that has one"):
        verify(str(tmp_path))
    spec = made(run_store)
    store = Store(spec.run_uri).at("dataset")
    Store(spec.run_uri).put("model/generator.onnx", b"another")
    with pytest.raises(UserError, match="must be an ONNX file"):
        verify(store.uri, regenerate=1)
    store.delete("manifest.json")
    with pytest.raises(IncompleteError, match="is not finished"):
        verify(store.uri)
