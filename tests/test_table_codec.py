"""What is encoded comes back, rare things do not, and modes are where the numbers are."""

import datetime
import json
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import back, invented, load

from genai_ray.errors import UserError
from genai_ray.table import modes, values
from genai_ray.table.codec import TableCodec
from genai_ray.table.source import TableData
from genai_ray.table.spec import TableGenerateSpec

FEW = settings(max_examples=15, deadline=None)


def column(cells: pa.Array | list[Any], **spec: Any) -> TableData:
    """A table of this column and one that varies, every row of which trains but one or so."""
    array = cells if isinstance(cells, pa.Array) else pa.array(cells)
    other = pa.array(["a", "b"] * (len(array) // 2) + ["a"] * (len(array) % 2))
    return load(pa.table({"x": array, "other": other}), **{"holdout": 1.0 / len(array), **spec})


def seeded(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def same(data: TableData) -> None:
    """Decoding undoes encoding, to the type."""
    made = back(data)
    assert made.schema == data.train.schema
    assert made["x"].to_pylist() == data.train["x"].to_pylist()


# --- round trips ---------------------------------------------------------------------------------

CATEGORIES: dict[str, tuple[Any, list[Any]]] = {
    "string": (pa.string(), ["a", "", "ß", "(other)"]),
    "large_string": (pa.large_string(), ["a", "b", "c"]),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), ["p", "q", "r"]),
    "bool": (pa.bool_(), [True, False]),
    "int16": (pa.int16(), [-3, 0, 7]),
    "double": (pa.float64(), [0.1, -2.5]),
    "date": (pa.date32(), [datetime.date(2024, 1, d) for d in (1, 2)]),
}


@FEW
@given(name=st.sampled_from(sorted(CATEGORIES)), order=st.lists(st.integers(0, 4), min_size=5, max_size=30))
def test_categories_come_back_exactly(name: str, order: list[int]):
    type_, cells = CATEGORIES[name]
    cells = [*cells, None]
    # Each at least as often as it must be to be kept, whichever row is held out.
    drawn = [cells[i % len(cells)] for i in order] + cells * 7
    same(column(pa.array(drawn, type_), columns={"x": "categorical"}))


def test_ordered_categories_keep_their_order():
    sizes = pa.DictionaryArray.from_arrays(
        pa.array([2, 0, 1, 1, None] * 20), ["small", "middle", "large"], ordered=True
    )
    data = column(sizes)
    same(data)
    for made in (back(data), invented(data, 50)):
        assert made["x"].combine_chunks().dictionary.to_pylist() == ["small", "middle", "large"]
        assert made.schema.field("x").type.ordered


@FEW
@given(
    type_=st.sampled_from([pa.int8(), pa.uint16(), pa.int64(), pa.float32(), pa.float64(), pa.decimal128(9, 2)]),
    distinct=st.sets(st.integers(-100, 100), min_size=2, max_size=8),
    missing=st.booleans(),
)
def test_numbers_of_few_values_are_atoms_and_exact(type_: pa.DataType, distinct: set[int], missing: bool):
    cells: list[Any] = sorted({abs(v) for v in distinct} if type_ == pa.uint16() else distinct)
    if pa.types.is_floating(type_):
        cells = [v / 8 for v in cells]
    if len(cells) < 2:
        cells = [0, 1]
    array = pa.array([*cells, *([None] if missing else [])] * 8, safe=False)
    if pa.types.is_decimal(type_):
        array = array.cast(pa.float64())
    data = column(array.cast(type_))
    assert set(data.codec.parts[0].scale) == {0}
    same(data)


@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    how=st.sampled_from(["modes", "quantiles"]),
    decimals=st.sampled_from([0, 2, None]),
    share=st.sampled_from([0.0, 0.2]),
)
def test_numbers_come_back_within_the_precision_of_the_encoding(
    seed: int, how: str, decimals: int | None, share: float
):
    rng = seeded(seed)
    values = rng.normal(50, 20, 200) * rng.choice([1, -1], 200)
    values = values if decimals is None else np.round(values, decimals)
    gone = rng.random(200) < share
    data = column(pa.array(values, mask=gone), numbers=how)
    part = data.codec.parts[0]
    assert part.decimals == decimals
    real = data.train["x"].to_numpy()
    made = back(data)["x"].to_numpy()
    assert (np.isnan(made) == np.isnan(real)).all()
    # Beyond four deviations of its mode a number is cut, and so it is beyond the range.
    reach = 0.99 if how == "modes" else 1.01
    inside = (np.abs(data.scalars[:, 0]) < reach) & (real >= part.low) & (real <= part.high)
    # Fewer than `rare` values in a wide gap, and at its ends, go to where `rare` values reach.
    ranges = modes.ranges_of(np.sort(real[~np.isnan(real)]), 5)
    inside &= np.any([(low <= real) & (real <= high) for low, high in ranges or [(-np.inf, np.inf)]], axis=0)
    assert inside[~np.isnan(real)].mean() > 0.8
    error = np.abs(made - real)[inside]
    assert error.max() <= (1e-5 * max(part.scale) if decimals is None else 10.0**-decimals / 2)
    clipped = made[~np.isnan(made)]
    assert part.low <= clipped.min()
    assert clipped.max() <= part.high


