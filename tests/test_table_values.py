"""No value that no row could have: isolated values, gaps, tails, steps, decimals, dates in digits, the year 9999."""

import datetime as dt
import decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from tables import back, invented, load, load_csv

from genai_ray.table import digits, values
from genai_ray.table.source import TableData

N = 2000
FOR_EVER = dt.datetime(9999, 12, 31, 23, 59, 59, 999999)


def seeded(seed: int = 7) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def kinds() -> np.ndarray:
    return seeded(1).choice(["a", "b"], N)


def column(cells: Any, **spec: Any) -> TableData:
    return load(pa.table({"x": cells, "k": kinds()[: len(cells)]}), **spec)


def many(data: TableData, rows: int = 20_000) -> pa.Table:
    return invented(data, rows)


# --- isolated values and gaps --------------------------------------------------------------------


def marked(values: np.ndarray, *marks: Any) -> np.ndarray:
    """The values with each mark in 12 rows."""
    out, rows = values.copy(), seeded(2).permutation(len(values))
    for i, mark in enumerate(marks):
        out[rows[12 * i : 12 * i + 12]] = mark
    return out


AGES = seeded(3).normal(40, 12, N).clip(18, 90).round()
INCOMES = seeded(4).lognormal(10, 0.6, N).round(2)


@pytest.mark.parametrize("how", ["quantiles", "modes"])
@pytest.mark.parametrize(
    ("usual", "marks"),
    [(AGES, [-999]), (AGES, [-1]), (AGES, [999, 9999]), (INCOMES, [99999999]), (INCOMES, [-1e9, 1e9])],
    ids=str,
)
def test_a_mark_is_a_value_of_its_own(usual: np.ndarray, marks: list[float], how: str):
    data = column(marked(usual, *marks), numbers=how)
    part = data.codec.numeric[0]
    assert {o for o, s in zip(part.offset, part.scale, strict=True) if not s} >= set(marks)
    made = many(data)["x"].to_numpy()
    usual_rows = made[~np.isin(made, marks)]
    assert usual.min() <= usual_rows.min()
    assert usual_rows.max() <= usual.max()
    assert set(marks) <= set(made)
    real, again = data.train["x"].to_numpy(), back(data)["x"].to_numpy()
    for mark in marks:
        assert ((again == mark) == (real == mark)).all()


@pytest.mark.parametrize("how", ["quantiles", "modes"])
def test_a_date_for_ever_is_a_date_of_its_own(how: str):
    days = np.datetime64("2020-01-01") + seeded().integers(0, 1500, N).astype("m8[D]")
    days = marked(days, np.datetime64("9999-12-31"))
    made = many(column(pa.array(days), numbers=how))["x"].to_numpy().astype("M8[Y]").astype(int) + 1970
    assert set(made) <= {2020, 2021, 2022, 2023, 2024, 9999}
    assert 9999 in made


