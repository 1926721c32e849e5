"""Scores of tables at tables whose quality is known: copies, collapses, shuffles and the truth."""

import datetime
import io
import json
import warnings
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
import pytest
from conftest import SHARED_DATA, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_ray.modality import values_of
from genai_ray.table import shapes
from genai_ray.table.compared import Compared, Tables, details
from genai_ray.table.copies import closest_share, duplicate_rate, exact_copy_rate
from genai_ray.table.matrix import encode, row_keys, sample
from genai_ray.table.metrics import METRICS
from genai_ray.table.shapes import (
    category_coverage,
    column_shapes,
    correlation,
    ks_statistic,
    pair_trends,
    range_coverage,
)
from genai_ray.table.utility import detection, efficacy

CITIES = np.array(["Oslo", "Lima", "Rome", "Baku"])
JOBS = np.array(["nurse", "baker", "pilot"])


def people(n: int, seed: int) -> pa.Table:
    """Columns of every kind that hang together, with missing values."""
    rng = np.random.Generator(np.random.Philox(seed))
    age = rng.integers(18, 80, n)
    city = rng.choice(4, n, p=[0.4, 0.3, 0.2, 0.1])
    job = (city + (rng.random(n) < 0.2)) % 3
    pay = 100.0 * age + 800.0 * job + rng.normal(0, 300, n)
    member = pay + rng.normal(0, 300, n) > 5500
    since = np.datetime64("2000-01-01") + (age * 90 + rng.integers(0, 900, n)).astype("m8[D]")
    gone = rng.random((3, n)) < 0.1
    return pa.table(
        {
            "id": pa.array(seed * 1_000_000 + np.arange(n)),
            "age": pa.array(age, mask=gone[0]),
            "pay": pa.array(np.where(gone[1], np.nan, pay.round(2))),
            "city": pa.array(CITIES[city].tolist(), mask=gone[2]).dictionary_encode(),
            "job": pa.array(JOBS[job].tolist()),
            "member": pa.array(member),
            "since": pa.array(since),
        }
    )


def shuffled(table: pa.Table) -> pa.Table:
    """The same columns without what ties them together."""
    rng = np.random.Generator(np.random.Philox(5))
    return pa.table({n: table[n].take(rng.permutation(len(table))) for n in table.column_names})


TRAIN, HOLDOUT = people(1600, 1), people(1200, 2)
HOW: dict[str, Any] = {"skip": ["id"]}


class TableScores(NamedTuple):
    """Metric -> value of synthetic rows and of the holdout in their place, and what the page shows beside."""

    fake: dict[str, float]
    real: dict[str, float]
    details: dict[str, Any]


def table_scores(
    train: pa.Table, holdout: pa.Table, table: pa.Table, *, valid: Any = None, holdout_valid: Any = None, **options: Any
) -> TableScores:
    tables = Tables(train=train, holdout=holdout, table=table, **options)
    fake, real = Compared(tables, "fake", valid), Compared(tables, "real", holdout_valid)
    return TableScores(values_of(METRICS, fake), values_of(METRICS, real), details(fake, real))


@pytest.fixture(scope="module")
def scores() -> dict[str, TableScores]:
    generators = {
        "the truth": people(1200, 3),
        "copies": TRAIN.take(sample(len(TRAIN), 1200, 0)),
        "collapse": TRAIN.take(np.zeros(1200, np.int64)),
        "shuffle": shuffled(TRAIN),
    }
    return {
        name: table_scores(TRAIN, HOLDOUT, table, target="member", seed=1, **HOW) for name, table in generators.items()
    }


# --- all scores, of generators whose fault is known ----------------------------------------------


def test_the_true_distribution_scores_as_the_holdout_does(scores):
    found = scores["the truth"]
    assert set(found.fake) == set(found.real) == set(METRICS) - {"efficacy_r2", "constraint_validity"}
    for name, value in found.fake.items():
        assert value == pytest.approx(found.real[name], abs=0.07), name
    assert found.fake["column_shapes"] > 0.95
    assert found.fake["pair_trends"] > 0.93
    assert found.fake["detection_auc"] == pytest.approx(0.5, abs=0.06)
    assert found.fake["closest_share"] == pytest.approx(0.5, abs=0.06)


