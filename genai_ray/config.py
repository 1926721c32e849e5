"""The Spec: one frozen value that describes a run, from the data to the published data set.

`load` reads YAML, applies `key=value` overrides by dotted path, fills the model in from its preset,
and checks everything that can be checked without touching data, store or cluster.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from genai_ray.errors import UserError, nearest
from genai_ray.presets import Variant, preset_values

Source = Literal["digits", "mnist", "fashion_mnist", "cifar10", "folder", "parquet"]


def _outside(default: Any, **kwargs: Any) -> Any:
    """A field that cannot change a result, so it is left out of the fingerprint."""
    return Field(default, json_schema_extra={"fingerprint": False}, **kwargs)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSpec(_Section):
    """Where the real data are and how they are brought to one shape."""

    source: Source = "digits"
    root: str | None = _outside(None, description="folder or s3:// URI of the source")
    size: int | None = Field(default=None, ge=8, le=512, description="height and width in pixels")
    channels: Literal[1, 3] | None = Field(default=None, description="null: as in the source")
    holdout: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="share kept from training; null: the source's test split",
    )
    on_corrupt: Literal["fail", "skip"] = "fail"
    image_column: str = "image"
    label_column: str = "label"
    download: bool = _outside(True, description="let torchvision fetch what data.root lacks")

    @model_validator(mode="after")
    def _root_where_needed(self) -> "DataSpec":
        if self.source in ("folder", "parquet") and not self.root:
            raise UserError("data.root", self.root, f"must say where the {self.source} lies",
                            "Give data.root=… a folder or an s3:// URI.")  # fmt: skip
        return self


class ModelSpec(Variant):
    """A preset, and the values that differ from it."""

    preset: str = "dcgan"
    conditional: bool = Field(default=False, description="generate a class that is asked for")


class TrainSpec(_Section):
    """How long and on what to train. `samples` and `global_batch` count real samples."""

    workers: int = _outside(1, ge=0, description="0: in the driver's own process, for debugging")
    cpus_per_worker: float = _outside(1, gt=0)
    device: Literal["cpu", "cuda"] = "cpu"
    global_batch: int = Field(default=128, ge=1)
    samples: int = Field(default=400_000, ge=1)
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_every: int = Field(default=50_000, ge=1, description="in samples")
    keep_checkpoints: int = _outside(2, ge=2)
    max_failures: int = _outside(2, ge=0, description="worker crashes to survive in one call")
    log_seconds: float = _outside(5.0, gt=0)
    start_timeout_s: float = _outside(120.0, gt=0)

    @model_validator(mode="after")
    def _workers_divide_the_batch(self) -> "TrainSpec":
        if self.workers and self.global_batch % self.workers:
            divisible = self.global_batch - self.global_batch % self.workers or self.workers
            raise UserError(
                "train.global_batch", self.global_batch,
                f"must be divisible by train.workers={self.workers}",
                f"Use train.global_batch={divisible}, or another number of workers.",
            )  # fmt: skip
        return self


class GenerateSpec(_Section):
    """What to generate and how it is cut into files."""

    samples: int = Field(default=10_000, ge=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="null: the seed of the run")
    shard_rows: int = Field(default=8192, ge=1)
    sink: Literal["parquet", "images", "discard"] = "parquet"
    encoding: Literal["png", "raw"] = Field(default="png", description="of the pixels in Parquet")
    classes: dict[str, float] | None = Field(
        default=None, description="class name to count or share; null: equal counts"
    )
    batch: int = _outside(64, ge=1, description="samples in one call of the model")
    workers: int = _outside(1, ge=1)
    cpus_per_worker: float = _outside(1, gt=0)
    device: Literal["cpu", "cuda"] = Field(default="cpu")
    max_attempts: int = _outside(3, ge=1, description="at one shard, before it is a failure")
    start_timeout_s: float = _outside(120.0, gt=0)

    @field_validator("classes", mode="before")
    @classmethod
    def _class_names_are_text(cls, classes: Any) -> Any:
        # YAML reads the class 3 as a number.
        if not isinstance(classes, Mapping):
            return classes
        named = cast(Mapping[Any, Any], classes)
        return {str(name): value for name, value in named.items()}


class Gates(_Section):
    """Limits on measured quality; a data set that breaks one is not marked as published."""

    fid_ratio_max: float | None = Field(default=None, gt=0, description="FID over real-versus-real")
    precision_min: float | None = Field(default=None, ge=0, le=1)
    recall_min: float | None = Field(default=None, ge=0, le=1)
    coverage_ratio_min: float | None = Field(
        default=None, ge=0, description="over real-versus-real"
    )
    agreement_min: float | None = Field(default=None, ge=0, le=1)
    duplicate_rate_max: float | None = Field(default=None, ge=0, le=1)
    exact_copy_rate_max: float | None = Field(default=None, ge=0, le=1)


class EvaluateSpec(_Section):
    """How the shipped data are measured; nothing here changes them."""

    samples: int = _outside(10_000, ge=100, description="at most, of real and of generated")
    duplicate_rows: int = _outside(1_000_000, ge=100, description="searched for repeats, at most")
    k: int = _outside(5, ge=1, description="neighbours of precision, recall, density, coverage")
    gates: Gates = _outside(Gates())


class Spec(_Section):
    """One run."""

    name: str = _outside(..., pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    seed: int = Field(default=0, ge=0, lt=2**63)
    store: str = _outside("runs", description="folder or s3://bucket/prefix", validate_default=True)
    data: DataSpec = DataSpec()
    model: ModelSpec = ModelSpec()
    train: TrainSpec = TrainSpec()
    generate: GenerateSpec = GenerateSpec()
    evaluate: EvaluateSpec = EvaluateSpec()

    @field_validator("store")
    @classmethod
    def _absolute(cls, store: str) -> str:
        if re.fullmatch("s3:/*", store):
            raise ValueError("must name a bucket, as in s3://bucket/prefix")
        # Workers run in folders of their own, so a relative path would mean another place there.
        return store.rstrip("/") if "://" in store else str(Path(store).expanduser().resolve())

    @model_validator(mode="after")
    def _classes_need_a_conditional_model(self) -> "Spec":
        if self.generate.classes is not None and not self.model.conditional:
            raise UserError(
                "generate.classes", self.generate.classes,
                "asks for labels, but the model has no classes",
                "Set model.conditional=true, or drop generate.classes.",
            )  # fmt: skip
        if self.evaluate.gates.agreement_min is not None and not self.model.conditional:
            raise UserError(
                "evaluate.gates.agreement_min", self.evaluate.gates.agreement_min,
                "needs a model with classes", "Set model.conditional=true, or drop the gate.",
            )  # fmt: skip
        return self

    @property
    def run_uri(self) -> str:
        return f"{self.store}/{self.name}"


def load(path: str | Path, overrides: Iterable[str] = ()) -> Spec:
    """Read a YAML spec and apply `key=value` overrides (dotted keys, YAML values).

    Raises:
        UserError: for a missing file, an unknown key, a wrong type or a broken rule.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            "spec", str(path), f"must be a readable YAML file ({error})", "See jobs/specs/."
        ) from None
    try:
        values: Any = yaml.load(text, _UniqueKeys) or {}
    except yaml.YAMLError as error:
        raise UserError(
            "spec", str(path), f"must be valid YAML ({error})", "See jobs/specs/."
        ) from None
    if not isinstance(values, dict):
        raise UserError("spec", str(path), "must hold `key: value` lines", "See jobs/specs/.")
    for override in overrides:
        _override(values, override)
    return parse(values)


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that stands twice is a mistake, not a choice of the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # pyright: ignore
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"key {key!r} stands {keys.count(key)} times")
        return super().construct_mapping(node, deep)


