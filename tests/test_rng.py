"""Draws are pinned to published vectors, and any part of a draw equals the slice of the whole."""

import hashlib
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_ray import rng
from genai_ray.rng import Stream

ONES = 2**64 - 1
SEEDS = st.integers(0, 2**63 - 1)
STREAMS = st.sampled_from(list(Stream))
SIZES = st.integers(1, 40)


def counter(words: list[int]) -> int:
    """A Philox counter from its words, the lowest first."""
    return sum(word << 64 * i for i, word in enumerate(words))


# The kat_vectors file of Random123 (Salmon et al. 2011), lines "philox4x64 10".
KNOWN_ANSWERS = [
    pytest.param(
        [0, 0, 0, 0],
        (0, 0),
        [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B],
        id="zeros",
    ),
    pytest.param(
        [ONES, ONES, ONES, ONES],
        (ONES, ONES),
        [0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0],
        id="ones",
    ),
    pytest.param(
        [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89],
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        [0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6],
        id="pi",
    ),
]


@pytest.mark.parametrize(("words", "key", "expected"), KNOWN_ANSWERS)
def test_bits_are_philox_4x64_10(words: list[int], key: tuple[int, int], expected: list[int]):
    # NumPy counts up before each block, so the block of counter c is the one that starts at c - 1.
    start = (counter(words) - 1) % 2**256
    assert rng.bits(*key, start, 1, 4)[0].tolist() == expected


def test_first_draws_never_change():
    assert rng.bits(0, Stream.SAMPLE_NOISE, 0, 1, 4)[0].tolist() == [
        0xD037F8C3F9A1D176,
        0xC057419B4C210765,
        0xABF13115117B0065,
        0x7BAE035DEA6EA5C0,
    ]
    assert [x.hex() for x in rng.normal(0, Stream.SAMPLE_NOISE, 0, 1, 8)[0].tolist()] == [
        "0x1.d131920000000p-1",
        "0x1.f647a40000000p+0",
        "0x1.e82a760000000p+0",
        "0x1.c7d50c0000000p-1",
        "-0x1.e5b71a0000000p+0",
        "-0x1.1059880000000p-1",
        "-0x1.4f49ca0000000p-1",
        "0x1.5b7e340000000p-1",
    ]
    assert rng.permute(0, Stream.HOLDOUT, np.arange(10), 10).tolist() == [9, 5, 3, 1, 7, 0, 6, 4, 8, 2]
    assert rng.fold(1, 2, 3) == 3862435714475238640


def test_stream_numbers_never_change():
    assert {s.name: s.value for s in Stream} == {
        "SAMPLE_NOISE": 1,
        "SAMPLE_CLASS": 2,
        "TRAIN_ORDER": 3,
        "TRAIN_NOISE": 4,
        "TRAIN_DROPOUT": 5,
        "HOLDOUT": 6,
        "EVALUATE": 7,
        "INIT": 8,
        "TRAIN_UNIFORM": 9,
        "SAMPLE_ID": 10,
        "TABLE_MODES": 11,
        "SAMPLE_CONDITION": 12,
        "SAMPLE_RETRY": 13,
    }


def test_quantile_table_never_changes():
    table = rng._quantiles(None)
    digest = hashlib.sha256(table.astype("<f4").tobytes()).hexdigest()
    assert digest == "1cfbba1e07e34386a57626f82aeb43e6ed54ba70a3ea6b7d964dc66a841074a8"


def test_quantile_table_is_a_standard_normal():
    table = rng._quantiles(None).astype(np.float64)
    assert (np.diff(table) > 0).all()
    np.testing.assert_array_equal(table, -table[::-1])
    assert table.max() == pytest.approx(4.2, abs=0.15)
    assert np.mean(table**2) == pytest.approx(1, abs=1e-4)
    assert np.mean(table**4) == pytest.approx(3, abs=5e-3)


@settings(deadline=None, max_examples=60)
@given(st.data(), SEEDS, STREAMS, SIZES)
def test_a_range_equals_the_slice_of_the_whole(data: Any, seed: int, stream: Stream, size: int):
    begin, count = data.draw(st.integers(0, 2**40)), data.draw(st.integers(1, 30))
    first = data.draw(st.integers(0, count))
    length = data.draw(st.integers(0, count - first))
    part = slice(first, first + length)
    for draw in (rng.bits, rng.normal):
        whole = draw(seed, stream, begin, count, size)
        assert whole.shape == (count, size)
        np.testing.assert_array_equal(draw(seed, stream, begin + first, length, size), whole[part])


@pytest.mark.parametrize("words", [1, 3, 4, 5])
def test_samples_share_no_counter(words: int):
    draws = rng.bits(0, Stream.SAMPLE_NOISE, 0, 5000, words)
    assert len(np.unique(draws)) == draws.size


def test_moments_of_normals():
    x = rng.normal(3, Stream.SAMPLE_NOISE, 10**9, 20_000, 50).astype(np.float64)
    # Six standard errors of a million draws.
    assert abs(x.mean()) < 6e-3
    assert abs(x.var() - 1) < 6 * 2**0.5 * 1e-3
    assert abs((x**3).mean()) < 6 * 15**0.5 * 1e-3
    assert abs((x**4).mean() - 3) < 6 * 96**0.5 * 1e-3


