"""Every generated row keeps the rules, whatever the model says; impossible rules are refused."""

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import back, invented, load, load_csv

from genai_ray.errors import UserError
from genai_ray.table.codec import TableCodec
from genai_ray.table.constraints import Formula, rules_of
from genai_ray.table.spec import Constraint


def seeded(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def kept(table: pa.Table, **spec: Any) -> tuple[Any, pa.Table]:
    """What is loaded of a table, and rows of a model that knows nothing, all of which are valid."""
    data = load(table, **spec)
    made = invented(data, 1000)
    assert made.schema == table.schema
    assert data.codec.valid(made).all()
    assert data.codec.valid(data.train).mean() > 0.95
    return data, made


# --- less ----------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(
    kinds=st.tuples(*[st.sampled_from([pa.int16(), pa.int64(), pa.float32(), pa.float64()])] * 2),
    strict=st.booleans(),
    missing=st.booleans(),
    seed=st.integers(0, 99),
)
def test_one_number_is_not_above_another(kinds: Any, strict: bool, missing: bool, seed: int):
    rng = seeded(seed)
    low = rng.integers(-50, 300, 200)
    high = low + rng.integers(strict, 9, 200) * rng.integers(1, 30, 200)
    arrays = [
        pa.array(v, mask=(rng.random(200) < 0.2) & missing).cast(k) for v, k in zip((low, high), kinds, strict=True)
    ]
    table = pa.table(dict(zip(("low", "high"), arrays, strict=True)))
    constraint = {"less": ["low", "high"], "strict": strict}
    data = load(table, constraints=[constraint])
    made = invented(data, 1000)
    least, most = (values_of(made[n]) for n in ("low", "high"))
    valid = data.codec.valid(made)
    broken = (least >= most) if strict else (least > most)
    assert (valid == ~broken).all()
    # What cannot be promised is a low number above all that the high column may have.
    top = data.codec.columns[1].high
    assert (least[broken] >= top).all()
    if missing:
        assert np.isnan(least).any()
        assert np.isnan(most).any()
    # The distance is encoded, not lost.
    real, again = values_of(data.train["high"]), values_of(back(data)["high"])
    both = ~np.isnan(real)
    assert (np.isnan(again) == np.isnan(real)).all()
    assert np.median(np.abs(real - again)[both]) <= 1


def values_of(column: Any) -> np.ndarray:
    return column.cast(pa.float64()).to_numpy().astype(np.float64)


def test_dates_in_a_row_stay_in_order():
    rng = seeded(1)
    day = np.datetime64("2024-01-01") + rng.integers(0, 300, 300).astype("m8[D]")
    paid = day.astype("M8[s]") + rng.integers(0, 10**6, 300).astype("m8[s]")
    sent = np.datetime64("2024-01-01") + ((paid - day).astype("m8[D]") + (day - day.min()))
    table = pa.table(
        {
            "sent": pa.array(sent + np.timedelta64(3, "D")),
            "ordered": pa.array(day),
            "paid": pa.array(paid.astype("M8[ms]"), mask=rng.random(300) < 0.1),
        }
    )
    rules = [{"less": ["paid", "sent"]}, {"less": ["ordered", "paid"]}, {"less": ["ordered", "sent"]}]
    data = load(table, constraints=rules)
    made = invented(data, 2000)
    valid = data.codec.valid(made)
    assert made.schema == table.schema
    made = made.filter(pa.array(valid))
    ordered, paid, sent = (made[n].to_numpy().astype("M8[s]") for n in ("ordered", "paid", "sent"))
    assert len(made) > 1000
    assert not (ordered > paid).any()
    assert not (paid > sent).any()
    assert not (ordered > sent).any()
    again = back(data)
    first = data.codec.parts[1]
    real, got = (t["ordered"].cast(pa.int32()).to_numpy() for t in (data.train, again))
    assert np.array_equal(np.clip(real, first.low, first.high), got)
    late = np.abs(again["sent"].to_numpy() - data.train["sent"].to_numpy())
    assert np.median(late) <= np.timedelta64(1, "D")


# --- together ------------------------------------------------------------------------------------


