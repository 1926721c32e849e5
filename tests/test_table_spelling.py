"""CSV is written as the source was, and what is written is read back by the same rules, whatever is in the cells."""

import datetime
import decimal
import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import load_csv

from genai_ray.provenance import Manifest
from genai_ray.storage import Store
from genai_ray.table import spelling
from genai_ray.table.codec import TableCodec, file_spelling, learnt
from genai_ray.table.sinks import CSV, TableRead, TableRows, retyped
from genai_ray.table.source import TableData
from genai_ray.table.spelling import FileSpelling, Spelling

N = 60


def shipped(folder: Path, table: pa.Table, own: FileSpelling | None, **manifest: Any) -> tuple[bytes, pa.Table]:
    """The bytes of a file of rows, and the rows as they are read back."""
    store = Store(str(folder))
    (record,) = CSV.write(TableRows(0, 0, table, {}, spelling=own), store)
    if manifest:
        about: dict[str, Any] = {
            "fingerprint": "",
            "model": "",
            "files": [],
            "shards": [],
            "columns": {},
            "versions": {},
        }
        store.put("manifest.json", Manifest(rows=0, bytes=0, **about, **manifest).to_json().encode())
    data = store.read(record.path)
    if own is not None and not manifest:
        return data, retyped(spelling.read(data, own), table.schema, own)
    read = CSV.read(record, data, store)
    assert isinstance(read, TableRead)
    return data, retyped(read.table, table.schema, own)


# --- what the writer of Arrow writes -------------------------------------------------------------

EDGES = pa.table(
    {
        "note": pa.array(["", None, "line one\nline two", 'say "hi"', "a,b", " x "]),
        "kind": pa.array(["", None, "a\r\nb", "NA", "null", "ä"]).dictionary_encode(),
        "year": pa.array([2022, None, 2023, 2022, 2022, 2023], pa.int32()).dictionary_encode(),
        "due": pa.array([1, None, 2, 1, 1, 2], pa.date32()).dictionary_encode(),
        "half": pa.array([np.float16(0.1), None, np.float16(-65504), np.float16(6e-8), np.float16(0), np.float16(1)]),
        "single": pa.array([0.1, None, 3.4e38, -1e-40, 0.0, 1.0], pa.float32()),
        "double": pa.array([0.1, None, 1.7e308, 5e-324, 1e22, 2.0]),
        "big": pa.array([2**64 - 1, None, 0, 1, 2**63, 2**53 + 1], pa.uint64()),
        "small": pa.array([-128, None, 127, 0, 1, 2], pa.int8()),
        "fee": pa.array([decimal.Decimal("1.10"), None, decimal.Decimal("-0.01"), *[decimal.Decimal("99.99")] * 3]),
        "till": pa.array([253402300799999999, None, 0, -62135596800000000, 1, 10**15], pa.timestamp("us")),
        "at": pa.array([253402300799, None, 0, 1, 2, 3], pa.timestamp("s")),
        "ns": pa.array([1, None, 10**18, 3, 4, 5], pa.timestamp("ns", "UTC")),
        "day": pa.array([2932896, None, 0, -719162, 1, 2], pa.date32()),
        "milli": pa.array([86_400_000, None, 0, 86_400_000 * 9, 0, 0], pa.date64()),
        "clock": pa.array([86_399_999_999, None, 0, 1, 2, 3], pa.time64("us")),
        "hour": pa.array([86_399, None, 0, 1, 2, 3], pa.time32("s")),
        "ok": pa.array([True, None, False, True, True, False]),
    }
)


@pytest.mark.parametrize("name", EDGES.column_names)
def test_cells_of_every_type_come_back(tmp_path: Path, name: str):
    table = EDGES.select([name])
    for own in (None, FileSpelling(";")):
        assert shipped(tmp_path, table, own)[1].equals(table)


