"""Every key that a spec accepts is read by what it is a key of: each family, modality and source.

Reads are recorded where they happen, so no list is kept here of who reads what. What reads every key
does not count: validating, dumping and the fingerprint.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import BaseModel

from genai_ray import modalities
from genai_ray import spec as specs
from genai_ray.dataset.generate import AttemptCounter, ShardWorker, generate
from genai_ray.dataset.manifest import read_receipts, write_manifest
from genai_ray.dataset.plan import open_plan, write_fields
from genai_ray.dataset.shards import ShardMaker, with_settled_rows
from genai_ray.errors import UserError
from genai_ray.evaluate import evaluate
from genai_ray.export import card_of, export
from genai_ray.image.extractor import train_extractor
from genai_ray.image.source import ImageData
from genai_ray.modality import Data
from genai_ray.onnx_session import provider_options
from genai_ray.plan import estimate
from genai_ray.sinks.iceberg import check_iceberg
from genai_ray.spec import GenerateSpec, Section, Spec, fingerprint
from genai_ray.spec.sections import TrainSpec
from genai_ray.storage import Store
from genai_ray.training.batches import micro_batches, real_batches
from genai_ray.training.loop import steps
from genai_ray.training.state import State
from genai_ray.training.train import train

Read = tuple[type[Section], str]


@contextmanager
def recorded() -> Iterator[set[Read]]:
    """The keys of sections that are read within."""
    seen: set[Read] = set()
    unwatched = [0]

    def read(section: Section, name: str) -> Any:
        if not unwatched[0] and name in type(section).__pydantic_fields__:
            seen.add((type(section), name))
        return object.__getattribute__(section, name)

    def unseen(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            unwatched[0] += 1
            try:
                return function(*arguments, **options)
            finally:
                unwatched[0] -= 1

        return call

    validate: Any = BaseModel.model_validate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Section, "__getattribute__", read)
        patch.setattr(Section, "model_validate", classmethod(unseen(validate.__func__)))
        patch.setattr(Section, "model_dump", unseen(BaseModel.model_dump))
        patch.setattr(modalities, "parse", unseen(modalities.parse))
        patch.setattr(fingerprint, "fields", unseen(fingerprint.fields))
        yield seen


def unread(section: Section, seen: set[Read]) -> list[str]:
    """The keys of a section that have an effect beside its values, and were not read."""
    accepted = type(section).effective(section.__dict__)
    return [f"{section.path}.{name}" for name in accepted if (type(section), name) not in seen]


# --- families ------------------------------------------------------------------------------------

#: Values with which every network is small, each where a family has the key.
NARROW = {"width": 4, "latent": 6, "generator_widths": [8], "discriminator_widths": [8]}
SOURCE = {"image": "digits", "table": "wine"}


def family_spec(preset: str, **changes: Any) -> Spec:
    """One step of a narrow preset with some values changed."""
    kind = next(m for m in modalities.every() if preset in m.presets)
    values = kind.presets[preset].values | changes
    effective = specs.section_type(kind.spec, "model", values).effective(values)
    narrow = {name: value for name, value in NARROW.items() if name in effective}
    return modalities.parse(
        {
            "name": "keys",
            "data": {"source": SOURCE[kind.name]},
            "model": {"preset": preset, **narrow, **changes},
            "train": {"workers": 0, "global_batch": 20, "samples": 20},
        }
    )


@functools.cache
def real(preset: str) -> Data:
    spec = family_spec(preset)
    return modalities.of_spec(spec).load(spec)


def reads_of_family(spec: Spec) -> set[Read]:
    """What is read by building, training and sampling a model, and by the card of its file."""
    torch.set_num_threads(1)
    data, cpu = real(spec.model.preset), torch.device("cpu")
    with recorded() as seen:
        state = State(spec, data.codec, data.digest, cpu)
        for _ in steps(spec, state, data, 0):
            pass
        state.fit_prior(next(real_batches(spec, data, 0, micro_batches(spec, 0, 1), cpu)))
        state.sampler()
        card_of(spec, data.codec, state.family, {})
    return seen


def switched() -> Iterator[tuple[str, dict[str, Any]]]:
    """(preset, changed values): for each family, every value that gives another key its effect."""
    families: set[type[Section]] = set()
    for kind in modalities.every():
        for name, preset in kind.presets.items():
            section = specs.section_type(kind.spec, "model", preset.values)
            if section in families:
                continue
            families.add(section)
            wanted: set[tuple[str, Any]] = set()
            for key in section.model_fields:
                for switch, values in section.lacking(key, preset.values).items():
                    wanted |= {(switch, v) for v in values or [section.model_fields[switch].default]}
            yield from ((name, {switch: value}) for switch, value in sorted(wanted))


@pytest.mark.parametrize("preset", modalities.presets())
def test_every_key_of_a_preset_is_read(preset: str):
    spec = family_spec(preset)
    assert not unread(spec.model, reads_of_family(spec))


@pytest.mark.parametrize(("preset", "change"), switched(), ids=str)
def test_every_key_that_a_switch_turns_on_is_read(preset: str, change: dict[str, Any]):
    spec = family_spec(preset, **change)
    assert not unread(spec.model, reads_of_family(spec))


def test_switches_are_what_needs_name():
    """Those of `family_spec` reach every key that any family has."""
    reached: set[Read] = set()
    for preset, change in [*((p, {}) for p in modalities.presets()), *switched()]:
        model = family_spec(preset, **change).model
        reached |= {(type(model), name) for name in type(model).effective(model.__dict__)}
    assert reached == {(section, name) for section, _ in reached for name in section.model_fields}


# --- real data -----------------------------------------------------------------------------------


def pictures(folder: Path) -> Path:
    """60 images of two classes, each in its folder, and a file that is none."""
    random = np.random.Generator(np.random.Philox(0))
    for i in range(60):
        path = folder / ("cat" if i % 2 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (8, 8), np.uint8)).save(path)
    (folder / "cat" / "none.png").write_bytes(b"no image")
    return folder


def rows(folder: Path) -> Path:
    """A CSV of 200 orders of five kinds, three of them rare."""
    random = np.random.Generator(np.random.Philox(0))
    lines = ["key,kind,net,start,end"]
    for i in range(200):
        net, start = random.gamma(2.0, 20.0), random.integers(10, 50)
        kind = f"rare{i % 3}" if i < 9 else "book" if random.random() < 0.5 else "film"
        lines.append(f"ORD-{i:04d},{kind},{net:.2f},{start},{start + random.integers(0, 9)}")
    path = folder / "orders.csv"
    path.write_text("\n".join(lines))
    return path


def data_spec(source: str, folder: Path) -> dict[str, Any]:
    """A section `data` of a source, with files of its own if it reads files."""
    if source == "folder":
        return {"source": source, "root": str(pictures(folder / "files")), "on_corrupt": "skip"}
    if source == "parquet":
        files = sorted(pictures(folder / "files").rglob("*.png"))
        columns = {"image": [f.read_bytes() for f in files], "label": [f.parent.name for f in files]}
        pq.write_table(pa.table(columns), folder / "images.parquet")
        return {"source": source, "root": str(folder / "images.parquet"), "on_corrupt": "skip"}
    if source == "table":
        columns = {"key": {"pattern": "ORD-[0-9]{4}"}, "net": {"min": 0}, "kind": "categorical"}
        constraints = [{"less": ["start", "end"]}, {"unique": "key"}]
        table = {"columns": columns, "constraints": constraints}
        return {"source": source, "root": str(rows(folder)), "table": table}
    if source in TORCHVISION:
        return {"source": source, "root": str(idx_files(folder, TORCHVISION[source])), "download": False}
    return {"source": source}


#: The folders in which torchvision looks for unpacked files; those of CIFAR-10 cannot be made up.
TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10"}


def idx_files(folder: Path, name: str) -> Path:
    """60 images as MNIST's own files."""
    raw = folder / name / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        labels = np.arange(60, dtype=np.uint8) % 10
        images = np.broadcast_to(labels[:, None, None], (60, 28, 28))
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            head = np.array([0x0800 + array.ndim, *array.shape], ">i4")
            (raw / name).write_bytes(head.tobytes() + array.tobytes())
    return folder


