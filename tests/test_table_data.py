"""Training rows by place: a pure function, every row once an epoch or by category; real tables."""

import pickle
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import SHARED_DATA, needs_shared
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import ADULT, ENGINES, back, invented, load, spec_of

from genai_ray.errors import UserError
from genai_ray.modalities import codec_from_json
from genai_ray.table.source import TableData, describe_file, load_table
from genai_ray.table.spec import TableDataSpec


def small(conditional: bool, rows: int = 125) -> TableData:
    table = pa.table(
        {
            "colour": (["red"] * 80 + ["blue"] * 30 + [None] * 15)[:rows],
            "size": [float(i % 40) for i in range(rows)],
            "shape": ["round", "square", "flat", "flat", "flat"] * (rows // 5),
        }
    )
    return load(table, conditional)


@pytest.fixture(scope="module")
def plain() -> TableData:
    return small(False)


@pytest.fixture(scope="module")
def sampled() -> TableData:
    return small(True)


def test_a_place_holds_codes_and_then_scalars(plain: TableData):
    rows, labels = plain.at(0, 0, plain.n)
    assert labels is None
    assert rows.dtype == np.float32
    assert rows.shape == (plain.n, 3 + 1)
    assert rows.flags.writeable
    whole = np.concatenate([plain.codes, plain.scalars], 1)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, whole.tolist()))


def test_every_row_comes_once_an_epoch_in_a_fresh_order(plain: TableData):
    # Rows that can be told apart.
    data = replace(plain, scalars=np.arange(plain.n, dtype=np.float32)[:, None])
    epochs = [data.at(5, e * data.n, (e + 1) * data.n)[0][:, -1] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(data.n))
    assert len({e.tobytes() for e in epochs}) == 3
    assert (data.at(6, 0, data.n)[0][:, -1] != epochs[0]).any()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**62), start=st.integers(0, 10**9), count=st.integers(1, 300), cut=st.integers(0, 300))
def test_a_place_depends_on_seed_and_number_alone(seed: int, start: int, count: int, cut: int):
    cut = min(cut, count)
    for data in (_PLAIN, _SAMPLED):
        whole, labels = data.at(seed, start, start + count)
        pieces = [data.at(seed, start + a, start + b) for a, b in ((0, cut), (cut, count)) if a < b]
        assert (np.concatenate([p[0] for p in pieces]) == whole).all()
        if labels is not None:
            assert (np.concatenate([p[1] for p in pieces]) == labels).all()  # pyright: ignore


_PLAIN, _SAMPLED = small(False), small(True)


def test_a_drawn_row_has_the_category_it_was_drawn_by(sampled: TableData):
    rows, labels = sampled.at(1, 0, 5000)
    assert labels is not None
    assert labels.dtype == np.int64
    chosen = labels >= 0
    assert (chosen.sum(1) == 1).all()
    assert (rows[:, : labels.shape[1]][chosen] == labels[chosen]).all()
    assert not chosen[:, [i for i, p in enumerate(sampled.codec.parts) if not p.discrete]].any()


def test_categories_are_drawn_by_the_logarithm_of_their_count(sampled: TableData):
    draws = 60_000
    _, labels = sampled.at(2, 0, draws)
    assert labels is not None
    discrete = [i for i, p in enumerate(sampled.codec.parts) if p.discrete]
    for part in discrete:
        found = np.bincount(labels[labels[:, part] >= 0, part]) / draws
        counts = np.bincount(sampled.codes[:, part])
        expected = np.log1p(counts) / np.log1p(counts).sum() / len(discrete)
        assert np.abs(found - expected).max() < 4 * np.sqrt(expected.max() / draws)


def test_rows_of_a_category_are_drawn_evenly(sampled: TableData):
    data = replace(sampled, scalars=np.arange(sampled.n, dtype=np.float32)[:, None])
    rows, labels = data.at(3, 0, 40_000)
    assert labels is not None
    blue = labels[:, 0] == 0
    counts = Counter(rows[blue, -1].tolist())
    assert len(counts) == (sampled.codes[:, 0] == 0).sum()
    mean = blue.sum() / len(counts)
    assert all(abs(c - mean) < 5 * np.sqrt(mean) for c in counts.values())


def test_the_digest_is_of_the_data(plain: TableData):
    assert plain.digest == small(False).digest
    assert plain.digest == pickle.loads(pickle.dumps(plain)).digest
    assert plain.digest != small(False, 120).digest
    other = plain.scalars.copy()
    other[0] += 0.01
    assert replace(plain, scalars=other).digest != plain.digest