@FEW
@given(
    kind=st.sampled_from(
        [
            pa.timestamp("s"),
            pa.timestamp("ms", "Asia/Tokyo"),
            pa.timestamp("us"),
            pa.timestamp("ns"),
            pa.date32(),
            pa.date64(),
            pa.time32("s"),
            pa.time64("us"),
        ]
    ),
    seed=st.integers(0, 1000),
)
def test_dates_and_times_come_back_by_their_step(kind: pa.DataType, seed: int):
    ticks = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
    hours = seeded(seed).integers(0, 24, 200)
    if pa.types.is_date32(kind):
        array = pa.array((19_000 + hours).astype(np.int32)).cast(kind)
    elif pa.types.is_date64(kind):
        array = pa.array((19_000 + hours) * 86_400_000).cast(kind)
    else:
        day = 0 if pa.types.is_time(kind) else 19_000 * 86_400
        count = (day + hours * 3600) * ticks[kind.unit]
        small = pa.int32() if pa.types.is_time32(kind) else pa.int64()
        array = pa.array(count).cast(small).cast(kind)
    data = column(array, rare=1)
    part = data.codec.parts[0]
    assert (part.decimals, data.codec.columns[0].kind) == (0, "datetime")
    # Hours, or days, are the numbers themselves: no other time of day is ever made.
    assert max(part.offset) - min(part.offset) <= 24
    same(data)


@FEW
@given(seed=st.integers(0, 1000), step=st.sampled_from([10**3, 10**6]))
def test_nanoseconds_have_no_dust(seed: int, step: int):
    count = 1_700_000_000 * 10**9 + seeded(seed).integers(0, 10**9, 200) * step
    array = pa.array(count.repeat(2), pa.timestamp("ns"))
    made = values.from_numbers(values.numbers(array, step), array.type, step)
    assert made.equals(array)
    data = column(array, rare=1)
    assert data.codec.columns[0].unit % step == 0
    again = invented(data, 300)["x"].cast(pa.int64()).to_numpy()
    assert not (again % step).any()


def test_numbers_beyond_a_type_are_clipped_to_it():
    far = np.array([-1e30, 1e30, np.nan])
    for kind in (pa.timestamp("ns"), pa.timestamp("us"), pa.int64(), pa.uint64(), pa.date32()):
        for unit in (values.tick_ns(kind), values.tick_ns(kind) * 1000):
            low, high, missing = values.plain(values.from_numbers(far, kind, unit)).to_pylist()
            assert missing is None
            assert low <= 0
            assert high > 2**30 or kind == pa.date32()
    last = values.from_numbers(far, pa.date32(), values.DAY_NS).to_pylist()
    assert last == [datetime.date.min, datetime.date.max, None]
    times = values.from_numbers(far, pa.time32("ms"), 10**9)
    assert times.cast(pa.int32()).to_pylist() == [0, 86_399_000, None]


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_no_zero_is_negative(kind: pa.DataType):
    made = values.from_numbers(np.array([-0.0, -1e-60, np.nan, -2.0]), kind)
    cells = made.cast(pa.float64()).to_numpy(zero_copy_only=False)
    assert not np.signbit(cells[cells == 0]).any()
    assert (cells == 0).sum() == 1 + (kind != pa.float64())
    # Nor in the categories, constants and atoms of a source that has some.
    table = pa.table({"x": pa.array([-0.0, 0.0, 1.0] * 20), "k": [-0.0] * 60})
    for columns in ({}, {"x": "categorical"}):
        data = load(table, columns=columns)
        assert "-0.0" not in json.dumps(data.codec.to_json())
        made = back(data)
        assert not any(np.signbit(made[n].to_numpy()).any() for n in table.column_names)


