"""Networks, families and samplers of tables: where parts lie, what is learnt, what is drawn."""

import itertools
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from variants import presets_of, variant

from genai_ray import penalties
from genai_ray.export import to_onnx
from genai_ray.families import Batch, Draws, Moment, build
from genai_ray.provenance import ModelCard
from genai_ray.table.codec import TableCodec
from genai_ray.table.nets import BusinessValues, Layout, PackedDiscriminator, TableSampler, pick
from genai_ray.table.source import TableData, load_table
from genai_ray.table.spec import TableDataSpec, TableSpec

TABLES = presets_of("table")
START = Moment(0, 0)


NARROW = {"conditional": False, "latent": 8, "generator_widths": (16, 16), "discriminator_widths": (16, 16)}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> TableData:
    """Two categories, a number with missing values, a whole number; the second category follows
    the first.
    """
    generator = np.random.Generator(np.random.Philox(0))
    n = 2000
    kind = generator.integers(0, 3, n)
    size = np.where(generator.random(n) < 0.9, kind, generator.integers(0, 3, n))
    weight = np.where(generator.random(n) < 0.1, np.nan, generator.normal(10 * kind, 1.0))
    table = pa.table(
        {
            "kind": pa.array(["a", "b", "c"]).take(pa.array(kind)),
            "size": pa.array(["small", "middle", "large"]).take(pa.array(size)),
            "weight": pa.array(weight.round(2), from_pandas=True),
            "count": pa.array(generator.poisson(4.0, n)),
        }
    )
    path = tmp_path_factory.mktemp("shop") / "shop.parquet"
    pq.write_table(table, path)
    return load_table(TableDataSpec(source="table", root=str(path)), conditional=True)


def family(preset: str, data: TableData, **values: Any) -> Any:
    torch.manual_seed(0)
    chosen = variant(preset, NARROW, **values)
    labelled = preset != "tvae"
    return build(chosen, data.codec, data.codec.label_width if labelled else 0)


def batch_of(data: TableData, count: int, labelled: bool) -> Batch:
    values, labels = data.at(0, 0, count)
    assert labels is not None
    return Batch(torch.from_numpy(values), torch.from_numpy(labels) if labelled else None)


def draws_of(made: Any, count: int, seed: int = 0) -> Draws:
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(count, made.uniforms, generator=generator).clamp(1e-5, 1 - 1e-5)
    return Draws(torch.randn(count, made.latent, generator=generator), uniform)


# --- layout --------------------------------------------------------------------------------------


def test_rows_as_one_hot_give_the_codes_back(shop: TableData) -> None:
    layout = Layout(shop.codec)
    values = torch.from_numpy(shop.at(0, 0, 64)[0])
    rows = layout.one_hot(values)
    assert rows.shape == (64, layout.width)
    parts = len(layout.sizes)
    for i, part in enumerate(layout.logits(rows)):
        assert torch.equal(part.sum(1), torch.ones(64))
        assert torch.equal(part.argmax(1), values[:, i].long())
    assert torch.equal(layout.scalars(rows), values[:, parts:])


def test_a_condition_lights_the_category_it_names(shop: TableData) -> None:
    """Also of the second column: the place of a category is that of its own column."""
    layout = Layout(shop.codec)
    size = next(i for i, p in enumerate(shop.codec.parts) if p.name == "size")
    labels = torch.full((3, len(layout.sizes)), -1)
    labels[0, size], labels[1, 0] = 2, 1
    asked = layout.requested(labels)
    assert asked.sum(1).tolist() == [1, 1, 0]
    sizes = [layout.sizes[i] for i in layout.discrete]
    before = sum(sizes[: layout.discrete.index(size)])
    assert asked[0].argmax() == before + 2
    assert asked[1].argmax() == sum(sizes[: layout.discrete.index(0)]) + 1


def test_codes_are_drawn_as_often_as_the_softmax_says() -> None:
    logits = torch.tensor([[0.0, 1.0, -2.0, 0.5]])
    n = 20_000
    uniform = ((torch.arange(n) + 0.5) / n)[:, None]
    codes = pick(logits.expand(n, -1), uniform)
    shares = torch.bincount(codes, minlength=4) / n
    assert torch.allclose(shares, logits.softmax(1)[0], atol=1e-4)
    assert pick(logits, torch.tensor([[1.0]])).item() == 3