def test_all_types_beside_one_another_come_back(tmp_path: Path):
    for own in (None, FileSpelling("\t", "utf-16", "backslash")):
        assert shipped(tmp_path, EDGES, own)[1].equals(EDGES)


def test_files_of_several_megabytes_with_line_breaks_come_back(tmp_path: Path):
    table = pa.table({"note": ["line one\nline two", "plain", ""] * 100_000, "x": list(range(300_000))})
    assert shipped(tmp_path, table, None)[1].equals(table)


STRINGS = st.text(alphabet=st.sampled_from(list("aé城\n\r\t \"',;|\\0")), max_size=6)
SPELLINGS = st.builds(
    FileSpelling,
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["utf-8", "utf-16"]),
    st.sampled_from(["double", "backslash"]),
)


@settings(max_examples=60, deadline=None)
@given(
    cells=st.lists(st.tuples(st.none() | STRINGS, st.none() | STRINGS), min_size=1, max_size=6),
    own=st.none() | SPELLINGS,
)
def test_whatever_is_in_the_cells_it_comes_back(cells: list[tuple[str | None, str | None]], own: FileSpelling | None):
    first, second = ([*column] for column in zip(*cells, strict=True))
    table = pa.table({"x": pa.array(first, pa.string()), "y": pa.array(second, pa.string())})
    store: Any = _Memory()
    (record,) = CSV.write(TableRows(0, 0, table, {}, spelling=own), store)
    found = spelling.read(store.data, own or FileSpelling())
    assert record.rows == table.num_rows
    assert found.equals(table)


class _Memory:
    data = b""

    def put(self, key: str, data: bytes) -> None:
        self.data = data


# --- as the source has it ------------------------------------------------------------------------


def columns_of(data: TableData) -> dict[str, Spelling | None]:
    return {c.name: c.spelling for c in data.codec.columns}


@pytest.mark.parametrize(
    ("cells", "options", "expected"),
    [
        (["21.06.2020", "01.12.2021"], {}, Spelling(form="%d.%m.%Y")),
        (["1.6.2020", "13.12.2021"], {}, Spelling(form="%-d.%-m.%Y")),
        (["06/21/2020 04:36 AM", "12/01/2021 11:05 PM"], {"datetime_format": "%m/%d/%Y %I:%M %p"}, "as given"),
        (
            ["6/21/2020 04:36", "12/1/2021 11:05"],
            {"datetime_format": "%m/%d/%Y %H:%M"},
            Spelling(form="%-m/%-d/%Y %H:%M"),
        ),
        (["21-Jun-2020", "01-Dec-2021"], {}, Spelling(form="%d-%b-%Y")),
        (["2020-06-21T04:36:00Z", "2021-12-01T23:05:10Z"], {}, Spelling(form="%Y-%m-%dT%H:%M:%SZ")),
        (["2020-06-21 04:36:00.250", "2021-12-01 23:05:10.000"], {}, None),
        (["2020-06-21 04:36", "2021-12-01 23:05"], {}, Spelling(form="%Y-%m-%d %H:%M")),
        (["2020-06-21", "2021-12-01"], {}, None),
        (["4:36", "11:05"], {}, Spelling(form="%-H:%M")),
        (["04:36 AM", "11:05 PM"], {}, Spelling(form="%I:%M %p")),
        (["21.06.2020 04:36", "01.12.2021 11:05"], {}, Spelling(form="%d.%m.%Y %H:%M")),
        (["6/21/2020 4:36:10 PM", "12/1/2021 11:05:00 AM"], {}, Spelling(form="%-m/%-d/%Y %-I:%M:%S %p")),
        (["20200621", "20211201"], {"datetime_format": "%Y%m%d"}, Spelling(form="%Y%m%d")),
        (["True", "False"], {}, Spelling(words=("True", "False"))),
        (["true", "false"], {}, None),
        (["yes", "no"], {"type": "boolean"}, Spelling(words=("yes", "no"))),
        (["J", "N"], {"type": "boolean"}, Spelling(words=("J", "N"))),
        (["1", "0"], {"type": "boolean"}, Spelling(words=("1", "0"))),
        (["94.90", "158.55"], {}, Spelling(decimals=2)),
        (["94.900", "158.550"], {"decimals": 2}, Spelling(decimals=2)),
        (["94,90", "1.158,55"], {}, Spelling(decimal=",", thousands=".", decimals=2)),
        (["94,9", "158"], {}, Spelling(decimal=",")),
        (["94.9", "158"], {}, None),
        (["94.5", "158.0"], {}, Spelling(decimals=1)),
        (["94.25", "158.0"], {}, Spelling(whole=True)),
        (["1,234,567", "950"], {}, Spelling(thousands=",")),
        (["7", "12"], {}, None),
        (["$1,234.50", "-$9.90"], {"type": "numerical"}, Spelling(prefix="$", thousands=",", decimals=2)),
        (["83,41 €", "-0,50 €"], {"type": "numerical"}, Spelling(suffix=" €", decimal=",", decimals=2)),
        (["7%", "12%"], {"type": "numerical"}, Spelling(suffix="%")),
    ],
)
def test_columns_are_spelled_as_in_the_source(tmp_path: Path, cells: list[str], options: dict[str, Any], expected: Any):
    rows = "".join(f"{cells[i % 2]}\t{'ab'[i % 3 > 0]}\n" for i in range(N))
    data = load_csv(tmp_path / "t.tsv", "x\tk\n" + rows, columns={"x": options} if options else {})
    style = Spelling(form=options["datetime_format"]) if expected == "as given" else expected
    assert columns_of(data) == {"x": style, "k": None}
    column = data.train["x"]
    strings = spelling.spelled(column, style)
    if style is not None and "decimals" not in options:
        assert set(strings.to_pylist()) == set(cells)
    assert spelling.unspelled(strings, column.type, style).equals(column.combine_chunks())