def test_no_id_comes_twice():
    data = load(pa.table({"key": [f"K{i:02}" for i in range(60)], "o": ["a", "b"] * 30}))
    codes, numbers = np.zeros((100, 1), np.int64), np.empty((100, 0))
    assert len(set(data.codec.decode(codes, numbers, np.arange(100), 0)["key"].to_pylist())) == 100
    with pytest.raises(ValueError, match="indices must lie in"):
        data.codec.decode(codes, numbers, np.arange(1, 101), 0)


def test_constants_and_ids_come_back_as_they_were():
    table = pa.table(
        {
            "text": pa.array(["k"] * 60),
            "number": pa.array([7] * 60, pa.int16()),
            "day": pa.array([datetime.date(2024, 2, 29)] * 60),
            "dictionary": pa.array(["k"] * 60).dictionary_encode(),
            "id": pa.array([f"A-{i:04}" for i in range(60)]),
            "number_id": pa.array(range(100, 160), pa.int32()),
            "other": pa.array(["a", "b"] * 30),
        }
    )
    data = load(table)
    assert [p.name for p in data.codec.parts] == ["other"]
    made = back(data)
    assert made.schema == table.schema
    for name in ("text", "number", "day", "dictionary", "other"):
        assert made[name].to_pylist() == data.train[name].to_pylist()
    ids = made["id"].to_pylist()
    assert len(set(ids)) == data.n
    assert all(len(i) == 6 and i.startswith("A-") for i in ids)
    assert all(100 <= i < 160 for i in made["number_id"].to_pylist())
    data.codec.check(TableGenerateSpec(samples=10_000))
    with pytest.raises(UserError, match=r"id\.pattern.*has 10000 ids.*10001 rows"):
        data.codec.check(TableGenerateSpec(samples=10_001))


def test_an_id_begins_with_what_another_column_says():
    regions = [("NORTH", "SOUTH", "EAST")[i % 3] for i in range(300)]
    ids = [f"{r}-{i // 3:04}" for i, r in enumerate(regions)]
    data = load(pa.table({"id": ids, "region": regions, "x": seeded(1).normal(0, 1, 300)}))
    assert data.codec.columns[0].described_pattern == "{region}-<0000..0099>"
    assert TableCodec.from_json(json.loads(json.dumps(data.codec.to_json()))) == data.codec
    made = invented(data, 250)
    assert all(i.startswith(f"{r}-") for i, r in zip(made["id"].to_pylist(), made["region"].to_pylist(), strict=True))
    assert len(set(made["id"].to_pylist())) == 250
    with pytest.raises(UserError, match="free text"):
        load(pa.table({"id": ids, "region": regions[::-1], "x": seeded(1).normal(0, 1, 300)}))


def test_a_column_of_whole_days_stays_one():
    days = np.datetime64("2024-01-01") + seeded(0).integers(0, 300, 400).astype("m8[D]")
    table = load(pa.table({"x": pa.array(days.astype("M8[us]")), "o": ["a", "b"] * 200}))
    made = invented(table, 500)["x"].to_numpy()
    assert (made.astype("M8[D]") == made).all()


# --- what must not leave -------------------------------------------------------------------------


@FEW
@given(rare=st.integers(2, 8), singles=st.integers(1, 20))
def test_a_rare_category_is_in_no_output_and_no_json(rare: int, singles: int):
    cells = ["common"] * 100 + ["usual"] * 100
    cells += [f"secret{i}" for i in range(singles) for _ in range(1 + i % (rare - 1))]
    data = column([*cells, *["common"] * (len(cells) % 2)], rare=rare)
    assert "secret" not in json.dumps(data.codec.to_json())
    assert "secret" not in str(data.codec.describe())
    made = set(invented(data, 300)["x"].to_pylist())
    held = sum("secret" in c for c in data.train["x"].to_pylist())
    expected = {"common", "usual"} | ({"(other)"} if held >= rare else set())
    assert made == expected
    coded = set(back(data)["x"].to_pylist())
    assert coded <= expected
    with pytest.raises(UserError, match="too rare"):
        data.codec.requested_codes({"x": "secret0"}, "generate.conditions")


