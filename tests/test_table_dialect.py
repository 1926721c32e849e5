# ruff: noqa: RUF001
"""How files of delimited text are written is found, shown with its evidence, and asked where two readings fit."""

import csv
import re
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import load_csv, spec_of

from genai_ray import modalities
from genai_ray import spec as specs
from genai_ray.errors import UserError
from genai_ray.table import encodings
from genai_ray.table.files import read_files, strings
from genai_ray.table.source import describe_file
from genai_ray.table.spec import TableSpec

ROWS = 40


def text_of(delimiter: str, *, header: bool = True, price: str = "{}.50", note: str = "n{}") -> str:
    lines = [delimiter.join(("gender", "price", "note"))] if header else []
    for i in range(ROWS):
        lines.append(delimiter.join(("fm"[i % 2], price.format(i % 7), note.format(i % 3))))
    return "\n".join(lines) + "\n"


def described(path: Path, content: str | bytes, **table: Any) -> dict[str, Any]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return describe_file(spec_of(path, **table))


def kinds(about: dict[str, Any]) -> dict[str, str]:
    return {name: column["cells"] for name, column in about["columns"].items()}


EXPECTED = {"gender": "string", "price": "double", "note": "string"}


# --- delimiter -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("delimiter", "name"), [(",", "comma"), (";", "semicolon"), ("\t", "tab"), ("|", "pipe")])
def test_the_delimiter_is_found_and_shown(tmp_path: Path, delimiter: str, name: str):
    about = described(tmp_path / "t.csv", text_of(delimiter))
    assert kinds(about) == EXPECTED
    assert about["read"]["delimiter"] == f"{name}: {ROWS + 1} of the first {ROWS + 1} rows have 3 cells"


@pytest.mark.parametrize("delimiter", "~^:\x01\x1f")
def test_delimiters_of_few_files_are_found_where_no_other_divides(tmp_path: Path, delimiter: str):
    about = described(tmp_path / "t.csv", text_of(delimiter))
    assert kinds(about) == EXPECTED
    assert about["read"]["delimiter"].isprintable()


def test_spaces_between_a_delimiter_and_a_quote_are_none_of_a_cell(tmp_path: Path):
    rows = "".join(f'"{"fm"[i % 2]}", {i % 7}.5, "a, b{i % 3}"\n' for i in range(ROWS))
    data = load_csv(tmp_path / "t.csv", "gender, price, note\n" + rows)
    assert data.train.column_names == list(EXPECTED)
    assert set(data.train["note"].to_pylist()) == {"a, b0", "a, b1", "a, b2"}


@pytest.mark.parametrize("title", ["Sales of 2024,,\n", "Sales of 2024,,\n,,\n", "Sales,,\n\nall,,\n"])
def test_a_title_above_the_names_is_a_question(tmp_path: Path, title: str):
    content = title + text_of(",")
    with pytest.raises(UserError, match="names few of its 3 columns") as caught:
        load_csv(tmp_path / "t.csv", content)
    skip = int(re.findall(r"data\.table\.skip=(\d+)", caught.value.remedy)[0])
    assert skip == title.count("\n")
    assert kinds(described(tmp_path / "t.csv", content, skip=skip)) == EXPECTED


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ('{"k": "a", "v": 1}\n{"k": "b", "v": 2}\n', "JSON"),
        ('[\n  {"k": "a"},\n  {"k": "b"}\n]\n', "JSON"),
        ("<!DOCTYPE html>\n<html></html>\n", "HTML or XML"),
        ("@RELATION iris\n\n@ATTRIBUTE a REAL\n@DATA\n1\n2\n", "an ARFF file"),
    ],
)
def test_text_of_other_formats_is_refused_by_name(tmp_path: Path, content: str, kind: str):
    with pytest.raises(UserError, match=rf"t\.csv'; is {kind}, which is not read"):
        described(tmp_path / "t.csv", content)


def test_a_given_delimiter_is_believed(tmp_path: Path):
    about = described(tmp_path / "t.csv", text_of(";"), delimiter="comma")
    assert list(about["columns"]) == ["gender;price;note"]
    assert "delimiter" not in about["read"]