def test_a_file_is_written_as_the_source_was(tmp_path: Path):
    ort = ("Köln", "Genève")
    source = "ort;am;betrag;ok\n" + "".join(
        f"{ort[i % 2]};{1 + i % 28:02}.06.2020;{(i % 3) or ''}{1 + i % 9},{i % 7}0;{('Ja', 'Nein')[i % 2]}\n"
        for i in range(N)
    )
    data = load_csv(tmp_path / "t.csv", source.encode("cp1252"), columns={"ok": "boolean"})
    codec = TableCodec.from_json(data.codec.to_json())
    assert codec.csv == {"delimiter": ";", "encoding": "cp1252", "escape": "double"}
    table = pa.concat_tables([data.train, data.holdout])
    manifest = {"fields": {}, "card": {"codec": codec.to_json()}}
    content, again = shipped(tmp_path / "out", table, file_spelling(codec), **manifest)
    assert sorted(content.decode("cp1252").splitlines()) == sorted(source.splitlines())
    assert again.equals(table.combine_chunks())
    plain = shipped(tmp_path / "iso", table, None, fields={"generate.spelling": "iso"}, card=manifest["card"])
    assert plain[0].startswith(b'"ort","am","betrag","ok"\n')
    assert plain[1].equals(table.combine_chunks())


@pytest.mark.parametrize(
    ("style", "kind"), [(Spelling(form="%d.%m.%Y"), pa.date32()), (Spelling(words=("ja", "nein")), pa.bool_())]
)
def test_a_cell_of_another_spelling_is_an_error(style: Spelling, kind: pa.DataType):
    with pytest.raises(pa.ArrowInvalid, match="is not spelled as"):
        spelling.unspelled(pa.array(["soon", None]), kind, style)
    assert spelling.unspelled(pa.array([None, None], pa.string()), kind, style).null_count == 2


