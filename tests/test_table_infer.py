"""Columns get the type that their cells show, and what cannot be learnt is refused by its place."""

import datetime
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tables import load, load_csv, spec_of

from genai_ray.errors import UserError
from genai_ray.table import digits
from genai_ray.table.ids import check_digit
from genai_ray.table.source import describe_file, load_table
from genai_ray.table.spec import ColumnSpec, TableGenerateSpec, TableSpec

N = 60


def csv_of(columns: dict[str, list[Any]], header: bool = True, delimiter: str = ",") -> str:
    lines = [delimiter.join(columns)] if header else []
    lines += [delimiter.join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    return "\n".join(lines) + "\n"


def repeated(*cells: Any) -> list[Any]:
    return [cells[i % len(cells)] for i in range(N)]


#: A column that varies, so that a table of one other column can be learnt.
OTHER = {"other": repeated("a", "b")}


def seen(tmp_path: Path, cells: list[Any], name: str = "x", **table: Any) -> dict[str, Any]:
    path = tmp_path / "t.csv"
    path.write_text(csv_of({name: cells, **OTHER}))
    return describe_file(spec_of(path, **table))["columns"][name]


# --- types of CSV --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "kind", "type_", "why"),
    [
        (repeated(1, -2, "+3"), "numerical", "int64", "whole"),
        (repeated("1.50", ".25", "3."), "numerical", "double", "numbers"),
        (repeated("1e3", "2.5E-1"), "numerical", "double", "numbers"),
        (repeated("1", "2", ""), "numerical", "int64", "whole"),
        (repeated("True", "false"), "boolean", "bool", "true"),
        (repeated("yes", "no"), "categorical", "string", "2 different"),
        (repeated("01234", "00077"), "categorical", "string", "2 different"),
        (repeated("2024-01-31", "2023-12-01"), "datetime", "date32[day]", "dates"),
        (repeated("2024-01-31 10:00", "2024-02-01 11:30"), "datetime", "timestamp[ms]", "dates"),
        (repeated("2024-01-31T10:00:00Z"), "constant", "timestamp[ms, tz=UTC]", "one value"),
        (repeated("31/01/2024", "01/02/2024"), "datetime", "date32[day]", "dates"),
        (repeated("3.2.2024", "30.12.2023"), "datetime", "date32[day]", "dates"),
        (repeated("10:11:12", "23:59:59"), "datetime", "time32[ms]", "dates"),
        (repeated("10:11", "9:59"), "datetime", "time32[ms]", "dates"),
        (repeated("x"), "constant", "string", "one value"),
        (repeated("x", "NA"), "categorical", "string", "1 different"),
        ([f"K{i:04}" for i in range(N)], "id", "string", "pattern"),
        ([1000 + i for i in range(N)], "id", "int64", "one after the other"),
        (repeated("8E3", "2E1", "123"), "categorical", "string", "3 different"),
        (repeated("1e5", "2.5", "1E6"), "numerical", "double", "numbers"),
        ([f"+49{1570000000 + i * 7919}" for i in range(N)], "id", "string", "pattern"),
        (repeated("+1", "+2", "+3"), "numerical", "int64", "whole"),
        (repeated("2024-01-31 10:00:00.1234567", "2024-02-01 11:30:00"), "datetime", "timestamp[ns]", "dates"),
        ([f"2024-01-31 10:00:00.{i:09}" for i in range(N)], "datetime", "timestamp[ns]", "dates"),
        (repeated("1", "2", "3+"), "categorical", "string", "3 different"),
    ],
)
def test_types_are_inferred(tmp_path: Path, cells: list[Any], kind: str, type_: str, why: str):
    column = seen(tmp_path, cells)
    assert (column["type"], column["cells"]) == (kind, type_)
    assert why in column["why"]


def test_whole_numbers_without_repeats_are_ids_if_the_name_says_so(tmp_path: Path):
    cells = [i * i + 10 for i in range(N)]
    assert seen(tmp_path, cells, "customer_id")["type"] == "id"
    assert seen(tmp_path, cells, "customerId")["pattern"] == "[1-9][0-9]{3}"
    assert seen(tmp_path, cells, "humid")["type"] == "numerical"