@pytest.mark.parametrize("line", ["sep=;\n", "sep=;\r\n", '"sep=;"\n', "SEP=;\n"])
def test_the_line_of_excel_names_the_delimiter(tmp_path: Path, line: str):
    about = described(tmp_path / "t.csv", line + text_of(";"))
    assert kinds(about) == EXPECTED
    assert about["rows"] == ROWS


def test_lines_before_the_header_are_skipped_when_asked(tmp_path: Path):
    content = "Report of\n\n2024; all\n" + text_of(";")
    with pytest.raises(UserError, match=r"data\.table\.skip=3"):
        load_csv(tmp_path / "t.csv", content)
    data = load_csv(tmp_path / "t.csv", content, skip=3)
    assert data.train.column_names == list(EXPECTED)


def test_what_a_small_file_leaves_open_the_first_decides(tmp_path: Path):
    (tmp_path / "a.csv").write_text(text_of(";"))
    (tmp_path / "b.csv").write_text("gender;price;note\nf;1.5;n1\n")
    (tmp_path / "c.csv").write_text("gender;price;note\ngender;2.5;n2\n")
    about = describe_file(spec_of(tmp_path))
    assert (about["rows"], about["files"]) == (ROWS + 2, 3)


def test_columns_divided_by_runs_of_spaces(tmp_path: Path):
    about = described(tmp_path / "t.txt", "a    b  c\n" + " 1   2.5  x  \n3\t4.5 y   \n" * 30)
    assert kinds(about) == {"a": "int64", "b": "double", "c": "string"}
    assert about["read"]["delimiter"].startswith("space: ")


@pytest.mark.parametrize(
    "content",
    [
        "city\n" + "New York\nRome\n" * 20,
        "at\n" + "2024-01-31 10:00:00\n2024-02-01 11:30:00\n" * 20,
        "full name\n" + "Ada Lovelace\nAlan Turing\n" * 5,
        "a;b\n" + "x\ny\n" * 20,
        "size\n" + "12\n7\n" * 20,
        '"full name"\n' + '"Ada Lovelace"\n"Turing"\n' * 20,
        "say\n" + 'he said "hi" to me\n5" pipe\n' * 20,
    ],
)
def test_one_column_is_one_column(tmp_path: Path, content: str):
    about = described(tmp_path / "t.csv", content)
    assert len(about["columns"]) == 1


def test_delimiters_in_names_and_cells_mislead_nobody(tmp_path: Path):
    rows = "".join(f'"Smith, J; {i % 3}",{i % 9},"line\none|two"\n' for i in range(ROWS))
    about = described(tmp_path / "t.csv", '"name, full",kids,"a;b|c"\n' + rows)
    assert list(about["columns"]) == ["name, full", "kids", "a;b|c"]
    assert about["rows"] == ROWS


def test_decimal_commas_between_semicolons_are_no_delimiters(tmp_path: Path):
    about = described(
        tmp_path / "t.csv", "1,5;2,5\n" * 3 + "".join(f"{i},5;{i % 4},25\n" for i in range(ROWS)), header=False
    )
    assert kinds(about) == {"column_1": "double", "column_2": "double"}
    assert about["read"]["decimal"].startswith("comma: column 'column_1' has ")


def test_two_readings_are_a_question(tmp_path: Path):
    with pytest.raises(UserError, match="may be divided by") as caught:
        described(tmp_path / "t.csv", "a;b,c;d\n" + "x;y,z;w\nu;v,z;q\n" * ROWS)
    answers = answered(caught.value, tmp_path / "t.csv")
    assert sorted(len(about["columns"]) for about in answers) == [2, 3]


def answered(error: UserError, path: Path) -> list[dict[str, Any]]:
    """What a file is after each of the overrides that the remedy of a question names."""
    out = []
    for choice in re.split(r" or ", error.remedy.removeprefix("Say which: ").partition(";")[0].rstrip(".")):
        values = {"name": "x", "data": {"source": "table", "root": str(path)}, "model": {"preset": "tvae"}}
        parsed: Any = modalities.parse(specs.override(values, choice.split(" ")))
        out.append(describe_file(parsed.data))
    assert len(out) > 1
    return out