@pytest.mark.parametrize("source", [s for m in modalities.every() for s in m.sources])
def test_every_key_of_a_source_is_read(source: str, tmp_path: Path):
    kind = next(m for m in modalities.every() if source in m.sources)
    data = data_spec(source, tmp_path)
    train = {"global_batch": 20, "workers": 0}
    preset = tuple(kind.presets)[-1]
    values = {"name": "keys", "store": str(tmp_path), "train": train, "model": {"preset": preset}}
    spec = modalities.parse({**values, "data": data})
    with recorded() as seen:
        if "download" in data:
            absent = modalities.parse({**values, "data": data | {"root": str(tmp_path / "empty")}})
            with pytest.raises(UserError, match="download is false"):
                kind.load(absent)
        if source != "cifar10":
            kind.load(spec)
    if source == "cifar10":
        pytest.skip("its archive is checked by a digest")
    assert not unread(spec.data, seen)


def test_every_key_of_a_table_is_read(tmp_path: Path):
    spec = modalities.parse({"name": "keys", "data": data_spec("table", tmp_path), "model": {"preset": "table_ar"}})
    with recorded() as seen:
        modalities.of_spec(spec).load(spec)
    table: Any = spec.data.table  # pyright: ignore[reportAttributeAccessIssue]
    parts = [table, *table.columns.values(), *table.constraints]
    assert [key for part in parts for key in unread(part, seen)] == []