def test_dates_of_six_digits_are_dates(tmp_path: Path):
    days = [datetime.date(1999, 12, 1) + datetime.timedelta(7 * i) for i in range(N)]
    column = seen(tmp_path, [int(f"{d:%y%m%d}") for d in days])
    assert column["range"] == [str(days[0]), str(days[-1])]
    numbers = pa.array([int(f"{d:%y%m%d}") for d in (*days, datetime.date(1969, 1, 1), datetime.date(2068, 12, 31))])
    assert digits.write(digits.read(numbers, "%y%m%d"), "%y%m%d").tolist() == numbers.to_pylist()
    assert digits.write(np.array([-(10.0**6), 10.0**6]), "%y%m%d").tolist() == [690101, 681231]


@pytest.mark.parametrize("check", ["luhn", "ean"])
def test_whole_numbers_that_all_end_with_a_check_digit_are_ids(tmp_path: Path, check: str):
    digits = [str(40000000000 + i * 7919 % 9973) for i in range(N)]
    column = seen(tmp_path, [d + check_digit(d, check) for d in digits])
    assert column["type"] == "id"
    assert column["pattern"].endswith(f"<{check}>")
    assert seen(tmp_path, [d + "7" for d in digits])["type"] == "numerical"


def test_what_was_seen_is_told_but_no_rare_category(tmp_path: Path):
    column = seen(tmp_path, repeated("a", "b", "a"))
    assert column["most frequent"] == {"a": 40, "b": 20}
    cells = [*repeated("a", "b")[:-1], "secret"]
    column = seen(tmp_path, cells)
    assert column["distinct"] == 3
    assert "secret" not in str(column)
    number = seen(tmp_path, repeated("1.25", "7", ""))
    assert (number["range"], number["decimals"], number["missing"]) == ([1.25, 7], 2, 20)


@pytest.mark.parametrize(
    ("override", "cells", "type_"),
    [
        ("categorical", repeated(1, 2), "int64"),
        ("boolean", repeated("yes", "no"), "bool"),
        ("boolean", repeated("Y", "N", ""), "bool"),
        ({"datetime_format": "%m/%d/%Y"}, repeated("01/02/2024", "03/04/2024"), "date32[day]"),
        ({"datetime_format": "%Y%m%d %H%M"}, repeated("20240131 1000"), "timestamp[ms]"),
        ({"datetime_format": "%d.%m.%y %H:%M:%S.%f"}, repeated("31.1.24 1:2:3.25"), "timestamp[ms]"),
        ("numerical", repeated("007", "008"), "int64"),
        ({"pattern": "[a-z]{2}[0-9]{2}"}, [f"ab{i:02}" for i in range(N)], "string"),
        ("id", list(range(3, N + 3)), "int64"),
    ],
)
def test_a_spec_knows_better(tmp_path: Path, override: Any, cells: list[Any], type_: str):
    column = seen(tmp_path, cells, columns={"x": override})
    assert column["cells"] == type_
    if isinstance(override, str):
        assert column["type"] == override


def test_times_of_day_are_what_parquet_gives_back(tmp_path: Path):
    data = load_csv(tmp_path / "t.csv", csv_of({"x": repeated("10:11:12", "9:59:00"), **OTHER}))
    pq.write_table(data.train, tmp_path / "back.parquet")
    assert pq.read_table(tmp_path / "back.parquet").schema == data.codec.schema
    fine = {"x": {"datetime_format": "%H:%M:%S.%f"}}
    column = seen(tmp_path, repeated("1:2:3.5", "1:2:3.25"), columns=fine)
    assert (column["cells"], column["range"]) == ("time32[ms]", ["01:02:03.250000", "01:02:03.500000"])
    column = seen(tmp_path, repeated("1:2:3.5", "1:2:3.000001"), columns=fine)
    assert column["cells"] == "time64[us]"


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("AB\\", "bad escape"),
        (r"[!-\d]x", "range"),
        (r"\s", "not supported"),
        (r"[\d-z]", "range"),
        ("[0-9]{999999999}", "256 characters"),
    ],
)
def test_patterns_beyond_the_small_language_are_refused(tmp_path: Path, pattern: str, says: str):
    text = csv_of({"x": [f"a{i:02}" for i in range(N)], **OTHER})
    with pytest.raises(UserError, match=f"columns.x.pattern.*{says}"):
        load_csv(tmp_path / "t.csv", text, columns={"x": {"pattern": pattern}})


