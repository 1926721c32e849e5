"""Copying alarms must ring for copies and stay silent for honest samples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from genai_ray.metrics.memorisation import copy_rates, duplicate_rate, nearest


def images(n: int, *, seed: int) -> np.ndarray:
    rng = np.random.Generator(np.random.Philox(seed))
    return rng.integers(0, 256, size=(n, 6, 6, 1), dtype=np.uint8)


def by_definition(queries: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    gaps = queries[:, None].astype(float) - reference[None].astype(float)
    distances = np.sqrt((gaps**2).sum(axis=tuple(range(2, gaps.ndim))))
    return distances.min(axis=1), distances.argmin(axis=1)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([b"a", b"b", b"c"], 0),
        ([b"a", b"a", b"b", b"a"], 0.5),
        ([b"a", b"a\0"], 0),
        (np.zeros((4, 2, 2), np.uint8), 0.75),
        (np.arange(12.0).reshape(4, 3), 0),
        (np.array([[1, 2], [3, 4], [1, 2]], order="F"), 1 / 3),
    ],
)
def test_duplicate_rate_counts_repeats(rows, expected):
    assert duplicate_rate(rows) == pytest.approx(expected)


@given(st.lists(st.binary(max_size=2), min_size=1))
def test_duplicate_rate_matches_a_set(rows):
    assert duplicate_rate(rows) == pytest.approx(1 - len(set(rows)) / len(rows))


@settings(max_examples=50, deadline=None)
@given(
    arrays(np.uint8, st.tuples(st.integers(1, 6), st.just(3))),
    arrays(np.uint8, st.tuples(st.integers(1, 6), st.just(3))),
    st.integers(1, 8),
)
def test_nearest_is_exact_for_every_chunk_size(queries, reference, chunk):
    expected_distances, expected_indices = by_definition(queries, reference)
    distances, indices = nearest(queries, reference, chunk=chunk)
    np.testing.assert_allclose(distances, expected_distances / 255, rtol=1e-12)
    np.testing.assert_array_equal(indices, expected_indices)


def test_nearest_of_floats():
    rng = np.random.Generator(np.random.Philox(0))
    queries, reference = rng.normal(size=(30, 2, 4)), rng.normal(size=(50, 2, 4))
    expected_distances, expected_indices = by_definition(queries, reference)
    distances, indices = nearest(queries, reference, chunk=7)
    np.testing.assert_allclose(distances, expected_distances)
    np.testing.assert_array_equal(indices, expected_indices)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_equal_rows_are_at_distance_exactly_zero(dtype):
    reference = images(200, seed=0).astype(dtype) * dtype(1 if dtype is np.uint8 else 0.1)
    distances, indices = nearest(reference[::-1], reference, chunk=64)
    assert (distances == 0).all()
    np.testing.assert_array_equal(indices, np.arange(200)[::-1])


def test_one_grey_level_is_told_from_a_copy():
    reference = images(5, seed=0) | 1
    almost = reference.copy()
    almost[:, 0, 0, 0] -= 1
    distances, _ = nearest(almost, reference)
    np.testing.assert_allclose(distances, 1 / 255)


def test_a_copying_generator_rings_and_the_holdout_does_not():
    train, holdout = images(400, seed=0), images(300, seed=1)
    fake = images(200, seed=2)
    fake[:60] = train[:60]
    fake[60:100] = train[60:100] // 2 * 2  # a grey level at most: near, but not equal
    rates = copy_rates(train, holdout, fake)
    assert rates["fake"]["exact_copy_rate"] == pytest.approx(0.3)
    assert rates["fake"]["near_copy_rate"] == pytest.approx(0.5, abs=0.05)
    assert rates["real"]["exact_copy_rate"] == 0
    assert rates["real"]["near_copy_rate"] == pytest.approx(0.01, abs=0.005)
    assert rates["threshold"] > 0


def test_an_honest_generator_scores_like_the_holdout():
    rates = copy_rates(images(400, seed=0), images(1000, seed=1), images(1000, seed=2))
    assert rates["fake"]["exact_copy_rate"] == 0
    assert rates["fake"]["near_copy_rate"] < 0.03


def test_a_holdout_inside_the_training_set_does_not_hide_copies():
    train = images(50, seed=0)
    rates = copy_rates(train, train[:10], train[20:30])
    assert rates["threshold"] == 0
    assert rates["fake"] == {"exact_copy_rate": 1, "near_copy_rate": 1}
