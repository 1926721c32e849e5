"""All columns of a file that need a decision are in one error, and every remedy works as it is printed."""

import pickle
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from tables import spec_of

from genai_ray.errors import UserError
from genai_ray.inspect import inspect
from genai_ray.spec import assignment, override
from genai_ray.table.problems import ColumnError
from genai_ray.table.source import load_table

N = 120
DAYS = pd.date_range("2020-01-01", periods=N)
WORDS = [f"w{i * i} zz" for i in range(N)]  # free text


def repeated(*cells: Any) -> list[Any]:
    return [cells[i % len(cells)] for i in range(N)]


def with_one(odd: Any) -> list[Any]:
    return [*(i * 1.5 for i in range(N - 1)), odd]


def written(folder: Path, columns: dict[str, Any], suffix: str) -> Path:
    path = folder / f"t{suffix}"
    table = pd.DataFrame(columns | {"kind": repeated("a", "b")})
    if suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        pq.write_table(pa.Table.from_pandas(table, preserve_index=False), path)
    return path


def printed(remedy: str) -> list[list[str]]:
    """Each way of the remedy, as the arguments that a shell makes of it."""
    ways = re.split(r"Give (?='?data\.table\.)", remedy)[-1]
    return [shlex.split(way) for way in re.split(r", or (?='?data)", ways)]


