"""The fingerprint: it hangs on what can change a result, and on nothing else."""

from typing import Any, Literal

import pytest
from pydantic import BaseModel

from genai_ray import modalities
from genai_ray import spec as specs
from genai_ray.errors import UserError
from genai_ray.modalities import parse
from genai_ray.spec import Section, Spec, fingerprint

Stage = Literal["train", "generate"]

#: A legal value that differs from the default, for every field that can change what training makes, ...
TRAIN: dict[str, Any] = {
    "seed": 1,
    "data.source": "mnist",
    "data.size": 16,
    "data.channels": 3,
    "data.holdout": 0.5,
    "data.on_corrupt": "skip",
    "data.image_column": "picture",
    "data.label_column": "class",
    "data.cache_gb": 1.0,
    "data.table.columns": {"age": {"type": "categorical"}},
    "data.table.metadata": "metadata.json",
    "data.table.names": ["age", "income"],
    "data.table.header": True,
    "data.table.delimiter": ";",
    "data.table.escape": "backslash",
    "data.table.decimal": "comma",
    "data.table.thousands": "space",
    "data.table.skip": 1,
    "data.table.encoding": "latin1",
    "data.table.nulls": ["-"],
    "data.table.comment": "#",
    "data.table.numbers": "quantiles",
    "data.table.rare": 3,
    "data.table.rare_label": "rest",
    "data.table.constraints": [{"less": ["start", "end"]}],
    "model.preset": "vae",
    "model.conditional": False,
    "model.network": "resnet",
    "model.latent": 3,
    "model.width": 3,
    "model.generator_widths": [3],
    "model.discriminator_widths": [3],
    "model.dropout": 0.5,
    "model.discriminator_norm": "layer",
    "model.loss": "least_squares",
    "model.n_dis": 3,
    "model.beta": 3.0,
    "model.learning_rate": 1.0,
    "model.betas": [0.1, 0.2],
    "model.ema_half_life": 3,
    "model.init": "xavier",
    "model.generator_spectral_norm": True,
    "model.attention": True,
    "model.hierarchical": True,
    "model.pooling": "mean",
    "model.penalty": "r1",
    "model.penalty_weight": 3.0,
    "model.penalty_interval": 3,
    "model.consistency": 3.0,
    "model.augment": ["color"],
    "model.mirror": True,
    "model.posterior": "point",
    "model.kl_warm_up": 3,
    "model.decoder_decay": 3.0,
    "model.prior": "mixture",
    "model.mixture_components": 3,
    "model.adversarial": 3.0,
    "model.optimizer": "sgd",
    "model.weight_decay": 3.0,
    "model.pack": 2,
    "model.temperature": 3.0,
    "model.reconstruction": 3.0,
    "model.discriminator_learning_rate": 3.0,
    "model.learning_rate_decay": "linear",
    "model.ema_ramp_up": 3.0,
    "train.device": "cuda",
    "train.global_batch": 40,
    "train.samples": 4,
    "train.precision": "bf16",
    "train.checkpoint_every": 4,
    "train.micro_batch": 64,
    "train.channels_last": False,
    "train.compile": "default",
    "train.evaluate_every": 4,
    "train.evaluate_samples": 200,
    "train.keep": "best",
    "train.patience": 4,
}
#: ... what generation makes of a model file, ...
GENERATE: dict[str, Any] = {
    "seed": 1,
    "generate.seed": 2,
    "generate.samples": 4,
    "generate.shard_rows": 4,
    "generate.sink": "images",
    "generate.encoding": "raw",
    "generate.classes": {"a": 1.0},
    "generate.device": "cuda",
    "generate.truncation": 2.0,
    "generate.shard_bytes": 4096,
    "generate.quality": 80,
    "generate.conditions": "/asked.csv",
    "generate.spelling": "iso",
    "provenance.producer": "001191110102MAD55U9H0F10002",
}
#: ... and neither.
NEITHER: dict[str, Any] = {
    "name": "other",
    "store": "s3://elsewhere",
    "data.root": "elsewhere",
    "data.holdout_root": "elsewhere",
    "data.download": False,
    "train.workers": 2,
    "train.cpus_per_worker": 2.0,
    "train.keep_checkpoints": 4,
    "train.max_failures": 4,
    "train.log_seconds": 1.0,
    "train.start_timeout_s": 1.0,
    "train.stall_timeout_s": 2.0,
    "train.mlflow": "elsewhere",
    "generate.batch": 4,
    "generate.workers": 4,
    "generate.cpus_per_worker": 2.0,
    "generate.max_attempts": 4,
    "generate.start_timeout_s": 1.0,
    "generate.into": "other",
    "generate.catalog": "other",
    "generate.table": "other.name",
    "generate.gpus_per_worker": 0.5,
    "generate.gpu_memory_gb": 4.0,
    "generate.lease_s": 4.0,
    "train.lease_s": 4.0,
    # The digest of the model file tells what the export made.
    "export.precision": "fp16",
    "export.difference_max": 4.0,
    "prices.node_hour": 4.0,
    "prices.workers_per_node": 4,
    "prices.gb_month": 4.0,
    "prices.put_1000": 4.0,
    "evaluate.samples": 200,
    "evaluate.duplicate_rows": 200,
    "evaluate.k": 4,
    "evaluate.inception": "weights.pth",
    "evaluate.inception_samples": 200,
    "evaluate.gates": {},
    "evaluate.target": "income",
}
_TABLE = {"data.source": "breast_cancer", "model.family": "table_gan", "model.network": "mlp"}
_FILES = {"data.source": "table", "data.root": "here"}
#: What must be set for a field to be legal at its value.
WITH: dict[str, dict[str, Any]] = {
    "data.source": {"data.source": "fashion_mnist"},
    "data.root": {"data.source": "folder", "data.root": "here"},
    "data.on_corrupt": {"data.source": "folder", "data.root": "here"},
    "data.image_column": {"data.source": "parquet", "data.root": "here"},
    "data.label_column": {"data.source": "parquet", "data.root": "here"},
    "data.cache_gb": {"data.source": "folder", "data.root": "here"},
    "data.holdout_root": _FILES,
    **{f"data.table.{k}": _FILES for k in ("metadata", "names", "delimiter", "encoding", "nulls", "comment")},
    **{f"data.table.{k}": _FILES for k in ("header", "escape", "decimal", "thousands", "skip")},
    "data.download": {"data.source": "mnist"},
    "model.preset": {"model.preset": "beta_vae"},
    "model.conditional": {"model.conditional": True},
    "model.attention": {"model.network": "resnet"},
    "model.hierarchical": {"model.network": "resnet"},
    "model.posterior": {"model.prior": "mixture"},
    "train.keep": {"train.evaluate_every": 4},
    "train.patience": {"train.evaluate_every": 4},
    "train.evaluate_samples": {"train.evaluate_every": 4},
    "generate.gpus_per_worker": {"generate.device": "cuda"},
    "generate.gpu_memory_gb": {"generate.device": "cuda"},
    "generate.classes": {"model.conditional": True},
    "generate.conditions": {"model.conditional": True},
    "generate.quality": {"generate.encoding": "jpeg"},
    "generate.spelling": {"generate.sink": "csv"},
    "generate.table": {"generate.sink": "iceberg", "generate.table": "a.name"},
    "generate.catalog": {"generate.sink": "iceberg", "generate.table": "a.name"},
    "export.difference_max": {"export.precision": "fp16"},
    "evaluate.gates": {"evaluate.gates": {"duplicate_rate_max": 1.0}},
    "evaluate.inception": {"evaluate.inception": "other.pth", "evaluate.inception_samples": 200},
    "evaluate.inception_samples": {"evaluate.inception": "a.pth", "evaluate.inception_samples": 300},
}
_SOURCES = {"image": "digits", "table": "breast_cancer"}