def test_a_row_of_another_length_is_named(tmp_path: Path):
    lines = text_of(";").splitlines()
    lines[5] += ";more"
    with pytest.raises(UserError, match=r"t\.csv, row 5 \(line 6\).*has 4 cells where 3 are expected.*now semicolon"):
        described(tmp_path / "t.csv", "\n".join(lines))


# --- quotes --------------------------------------------------------------------------------------


def test_quotes_after_a_backslash(tmp_path: Path):
    about = described(tmp_path / "t.csv", "say,n\n" + '"a \\"b\\", c",1\n"d",2\n' * 20)
    assert about["columns"]["say"]["most frequent"] == {'a "b", c': 20, "d": 20}
    assert about["read"]["escape"].startswith("backslash")


def test_a_backslash_that_ends_a_cell_escapes_nothing(tmp_path: Path):
    about = described(tmp_path / "t.csv", "path,say\n" + '"C:\\dir\\","a ""b"""\n"D:\\","c"\n' * 20)
    assert about["columns"]["path"]["most frequent"] == {"C:\\dir\\": 20, "D:\\": 20}
    assert set(about["columns"]["say"]["most frequent"]) == {'a "b"', "c"}


# --- header --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [
        "".join(f"{'fm'[i % 2]},{20 + i % 30},{'NSEW'[i % 4]}\n" for i in range(ROWS)),
        "".join(f"{'fm'[i % 2]},{'NSEW'[i % 4]}\n" for i in range(ROWS)),
        "".join(f"K{i:04},2024-01-{1 + i % 28:02}\n" for i in range(ROWS)),
    ],
    ids=["mixed", "words", "codes"],
)
def test_rows_without_a_header_are_a_question(tmp_path: Path, rows: str):
    with pytest.raises(UserError, match=r"first line.*header=true or data\.table\.header=false") as caught:
        described(tmp_path / "t.csv", rows)
    assert [about["rows"] for about in answered(caught.value, tmp_path / "t.csv")] == [ROWS - 1, ROWS]


@pytest.mark.parametrize("first", ["country,2019,2020,2021", "x,0,1,2", "0,1,2,3", "place,year,a,b"])
def test_names_that_are_numbers_by_design(tmp_path: Path, first: str):
    about = described(tmp_path / "t.csv", first + "\n" + "DE,1.5,2,3\nFR,2.5,3,4\n" * 20)
    assert list(about["columns"]) == first.split(",")


def test_names_may_replace_a_header(tmp_path: Path):
    about = described(tmp_path / "t.csv", text_of(","), names=["a", "b", "c"], header=True)
    assert list(about["columns"]) == ["a", "b", "c"]
    assert about["rows"] == ROWS


def test_a_column_without_a_name_can_be_dropped(tmp_path: Path):
    rows = "".join(f"{i},{'fm'[i % 2]}\n" for i in range(ROWS))
    about = described(tmp_path / "t.csv", ",gender\n" + rows, columns={"Unnamed: 0": "drop"})
    assert list(about["columns"]) == ["gender"]
    assert about["read"]["names"] == "'Unnamed: 0': without a name in the file"


def test_rows_with_a_comma_below_a_header_without_are_no_two_columns(tmp_path: Path):
    text = "name\n" + "".join(f"Smith {i}, A.\n" for i in range(ROWS))
    with pytest.raises(UserError, match=r"has 2 cells where 1 are expected.*data\.table\.delimiter=tab if") as caught:
        described(tmp_path / "t.csv", text)
    assert "data.table.skip=1 if" in caught.value.remedy
    assert described(tmp_path / "t.csv", text, delimiter="tab", columns={"name": "categorical"}, rare=1)["rows"] == ROWS


def test_a_header_that_lacks_a_name(tmp_path: Path):
    rows = "".join(f"row{i}\t{'fm'[i % 2]}\t{i % 5}\n" for i in range(ROWS))
    about = described(tmp_path / "t.tsv", "gender\tn\n" + rows)
    assert list(about["columns"]) == ["Unnamed: 0", "gender", "n"]
    assert (about["rows"], about["columns"]["n"]["range"]) == (ROWS, [0, 4])
    rows = "".join(f'"{i}" "{("New York", "Rome")[i % 2]}" {i % 5}\n' for i in range(ROWS))
    about = described(tmp_path / "t.txt", '"city" "n"\n' + rows)
    assert about["columns"]["city"]["most frequent"] == {"New York": 20, "Rome": 20}
    rows = "".join(f"{'fm'[i % 2]},{i % 5},\n" for i in range(ROWS))
    about = described(tmp_path / "t.csv", "gender,n\n" + rows, columns={"Unnamed: 2": "drop"})
    assert list(about["columns"]) == ["gender", "n"]