# --- the engines ---------------------------------------------------------------------------------


def run_spec(modality: str, folder: Path, **train: Any) -> Spec:
    """A run of a minute model with everything on that a key needs."""
    preset, source = {"image": ("mlp_gan", "folder"), "table": ("tvae", "table")}[modality]
    narrow = family_spec(preset).model.model_dump(exclude_unset=True)
    values = {
        "name": "keys",
        "store": str(folder / "store"),
        "data": data_spec(source, folder),
        "model": narrow | {"conditional": True},
        "train": {
            "workers": 0,
            "global_batch": 20,
            "samples": 40,
            "evaluate_every": 40,
            "evaluate_samples": 100,
            "keep": "best",
            **train,
        },
        "generate": {"samples": 120, "shard_rows": 60},
        "evaluate": {"samples": 100},
    }
    if modality == "image":
        values["export"] = {"precision": "fp16", "difference_max": 255}
        values["generate"] |= {"encoding": "jpeg"}
    return modalities.parse(values)


def keep_small_extractor(spec: Spec, data: ImageData) -> None:
    """A feature extractor of two steps: a whole one takes longer than all else here."""
    extractor = train_extractor(data.train_images[:], data.train_labels, data.codec.label_width, seed=0, steps=2)
    Store(spec.run_uri).put(f"report/extractor-{data.digest[:8]}.pt", extractor.to_bytes())


def reads_of_run(spec: Spec) -> set[Read]:
    """What is read from the training to the report, all in this process."""
    with recorded() as seen:
        data = modalities.of_spec(spec).load(spec)
        if isinstance(data, ImageData):
            keep_small_extractor(spec, data)
        train(spec, data)
        export(spec)
        estimate(spec)
        plan = with_settled_rows(open_plan(spec))
        write_fields(plan)
        maker = ShardMaker(plan)
        for index in range(plan.shard_count):
            maker.make(plan.shard(index))
        write_manifest(plan, read_receipts(plan))
        evaluate(spec, data)
    return seen


