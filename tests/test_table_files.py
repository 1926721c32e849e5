"""What the files of a table say beside their cells: folders, indices of pandas, types; and which files are read."""

import gzip
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tables import back, load_csv, spec_of

from genai_ray.errors import UserError
from genai_ray.modalities import describe
from genai_ray.table.files import recognised
from genai_ray.table.source import describe_file, load_table

N = 120


def partitioned(folder: Path, suffix: str = "parquet") -> Path:
    """Rows in folders by year and region; one region is missing, and one has a slash."""
    for i, (year, region) in enumerate(
        (y, r) for y in (2022, 2023) for r in ("north", "a%2Fb", "__HIVE_DEFAULT_PARTITION__")
    ):
        path = folder / f"year={year}" / f"region={region}" / f"part-{i}.{suffix}"
        path.parent.mkdir(parents=True)
        table = pa.table({"amount": [float(i + j % 5) for j in range(20)], "kind": ["new", "used"] * 10})
        if suffix == "parquet":
            pq.write_table(table, path)
        else:
            table.to_pandas().to_csv(path, index=False)
    return folder


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_folders_of_hive_are_columns(tmp_path: Path, suffix: str):
    data = load_table(spec_of(partitioned(tmp_path, suffix)))
    table = pa.concat_tables([data.train, data.holdout])
    assert table.column_names == ["amount", "kind", "year", "region"]
    assert set(table["year"].to_pylist()) == {2022, 2023}
    assert set(table["region"].to_pylist()) == {"north", "a/b", None}
    assert data.summary["read"]["year"] == "a column by the names of folders"
    assert set(back(data)["region"].to_pylist()) == {"north", "a/b", None}


def test_codes_of_folders_keep_their_zeros(tmp_path: Path):
    for folder in ("zip=01234/month=01", "zip=99999/month=12"):
        (tmp_path / folder).mkdir(parents=True)
        pq.write_table(pa.table({"kind": ["new", "used"] * 30}), tmp_path / folder / "a.parquet")
    data = load_table(spec_of(tmp_path))
    assert set(data.train["zip"].to_pylist()) == {"01234", "99999"}
    assert set(data.train["month"].to_pylist()) == {1, 12}


def test_partition_columns_are_those_of_pyarrow(tmp_path: Path):
    root = partitioned(tmp_path)
    expected = pq.read_table(root)
    data = load_table(spec_of(root))
    assert [(f.name, f.type) for f in data.codec.schema] == [(f.name, f.type) for f in expected.schema]
    rows = pa.concat_tables([data.train, data.holdout]).to_pylist()
    assert sorted(map(str, rows)) == sorted(map(str, expected.to_pylist()))


def test_files_partitioned_otherwise_are_refused(tmp_path: Path):
    root = partitioned(tmp_path)
    pq.write_table(pa.table({"amount": [1.0], "kind": ["new"]}), root / "more.parquet")
    with pytest.raises(UserError, match="must be in folders of the columns of"):
        load_table(spec_of(root))


ODD: dict[str, Any] = {
    "tags": pa.array([["a"]] * N),
    "place": pa.array([{"x": 1.0, "y": 2.0}] * N),
    "uid": pa.array([b"0123456789abcdef"] * N, pa.binary(16)),
    "raw": pa.array([b"x"] * N),
    "took": pa.array([1] * N, pa.duration("s")),
    "pairs": pa.array([[("a", 1)]] * N, pa.map_(pa.string(), pa.int64())),
}