def test_sampling_needs_categories():
    with pytest.raises(UserError, match=r"model\.conditional.*categories"):
        load(pa.table({"x": [1.0, 2, 3, 4] * 20}), True)


def test_the_split_is_that_of_images():
    from genai_ray.order import split

    table = pa.table({"x": pa.array(range(5, 105)).cast(pa.float64()), "y": ["a", "b"] * 50})
    data = load(table, holdout=0.3)
    train, held = split(0.3, 100, "row")
    assert data.train["x"].to_pylist() == [5 + i for i in train]
    assert data.holdout["x"].to_pylist() == [5 + i for i in held]


@pytest.mark.parametrize(
    ("source", "rows", "columns", "target"),
    [
        ("breast_cancer", 569, 31, {"malignant", "benign"}),
        ("wine", 178, 14, {"class_0", "class_1", "class_2"}),
        ("diabetes", 442, 11, None),
    ],
)
def test_tables_of_scikit_learn(source: Any, rows: int, columns: int, target: set[str] | None):
    spec = TableDataSpec(source=source)
    told = describe_file(spec)
    assert (told["rows"], len(told["columns"])) == (rows, columns)
    data = load_table(spec, conditional=target is not None)
    assert isinstance(data, TableData)
    assert data.n + data.holdout.num_rows == rows
    last = data.train.column(columns - 1).to_pylist()
    if target:
        assert set(last) == target
        assert back(data)["target"].to_pylist() == last
    else:
        assert 25 <= min(last) <= max(last) <= 346
        assert data.codec.schema.field("bmi").type == pa.float64()


# --- real files ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adult() -> TableData:
    folder = SHARED_DATA / "adult"
    spec = spec_of(folder / "adult.data", names=ADULT, comment="|")
    spec = spec.model_copy(update={"holdout_root": str(folder / "adult.test")})
    return load_table(spec, conditional=True)


@needs_shared("adult")
def test_adult(adult: TableData):
    assert (adult.n, adult.holdout.num_rows) == (32_561, 16_281)
    kinds = {c.name: c.kind for c in adult.codec.columns}
    assert [n for n, k in kinds.items() if k == "numerical"] == [
        "age",
        "fnlwgt",
        "education-num",
        "capital-gain",
        "capital-loss",
        "hours-per-week",
    ]
    assert adult.train["workclass"].null_count == 1836
    parts = {p.name: p for p in adult.codec.parts}
    # Most have neither gain nor loss: an atom.
    assert 0.0 in parts["capital-gain"].offset
    assert set(parts["education-num"].scale) == {0}
    assert parts["native-country"].missing == parts["native-country"].size - 1
    # One row has it.
    assert "Holand" not in str(adult.codec.to_json())
    # Labels of the test file end with a stop, and so were never seen in training.
    assert set(adult.holdout["income"].to_pylist()) == {"<=50K.", ">50K."}


@needs_shared("adult")
def test_adult_comes_back(adult: TableData):
    made = back(adult)
    assert made.schema == adult.train.schema
    for part in adult.codec.parts:
        real, again = adult.train[part.name].to_pylist(), made[part.name].to_pylist()
        same = np.mean([a == b for a, b in zip(real, again, strict=True)])
        assert same > (0.999 if part.name != "fnlwgt" else 0.99), part.name
    assert set(invented(adult, 500)["education"].to_pylist()) <= set(adult.train["education"].to_pylist())


@needs_shared("adult")
def test_a_batch_is_cut_in_no_time(adult: TableData):
    import time

    adult.at(0, 0, 500)
    best = min(_seconds(lambda i=i: adult.at(0, 500 * i, 500 * i + 500), time) for i in range(50))
    assert best < 1e-3


def _seconds(call: Any, time: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@needs_shared("cmapss")
def test_engines():
    folder = SHARED_DATA / "cmapss"
    spec = spec_of(folder / "train_FD001.txt", names=ENGINES, delimiter="space", numbers="quantiles")
    told = describe_file(spec)["columns"]
    assert len(told) == 26
    assert told["unit"]["range"] == [1, 100]
    data = load_table(spec)
    constants = [c.name for c in data.codec.columns if c.kind == "constant"]
    assert {"setting3", "s1", "s18", "s19"} <= set(constants)
    assert not {"s2", "s3", "cycle"} & set(constants)
    made = back(data)
    assert made.schema == data.train.schema
    for part in data.codec.parts:
        assert part.size <= 64 + 100
        assert min(part.shares) * data.n >= 5
        real, again = data.train[part.name].to_numpy(), made[part.name].to_numpy()
        assert (real == again).mean() > 0.99, part.name
    assert codec_from_json(data.codec.to_json()) == data.codec