def test_values_are_in_business_units(shop: TableData) -> None:
    """Against what `Part` says a code and a scalar mean."""
    layout = Layout(shop.codec)
    codes, scalars = shop.codes[:200, layout.numeric].astype(np.int64), shop.scalars[:200]
    values = BusinessValues(layout)(torch.from_numpy(codes), torch.from_numpy(scalars))
    assert values.dtype == torch.float64
    for j, part in enumerate(shop.codec.numeric):
        offset, scale = np.array(part.offset)[codes[:, j]], np.array(part.scale)[codes[:, j]]
        expected = np.clip(offset + scale * scalars[:, j], part.low, part.high)
        expected = np.where(codes[:, j] == part.missing, np.nan, expected)
        assert part.decimals is not None
        np.testing.assert_allclose(values[:, j], np.round(expected, part.decimals), rtol=1e-6)
    assert values.isnan().any(), "the table has missing numbers"


# --- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", TABLES)
def test_each_phase_moves_its_net_and_no_other(preset: str, shop: TableData) -> None:
    made = family(preset, shop)
    for phase in made.phases:
        made.nets.zero_grad(set_to_none=True)
        for name, net in made.nets.items():
            net.requires_grad_(name == phase.net)
        loss, logs = made.loss(phase, batch_of(shop, 40, preset == "ctgan"), draws_of(made, 40), START)
        loss.backward()
        assert loss.isfinite()
        assert all(not v.requires_grad for v in logs.values())
        for name, net in made.nets.items():
            moved = [p.grad is not None and bool(p.grad.any()) for p in net.parameters()]
            assert any(moved) == (name == phase.net)


@pytest.mark.parametrize("preset", ["tvae", "table_ar"])
def test_training_lowers_the_loss(preset: str, shop: TableData) -> None:
    made = family(preset, shop, learning_rate=0.01)
    phase, batch = made.phases[0], batch_of(shop, 200, False)
    optimizer = torch.optim.Adam(made.nets.parameters(), lr=0.01)
    losses = []
    for step in range(60):
        loss, _ = made.loss(phase, batch, draws_of(made, 200, step % 4), START)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:4])


def test_a_pack_is_one_sample_of_the_penalty(shop: TableData) -> None:
    """(|gradient| - 1)^2 of each pack, between real and generated at one place for all its rows."""
    torch.manual_seed(0)
    discriminator = PackedDiscriminator(5, variant("ctgan", pack=4, dropout=0.0))
    real, fake, uniform = torch.randn(8, 5), torch.randn(8, 5), torch.rand(8, 1)
    share = uniform[::4].repeat_interleave(4, 0)
    found = penalties.gradient_penalty(discriminator, real, fake, None, share)
    terms = []
    for pack in (slice(0, 4), slice(4, 8)):
        s = uniform[pack.start]
        between = (s * real[pack] + (1 - s) * fake[pack]).requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(between, None).sum(), between)
        terms.append((gradient.norm() - 1).square())
    assert torch.allclose(found, torch.stack(terms).mean())


def test_the_condition_is_missed_less_where_it_is_met(shop: TableData) -> None:
    made = family("ctgan", shop)
    layout, labels = made.layout, torch.full((1, len(made.layout.sizes)), -1)
    labels[0, 0] = 1
    raw = torch.zeros(1, layout.width)
    even = made._missed(raw, labels)
    assert torch.isclose(even, torch.log(torch.tensor(float(layout.sizes[0]))))
    raw[0, layout.starts[0] + 1] = 9.0
    assert made._missed(raw, labels) < 0.01
    labels[0, 0] = -1
    assert made._missed(raw, labels) == 0


def test_the_likelihood_of_hidden_columns_is_that_of_a_row() -> None:
    """With uniform logits every column costs log(size), whatever is hidden."""
    data = load_table(TableDataSpec(source="wine", table=TableSpec(numbers="quantiles")))
    made = family("table_ar", data, dropout=0.0)
    torch.nn.init.zeros_(made.nets["model"].heads.weight)
    torch.nn.init.zeros_(made.nets["model"].heads.bias)
    values = torch.from_numpy(data.at(0, 0, 128)[0])
    parts = len(made.layout.sizes)
    draws = draws_of(made, 128)
    # Every number of known columns equally often, so that the average is exact in expectation.
    draws.uniform[:, 0] = (torch.arange(128) % parts + 0.5) / parts
    loss, _ = made.loss(made.phases[0], Batch(values, None), draws, START)
    assert abs(loss.item() / np.log(made.layout.sizes).sum() - 1) < 0.1