def test_rare_numbers_and_dates_do_not_leave_either():
    rng = seeded(1)
    values = [*rng.normal(0, 1, 400), 98765.4321, 12345.678, -77777.7]
    data = column(values)
    text = json.dumps(data.codec.to_json())
    assert not any(str(v)[:5] in text for v in values[-3:])
    part = data.codec.parts[0]
    ascending = np.sort(data.train["x"].to_numpy())
    assert (part.low, part.high) == (ascending[4], ascending[-5])
    made = invented(data, 2000)["x"].to_numpy()
    assert part.low <= made.min()
    assert made.max() <= part.high


@pytest.mark.parametrize("how", ["modes", "quantiles"])
@pytest.mark.parametrize("singles", [1, 4])
def test_no_edge_of_what_is_no_atom_is_one_row(how: str, singles: int):
    rng = seeded(7)
    odd = 123.45 + 0.017 * np.arange(singles)
    data = column(np.concatenate([np.zeros(900), odd, rng.uniform(200, 300, 600)]), numbers=how)
    part = data.codec.parts[0]
    assert 0.0 in part.offset
    spans = [(o, s) for o, s in zip(part.offset, part.scale, strict=True) if s > 0]
    fifth = np.sort(data.train["x"].to_numpy())
    fifth = fifth[fifth > 0][4]
    if how == "quantiles":
        assert spans[0][0] - spans[0][1] == pytest.approx(fifth)
    else:
        assert min(o - s / 4 for o, s in spans) > 150
    # What they become is not what they were.
    made = back(data)["x"].to_numpy()
    assert not np.isclose(made[:, None], odd, atol=1e-6).any()
    assert "123.4" not in json.dumps(data.codec.to_json())


@given(few=st.lists(st.integers(0, 30), min_size=1, max_size=40).map(sorted), rare=st.integers(1, 12))
def test_a_range_ends_where_enough_rows_are(few: list[int], rare: int):
    found = np.array(few, np.float64)
    low, high = modes.span(found, rare)
    assert found[0] <= low <= high <= found[-1]
    if len(few) >= 2 * rare:
        assert (found <= low).sum() >= rare
        assert (found >= high).sum() >= rare
    elif found[0] < found[-1]:
        assert low == high
        assert (found == low).sum() >= rare or low == found.mean()


def test_a_column_of_few_numbers_tells_none_of_them():
    cells = [None] * 193 + [1.25, 2.5, 3.125, 4.0625, 5.5, 6.75, 9.875]
    data = load(pa.table({"x": cells, "o": ["a", "b"] * 100}), holdout=0.005)
    part = data.codec.parts[0]
    assert part.low == part.high
    assert not {part.low, *part.offset} & set(cells)


def test_rare_numbers_among_few_go_to_the_nearest():
    data = column([10] * 50 + [20] * 50 + [21] * 2)
    assert data.codec.parts[0].offset == (10, 20)
    assert set(back(data)["x"].to_pylist()) == {10, 20}


def test_rare_values_that_no_label_can_name_go_with_the_most_frequent():
    data = column(pa.array([True] * 90 + [False] * 3), rare=5)
    assert set(back(data)["x"].to_pylist()) == {True}


def test_the_range_can_be_set():
    data = column([i % 150 for i in range(200)], columns={"x": {"min": -10, "max": 500}})
    assert (data.codec.parts[0].low, data.codec.parts[0].high) == (-10, 500)
    when = [datetime.date(2024, 1, 1) + datetime.timedelta(i % 90) for i in range(200)]
    data = column(when, columns={"x": {"min": "2023-12-31", "max": "2024-12-31"}})
    assert data.codec.columns[0].low == (datetime.date(2023, 12, 31) - datetime.date(1970, 1, 1)).days


