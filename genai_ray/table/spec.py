"""What a spec of tables holds beside what every spec has: its data, its three families, its presets."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field, ValidationInfo, field_validator, model_validator

from genai_ray.errors import UserError
from genai_ray.spec import read_presets
from genai_ray.spec.sections import (
    AdversarialSpec,
    DataSpec,
    EvaluateSpec,
    ExportSpec,
    GenerateSpec,
    ModelSpec,
    Section,
    Spec,
    key,
    later,
    outside,
)

SOURCES = ("table", "breast_cancer", "diabetes", "wine")
#: Rows in one call of a model, unless the spec says otherwise: the cost is that of the call.
BATCH = 1024
#: Separators by names that need no quotes in YAML or a shell.
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "\\t": "\t", "pipe": "|"}
SEPARATORS = {"point": ".", "comma": ",", "space": " ", "apostrophe": "'", "none": ""}


class ColumnSpec(Section):
    """What overrides the inference of a column."""

    type: Literal["numerical", "categorical", "boolean", "datetime", "id", "constant", "drop"] | None = Field(
        default=None, description="null: as inferred; drop: leave it out"
    )
    datetime_format: str | None = Field(default=None, description="of strings, as in strptime: %d/%m/%Y")
    decimals: int | None = Field(default=None, ge=0, le=12, description="null: as in the source")
    pattern: str | None = Field(
        default=None,
        description="regular expression of an id: literals, classes and fixed counts, such as [A-Z]{3}-[0-9]{6}; or "
        "a number that counts on, K<0001..0900>; or with a check digit, [0-9]{12}<ean> (luhn, ean, isbn10)",
    )
    min: float | str | None = Field(
        default=None,
        description="a number, or a date as in 2024-12-31; null: the least that data.table.rare rows reach",
    )
    max: float | str | None = Field(default=None, description="null: the greatest that data.table.rare rows reach")
    nulls: tuple[str, ...] | None = later(
        None, description="strings of CSV that mean a missing value; null: those of data.table.nulls"
    )

    @field_validator("min", "max", mode="before")
    @classmethod
    def _dates_are_strings(cls, bound: Any) -> Any:
        # YAML makes a date of 2024-12-31 by itself.
        return bound.isoformat() if hasattr(bound, "isoformat") else bound

    @model_validator(mode="after")
    def _range_is_not_empty(self) -> "ColumnSpec":
        low, high = self.min, self.max
        if low is not None and high is not None:
            if isinstance(low, str) != isinstance(high, str) or low > high:  # pyright: ignore
                raise UserError("data.table.columns", [low, high], "min must not be above max", "Swap or correct them.")
        return self


class Constraint(Section):
    """A rule that every row keeps; exactly one of the kinds is given."""

    less: tuple[str, str] | None = Field(default=None, description="[low, high]: low <= high, in numbers or dates")
    strict: bool = Field(default=False, description="low < high")
    together: tuple[str, ...] | None = Field(
        default=None, description="columns whose combinations are those seen in the source"
    )
    formula: str | None = Field(
        default=None,
        description="column = arithmetic of other columns, as in total = net + tax; a name such as "
        "`net price` is written in backquotes",
    )
    unique: str | tuple[str, ...] | None = Field(
        default=None,
        description="a column without repeats, or several that are unique together, of which the first becomes an id",
    )

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


class TableSpec(Section):
    """How the files of a table are read and what its columns mean."""

    columns: dict[str, ColumnSpec] = Field(
        default={}, description="by name; `genai-ray inspect FILE` shows what is inferred"
    )
    metadata: str | None = Field(
        default=None, description="SDV metadata JSON (V1 or V2) that says the types of columns"
    )
    names: tuple[str, ...] | None = Field(default=None, description="of the columns, for CSV files without a header")
    header: bool | None = later(
        None,
        description="whether the first line of CSV names the columns; null: as it looks, and no if `names` is given",
    )
    delimiter: str | None = key(
        None,
        was=",",
        description="of CSV: one character, or comma, semicolon, tab, pipe or `space`, any run of spaces and tabs; "
        "null: detected",
    )
    escape: Literal["double", "backslash"] | None = later(
        None, description="how CSV writes a quote within quotes: twice or after a backslash; null: detected"
    )
    decimal: str | None = later(None, description="of numbers in CSV: point or comma; null: detected")
    thousands: str | None = later(
        None, description="separator of numbers in CSV: comma, point, space, apostrophe or none; null: detected"
    )
    skip: int | None = later(
        None, ge=0, description="CSV lines before the header or the rows; null: one if it is `sep=;`, else none"
    )
    comment: str | None = Field(default=None, min_length=1, description="CSV lines that begin with it are no rows")
    encoding: str | None = key(None, was="utf8", description="of CSV; null: detected")
    nulls: tuple[str, ...] = Field(
        default=("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?"),
        description="strings that mean a missing value",
    )
    numbers: Literal["modes", "quantiles"] = Field(
        default="modes",
        description="how numbers are encoded: by the modes of a Gaussian mixture, or by bins of "
        "equal counts (the choice for model.preset=table_ar); both with the position inside",
    )
    rare: int = Field(default=5, ge=1, description="a category seen fewer times is never generated")
    rare_label: str = Field(default="(other)", description="the label of such categories")
    constraints: tuple[Constraint, ...] = ()

    @field_validator("columns", mode="before")
    @classmethod
    def _a_type_alone_is_enough(cls, columns: Any) -> Any:
        if not isinstance(columns, Mapping):
            return columns
        named = cast(Mapping[Any, Any], columns)
        return {str(n): {"type": v} if v is None or isinstance(v, str) else v for n, v in named.items()}

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, delimiter: str | None) -> str | None:
        if delimiter in (None, "space"):
            return delimiter
        delimiter = DELIMITERS.get(delimiter, delimiter)
        if len(delimiter) != 1 or not delimiter.isascii():
            raise UserError(
                "data.table.delimiter",
                delimiter,
                "must be one ASCII character, or comma, semicolon, tab, pipe or space",
                "Set data.table.delimiter=semicolon, or another of them.",
            )
        return delimiter

    @field_validator("decimal", "thousands")
    @classmethod
    def _a_separator(cls, separator: str | None, info: ValidationInfo) -> str | None:
        allowed = {n: c for n, c in SEPARATORS.items() if info.field_name == "thousands" or n in ("point", "comma")}
        named = allowed.get(separator or "", separator)
        if separator is not None and named not in allowed.values():
            raise UserError(
                f"data.table.{info.field_name}",
                separator,
                f"must be one of {', '.join(allowed)}",
                f"Set data.table.{info.field_name}=point, or another of them.",
            )
        return named

    @model_validator(mode="after")
    def _separators_differ(self) -> "TableSpec":
        if self.decimal is not None and self.decimal == self.thousands:
            raise UserError(
                "data.table.thousands",
                self.thousands,
                "is also data.table.decimal, and one of them only can be meant",
                "Set data.table.thousands=none.",
            )
        return self

    @field_validator("names")
    @classmethod
    def _names_differ(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        twice = sorted({n for n in names or () if (names or ()).count(n) > 1})
        if twice or names == ():
            raise UserError(
                "data.table.names", twice or names, "must be names that all differ", "Name every column once."
            )
        return names


_OF_FILES = (
    *("metadata", "names", "header", "delimiter", "escape", "decimal", "thousands", "skip", "comment", "encoding"),
    "nulls",
)


class TableDataSpec(DataSpec):
    """Where the real rows are, and how they are read."""

    source: Literal["table", "breast_cancer", "diabetes", "wine"]
    root: str | None = outside(None, needs={"source": ("table",)}, description="file, folder or s3:// URI of the table")
    holdout: float | None = Field(default=None, gt=0, lt=1, description="share kept from training; null: 0.2")
    holdout_root: str | None = outside(
        None, needs={"source": ("table",)}, description="files with the rows kept from training, in place of a share"
    )
    table: TableSpec = later(TableSpec())

    @model_validator(mode="after")
    def _bundled_tables_are_no_files(self) -> "TableDataSpec":
        for name in () if self.source == "table" else _OF_FILES:
            value, info = getattr(self.table, name), TableSpec.model_fields[name]
            extra: Any = info.json_schema_extra or {}
            if value not in (info.default, extra.get("was", info.default)):
                raise UserError(
                    f"data.table.{name}",
                    value,
                    f"says how files are read, and data.source={self.source} has none",
                    "Drop it, or set data.source=table.",
                )
        return self

    @model_validator(mode="after")
    def _one_holdout(self) -> "TableDataSpec":
        if self.holdout is not None and self.holdout_root is not None:
            raise UserError(
                "data.holdout_root",
                self.holdout_root,
                f"names the holdout, and data.holdout={self.holdout:g} does too",
                "Drop one of them.",
            )
        return self

    @model_validator(mode="after")
    def _root_where_needed(self) -> "TableDataSpec":
        if self.source == "table" and not self.root:
            raise UserError(
                "data.root",
                self.root,
                "must name the files of the table",
                "Give data.root=… a file, a folder or an s3:// URI.",
            )
        return self


# --- families ------------------------------------------------------------------------------------


class TableModelSpec(ModelSpec):
    """What all families of tables have. Columns and categories come from the data."""

    v0: ClassVar[Mapping[str, object]] = {"network": "mlp"}

    generator_widths: tuple[int, ...] = Field(default=(), description="hidden layers, also of a decoder")


class TableGanSpec(TableModelSpec, AdversarialSpec):
    """CTGAN: a generator and a discriminator."""

    implementation = "genai_ray.table.families:TableGan"

    preset: str = "ctgan"
    family: Literal["table_gan"] = "table_gan"
    latent: int = Field(default=100, ge=1, description="numbers in one noise vector")
    discriminator_widths: tuple[int, ...] = Field(default=(), min_length=1, description="hidden layers")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="in the discriminator")
    penalty: Literal["none", "gradient", "r1"] = Field(
        default="none", description="on the gradient of the discriminator by its input"
    )
    penalty_weight: float = key(10.0, needs={"penalty": ("gradient", "r1")}, ge=0)
    penalty_interval: int = key(
        1,
        needs={"penalty": ("gradient", "r1")},
        ge=1,
        description="discriminator steps between penalties, weighted up as much",
    )
    pack: int = later(1, ge=1, description="rows that the discriminator sees as one sample")
    temperature: float = later(0.2, gt=0, description="of the softmax by which categories pass")


class TableVaeSpec(TableModelSpec):
    """TVAE: an encoder and a decoder."""

    implementation = "genai_ray.table.families:TableVae"

    preset: str = "tvae"
    family: Literal["table_vae"] = "table_vae"
    latent: int = Field(default=100, ge=1, description="numbers in one noise vector")
    discriminator_widths: tuple[int, ...] = Field(default=(), min_length=1, description="hidden layers of the encoder")
    beta: float = Field(default=1.0, ge=0, description="weight of the KL term")
    kl_warm_up: int = Field(default=0, ge=0, description="samples over which beta rises from 0")
    reconstruction: float = later(1.0, gt=0, description="weight of the reconstruction")


class TableArSpec(TableModelSpec):
    """Columns one after another, in any order."""

    implementation = "genai_ray.table.families:TableAr"

    preset: str = "table_ar"
    family: Literal["table_ar"] = "table_ar"
    generator_widths: tuple[int, ...] = Field(
        default=(), min_length=1, description="the width of the embeddings, then hidden layers"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @property
    def trains_on_labels(self) -> bool:
        """Any columns can be fixed, so no labels are drawn in training."""
        return False


# --- what is generated, and how it is measured ---------------------------------------------------


class TableExportSpec(ExportSpec):
    """How the model is turned into ONNX."""

    precision: Literal["fp32"] = Field(default="fp32", description="of the weights")


class RowCondition(Section):
    """Rows of a table in which some columns are fixed."""

    where: dict[str, Any] = Field(
        default={}, description="column to value, or to a range {min: 60, max: 80}; {}: nothing is fixed"
    )
    rows: int | None = Field(default=None, ge=0, description="exact number")
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


class TableGenerateSpec(GenerateSpec):
    """What to generate and how it is cut into files."""

    conditions: tuple[RowCondition, ...] | None = Field(
        default=None, description="a list of {where: {column: value}, rows or share}"
    )
    spelling: Literal["source", "iso"] = later(
        "source",
        needs={"sink": ("csv",)},
        description="of CSV: dates, booleans, numbers, delimiter and encoding as in the source, if that is CSV too; "
        "iso: ISO 8601, true, 1.5, commas and UTF-8",
    )


class TableEvaluateSpec(EvaluateSpec):
    """How the shipped rows are measured; nothing here changes them."""

    target: str | None = outside(None, description="column that classifiers or regressors predict; null: the last")


class TableRun(Spec):
    """One run with a table."""

    data: TableDataSpec
    model: Annotated[TableGanSpec | TableVaeSpec | TableArSpec, Field(discriminator="family")]
    export: TableExportSpec = TableExportSpec()
    generate: TableGenerateSpec = TableGenerateSpec()
    evaluate: TableEvaluateSpec = TableEvaluateSpec()

    @model_validator(mode="before")
    @classmethod
    def _bins_for_a_model_of_categories(cls, values: Any) -> Any:
        """`table_ar` knows categories alone, so numbers come in bins unless the spec says otherwise."""
        model, data = values.get("model"), values.get("data")
        if isinstance(model, Mapping) and isinstance(data, Mapping) and model.get("family") == "table_ar":
            table = data.get("table") or {}
            if isinstance(table, Mapping):
                values = {**values, "data": {**data, "table": {"numbers": "quantiles", **table}}}
        return values

    @model_validator(mode="after")
    def _csv_has_no_place_for_a_label(self) -> "TableRun":
        if self.generate.sink == "csv" and self.provenance.producer is not None:
            raise UserError(
                "provenance.producer",
                self.provenance.producer,
                "labels files, and CSV cannot hold a label",
                "Drop it, or set generate.sink=parquet.",
            )
        return self

    @model_validator(mode="after")
    def _packs_are_whole(self) -> "TableRun":
        if isinstance(self.model, TableGanSpec):
            train, pack = self.train, self.model.pack
            share = train.micro_batch or train.global_batch // max(1, train.most_workers)
            if share % pack:
                raise UserError(
                    "train.global_batch",
                    train.global_batch,
                    f"gives each worker {share} samples at once, which model.pack={pack} does not divide",
                    "Use multiples of model.pack.",
                )
        return self


PRESETS = read_presets(__file__)
