"""A data set against its manifest and its model: what is whole, damaged, unlabelled, foreign, repaired."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import small_spec
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from genai_ray.cli import main
from genai_ray.dataset.generate import generate
from genai_ray.dataset.manifest import write_manifest
from genai_ray.dataset.plan import open_plan, write_fields
from genai_ray.dataset.shards import ShardMaker
from genai_ray.dataset.verify import verify
from genai_ray.errors import IncompleteError, UserError
from genai_ray.labels import xmp_packet
from genai_ray.provenance import FileRecord
from genai_ray.spec import Spec
from genai_ray.storage import Store

SINKS = {"parquet": "part-000001.parquet", "images": "part-000001/metadata.parquet", "webdataset": "part-000001.tar"}

PRODUCER = "001191110102MAD55U9H0F10002"


def generated(run_store: Path, sink: str = "parquet", *overrides: str) -> Spec:
    """A spec and its data set of 400 samples in 4 shards, generated in this process."""
    spec = small_spec(
        run_store,
        "generate.samples=400",
        "generate.shard_rows=128",
        f"generate.sink={sink}",
        f"provenance.producer={PRODUCER}",
        *overrides,
    )
    plan = open_plan(spec)
    write_fields(plan)
    maker = ShardMaker(plan)
    receipts = [maker.make(plan.shard(i)).to_json().encode() for i in range(plan.shard_count)]
    write_manifest(plan, dict(enumerate(receipts)))
    return spec


def digests(store: Store) -> dict[str, str]:
    return {k: hashlib.sha256(store.read(k)).hexdigest() for k in store.list()}


@pytest.mark.parametrize("sink", SINKS)
def test_a_whole_data_set(run_store: Path, sink: str) -> None:
    spec = generated(run_store, sink)
    result = verify(spec.run_uri, regenerate=2, seed=0)
    assert result.whole
    assert (result.rows, result.files) == (400, 4)
    assert len(result.regenerated) == 2
    assert result.strays == []


@pytest.mark.parametrize("sink", SINKS)
def test_damage_is_found_and_repaired_to_the_same_bytes(run_store: Path, sink: str) -> None:
    spec = generated(run_store, sink)
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
    spec = generated(run_store, "images")
    store = Store(spec.run_uri).at("dataset")
    image = next(k for k in store.list("data/part-000002/") if k.endswith(".png"))
    store.put(image, store.read(image)[:-1] + b"x")
    assert set(verify(store.uri).faults) == {2}
    assert verify(store.uri, repair=True).whole


# --- labels --------------------------------------------------------------------------------------


def replace_listed(store: Store, path: str, data: bytes) -> None:
    """Put a file so that it is what the manifest says, as an editor of both would."""
    store.put(path, data)
    manifest = json.loads(store.read("manifest.json"))
    (record,) = (r for r in manifest["files"] if r["path"] == path)
    record |= {"bytes": len(data), "sha256": FileRecord.of(path, 0, data).sha256}
    store.put("manifest.json", json.dumps(manifest).encode())


def edit_parquet(store: Store, path: str, edit: Callable[[pa.Table], pa.Table]) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(edit(pq.read_table(pa.BufferReader(store.read(path)))), sink)
    replace_listed(store, path, sink.getvalue().to_pybytes())


def with_cells(table: pa.Table, row: int, **cells: Any) -> pa.Table:
    rows = table.to_pylist()
    rows[row] |= cells
    return pa.Table.from_pylist(rows, schema=table.schema)


def edit_image(store: Store, sink: str, shard: int, id: int, edit: Callable[[bytes], bytes]) -> str:
    """Change one image of a data set of 128 a shard; the path of the file that holds it."""
    base, row = f"data/part-{shard:06d}", id - 128 * shard
    if sink == "parquet":

        def with_image(table: pa.Table) -> pa.Table:
            image = table["image"][row].as_py()
            return with_cells(table, row, image=image | {"bytes": edit(image["bytes"])})

        edit_parquet(store, f"{base}.parquet", with_image)
        return f"{base}.parquet"
    if sink == "images":
        (path,) = (key for key in store.list(base) if key.endswith(f"{id:012d}.png"))
        data = edit(store.read(path))
        store.put(path, data)
        listed = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        edit_parquet(store, f"{base}/metadata.parquet", lambda table: with_cells(table, row, **listed))
        return path
    output = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(store.read(f"{base}.tar"))) as before,
        tarfile.open(fileobj=output, mode="w") as after,
    ):
        for member in before:
            content = before.extractfile(member)
            assert content is not None
            data = content.read()
            if member.name == f"{id:012d}.png":
                data = edit(data)
                member.size = len(data)
            after.addfile(member, io.BytesIO(data))
    replace_listed(store, f"{base}.tar", output.getvalue())
    return f"{base}.tar"


def relabelled(png: bytes, packet: bytes | None) -> bytes:
    """The same pixels under another label, or under none."""
    info, output = PngInfo(), io.BytesIO()
    if packet is not None:
        info.add_itxt("XML:com.adobe.xmp", packet.decode())
    Image.open(io.BytesIO(png)).save(output, "PNG", pnginfo=info)
    return output.getvalue()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("sink", SINKS)
def test_an_image_without_its_label_is_found(run_store: Path, sink: str) -> None:
    spec = generated(run_store, sink)
    store = Store(spec.run_uri).at("dataset")
    before = digests(store)
    unlabelled = edit_image(store, sink, 1, 130, lambda png: relabelled(png, None))
    foreign = edit_image(store, sink, 2, 300, lambda png: relabelled(png, xmp_packet(PRODUCER, "another")))
    result = verify(store.uri, repair=True)
    assert set(result.faults) == {1, 2}
    assert f"{unlabelled}: sample 130 has 0 XMP packets" in result.faults[1]
    assert f"{foreign}: sample 300 has ProduceID 'another', not '" in result.faults[2]
    # The way out that the finding names.
    assert "Delete manifest.json and _receipts/000001.json and run `genai-ray generate`" in result.faults[1]
    for key in ("manifest.json", "_receipts/000001.json", "_receipts/000002.json"):
        store.delete(key)
    generate(spec)
    assert digests(store) == before


#: (key of the metadata, its new value or None, what is found)
SCHEMA_LABELS = [
    (b"DigitalSourceType", None, "names no digital source type"),
    (b"DigitalSourceType", b"http://example.org/photo", "has DigitalSourceType 'http://example.org"),
    (b"AIGC", None, "has Label None, not '1'"),
    (b"AIGC", b"{}", "has a label with other keys"),
    (b"genai_ray", None, "has model None, not '"),
]


def test_a_schema_without_its_label_is_found(run_store: Path) -> None:
    store = Store(generated(run_store).run_uri).at("dataset")
    path = "data/part-000001.parquet"
    whole = pq.read_table(pa.BufferReader(store.read(path)))
    for key, value, finding in SCHEMA_LABELS:
        metadata = whole.schema.metadata | {key: value}
        altered = whole.replace_schema_metadata({k: v for k, v in metadata.items() if v is not None})
        edit_parquet(store, path, lambda _, altered=altered: altered)
        (fault,) = verify(store.uri).faults.values()
        assert f"{path} {finding}" in fault


@pytest.mark.parametrize("overrides", [["generate.encoding=raw"], ["provenance.producer=null"]])
def test_what_a_spec_does_not_label_is_not_missed(run_store: Path, overrides: list[str]) -> None:
    assert verify(generated(run_store, "parquet", *overrides).run_uri).whole


# --- what cannot be repaired ---------------------------------------------------------------------


def test_what_nobody_listed_is_reported(run_store: Path) -> None:
    spec = generated(run_store)
    store = Store(spec.run_uri).at("dataset")
    store.put("data/part-000009.parquet", b"of a run before")
    result = verify(store.uri)
    assert result.whole
    assert result.strays == ["data/part-000009.parquet"]


def test_another_seed_in_the_manifest_is_caught_by_making_shards_again(run_store: Path) -> None:
    spec = generated(run_store)
    store = Store(spec.run_uri).at("dataset")
    manifest = json.loads(store.read("manifest.json"))
    manifest["fields"]["seed"] = 1
    store.put("manifest.json", json.dumps(manifest).encode())
    assert verify(store.uri).whole  # the bytes are those that are listed
    result = verify(store.uri, regenerate=1, repair=True)
    (fault,) = result.faults.values()
    assert "not repaired: regenerated, it has other bytes" in fault


def test_a_manifest_that_misses_rows(run_store: Path) -> None:
    spec = generated(run_store)
    store = Store(spec.run_uri).at("dataset")
    manifest = json.loads(store.read("manifest.json"))
    del manifest["files"][1], manifest["shards"][1]
    store.put("manifest.json", json.dumps(manifest).encode())
    with pytest.raises(UserError, match="do not cover every row once"):
        verify(store.uri)


def test_the_command_says_so_by_its_exit_code(run_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = generated(run_store)
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
    spec = generated(run_store)
    store = Store(spec.run_uri).at("dataset")
    Store(spec.run_uri).put("model/generator.onnx", b"another")
    with pytest.raises(UserError, match="must be an ONNX file"):
        verify(store.uri, regenerate=1)
    store.delete("manifest.json")
    with pytest.raises(IncompleteError, match="is not finished"):
        verify(store.uri)