def test_copies_look_perfect_but_for_the_alarms(scores):
    found = scores["copies"]
    assert found.fake["column_shapes"] > 0.95
    assert found.fake["detection_auc"] < 0.55
    assert found.fake["exact_copy_rate"] == 1
    # 1200 of 1600 training rows are compared, so a quarter of the originals are not there.
    assert found.fake["closest_share"] > 0.85
    assert found.real["exact_copy_rate"] == 0


def test_a_collapse_is_caught_by_shapes_coverage_and_repeats(scores):
    found = scores["collapse"]
    assert found.fake["column_shapes"] < 0.5
    assert found.fake["category_coverage"] < 0.5
    assert found.fake["range_coverage"] == 0
    assert found.fake["duplicate_rate"] == pytest.approx(1 - 1 / 1200)
    assert found.fake["detection_auc"] > 0.99
    assert found.fake["efficacy_auc"] == 0.5


def test_a_shuffle_is_caught_by_pairs_efficacy_and_detection(scores):
    found = scores["shuffle"]
    assert found.fake["column_shapes"] > 0.95
    assert found.fake["pair_trends"] < found.real["pair_trends"] - 0.1
    assert found.fake["efficacy_auc"] < 0.65 < 0.85 < found.real["efficacy_auc"]
    assert found.fake["detection_auc"] > 0.9
    assert found.fake["exact_copy_rate"] == 0


def test_the_same_call_gives_the_same_scores_and_plain_json(scores):
    again = table_scores(TRAIN, HOLDOUT, people(1200, 3), target="member", seed=1, **HOW)
    assert again == scores["the truth"]
    assert json.loads(json.dumps(again.details))["rows"]["compared"] == 1200


def test_columns_that_are_skipped_have_no_part(scores):
    details = scores["the truth"].details
    assert "id" not in {each["of"] for each in details["column_shapes"]}
    assert not any("id" in each["of"] for each in details["pair_trends"])
    assert "id" not in details["detection"]


# --- columns alone -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "statistic"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], 0),
        ([1, 2], [3, 4], 1),
        ([1, 2, 3, 4], [3, 4, 5, 6], 0.5),
        ([0, 0, 0, 1], [0, 1, 1, 1], 0.5),
        ([1, 2, 3], [2], 1 / 3),
        ([], [1], 1),
        ([], [], 0),
    ],
)
def test_ks_by_hand(a, b, statistic):
    a, b = np.array(a, float), np.array(b, float)
    assert ks_statistic(a, b) == pytest.approx(statistic)
    assert ks_statistic(b, a) == pytest.approx(statistic)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.lists(st.integers(-3, 3), min_size=1, max_size=30))
def test_ks_is_the_greatest_gap_of_the_distribution_functions(a, b):
    gaps = [abs(sum(v <= x for v in a) / len(a) - sum(v <= x for v in b) / len(b)) for x in range(-4, 5)]
    assert ks_statistic(np.array(a, float), np.array(b, float)) == pytest.approx(max(gaps))


def test_shapes_by_hand():
    real = pa.table({"c": ["a", "a", "b", None], "n": [1, 2, None, None], "x": [1, 2, 3, 4]})
    made = pa.table({"c": ["a", "b", "b", "c"], "n": [1, 2, 1, 2], "x": [3, 4, 5, 6]})
    shapes = column_shapes(*encode([real, made]))
    assert list(shapes) == ["c", "n", "x"]
    assert shapes["c"] == pytest.approx(0.5)  # a 1/4, b 1/4, c 1/4, missing 1/4 apart
    assert shapes["n"] == pytest.approx(0.5)  # the values agree, the missing shares do not
    assert shapes["x"] == pytest.approx(0.5)
    assert column_shapes(*encode([real, made], categorical=["x"]))["x"] == pytest.approx(0.5)


def test_nan_and_null_are_both_missing():
    real = pa.table({"x": pa.array([1.0, None, 2.0, None])})
    made = pa.table({"x": pa.array([1.0, float("nan"), 2.0, float("nan")])})
    assert column_shapes(*encode([real, made])) == {"x": 1}
    assert exact_copy_rate(real, made) == 1


# --- columns in pairs ----------------------------------------------------------------------------