# --- modes, atoms and bins -----------------------------------------------------------------------


def test_two_gaussians_are_found():
    rng = seeded(2)
    data = column(np.concatenate([rng.normal(-50, 1, 2000), rng.normal(80, 4, 1000)]))
    part = data.codec.parts[0]
    near = [np.abs(np.array(part.offset) - m) < 4 * s for m, s in ((-50, 1), (80, 4))]
    assert (near[0] | near[1]).all()
    shares = np.array(part.shares)
    assert shares[near[0]].sum() == pytest.approx(2 / 3, abs=0.01)
    # Every row is coded by a mode of its own Gaussian.
    left = data.train["x"].to_numpy() < 0
    assert (np.isin(data.codes[:, 0], np.flatnonzero(near[0])) == left).all()


def test_the_mode_of_a_row_is_drawn_from_the_posterior():
    rng = seeded(3)
    data = column(np.concatenate([rng.normal(0, 1, 1500), rng.normal(1.5, 1, 1500)]))
    part = data.codec.parts[0]
    means, deviations = np.array(part.offset), np.array(part.scale) / 4
    table = pa.table({"x": np.full(20_000, 0.75), "other": ["a"] * 20_000})
    codes, scalars = data.codec.encode(table)
    density = np.array(part.weights) / deviations
    density *= np.exp(-0.5 * ((0.75 - means) / deviations) ** 2)
    shares = np.bincount(codes[:, 0], minlength=part.size) / 20_000
    assert np.allclose(shares, density / density.sum(), atol=0.015)
    expected = np.clip((0.75 - means[codes[:, 0]]) / (4 * deviations[codes[:, 0]]), -0.99, 0.99)
    assert np.allclose(scalars[:, 0], expected, atol=1e-6)


def test_values_of_many_rows_are_atoms_among_others():
    rng = seeded(4)
    values = np.where(rng.random(2000) < 0.3, 0.0, rng.gamma(2, 100, 2000))
    values[rng.random(2000) < 0.1] = 77.7
    data = column(values)
    part = data.codec.parts[0]
    atoms = [o for o, s in zip(part.offset, part.scale, strict=True) if s == 0]
    assert atoms == [0.0, 77.7]
    real, made = data.train["x"].to_numpy(), back(data)["x"].to_numpy()
    for atom in atoms:
        assert ((made == atom) == (real == atom)).all()


@pytest.mark.parametrize("rare", [5, 40])
def test_bins_hold_about_equal_counts_and_none_few(rare: int):
    rng = seeded(5)
    values = np.concatenate([rng.lognormal(0, 2, 1500), np.repeat(rng.normal(3, 1, 30), 9)])
    data = column(values, numbers="quantiles", rare=rare)
    part = data.codec.parts[0]
    counts = np.bincount(data.codes[:, 0], minlength=part.size)
    assert part.size <= 64
    assert counts.min() >= rare
    assert not part.weights
    assert counts.max() < 5 * counts.mean()
    ends = np.array(part.offset) + np.array(part.scale)
    starts = np.array(part.offset) - np.array(part.scale)
    assert np.allclose(ends[:-1], starts[1:])
    made = back(data)["x"].to_numpy()
    low, high = part.low, part.high
    assert np.allclose(made, np.clip(data.train["x"].to_numpy(), low, high), rtol=1e-4, atol=1e-4)


_NUMBERS = column(seeded(6).normal(0, 1, 300) + np.repeat([0, 3], 150))


def test_a_codec_is_json_and_back():
    codec = _NUMBERS.codec
    again = TableCodec.from_json(json.loads(json.dumps(codec.to_json())))
    assert again == codec
    codes, scalars = again.encode(_NUMBERS.train)
    assert (codes == _NUMBERS.codes).all()
    assert (scalars == _NUMBERS.scalars).all()
    assert codec.to_json()["modality"] == "table"


def test_the_parts_say_how_often_each_code_is():
    data = column(["u"] * 30 + ["v"] * 50 + [None] * 20)
    part = data.codec.discrete[0]
    assert (part.size, part.missing, part.discrete) == (3, 2, True)
    assert part.shares == pytest.approx((0.3, 0.5, 0.2), abs=0.02)
    assert sum(data.codec.parts[1].shares) == pytest.approx(1)


