"""Fidelity scores on cases whose answer is known without running them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_ray.metrics import fidelity
from genai_ray.metrics.fidelity import Moments, frechet_distance, frechet_from_moments, kernel_distance, prdc


def normal(n: int, d: int, *, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).standard_normal((n, d))


def modes(n: int, count: int, *, seed: int) -> np.ndarray:
    """n samples spread evenly over `count` far-apart clusters in 8 dimensions."""
    centres = 20 * np.eye(8)[:count]
    return centres[np.arange(n) % count] + normal(n, 8, seed=seed)


def test_identical_sets_score_perfectly():
    x = normal(300, 8, seed=0)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-10)
    assert prdc(x, x, k=5) == {"precision": 1, "recall": 1, "density": 1, "coverage": 1}


def test_frechet_of_a_shift_is_its_squared_length():
    x, shift = normal(200, 5, seed=0), np.array([3.0, 0, -4, 0, 0])
    assert frechet_distance(x, x + shift) == pytest.approx(25)


def test_frechet_of_a_rescaling_has_the_closed_form():
    x = normal(200, 5, seed=0)
    variance = np.trace(np.cov(x, rowvar=False))
    expected = np.sum(x.mean(axis=0) ** 2) + variance  # (3 - 2)^2 times each
    assert frechet_distance(2 * x, 3 * x) == pytest.approx(expected)


def test_frechet_agrees_with_the_textbook_formula():
    linalg = pytest.importorskip("scipy.linalg")
    real, fake = normal(100, 6, seed=0), normal(90, 6, seed=1) @ normal(6, 6, seed=2)
    a, b = np.cov(real, rowvar=False), np.cov(fake, rowvar=False)
    shift = real.mean(axis=0) - fake.mean(axis=0)
    expected = shift @ shift + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)
    assert frechet_distance(real, fake) == pytest.approx(expected)


def test_frechet_survives_a_singular_covariance():
    collapsed = np.ones((50, 8))
    expected = np.trace(np.cov(x := normal(50, 8, seed=0), rowvar=False))
    expected += np.sum((x.mean(axis=0) - 1) ** 2)
    assert frechet_distance(x, collapsed) == pytest.approx(expected)


def test_frechet_survives_a_far_origin():
    real, fake = normal(200, 4, seed=0), normal(200, 4, seed=1)
    assert frechet_distance(real + 1e6, fake + 1e6) == pytest.approx(frechet_distance(real, fake))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=4), st.integers(0, 2**32))
def test_merged_moments_equal_those_of_the_whole(cuts, seed):
    x = normal(40, 3, seed=seed)
    merged = sum((Moments.of(shard) for shard in np.split(x, sorted(cuts))), Moments.of(x[:0]))
    whole = Moments.of(x)
    assert merged.n == whole.n
    np.testing.assert_allclose(merged.mean(), whole.mean(), atol=1e-12)
    np.testing.assert_allclose(merged.covariance(), whole.covariance(), atol=1e-12)


def test_frechet_from_moments_equals_frechet_distance():
    real, fake = normal(100, 4, seed=0), 1.5 * normal(80, 4, seed=1)
    merged = Moments.of(fake[:30]) + Moments.of(fake[30:])
    expected = frechet_distance(real, fake)
    assert frechet_from_moments(Moments.of(real), merged) == pytest.approx(expected)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_frechet_is_symmetric(seed):
    real, fake = normal(20, 3, seed=seed), 2 * normal(30, 3, seed=seed + 1)
    assert frechet_distance(real, fake) == pytest.approx(frechet_distance(fake, real))


def test_kernel_distance_is_unbiased_at_small_n():
    values = [kernel_distance(normal(40, 4, seed=2 * i), normal(40, 4, seed=2 * i + 1)) for i in range(200)]
    standard_error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * standard_error
    assert min(values) < 0 < max(values)


def test_kernel_distance_agrees_with_its_definition():
    real, fake = normal(6, 3, seed=0), normal(5, 3, seed=1) + 1
    k = lambda a, b: (a @ b / 3 + 1) ** 3  # noqa: E731
    pairs_real = [k(a, b) for i, a in enumerate(real) for j, b in enumerate(real) if i != j]
    pairs_fake = [k(a, b) for i, a in enumerate(fake) for j, b in enumerate(fake) if i != j]
    across = [k(a, b) for a in real for b in fake]
    expected = np.mean(pairs_real) + np.mean(pairs_fake) - 2 * np.mean(across)
    assert kernel_distance(real, fake) == pytest.approx(expected)


def test_kernel_distance_on_subsets_approximates_the_whole(monkeypatch):
    real, fake = normal(2000, 4, seed=0), normal(2000, 4, seed=1) + 0.5
    whole = kernel_distance(real, fake)
    for name, value in (("_WHOLE", 1_000), ("_SUBSETS", 20), ("_SUBSET", 400)):
        monkeypatch.setattr(fidelity, name, value)
    parts = kernel_distance(real, fake)
    assert parts == kernel_distance(real, fake) != whole
    assert parts == pytest.approx(whole, rel=0.1)


def test_same_distribution_scores_high_on_all_four():
    scores = prdc(normal(1000, 8, seed=0), normal(1000, 8, seed=1), k=5)
    assert scores["density"] == pytest.approx(1, abs=0.1)
    assert min(scores.values()) > 0.85


def test_collapse_keeps_precision_and_loses_recall_and_coverage():
    real = normal(500, 8, seed=0)
    fake = 0.01 * normal(500, 8, seed=1)
    scores = prdc(real, fake, k=5)
    assert scores["precision"] > 0.95
    assert scores["recall"] < 0.05
    assert scores["coverage"] < 0.5


def test_collapse_to_one_point_is_scored_not_refused():
    scores = prdc(normal(200, 8, seed=0), np.zeros((200, 8)), k=5)
    assert scores["precision"] == 1
    assert scores["recall"] == 0


def test_noise_loses_precision():
    scores = prdc(normal(500, 8, seed=0), 50 + normal(500, 8, seed=1), k=5)
    assert scores == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_dropped_modes_lower_recall_and_coverage_only():
    real, fake = modes(600, 6, seed=0), modes(600, 3, seed=1)
    scores = prdc(real, fake, k=5)
    assert scores["precision"] > 0.8
    assert scores["recall"] < 0.55
    assert scores["coverage"] < 0.55


def test_a_real_outlier_inflates_precision_but_hardly_density():
    real = np.concatenate([normal(300, 4, seed=0), np.full((1, 4), 1000.0)])
    fake = np.full((301, 4), 500.0) + normal(301, 4, seed=1)
    scores = prdc(real, fake, k=5)
    assert scores["precision"] == 1
    assert scores["density"] < 0.25
    assert scores["coverage"] < 0.01


def test_repeated_real_samples_are_covered_by_their_copies():
    real = np.repeat(normal(20, 4, seed=0), 10, axis=0)
    scores = prdc(real, real, k=5)
    assert scores["precision"] == scores["recall"] == scores["coverage"] == 1


@pytest.mark.parametrize("rows", [1, 7])
def test_scores_do_not_depend_on_the_size_of_blocks(rows, monkeypatch):
    real, fake = normal(60, 5, seed=0), normal(50, 5, seed=1)
    expected = prdc(real, fake, k=5), kernel_distance(real, fake)
    monkeypatch.setattr(fidelity, "_BALL_ROWS", rows)
    monkeypatch.setattr(fidelity, "_KERNEL_ROWS", rows)
    assert prdc(real, fake, k=5) == expected[0]
    assert kernel_distance(real, fake) == pytest.approx(expected[1])