def test_only_combinations_that_were_seen():
    rng = seeded(2)
    cities = {"Oslo": "NO", "Bergen": "NO", "Rome": "IT", None: "?"}
    names = [list(cities)[i] for i in rng.integers(0, 4, 400)]
    names[:3], zones = ["Atlantis"] * 3, rng.integers(0, 2, 400)
    table = pa.table(
        {
            "zone": pa.array(zones + np.array([n == "Rome" for n in names])),
            "city": pa.array(names).dictionary_encode(),
            "pay": rng.normal(0, 1, 400),
            "country": pa.array([cities.get(n, "XX") for n in names]),
        }
    )
    group = ["city", "country", "zone"]
    data, made = kept(table, constraints=[{"together": group}])
    assert [p.name for p in data.codec.parts] == ["city+country+zone", "pay"]
    seen = set(zip(*(data.train[n].to_pylist() for n in group), strict=True))
    there = set(zip(*(made[n].to_pylist() for n in group), strict=True))
    assert there <= seen
    assert len(there) == 8
    assert "Atlantis" not in str(data.codec.to_json())
    common = pa.array(~np.isin(data.train["city"].to_pylist(), ["Atlantis"]))
    for name in group:
        found = back(data)[name].filter(common).to_pylist()
        assert found == data.train[name].filter(common).to_pylist()


def test_a_constant_may_be_kept_together_with_others():
    table = pa.table(
        {
            "k": ["same"] * 80,
            "a": ["x", "x", "y", "z"] * 20,
            "b": [1, 2, 2, 3] * 20,
            "n": [i % 40 / 2 for i in range(80)],
            "m": [7] * 80,
        }
    )
    rules = [{"together": ["k", "a", "b"]}, {"together": ["m", "n"]}]
    data, made = kept(table, constraints=rules)
    # Of a constant and one other nothing is left to keep together.
    assert [p.name for p in data.codec.parts] == ["a+b", "n"]
    assert set(made["k"].to_pylist()) == {"same"}
    assert len(set(zip(made["a"].to_pylist(), made["b"].to_pylist(), strict=True))) == 4
    assert data.codec.requested_codes({"k": "same", "a": "z"}, "f").keys() == {0}


def test_conditions_on_columns_kept_together():
    table = pa.table({"a": ["x", "x", "y", "z"] * 20, "b": [1, 2, 2, 3] * 20})
    data = load(table, constraints=[{"together": ["a", "b"]}])
    codec = data.codec
    assert codec.requested_codes({"a": "x"}, "f") == {}
    assert set(codec.requested_codes({"a": "y"}, "f")) == {0}
    for where in ({"a": "x", "b": 2}, {"b": 1}, {"a": "z"}):
        code = codec.requested_codes(where, "f")[0]
        assert (codec.matches(data.train, where) == (data.codes[:, 0] == code)).all()
    with pytest.raises(UserError, match="combination"):
        codec.requested_codes({"a": "y", "b": 1}, "f")


# --- formula -------------------------------------------------------------------------------------


def test_a_computed_column_is_the_formula():
    rng = seeded(3)
    net = np.round(rng.gamma(2, 100, 300), 2)
    tax = np.round(net * rng.choice([0.07, 0.19], 300), 2)
    table = pa.table(
        {
            "total": pa.array(np.round((net + tax) * 2 - 1.5, 2), mask=rng.random(300) < 0.1),
            "net sum": net,
            "tax": pa.array(tax, mask=rng.random(300) < 0.1),
            "half": pa.array(np.round(((net + tax) * 2 - 1.5) / -4, 3)).cast(pa.float32()),
        }
    )
    rules = [{"formula": "half = -total / 4"}, {"formula": "total = (`net sum` + tax) * 2 - 1.5"}]
    data, made = kept(table, constraints=rules)
    assert [p.name for p in data.codec.parts] == ["net sum", "tax"]
    net, tax, total = (made[n].to_numpy() for n in ("net sum", "tax", "total"))
    expected = np.round((net + tax) * 2 - 1.5, 2)
    assert np.array_equal(total, expected, equal_nan=True)
    assert np.isnan(total).any()
    broken = made.set_column(0, "total", pa.array(total + 0.02))
    assert (data.codec.valid(broken) == np.isnan(total)).all()


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "= b",
        "a = b ** 2",
        "a = f(b)",
        "a = b.c",
        "a = b if c else b",
        "a = 'b'",
        "a = True",
        "a = b and c",
        "a = [b]",
        "a = b +",
        "a = b; c",
        "a = __import__('os')",
        "a = b // c",
    ],
)
def test_only_arithmetic_is_computed(text: str):
    with pytest.raises(UserError, match=r"data\.table\.constraints"):
        rules_of([Constraint(formula=text)], ["a", "b", "c"])


