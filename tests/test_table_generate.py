"""Tables from file to verified data set: conditions, constraints, types, and rows by index."""

import io
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from genai_ray import modalities
from genai_ray import spec as specs
from genai_ray.dataset.manifest import read_files, read_manifest, read_receipts, write_manifest
from genai_ray.dataset.plan import Plan, open_plan, write_fields
from genai_ray.dataset.shards import ShardMaker
from genai_ray.dataset.verify import verify
from genai_ray.errors import UserError
from genai_ray.evaluate import evaluate
from genai_ray.export import export
from genai_ray.pipeline import run
from genai_ray.provenance import Manifest
from genai_ray.spec import Spec
from genai_ray.storage import Store
from genai_ray.table.samples import TableSamples
from genai_ray.table.sinks import TableRead
from genai_ray.training.train import train

PRESETS = ("tvae", "ctgan", "table_ar")


def orders(n: int = 1500) -> pa.Table:
    """Orders: a size that follows the kind, a price with missing values, a total, dates, keys."""
    generator = np.random.Generator(np.random.Philox(3))
    kind = generator.integers(0, 3, n)
    size = np.where(generator.random(n) < 0.8, kind, generator.integers(0, 3, n))
    net = generator.gamma(2.0, 20.0, n).round(2)
    tax = (net * 0.2).round(2)
    day = generator.integers(18_000, 19_000, n)
    later = day + generator.integers(0, 30, n)
    rating = generator.integers(1, 6, n).astype(float)
    rating[generator.random(n) < 0.2] = np.nan
    return pa.table(
        {
            "key": pa.array([f"ORD-{i:06d}" for i in generator.permutation(n)]),
            "kind": pa.array(["book", "film", "game"]).take(pa.array(kind)).dictionary_encode(),
            "size": pa.array(["s", "m", "l"]).take(pa.array(size)),
            "net": pa.array(net, pa.float32()),
            "tax": pa.array(tax),
            "ordered": pa.array(day.astype(np.int32), pa.date32()),
            "sent": pa.array(later.astype(np.int32), pa.date32()),
            "rating": pa.array(rating, pa.int8(), from_pandas=True),
            "gift": pa.array(generator.random(n) < 0.3),
        }
    )


CONSTRAINTS = [{"less": ["ordered", "sent"]}, {"together": ["kind", "size"]}]


def shipped_table(store: Store, manifest: Manifest) -> pa.Table:
    files = list(read_files(store, manifest))
    return pa.concat_tables([f.table for f in files if isinstance(f, TableRead)])