def test_columns_of_any_type_can_be_dropped(tmp_path: Path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"k": ["a", "b"] * (N // 2), **ODD}), path)
    with pytest.raises(UserError, match=r"tags \(list<") as caught:
        describe_file(spec_of(path))
    assert all(f"{name}: drop" in caught.value.remedy for name in ODD)
    assert list(describe_file(spec_of(path, columns=dict.fromkeys(ODD, "drop")))["columns"]) == ["k"]
    with pytest.raises(UserError, match="Leave them out: ") as caught:
        describe_file(spec_of(path, columns={"k": "categorical", "tags": "drop"}))
    about = describe(str(path), shlex.split(caught.value.remedy.removeprefix("Leave them out: ").partition(";")[0]))
    assert about is not None
    assert {name: column["why"] for name, column in about["columns"].items()} == {"k": "as the spec says"}


def test_keys_of_csv_are_refused_for_parquet(tmp_path: Path):
    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.table({"k": ["a", "b", "-"] * (N // 3), "x": [1, 2, 3] * (N // 3), "b": [True, False] * (N // 2)}), path
    )
    keys: dict[str, Any] = {"header": True, "delimiter": ";", "escape": "double", "skip": 1, "encoding": "cp1252"}
    for name, value in keys.items():
        with pytest.raises(UserError, match=rf"data\.table\.{name}: .* is for CSV, and t\.parquet is Parquet"):
            describe_file(spec_of(path, **{name: value}))
    describe_file(spec_of(path, delimiter=",", encoding="utf8"))  # as specs of earlier versions say
    about = describe_file(spec_of(path, columns={"k": {"nulls": ["-"]}}))["columns"]["k"]
    assert (about["missing"], about["most frequent"]) == (40, {"a": 40, "b": 40})
    assert describe_file(spec_of(path, columns={"x": {"nulls": ["3"]}}))["columns"]["x"]["range"] == [1, 2]
    with pytest.raises(UserError, match=r"columns\.b\.nulls.*are strings or numbers"):
        describe_file(spec_of(path, columns={"b": {"nulls": ["-"]}}))


def test_an_index_of_pandas_without_a_name_is_left_out(tmp_path: Path):
    frame = pd.DataFrame({"x": np.arange(N) % 7, "k": ["a", "b"] * (N // 2)})
    path = tmp_path / "t.parquet"
    frame[frame.x > 1].to_parquet(path)
    about = describe_file(spec_of(path))
    assert list(about["columns"]) == ["x", "k"]
    assert about["left out"] == {"__index_level_0__": "the index of pandas, which has no name"}
    kept = describe_file(spec_of(path, columns={"__index_level_0__": "id"}))
    assert list(kept["columns"]) == ["x", "k", "__index_level_0__"]
    frame.set_index("k").to_parquet(path)
    assert list(describe_file(spec_of(path))["columns"]) == ["x", "k"]


def test_the_order_of_ordered_categories_is_kept(tmp_path: Path):
    sizes = ["small", "medium", "large"]
    cells = pd.Categorical([sizes[i % 3] for i in range(N)], categories=sizes, ordered=True)
    pd.DataFrame({"size": cells, "x": np.arange(N) % 7}).to_parquet(tmp_path / "t.parquet")
    data = load_table(spec_of(tmp_path / "t.parquet"))
    made = back(data)
    pq.write_table(made, tmp_path / "made.parquet")
    again = pd.read_parquet(tmp_path / "made.parquet")["size"]
    assert again.cat.ordered
    assert list(again.cat.categories) == sizes
    assert made["size"].to_pylist() == data.train["size"].to_pylist()


def test_files_are_known_by_their_first_bytes(tmp_path: Path):
    table = pa.table({"x": [1.5, 2.5] * 20, "k": ["a", "b"] * 20})
    for name in ("data.pq", "data", "data.dat"):
        pq.write_table(table, tmp_path / name)
        assert list(describe_file(spec_of(tmp_path / name))["columns"]) == ["x", "k"]
    (tmp_path / "packed.txt").write_bytes(gzip.compress(b"x;k\n" + b"1;a\n2;b\n" * 20))
    assert list(describe_file(spec_of(tmp_path / "packed.txt"))["columns"]) == ["x", "k"]
    folder = tmp_path / "hadoop"
    folder.mkdir()
    pq.write_table(table, folder / "000000_0")
    (folder / "_SUCCESS").write_text("")
    about = describe_file(spec_of(folder))
    assert (about["rows"], about["left out"]) == (40, {"hidden": 1})


@pytest.mark.parametrize(
    ("start", "says"), [(b"PK\x03\x04", "an Excel workbook or a zip file"), (b"BZh9", "compressed by bzip2")]
)
def test_files_that_are_no_text_are_named(tmp_path: Path, start: bytes, says: str):
    (tmp_path / "t.csv").write_bytes(start + bytes(range(256)))
    with pytest.raises(UserError, match=f"is {says}, which is not read"):
        describe_file(spec_of(tmp_path / "t.csv"))


def test_columns_of_one_name_can_be_named_as_the_error_says(tmp_path: Path):
    path = tmp_path / "t.csv"
    path.write_text("x,y,x\n" + "1,a,2.5\n2,b,3.5\n" * 20)
    with pytest.raises(UserError, match="2 columns named 'x'") as caught:
        describe_file(spec_of(path))
    overrides = shlex.split(caught.value.remedy.removeprefix("Name them all: ").removesuffix("."))
    about = describe(str(path), overrides)
    assert about is not None
    assert list(about["columns"]) == ["x", "y", "x_3"]


@pytest.mark.parametrize("log", ["_delta_log/00000.json", ".hoodie/hoodie.properties", "metadata/v1.metadata.json"])
def test_folders_whose_files_do_not_all_count_are_refused(tmp_path: Path, log: str):
    pq.write_table(pa.table({"x": [1.5, 2.5] * 20}), tmp_path / "part.parquet")
    (tmp_path / log).parent.mkdir()
    (tmp_path / log).write_text("{}")
    with pytest.raises(UserError, match="whose log says which of the files count"):
        describe_file(spec_of(tmp_path))


def test_what_a_folder_holds_besides_is_counted(tmp_path: Path):
    for name in (
        "a.csv",
        "b.csv",
        ".hidden.csv",
        "_temporary/c.csv",
        "notes.txt",
        "README",
        ".ipynb_checkpoints/a.csv",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x,k\n" + "1,a\n2,b\n" * 20)
    about = describe_file(spec_of(tmp_path))
    assert (about["rows"], about["files"]) == (80, 2)
    assert about["left out"] == {"hidden": 3, "suffix .txt": 1, "without a suffix": 1}


def test_a_summary_says_what_was_read(tmp_path: Path):
    rows = "".join(f"{'fm'[i % 2]};{i % 9},5\n" for i in range(50))
    data = load_csv(tmp_path / "t.csv", "gender;x\n" + rows)
    summary = data.summary
    assert (summary["rows"], summary["files"], summary["holdout"]) == (50, 1, "10, a share of 0.2")
    assert summary["read"]["delimiter"].startswith("semicolon: ")
    assert summary["read"]["header"].endswith("as 'x' over values of another kind")
    assert summary["columns"]["x"]["why"] == "all cells are numbers"
    described = describe_file(spec_of(tmp_path / "t.csv"))
    assert described["columns"] == summary["columns"]


def test_tables_are_recognised(tmp_path: Path):
    (tmp_path / "rows.csv").write_text("a,b\n")
    (tmp_path / "rows.txt").write_text("a,b\n")
    (tmp_path / "rows.bin").write_bytes(bytes(9))
    pq.write_table(pa.table({"x": [1]}), tmp_path / "rows.dat")
    assert recognised(str(tmp_path / "rows.csv"))
    assert recognised(str(tmp_path / "rows.dat"))
    assert recognised(str(tmp_path))
    assert recognised(str(tmp_path / "rows.txt"))
    assert not recognised(str(tmp_path / "rows.bin"))
    assert not recognised(str(tmp_path / "nowhere.csv"))
    images = tmp_path / "images"
    images.mkdir()
    cell = pa.array([{"bytes": b"x", "path": "x"}])
    pq.write_table(pa.table({"image": cell}), images / "a.parquet")
    assert not recognised(str(images))