def parse(values: Mapping[str, Any]) -> Spec:
    """Check plain values against the Spec, with the model filled in from its preset."""
    values = dict(values)
    model: Any = values.get("model") or {}
    if isinstance(model, dict):
        # A dump holds every value; filling it in again changes nothing.
        given = cast(dict[str, Any], model)
        values["model"] = preset_values(str(given.get("preset", "dcgan"))) | given
    try:
        return Spec.model_validate(values)
    except pydantic.ValidationError as error:
        raise _user_error(error, values) from None


def dump(spec: Spec) -> dict[str, Any]:
    """The spec as plain JSON values; `parse(dump(spec)) == spec`."""
    return spec.model_dump(mode="json")


def fingerprint_fields(spec: Spec, stage: Literal["train", "generate"]) -> dict[str, Any]:
    """Dotted name to value of every field that can change what a stage makes.

    Training depends on seed, data, model and train; generation on the model file (whose digest the
    caller adds), the seed and generate.
    """
    sections = {"train": ("data", "model", "train"), "generate": ("generate",)}[stage]
    fields: dict[str, Any] = {"seed": spec.seed}
    for section in sections:
        part: BaseModel = getattr(spec, section)
        dumped = part.model_dump(mode="json")
        for name, info in type(part).model_fields.items():
            extra = info.json_schema_extra
            if not (isinstance(extra, dict) and extra.get("fingerprint") is False):
                fields[f"{section}.{name}"] = dumped[name]
    if stage == "generate":
        fields["seed"] = generation_seed(spec)
        del fields["generate.seed"]
    return fields