def _parsed(preset: str, values: dict[str, Any]) -> Spec:
    kind = next(m for m in modalities.every() if preset in m.presets)
    out: dict[str, Any] = {"name": "run", "data": {"source": _SOURCES[kind.name]}, "model": {"preset": preset}}
    if kind.name == "table":
        out["train"] = {"global_batch": 100}  # whole packs of ctgan
    for field, value in values.items():
        *parents, last = field.split(".")
        section = out
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return parse(out)


def _keys(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    """Dotted names and values of every key that has an effect."""
    keys: dict[str, Any] = {}
    for name, value in section.__dict__.items():
        if isinstance(section, Section) and type(section).lacking(name, section.__dict__):
            continue
        if isinstance(value, BaseModel):
            keys |= _keys(value, f"{prefix}{name}.")
        else:
            keys[f"{prefix}{name}"] = value
    return keys


def _bases(field: str) -> list[str]:
    """The presets beside which a key has an effect."""
    out = []
    for preset in modalities.presets():
        try:
            spec = _parsed(preset, WITH.get(field, {}))
        except UserError:
            continue
        if field in _keys(spec):
            out.append(preset)
    return out


def digest(spec: Spec, stage: Stage) -> str:
    return fingerprint.digest(fingerprint.fields(spec, stage))


def test_every_key_is_decided():
    """A new key belongs into a table: can it change what training or generation makes?"""
    every = {k for p in modalities.presets() for k in _keys(_parsed(p, {}))} | WITH.keys()
    every -= {"model.family"}  # follows from the preset
    decided = TRAIN.keys() | GENERATE.keys() | NEITHER.keys()
    assert every <= decided
    assert all(_bases(field) for field in decided - every)
    assert TRAIN.keys() & GENERATE.keys() == {"seed"}
    assert not NEITHER.keys() & (TRAIN.keys() | GENERATE.keys())


@pytest.mark.parametrize("field", TRAIN | GENERATE | NEITHER)
def test_the_fingerprint_hangs_on_what_can_change_a_result(field: str):
    value, beside = (TRAIN | GENERATE | NEITHER)[field], WITH.get(field, {})
    preset = _bases(field)[0]
    base, spec = _parsed(preset, beside), _parsed(preset, beside | {field: value})
    assert _keys(base)[field] != _keys(spec)[field]
    assert (digest(spec, "train") != digest(base, "train")) == (field in TRAIN)
    assert (digest(spec, "generate") != digest(base, "generate")) == (field in GENERATE)


def test_the_fingerprint_is_of_values_not_of_how_they_were_written():
    direct = parse({"name": "a", "seed": 0, "model": {"preset": "dcgan", "latent": 100}})
    other = parse({"name": "b", "store": "s3://x", "train": {"workers": 4}})
    assert digest(direct, "train") == digest(other, "train")
    assert len(digest(direct, "train")) == 64


def test_fields_that_came_later_leave_earlier_runs_alone():
    fields = fingerprint.fields(parse({"name": "run"}), "train")
    assert not {"data.table", "model.pack", "model.weight_decay"} & fields.keys()


def test_inner_sections_leave_earlier_runs_alone_too():
    """The section `data.table` as version 0 hashed it, where something in it was set."""

    def fields(**table: Any) -> dict[str, Any]:
        data = {"source": "table", "root": "here", "table": table}
        return fingerprint.fields(parse({"name": "run", "data": data, "model": {"preset": "tvae"}}), "train")

    column = {"datetime_format": None, "decimals": None, "pattern": None, "min": None, "max": None}
    expected = {
        "columns": {"age": {"type": "categorical", **column}},
        "metadata": None,
        "names": None,
        "delimiter": ",",
        "comment": None,
        "encoding": "utf8",
        "nulls": ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?"],
        "numbers": "modes",
        "rare": 3,
        "rare_label": "(other)",
        "constraints": [],
    }
    assert fields(rare=3, columns={"age": "categorical"})["data.table"] == expected
    assert fields(rare=3, columns={"age": "categorical"}, delimiter=",", encoding="utf8")["data.table"] == expected
    assert "data.table" not in fields(delimiter=",", encoding="utf8")
    nulls = fields(columns={"age": {"nulls": ["-"]}})["data.table"]["columns"]["age"]["nulls"]
    assert nulls == ["-"]


def test_generation_ignores_the_seed_of_training_when_it_has_its_own():
    values = specs.dump(parse({"name": "run"}))
    values["generate"]["seed"] = 3
    one, two = (digest(parse(values | {"seed": seed}), "generate") for seed in (1, 2))
    assert one == two


def test_keys_that_a_family_never_read_keep_their_place_in_the_fingerprint():
    """Version 0 hashed every key, so that runs and data sets begun with it resume."""
    fields = fingerprint.fields(parse({"name": "run"}), "train")
    assert (fields["model.beta"], fields["model.pooling"], fields["data.image_column"]) == (1.0, "sum", "image")
    wine = parse({"name": "run", "data": {"source": "wine"}, "model": {"preset": "tvae"}})
    assert fingerprint.fields(wine, "train")["model.network"] == "mlp"
    assert fingerprint.fields(wine, "generate")["generate.encoding"] == "png"