def test_missing_values_are_written_as_in_the_source(tmp_path: Path):
    rows = "".join(
        f"{('NA', 'DE', 'FR', '')[i % 4 if i % 5 else 0]},{('?', '1.50', '2.50')[i % 3]}\n" for i in range(N)
    )
    data = load_csv(tmp_path / "t.csv", "country,x\n" + rows)
    assert columns_of(data) == {"country": Spelling(null="NA"), "x": Spelling(decimals=2, null="?")}
    card = {"codec": data.codec.to_json()}
    content, again = shipped(tmp_path / "out", data.train, file_spelling(data.codec), fields={}, card=card)
    assert set(content.decode().split()) <= {
        "country,x",
        *(f"{c},{x}" for c in ("NA", "DE", "FR") for x in ("?", "1.50", "2.50")),
    }
    assert again.equals(data.train.combine_chunks())


def test_a_loader_of_the_source_reads_what_is_written(tmp_path: Path):
    frame = pd.DataFrame(
        {
            "sent": [(datetime.date(2020, 1, 1) + datetime.timedelta(i)).strftime("%d.%m.%Y") for i in range(N)],
            "ok": [i % 3 == 0 for i in range(N)],
            "price": [f"{i % 9},50" for i in range(N)],
        }
    )
    text = frame.to_csv(index=False, sep=";")
    assert text is not None
    data = load_csv(tmp_path / "t.csv", text)
    card = {"codec": data.codec.to_json()}
    content, _ = shipped(tmp_path / "out", data.train, file_spelling(data.codec), fields={}, card=card)
    options: dict[str, Any] = {"sep": ";", "decimal": ","}
    loaded = pd.read_csv(io.BytesIO(content), **options)
    assert loaded.dtypes.to_dict() == pd.read_csv(io.StringIO(text), **options).dtypes.to_dict()
    assert set(loaded.sent) <= set(frame.sent)


def test_spelling_changes_nothing_that_is_learnt(tmp_path: Path):
    iso = "".join(f"2020-06-{1 + i % 28:02},{i % 9},{('true', 'false')[i % 2]}\n" for i in range(N))
    own = "".join(f"{1 + i % 28:02}.06.2020;{i % 9};{('True', 'False')[i % 2]}\n" for i in range(N))
    first = load_csv(tmp_path / "a.csv", "day,n,ok\n" + iso)
    second = load_csv(tmp_path / "b.csv", "day;n;ok\n" + own)
    assert first.digest == second.digest
    assert file_spelling(first.codec) is None
    assert "spelling" not in str(first.codec.to_json())
    assert file_spelling(second.codec) is not None
    assert asdict(learnt(second.codec)) == asdict(first.codec)


@pytest.mark.parametrize("form", ["${:,.2f}", "{:.1f}%", "{} %", "€ {:.2f}", "-{:.2f}€", "USD {:,.2f}", "{} EUR"])
def test_signs_of_currencies_and_percent_stand_where_they_stood(tmp_path: Path, form: str):
    cells = [form.format(i * 37 + 1) for i in range(2 * N)]
    data = load_csv(tmp_path / "t.csv", "x;k\n" + "".join(f"{c};{'ab'[i % 2]}\n" for i, c in enumerate(cells)))
    own = file_spelling(data.codec)
    assert own is not None
    assert pa.types.is_integer(data.train["x"].type) or pa.types.is_floating(data.train["x"].type)
    strings = spelling.spelled(data.train["x"], own.columns["x"])
    assert set(strings.to_pylist()) <= set(cells)
    assert spelling.unspelled(strings, data.train["x"].type, own.columns["x"]).equals(data.train["x"].combine_chunks())


def test_few_prices_are_categories_as_they_stand(tmp_path: Path):
    rows = "".join(f"{('$1,234', '$5')[i % 2]};{i % 3}\n" for i in range(N))
    data = load_csv(tmp_path / "t.csv", "x;k\n" + rows)
    assert set(data.train["x"].to_pylist()) == {"$1,234", "$5"}