@pytest.mark.parametrize("how", ["quantiles", "modes"])
def test_nothing_lies_in_a_gap_with_a_few_numbers_inside(how: str):
    low, high = seeded(5).normal(0, 1, N // 2), seeded(6).normal(1000, 1, N // 2)
    low[:2] = (400, 600)
    made = many(column(np.concatenate([low, high]), numbers=how))["x"].to_numpy()
    assert ((made < 10) | (made > 990)).all()


def test_what_has_no_gap_has_one_range():
    for usual in (AGES, INCOMES, seeded(8).normal(0, 1, 300), seeded(9).integers(0, 200, 500)):
        assert not column(usual, numbers="quantiles").codec.numeric[0].lows


# --- tails ---------------------------------------------------------------------------------------


def decoded_evenly(data: TableData) -> np.ndarray:
    """The column as a model draws it that knows the share of each code."""
    part = data.codec.numeric[0]
    codes = np.repeat(np.arange(part.size), np.round(np.array(part.shares) * 50_000).astype(int))
    offset, scale = np.array(part.offset)[codes], np.array(part.scale)[codes]
    return offset + scale * seeded(10).uniform(-1, 1, len(codes))


@pytest.mark.parametrize("mirrored", [False, True])
def test_bins_follow_a_long_tail(mirrored: bool):
    real = seeded(11).pareto(1.1, N) * (-1 if mirrored else 1)
    data = column(real, numbers="quantiles")
    part = data.codec.numeric[0]
    kept = np.clip(data.train["x"].to_numpy(), part.low, part.high)
    drawn = decoded_evenly(data)
    assert drawn.mean() == pytest.approx(kept.mean(), rel=0.1)
    quantile = 0.01 if mirrored else 0.99
    assert np.quantile(drawn, quantile) == pytest.approx(np.quantile(kept, quantile), rel=0.2)
    counts = np.bincount(data.codes[:, 0])
    assert counts.min() >= 5
    assert part.size <= 64 + 3


# --- steps and decimals --------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["quantiles", "modes"])
@pytest.mark.parametrize(
    ("cells", "step", "phase"),
    [
        (seeded(12).integers(10, 900, N) * 100, 100, 0),
        (seeded(13).integers(1, 400, N) + 0.99, 1, 0.99),
        (seeded(14).integers(10, 900, N) * 0.05, 0.05, 0),
        (seeded(15).integers(-300, 300, N) * 6 + 4, 6, 4),
    ],
)
def test_numbers_keep_their_step(cells: np.ndarray, step: float, phase: float, how: str):
    cells = np.round(cells, 2)
    data = column(cells, numbers=how)
    made = many(data)["x"].to_numpy()
    left = (made - phase) / step
    assert np.allclose(left, np.round(left), atol=1e-6)
    assert len(np.unique(made)) > 100
    marked_too = many(column(marked(cells, -987654.0), numbers=how))["x"].to_numpy()
    assert -987654.0 in marked_too
    left = (marked_too[marked_too != -987654.0] - phase) / step
    assert np.allclose(left, np.round(left), atol=1e-6)


def test_numbers_without_a_step_have_none():
    assert values.spacing(seeded(16).integers(0, 500, 300).astype(np.float64), 0) == (0, 0)
    # Of hundredths a few have thousandths: that these are even is chance.
    assert values.spacing(np.append(seeded(17).integers(60, 140, 200) / 100, [0.906, 0.954]), 3) == (0, 0)
    assert values.spacing(np.arange(0.0, 20.0, 2.0), 0) == (0, 0)


@pytest.mark.parametrize("scale", [4, 18])
def test_decimals_are_those_of_the_values(scale: int):
    cents = [decimal.Decimal(int(c)).scaleb(-2) for c in seeded().integers(100, 2_000_000, N)]
    data = column(pa.array(cents, pa.decimal128(38, scale)))
    assert data.codec.columns[0].decimals == 2
    for made in (many(data), back(data)):
        assert made.schema.field("x").type == pa.decimal128(38, scale)
        assert max(-int(x.normalize().as_tuple().exponent) for x in made["x"].to_pylist()) <= 2


def test_numbers_that_a_file_writes_as_880_0_stay_whole(tmp_path: Path):
    text = "x,k\n" + "".join(f"{880 + i % 300}.0,{'ab'[i % 2]}\n" for i in range(600))
    data = load_csv(tmp_path / "t.csv", text)
    assert data.codec.columns[0].decimals == 0
    assert (invented(data, 500)["x"].to_numpy() % 1 == 0).all()


# --- dates and times in digits -------------------------------------------------------------------

MOMENTS = pd.date_range("2019-03-01 05:07:09", periods=N, freq="7h13min")


@pytest.mark.parametrize("kind", [pa.int64(), pa.float64()])
@pytest.mark.parametrize(
    ("name", "form"),
    [("date_key", "%Y%m%d"), ("x", "%Y%m%d"), ("x", "%Y%m"), ("x", "%Y%m%d%H%M%S"), ("x", "%H%M%S"), ("t", "%H%M")],
)
def test_dates_in_digits_are_dates(name: str, form: str, kind: pa.DataType):
    cells = pa.array(MOMENTS.strftime(form).astype(np.int64)).cast(kind)
    data = load(pa.table({name: cells, "k": kinds()}))
    column = data.codec.columns[0]
    assert (column.kind, column.digits, column.type) == ("datetime", form, kind)
    made = many(data)[name]
    assert made.type == kind
    width = len(MOMENTS[0].strftime(form))
    texts = [str(int(x)).zfill(width) for x in made.to_pylist()]
    assert not pd.isna(pd.to_datetime(pd.Series(texts), format=form, errors="coerce")).any()
    assert sorted(back(data)[name].to_pylist()) != []
    again = column.cells(column.numbers(cells))
    assert again.equals(cells)


def test_digits_of_csv_are_dates_and_stay_digits(tmp_path: Path):
    text = "day,k\n" + "".join(f"{m:%Y%m%d},{'ab'[i % 2]}\n" for i, m in enumerate(MOMENTS))
    data = load_csv(tmp_path / "t.csv", text)
    assert data.codec.columns[0].digits == "%Y%m%d"
    assert data.codec.schema.field("day").type == pa.int64()
    number = load_csv(tmp_path / "t.csv", text, columns={"day": "numerical"})
    assert number.codec.columns[0].kind == "numerical"


@pytest.mark.parametrize(
    "cells",
    [
        seeded(18).integers(10_000_000, 99_999_999, N),
        seeded(19).integers(0, 60, N),
        seeded(20).integers(1, 24, N) * 10_000,
        np.arange(20240101, 20240132).repeat(20),
        seeded(21).integers(0, 2359, N),
    ],
)
def test_other_numbers_are_no_dates(cells: np.ndarray):
    assert digits.infer("amount", pa.array(cells)) == ""


def test_a_number_of_an_order_is_an_id_though_it_reads_as_a_date():
    orders = np.array([int(f"{d:%Y%m%d}00{i:02}") for d in MOMENTS[::40] for i in range(1, 40)])
    data = load(pa.table({"order_no": orders, "k": np.arange(len(orders)) % 2}))
    assert data.codec.columns[0].kind == "id"
    assert (
        load(pa.table({"date_key": MOMENTS[::40].strftime("%Y%m%d").astype(int)})).codec.columns[0].kind == "datetime"
    )


def test_conditions_on_dates_in_digits():
    data = load(pa.table({"day": np.array(MOMENTS.strftime("%Y%m%d").astype(np.int64)), "k": kinds()}))
    years = data.train["day"].to_numpy() // 10_000
    matches = data.codec.matches(data.train, {"day": {"min": 20200101, "max": 20201231}})
    assert (matches == (years == 2020)).all()
    assert data.codec.requested_codes({"day": 20200229}, "f")
    assert data.codec.matches(data.train, {"day": 20200229}).any()


def test_digits_without_a_date_can_be_marks():
    cells = np.array(MOMENTS.strftime("%Y%m%d").astype(np.int64))
    cells = marked(cells, 99991231)
    made = many(load(pa.table({"valid_to": cells, "k": kinds()})))["valid_to"].to_numpy()
    assert set(made // 10_000) <= {2019, 2020, 2021, 2022, 2023, 2024, 2025, 9999}
    assert (made == 99991231).any()


def test_a_spec_says_the_digits(tmp_path: Path):
    cells = pa.array(MOMENTS.strftime("%Y%m%d").astype(np.int64))
    spec = {"x": {"type": "datetime", "datetime_format": "%Y%m%d", "min": "2019-01-01", "max": "2030-01-01"}}
    data = load(pa.table({"x": cells, "k": kinds()}), columns=spec)
    assert data.codec.columns[0].shown(data.codec.columns[0].low or 0) == "2019-01-01"


# --- the end of time -----------------------------------------------------------------------------


@pytest.mark.parametrize("last", [FOR_EVER, dt.datetime(2999, 12, 31, 23, 59, 59, 999999)])
@pytest.mark.parametrize("how", ["quantiles", "modes"])
def test_the_last_microsecond_comes_back(last: dt.datetime, how: str):
    moments = np.datetime64("2021-03-01T08:00:00") + seeded().integers(0, 10**8, N).astype("m8[s]")
    moments = moments.astype("M8[us]")
    moments[seeded(22).random(N) < 0.4] = np.datetime64(last)
    data = column(pa.array(moments), numbers=how)
    made = back(data)["x"].to_pylist()  # Python has no year 10000
    assert (np.array(made) == last).sum() == (data.train["x"].to_numpy() == np.datetime64(last)).sum()
    assert data.codec.columns[0].described()
    assert set(many(data)["x"].to_numpy().astype("M8[Y]").astype(int) + 1970) <= {2021, 2022, 2023, 2024, last.year}


def test_no_date_is_beyond_what_python_has():
    far = np.array([-1e30, 1e30])
    for kind in (pa.timestamp("us"), pa.timestamp("ms"), pa.timestamp("s"), pa.date32(), pa.date64()):
        first, last = values.from_numbers(far, kind, values.tick_ns(kind)).to_pylist()
        assert (first.year, last.year) == (1, 9999)
