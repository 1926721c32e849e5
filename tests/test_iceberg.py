"""A finished data set becomes one snapshot of a table, once, in a live catalog."""

import hashlib
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from genai_ray import local
from genai_ray.errors import UserError
from genai_ray.image.codec import ImageCodec
from genai_ray.image.encoding import decode
from genai_ray.image.parquet import parquet_schema, write_parquet
from genai_ray.image.rows import ImageRows
from genai_ray.labels import DIGITAL_SOURCE_TYPE
from genai_ray.provenance import Manifest
from genai_ray.sinks.iceberg import check_iceberg, commit_iceberg
from genai_ray.spec import GenerateSpec
from genai_ray.storage import Store
from genai_ray.table.sinks import TableRows, write_table

pytestmark = [pytest.mark.s3]
pyiceberg = pytest.importorskip("pyiceberg")

CODEC = ImageCodec(8, 1, ("cat", "dog"))
EXTRA = pa.table({"weight": [0.5, 1.5, 2.5, 3.5], "site": ["a", "b", "a", None]})


def check(uri: str, catalog: str, table: str, schema: pa.Schema) -> None:
    check_iceberg(GenerateSpec(sink="iceberg", catalog=catalog, table=table), Store(uri), schema)


def commit(manifest: Manifest, store: Store, catalog: str, table: str) -> None:
    commit_iceberg(GenerateSpec(sink="iceberg", catalog=catalog, table=table), store, manifest)


@pytest.fixture
def catalog(s3_stack: local.Stack, monkeypatch: pytest.MonkeyPatch) -> str:
    """The catalog of the session's server, configured as a user would."""
    for name, value in s3_stack.environment.items():
        if name.startswith("PYICEBERG"):
            monkeypatch.setenv(name, value)
    return "default"


@pytest.fixture
def table(request: pytest.FixtureRequest) -> str:
    return f"synthetic.{''.join(c if c.isalnum() else '_' for c in request.node.name.lower())}"


def opened(table: str) -> Any:
    from pyiceberg.catalog import load_catalog
    from pyiceberg.utils.config import Config

    settings: Any = Config().get_catalog_config("default")
    return load_catalog("default", **settings).load_table(table)


def made(
    store: Store, fingerprint: str, *, encoding: str = "png", extra: pa.Table | None = EXTRA
) -> tuple[Manifest, list[ImageRows]]:
    """Two shards of four samples in a store, and their manifest."""
    random = np.random.default_rng(0)
    shards = [
        ImageRows(
            i,
            4 * i,
            random.integers(0, 256, (4, 8, 8, 1), np.uint8),
            np.array([0, 1, 1, 0]),
            CODEC,
            encoding,
            {"fingerprint": fingerprint},
            extra=extra,
        )
        for i in range(2)
    ]
    files = [record for rows in shards for record in write_parquet(rows, store)]
    manifest = Manifest(
        fingerprint=fingerprint,
        fields={},
        model="cd" * 32,
        card={},
        rows=8,
        bytes=sum(f.bytes for f in files),
        files=[asdict(f) for f in files],
        shards=[],
        columns={},
        versions={},
    )
    return manifest, shards


def schema(extra: pa.Table | None = EXTRA, encoding: str = "png") -> pa.Schema:
    return parquet_schema(CODEC, encoding, True, {}, None if extra is None else extra.schema)


@pytest.mark.parametrize("encoding", ["png", "raw"])
def test_a_data_set_is_one_snapshot_of_all_its_rows(s3_uri: str, catalog: str, table: str, encoding: str):
    manifest, shards = made(Store(s3_uri), "ab" * 32, encoding=encoding)
    check(s3_uri, catalog, table, schema(encoding=encoding))
    for _ in range(2):  # as a job that was killed after its commit and repeated
        commit(manifest, Store(s3_uri), catalog, table)
    found = opened(table)
    (snapshot,) = found.snapshots()
    assert snapshot.summary["genai_ray.fingerprint"] == "ab" * 32
    assert snapshot.summary["genai_ray.model"] == "cd" * 32
    assert snapshot.summary["digital-source-type"] == DIGITAL_SOURCE_TYPE
    digest = hashlib.sha256(manifest.to_json().encode()).hexdigest()
    assert snapshot.summary["genai_ray.manifest"] == digest
    assert found.format_version == 2
    rows = found.scan().to_arrow().sort_by("id").to_pylist()
    assert [row["id"] for row in rows] == list(range(8))
    assert [row["weight"] for row in rows] == EXTRA["weight"].to_pylist() * 2
    assert [row["site"] for row in rows] == EXTRA["site"].to_pylist() * 2
    images = np.concatenate([s.images for s in shards])
    for row, image, label in zip(rows, images, [0, 1, 1, 0] * 2, strict=True):
        cell = row["image"] if encoding == "raw" else row["image"]["bytes"]
        assert row["label"] == label
        np.testing.assert_array_equal(decode(cell, CODEC, encoding), image)
    some = found.scan(row_filter="id >= 6 and label = 1", selected_fields=("id",)).to_arrow()
    assert some["id"].to_pylist() == [6]