# --- cells ---------------------------------------------------------------------------------------


def test_cells_of_any_length(tmp_path: Path):
    rows = "".join(f"{'ab'[i % 2]},{'y' * (3_000_000 if i == 20 else 9)},{i % 5}\n" for i in range(ROWS))
    data = load_csv(tmp_path / "t.csv", "k,payload,v\n" + rows, columns={"payload": "drop"})
    assert data.train.num_rows + data.holdout.num_rows == ROWS
    with pytest.raises(UserError, match=r"row 31 \(line 32\): oops") as caught:
        load_csv(tmp_path / "t.csv", "k,payload,v\n" + odd_at(rows, 30), columns={"payload": "drop"})
    assert len(str(caught.value)) < 500


def odd_at(rows: str, index: int) -> str:
    lines = rows.splitlines(keepends=True)
    lines[index] = lines[index].rpartition(",")[0] + ",oops\n"
    return "".join(lines)


def test_what_means_a_missing_value_is_counted_and_set_by_column(tmp_path: Path):
    rows = "".join(f"{('NA', 'DE')[i % 2]},{('None', 'full', '')[i % 3]},{i % 4}\n" for i in range(ROWS))
    about = described(tmp_path / "t.csv", "country,basement,n\n" + rows)
    assert about["missing"] == {"country": {"NA": 20}, "basement": {"None": 14, "(empty)": 13}}
    about = described(tmp_path / "t.csv", "country,basement,n\n" + rows, columns={"country": {"nulls": []}})
    assert about["columns"]["country"]["most frequent"] == {"NA": 20, "DE": 20}
    assert "country" not in about["missing"]


# --- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["3,50", "1.234,56", "12"], [3.5, 1234.56, 12.0]),
        (["1,234.56", "7.5"], [1234.56, 7.5]),
        (["1,234,567", "950", "1,234"], [1_234_567, 950, 1234]),
        (["1 234,50", "7,25"], [1234.5, 7.25]),
        (["1\u202f234", "950"], [1234, 950]),
        (["1'234.50", "7.25"], [1234.5, 7.25]),
        (["-0,5", "1,5e3"], [-0.5, 1500.0]),
        (["1.234", "2.5"], [1.234, 2.5]),
    ],
)
def test_numbers_as_people_write_them(tmp_path: Path, cells: list[str], expected: list[float]):
    rows = "".join(f"{cells[i % len(cells)]}\t{'ab'[i % 2]}\n" for i in range(60))
    data = load_csv(tmp_path / "t.tsv", "x\tk\n" + rows)
    assert set(data.train["x"].to_pylist()) == set(expected)


def test_what_one_column_leaves_open_another_may_decide(tmp_path: Path):
    def seen(second: str, **table: Any) -> set[Any]:
        rows = "".join(f"{1 + i % 9},{100 + i % 7};{second}\n" for i in range(60))
        data = load_csv(tmp_path / "t.csv", "x;y\n" + rows, **table)
        return set(pa.concat_tables([data.train, data.holdout])["x"].to_pylist())

    assert seen("3,5") == {round(1 + i % 9 + (100 + i % 7) / 1000, 3) for i in range(60)}
    assert seen("3.5") == {1000 * (1 + i % 9) + 100 + i % 7 for i in range(60)}
    with pytest.raises(UserError, match=r"may mean 1100 or 1\.100") as caught:
        seen("3")
    columns = [about["columns"]["x"]["range"] for about in answered(caught.value, tmp_path / "t.csv")]
    assert columns == [[1100, 9105], [1.1, 9.105]]


def test_codes_telephones_and_versions_are_no_numbers(tmp_path: Path):
    rows = "".join(f"0{i % 9},555 {100 + i % 9} {200 + i % 7},1.2.{i % 3}\n" for i in range(60))
    about = described(tmp_path / "t.csv", "code,phone,version\n" + rows)
    assert set(kinds(about).values()) == {"string"}


