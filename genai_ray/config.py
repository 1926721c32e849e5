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

ImageSource = Literal["digits", "mnist", "fashion_mnist", "cifar10", "folder", "parquet"]
TableSource = Literal["table", "breast_cancer", "diabetes", "wine"]
Source = Literal[ImageSource, TableSource]


def _outside(default: Any, **kwargs: Any) -> Any:
    """A field that cannot change a result, so it is left out of the fingerprint."""
    return Field(default, json_schema_extra={"fingerprint": False}, **kwargs)


def _later(default: Any, **kwargs: Any) -> Any:
    """A field that earlier versions did not have: it is left out of the fingerprint while it has
    its default, so that their runs go on.
    """
    return Field(default, json_schema_extra={"later": True}, **kwargs)


def _absolute(uri: str) -> str:
    """Workers run in folders of their own, so a relative path would mean another place there."""
    return uri.rstrip("/") if "://" in uri else str(Path(uri).expanduser().resolve())


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ColumnSpec(_Section):
    """What is known of a column better than its cells tell."""

    type: Literal["numerical", "categorical", "boolean", "datetime", "id", "constant", "drop"] | None = Field(
        default=None, description="null: as inferred; drop: leave it out"
    )
    datetime_format: str | None = Field(default=None, description="of text, as in strptime: %d/%m/%Y")
    decimals: int | None = Field(default=None, ge=0, le=12, description="null: as in the source")
    pattern: str | None = Field(
        default=None,
        description="regular expression of an id: literals, classes and fixed counts, such as "
        "[A-Z]{3}-[0-9]{6}",
    )
    min: float | str | None = Field(
        default=None,
        description="a number, or a date as in 2024-12-31; null: the least that data.table.rare rows reach",
    )
    max: float | str | None = Field(
        default=None, description="null: the greatest that data.table.rare rows reach"
    )

    @field_validator("min", "max", mode="before")
    @classmethod
    def _dates_are_text(cls, bound: Any) -> Any:
        # YAML makes a date of 2024-12-31 by itself.
        return bound.isoformat() if hasattr(bound, "isoformat") else bound

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> "ColumnSpec":
        low, high = self.min, self.max
        if low is not None and high is not None:
            if isinstance(low, str) != isinstance(high, str) or low > high:  # pyright: ignore
                raise UserError(
                    "data.table.columns", [low, high], "min must not be above max", "Swap or correct them."
                )
        return self


class Constraint(_Section):
    """A rule that every row keeps; exactly one of the kinds is given."""

    less: tuple[str, str] | None = Field(
        default=None, description="[low, high]: low <= high, in numbers or dates"
    )
    strict: bool = Field(default=False, description="low < high")
    together: tuple[str, ...] | None = Field(
        default=None, description="columns whose combinations are those seen in the source"
    )
    formula: str | None = Field(
        default=None,
        description="column = arithmetic of other columns, as in total = net + tax; a name such as "
        "`net price` stands in backquotes",
    )
    unique: str | None = Field(default=None, description="a column without repeats")

    @model_validator(mode="after")
    def _one_kind(self) -> "Constraint":
        kinds = {k: getattr(self, k) for k in ("less", "together", "formula", "unique")}
        given = [k for k, v in kinds.items() if v is not None]
        if len(given) != 1:
            raise UserError(
                "data.table.constraints",
                given,
                f"must each have one of {', '.join(kinds)}",
                "Write one constraint a line: - {less: [start, end]}.",
            )
        return self