def test_a_formula_without_a_value_is_missing():
    formula = Formula("a = b / c")
    numbers = {"b": np.array([1.0, 1, np.nan]), "c": np.array([2.0, 0, 1])}
    found = formula.compute(numbers.__getitem__, 3)
    assert np.array_equal(found, [0.5, np.nan, np.nan], equal_nan=True)


# --- unique and ranges ---------------------------------------------------------------------------


def test_a_unique_column_is_an_id():
    table = pa.table(
        {
            "code": [f"{'ABC'[i % 3]}{i:03}" for i in range(90)],
            "number": pa.array([1000 + 7 * i for i in range(90)], pa.int32()),
            "x": [1, 2, 3] * 30,
        }
    )
    rules = [{"unique": "code"}, {"unique": "number"}]
    data, made = kept(table, constraints=rules)
    for name in ("code", "number"):
        assert len(set(made[name].to_pylist())) == 1000
    twice = pa.concat_tables([made, made.slice(0, 3)])
    assert (~data.codec.valid(twice)).sum() == 3
    assert data.codec.valid(twice, unique=False).all()


def test_a_range_holds_in_every_row():
    table = pa.table({"x": seeded(4).normal(0, 1, 300).clip(-2, 2), "y": ["a", "b"] * 150})
    data, made = kept(table, columns={"x": {"min": -2, "max": 2}})
    assert np.abs(made["x"].to_numpy()).max() <= 2
    # float32 has no 0.1, and what is clipped to the nearest is still inside.
    table = pa.table({"x": pa.array(seeded(4).uniform(-0.1, 0.1, 300), pa.float32())})
    kept(table, columns={"x": {"min": -0.1, "max": 0.1}})
    outside = made.set_column(0, "x", pa.array(np.full(1000, 2.1)))
    assert not data.codec.valid(outside).any()


# --- what cannot be ------------------------------------------------------------------------------

NAMES = ["a", "b", "c", "d", "key", "word"]


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ([{"less": ["a", "b"]}, {"less": ["b", "c"]}, {"less": ["c", "a"]}], "cycle"),
        ([{"less": ["a", "a"]}], "cycle"),
        ([{"formula": "a = b + 1"}, {"formula": "b = a - 1"}], "cycle"),
        ([{"formula": "a = a + 1"}], "cycle"),
        ([{"formula": "a = b"}, {"formula": "a = c"}], "two formulas"),
        ([{"formula": "a = b"}, {"less": ["a", "c"]}], "formula and compared"),
        ([{"formula": "a = b"}, {"together": ["a", "c"]}], "formula and kept together"),
        ([{"formula": "a = b"}, {"unique": "a"}], "formula and unique"),
        ([{"together": ["a", "b"]}, {"together": ["b", "c"]}], "two sets"),
        ([{"together": ["a"]}], "two or more"),
        ([{"together": ["a", "a"]}], "two or more"),
        ([{"unique": "a"}, {"together": ["a", "b"]}], "unique and kept together"),
        ([{"unique": "a"}, {"less": ["a", "b"]}], "unique and compared"),
        ([{"less": ["a", "bb"]}], "'bb'.*Did you mean 'b'"),
        ([{"formula": "a = b-costs"}], "'costs'.*not a column"),
        ([{"unique": "zz"}], "'zz'"),
    ],
)
def test_contradictions_are_refused(rules: list[Any], says: str):
    with pytest.raises(UserError, match=f"(?s){says}"):
        rules_of([Constraint(**r) for r in rules], NAMES)


