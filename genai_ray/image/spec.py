"""The sections of an image spec: data, three families of models, export, generation, evaluation; and the presets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import Field, field_validator, model_validator

from genai_ray.errors import UserError
from genai_ray.spec import DataSpec, EvaluateSpec, ExportSpec, GenerateSpec, ModelSpec, Spec, read_presets
from genai_ray.spec.sections import AdversarialSpec, absolute, key, later, outside

SOURCES = ("digits", "mnist", "fashion_mnist", "cifar10", "folder", "parquet")
#: Samples in one call of a model, unless the spec says otherwise: they fit into the caches of a CPU.
BATCH = 64
_FILES = ("folder", "parquet")
#: Sinks that can hold raw pixels.
_RAW_SINKS = ("parquet", "iceberg", "discard")
_TORCHVISION = ("mnist", "fashion_mnist", "cifar10")
_CONV = {"network": ("conv", "resnet")}
_MLP = {"network": ("mlp",)}
_RESNET = {"network": ("resnet",)}
_PENALISED = {"penalty": ("gradient", "r1", "dragan")}


class ImageDataSpec(DataSpec):
    """Where the real images are, and the shape that they are converted to."""

    source: Literal["digits", "mnist", "fashion_mnist", "cifar10", "folder", "parquet"] = "digits"
    root: str | None = outside(
        None, needs={"source": (*_FILES, *_TORCHVISION)}, description="folder or s3:// URI of the source"
    )
    size: int | None = Field(default=None, ge=8, le=512, description="height and width in pixels")
    channels: Literal[1, 3] | None = Field(default=None, description="null: as in the source")
    holdout: float | None = Field(
        default=None, gt=0, lt=1, description="share kept from training; null: the source's test split"
    )
    splits: Literal["auto", "none"] = later(
        "auto",
        needs={"source": _FILES},
        description="auto: of files named by splits, train is trained on and test (else validation) is the holdout, "
        "unless data.holdout is given; none: names of splits mean nothing",
    )
    on_corrupt: Literal["fail", "skip"] = key("fail", needs={"source": _FILES})
    background: str = later(
        "white", needs={"source": _FILES}, description="colour that transparent pixels are laid on, a name or #rrggbb"
    )
    depth: Literal["auto", "full", "range", 8, 10, 12, 14, 16] = later(
        "auto",
        needs={"source": _FILES},
        description="what is white in images of more than 8 bits: auto: the bits that the source uses (floats: 1, or "
        "as integers; with negative values: the range); full: 16 bits (floats: 1); range: the largest value, and the "
        "least is black, also of 8 bits; or a number of bits",
    )
    image_column: str = key("image", needs={"source": ("parquet",)})
    label_column: str | None = key(
        "label", needs={"source": ("parquet",)}, description="also of folders such as label=cat; null: no classes"
    )
    unlabelled: Literal["fail", "skip"] = later(
        "fail", needs={"source": ("parquet",)}, description="rows with an empty label, or -1 under ClassLabel"
    )
    download: bool = outside(
        True, needs={"source": _TORCHVISION}, description="let torchvision fetch what data.root lacks"
    )
    # In the fingerprint: images that decode to more are shown in another order.
    cache_gb: float = later(
        20.0,
        needs={"source": _FILES},
        gt=0,
        description="decoded images that the disk of a node may keep, if they lie on S3",
    )

    @model_validator(mode="before")
    @classmethod
    def _images_are_decoded_once(cls, values: Any) -> Any:
        for name in ("ingest", "resident_gb"):
            if isinstance(values, Mapping) and name in values:
                rule = "is of an earlier version: images are decoded once now, into the run"
                remedy = "Drop the key; data.cache_gb bounds what a node keeps of them."
                raise UserError(f"data.{name}", cast(Any, values[name]), rule, remedy)
        return values

    @field_validator("background")
    @classmethod
    def _background_is_a_colour(cls, background: str) -> str:
        from PIL import ImageColor

        try:
            opaque = ImageColor.getrgb(background)[3:] in ((), (255,))
        except ValueError:
            opaque = False
        if not opaque:
            rule = "must be a colour that Pillow knows, without transparency"
            remedy = 'Set data.background=white, black, or a quoted code such as "#c0c0c0".'
            raise UserError("data.background", background, rule, remedy)
        return background

    @field_validator("root")
    @classmethod
    def _root_in_the_home_folder(cls, root: str | None) -> str | None:
        return str(Path(root).expanduser()) if root and root.startswith("~") else root

    @model_validator(mode="after")
    def _root_where_needed(self) -> "ImageDataSpec":
        if self.source in _FILES and not self.root:
            rule = f"must say where the {self.source} lies"
            raise UserError("data.root", self.root, rule, "Give data.root=… a folder or an s3:// URI.")
        return self


# --- families ------------------------------------------------------------------------------------


class ImageModelSpec(ModelSpec):
    """What all image families have. Sizes, channels and classes come from the data."""

    network: Literal["mlp", "conv", "resnet"] = "conv"
    latent: int = Field(default=100, ge=1, description="numbers in one noise vector")
    width: int = key(
        64,
        needs=_CONV,
        ge=1,
        description="channels of the finest layer (conv), or of the discriminator (resnet; the generator "
        "has twice as many)",
    )
    generator_widths: tuple[int, ...] = key((), needs=_MLP, description="hidden layers")
    discriminator_widths: tuple[int, ...] = key((), needs=_MLP, description="hidden layers, also of an encoder")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="in the discriminator or the encoder")
    generator_spectral_norm: bool = False
    mirror: bool = Field(default=False, description="show real images mirrored half of the time: scenes, not digits")

    @model_validator(mode="after")
    def _mlp_has_layers(self) -> "ImageModelSpec":
        if self.network == "mlp" and not self.discriminator_widths:
            rule = "must name hidden layers for model.network=mlp (an encoder has them too)"
            field, remedy = "model.discriminator_widths", "The preset mlp_gan shows some."
            raise UserError(field, self.discriminator_widths, rule, remedy)
        return self


class ImageAdversarialSpec(ImageModelSpec, AdversarialSpec):
    """What families of images with a discriminator have."""

    init: Literal["normal", "xavier", "orthogonal"] = key("normal", needs=_CONV, description="of the weights")
    discriminator_norm: Literal["none", "spectral", "batch", "layer"] = "none"


class GanSpec(ImageAdversarialSpec):
    """A generator and a discriminator."""

    implementation = "genai_ray.image.gan:Gan"

    preset: str = "dcgan"
    family: Literal["gan"] = "gan"
    attention: bool = key(False, needs=_RESNET, description="self-attention at half the size of the image")
    hierarchical: bool = key(
        False, needs=_RESNET, description="the noise is split over the blocks and joins one class embedding"
    )
    pooling: Literal["sum", "mean"] = key("sum", needs=_RESNET, description="of the discriminator's last feature map")
    penalty: Literal["none", "gradient", "r1", "dragan"] = Field(
        default="none", description="on the gradient of the discriminator by its input"
    )
    penalty_weight: float = key(10.0, needs=_PENALISED, ge=0)
    penalty_interval: int = key(
        1, needs=_PENALISED, ge=1, description="discriminator steps between penalties, weighted up as much"
    )
    consistency: float = Field(default=0.0, ge=0, description="weight of D(x) = D(shifted x); 0 is off")
    augment: tuple[Literal["color", "translation", "cutout"], ...] = Field(
        default=(), description="of everything the discriminator sees, for small data sets"
    )

    @model_validator(mode="after")
    def _a_penalty_needs_samples_apart(self) -> "GanSpec":
        if self.penalty != "none" and self.discriminator_norm == "batch":
            rule = f"mixes the samples of a batch, and model.penalty={self.penalty} needs the gradient of each alone"
            remedy = "Use model.discriminator_norm=layer, spectral or none."
            raise UserError("model.discriminator_norm", "batch", rule, remedy)
        return self


class AutoencoderSpec(ImageModelSpec):
    """What families with an encoder have."""

    network: Literal["mlp", "conv"] = "conv"
    beta: float = Field(default=1.0, ge=0, description="weight of the KL term")
    kl_warm_up: int = Field(default=0, ge=0, description="samples over which beta rises from 0")
    prior: Literal["normal", "mixture"] = Field(
        default="normal", description="of the latents when sampling; mixture is fitted to encoded images"
    )
    mixture_components: int = key(10, needs={"prior": ("mixture",)}, ge=1, description="for each class, if any")

    @property
    def is_point(self) -> bool:
        """Whether the encoder gives points in place of normal distributions."""
        return False


class VaeSpec(AutoencoderSpec):
    """VAE, beta-VAE and regularised autoencoders."""

    implementation = "genai_ray.image.vae:Vae"

    preset: str = "vae"
    family: Literal["vae"] = "vae"
    posterior: Literal["gaussian", "point"] = Field(
        default="gaussian", description="of the encoder; point is a regularised autoencoder"
    )
    decoder_decay: float = Field(default=0.0, ge=0, description="weight of the decoder's squared weights")

    @property
    def is_point(self) -> bool:
        return self.posterior == "point"

    @model_validator(mode="after")
    def _points_need_a_fitted_prior(self) -> "VaeSpec":
        if self.posterior == "point" and self.prior == "normal":
            rule = "does not fit model.posterior=point, whose latents follow no known distribution"
            raise UserError("model.prior", "normal", rule, "Set model.prior=mixture.")
        return self


class VaeGanSpec(AutoencoderSpec, ImageAdversarialSpec):
    """A VAE with a discriminator in place of the pixel error."""

    implementation = "genai_ray.image.vae_gan:VaeGan"

    preset: str = "vae_gan"
    family: Literal["vae_gan"] = "vae_gan"
    adversarial: float = Field(default=1.0, ge=0, description="weight of the decoder's adversarial loss")


# --- what is generated, and how it is measured ---------------------------------------------------


class ImageExportSpec(ExportSpec):
    """How the model is turned into ONNX."""

    precision: Literal["fp32", "fp16", "int8"] = Field(
        default="fp32", description="of the weights; fp16 for GPUs, int8 for CPUs with VNNI"
    )
    difference_max: float = key(
        2.0,
        needs={"precision": ("fp16", "int8")},
        gt=0,
        description="mean difference from fp32 in grey levels above which fp16 and int8 are refused",
    )

    @property
    def difference_limit(self) -> float:
        return self.difference_max


class ImageGenerateSpec(GenerateSpec):
    """What to generate, and how it is stored."""

    truncation: float | None = Field(
        default=None, gt=0, description="largest number in the noise: less variety, cleaner samples; null: not cut"
    )
    encoding: Literal["png", "jpeg", "webp", "raw"] = Field(
        default="png", description="of the pixels; raw for Parquet and Iceberg"
    )
    quality: int = key(90, needs={"encoding": ("jpeg", "webp")}, ge=1, le=100)
    classes: dict[str, float] | None = Field(
        default=None, description="class name to count or share; null: equal counts"
    )
    conditions: str | None = Field(
        default=None,
        description="Parquet or CSV file with a column `label`: row i says of what class sample i is, and "
        "its other columns stand beside the sample",
    )

    @field_validator("conditions")
    @classmethod
    def _workers_find_the_conditions(cls, conditions: str | None) -> str | None:
        return conditions and absolute(conditions)

    @model_validator(mode="after")
    def _parts_fit_together(self) -> "ImageGenerateSpec":
        if self.encoding == "raw" and self.sink not in _RAW_SINKS:
            rule = f"is no file format for sink={self.sink}"
            raise UserError("generate.encoding", "raw", rule, "Use png, jpeg or webp, or generate.sink=parquet.")
        if self.conditions is not None and self.classes is not None:
            rule = "says what each sample is, and so does generate.classes"
            raise UserError("generate.conditions", self.conditions, rule, "Drop one of the two.")
        return self


class ImageEvaluateSpec(EvaluateSpec):
    """How the shipped images are measured; nothing here changes them."""

    duplicate_rows: int = outside(1_000_000, ge=100, description="searched for repeats, at most")
    k: int = outside(5, ge=1, description="neighbours of precision, recall, density, coverage")
    inception: str | None = outside(
        None,
        description="file of the reference Inception weights, to measure fid_inception against the whole "
        "training set, as published figures are; null: not measured",
    )
    inception_samples: int = outside(
        50_000, unless={"inception": None}, ge=2, description="generated images that fid_inception is measured on"
    )


class ImageRun(Spec):
    """One run with images."""

    data: ImageDataSpec = ImageDataSpec()
    model: Annotated[GanSpec | VaeSpec | VaeGanSpec, Field(discriminator="family")] = GanSpec()
    export: ImageExportSpec = ImageExportSpec()
    generate: ImageGenerateSpec = ImageGenerateSpec()
    evaluate: ImageEvaluateSpec = ImageEvaluateSpec()

    @model_validator(mode="after")
    def _classes_need_a_conditional_model(self) -> "ImageRun":
        for name in ("classes", "conditions"):
            requested = getattr(self.generate, name)
            if requested is not None and not self.model.conditional:
                rule = "asks for labels, but the model has no classes"
                remedy = f"Set model.conditional=true, or drop generate.{name}."
                raise UserError(f"generate.{name}", requested, rule, remedy)
        truncation = self.generate.truncation
        if truncation is not None and getattr(self.model, "prior", "normal") == "mixture":
            rule = "would change how often model.prior=mixture picks each component"
            remedy = "Drop generate.truncation, or set model.prior=normal."
            raise UserError("generate.truncation", truncation, rule, remedy)
        for gate, limit in self.evaluate.gates.items():
            if gate.startswith("agreement_") and not self.model.conditional:
                remedy = "Set model.conditional=true, or drop the gate."
                raise UserError(f"evaluate.gates.{gate}", limit, "needs a model with classes", remedy)
        return self

    @model_validator(mode="after")
    def _published_figures_need_many(self) -> "ImageRun":
        evaluate = self.evaluate
        for gate, limit in evaluate.gates.items():
            if gate.startswith("fid_inception_") and evaluate.inception is None:
                remedy = "Set evaluate.inception, or drop the gate."
                raise UserError(f"evaluate.gates.{gate}", limit, "needs the reference weights", remedy)
        count, samples = evaluate.inception_samples, self.generate.samples
        if evaluate.inception is not None and samples < count:
            remedy = f"Set generate.samples={count}, or take fewer and say so."
            raise UserError("evaluate.inception_samples", count, f"is more than generate.samples={samples}", remedy)
        return self


PRESETS = read_presets(__file__)