def generation_seed(spec: Spec) -> int:
    return spec.seed if spec.generate.seed is None else spec.generate.seed


def fingerprint(fields: Mapping[str, Any]) -> str:
    """SHA-256 of the fields, as hex."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError("override", override, "must look like key=value", "Try train.workers=2.")
    *parents, last = key.split(".")
    for parent in parents:
        if values.get(parent) is None:
            values[parent] = {}
        section: Any = values[parent]
        if not isinstance(section, dict):
            raise UserError(
                "override", override, f"{parent} is a value, not a section", "Shorten the key."
            )
        values = cast(dict[str, Any], section)
    try:
        value: Any = yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        raise UserError(
            "override", override, f"must hold a YAML value ({error})", "Quote text: key='\"a: b\"'."
        ) from None
    # YAML 1.1 takes 1_000 for a number, but not 1e-4 without a point.
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        value = float(value)
    values[last] = value


def _user_error(error: pydantic.ValidationError, values: Mapping[str, Any]) -> UserError:
    """The first problem pydantic found, in the four parts of a user error."""
    problem = error.errors(include_url=False)[0]
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, UserError):
        return cause
    path = [str(part) for part in problem["loc"]]
    field = ".".join(path) or "spec"
    if problem["type"] == "extra_forbidden":
        known = _fields_at(path[:-1])
        return UserError(field, problem["input"], "is not a key of the spec",
                         nearest(path[-1], known))  # fmt: skip
    if problem["type"] == "missing":
        return UserError(field, None, "is required", f"Add `{path[-1]}: …` to the spec.")
    if problem["type"] == "literal_error":
        return UserError(
            field, problem["input"], f"must be one of {problem.get('ctx', {}).get('expected')}",
            nearest(str(problem["input"]), [o for o in _options(path)]),
        )  # fmt: skip
    rule = problem["msg"].removeprefix("Value error, ")
    remedy = f"Change {field} in the spec or give {field}=… on the command line."
    return UserError(field, problem["input"], rule[0].lower() + rule[1:], remedy)


def _fields_at(path: list[str]) -> list[str]:
    model: Any = Spec
    for part in path:
        model = model.model_fields[part].annotation
    return list(model.model_fields)


def _options(path: list[str]) -> list[str]:
    model: Any = Spec
    for part in path[:-1]:
        model = model.model_fields[part].annotation
    arguments = get_args(model.model_fields[path[-1]].annotation)
    options = [a for option in arguments for a in (get_args(option) or (option,))]
    return [str(a) for a in options if a is not type(None)]
