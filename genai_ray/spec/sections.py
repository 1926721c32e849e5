"""The sections of a spec that every modality has. What a modality adds is in its own `spec.py`.

A key without an effect is refused like a misspelt one. `needs` and `unless` of a field say which values of other keys
of its section give it an effect or take it away.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, cast, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from genai_ray.errors import UserError, nearest


def key(
    default: Any,
    *,
    fingerprint: bool = True,
    later: bool = False,
    was: Any = None,
    needs: Mapping[str, tuple[object, ...]] | None = None,
    unless: Mapping[str, object] | None = None,
    **kwargs: Any,
) -> Any:
    """A key of a section.

    Args:
        fingerprint: False for a key that cannot change a result.
        later: earlier versions did not have it. It is left out of the fingerprint while it has its default, so that
            their runs resume.
        was: the default of earlier versions, in whose place null is now the default; the fingerprint keeps it, so that
            their runs resume.
        needs: key of the same section -> the values with which this one has an effect.
        unless: key of the same section -> the value with which this one has none.
        kwargs: as for pydantic's `Field`.
    """
    extra: dict[str, Any] = {} if fingerprint else {"fingerprint": False}
    if later:
        extra["later"] = True
    if was is not None:
        extra["was"] = was
    if needs:
        extra["needs"] = {name: list(values) for name, values in needs.items()}
    if unless:
        extra["unless"] = dict(unless)
    return Field(default, json_schema_extra=extra, **kwargs)


def outside(default: Any, **kwargs: Any) -> Any:
    """A key that cannot change a result and is left out of the fingerprint."""
    return key(default, fingerprint=False, **kwargs)


def later(default: Any, **kwargs: Any) -> Any:
    """A key that earlier versions did not have."""
    return key(default, later=True, **kwargs)


def absolute(uri: str) -> str:
    """A URI that means the same in the working directory of every worker."""
    return uri.rstrip("/") if "://" in uri else str(Path(uri).expanduser().resolve())


class Section(BaseModel):
    """A frozen part of a spec that refuses unknown keys.

    path: its name in the spec. v0: values that version 0 put into the fingerprint of such a section for keys that the
    section does not have, where they differ from `fingerprint.V0`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: ClassVar[str] = ""
    v0: ClassVar[Mapping[str, object]] = {}

    @classmethod
    def effective(cls, values: Mapping[str, Any]) -> list[str]:
        """The keys that have an effect with these values, in order."""
        return [name for name in cls.model_fields if not cls.lacking(name, values)]

    @classmethod
    def lacking(cls, name: str, values: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Why a key has no effect with these values: other key -> its values that would give it one; an empty list
        means any other value. Empty if the key has an effect.
        """
        extra: Any = cls.model_fields[name].json_schema_extra or {}
        needs: dict[str, list[Any]] = extra.get("needs", {})
        unless: dict[str, Any] = extra.get("unless", {})

        def current(switch: str) -> Any:
            return values.get(switch, cls.model_fields[switch].default)

        missing = {k: cls._possible(k, accepted) for k, accepted in needs.items() if current(k) not in accepted}
        return missing | {k: [] for k, value in unless.items() if current(k) == value}

    @classmethod
    def _possible(cls, name: str, values: list[Any]) -> list[Any]:
        """The values that a key can have here: a section may narrow the choices of its base class."""
        annotation = cls.model_fields[name].annotation
        choices = get_args(annotation) if get_origin(annotation) is Literal else values
        return [value for value in values if value in choices]

    @model_validator(mode="before")
    @classmethod
    def _every_key_has_an_effect(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        given = cast(Mapping[str, Any], values)
        for name in given:
            if given[name] is None or name not in cls.model_fields:
                continue
            for switch, accepted in cls.lacking(name, given).items():
                current = _plain(given.get(switch, cls.model_fields[switch].default))
                options = " or ".join(f"{switch}={_plain(v)}" for v in accepted) or f"another {switch}"
                raise UserError(
                    f"{cls.path}.{name}",
                    given[name],
                    f"has no effect with {switch}={current}; it needs {options}",
                    nearest(name, [k for k in cls.effective(given) if k != name]),
                )
        return values

    @model_serializer(mode="wrap")
    def _only_what_has_an_effect(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped = handler(self)
        return {k: v for k, v in dumped.items() if not type(self).lacking(k, self.__dict__)}


def _plain(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


class DataSpec(Section):
    """Where the real data come from."""

    path = "data"

    source: str
    root: str | None = outside(None)
    holdout: float | None = Field(default=None, gt=0, lt=1)


class ModelSpec(Section):
    """A preset, and the values that differ from it; each family adds its own keys.

    implementation: "module:class" of its `Family`.
    """

    path = "model"
    implementation: ClassVar[str] = ""

    preset: str
    family: str
    conditional: bool = Field(default=False, description="generate a requested class, or rows of a requested category")
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = Field(default=2e-4, gt=0, allow_inf_nan=False)
    learning_rate_decay: Literal["none", "linear"] = Field(
        default="none", description="linear: to 0 at the end of training"
    )
    betas: tuple[float, float] = key((0.5, 0.999), needs={"optimizer": ("adam",)}, description="of Adam")
    weight_decay: float = later(0.0, ge=0, description="half the weight of |w|^2")
    ema_half_life: int = Field(default=10_000, ge=0, description="of the generator average, in samples; 0 is off")
    ema_ramp_up: float = key(
        0.05, unless={"ema_half_life": 0}, gt=0, description="limit on the half-life, as a share of the samples so far"
    )

    @property
    def trains_on_labels(self) -> bool:
        """Whether training samples come with their labels."""
        return self.conditional

    def rate_of(self, net: str) -> float:
        """The initial learning rate of a network."""
        return self.learning_rate

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= b < 1 for b in betas):
            raise ValueError("each of Adam's betas must be at least 0 and below 1")
        return betas


class AdversarialSpec(ModelSpec):
    """What families with a discriminator have."""

    loss: Literal["nonsaturating", "hinge", "least_squares", "wasserstein"] = "nonsaturating"
    n_dis: int = Field(default=1, ge=1, description="discriminator steps for one generator step")
    discriminator_learning_rate: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="null: learning_rate"
    )

    def rate_of(self, net: str) -> float:
        own = self.discriminator_learning_rate if net == "discriminator" else None
        return self.learning_rate if own is None else own


class TrainSpec(Section):
    """How long and with what resources to train. `samples` and `global_batch` count real samples."""

    path = "train"

    workers: int | tuple[int, int] = outside(
        1,
        description="0: in the driver's own process, for debugging; [least, most]: as many as fit on the cluster, "
        "fewer when it loses nodes, more when it gets them back",
    )
    cpus_per_worker: float = outside(1, gt=0)
    device: Literal["cpu", "cuda"] = "cpu"
    global_batch: int = Field(default=128, ge=1)
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="samples in one forward pass; a worker does as many passes as its share of the batch needs. null: "
        "the share of each worker at the largest number of workers",
    )
    samples: int = Field(default=400_000, ge=1)
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        default="fp32", description="tf32: on a GPU; bf16: autocast, with fp32 losses"
    )
    channels_last: bool = Field(default=True, description="memory layout of convolutions")
    compile: Literal["none", "default", "cuda_graphs"] = Field(
        default="none", description="the networks by torch.compile, without their penalties"
    )
    checkpoint_every: int = Field(default=50_000, ge=1, description="in samples")
    keep_checkpoints: int = outside(2, ge=2)
    evaluate_every: int | None = Field(
        default=None, ge=1, description="in samples: measure against training images; null: never"
    )
    evaluate_samples: int = key(2_000, unless={"evaluate_every": None}, ge=100, description="in each such measurement")
    keep: Literal["last", "best"] = Field(
        default="last", description="the state that is exported; best: of the lowest FID measured"
    )
    patience: int | None = Field(
        default=None, ge=1, description="measurements without a better FID before training ends"
    )
    max_failures: int = outside(2, ge=0, description="worker crashes to survive in one call")
    log_seconds: float = outside(5.0, gt=0)
    start_timeout_s: float = outside(120.0, gt=0)
    stall_timeout_s: float = outside(
        900.0, ge=1, description="a worker that waits this long for another treats it as crashed"
    )
    lease_s: float = outside(30.0, ge=1, description="a driver without a heartbeat for this long is considered dead")
    mlflow: str | None = outside(None, description="tracking URI; null: no MLflow")

    @property
    def least_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @model_validator(mode="after")
    def _workers_are_a_range(self) -> "TrainSpec":
        least, most = self.least_workers, self.most_workers
        if least < (0 if least == most else 1) or most < least:
            rule = "must be a number, or [least, most] with 1 <= least <= most"
            raise UserError("train.workers", self.workers, rule, "Use train.workers=2 or [1,2].")
        return self

    @model_validator(mode="after")
    def _workers_divide_the_batch(self) -> "TrainSpec":
        divisor = self.micro_batch or max(1, self.most_workers)
        field = "train.micro_batch" if self.micro_batch else "train.workers"
        if self.global_batch % divisor:
            divisible = self.global_batch - self.global_batch % divisor or divisor
            raise UserError(
                "train.global_batch",
                self.global_batch,
                f"must be divisible by {field}={divisor}",
                f"Use train.global_batch={divisible}, or another {field}.",
            )
        if self.micro_batch and self.most_workers * self.micro_batch > self.global_batch:
            raise UserError(
                "train.micro_batch",
                self.micro_batch,
                f"leaves some of {self.most_workers} workers without work",
                f"Use at most {self.global_batch // self.most_workers}, or fewer train.workers.",
            )
        return self

    @model_validator(mode="after")
    def _choices_need_measurements(self) -> "TrainSpec":
        field = "keep" if self.keep == "best" else "patience" if self.patience else None
        if field and self.evaluate_every is None:
            rule = "needs measurements while training"
            raise UserError(f"train.{field}", getattr(self, field), rule, "Set train.evaluate_every, in samples.")
        return self

    @model_validator(mode="after")
    def _gpus_only(self) -> "TrainSpec":
        for field, value in (("precision", "tf32"), ("compile", "cuda_graphs")):
            if getattr(self, field) == value and self.device == "cpu":
                remedy = f"Set train.device=cuda, or another train.{field}."
                raise UserError(f"train.{field}", value, "needs train.device=cuda", remedy)
        return self


_GPU = {"device": ("cuda",)}
_ICEBERG = {"sink": ("iceberg",)}


class GenerateSpec(Section):
    """What to generate, and how it is split into files. The modality defines the sinks."""

    path = "generate"

    into: str = outside(
        "dataset",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="folder of the data set in the run; a run can hold several, each with its own seed",
    )
    samples: int = Field(default=10_000, ge=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="null: the seed of the run")
    shard_rows: int = Field(default=8192, ge=1)
    shard_bytes: int | None = Field(
        default=None, ge=1024, description="target for the bytes of the files of a shard, instead of shard_rows"
    )
    sink: str = Field(default="parquet", description="what writes the files of a shard")
    catalog: str = outside("default", needs=_ICEBERG, description="its name in pyiceberg's settings")
    table: str | None = outside(None, needs=_ICEBERG, pattern=r"^[^.\s]+(\.[^.\s]+)+$", description="as namespace.name")
    batch: int | None = outside(
        None, ge=1, description="samples in one call of the model; null: the default of the modality"
    )
    workers: int = outside(1, ge=1)
    cpus_per_worker: float = outside(1, gt=0)
    device: Literal["cpu", "cuda"] = Field(default="cpu")
    gpus_per_worker: float = outside(1.0, needs=_GPU, gt=0, le=1, description="0.5: two workers on a GPU")
    gpu_memory_gb: float | None = outside(
        None, needs=_GPU, gt=0, description="limit on the GPU memory of a worker; null: none"
    )
    max_attempts: int = outside(3, ge=1, description="at one shard, before it has failed")
    start_timeout_s: float = outside(120.0, gt=0)
    lease_s: float = outside(30.0, ge=1, description="a driver without a heartbeat for this long is considered dead")

    @model_validator(mode="after")
    def _iceberg_has_a_table(self) -> "GenerateSpec":
        if self.sink == "iceberg" and self.table is None:
            remedy = "Set both, as in generate.sink=iceberg generate.table=synthetic.digits."
            raise UserError("generate.table", None, "names the table of generate.sink=iceberg and is required", remedy)
        return self


class ExportSpec(Section):
    """How the model is exported to ONNX."""

    path = "export"

    precision: Literal["fp32", "fp16", "int8"] = Field(default="fp32", description="of the weights")

    @property
    def difference_limit(self) -> float:
        """Limit on the mean difference of a lower precision from fp32, in the unit of the modality."""
        return 0.0


class ProvenanceSpec(Section):
    """What every file states about its origin, besides that it is synthetic."""

    path = "provenance"

    producer: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        pattern=r"^[\x21\x23-\x5B\x5D-\x7E]+$",
        description="name or code of the provider, without spaces or quotes: every file then carries the "
        "label of GB 45438-2025 (CSV cannot); null: none",
    )


class Prices(Section):
    """What things cost at your provider, in any one currency, for `genai-ray plan`."""

    path = "prices"

    node_hour: float = outside(0.0, ge=0, description="of one machine")
    workers_per_node: int = outside(1, ge=1)
    gb_month: float = outside(0.0, ge=0, description="of 10^9 bytes stored")
    put_1000: float = outside(0.0, ge=0, description="of 1,000 requests that write")


class EvaluateSpec(Section):
    """How the shipped data are measured; nothing here changes them.

    gates: `<metric>[_ratio]_(min|max)` -> limit, for any metric of the modality; a ratio is over the same metric of
    real data.
    """

    path = "evaluate"

    samples: int = outside(10_000, ge=100, description="at most, of real and of generated")
    gates: dict[str, float] = outside(
        {}, description="limits on metrics, as in fid_ratio_max: a data set that breaks one is not published"
    )

    @field_validator("gates", mode="before")
    @classmethod
    def _null_is_no_gate(cls, gates: Any) -> Any:
        if not isinstance(gates, Mapping):
            return {} if gates is None else gates
        for name in cast(Mapping[str, Any], gates):
            if not re.fullmatch(r"\w+", name):
                remedy = "Put a space behind the colon, as in 'evaluate.gates={fid_ratio_max: 10}'."
                raise UserError("evaluate.gates", name, "is no name of a gate", remedy)
        return {k: v for k, v in cast(Mapping[str, Any], gates).items() if v is not None}


class Spec(Section):
    """One run."""

    name: str = outside(..., pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    seed: int = Field(default=0, ge=0, lt=2**63)
    store: str = outside(
        "runs",
        description="folder or s3://bucket/prefix; file:///folder: one that every node of the cluster has",
        validate_default=True,
    )
    data: DataSpec
    model: ModelSpec
    train: TrainSpec = TrainSpec()
    export: ExportSpec = ExportSpec()
    generate: GenerateSpec = GenerateSpec()
    provenance: ProvenanceSpec = ProvenanceSpec()
    prices: Prices = Prices()
    evaluate: EvaluateSpec = EvaluateSpec()

    @field_validator("store")
    @classmethod
    def _store_is_absolute(cls, store: str) -> str:
        if re.fullmatch("s3:/*", store):
            raise ValueError("must name a bucket, as in s3://bucket/prefix")
        if store.startswith("file://") and not store.startswith("file:///"):
            raise ValueError("must be an absolute path, as in file:///shared/runs")
        other = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)|[A-Za-z]:\\", store)
        if other:
            rule = f"must be a folder, or begin with s3:// or file:///, and begins with {other[0]}"
            raise UserError("store", store, rule, "Write s3://bucket/prefix, or a folder of this system.")
        if re.search(r"\$(\{\w+\}|[A-Z_]{2,})", store) and not Path(store).exists():
            rule = "names a variable, which a spec does not replace"
            remedy = "Write the path itself, or give store=… on the command line without single quotes around it."
            raise UserError("store", store, rule, remedy)
        return absolute(store)

    @property
    def run_uri(self) -> str:
        return f"{self.store}/{self.name}"

    @property
    def generation_seed(self) -> int:
        return self.seed if self.generate.seed is None else self.generate.seed

    @property
    def report(self) -> str:
        """Folder of the report in the run: one for each data set."""
        into = self.generate.into
        return "report" if into == "dataset" else f"{into}-report"


class Preset(BaseModel):
    """A named model, what it is for, and the paper it follows."""

    model_config = ConfigDict(frozen=True)

    about: str
    source: str
    values: dict[str, Any]