@pytest.fixture(scope="module", params=list(modalities.MODALITIES))
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Spec, set[Read]]:
    """A run of each modality, and what was read of its spec."""
    spec = run_spec(request.param, tmp_path_factory.mktemp(request.param))
    return spec, reads_of_run(spec)


#: Keys of the engines, some of which only the driver of a Ray job reads. Engines know no modality.
OF_ENGINES = {f"{s.path}.{name}" for s in (TrainSpec, GenerateSpec) for name in s.model_fields}


def unread_of_run(spec: Spec, seen: set[Read]) -> set[str]:
    """All sections but that of the model, whose keys the family has to read."""
    parts = [s for s in spec.__dict__.values() if isinstance(s, Section) and s is not spec.model]
    return {key for section in (spec, *parts) for key in unread(section, seen)}


def test_every_key_of_a_run_is_read(run: tuple[Spec, set[Read]]):
    assert unread_of_run(*run) <= OF_ENGINES


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("run", ["table"], indirect=True)
def test_every_key_of_a_ray_job_is_read(run: tuple[Spec, set[Read]], tmp_path: Path):
    import ray

    spec = run_spec("table", tmp_path, workers=1)
    with recorded() as seen:
        train(spec)
        export(spec)
        generate(spec)
        plan = open_plan(spec)
        counter: Any = ray.remote(AttemptCounter).remote()
        worker = ShardWorker(plan.store.uri, plan.fields, specs.dump(spec)["generate"], [counter])
        worker({"item": np.array([0])})  # what an actor reads, in this process
    assert not unread_of_run(spec, run[1] | seen)


def test_every_key_of_iceberg_is_read(tmp_path: Path):
    spec = GenerateSpec(sink="iceberg", table="a.b")
    with recorded() as seen, pytest.raises(UserError, match="s3://"):
        check_iceberg(spec, Store(str(tmp_path)), pa.schema([]))
    assert not lacking_at("sink") & set(unread(spec, seen))


def test_every_key_of_a_gpu_is_read():
    spec = GenerateSpec(device="cuda")
    with recorded() as seen:
        provider_options(spec)
    assert not lacking_at("device") & set(unread(spec, seen))


def lacking_at(switch: str) -> set[str]:
    """The keys of `generate` that another value of a key gives their effect."""
    keys = {f"generate.{k}" for k in GenerateSpec.model_fields if switch in GenerateSpec.lacking(k, {})}
    assert keys
    return keys


# --- keys of others ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "source", "key"),
    [
        *[("dcgan", "digits", f"model.{k}=1") for k in ("beta", "kl_warm_up", "adversarial", "temperature")],
        ("dcgan", "digits", "model.pooling=mean"),
        ("vae", "digits", "model.loss=hinge"),
        ("vae", "digits", "model.n_dis=2"),
        ("vae", "digits", "model.init=xavier"),
        ("tvae", "wine", "model.dropout=0.1"),
        ("table_ar", "wine", "model.latent=8"),
        ("tvae", "wine", "data.size=8"),
        ("tvae", "wine", "data.on_corrupt=skip"),
        ("tvae", "wine", "data.table.delimiter=;"),
        ("dcgan", "digits", "data.table={rare: 3}"),
        ("ctgan", "wine", "model.ema_ramp_up=0.1"),
        ("dcgan", "digits", "train.evaluate_samples=500"),
        ("dcgan", "digits", "generate.gpus_per_worker=0.5"),
        ("tvae", "wine", "generate.gpu_memory_gb=4"),
        ("dcgan", "digits", "evaluate.inception_samples=100"),
        ("vae", "digits", "model.attention=true"),
        ("vae", "digits", "model.network=resnet"),
    ],
)
def test_a_key_without_an_effect_is_refused_with_a_remedy(preset: str, source: str, key: str):
    values = {"name": "keys", "data": {"source": source}, "model": {"preset": preset}}
    with pytest.raises(UserError) as caught:
        modalities.parse(specs.override(values, ["train.global_batch=100", key]))
    assert caught.value.field == key.partition("=")[0]
    assert caught.value.remedy