class TableSpec(_Section):
    """How the files of a table are read and what its columns mean."""

    columns: dict[str, ColumnSpec] = Field(
        default={}, description="by name; `genai-ray inspect FILE` shows what is inferred"
    )
    metadata: str | None = Field(
        default=None, description="SDV metadata JSON (V1 or V2) that says the types of columns"
    )
    names: tuple[str, ...] | None = Field(
        default=None, description="of the columns, for CSV files without a header"
    )
    delimiter: str = Field(default=",", description="of CSV; `space` is any run of spaces and tabs")
    comment: str | None = Field(
        default=None, min_length=1, description="CSV lines that begin with it are no rows"
    )
    encoding: str = Field(default="utf8", description="of CSV")
    nulls: tuple[str, ...] = Field(
        default=("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?"),
        description="texts that mean a missing value",
    )
    numbers: Literal["modes", "quantiles"] = Field(
        default="modes",
        description="how numbers are encoded: by the modes of a Gaussian mixture, or by bins of "
        "equal counts (the choice for model.preset=table_ar); both with the place inside",
    )
    rare: int = Field(default=5, ge=1, description="a category seen fewer times is never generated")
    rare_label: str = Field(default="(other)", description="what stands for such categories")
    constraints: tuple[Constraint, ...] = ()

    @field_validator("columns", mode="before")
    @classmethod
    def _a_type_alone_is_enough(cls, columns: Any) -> Any:
        if not isinstance(columns, Mapping):
            return columns
        named = cast(Mapping[Any, Any], columns)
        return {str(n): {"type": v} if isinstance(v, str) else v for n, v in named.items()}

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, delimiter: str) -> str:
        delimiter = {"tab": "\t", "\\t": "\t"}.get(delimiter, delimiter)
        if delimiter != "space" and (len(delimiter) != 1 or not delimiter.isascii()):
            raise UserError(
                "data.table.delimiter",
                delimiter,
                "must be one ASCII character, `tab` or `space`",
                "Use , or ; or tab.",
            )
        return delimiter

    @field_validator("names")
    @classmethod
    def _names_differ(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        twice = sorted({n for n in names or () if (names or ()).count(n) > 1})
        if twice or names == ():
            raise UserError(
                "data.table.names", twice or names, "must be names that all differ", "Name every column once."
            )
        return names


class DataSpec(_Section):
    """Where the real data are and how they are brought to one shape."""

    source: Source = "digits"
    root: str | None = _outside(None, description="folder or s3:// URI of the source; of a table also a file")
    size: int | None = Field(default=None, ge=8, le=512, description="height and width in pixels")
    channels: Literal[1, 3] | None = Field(default=None, description="null: as in the source")
    holdout: float | None = Field(
        default=None, gt=0, lt=1, description="share kept from training; null: the source's test split"
    )
    holdout_root: str | None = _outside(
        None, description="of a table: files with the rows kept from training, in place of a share"
    )
    on_corrupt: Literal["fail", "skip"] = "fail"
    image_column: str = "image"
    label_column: str = "label"
    download: bool = _outside(True, description="let torchvision fetch what data.root lacks")
    # In the fingerprint: a stream shows Parquet in another order than memory does.
    ingest: Literal["auto", "resident", "stream"] = Field(
        default="auto", description="hold all decoded images in memory, or decode while training"
    )
    resident_gb: float = Field(
        default=4.0, gt=0, description="auto streams a folder or Parquet that decodes to more"
    )
    table: TableSpec = _later(TableSpec())

    @property
    def modality(self) -> Literal["image", "table"]:
        return "table" if self.source in get_args(TableSource) else "image"

    @model_validator(mode="after")
    def _a_stream_needs_files(self) -> "DataSpec":
        if self.ingest == "stream" and self.source not in ("folder", "parquet"):
            raise UserError(
                "data.ingest",
                self.ingest,
                f"cannot stream the source {self.source}",
                "Use data.ingest=auto, or data.source=folder or parquet.",
            )
        return self

    @model_validator(mode="after")
    def _one_holdout(self) -> "DataSpec":
        if self.holdout is not None and self.holdout_root is not None:
            raise UserError(
                "data.holdout_root",
                self.holdout_root,
                f"names the rows that judge, and data.holdout={self.holdout:g} does too",
                "Drop one of them.",
            )
        return self

    @model_validator(mode="after")
    def _root_where_needed(self) -> "DataSpec":
        if self.source in ("folder", "parquet", "table") and not self.root:
            raise UserError(
                "data.root",
                self.root,
                f"must say where the {self.source} lies",
                "Give data.root=… a folder or an s3:// URI.",
            )
        return self


class ModelSpec(Variant):
    """A preset, and the values that differ from it."""

    preset: str = "dcgan"
    conditional: bool = Field(
        default=False, description="generate a class, or rows with a category, that is asked for"
    )

    @property
    def trains_on_labels(self) -> bool:
        """Whether training samples come with what the model is asked for."""
        return self.conditional and self.family != "table_ar"


class TrainSpec(_Section):
    """How long and on what to train. `samples` and `global_batch` count real samples."""

    workers: int | tuple[int, int] = _outside(
        1,
        description="0: in the driver's own process, for debugging; [least, most]: as many as the "
        "cluster can give, fewer when it loses some, more when it gets them back",
    )
    cpus_per_worker: float = _outside(1, gt=0)
    device: Literal["cpu", "cuda"] = "cpu"
    global_batch: int = Field(default=128, ge=1)
    micro_batch: int | None = Field(
        default=None,
        ge=1,
        description="samples in one forward pass; a worker's share is made of as many as it needs. "
        "null: the share of each of the most workers",
    )
    samples: int = Field(default=400_000, ge=1)
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        default="fp32", description="tf32: on a card; bf16: autocast, with fp32 losses"
    )
    channels_last: bool = Field(default=True, description="memory layout of convolutions")
    compile: Literal["none", "default", "cuda_graphs"] = Field(
        default="none", description="the networks by torch.compile, without their penalties"
    )
    checkpoint_every: int = Field(default=50_000, ge=1, description="in samples")
    keep_checkpoints: int = _outside(2, ge=2)
    evaluate_every: int | None = Field(
        default=None, ge=1, description="in samples: measure against training images; null: never"
    )
    evaluate_samples: int = Field(default=2_000, ge=100, description="in each such measurement")
    keep: Literal["last", "best"] = Field(
        default="last", description="the state that is exported; best: of the lowest FID measured"
    )
    patience: int | None = Field(
        default=None, ge=1, description="measurements without a better FID before training ends"
    )
    max_failures: int = _outside(2, ge=0, description="worker crashes to survive in one call")
    log_seconds: float = _outside(5.0, gt=0)
    start_timeout_s: float = _outside(120.0, gt=0)
    stall_timeout_s: float = _outside(
        900.0, ge=1, description="a worker that waits so long for another takes it for crashed"
    )
    mlflow: str | None = _outside(None, description="tracking URI; null: no MLflow")

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
            raise UserError(
                "train.workers",
                self.workers,
                "must be a number, or [least, most] with 1 <= least <= most",
                "Use train.workers=2 or [1,2].",
            )
        return self

    @model_validator(mode="after")
    def _workers_divide_the_batch(self) -> "TrainSpec":
        part = self.micro_batch or max(1, self.most_workers)
        field = "train.micro_batch" if self.micro_batch else "train.workers"
        if self.global_batch % part:
            divisible = self.global_batch - self.global_batch % part or part
            raise UserError(
                "train.global_batch",
                self.global_batch,
                f"must be divisible by {field}={part}",
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
    def _judged_by_measurements(self) -> "TrainSpec":
        asked = "keep" if self.keep == "best" else "patience" if self.patience else None
        if asked and self.evaluate_every is None:
            raise UserError(
                f"train.{asked}",
                getattr(self, asked),
                "needs measurements while training",
                "Set train.evaluate_every, in samples.",
            )
        return self

    @model_validator(mode="after")
    def _cards_only(self) -> "TrainSpec":
        for field, value in (("precision", "tf32"), ("compile", "cuda_graphs")):
            if getattr(self, field) == value and self.device == "cpu":
                raise UserError(
                    f"train.{field}",
                    value,
                    "needs train.device=cuda",
                    f"Set train.device=cuda, or another train.{field}.",
                )
        return self


#: Samples in one call of a model: what a processor's caches take, or what a call costs.
BATCH = {"image": 64, "table": 1024}


class RowCondition(_Section):
    """Rows of a table in which some columns are fixed."""

    where: dict[str, Any] = Field(default={}, description="column to value; {}: nothing is fixed")
    rows: int | None = Field(default=None, ge=0, description="exactly so many")
    share: float | None = Field(default=None, ge=0, le=1, description="of generate.samples")

    @model_validator(mode="after")
    def _one_of_two(self) -> "RowCondition":
        if (self.rows is None) == (self.share is None):
            raise UserError(
                "generate.conditions",
                self.where,
                "must have either rows or a share",
                "Write - {where: {column: value}, rows: 1000}.",
            )
        return self


class GenerateSpec(_Section):
    """What to generate and how it is cut into files."""

    into: str = _outside(
        "dataset",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="folder of the data set in the run; several of one model, each of its own "
        "seed, lie side by side",
    )
    samples: int = Field(default=10_000, ge=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="null: the seed of the run")
    shard_rows: int = Field(default=8192, ge=1)
    shard_bytes: int | None = Field(
        default=None,
        ge=1024,
        description="bytes that the files of a shard should have, in place of shard_rows",
    )
    truncation: float | None = Field(
        default=None,
        gt=0,
        description="largest number in the noise: less variety, cleaner samples; null: not cut",
    )
    sink: Literal["parquet", "csv", "images", "webdataset", "iceberg", "discard"] = "parquet"
    encoding: Literal["png", "jpeg", "webp", "raw"] = Field(
        default="png", description="of the pixels; raw for Parquet and Iceberg"
    )
    quality: int = Field(default=90, ge=1, le=100, description="of jpeg and webp")
    catalog: str = _outside("default", description="of Iceberg, as pyiceberg's settings name it")
    table: str | None = _outside(
        None, pattern=r"^[^.\s]+(\.[^.\s]+)+$", description="of Iceberg, as namespace.name"
    )
    classes: dict[str, float] | None = Field(
        default=None, description="class name to count or share; null: equal counts"
    )
    conditions: str | tuple[RowCondition, ...] | None = Field(
        default=None,
        description="images: Parquet or CSV file with a column `label`: row i says of what class "
        "sample i is, and its other columns stand beside the sample; tables: a list of "
        "{where: {column: value}, rows or share}",
    )
    batch: int | None = _outside(
        None, ge=1, description="samples in one call of the model; null: 64 images, 1,024 rows"
    )
    workers: int = _outside(1, ge=1)
    cpus_per_worker: float = _outside(1, gt=0)
    device: Literal["cpu", "cuda"] = Field(default="cpu")
    gpus_per_worker: float = _outside(1.0, gt=0, le=1, description="0.5: two workers on a card")
    gpu_memory_gb: float | None = _outside(
        None, gt=0, description="a worker takes no more of its card; null: all it wants"
    )
    max_attempts: int = _outside(3, ge=1, description="at one shard, before it is a failure")
    start_timeout_s: float = _outside(120.0, gt=0)
    lease_s: float = _outside(
        30.0, ge=1, description="a driver that gives no sign for so long is taken for dead"
    )

    @field_validator("classes", mode="before")
    @classmethod
    def _class_names_are_text(cls, classes: Any) -> Any:
        # YAML reads the class 3 as a number.
        if not isinstance(classes, Mapping):
            return classes
        named = cast(Mapping[Any, Any], classes)
        return {str(name): value for name, value in named.items()}

    @field_validator("conditions")
    @classmethod
    def _conditions_are_found_by_workers(cls, conditions: Any) -> Any:
        return _absolute(conditions) if isinstance(conditions, str) else conditions

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "GenerateSpec":
        if self.encoding == "raw" and self.sink in ("images", "webdataset"):
            raise UserError(
                "generate.encoding",
                "raw",
                f"is no file format for sink={self.sink}",
                "Use png, jpeg or webp, or generate.sink=parquet.",
            )
        if (self.sink == "iceberg") != (self.table is not None):
            raise UserError(
                "generate.table",
                self.table,
                "names the table of generate.sink=iceberg",
                "Set both, as in generate.sink=iceberg generate.table=synthetic.digits.",
            )
        if self.conditions is not None and self.classes is not None:
            raise UserError(
                "generate.conditions",
                self.conditions,
                "says what each sample is, and so does generate.classes",
                "Drop one of the two.",
            )
        return self


class ExportSpec(_Section):
    """How the model is turned into ONNX."""

    precision: Literal["fp32", "fp16", "int8"] = Field(
        default="fp32", description="of the weights; fp16 for cards, int8 for CPUs with VNNI"
    )
    difference_max: float = Field(
        default=2.0,
        gt=0,
        description="mean difference from fp32 in grey levels above which fp16 and int8 are refused",
    )


class ProvenanceSpec(_Section):
    """What every file says of its origin, beside that it is synthetic."""

    producer: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        pattern=r"^[\x21\x23-\x5B\x5D-\x7E]+$",
        description="name or code of the provider, without spaces or quotes: every file then "
        "carries the label of GB 45438-2025 (CSV cannot); null: none",
    )