#: Columns that cannot be learnt as they are; Parquet and CSV.
PROBLEMS: dict[str, tuple[str, Any]] = {
    "free text": (".csv", WORDS),
    "nothing": (".csv", [None] * N),
    "dates of two meanings": (".csv", repeated("01/02/2024", "03/04/2024")),
    "a word among numbers": (".csv", with_one("oops")),
    "infinite": (".csv", with_one("-inf")),
    "rare categories": (".csv", [f"v{i // 4:03} x" for i in range(N)]),
    "dates as strings": (".parquet", [f"{d:%Y-%m-%d}" for d in pd.date_range("2020-01-01", periods=N)]),
    "dates in words": (".csv", [f"{d:%b %d %Y}" for d in DAYS]),
    "points in time in words": (".csv", [f"{d:%a, %d %b %Y 10:00:00 +0000}" for d in DAYS]),
    "dates with years of two digits": (".csv", [f"{d:%d/%m/%y}" for d in DAYS]),
    "times in digits": (".csv", [f"{i // 60:02}{i % 60:02}" for i in range(N)]),
    "dates of ISO 8601, one of which is none": (".csv", [*(f"{d:%Y-%m-%d}" for d in DAYS[1:]), "0000-00-00"]),
    "a mark among dates in digits": (".csv", [*(int(f"{d:%Y%m%d}") for d in DAYS[1:]), 0]),
    "a mark among dates of Parquet": (".parquet", [*(int(f"{d:%Y%m%d}") for d in DAYS[1:]), 99999999]),
    "dates of another form, one of which is none": (".csv", [*(f"{d:%d.%m.%Y}" for d in DAYS[1:]), "-"]),
    "durations": (".csv", [f"{i % 90:02}:{i % 60:02}" for i in range(N)]),
    "numbers as strings": (".parquet", [f"{i * 1.37:.2f}" for i in range(N)]),
    "beyond 2**53": (".parquet", [2**60 + i % 3 for i in range(N)]),
    "beyond 2**53, each once": (".parquet", [2**60 + i**2 for i in range(N)]),
    "a sentinel of float64": (".parquet", with_one(1.7e308)),
}
#: Mistakes of a spec, each with cells that it does not fit.
MISTAKES: dict[str, tuple[Any, Any]] = {
    "numbers": ("numerical", with_one("b")),
    "dates": ("datetime", repeated("soon", "late")),
    "a format": ({"datetime_format": "%d/%m/%Y"}, repeated("2024-01-31", "2024-02-28")),
    "booleans": ("boolean", repeated("yes", "perhaps")),
    "bits": ("boolean", repeated(1, 2)),
    "a constant": ("constant", repeated(1, 2)),
    "ids that repeat": ("id", repeated("K1", "K2")),
    "ids without a pattern": ("id", [chr(97 + i % 26) * (1 + i // 26) for i in range(N)]),
    "another pattern": ({"pattern": "[0-9]{3}x"}, [f"{i:03}" for i in range(N)]),
    "ids of fractions": ("id", [i / 2 for i in range(N)]),
    "a bound of another kind": ({"min": "2024-01-01"}, repeated(1, 2)),
    "a bound of categories": ({"max": 5}, repeated("a", "b")),
    "dates in digits": ({"type": "datetime", "datetime_format": "%Y%m%d"}, repeated(20240131, 20240132)),
}


def works(path: Path, overrides: list[str]) -> None:
    inspect(str(path), overrides)
    values = override({"data": {"table": {}}}, overrides)
    load_table(spec_of(path, **values["data"]["table"]))


@pytest.mark.parametrize("name", ["x", "home.dest", "price (USD)", "客户 类型", "a=b", '"q"', "it's", "#~", "no"])
def test_each_name_can_be_told_as_the_remedy_says(tmp_path: Path, name: str):
    path = written(tmp_path, {name: WORDS}, ".csv")
    with pytest.raises(ColumnError) as caught:
        inspect(str(path))
    ways = printed(caught.value.remedy)
    assert [len(way) for way in ways] == [1]
    works(path, ways[0])


@pytest.mark.parametrize("problem", PROBLEMS)
def test_every_way_out_of_a_problem_works(tmp_path: Path, problem: str):
    suffix, cells = PROBLEMS[problem]
    path = written(tmp_path, {"x": cells}, suffix)
    with pytest.raises(ColumnError) as caught:
        inspect(str(path))
    for way in printed(caught.value.remedy):
        works(path, way)


@pytest.mark.parametrize(
    "problem",
    [
        "a word among numbers",
        "infinite",
        "a mark among dates of Parquet",
        "dates of another form, one of which is none",
    ],
)
def test_a_few_odd_cells_can_be_read_as_missing(tmp_path: Path, problem: str):
    suffix, cells = PROBLEMS[problem]
    path = written(tmp_path, {"x": cells}, suffix)
    with pytest.raises(ColumnError) as caught:
        inspect(str(path))
    column = inspect(str(path), printed(caught.value.remedy)[0])["columns"]["x"]
    assert (column["type"], column["missing"]) == ("datetime" if "dates" in problem else "numerical", 1)


@pytest.mark.parametrize(
    "form", ["%b %d %Y", "%B %d, %Y", "%d.%m.%y", "%Y年%m月%d日", "%a, %d %b %Y %H:%M:%S %z", "%d%m%Y"]
)
def test_dates_of_other_forms_are_asked_about_and_no_ids(tmp_path: Path, form: str):
    cells = [d.strftime(form).replace("+0000", "") + "+0000" * form.endswith("z") for d in DAYS.tz_localize("UTC")]
    path = written(tmp_path, {"x": cells}, ".csv")
    with pytest.raises(ColumnError) as caught:
        inspect(str(path))
    assert form in printed(caught.value.remedy)[0][0]
    assert inspect(str(path), printed(caught.value.remedy)[0])["columns"]["x"]["type"] == "datetime"


@pytest.mark.parametrize("content", ["a,b\n" + ",\n" * N, "a b\n" + "".join(f"w{i * i} zz\n" for i in range(N))])
def test_no_remedy_drops_all_columns(tmp_path: Path, content: str):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UserError, match=r"nothing that can be learnt.*data\.table\.delimiter"):
        inspect(str(tmp_path / "t.csv"))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_way_out_of_a_mistake_works(tmp_path: Path, mistake: str):
    said, cells = MISTAKES[mistake]
    path = written(tmp_path, {"x": cells}, ".csv")
    given = [assignment(("data", "table", "columns", "x"), said)]
    with pytest.raises(ColumnError) as caught:
        inspect(str(path), [shlex.split(one)[0] for one in given])
    for way in printed(caught.value.remedy):
        works(path, [shlex.split(one)[0] for one in given] + way)


def test_all_problems_of_a_file_come_at_once_with_lines_to_paste(tmp_path: Path):
    columns = {
        "name": [f"Ann{i} Lee" for i in range(N)],
        "e.mail": [f"a{i * i}@b.c" for i in range(N)],
        "phone": [f"+49 {i * 7919 % 9973} / {i}" for i in range(N)],
        "street: no": WORDS,
        "born": repeated("01/02/2004", "03/04/2005"),
        "empty": [None] * N,
        "age": repeated(30, 40, 50),
    }
    path = written(tmp_path, columns, ".csv")
    with pytest.raises(UserError) as caught:
        inspect(str(path))
    error = str(caught.value)
    assert caught.value.value == ["name", "e.mail", "phone", "street: no", "born", "empty"]
    assert all(rule in error for rule in ("free text", "all missing", "may be meant as"))
    block = caught.value.remedy.partition("in the spec:\n\n")[2].partition("\nor on the command line:\n\n")
    pasted = yaml.safe_load(block[0])
    described = load_table(spec_of(path, **pasted["data"]["table"])).codec.schema.names
    assert described == ["born", "age", "kind"]
    works(path, shlex.split(block[2]))


def test_too_few_training_rows_of_several_columns_come_at_once():
    table = pa.table({"x": [1.0, 2.0, *[None] * 48], "y": [3.0, 4.0, *[None] * 48], "k": [1, 2] * 25})
    from tables import load

    with pytest.raises(UserError, match=r"(?s)x: 2; .*fewer than data\.table\.rare=5.*y: 2; .*x: drop.*y: drop"):
        load(table)


def test_an_error_of_a_column_travels_between_processes():
    error = ColumnError("a.b", 3, "is wrong", "Correct it.", ({"datetime_format": "%d"}, "drop"))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert 'columns."a.b"={datetime_format' in str(error)


def test_more_rows_than_ids_says_what_works(tmp_path: Path):
    from genai_ray.table.spec import TableGenerateSpec

    ids = [f"[{i:02}]" for i in range(60)]
    path = tmp_path / "t.csv"
    pd.DataFrame({"key": ids, "kind": ["a", "b"] * 30}).to_csv(path, index=False)
    with pytest.raises(UserError) as caught:
        load_table(spec_of(path)).codec.check(TableGenerateSpec(samples=2000))
    way = shlex.split(re.split(r", or ask", caught.value.remedy.removeprefix("Give "))[0])
    values = override({"data": {"table": {}}}, way)
    load_table(spec_of(path, **values["data"]["table"])).codec.check(TableGenerateSpec(samples=2000))
    assert np.unique(ids).size == 60