# --- encodings -----------------------------------------------------------------------------------

SAMPLES = {
    "gb18030": "城市,姓名\n" + "北京,张伟\n上海,王芳\n广州,李娜\n" * 20,
    "big5": "城市,姓名\n" + "臺北,陳怡君\n高雄,林志明\n" * 20,
    "cp932": "都市,氏名\n" + "東京,さとう たろう\n大阪,スズキ花子\n" * 20,
    "euc_jp": "都市,氏名\n" + "東京,さとう たろう\n大阪,スズキ花子\n" * 20,
    "cp949": "도시,이름\n" + "서울,김철수\n부산,이영희\n" * 20,
    "cp1252": "Straße,Preis in €\n" + "Köln,5\nGenève,7\nMálaga,9\n" * 20,
    "utf-16": "Straße,Preis\n" + "Köln,5\nBern,7\n" * 20,
    "utf-16-le": "Straße,Preis\n" + "Köln,5\nBern,7\n" * 20,
    "utf-16-be": "城市,姓名\n" + "北京,张伟\n" * 20,
    "utf-32": "Straße,Preis\n" + "Köln,5\nBern,7\n" * 20,
    "utf-8-sig": "Straße,Preis\n" + "Köln,5\nBern,7\n" * 20,
    "utf-8": "城市,Straße\n" + "北京,Köln\n" * 20,
}


@pytest.mark.parametrize("codec", SAMPLES)
def test_encodings_are_found(codec: str):
    found = encodings.detect(SAMPLES[codec].encode(codec))
    assert found.codec is not None
    assert SAMPLES[codec].encode(codec).decode(found.codec) == SAMPLES[codec]


def test_text_in_gbk_is_read_and_told(tmp_path: Path):
    rows = "".join(f"{('北京', '上海')[i % 2]},{i % 9}\n" for i in range(60))
    about = described(tmp_path / "t.csv", ("城市,数量\n" + rows).encode("gbk"))
    assert about["columns"]["城市"]["most frequent"] == {"北京": 30, "上海": 30}
    assert about["read"]["encoding"].startswith("gb18030: not UTF-8")


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("город,н\n" + "Москва,1\nКазань,2\nОмск,3\n" * 20, "cp1251"),
        ("miasto,n\n" + "Łódź,1\nWrocław,2\nBiałystok,3\n" * 20, "cp1250"),
        ("město,n\n" + "Plzeň,1\nBřeclav,2\nDěčín,3\n" * 20, "cp1250"),
        ("x,n\n" + "а,1\nб,2\n" * 20, "cp1251"),
        ("m,n\n" + "Łódź,1\nKraków,2\nGdańsk,3\n" * 20, "cp1250"),
        ("m,n\n" + "Poznań,1\nKraków,2\n" * 20, "cp1250"),
        ("m,n\n" + "Novák,1\nDvořák,2\n" * 20, "cp1250"),
        ("m,n\n" + "Müller,1\nJosé,2\n" * 20, "mac_roman"),
        ("m,n\n" + "España,1\n" * 20, "mac_roman"),
        ("m,n\n" + "Müller,1\nJörg,2\n" * 20, "cp850"),
        ("город,н\n" + "Москва,1\nКазань,2\n" * 20, "koi8_r"),
        ("m,n\n" + "Αθήνα,1\nΠάτρα,2\n" * 20, "cp1253"),
        ("m,n\n" + "Iğdır,1\nŞişli,2\n" * 20, "cp1254"),
    ],
)
def test_an_encoding_in_doubt_is_a_question(tmp_path: Path, text: str, codec: str):
    with pytest.raises(UserError, match=f"must be UTF-8, and line .*data.table.encoding={codec}"):
        described(tmp_path / "t.csv", text.encode(codec))
    assert "latin" not in str(encodings.detect(text.encode(codec)))


def test_an_encoding_is_proposed_by_a_word_that_it_alone_reads():
    found = encodings.detect(("m,n\n" + "Müller,1\nIğdır,2\n" * 20).encode("cp1254"))
    assert found.options["cp1254"] == "Iğdır"