def test_correlation_is_of_the_rows_that_have_both():
    rng = np.random.Generator(np.random.Philox(0))
    x = rng.normal(size=(50, 3)) + np.array([0, 1e6, -5])
    x[:, 2] += x[:, 0]
    x[rng.random((50, 3)) < 0.3] = np.nan
    found = correlation(x)
    for i in range(3):
        for j in range(3):
            both = ~np.isnan(x[:, i]) & ~np.isnan(x[:, j])
            expected = np.corrcoef(x[both, i], x[both, j])[0, 1]
            assert found[i, j] == pytest.approx(expected, abs=1e-6)


def test_pairs_of_numbers_by_hand():
    real = pa.table({"x": [0.0, 1, 2, 3], "y": [0.0, 1, 2, 3]})
    mirrored = pa.table({"x": [0.0, 1, 2, 3], "y": [3.0, 2, 1, 0]})
    flat = pa.table({"x": [0.0, 1, 2, 3], "y": [7.0, 7, 7, 7]})
    assert pair_trends(*encode([real, real])) == {("x", "y"): pytest.approx(1)}
    assert pair_trends(*encode([real, mirrored])) == {("x", "y"): pytest.approx(0)}
    assert pair_trends(*encode([real, flat])) == {("x", "y"): pytest.approx(0.5)}
    assert pair_trends(*encode([flat, real])) == {}


def test_pairs_with_categories_by_hand():
    same = {"a": ["u", "u", "v", "v"], "b": [True, True, False, None]}
    real, made = pa.table({"n": [0, 0, 10, 10], **same}), pa.table({"n": [0, 10, 0, 99], **same})
    scores = pair_trends(*encode([real, made]))
    assert list(scores) == [("n", "a"), ("n", "b"), ("a", "b")]
    assert scores["a", "b"] == 1
    assert scores["n", "a"] == pytest.approx(0.5)  # beyond the greatest real value: the last bin
    assert scores["n", "b"] == pytest.approx(0.5)


def test_many_categories_are_counted_by_sorting_alike():
    rng = np.random.Generator(np.random.Philox(0))
    real, made = (pa.table({c: [f"{v}" for v in rng.integers(0, 4000, 300)] for c in "ab"}) for _ in range(2))
    pairs = [set(zip(t["a"].to_pylist(), t["b"].to_pylist(), strict=True)) for t in (real, made)]
    assert not pairs[0] & pairs[1]
    assert pair_trends(*encode([real, made]))["a", "b"] == pytest.approx(0)
    assert pair_trends(*encode([real, real]))["a", "b"] == 1


# --- coverage ------------------------------------------------------------------------------------


def test_coverage_by_hand():
    real = pa.table({"c": ["a", "a", "b", "b", "z", None], "n": [0, 2, 4, 6, 8, 10]})
    made = pa.table({"c": ["a", "q", None], "n": [1, 3, 20]})
    assert category_coverage(*encode([real, made])) == {"c": pytest.approx(1 / 3)}
    assert category_coverage(*encode([real, made]), rare=2) == {"c": pytest.approx(1 / 2)}
    assert range_coverage(*encode([real, made])) == {"n": pytest.approx(0.9)}
    assert range_coverage(*encode([real, pa.table({"c": ["a"], "n": [50]})])) == {"n": 0}


def test_ranges_of_constant_and_missing_numbers():
    flat, nothing = pa.table({"n": [3, 3]}), pa.table({"n": pa.array([None, None], pa.int64())})
    assert range_coverage(*encode([flat, pa.table({"n": [1, 4]})])) == {"n": 1}
    assert range_coverage(*encode([flat, pa.table({"n": [4, 5]})])) == {"n": 0}
    assert range_coverage(*encode([flat, nothing])) == {"n": 0}
    assert range_coverage(*encode([nothing, flat])) == {}


# --- copies --------------------------------------------------------------------------------------