N = 60
GOOD = {
    "a": list(range(1, 11)) * 6,
    "b": list(range(5, 15)) * 6,
    "c": [2 * i for i in range(1, 11)] * 6,
    "word": ["x", "y"] * 30,
    "day": [datetime.date(2024, 1, 1 + i % 9) for i in range(N)],
}


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"less": ["b", "a"]}, r"row 1 \(line 2\): .*'b': 5.*breaks b <= a, as 60 of 60 rows do"),
        ({"less": ["a", "c"], "strict": True}, None),
        ({"formula": "c = a * 2"}, None),
        ({"formula": "c = a * 3"}, r"row 1 \(line 2\): .*'c': 2.*breaks c = a \* 3"),
        ({"unique": "a"}, r"row 11 \(line 12\).*row 1 \(line 2\)"),
        ({"less": ["a", "word"]}, "word.*categorical and cannot be in less"),
        ({"less": ["a", "day"]}, "day.*datetime and cannot be in less beside a"),
        ({"formula": "a = word + 1"}, "word.*categorical"),
    ],
)
def test_data_that_break_a_rule_are_named(tmp_path: Path, rule: Any, says: str | None):
    lines = [",".join(GOOD), *(",".join(map(str, row)) for row in zip(*GOOD.values(), strict=True))]
    text = "\n".join(lines)
    if says is None:
        assert load_csv(tmp_path / "t.csv", text, constraints=[rule]).n == 48
        return
    with pytest.raises(UserError, match=f"(?s){says}"):
        load_csv(tmp_path / "t.csv", text, constraints=[rule])


def test_only_cells_of_the_rule_are_told(tmp_path: Path):
    # `e` and `price` are in the text of the rule, but are none of its columns.
    table = pa.table(
        {
            "price2": [2.0] * 40 + [1.0],
            "base": [1.0] * 41,
            "e": ["secret", "x"] * 20 + ["secret"],
            "price": [5, 6] * 20 + [7],
        }
    )
    for rule in ({"formula": "price2 = base * 2"}, {"less": ["base", "price2"], "strict": True}):
        with pytest.raises(UserError, match="row 41") as caught:
            load(table, constraints=[rule])
        assert "'base': 1.0" in str(caught.value)
        assert "secret" not in str(caught.value)
        assert "'price'" not in str(caught.value)


@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_computed_has_no_negative_zero(sign: int):
    # Numbers without decimals to be rounded to.
    net = np.where(np.arange(100) % 4, seeded(5).normal(0, 1, 100), 0.0)
    table = pa.table({"net": net, "off": net * -sign + 0.0, "o": ["a", "b"] * 50})
    data = load(table, constraints=[{"formula": f"off = -{sign} * net"}])
    made = invented(data, 200)
    assert (made["off"].to_numpy() == 0).any()
    assert not (np.signbit(made["off"].to_numpy()) & (made["off"].to_numpy() == 0)).any()


def test_the_least_distance_is_no_single_row():
    rng = seeded(9)
    low = rng.normal(0, 1, 1600)
    distance = np.concatenate([np.zeros(900), [123.45678], rng.uniform(200, 400, 699)])
    table = pa.table({"low": low, "high": low + distance, "o": ["a", "b"] * 800})
    for how in ("modes", "quantiles"):
        data = load(table, constraints=[{"less": ["low", "high"]}], numbers=how, holdout=1 / 1600)
        part = next(p for p in data.codec.parts if p.name == "high")
        ends = [o + s * t for o, s in zip(part.offset, part.scale, strict=True) for t in (-1, 0, 1)]
        assert not any(abs(e - 123.45678) < 0.01 for e in ends)


# --- days and times ------------------------------------------------------------------------------


def day_and_time(strict: bool, swapped: bool, kind: pa.DataType) -> pa.Table:
    """A time of day, and a date of the same day or up to five days after it (before it, if swapped)."""
    rng = np.random.Generator(np.random.Philox(5))
    day = rng.integers(19_000, 19_900, 800)
    clock = (day * 86_400 + rng.integers(0, 86_400, 800)).astype("M8[s]").astype("M8[ms]")
    away = rng.choice([1, 2] if strict else [0, 0, 1, 5], 800) * (-1 if swapped else 1)
    days = pa.array((day + away).astype(np.int32), pa.date32()).cast(kind)
    return pa.table({"time": pa.array(clock), "day": days, "k": rng.choice(["a", "b"], 800)})