@pytest.mark.parametrize(
    "text", ["Peña,50 £\nMuñoz,5 m²\n", "L’œil,«là»\nŒuvre,3\n", "Søren,1\nMálaga,2\n", "ÑANDÚ,1\nÉCOLE,2\n", "œuf,1\n"]
)
def test_western_words_are_in_no_doubt(text: str):
    assert encodings.detect((text * 20).encode("cp1252")).codec == "cp1252"


def test_a_zero_byte_here_and_there_is_no_wide_encoding():
    content = "".join(f"a\0,{i}.5\nb,{i}\n" for i in range(200)).encode()
    assert encodings.detect(content).codec == "utf-8"


def test_a_damaged_file_is_not_read_as_another_encoding(tmp_path: Path):
    content = ("stadt,n\n" + "Köln,1\nZürich,2\n" * 20).encode() + b"K\xf6ln,3\n"
    with pytest.raises(UserError, match=r"line 42 is not.*UTF-8 but for a few bytes"):
        described(tmp_path / "t.csv", content)


# --- keys ----------------------------------------------------------------------------------------


def test_separators_have_names_that_need_no_quotes():
    spec = TableSpec(delimiter="pipe", decimal="comma", thousands="point")
    assert (spec.delimiter, spec.decimal, spec.thousands) == ("|", ",", ".")
    assert TableSpec(**yaml.safe_load(yaml.safe_dump(spec.model_dump(mode="json")))) == spec
    with pytest.raises(ValueError, match="must be one of point, comma"):
        TableSpec(decimal="space")
    with pytest.raises(ValueError, match=r"also data\.table\.decimal"):
        TableSpec(decimal="comma", thousands=",")


def test_strings_of_parquet_have_no_dialect(tmp_path: Path):
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": ["1,5", "2,5"] * 20, "k": ["a", "b"] * 20}), tmp_path / "t.parquet")
    about = describe_file(spec_of(tmp_path / "t.parquet"))
    assert about["columns"]["x"]["type"] == "categorical"
    about = describe_file(spec_of(tmp_path / "t.parquet", columns={"x": "numerical"}, decimal="comma"))
    assert about["columns"]["x"]["range"] == [1.5, 2.5]


# --- whatever pandas writes ----------------------------------------------------------------------

WORDS = ["red", "Köln", "New York", "a, b", "x; y", "tab\there", 'say "hi"', "line\nbreak", "", "a|b", "C:\\dir\\"]
COLUMNS = {
    "age": st.integers(0, 99),
    "price (USD)": st.decimals(-9999, 9999, places=2).map(float),
    "first name": st.sampled_from(WORDS),
    "a,b": st.sampled_from(["a", "b"]),
    "x;y": st.dates(date(2000, 1, 1), date(2030, 1, 1)).map(str),
    'q"q': st.booleans(),
    "客户": st.sampled_from(["北京", "上海"]),
}


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(), sep=st.sampled_from(",;\t|"), encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "gb18030"])
)
def test_what_pandas_writes_is_read_or_asked_about(data: st.DataObject, sep: str, encoding: str):
    names = data.draw(st.lists(st.sampled_from(list(COLUMNS)), min_size=2, unique=True))
    rows = data.draw(st.lists(st.tuples(*(COLUMNS[n] for n in names)), min_size=12, max_size=20))
    frame = pd.DataFrame(rows, columns=names)
    decimal = data.draw(st.sampled_from(".,")) if sep != "," else "."
    quoting = data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    text = frame.to_csv(index=False, sep=sep, decimal=decimal, quoting=quoting)
    assert text is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_bytes(text.encode(encoding))
        try:
            read = read_files(TableSpec(), str(path), None)
        except UserError as error:
            if not error.remedy.startswith("Say which: "):
                raise
            return
    assert read.table.column_names == names
    for name in names:
        expected = [None if v == "" else v for v in frame[name].tolist()]
        cells = read.numerals.plain(strings(read.table.column(name)).dictionary_decode()).to_pylist()
        found = [float(c) for c in cells] if isinstance(expected[0], float) else cells
        assert found == [v if isinstance(v, float | None) else str(v) for v in expected]