# --- sampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", TABLES)
def test_onnx_gives_codes_and_values(preset: str, shop: TableData) -> None:
    made = family(preset, shop)
    conditional = preset != "tvae"
    card = ModelCard(
        name="x",
        preset=preset,
        family="x",
        latent=made.sampler_latent,
        conditional=conditional,
        codec=shop.codec.to_json(),
        training={},
        versions={},
        given=made.given,
    )
    sampler = made.sampler().eval()
    session = ort.InferenceSession(to_onnx(sampler, card), providers=["CPUExecutionProvider"])
    assert [o.name for o in session.get_outputs()] == ["codes", "values"]
    noise = np.random.Generator(np.random.Philox(1)).standard_normal((50, made.sampler_latent), np.float32)
    feed: dict[str, Any] = {"noise": noise}
    if conditional:
        feed["label"] = shop.codec.labels(50)
    codes, values = (np.asarray(o) for o in session.run(None, feed))
    assert (codes.dtype, values.dtype) == (np.int64, np.float64)
    discrete = [i for i, p in enumerate(shop.codec.parts) if p.discrete]
    assert codes.shape == (50, len(discrete))
    if conditional:
        asked = feed["label"][:, discrete]
        assert (codes[asked >= 0] == asked[asked >= 0]).all()
    with torch.no_grad():
        expected = sampler(*(torch.from_numpy(a) for a in feed.values()))
    np.testing.assert_array_equal(codes, expected[0].numpy())
    np.testing.assert_allclose(values, expected[1].numpy(), atol=0.02)
    table = shop.codec.decode(codes, values, np.arange(50), 0)
    assert table.schema.equals(shop.train.schema)


def test_columns_follow_one_another_as_they_were_learnt(shop: TableData) -> None:
    """The joint shares of two columns, drawn freely and given the second."""
    data = load_table(TableDataSpec(source="table", root=_written(shop), table=TableSpec(numbers="quantiles")))
    made = family("table_ar", data, dropout=0.0, generator_widths=(32, 32))
    optimizer = torch.optim.Adam(made.nets.parameters(), lr=0.01)
    for step in range(300):
        values = torch.from_numpy(data.at(0, 200 * step, 200 * (step + 1))[0])
        loss, _ = made.loss(made.phases[0], Batch(values, None), draws_of(made, 200, step), START)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    sampler, n = made.sampler().eval(), 4000
    noise = torch.randn(n, made.sampler_latent, generator=torch.Generator().manual_seed(5))
    names = [p.name for p in data.codec.discrete]
    first, second = names.index("kind"), names.index("size")
    real = _joint(data.codes[:, [i for i, p in enumerate(data.codec.parts) if p.discrete]], first, second)
    labels = torch.full((n, len(data.codec.parts)), -1)
    with torch.no_grad():
        free = _joint(sampler(noise, labels)[0].numpy(), first, second)
        number = next(i for i, p in enumerate(data.codec.parts) if p.name == "size")
        labels[:, number] = 1
        given = _joint(sampler(noise, labels)[0].numpy(), first, second)
    assert np.abs(free - real).sum() / 2 < 0.06
    assert given[:, 1].sum() == pytest.approx(1)
    assert np.abs(given[:, 1] - real[:, 1] / real[:, 1].sum()).sum() / 2 < 0.06


def _joint(codes: Any, first: int, second: int) -> np.ndarray:
    joint = np.zeros((3, 3))
    np.add.at(joint, (codes[:, first], codes[:, second]), 1 / len(codes))
    return joint


_FILES = itertools.count()


def _written(data: TableData) -> str:
    import tempfile

    path = f"{tempfile.mkdtemp(prefix='genai_ray-')}/{next(_FILES)}.parquet"
    pq.write_table(data.train, path)
    return path


def test_a_sampler_needs_no_labels_where_the_model_takes_none(shop: TableData) -> None:
    made = family("tvae", shop)
    sampler = made.sampler().eval()
    assert isinstance(sampler, TableSampler)
    with torch.no_grad():
        codes, values = sampler(torch.zeros(2, made.sampler_latent))
    assert codes.shape[1] + values.shape[1] == len(shop.codec.parts)


def test_sigma_is_learnt_within_its_limits(shop: TableData) -> None:
    decoder = family("tvae", shop).nets["autoencoder"]["decoder"]
    with torch.no_grad():
        decoder.log_sigma.copy_(torch.linspace(-9, 9, len(decoder.log_sigma)))
    sigma = decoder.sigma().detach()
    assert sigma.min() == pytest.approx(0.01)
    assert sigma.max() == 1.0


def test_the_codec_says_what_a_model_may_be_asked_for(shop: TableData) -> None:
    codec = shop.codec
    assert isinstance(codec, TableCodec)
    places = np.random.Generator(np.random.Philox(2)).random((20_000, 2))
    labels = codec.draw_labels(places)
    assert ((labels >= 0).sum(1) == 1).all()
    discrete = [i for i, p in enumerate(codec.parts) if p.discrete]
    for i in discrete:
        asked = labels[labels[:, i] >= 0, i]
        assert abs(len(asked) / len(labels) - 1 / len(discrete)) < 0.02
        shares = np.bincount(asked, minlength=codec.parts[i].size) / len(asked)
        np.testing.assert_allclose(shares, codec.parts[i].shares, atol=0.02)