@pytest.mark.parametrize("kind", [pa.date32(), pa.timestamp("us")])
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_a_date_is_its_whole_day(strict: bool, swapped: bool, kind: pa.DataType):
    columns = ["day", "time"] if swapped else ["time", "day"]
    table = day_and_time(strict, swapped, kind)
    data = load(table, constraints=[{"less": columns, "strict": strict}], numbers="quantiles")
    for made in (back(data), invented(data, 2000)):
        made = made.filter(pa.array(data.codec.valid(made)))
        assert made.num_rows > 500
        days = [made[n].to_numpy().astype("M8[D]").astype(int) for n in columns]
        assert (days[0] < days[1]).all() if strict else (days[0] <= days[1]).all()
    gaps = [
        np.diff([t[n].to_numpy().astype("M8[D]").astype(int) for n in columns], axis=0)
        for t in (data.train, back(data))
    ]
    assert np.mean(gaps[1]) == pytest.approx(np.mean(gaps[0]), abs=0.15)
    if not strict:
        with pytest.raises(UserError, match="breaks"):
            load(table, constraints=[{"less": columns, "strict": True}])


@pytest.mark.parametrize("how", ["quantiles", "modes"])
def test_a_date_for_ever_stays_one_after_another_date(how: str):
    rng = np.random.Generator(np.random.Philox(8))
    begin = np.datetime64("2020-01-01") + rng.integers(0, 1000, 800).astype("m8[D]")
    end = np.where(
        rng.random(800) < 0.3, np.datetime64("9999-12-31"), begin + rng.integers(0, 300, 800).astype("m8[D]")
    )
    table = pa.table({"begin": pa.array(begin), "end": pa.array(end), "k": rng.choice(["a", "b"], 800)})
    data = load(table, constraints=[{"less": ["begin", "end"]}], numbers=how)
    assert TableCodec.from_json(data.codec.to_json()) == data.codec
    for made in (back(data), invented(data, 3000)):
        made = made.filter(pa.array(data.codec.valid(made)))
        assert made.num_rows > 500
        years = made["end"].to_numpy().astype("M8[Y]").astype(int) + 1970
        assert set(years) <= {2020, 2021, 2022, 2023, 9999}
        assert 9999 in years


# --- keys of several columns ---------------------------------------------------------------------


def orders(named: Any) -> pa.Table:
    """Orders of one to four lines; a line is unique in its order alone."""
    rng = np.random.Generator(np.random.Philox(6))
    sizes = rng.integers(1, 5, 300)
    order = np.repeat(np.arange(300), sizes)
    line = np.concatenate([np.arange(1, size + 1) for size in sizes])
    return pa.table({"order_no": named(order), "line": line, "net": rng.gamma(2, 20, len(line)).round(2)})


@pytest.mark.parametrize(
    "named", [lambda n: n + 1000, lambda n: [f"O-{i:05}" for i in n.tolist()]], ids=["numbers", "strings"]
)
def test_columns_that_are_unique_together(named: Any):
    table = orders(named)
    data = load(table, constraints=[{"unique": ["order_no", "line"]}])
    assert TableCodec.from_json(data.codec.to_json()) == data.codec
    assert data.codec.by_name["order_no"].kind == "id"
    assert data.codec.by_name["line"].kind == "numerical"
    made = invented(data, 900)
    pairs = list(zip(made["order_no"].to_pylist(), made["line"].to_pylist(), strict=True))
    assert len(set(pairs)) == 900
    assert len(set(made["order_no"].to_pylist())) < 800  # orders have several lines
    assert data.codec.valid(made).all()
    twice = pa.concat_tables([made, made.slice(0, 3)])
    assert (~data.codec.valid(twice)).sum() == 3
    assert "order_no + line unique" in str(data.codec.describe())


def test_a_key_that_the_rows_break_is_refused():
    table = orders(lambda n: n + 1000)
    with pytest.raises(UserError, match=r"breaks order_no \+ line unique, as 2 of"):
        load(pa.concat_tables([table, table.slice(5, 2)]), constraints=[{"unique": ["order_no", "line"]}])
    with pytest.raises(UserError, match="two or more columns, each once"):
        load(table, constraints=[{"unique": ["line", "line"]}])
    with pytest.raises(UserError, match="is unique in two ways"):
        load(table, constraints=[{"unique": ["order_no", "line"]}, {"unique": "order_no"}])