class Prices(_Section):
    """What things cost at your provider, in any one currency, for `genai-ray plan`."""

    node_hour: float = _outside(0.0, ge=0, description="of one machine")
    workers_per_node: int = _outside(1, ge=1)
    gb_month: float = _outside(0.0, ge=0, description="of 10^9 bytes stored")
    put_1000: float = _outside(0.0, ge=0, description="of 1,000 requests that write")


class Gates(_Section):
    """Limits on measured quality; a data set that breaks one is not marked as published."""

    fid_ratio_max: float | None = Field(default=None, gt=0, description="FID over real-versus-real")
    precision_min: float | None = Field(default=None, ge=0, le=1)
    recall_min: float | None = Field(default=None, ge=0, le=1)
    coverage_ratio_min: float | None = Field(default=None, ge=0, description="over real-versus-real")
    agreement_min: float | None = Field(default=None, ge=0, le=1)
    duplicate_rate_max: float | None = Field(default=None, ge=0, le=1)
    exact_copy_rate_max: float | None = Field(default=None, ge=0, le=1)
    fid_inception_max: float | None = Field(default=None, gt=0)
    column_shapes_min: float | None = Field(default=None, ge=0, le=1, description="of a table")
    pair_trends_min: float | None = Field(default=None, ge=0, le=1)
    efficacy_f1_min: float | None = Field(default=None, ge=0, le=1)
    efficacy_f1_ratio_min: float | None = Field(default=None, ge=0, description="over train-on-real")
    efficacy_auc_min: float | None = Field(default=None, ge=0, le=1)
    efficacy_r2_ratio_min: float | None = Field(default=None, ge=0)
    detection_auc_max: float | None = Field(default=None, ge=0, le=1)
    category_coverage_min: float | None = Field(default=None, ge=0, le=1)
    range_coverage_min: float | None = Field(default=None, ge=0, le=1)
    closest_share_max: float | None = Field(default=None, ge=0, le=1)
    constraint_validity_min: float | None = Field(default=None, ge=0, le=1)


