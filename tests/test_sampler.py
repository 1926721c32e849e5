"""The class of a sample, the settings of a session, and calls with arrays bound to a device."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import small_spec
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_ray.dataset.plan import open_plan
from genai_ray.errors import UserError
from genai_ray.image.codec import ImageCodec
from genai_ray.image.conditions import class_counts
from genai_ray.image.spec import ImageGenerateSpec
from genai_ray.onnx_session import BoundRun, open_session, provider_options, session_options
from genai_ray.provenance import ModelCard
from genai_ray.quotas import Quotas
from genai_ray.spec import GenerateSpec


def card(*classes: str) -> ModelCard:
    return ModelCard(
        name="x",
        preset="dcgan",
        family="gan",
        latent=1,
        conditional=bool(classes),
        training={},
        codec=ImageCodec(8, 1, classes or None).to_json(),
        versions={},
    )


@given(
    shares=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    samples=st.integers(1, 3000),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=40, deadline=None)
def test_quotas_are_exact_for_any_shares(shares: list[int], samples: int, seed: int) -> None:
    names = [f"c{i}" for i in range(len(shares))]
    total = sum(shares)
    spec = ImageGenerateSpec(samples=samples, classes={n: s / total for n, s in zip(names, shares, strict=True)})
    counts = class_counts(spec, card(*names))
    assert counts is not None
    assert sum(counts) == samples
    assert all(abs(c - samples * s / total) < 1 for c, s in zip(counts, shares, strict=True))
    made = Quotas(counts, seed).classes(0, samples)
    assert np.bincount(made, minlength=len(names)).tolist() == counts
    cut = samples // 3
    assert (Quotas(counts, seed).classes(cut, samples) == made[cut:]).all()


def test_classes_are_well_mixed() -> None:
    counts = [500, 500]
    made = Quotas(counts, 0).classes(0, 1000)
    assert 100 < made[:400].sum() < 300
    assert abs(np.corrcoef(made[:-1], made[1:])[0, 1]) < 0.1


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"a": 0.5, "z": 0.5}, r"generate.classes: got 'z'; is not a class of the model"),
        ({"a": 0.5, "b": 0.4}, r"add up to 0.9; counts must give generate.samples=10"),
        ({"a": 7, "b": 4}, r"add up to 11"),
        ({"a": -1, "b": 2}, r"must not be negative"),
    ],
)
def test_bad_classes(classes: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        class_counts(ImageGenerateSpec(samples=10, classes=classes), card("a", "b"))


def test_counts_are_taken_as_they_are() -> None:
    spec = ImageGenerateSpec(samples=10, classes={"b": 10})
    assert class_counts(spec, card("a", "b")) == [0, 10]
    with pytest.raises(UserError, match="has no classes"):
        class_counts(spec, card())


# --- sessions ------------------------------------------------------------------------------------


def test_bound_arrays_give_what_plain_calls_give(run_store: Path) -> None:
    """On the CPU, whose arrays are bound in the same way as those of a card."""
    made = open_plan(small_spec(run_store))
    session = open_session(made.model, made.spec)
    bound = BoundRun(session, 32, device="cpu")
    for seed in (0, 1):  # the same arrays are written again
        generator = np.random.Generator(np.random.Philox(seed))
        feed = {
            "noise": generator.standard_normal((32, made.card.latent), np.float32),
            "label": generator.integers(0, 10, 32),
        }
        plain: Any = session.run(None, feed)[0]
        assert np.array_equal(bound(feed)[0], plain)


def test_options_of_a_card() -> None:
    shared = GenerateSpec(device="cuda", gpus_per_worker=0.5, gpu_memory_gb=2)
    assert provider_options(shared) == {
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
        "arena_extend_strategy": "kSameAsRequested",
        "gpu_mem_limit": "2000000000",
    }
    assert "arena_extend_strategy" not in provider_options(GenerateSpec(device="cuda"))
    assert provider_options(GenerateSpec()) == {}


@pytest.mark.parametrize(("cpus", "threads"), [(0.5, 1), (1, 1), (4, 4)])
def test_a_session_has_the_threads_of_its_worker(cpus: float, threads: int) -> None:
    options = session_options(GenerateSpec(cpus_per_worker=cpus))
    assert options.intra_op_num_threads == threads
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