def test_rows_of_a_table_keep_their_types(s3_uri: str, catalog: str, table: str):
    store, rows = (
        Store(s3_uri),
        pa.table(
            {
                "kind": pa.array(["a", None, "b"]).dictionary_encode(),
                "price": pa.array([1.25, None, 3.5], pa.float32()),
                "sent": pa.array([1, 2, 3], pa.date32()),
                "gift": pa.array([True, False, None]),
            }
        ),
    )
    check(s3_uri, catalog, table, rows.schema)
    (record,) = write_table(TableRows(0, 0, rows, {"start": 0}), store)
    manifest = Manifest(
        fingerprint="ef" * 32,
        fields={},
        model="cd" * 32,
        card={},
        rows=3,
        bytes=record.bytes,
        files=[asdict(record)],
        shards=[],
        columns={},
        versions={},
    )
    commit(manifest, store, catalog, table)
    assert opened(table).scan().to_arrow().to_pylist() == rows.to_pylist()


def test_another_data_set_is_another_snapshot(s3_uri: str, catalog: str, table: str):
    stores = [Store(f"{s3_uri}/{name}") for name in ("a", "b")]
    first, second = (made(s, f * 64)[0] for s, f in zip(stores, "ab", strict=True))
    commit(first, stores[0], catalog, table)
    check(stores[1].uri, catalog, table, schema())
    commit(second, stores[1], catalog, table)
    commit(first, stores[0], catalog, table)
    found = opened(table)
    marks = [s.summary["genai_ray.fingerprint"] for s in found.snapshots()]
    assert marks == ["a" * 64, "b" * 64]
    assert found.scan().count() == 16
    # The first data set alone is still what its snapshot shows.
    assert found.scan(snapshot_id=found.snapshots()[0].snapshot_id).count() == 8


def test_files_that_the_table_has_are_not_added_again(s3_uri: str, catalog: str, table: str):
    store = Store(s3_uri)
    commit(made(store, "a" * 64)[0], store, catalog, table)
    with pytest.raises(UserError, match="holds files of") as caught:
        commit(made(store, "b" * 64)[0], store, catalog, table)
    assert caught.value.field == "generate.table"
    assert opened(table).scan().count() == 8


# --- what is found out before anything is written ------------------------------------------------


def test_other_columns(s3_uri: str, catalog: str, table: str):
    commit(made(Store(s3_uri), "a" * 64)[0], Store(s3_uri), catalog, table)
    with pytest.raises(UserError, match="site: string there, absent here") as caught:
        check(s3_uri, catalog, table, schema(EXTRA.drop_columns(["site"])))
    assert (caught.value.field, caught.value.value) == ("generate.table", table)
    with pytest.raises(UserError, match=r"image: struct<.*> there, fixed\[64\] here"):
        check(s3_uri, catalog, table, schema(encoding="raw"))


@pytest.mark.parametrize("kind", [pa.duration("s"), pa.timestamp("ns"), pa.uint64()], ids=str)
def test_a_type_that_iceberg_does_not_have(s3_uri: str, catalog: str, table: str, kind: pa.DataType):
    extra = pa.table({"when": pa.array([0] * 4, kind)})
    with pytest.raises(UserError, match="Iceberg does not have") as caught:
        check(s3_uri, catalog, table, schema(extra))
    assert caught.value.field == "generate.sink"
    assert "'when'" in caught.value.rule


@pytest.mark.parametrize(
    ("variable", "value", "rule"),
    [
        ("CREDENTIAL", "KEY:wrong-secret", "refuses the credentials"),
        ("URI", "http://127.0.0.1:1", "must be reachable"),
        ("WAREHOUSE", "s3://absent", "does not have it"),
        ("TYPE", "no-such-type", "has settings that pyiceberg cannot use"),
    ],
)
def test_a_catalog_that_cannot_be_used(
    s3_uri: str, catalog: str, table: str, variable: str, value: str, rule: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(f"PYICEBERG_CATALOG__DEFAULT__{variable}", value)
    with pytest.raises(UserError, match=rule) as caught:
        check(s3_uri, catalog, table, schema())
    assert (caught.value.field, caught.value.value) == ("generate.catalog", "default")
    assert "PYICEBERG_CATALOG__DEFAULT__URI" in caught.value.remedy
    assert "wrong-secret" not in str(caught.value)


def test_a_catalog_without_settings(s3_uri: str, table: str):
    with pytest.raises(UserError, match="is no catalog that pyiceberg's settings name") as caught:
        check(s3_uri, "sales-eu", table, schema())
    assert "PYICEBERG_CATALOG__SALES_EU__URI" in caught.value.remedy


def test_a_folder_is_no_place_for_a_table(catalog: str, table: str):
    with pytest.raises(UserError, match="must be s3://") as caught:
        check("/tmp/runs", catalog, table, schema())
    assert caught.value.field == "store"