def rows(seed: int = 0, stream: int = Stream.SAMPLE_NOISE, start: int = 0) -> np.ndarray:
    return rng.normal(seed, stream, start, 1, 100_000)[0].astype(np.float64)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        pytest.param(rows(), rows(stream=Stream.SAMPLE_CLASS), id="streams"),
        pytest.param(rows(), rows(seed=1), id="seeds"),
        pytest.param(rows(seed=2, stream=3), rows(seed=3, stream=2), id="swapped-key"),
        pytest.param(rows(), rows(start=1), id="samples"),
        pytest.param(rows()[1:], rows()[:-1], id="coordinates"),
    ],
)
def test_neighbours_are_independent(a: np.ndarray, b: np.ndarray):
    bound = 5 / len(a) ** 0.5
    assert abs(np.corrcoef(a, b)[0, 1]) < bound
    assert abs(np.corrcoef(a**2, b**2)[0, 1]) < bound


@settings(deadline=None, max_examples=80)
@given(SEEDS, STREAMS, st.integers(1, 3000))
def test_permute_is_a_bijection(seed: int, stream: Stream, n: int):
    out = rng.permute(seed, stream, np.arange(n), n)
    assert sorted(out.tolist()) == list(range(n))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 15, 16, 17, 255, 256, 257, 65_537])
def test_permute_around_powers_of_two(n: int):
    assert sorted(rng.permute(1, Stream.TRAIN_ORDER, np.arange(n), n).tolist()) == list(range(n))


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(2, 2**62), st.data())
def test_permute_of_one_index_needs_no_table(seed: int, n: int, data: Any):
    index = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=8, unique=True))
    together = rng.permute(seed, Stream.TRAIN_ORDER, np.array(index), n).tolist()
    alone = [int(rng.permute(seed, Stream.TRAIN_ORDER, np.array([i]), n)[0]) for i in index]
    assert together == alone
    assert len(set(alone)) == len(index)
    assert all(0 <= x < n for x in alone)


def test_permute_depends_on_seed_and_stream():
    index = np.arange(1000)
    orders = {rng.permute(s, t, index, 1000).tobytes() for s in range(4) for t in Stream}
    assert len(orders) == 4 * len(Stream)


def test_permute_mixes_well():
    n = 20_000
    out = rng.permute(0, Stream.TRAIN_ORDER, np.arange(n), n)
    assert abs(np.corrcoef(np.arange(n), out)[0, 1]) < 5 / n**0.5
    # A run of the order is spread evenly: chi-squared of 20 cells, 99.999 % point of 19 degrees.
    counts = np.histogram(out[: n // 10], bins=20, range=(0, n))[0]
    assert ((counts - 100) ** 2 / 100).sum() < 59


@pytest.mark.parametrize("index", [[-1], [10], [0, 10], [3, -5, 4]])
def test_permute_refuses_what_is_out_of_range(index: list[int]):
    with pytest.raises(ValueError, match=r"0\.\.9"):
        rng.permute(0, Stream.HOLDOUT, np.array(index), 10)


def test_permute_of_nothing_is_nothing():
    assert rng.permute(0, Stream.HOLDOUT, np.array([], np.int64), 10).tolist() == []


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4), st.data())
def test_fold_depends_on_each_part(seed: int, parts: list[int], data: Any):
    value = rng.fold(seed, *parts)
    assert 0 <= value < 2**63
    at = data.draw(st.integers(0, len(parts) - 1))
    changed = [p ^ 1 if i == at else p for i, p in enumerate(parts)]
    assert rng.fold(seed, *changed) != value
    assert rng.fold(seed ^ 1, *parts) != value
    assert rng.fold(seed, *parts, 0) != value


def test_fold_depends_on_the_order():
    values = [rng.fold(0, *parts) for parts in [(1, 2), (2, 1), (1,), (2,), (1, 2, 0), (0, 1, 2)]]
    assert all(a != b for a, b in pairwise(sorted(values)))


def test_uniforms_are_uniform_and_by_index():
    values = rng.uniform(3, Stream.TRAIN_UNIFORM, 0, 20_000, 5)
    assert values.dtype == np.float32
    assert 0 < values.min() < 0.001
    assert 0.999 < values.max() < 1
    assert abs(values.mean() - 0.5) < 0.003
    assert abs(values.std() - 12**-0.5) < 0.003
    assert np.array_equal(rng.uniform(3, Stream.TRAIN_UNIFORM, 70, 30, 5), values[70:100])


@pytest.mark.parametrize("truncation", [0.5, 2.0])
def test_truncated_normals_are_cut_normals(truncation: float):
    from scipy.stats import truncnorm

    values = rng.normal(3, Stream.SAMPLE_NOISE, 0, 20_000, 5, truncation)
    assert np.abs(values).max() <= truncation
    assert abs(values.std() - truncnorm(-truncation, truncation).std()) < 0.01
    # The same random bits read another table: a smaller normal stays a smaller one.
    whole = rng.normal(3, Stream.SAMPLE_NOISE, 0, 100, 5)[:, 0]
    assert np.all(np.diff(values[:100, 0][np.argsort(whole, kind="stable")]) >= 0)