def test_a_pattern_may_make_longer_ids_than_there_are(tmp_path: Path):
    text = csv_of({"x": [f"a{i:02}" for i in range(N)], **OTHER})
    data = load_csv(tmp_path / "t.csv", text)
    with pytest.raises(
        UserError, match=r"has 100 ids, and 5000 .* Give 'data.table.columns.x.pattern=a<0000\.\.4999>'"
    ):
        data.codec.check(TableGenerateSpec(samples=5000))
    # What the message says can be done.
    wider = load_csv(tmp_path / "t.csv", text, columns={"x": {"pattern": "a<0000..4999>"}})
    wider.codec.check(TableGenerateSpec(samples=5000))


def test_a_column_with_leading_zeros_is_one_of_codes(tmp_path: Path):
    zips = [f"{(i % 80) * 1217 + 1001:05}" for i in range(800)]
    data = load_csv(tmp_path / "t.csv", csv_of({"zip": zips, "k": [i % 2 for i in range(800)]}))
    assert (data.codec.columns[0].kind, data.codec.schema.field("zip").type) == ("categorical", pa.string())
    assert set(data.train["zip"].to_pylist()) == set(zips)


def test_numbers_of_few_values_may_be_codes(tmp_path: Path):
    assert seen(tmp_path, repeated(0, 1, ""))["may be codes"] == "data.table.columns.x=boolean"
    assert seen(tmp_path, repeated(1, 2, 3))["may be codes"] == "data.table.columns.x=categorical"
    many = [100 * i for i in range(N // 2)] * 2
    assert seen(tmp_path, many)["step"] == 100
    assert "may be codes" not in seen(tmp_path, many)


def test_a_column_can_be_left_out(tmp_path: Path):
    text = csv_of({"x": [f"text {i * i}" for i in range(N)], "y": repeated(1, 2), **OTHER})
    data = load_csv(tmp_path / "t.csv", text, columns={"x": "drop"})
    assert data.codec.schema.names == data.train.column_names == ["y", "other"]


# --- how CSV is written --------------------------------------------------------------------------


def test_cells_without_spaces_around_them_and_comments(tmp_path: Path):
    text = "|about this file\n" + "1, a b , ? \n2 ,c,7\n\n" * 30
    data = load_csv(tmp_path / "t.csv", text, names=["x", "y", "z"], comment="|")
    assert sorted(set(data.train["y"].to_pylist())) == ["a b", "c"]
    assert set(data.train["z"].to_pylist()) == {None, 7}
    assert data.train.num_rows + data.holdout.num_rows == 60


def test_fields_parted_by_runs_of_spaces(tmp_path: Path):
    text = " 1   2.5  x  \n3\t4.5 y   \n" * 30
    data = load_csv(tmp_path / "t.txt", text, names=["a", "b", "c"], delimiter="space")
    assert data.train.schema.types == [pa.int64(), pa.float64(), pa.string()]


def test_quotes_tabs_byte_order_mark_and_other_encodings(tmp_path: Path):
    rows = 'one\t"a\nb"\ntwo\t"c ""d"""\n' * 30
    data = load_csv(tmp_path / "t.tsv", b"\xef\xbb\xbf" + ("x\ty\n" + rows).encode(), delimiter="tab")
    assert set(data.train["y"].to_pylist()) == {"a\nb", 'c "d"'}
    latin = csv_of({"ort": repeated("Köln", "Bern"), **OTHER}).encode("latin-1")
    data = load_csv(tmp_path / "l.csv", latin, encoding="latin-1")
    assert set(data.train["ort"].to_pylist()) == {"Köln", "Bern"}


def test_many_files_are_one_table(tmp_path: Path):
    for i, first in enumerate((1, 1.5)):
        text = csv_of({"x": [first + (j % 9) for j in range(N)], **OTHER})
        (tmp_path / f"{i}.csv").write_text(text)
    (tmp_path / "2.csv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / ".hidden.csv").write_text("no")
    (tmp_path / "notes.txt").write_text("no")
    data = load_table(spec_of(tmp_path))
    assert data.train.num_rows + data.holdout.num_rows == 3 * N
    assert data.train.schema.field("x").type == pa.float64()


def test_rows_for_judging_come_from_their_own_files(tmp_path: Path):
    (tmp_path / "train.csv").write_text(csv_of({"x": repeated(1, 2), **OTHER}))
    (tmp_path / "test.csv").write_text(csv_of({"x": repeated(3, 4.5), **OTHER}))
    data = load_table(spec_of(tmp_path / "train.csv", holdout_root=tmp_path / "test.csv"))
    assert set(data.train["x"].to_pylist()) == {1, 2}
    assert set(data.holdout["x"].to_pylist()) == {3, 4.5}
    assert data.train.schema == data.holdout.schema == data.codec.schema


@pytest.mark.s3
def test_a_table_in_s3(s3_uri: str):
    from genai_ray.storage import Store

    store = Store(s3_uri)
    store.put("in/a.csv", csv_of({"x": repeated(1, 2), **OTHER}).encode())
    for uri in (f"{s3_uri}/in/a.csv", f"{s3_uri}/in"):
        assert load_table(spec_of(uri)).train.num_rows == 48
    with pytest.raises(UserError, match="holds none"):
        load_table(spec_of(f"{s3_uri}/nowhere"))


# --- what is refused -----------------------------------------------------------------------------

GOOD = csv_of({"x": repeated(1, 2), **OTHER})


def numbers_with(odd: Any, at: int = 41) -> list[Any]:
    cells: list[Any] = [i * 1.5 for i in range(N)]
    cells[at] = odd
    return cells


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("\n\n", "empty"),
        ("x,y\n", "must have rows"),
        ("x,y\n1,2\n\n3\n", r"t\.csv, row 2 \(line 4\).*has 1 cells where 2"),
        ("x,x\n1,2\n", "2 columns named 'x'"),
        ("f,39\nm,20\nf,31\n", "a first line .*header=true"),
        ("39,7.5\n1,2\n", "first line of numbers"),
        (b"x,y\n1,2\n\xff,2\n", "line 3 is not.*data.table.encoding"),
        (csv_of({"x": repeated(""), **OTHER}), "columns.x.*all missing.*=drop"),
        (
            csv_of({"x": numbers_with("oops"), **OTHER}),
            r"columns.x.*row 42 \(line 43\): oops.*mixes numbers and strings",
        ),
        (csv_of({"x": numbers_with("-inf"), **OTHER}), r"row 42 \(line 43\): -inf.*infinite"),
        (csv_of({"x": [f"note {i % 59} on it" for i in range(N)], **OTHER}), "rare=5"),
        (
            csv_of({"x": [f"note {i % 59} on it" for i in range(N - 5)] + ["z"] * 5, **OTHER}),
            "free text.*drop.*categorical",
        ),
        (csv_of({"x": repeated("01/02/2024", "03/04/2024"), **OTHER}), "%d/%m/%Y or %m/%d/%Y.*datetime_format"),
        (csv_of({"x": repeated("same"), "y": repeated(7)}), "none varies"),
    ],
)
def test_bad_files_are_refused_with_place_and_remedy(tmp_path: Path, text: Any, says: str):
    with pytest.raises(UserError, match=f"(?s){says}") as caught:
        load_csv(tmp_path / "t.csv", text)
    assert caught.value.field.startswith("data")
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("columns", "cells", "says"),
    [
        ({"y": "drop"}, repeated(1, 2), "'y'.*not a column"),
        ({"x": "numerical"}, [*repeated(1, 2)[:-1], "b"], r"row 60 \(line 61\): b.*not a number"),
        (
            {"x": {"datetime_format": "%d/%m/%Y"}},
            [*repeated("1/2/2024")[:-1], "13/13/2024"],
            r"row 60 \(line 61\): 13/13/2024.*%d/%m/%Y",
        ),
        ({"x": "datetime"}, repeated("soon", "late"), "does not read as dates"),
        ({"x": "boolean"}, repeated("yes", "perhaps"), "perhaps.*not true or false"),
        ({"x": "boolean"}, repeated(1, 2), "2.*not true or false"),
        ({"x": "constant"}, repeated(1, 2), "2 different"),
        ({"x": "id"}, repeated("K1", "K2"), r"row 3 \(line 4\): K1.*row 1 \(line 2\)"),
        ({"x": "id"}, [chr(97 + i % 26) * (1 + i // 26) for i in range(N)], "pattern"),
        ({"x": {"pattern": "[0-9]{2}x"}}, [f"{i:02}" for i in range(N)], "does not fit"),
        ({"x": {"pattern": "a+"}}, [f"{i:02}" for i in range(N)], "pattern.*'\\+'"),
        ({"x": {"min": "2024-01-01"}}, repeated(1, 2), "min is of another kind"),
        ({"x": {"min": 2}}, repeated(1, 2), r"row 1 \(line 2\).*breaks x in 2"),
        ({"x": {"max": 5}}, repeated("a", "b"), "categorical and has no max"),
    ],
)
def test_specs_that_do_not_fit_are_refused(tmp_path: Path, columns: Any, cells: Any, says: str):
    with pytest.raises(UserError, match=f"(?s){says}"):
        load_csv(tmp_path / "t.csv", csv_of({"x": cells, **OTHER}), columns=columns)


def test_more_mistakes_of_a_spec(tmp_path: Path):
    # Within a spec these come as UserError.
    with pytest.raises(ValueError, match="min must not be above max"):
        ColumnSpec(min=3, max=2)
    with pytest.raises(ValueError, match="delimiter"):
        TableSpec(delimiter=";;")
    with pytest.raises(ValueError, match="names"):
        TableSpec(names=("a", "a"))
    with pytest.raises(UserError, match="an encoding that Python knows"):
        load_csv(tmp_path / "t.csv", GOOD, encoding="utf99")
    with pytest.raises(UserError, match="has 2 cells where 3 are named"):
        load_csv(tmp_path / "t.csv", GOOD, names=["a", "b", "c"])
    with pytest.raises(UserError, match="also the first line"):
        load_csv(tmp_path / "t.csv", GOOD, names=["x", "other"])
    with pytest.raises(UserError, match="holdout"):
        load_csv(tmp_path / "t.csv", GOOD, holdout=0.001)
    with pytest.raises(UserError, match="file or a folder that exists"):
        load_table(spec_of(tmp_path / "nowhere.csv"))
    with pytest.raises(UserError, match="must be gzip"):
        load_csv(tmp_path / "t.csv.gz", GOOD)
    pq.write_table(pa.table({"x": [1, 2] * 20}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="is for CSV"):
        load_table(spec_of(tmp_path / "t.parquet", names=["x"]))
    with pytest.raises(UserError, match="leave no column"):
        load_csv(tmp_path / "t.csv", GOOD, columns={"x": "drop", "other": "drop"})


def test_files_that_differ_are_refused(tmp_path: Path):
    (tmp_path / "a.csv").write_text(GOOD)
    (tmp_path / "b.csv").write_text(GOOD.replace("other", "more"))
    with pytest.raises(UserError, match=r"b\.csv.*columns of a\.csv; column 'more'"):
        load_table(spec_of(tmp_path))
    (tmp_path / "b.csv").unlink()
    pq.write_table(pa.table({"x": [1]}), tmp_path / "c.parquet")
    with pytest.raises(UserError, match="both CSV and Parquet"):
        load_table(spec_of(tmp_path))


def test_the_row_is_named_in_the_file_that_holds_it(tmp_path: Path):
    (tmp_path / "a.csv").write_text(csv_of({"x": numbers_with(1.5), **OTHER}))
    (tmp_path / "b.csv").write_text(csv_of({"x": numbers_with("hm", 7), **OTHER}))
    with pytest.raises(UserError, match=r"b\.csv, row 8 \(line 9\): hm"):
        load_table(spec_of(tmp_path))


def test_parquet_that_cannot_be_learnt(tmp_path: Path):
    with pytest.raises(UserError, match="list<"):
        load(pa.table({"x": [[1]] * 9, "y": [1, 2, 3] * 3}))
    with pytest.raises(UserError, match="all missing"):
        load(pa.table({"x": pa.nulls(9), "y": [1, 2, 3] * 3}))
    with pytest.raises(UserError, match=r"row 4.*inf.*infinite"):
        load(pa.table({"x": [1.0, 2, 3, float("inf")] * 9}))
    with pytest.raises(UserError, match="so large that it must be a sentinel value"):
        load(pa.table({"x": [1.0, 2, 1.7e308] * 9}))
    days = [str(datetime.date(2020, 1, 1) + datetime.timedelta(i)) for i in range(N)]
    with pytest.raises(UserError, match=r"reads as dates.*=datetime"):
        load(pa.table({"x": days, "y": [1, 2, 3] * 20}))
    with pytest.raises(UserError, match=r"None.*missing in some rows"):
        load(pa.table({"x": [*(f"A{i}" for i in range(N - 1)), None]}), columns={"x": "id"})
    with pytest.raises(UserError, match=r"got 2; .*fewer than data\.table\.rare=5"):
        load(pa.table({"x": [1.0, 2.0, *[None] * 48], "y": [1, 2] * 25}))
    with pytest.raises(UserError, match=r"beyond 2\*\*53"):
        load(pa.table({"x": [2**60 + i % 3 for i in range(30)]}))
    with pytest.raises(UserError, match=r"x.*duration\[s\].*CSV.*number"):
        load(pa.table({"x": pa.array([1, 2] * 20, pa.duration("s")), "y": [1, 2] * 20}))
    (tmp_path / "x.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(UserError, match="readable Parquet"):
        load_table(spec_of(tmp_path))


# --- SDV metadata --------------------------------------------------------------------------------

TEXT = csv_of(
    {
        "key": [f"HID_{i:03}" for i in range(N)],
        "mail": [f"a{i * i}@b.c" for i in range(N)],
        "grade": repeated(1, 2, 3),
        "day": repeated("05 Jan 2024", "06 Feb 2024"),
        "fee": repeated("1.5", "2.25"),
        "free": repeated("0", "1"),
    }
)
COLUMNS = {
    "key": {"sdtype": "id", "regex_format": "HID_[0-9]{3}"},
    "mail": {"sdtype": "email", "pii": True},
    "grade": {"sdtype": "categorical"},
    "day": {"sdtype": "datetime", "datetime_format": "%d %b %Y"},
    "fee": {"sdtype": "numerical", "computer_representation": "Float"},
    "free": {"sdtype": "boolean"},
}
V1 = {"METADATA_SPEC_VERSION": "SINGLE_TABLE_V1", "primary_key": "key", "columns": COLUMNS}
V2 = {"METADATA_SPEC_VERSION": "V1", "tables": {"hotels": {k: V1[k] for k in V1 if k[0] != "M"}}}


def with_metadata(tmp_path: Path, content: Any, **table: Any) -> dict[str, Any]:
    (tmp_path / "t.csv").write_text(TEXT)
    (tmp_path / "meta.json").write_text(json.dumps(content))
    spec = spec_of(tmp_path / "t.csv", metadata=str(tmp_path / "meta.json"), **table)
    return describe_file(spec)["columns"]


@pytest.mark.parametrize("content", [V1, V2], ids=["single", "tables"])
def test_sdv_metadata_say_the_types(tmp_path: Path, content: Any):
    columns = with_metadata(tmp_path, content, columns={"mail": "drop"})
    kinds = {n: c["type"] for n, c in columns.items()}
    assert kinds == {"key": "id", "grade": "categorical", "day": "datetime", "fee": "numerical", "free": "boolean"}
    assert columns["key"]["pattern"] == "HID_[0-9]{3}"


def changed(**columns: Any) -> dict[str, Any]:
    return {**V1, "columns": {**COLUMNS, "mail": {"sdtype": "unknown"}, **columns}}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (V1, "mail: email.*personal data.*=drop"),
        (changed(mail={"sdtype": "unknown", "pii": True}), "mail.*unknown type and personal"),
        (changed(grades={"sdtype": "categorical"}), "grades.*not of the table.*grade"),
        ({"tables": {"a": {"columns": {}}, "b": {"columns": {}}}}, "describe one table"),
        ({"fields": {}}, "must have `columns`"),
        ({**changed(), "primary_key": "nokey"}, "nokey.*is a key"),
        (changed(day={"sdtype": "datetime", "datetime_format": "%Y"}), "does not fit"),
        (changed(grade="numerical"), "grade: numerical.*mapping"),
        (changed(grade={"sdtype": ["numerical"]}), "grade.*mapping"),
        ({**changed(), "primary_key": 5}, "5.*no name of a column"),
        ({**changed(), "alternate_keys": "day"}, "day.*no name of a column"),
    ],
)
def test_metadata_that_do_not_fit(tmp_path: Path, content: Any, says: str):
    with pytest.raises(UserError, match=f"(?s){says}"):
        with_metadata(tmp_path, content, columns={} if "mail" in says else {"mail": "drop"})


def test_a_spec_is_above_metadata(tmp_path: Path):
    override = {"mail": "drop", "grade": "numerical", "fee": {"min": 0}}
    columns = with_metadata(tmp_path, V1, columns=override)
    assert columns["grade"]["type"] == "numerical"
    assert columns["fee"]["type"] == "numerical"


def test_texts_of_parquet_become_what_a_spec_says():
    days = ["2024-01-0" + str(1 + i % 9) for i in range(N)]
    table = pa.table({"x": [str(i % 9) for i in range(N)], "day": days})
    assert load(table).codec.schema == table.schema
    data = load(table, columns={"x": "numerical", "day": "datetime"})
    assert data.codec.schema.types == [pa.int64(), pa.date32()]


# --- types of Parquet ----------------------------------------------------------------------------


def test_types_of_parquet_are_kept():
    rng = np.random.Generator(np.random.Philox(1))
    moments = np.datetime64("2024-01-01T00:00:00") + rng.integers(0, 10**6, N).astype("m8[s]")
    table = pa.table(
        {
            "dictionary": pa.array(repeated("a", "b", None)).dictionary_encode(),
            "moment": pa.array(moments, pa.timestamp("us", "Europe/Paris")),
            "day": pa.array(repeated(datetime.date(2024, 1, 1), datetime.date(2024, 3, 1))),
            "money": pa.array(rng.integers(0, 10**5, N)).cast(pa.decimal128(21, 2)),
            "flag": pa.array(repeated(True, None, False)),
            **{
                str(t): pa.array(rng.integers(0, 100, N)).cast(t)
                for t in (pa.int8(), pa.uint16(), pa.int32(), pa.float32(), pa.float64())
            },
        }
    )
    data = load(table)
    assert data.codec.schema == data.train.schema == table.schema
    kinds = {c.name: c.kind for c in data.codec.columns}
    assert kinds["dictionary"] == "categorical"
    assert kinds["moment"] == kinds["day"] == "datetime"
    assert {k for n, k in kinds.items() if n in ("money", "int8", "float")} == {"numerical"}


def test_texts_of_a_view_are_texts():
    cells = pa.array(repeated("a", "b", None)).cast(pa.string_view())
    data = load(pa.table({"x": cells, "other": repeated(1, 2)}))
    assert data.codec.schema.types == [pa.string(), pa.int64()]


def test_parquet_is_known_by_its_name_in_any_case(tmp_path: Path):
    table = pa.table({"x": repeated("01", "02"), "day": repeated(1.5, 2.5)})
    for name in ("a.PARQUET", "b.parquet"):
        pq.write_table(table, tmp_path / name)
    data = load_table(spec_of(tmp_path))
    assert (data.n + data.holdout.num_rows, data.codec.schema) == (2 * N, table.schema)
    pq.write_table(pa.table({"x": [1.0, 2.0, float("inf")] * 9}), tmp_path / "c.PARQUET")
    with pytest.raises(UserError, match=r"c\.PARQUET, row 3: inf"):
        load_table(spec_of(tmp_path / "c.PARQUET"))