def spec_of(folder: Path, preset: str, *overrides: str, **data: Any) -> Spec:
    values = {
        "name": preset,
        "store": str(folder / "store"),
        "data": {"source": "table", "root": str(folder / "orders.parquet"), **data},
        "model": {"preset": preset},
        "train": {"workers": 0, "global_batch": 100, "samples": 6000, "checkpoint_every": 3000},
        "generate": {"samples": 500, "shard_rows": 200, "batch": 256},
    }
    for override in overrides:
        specs.override(values, [override])
    return modalities.parse(values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, and a small model of each kind that was trained on it."""
    folder = tmp_path_factory.mktemp("orders")
    pq.write_table(orders(), folder / "orders.parquet")
    for preset in PRESETS:
        spec = spec_of(folder, preset)
        train(spec)
        export(spec)
    spec = spec_of(folder, "tvae", "name=ruled", table={"constraints": CONSTRAINTS})
    train(spec)
    export(spec)
    return folder


def samples_of(spec: Spec) -> TableSamples:
    found = open_plan(spec).samples()
    assert isinstance(found, TableSamples)
    return found


def finished(spec: Spec) -> tuple[Plan, pa.Table]:
    """The data set, made without a cluster, and all its rows."""
    made = open_plan(spec)
    write_fields(made)
    maker = ShardMaker(made)
    for index in range(made.shard_count):
        maker.make(made.shard(index))
    write_manifest(made, read_receipts(made))
    manifest = read_manifest(made.store)
    assert manifest is not None
    return made, shipped_table(made.store, manifest)


# --- rows by index -------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_rows_do_not_depend_on_how_they_are_cut(folder: Path, preset: str) -> None:
    asked = "generate.conditions=[{where: {kind: book, gift: true}, share: 1}]"
    samples = samples_of(spec_of(folder, preset, asked))
    whole, attempts = samples.table(0, 500)
    parts = [samples.table(start, min(start + 77, 500)) for start in range(0, 500, 77)]
    assert pa.concat_tables([t for t, _ in parts]).equals(whole)
    assert sum(a for _, a in parts) == attempts
    assert attempts >= 500
    other, _ = samples_of(spec_of(folder, preset, asked, "generate.seed=9")).table(0, 500)
    assert not other.equals(whole)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_table_opens_as_its_source_did(folder: Path, preset: str) -> None:
    spec = spec_of(folder, preset, "generate.into=typed", "provenance.producer=ACME")
    made, table = finished(spec)
    source = pq.read_table(folder / "orders.parquet")
    assert table.schema.equals(source.schema)
    assert len(set(table["key"].to_pylist())) == 500
    assert table["rating"].null_count > 0
    assert set(table["size"].to_pylist()) <= {"s", "m", "l"}
    file = pq.read_table(Path(made.store.uri) / "data" / "part-000001.parquet")
    assert file.schema.metadata[b"DigitalSourceType"].endswith(b"trainedAlgorithmicMedia")
    assert b"ACME" in file.schema.metadata[b"AIGC"]
    assert (
        pq.read_metadata(Path(made.store.uri) / "data" / "part-000000.parquet")
        .row_group(0)
        .column(1)
        .has_dictionary_page
    )
    result = verify(made.store.uri, regenerate=2)
    assert result.whole
    assert len(result.regenerated) == 2


def test_what_is_damaged_is_found_and_made_again(folder: Path) -> None:
    made, table = finished(spec_of(folder, "ctgan", "generate.into=damaged"))
    path = Path(made.store.uri) / "data" / "part-000001.parquet"
    path.write_bytes(path.read_bytes()[:-3])
    assert list(verify(made.store.uri).faults) == [1]
    assert verify(made.store.uri, repair=True).whole
    manifest = read_manifest(made.store)
    assert manifest is not None
    again = shipped_table(made.store, manifest)
    assert again.equals(table)


def test_csv_holds_the_same_rows(folder: Path) -> None:
    spec = spec_of(folder, "tvae", "generate.into=text", "generate.sink=csv")
    made, read = finished(spec)
    rows, _ = samples_of(spec).table(0, 500)
    assert read.column_names == rows.column_names
    text = Store(made.store.uri).read("data/part-000000.csv")
    parsed = pacsv.read_csv(io.BytesIO(text), convert_options=pacsv.ConvertOptions(strings_can_be_null=True))
    assert parsed["gift"].to_pylist() == rows["gift"].to_pylist()[:200]
    assert parsed["ordered"].to_pylist() == rows["ordered"].to_pylist()[:200]
    assert parsed["rating"].to_pylist() == rows["rating"].to_pylist()[:200]
    assert verify(made.store.uri, regenerate=1).whole
    evaluate(spec)


def test_csv_is_spelled_verified_and_measured_as_its_source(tmp_path: Path) -> None:
    lines = [
        "Ort;am;Betrag;ok",
        *(
            f"{('Köln', 'NA', 'Genève')[i % 3]};{1 + i % 28:02}.06.2020;{1 + i % 9}.{100 + i % 7},{i % 10}0;{i % 4 > 0}"
            for i in range(300)
        ),
    ]
    (tmp_path / "orte.csv").write_text("\n".join(lines) + "\n", encoding="cp1252")
    small = ["train.samples=200", "train.checkpoint_every=200", "generate.samples=150", "generate.shard_rows=80"]
    spec = spec_of(tmp_path, "tvae", *small, "generate.sink=csv", root=str(tmp_path / "orte.csv"))
    train(spec)
    export(spec)
    made, read = finished(spec)
    text = Store(made.store.uri).read("data/part-000000.csv").decode("cp1252")
    rows = [line.split(";") for line in text.splitlines()]
    assert rows[0] == ["Ort", "am", "Betrag", "ok"]
    assert {r[0] for r in rows[1:]} <= {"Köln", "NA", "Genève"}
    assert all(re.fullmatch(r"\d\d\.06\.2020;\d\.\d{3},\d\d;(True|False)", ";".join(r[1:])) for r in rows[1:])
    assert read.num_rows == 150
    assert verify(made.store.uri, regenerate=1).whole
    evaluate(spec)


# --- conditions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_counts_of_conditions_are_exact(folder: Path, preset: str) -> None:
    asked = (
        "generate.conditions=[{where: {kind: book, size: s}, rows: 120}, "
        "{where: {gift: true, rating: null}, rows: 30}, {where: {kind: game}, rows: 350}]"
    )
    spec = spec_of(folder, preset, asked, f"generate.into=asked-{preset}")
    made, table = finished(spec)
    rows = table.select(["kind", "size", "gift", "rating"]).to_pylist()
    which = open_plan(spec).samples()
    assert which.counts() == {"kind=book, size=s": 120, "gift=True, rating=None": 30, "kind=game": 350}
    assert sum(r["kind"] == "game" for r in rows) >= 350
    assert sum(r["kind"] == "book" and r["size"] == "s" for r in rows) >= 120
    assert sum(r["gift"] and r["rating"] is None for r in rows) >= 30
    manifest = read_manifest(made.store)
    assert manifest is not None
    assert 0 < manifest.accept_rate <= 1
    if preset == "table_ar":
        assert manifest.accept_rate == 1, "all that is asked for is a category that it can be given"


def test_a_rare_condition_is_kept_by_rejection(folder: Path) -> None:
    """Two columns that no model of one condition can be asked for at once."""
    asked = "generate.conditions=[{where: {rating: 5, gift: true, size: l}, rows: 500}]"
    samples = samples_of(spec_of(folder, "tvae", asked))
    samples.probe()
    table, attempts = samples.table(0, 500)
    assert attempts > 2 * 500
    assert set(zip(*(table[n].to_pylist() for n in ("rating", "gift", "size")), strict=True)) == {(5, True, "l")}


def test_one_row_is_one_row(folder: Path) -> None:
    asked = "generate.conditions=[{where: {kind: game}, rows: 1}, {where: {kind: book}, rows: 499}]"
    table, _ = samples_of(spec_of(folder, "table_ar", asked)).table(0, 500)
    assert Counter(table["kind"].to_pylist()) == {"game": 1, "book": 499}


def test_shares_balance_a_table(folder: Path) -> None:
    asked = "generate.conditions=[{where: {gift: true}, share: 0.5}, {where: {gift: false}, share: 0.5}]"
    table, _ = samples_of(spec_of(folder, "ctgan", asked)).table(0, 500)
    assert Counter(table["gift"].to_pylist()) == {True: 250, False: 250}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("[{where: {kind: boks}, share: 1}]", r"kind=boks.*did you mean.*book"),
        ("[{where: {knd: book}, share: 1}]", r"knd.*is not a column"),
        ("[{where: {kind: book}, rows: 3}]", r"add up to 3; counts must give generate.samples=500"),
        ("[{where: {kind: book}}]", "must have either rows or a share"),
        ("[{where: {kind: book}, rows: 1}]", "add up to 1; counts must give"),
        ("[{where: {kind: book}, rows: 300}, {where: {}, share: 0.4}]", "by rows and by shares"),
        ("[{where: {kind: book}, row: 500}]", r"generate.conditions.0.row: .*Did you mean .?rows"),
        ("[{where: {key: ORD-000001}, share: 1}]", "is an id"),
        ("[{where: {ordered: 2031-01-01}, share: 1}]", "must lie in"),
        ("[{where: {net: 31.337}, share: 1}]", "is met by 0 of 4096 trial rows"),
        ("asked.csv", "input should be a valid tuple"),
    ],
)
def test_bad_conditions(folder: Path, asked: str, message: str) -> None:
    with pytest.raises(UserError, match=f"(?is){message}"):
        open_plan(spec_of(folder, "tvae", f"generate.conditions={asked}", "generate.into=never"))
    assert not (folder / "store" / "tvae" / "never").exists()


# --- constraints ---------------------------------------------------------------------------------


def test_constraints_hold_in_every_row(folder: Path) -> None:
    spec = spec_of(folder, "tvae", "name=ruled", "generate.samples=2000", table={"constraints": CONSTRAINTS})
    _, table = finished(spec)
    assert all(o <= s for o, s in zip(table["ordered"].to_pylist(), table["sent"].to_pylist(), strict=True))
    source = pq.read_table(folder / "orders.parquet")
    seen = set(zip(source["kind"].to_pylist(), source["size"].to_pylist(), strict=True))
    assert set(zip(table["kind"].to_pylist(), table["size"].to_pylist(), strict=True)) <= seen
    result = evaluate(spec)
    assert result.fake["constraint_validity"] == 1
    assert Path(result.uri, "report.html").exists()


# --- sources and models that do not fit ----------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["model.preset=dcgan"], "model.preset"),
        (["generate.sink=images"], "generate.sink"),
        (["export.precision=int8"], "export.precision"),
        (["generate.sink=csv", "provenance.producer=ACME"], "provenance.producer"),
        (["data.table.columns={net: numeric}"], "data.table.columns.net.type"),
        (["data.table.columns={net: {typ: id}}"], "data.table.columns.net.typ"),
        (["data.table.constraints=[{les: [a, b]}]"], "data.table.constraints.0.les"),
        (["generate.classes={a: 1}"], "generate.classes"),
        (["generate.truncation=2"], "generate.truncation"),
        (["data.holdout=0.5", "data.holdout_root=x"], "data.holdout_root"),
        (["train.global_batch=105"], "train.global_batch"),
    ],
)
def test_what_tables_do_not_have(folder: Path, overrides: list[str], field: str) -> None:
    with pytest.raises(UserError) as caught:
        spec_of(folder, "ctgan", *overrides)
    assert caught.value.field == field


def test_a_request_is_checked_before_anything_is_trained(folder: Path) -> None:
    asked = "generate.conditions=[{where: {kind: boks}, share: 1}]"
    spec = spec_of(folder, "tvae", asked, "name=untrained")
    with pytest.raises(UserError, match="kind=boks"):
        run(spec)
    assert not (folder / "store" / "untrained").exists()


def test_a_changed_reading_is_told_before_it_is_measured(folder: Path) -> None:
    finished(spec_of(folder, "tvae", "generate.into=read"))
    other = spec_of(folder, "tvae", "generate.into=read", table={"columns": {"tax": "drop"}})
    with pytest.raises(UserError, match=r"holds other samples.*how they are read"):
        evaluate(other)