def test_pairs_of_very_many_columns_are_sampled(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.Generator(np.random.Philox(9))
    table = pa.table(
        {f"c{i}": rng.normal(0, 1, 50) if i % 2 else rng.integers(0, 3, 50).astype(str) for i in range(12)}
    )
    columns = encode((table, table))
    every = shapes.pair_trends(*columns)
    assert len(every) == 66
    monkeypatch.setattr(shapes, "_PAIRS", 20)
    some = shapes.pair_trends(*columns)
    assert len(some) == 20
    assert some.items() <= every.items()


def test_tails_by_hand():
    rng = np.random.Generator(np.random.Philox(9))
    real = rng.lognormal(10, 0.6, 4000)
    marked = np.where(np.arange(4000) % 100 == 0, rng.uniform(1e6, 1e8, 4000), real)  # 1 % of marks, smeared

    def error(values: np.ndarray) -> float:
        return shapes.tail_errors(*encode((pa.table({"x": real}), pa.table({"x": values}))))["x"]

    assert error(real) == 0
    assert error(rng.lognormal(10, 0.6, 4000)) < 0.1
    assert error(marked) > 10  # where the shape is still 0.99
    assert error(np.minimum(real, np.quantile(real, 0.97))) > 0.1  # a tail that is cut
    assert error(np.full(4000, np.nan)) == 1
    constant = encode((pa.table({"x": [1.0, 1.0]}), pa.table({"x": [1.0, 2.0]})))
    assert shapes.tail_errors(*constant) == {}


@settings(max_examples=50)
@given(st.data())
def test_row_keys_are_equal_exactly_for_equal_rows(data):
    cell = st.one_of(st.none(), st.sampled_from(["a", "b", "c"]))
    number = st.one_of(st.none(), st.sampled_from([0.0, -0.0, 1.5]))
    row = st.tuples(cell, number, cell)
    tables, rows = [], []
    for _ in range(2):
        drawn = data.draw(st.lists(row, min_size=1, max_size=8))
        rows += drawn
        columns = zip("xyz", zip(*drawn, strict=True), (pa.string(), pa.float64(), pa.string()), strict=True)
        tables.append(pa.table({name: pa.array(list(v), kind) for name, v, kind in columns}))
    keys = np.concatenate(row_keys(tables))
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            assert (keys[i] == keys[j]) == (a == b)


def test_row_keys_of_wide_tables_do_not_overflow():
    rng = np.random.Generator(np.random.Philox(0))
    wide = pa.table({f"c{i}": rng.permutation(1000) for i in range(30)})
    (keys,) = row_keys([wide])
    assert len(np.unique(keys)) == 1000
    twice = pa.concat_tables([wide, wide.take(rng.permutation(1000))])
    assert duplicate_rate(twice) == 0.5
    assert exact_copy_rate(wide, twice) == 1


def test_a_skipped_id_hides_no_copy():
    fresh = TRAIN.set_column(0, "id", pa.array(np.arange(len(TRAIN))))
    assert exact_copy_rate(TRAIN, fresh) == 0
    assert exact_copy_rate(TRAIN, fresh, skip=["id"]) == 1


def test_closest_share_finds_copies_and_near_copies_but_not_fresh_rows():
    train, holdout = people(600, 1), people(600, 2)
    share, medians = closest_share(*encode([train, holdout, train], **HOW))
    assert share > 0.99
    assert medians["train"] == 0 < medians["holdout"]
    near = train.set_column(2, "pay", pa.array(train["pay"].to_numpy() + 0.5))
    assert closest_share(*encode([train, holdout, near], **HOW))[0] > 0.9
    assert closest_share(*encode([train, holdout, holdout], **HOW))[0] < 0.01
    assert closest_share(*encode([train, holdout, people(600, 3)], **HOW))[0] == pytest.approx(0.5, abs=0.07)


def test_ties_count_half_and_sizes_are_made_equal():
    flat = pa.table({"c": ["a"] * 50})
    assert closest_share(*encode([flat, flat.slice(0, 5), flat]))[0] == 0.5
    small = people(60, 2)
    assert closest_share(*encode([TRAIN, small, people(900, 4)], **HOW))[0] == pytest.approx(0.5, abs=0.15)


def test_distances_by_hand():
    train = pa.table({"n": [0.0, 1, 2, 3], "c": ["a", "a", "b", "b"]})
    ask = pa.table({"n": [0.0], "c": ["z"]})
    _, medians = closest_share(*encode([train, train, ask]))
    assert medians == {"train": pytest.approx(1), "holdout": pytest.approx(1)}
    ask = pa.table({"n": pa.array([None], pa.float64()), "c": ["a"]})
    _, medians = closest_share(*encode([train, train, ask]))
    # (1/2 - 3/8)² + 3/4
    assert medians["train"] == pytest.approx(np.sqrt(1 / 64 + 3 / 4))


# --- models --------------------------------------------------------------------------------------


def test_a_number_as_target_makes_a_regression():
    found = efficacy(*encode([TRAIN, HOLDOUT, shuffled(TRAIN)], **HOW), target="pay")
    assert found is not None
    assert found.task == "regression"
    assert all(score["r2"] > 0.8 for score in found.real.values())
    assert all(score["r2"] < 0.2 for score in found.fake.values())


def test_many_classes_and_a_class_that_the_synthetic_rows_lack():
    lacking = TRAIN.filter(pa.array([job != "pilot" for job in TRAIN["job"].to_pylist()]))
    found = efficacy(*encode([TRAIN, HOLDOUT, lacking], **HOW), target="job")
    assert found is not None
    assert found.task == "classification"
    for model, score in found.fake.items():
        assert 0.2 < score["f1"] < found.real[model]["f1"] - 0.2
        assert 0.5 < score["auc"] < found.real[model]["auc"]


@pytest.mark.parametrize("target", ["member", "job", "pay"])
def test_a_synthetic_target_that_is_constant_or_missing_scores_as_nothing_learnt(target):
    kind = TRAIN.schema.field(target).type
    column = TRAIN.column_names.index(target)
    constant = pa.array([TRAIN[target][0].as_py()] * len(TRAIN), kind)
    for values in (constant, pa.nulls(len(TRAIN), kind)):
        made = TRAIN.set_column(column, target, values)
        found = efficacy(*encode([TRAIN.slice(0, 300), HOLDOUT, made], **HOW), target=target)
        assert found is not None
        for score in found.fake.values():
            assert score.get("auc", 0.5) == 0.5
            assert score.get("r2", 0) <= 0


def test_strange_categories_and_rare_classes_do_not_break_models():
    odd = TRAIN.set_column(4, "job", pa.array([f"job {i}" for i in range(len(TRAIN))]))
    assert efficacy(*encode([TRAIN, HOLDOUT, odd], **HOW), target="member") is not None
    found = efficacy(*encode([odd, HOLDOUT, odd], **HOW), target="job")
    assert found is None  # no class of the holdout is known: one class for all of them
    one = TRAIN["job"].to_pylist()
    one[0] = "the only one"
    single = TRAIN.set_column(4, "job", pa.array(one))
    assert efficacy(*encode([single, HOLDOUT, single], **HOW), target="job") is not None


def test_without_anything_to_predict_there_is_no_efficacy():
    flat = TRAIN.set_column(5, "member", pa.array([True] * len(TRAIN)))
    assert efficacy(*encode([flat, HOLDOUT, TRAIN], **HOW), target="member") is None
    alone = TRAIN.select(["member"])
    assert efficacy(*encode([alone, HOLDOUT.select(["member"]), alone]), target="member") is None


def test_detection_names_the_column_that_gives_the_rows_away():
    made = people(1600, 3)
    off = made.set_column(2, "pay", pa.array(made["pay"].to_numpy() * 1.5))
    area, columns = detection(*encode([TRAIN, off], **HOW))
    assert area > 0.8
    assert next(iter(columns)) == "pay"
    assert len(columns) == 5


# --- tables as they come -------------------------------------------------------------------------


def test_columns_of_every_type_constant_and_empty_ones_do_not_break_the_scores():
    n = 90
    rng = np.random.Generator(np.random.Philox(0))

    def table() -> pa.Table:
        stamps = rng.integers(10**18, 2 * 10**18, n)
        return pa.table(
            {
                "flat": pa.array([7] * n),
                "flat text": pa.array(["x"] * n),
                "no numbers": pa.nulls(n, pa.float64()),
                "no texts": pa.nulls(n, pa.string()),
                "nothing": pa.nulls(n),
                "infinite": pa.array(np.where(rng.random(n) < 0.5, np.inf, 1.0)),
                "small": pa.array(rng.integers(0, 9, n), pa.int8()),
                "single": pa.array(rng.random(n), pa.float32()),
                "money": pa.array(rng.integers(0, 99, n)).cast(pa.decimal128(22, 2)),
                "day": pa.array(rng.integers(0, 20000, n), pa.int32()).cast(pa.date32()),
                "stamp": pa.array(stamps, pa.timestamp("ns", "UTC")),
                "clock": pa.array(rng.integers(0, 86400, n), pa.int32()).cast(pa.time32("s")),
                "span": pa.array(rng.integers(0, 10**9, n), pa.duration("us")),
                "large": pa.array([f"{i % 5}" for i in range(n)], pa.large_string()),
                "yes": pa.array(rng.random(n) < 0.5),
            }
        )

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = table_scores(table(), table(), table(), target="yes", rare=2)
    assert all(0 <= value <= 1 for value in (found.fake | found.real).values())
    shapes = {each["of"]: each["fake"] for each in found.details["column_shapes"]}
    assert all(shapes[c] == 1 for c in ("flat", "flat text", "no numbers", "no texts", "nothing"))


def test_tables_of_one_kind_of_column_have_what_can_be_measured():
    numbers = [t.select(["age", "pay"]).slice(0, 200) for t in (TRAIN, HOLDOUT, people(200, 3))]
    found = table_scores(*numbers, target="pay")
    assert "category_coverage" not in found.fake
    assert found.fake["efficacy_r2"] > 0.5
    texts = [t.select(["city", "job"]).slice(0, 200) for t in (TRAIN, HOLDOUT, people(200, 3))]
    found = table_scores(*texts)
    assert "range_coverage" not in found.fake
    assert found.real["exact_copy_rate"] > 0.9  # so few combinations are there
    masks = {"valid": np.array([True, False]), "holdout_valid": np.array([True])}
    assert table_scores(*texts, **masks).fake["constraint_validity"] == 0.5


def test_codes_are_shared_whatever_the_dictionaries():
    first = pa.table({"c": pa.array(["a", "b", None]).dictionary_encode()})
    second = pa.table({"c": pa.array(["b", "c", "a"])})
    a, b = encode([first, second])
    assert a.labels == b.labels == (("a", "b", "c"),)
    assert a.categories[:, 0].tolist() == [1, 2, 0]
    assert b.categories[:, 0].tolist() == [2, 3, 1]


def test_dates_of_another_unit_are_the_same_dates():
    day = [datetime.datetime(2020, 1, 1), datetime.datetime(2021, 1, 1)]
    first, second = (pa.table({"d": pa.array(day, pa.timestamp(unit))}) for unit in ("s", "us"))
    assert column_shapes(*encode([first, second])) == {"d": 1}
    assert exact_copy_rate(first, second) == 1


def test_a_sample_is_distinct_rows_in_an_order_of_the_seed():
    assert sorted(sample(10, 10, 3)) == list(range(10))
    assert len(set(sample(1000, 50, 3).tolist())) == 50
    assert sample(1000, 50, 3).tolist() != sample(1000, 50, 4).tolist()


@needs_shared("adult")
def test_adult_scores_as_is_known_of_it():
    """The figures are those that others find; 4,000 rows for the models, to be quick."""
    folder = SHARED_DATA / "adult"
    names = (
        "age workclass fnlwgt education education-num marital-status occupation relationship race "
        "sex capital-gain capital-loss hours-per-week native-country income"
    ).split()

    def read(file: str, skip: int) -> pa.Table:
        text = (folder / file).read_text().replace(", ", ",").replace(".\n", "\n")
        return csv.read_csv(
            io.BytesIO(text.encode()),
            csv.ReadOptions(column_names=names, skip_rows=skip),
            convert_options=csv.ConvertOptions(null_values=["?"], strings_can_be_null=True),
        )

    train, test = read("adult.data", 0), read("adult.test", 1)
    assert np.mean(list(column_shapes(*encode([train, test])).values())) > 0.99
    trends = pair_trends(*encode([train, shuffled(train)]))
    assert len(trends) == 15 * 14 / 2
    assert min(trends, key=lambda pair: trends[pair]) == ("education", "education-num")
    assert duplicate_rate(train) == pytest.approx(24 / 32561)  # as the data sheet says
    found = efficacy(*encode([train, test, train.slice(0, 4000)]), target="income")
    assert found is not None
    assert found.real["boosted trees"]["auc"] == pytest.approx(0.91, abs=0.01)
    assert found.fake["boosted trees"]["auc"] == pytest.approx(0.91, abs=0.01)
