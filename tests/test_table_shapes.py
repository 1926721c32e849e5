"""Tables of shapes that nobody tries: one column, categories only, very many columns, hardly any row."""

import time
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pytest
import torch
from tables import back, load
from variants import variant

from genai_ray.errors import UserError
from genai_ray.export import check_parity, to_onnx
from genai_ray.families import Batch, Draws, Moment, build
from genai_ray.provenance import ModelCard
from genai_ray.table.samples import cell_difference
from genai_ray.table.source import TableData

NARROW = {"conditional": False, "latent": 8, "generator_widths": (16, 16), "discriminator_widths": (16, 16)}
SHAPES: dict[str, list[str]] = {
    "categories": ["plan", "region", "active"],
    "one category": ["plan"],
    "numbers": ["amount", "count"],
    "one number": ["amount"],
}


def shop(rows: int = 600) -> pa.Table:
    rng = np.random.Generator(np.random.Philox(11))
    plan = rng.choice(["a", "b", "c"], rows)
    return pa.table(
        {
            "plan": plan,
            "region": np.where(rng.random(rows) < 0.6, plan, "d"),
            "active": rng.random(rows) < 0.4,
            "amount": rng.gamma(2, 50, rows).round(2),
            "count": rng.integers(0, 9, rows),
        }
    )


def family(preset: str, data: TableData) -> tuple[Any, ModelCard]:
    """An untrained model after one step of each phase, and its card."""
    torch.manual_seed(0)
    labelled = preset != "tvae" and bool(data.codec.discrete)
    made = build(variant(preset, NARROW), data.codec, data.codec.label_width if labelled else 0)
    values, labels = data.at(0, 0, 40)
    batch = Batch(torch.from_numpy(values), None if labels is None else torch.from_numpy(labels))
    draws = Draws(torch.randn(40, made.latent), torch.rand(40, made.uniforms).clamp(1e-5, 1 - 1e-5))
    for phase in made.phases:
        loss, _ = made.loss(phase, batch, draws, Moment(0, 0))
        loss.backward()
        assert loss.isfinite()
    card = ModelCard(
        name="x",
        preset=preset,
        family="x",
        latent=made.sampler_latent,
        conditional=preset == "table_ar" or labelled,
        codec=data.codec.to_json(),
        training={},
        versions={},
        given=made.given,
    )
    return made, card


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("preset", ["table_ar", "tvae", "ctgan"])
def test_every_shape_is_learnt_and_drawn(preset: str, shape: str):
    numbers = {"numbers": "quantiles"} if preset == "table_ar" else {}
    data = load(shop().select(SHAPES[shape]), conditional=preset == "ctgan" and "number" not in shape, **numbers)
    made, _ = family(preset, data)
    codes, values = made.sampler().eval()(torch.randn(7, made.sampler_latent), _free(made, 7))
    assert codes.shape == (7, len(data.codec.discrete))
    assert values.shape == (7, len(data.codec.numeric))
    table = data.codec.decode(codes.numpy(), values.detach().numpy(), np.arange(7), 0)
    assert table.schema.equals(data.train.schema)
    assert back(data).num_rows == data.n


def _free(made: Any, rows: int) -> torch.Tensor | None:
    return torch.full((rows, len(made.layout.sizes)), -1) if made.classes else None


@pytest.mark.parametrize("columns", [["plan", "region", "active"], ["amount"], ["plan"], None])
@pytest.mark.parametrize("numbers", ["modes", "quantiles"])
def test_the_graph_of_table_ar_gives_what_torch_gives(columns: list[str] | None, numbers: str):
    table = shop() if columns is None else shop().select(columns)
    made, card = family("table_ar", load(table, numbers=numbers))
    sampler = made.sampler().eval()
    assert check_parity(sampler, to_onnx(sampler, card), card) <= 1


@pytest.mark.parametrize("preset", ["table_ar", "ctgan"])
def test_a_label_of_no_category_counts_as_the_last(preset: str):
    data = load(shop(), conditional=preset == "ctgan")
    made, card = family(preset, data)
    session = ort.InferenceSession(to_onnx(made.sampler().eval(), card), providers=["CPUExecutionProvider"])
    noise = np.random.Generator(np.random.Philox(1)).standard_normal((9, made.sampler_latent), np.float32)
    labels = np.full((9, len(data.codec.parts)), -1)
    labels[:, 0] = 99
    unknown = session.run(None, {"noise": noise, "label": labels})
    labels[:, 0] = data.codec.parts[0].size - 1
    last = session.run(None, {"noise": noise, "label": labels})
    for a, b in zip(unknown, last, strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_a_wide_table_is_exported_at_once():
    rng = np.random.Generator(np.random.Philox(12))
    table = pa.table({f"c{i}": rng.integers(0, 4, 200) if i % 2 else rng.normal(0, 1, 200) for i in range(300)})
    made, card = family("table_ar", load(table, numbers="quantiles"))
    sampler = made.sampler().eval()
    started = time.monotonic()
    model = to_onnx(sampler, card)
    assert time.monotonic() - started < 10
    assert check_parity(sampler, model, card) <= 1


def test_one_other_draw_is_one_difference_however_few_or_many_cells_follow():
    data = load(shop())
    codes, values = np.zeros((50, 3), np.int64), np.zeros((50, 2))
    changed = codes.copy()
    changed[3] = 1  # the first column of a row, and what follows from it
    difference = cell_difference([changed, values], [codes, values], data.codec)
    assert (difference > 0).sum() == 1
    assert len(difference) == 49 * 5 + 1
    other = values.copy()
    other[7, 1] = np.nan
    assert (cell_difference([codes, other], [codes, values], data.codec) > 0).sum() == 1


def test_five_rows_are_learnt_or_refused_with_what_helps():
    table = pa.table({"x": [1.5, 2.5, 3.5, 4.5, 9.0], "k": ["a", "b", "a", "b", "a"]})
    with pytest.raises(UserError, match=r"Give data\.table\.rare=3"):
        load(table)
    data = load(table, rare=1)
    assert data.n == 4
    assert back(data).schema.equals(table.schema)


def test_more_categories_than_a_model_holds_are_refused_with_what_helps():
    names = np.char.add("name ", (np.arange(180_000) * 7 % 150_001).astype(str))
    table = pa.table({"name": names, "k": np.arange(180_000) % 2})
    with pytest.raises(UserError, match=r"a model holds 100,000 .* Give data\.table\.rare=2\. "):
        load(table, rare=1, columns={"name": "categorical"})
    assert load(table, rare=2, columns={"name": "categorical"}).codec.label_width < 100_000