class EvaluateSpec(_Section):
    """How the shipped data are measured; nothing here changes them."""

    samples: int = _outside(10_000, ge=100, description="at most, of real and of generated")
    duplicate_rows: int = _outside(1_000_000, ge=100, description="searched for repeats, at most")
    target: str | None = _outside(None, description="column of a table that learners predict; null: the last")
    k: int = _outside(5, ge=1, description="neighbours of precision, recall, density, coverage")
    inception: str | None = _outside(
        None,
        description="file of the reference Inception weights, to measure fid_inception against the "
        "whole training set, as published figures are; null: not measured",
    )
    inception_samples: int = _outside(
        50_000, ge=2, description="generated images that fid_inception is measured on"
    )
    gates: Gates = _outside(Gates())


class Spec(_Section):
    """One run."""

    name: str = _outside(..., pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    seed: int = Field(default=0, ge=0, lt=2**63)
    store: str = _outside("runs", description="folder or s3://bucket/prefix", validate_default=True)
    data: DataSpec = DataSpec()
    model: ModelSpec = ModelSpec()
    train: TrainSpec = TrainSpec()
    export: ExportSpec = ExportSpec()
    generate: GenerateSpec = GenerateSpec()
    provenance: ProvenanceSpec = ProvenanceSpec()
    prices: Prices = Prices()
    evaluate: EvaluateSpec = EvaluateSpec()

    @field_validator("store")
    @classmethod
    def _store_has_a_place(cls, store: str) -> str:
        if re.fullmatch("s3:/*", store):
            raise ValueError("must name a bucket, as in s3://bucket/prefix")
        return _absolute(store)

    @model_validator(mode="after")
    def _parts_are_of_one_modality(self) -> "Spec":
        modality, family = self.data.modality, self.model.family
        if self.model.modality != modality:
            raise UserError(
                "model.preset",
                self.model.preset,
                f"makes {self.model.modality}s, and "
                f"data.source={self.data.source} is a source of {modality}s",
                "See `genai-ray presets`.",
            )
        if modality == "image":
            wrong = {
                "generate.sink": self.generate.sink if self.generate.sink == "csv" else None,
                "data.holdout_root": self.data.holdout_root,
                "generate.conditions": self.generate.conditions
                if isinstance(self.generate.conditions, tuple)
                else None,
            }
        else:
            wrong = {
                "generate.sink": self.generate.sink
                if self.generate.sink in ("images", "webdataset")
                else None,
                "generate.classes": self.generate.classes,
                "generate.conditions": self.generate.conditions
                if isinstance(self.generate.conditions, str)
                else None,
                "export.precision": self.export.precision if self.export.precision != "fp32" else None,
                # It would also cut the choice of categories.
                "generate.truncation": self.generate.truncation,
                # CSV has no place for it.
                "provenance.producer": self.provenance.producer if self.generate.sink == "csv" else None,
                "evaluate.inception": self.evaluate.inception,
                "data.ingest": self.data.ingest if self.data.ingest == "stream" else None,
            }
        for field, value in wrong.items():
            if value is not None:
                about = f"is not for {modality}s ({family}, sink={self.generate.sink})"
                raise UserError(field, value, about, "Drop it.")
        share = self.train.micro_batch or self.train.global_batch // max(1, self.train.most_workers)
        if share % self.model.pack:
            raise UserError(
                "train.global_batch",
                self.train.global_batch,
                f"gives each worker {share} samples "
                f"at once, and model.pack={self.model.pack} of them are judged together",
                "Use multiples of model.pack.",
            )
        return self

    @model_validator(mode="after")
    def _classes_need_a_conditional_model(self) -> "Spec":
        for field in ("classes", "conditions") if self.data.modality == "image" else ():
            asked = getattr(self.generate, field)
            if asked is not None and not self.model.conditional:
                raise UserError(
                    f"generate.{field}",
                    asked,
                    "asks for labels, but the model has no classes",
                    f"Set model.conditional=true, or drop generate.{field}.",
                )
        if self.generate.truncation is not None and self.model.prior == "mixture":
            raise UserError(
                "generate.truncation",
                self.generate.truncation,
                "would change how often model.prior=mixture picks each component",
                "Drop generate.truncation, or set model.prior=normal.",
            )
        if self.evaluate.gates.agreement_min is not None and not self.model.conditional:
            raise UserError(
                "evaluate.gates.agreement_min",
                self.evaluate.gates.agreement_min,
                "needs a model with classes",
                "Set model.conditional=true, or drop the gate.",
            )
        return self

    @model_validator(mode="after")
    def _published_figures_need_many(self) -> "Spec":
        ask = self.evaluate
        if ask.gates.fid_inception_max is not None and ask.inception is None:
            raise UserError(
                "evaluate.gates.fid_inception_max",
                ask.gates.fid_inception_max,
                "needs the reference weights",
                "Set evaluate.inception, or drop the gate.",
            )
        if ask.inception is not None and self.generate.samples < ask.inception_samples:
            raise UserError(
                "evaluate.inception_samples",
                ask.inception_samples,
                f"is more than generate.samples={self.generate.samples}",
                f"Set generate.samples={ask.inception_samples}, or take fewer and say so.",
            )
        if ask.inception is not None and self.data.ingest == "stream":
            raise UserError(
                "evaluate.inception",
                ask.inception,
                "compares with every training image, and data.ingest=stream keeps few",
                "Set data.ingest=resident.",
            )
        return self

    @model_validator(mode="after")
    def _a_stream_needs_ray(self) -> "Spec":
        if self.data.ingest == "stream" and not self.train.workers:
            raise UserError(
                "data.ingest",
                self.data.ingest,
                "needs Ray to decode, and train.workers=0 trains without it",
                "Set train.workers=1 or more, or data.ingest=resident.",
            )
        return self

    @property
    def run_uri(self) -> str:
        return f"{self.store}/{self.name}"

    @property
    def report(self) -> str:
        """Folder of the report in the run: one for each data set."""
        into = self.generate.into
        return "report" if into == "dataset" else f"{into}-report"


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
        raise UserError("spec", str(path), f"must be valid YAML ({error})", "See jobs/specs/.") from None
    if not isinstance(values, dict):
        raise UserError("spec", str(path), "must hold `key: value` lines", "See jobs/specs/.")
    for override in overrides:
        _override(values, override)
    return parse(values)


def table_to_inspect(uri: str, overrides: Iterable[str] = ()) -> Spec:
    """A spec that reads a table and nothing more."""
    values: dict[str, Any] = {
        "name": "inspect",
        "data": {"source": "table", "root": uri},
        "model": {"preset": "tvae"},
    }
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
        preset = preset_values(str(given.get("preset", "dcgan")))
        values["model"] = preset | given
        _choose_encoding(values, values["model"].get("family"))
    try:
        return Spec.model_validate(values)
    except pydantic.ValidationError as error:
        raise _user_error(error, values) from None


def _choose_encoding(values: dict[str, Any], family: Any) -> None:
    """Bins for a model that knows categories alone, unless the spec says otherwise."""
    data: Any = values.get("data") or {}
    if family == "table_ar" and isinstance(data, dict):
        given: dict[str, Any] = cast(dict[str, Any], data)
        table: Any = given.get("table") or {}
        if isinstance(table, dict):
            values["data"] = given | {"table": {"numbers": "quantiles"} | table}


def dump(spec: Spec) -> dict[str, Any]:
    """The spec as plain JSON values; `parse(dump(spec)) == spec`."""
    return spec.model_dump(mode="json")


def fingerprint_fields(spec: Spec, stage: Literal["train", "generate"]) -> dict[str, Any]:
    """Dotted name to value of every field that can change what a stage makes.

    Training depends on seed, data, model and train; generation on the model file (whose digest the
    caller adds), the seed, generate and provenance.
    """
    sections = {"train": ("data", "model", "train"), "generate": ("generate", "provenance")}[stage]
    fields: dict[str, Any] = {"seed": spec.seed}
    for section in sections:
        part: BaseModel = getattr(spec, section)
        dumped = part.model_dump(mode="json")
        for name, info in type(part).model_fields.items():
            extra: Any = info.json_schema_extra or {}
            if extra.get("fingerprint") is False:
                continue
            if not (extra.get("later") and getattr(part, name) == info.default):
                fields[f"{section}.{name}"] = dumped[name]
    if stage == "generate":
        fields["seed"] = generation_seed(spec)
        del fields["generate.seed"]
        if spec.generate.device == "cuda":
            # Another shape may be computed by another algorithm there.
            fields["generate.batch"] = spec.generate.batch or BATCH[spec.data.modality]
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
            raise UserError("override", override, f"{parent} is a value, not a section", "Shorten the key.")
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
    problems = error.errors(include_url=False)
    # Of a field that may be of two types, the type that was not meant complains too.
    meant = [p for p in problems if p["type"] != "string_type" or len(problems) == 1]
    problem = (meant or problems)[0]
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, UserError):
        return cause
    path = [str(part) for part in problem["loc"] if "[" not in str(part)]
    field = ".".join(path) or "spec"
    if problem["type"] == "extra_forbidden":
        known = _fields_at(path[:-1])
        return UserError(field, problem["input"], "is not a key of the spec", nearest(path[-1], known))
    if problem["type"] == "missing":
        return UserError(field, None, "is required", f"Add `{path[-1]}: …` to the spec.")
    if problem["type"] == "literal_error":
        expected = str(problem.get("ctx", {}).get("expected"))
        options = re.findall(r"'([^']+)'|\b(\d+)\b", expected)
        return UserError(
            field,
            problem["input"],
            f"must be one of {expected}",
            nearest(str(problem["input"]), ["".join(o) for o in options]),
        )
    rule = problem["msg"].removeprefix("Value error, ")
    remedy = f"Change {field} in the spec or give {field}=… on the command line."
    return UserError(field, problem["input"], rule[0].lower() + rule[1:], remedy)


def _fields_at(path: list[str]) -> list[str]:
    """The keys that a section may have; path: names of sections, keys of mappings, places in
    lists.
    """
    model: Any = Spec
    keyed = False  # whether the next step is a key or a place rather than a field
    for part in path:
        if keyed:
            keyed = False
            continue
        info = model.model_fields.get(part)
        if info is None:
            return []
        inside = _model_in(info.annotation)
        if inside is None:
            return []
        keyed, model = inside is not info.annotation, inside
    return list(model.model_fields)


def _model_in(annotation: Any) -> Any:
    """The section that a field holds, or that its mapping or list holds; None if there is none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(part) for part in get_args(annotation))
    return next((model for model in found if model is not None), None)