# --- conditions ----------------------------------------------------------------------------------

_PEOPLE = load(
    pa.table(
        {
            "city": pa.array(["Oslo", "Rome", None, "Oslo"] * 50).dictionary_encode(),
            "age": pa.array([20, 30, 40, 50, 60] * 40),
            "day": pa.array([datetime.date(2024, 1, 1 + i % 9) for i in range(200)]),
            "member": pa.array([True, False] * 100),
            "fixed": pa.array(["f"] * 200),
            "key": pa.array([f"K{i:03}" for i in range(200)]),
            "height": pa.array(seeded(8).normal(170, 10, 200)),
        }
    )
)


@pytest.mark.parametrize(
    "where",
    [
        {"city": "Rome"},
        {"city": None},
        {"age": 30},
        {"day": "2024-01-04"},
        {"member": "true"},
        {"member": False, "city": "Oslo"},
        {"fixed": "f", "age": 40.0},
        {"day": datetime.date(2024, 1, 4)},
    ],
)
def test_what_is_asked_for_is_what_matches(where: dict[str, Any]):
    codec = _PEOPLE.codec
    asked = codec.requested_codes(where, "generate.conditions")
    matches = codec.matches(_PEOPLE.train, where)
    assert 0 < matches.sum() < _PEOPLE.n
    fits = np.all([_PEOPLE.codes[:, p] == c for p, c in asked.items()], 0)
    assert (fits == matches).all()


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({"town": "Rome"}, "town.*city"),
        ({"city": "Rom"}, "city=Rom.*Did you mean 'Rome'"),
        ({"age": None}, "no missing"),
        ({"age": 30, "fixed": "g"}, "fixed=g.*one other value"),
        ({"age": 200}, r"20 \.\. 60"),
        ({"age": "old"}, "int64"),
        ({"age": 35}, "no values"),
        ({"age": {"min": 41, "max": 49}}, "no values"),
        ({"age": 30.5}, "no whole number"),
        ({"day": "soon"}, "date32"),
        ({"member": "perhaps"}, "true or false"),
        ({"key": "K001"}, "is an id"),
    ],
)
def test_conditions_that_cannot_be_met_are_refused(where: dict[str, Any], says: str):
    with pytest.raises(UserError, match=says) as caught:
        _PEOPLE.codec.requested_codes(where, "generate.conditions")
    assert caught.value.field == "generate.conditions"


def test_a_request_in_a_gap_of_a_column_is_refused():
    ages = [-999 if i % 20 == 0 else 18 + i % 61 for i in range(400)]
    codec = load(pa.table({"age": ages, "kind": ["a", "b"] * 200})).codec
    for where in ({"age": -500}, {"age": {"min": -900, "max": 0}}):
        with pytest.raises(UserError, match="where the source has no values"):
            codec.requested_codes(where, "generate.conditions")
    for where in ({"age": -999}, {"age": 44}, {"age": {"max": 18}}, {"age": {"min": -900, "max": 20}}):
        codec.requested_codes(where, "generate.conditions")


_KINDS = load(
    pa.table(
        {
            "price": pa.array([Decimal(p) for p in ("1.25", "2.50", "3.99")] * 20),
            "when": pa.array([datetime.datetime(2024, 1, 1 + i % 3) for i in range(60)]),
            "zoned": pa.array([datetime.datetime(2024, 1, 1 + i % 3) for i in range(60)], pa.timestamp("ms", "UTC")),
            "flag": pa.array([True, False, False] * 20),
            "answer": pa.array(["yes", "no", "maybe"] * 20),
            "Truth": pa.array(["TRUE", "False", "?"] * 20).dictionary_encode(),
            "bit": pa.array([1, 0, 0] * 20, pa.int8()),
            "clock": pa.array([0, 3600, 7200] * 20, pa.int32()).cast(pa.time32("s")),
            "both": pa.array(["yes", "true", "no"] * 20),
        }
    ),
    columns={"bit": "boolean"},
)


@pytest.mark.parametrize(
    ("where", "first"),
    [
        ({"price": 1.25}, 0),
        ({"price": "2.5"}, 1),
        ({"price": 3.99}, 2),
        ({"when": datetime.date(2024, 1, 2)}, 1),
        ({"when": "2024-01-03"}, 2),
        ({"when": datetime.datetime(2024, 1, 1)}, 0),
        ({"zoned": datetime.date(2024, 1, 2)}, 1),
        ({"flag": 1}, 0),
        ({"flag": "1"}, 0),
        ({"flag": True}, 0),
        ({"bit": True}, 0),
        ({"answer": True}, 0),
        ({"answer": False}, 1),
        ({"answer": "maybe"}, 2),
        ({"Truth": True}, 0),
        ({"Truth": False}, 1),
        ({"clock": "01:00"}, 1),
        ({"both": False}, 2),
    ],
)
def test_values_are_understood_as_yaml_reads_them(where: dict[str, Any], first: int):
    asked = _KINDS.codec.requested_codes(where, "f")
    matches = _KINDS.codec.matches(_KINDS.train, where)
    # All columns but flag and bit tell the three kinds of rows apart.
    answer = ("yes", "no", "maybe")[first]
    assert matches.tolist() == [a == answer for a in _KINDS.train["answer"].to_pylist()]
    fits = np.all([_KINDS.codes[:, p] == c for p, c in asked.items()], 0)
    assert (fits == matches).all()


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({"price": "dear"}, "decimal.*not a number"),
        ({"price": 1.255}, "data loss"),
        ({"price": True}, "not a number"),
        ({"price": float("inf")}, "decimal"),
        ({"flag": 2}, "true or false"),
        ({"both": True}, "true or yes.*quotes"),
        ({"when": 20240101}, "quotes"),
        ({"clock": 36672}, "quotes"),
        ({"clock": datetime.date(2024, 1, 1)}, "no time of day"),
        ({"bit": "many"}, "int8"),
    ],
)
def test_values_of_another_kind_are_refused(where: dict[str, Any], says: str):
    with pytest.raises(UserError, match=f"(?s){says}"):
        _KINDS.codec.requested_codes(where, "f")


@pytest.mark.parametrize(
    ("where", "share"),
    [
        ({"age": {"min": 40}}, 0.6),
        ({"age": {"min": 30, "max": 40.0}}, 0.4),
        ({"height": {"max": 170}}, 0.5),
        ({"day": {"min": "2024-01-02", "max": datetime.date(2024, 1, 3)}}, 2 / 9),
        ({"age": {"max": 30}, "city": "Rome"}, 0.1),
    ],
)
def test_a_range_is_what_matches(where: dict[str, Any], share: float):
    codec = _PEOPLE.codec
    assert codec.matches(_PEOPLE.train, where).mean() == pytest.approx(share, abs=0.07)
    assert len(codec.requested_codes(where, "f")) == ("city" in where)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({"age": {"min": 70}}, r"20 \.\. 60"),
        ({"age": {"least": 40}}, "min and max"),
        ({"age": {}}, "min and max"),
        ({"age": {"min": 50, "max": 40}}, "Swap"),
        ({"age": {"min": "old"}}, "int64"),
        ({"city": {"min": "A"}}, "is a range, and the column is categorical"),
        ({"age": [30, 40]}, r"Write a range as \{where: \{age: \{min"),
        ({"age": ">=30"}, r"Write a range as \{where: \{age: \{min"),
    ],
)
def test_ranges_that_cannot_be_met_are_refused(where: dict[str, Any], says: str):
    with pytest.raises(UserError, match=says):
        _PEOPLE.codec.requested_codes(where, "generate.conditions")


def test_a_number_that_is_no_atom_asks_for_its_mode():
    codec = _PEOPLE.codec
    index = next(i for i, p in enumerate(codec.parts) if p.name == "height")
    code = codec.requested_codes({"height": 170.0}, "f")[index]
    part = codec.parts[index]
    assert abs(part.offset[code] - 170) <= part.scale[code]


def test_labels_name_one_category_each():
    labels = _PEOPLE.codec.labels(200)
    assert labels.shape == (200, len(_PEOPLE.codec.parts))
    assert ((labels >= 0).sum(1) == 1).all()
    for i, part in enumerate(_PEOPLE.codec.parts):
        assert set(labels[:, i]) - {-1} <= set(range(part.size if part.discrete else 0))
