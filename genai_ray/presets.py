"""PRESETS: the named model variants, as values.

A new variant of a known family is one entry here. The spec may change any value of a preset by the
same name (`model.width=32`); the resolved spec that is saved beside the output holds them all.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from genai_ray.errors import UserError, nearest


class Variant(BaseModel):
    """Everything that tells one model from another. Sizes, channels and classes come from data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Literal["gan", "vae", "vae_gan", "table_gan", "table_vae", "table_ar"] = "gan"
    network: Literal["mlp", "conv", "resnet"] = "conv"
    latent: int = Field(default=100, ge=1, description="numbers in one noise vector")
    width: int = Field(
        default=64,
        ge=1,
        description="channels of the finest layer (conv), or of the discriminator (resnet; the "
        "generator has twice as many)",
    )
    generator_widths: tuple[int, ...] = Field(default=(), description="hidden layers (mlp networks)")
    discriminator_widths: tuple[int, ...] = Field(default=(), description="hidden layers (mlp networks)")
    init: Literal["normal", "xavier", "orthogonal"] = Field(
        default="normal", description="of the weights of conv and resnet networks"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="in the discriminator")
    discriminator_norm: Literal["none", "spectral", "batch", "layer"] = "none"
    generator_spectral_norm: bool = False
    attention: bool = Field(
        default=False, description="self-attention at half the size of the image (resnet)"
    )
    hierarchical: bool = Field(
        default=False, description="the noise is split over the blocks and joins one class embedding (resnet)"
    )
    pooling: Literal["sum", "mean"] = Field(
        default="sum", description="of the discriminator's last feature map (resnet)"
    )

    loss: Literal["nonsaturating", "hinge", "least_squares", "wasserstein"] = "nonsaturating"
    penalty: Literal["none", "gradient", "r1", "dragan"] = Field(
        default="none", description="on the gradient of the discriminator by its input"
    )
    penalty_weight: float = Field(default=10.0, ge=0)
    penalty_interval: int = Field(
        default=1, ge=1, description="discriminator steps between penalties, weighted up as much"
    )
    consistency: float = Field(default=0.0, ge=0, description="weight of D(x) = D(shifted x); 0 is off")
    augment: tuple[Literal["color", "translation", "cutout"], ...] = Field(
        default=(), description="of everything the discriminator sees, for small data sets"
    )
    mirror: bool = Field(
        default=False, description="show real images mirrored half of the time: scenes, not digits"
    )
    n_dis: int = Field(default=1, ge=1, description="discriminator steps for one generator step")

    posterior: Literal["gaussian", "point"] = Field(
        default="gaussian", description="of the encoder; point is a regularised autoencoder"
    )
    beta: float = Field(default=1.0, ge=0, description="weight of the KL term (vae families)")
    kl_warm_up: int = Field(
        default=0, ge=0, description="samples over which beta rises from 0 (vae families)"
    )
    decoder_decay: float = Field(
        default=0.0, ge=0, description="weight of the squared weights of the decoder (vae family)"
    )
    prior: Literal["normal", "mixture"] = Field(
        default="normal",
        description="of the latents when sampling; mixture is fitted to encoded training images",
    )
    mixture_components: int = Field(default=10, ge=1, description="for each class, if any")
    adversarial: float = Field(
        default=1.0, ge=0, description="weight of the decoder's adversarial loss (vae_gan family)"
    )

    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = Field(default=2e-4, gt=0, allow_inf_nan=False)
    discriminator_learning_rate: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="null: learning_rate"
    )
    learning_rate_decay: Literal["none", "linear"] = Field(
        default="none", description="linear: to 0 at the end of training"
    )
    betas: tuple[float, float] = Field(default=(0.5, 0.999), description="of Adam")
    weight_decay: float = Field(
        default=0.0, ge=0, description="half the weight of |w|^2", json_schema_extra={"later": True}
    )
    ema_half_life: int = Field(
        default=10_000, ge=0, description="of the generator average, in samples; 0 is off"
    )
    ema_ramp_up: float = Field(
        default=0.05, gt=0, description="the half-life is at most this share of the samples shown so far"
    )

    pack: int = Field(
        default=1,
        ge=1,
        description="rows that the discriminator judges together (table_gan)",
        json_schema_extra={"later": True},
    )
    temperature: float = Field(
        default=0.2,
        gt=0,
        description="of the softmax by which categories pass (table_gan)",
        json_schema_extra={"later": True},
    )
    reconstruction: float = Field(
        default=1.0,
        gt=0,
        description="weight of the reconstruction (table_vae)",
        json_schema_extra={"later": True},
    )

    @property
    def modality(self) -> Literal["image", "table"]:
        return "table" if self.family.startswith("table_") else "image"

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= b < 1 for b in betas):
            raise ValueError("each of Adam's betas must be at least 0 and below 1")
        return betas

    @model_validator(mode="after")
    def _mlp_has_layers(self) -> "Variant":
        needed = self.family != "table_ar"
        if self.network == "mlp" and needed and not self.discriminator_widths:
            raise UserError(
                "model.discriminator_widths",
                self.discriminator_widths,
                "must name hidden layers for model.network=mlp (an encoder has them too)",
                "The preset mlp_gan shows some.",
            )
        return self

    @model_validator(mode="after")
    def _a_penalty_needs_samples_apart(self) -> "Variant":
        if self.penalty != "none" and self.discriminator_norm == "batch":
            raise UserError(
                "model.discriminator_norm",
                "batch",
                f"mixes the samples of a batch, and model.penalty={self.penalty} needs the "
                "gradient of each alone",
                "Use model.discriminator_norm=layer, spectral or none.",
            )
        return self

    @model_validator(mode="after")
    def _only_resnet_has_blocks(self) -> "Variant":
        for field in ("attention", "hierarchical"):
            if getattr(self, field) and self.network != "resnet":
                raise UserError(
                    f"model.{field}",
                    True,
                    "needs model.network=resnet",
                    f"Set model.network=resnet, or model.{field}=false.",
                )
        if self.family != "gan" and self.network == "resnet":
            raise UserError(
                "model.network",
                "resnet",
                f"has no encoder for {self.family}",
                "Use model.network=conv or mlp.",
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "Variant":
        off: dict[str, Any] = {"consistency": 0.0, "augment": (), "penalty": "none"}
        if self.family == "table_gan":
            del off["penalty"]
        else:
            off["pack"] = 1
        if self.modality == "table":
            off |= {"mirror": False, "prior": "normal", "network": "mlp"}
        for field, value in off.items():
            if self.family == "gan" and field != "pack":
                continue
            if getattr(self, field) != value:
                raise UserError(
                    f"model.{field}",
                    getattr(self, field),
                    f"has no meaning for {self.family}",
                    f"Drop model.{field}, or choose another preset.",
                )
        if self.family == "vae_gan" and self.posterior == "point":
            raise UserError(
                "model.posterior",
                "point",
                "has no adversarial form",
                "Set model.posterior=gaussian, or model.family=vae.",
            )
        return self

    @model_validator(mode="after")
    def _points_need_a_fitted_prior(self) -> "Variant":
        if self.posterior == "point" and self.prior == "normal":
            raise UserError(
                "model.prior",
                "normal",
                "does not fit model.posterior=point, whose latents follow no known distribution",
                "Set model.prior=mixture.",
            )
        return self


class Preset(BaseModel):
    """A named variant, what it is for, and the paper it follows."""

    model_config = ConfigDict(frozen=True)

    about: str
    source: str
    values: dict[str, Any]

    @property
    def modality(self) -> Literal["image", "table"]:
        return "table" if self.values["family"].startswith("table_") else "image"


_DCGAN = {
    "family": "gan",
    "network": "conv",
    "latent": 100,
    "width": 64,
    "discriminator_norm": "spectral",
    "loss": "nonsaturating",
    "learning_rate": 2e-4,
    "betas": (0.5, 0.999),
}
_SNGAN = {
    "family": "gan",
    "network": "resnet",
    "latent": 128,
    "width": 128,
    "init": "xavier",
    "discriminator_norm": "spectral",
    "loss": "hinge",
    "n_dis": 5,
    "learning_rate": 2e-4,
    "learning_rate_decay": "linear",
    "betas": (0.0, 0.9),
}
_VAE = {
    "family": "vae",
    "network": "conv",
    "latent": 16,
    "width": 64,
    "learning_rate": 1e-3,
    "betas": (0.9, 0.999),
}

PRESETS: dict[str, Preset] = {
    "mlp_gan": Preset(
        about="Fully connected GAN: the smallest thing that works, and fast on a CPU",
        source="Goodfellow et al. 2014, arXiv 1406.2661",
        values={
            "family": "gan",
            "network": "mlp",
            "latent": 100,
            "generator_widths": (256, 512, 1024, 1024),
            "discriminator_widths": (1024, 512, 256),
            "dropout": 0.3,
            "loss": "nonsaturating",
            "learning_rate": 2e-4,
            "betas": (0.5, 0.999),
        },
    ),
    "dcgan": Preset(
        about="Convolutional GAN; spectral norm in place of batch norm in the discriminator",
        source="Radford et al. 2015, arXiv 1511.06434; Miyato et al. 2018, arXiv 1802.05957",
        values=_DCGAN,
    ),
    "sngan": Preset(
        about="Residual GAN with spectral norm and hinge loss",
        source="Miyato et al. 2018, arXiv 1802.05957",
        values=_SNGAN,
    ),
    "wgan_gp": Preset(
        about="Residual GAN with the Wasserstein loss and a gradient penalty; steady, but slow",
        source="Gulrajani et al. 2017, arXiv 1704.00028",
        values=_SNGAN
        | {
            "discriminator_norm": "none",
            "pooling": "mean",
            "loss": "wasserstein",
            "penalty": "gradient",
            "penalty_weight": 10.0,
        },
    ),
    "cgan_projection": Preset(
        about="sngan for classes (model.conditional=true): conditional batch norm, projection",
        source="Miyato and Koyama 2018, arXiv 1802.05637",
        values=_SNGAN,
    ),
    "sagan": Preset(
        about="sngan with self-attention, spectral norm in both networks, two learning rates",
        source="Zhang et al. 2019, arXiv 1805.08318",
        values=_SNGAN
        | {
            "attention": True,
            "generator_spectral_norm": True,
            "n_dis": 1,
            "learning_rate": 1e-4,
            "discriminator_learning_rate": 4e-4,
            "learning_rate_decay": "none",
        },
    ),
    "biggan32": Preset(
        about="BigGAN for small images, with consistency regularisation; for GPUs",
        source="Brock et al. 2019, arXiv 1809.11096; Zhang et al. 2020, arXiv 1910.12027",
        values={
            "family": "gan",
            "network": "resnet",
            "latent": 80,
            "width": 192,
            "init": "orthogonal",
            "discriminator_norm": "spectral",
            "generator_spectral_norm": True,
            "attention": True,
            "hierarchical": True,
            "loss": "hinge",
            "consistency": 10.0,
            "n_dis": 5,
            "learning_rate": 2e-4,
            "betas": (0.5, 0.999),
            "ema_half_life": 2_000_000,
        },
    ),
    "vae": Preset(
        about="Convolutional variational autoencoder with a Gaussian encoder",
        source="Kingma and Welling 2013, arXiv 1312.6114",
        values=_VAE,
    ),
    "beta_vae": Preset(
        about="VAE with a heavier KL term that warms up: smoother, more independent latents",
        source="Higgins et al. 2017, ICLR (beta-VAE); Bowman et al. 2016, arXiv 1511.06349",
        values=_VAE | {"beta": 4.0, "kl_warm_up": 50_000},
    ),
    "vae_mixture": Preset(
        about="VAE that samples from a Gaussian mixture fitted to its latents",
        source="Ghosh et al. 2020, arXiv 1903.12436 (section 4, ex-post density estimation)",
        values=_VAE | {"prior": "mixture"},
    ),
    "rae": Preset(
        about="Regularised autoencoder: no noise in training, a fitted mixture when sampling",
        source="Ghosh et al. 2020, arXiv 1903.12436 (RAE-L2)",
        values=_VAE | {"posterior": "point", "prior": "mixture", "beta": 0.02, "decoder_decay": 1e-6},
    ),
    "vae_gan": Preset(
        about="VAE whose reconstruction is judged by a discriminator's features: sharper samples",
        source="Larsen et al. 2016, arXiv 1512.09300",
        values=_VAE
        | {
            "family": "vae_gan",
            "latent": 32,
            "beta": 0.1,
            "adversarial": 5.0,
            "prior": "mixture",
            "discriminator_norm": "spectral",
            "learning_rate": 5e-4,
            "betas": (0.5, 0.999),
        },
    ),
    "ctgan": Preset(
        about="GAN for tables: asked for one category at a time, which it sees more often if rare",
        source="Xu et al. 2019, arXiv 1907.00503; Lin et al. 2018, arXiv 1712.04086 (packing); "
        "Karras et al. 2020, arXiv 1912.04958 (penalty at every fourth step)",
        values={
            "family": "table_gan",
            "network": "mlp",
            "conditional": True,
            "latent": 128,
            "generator_widths": (256, 256),
            "discriminator_widths": (256, 256),
            "dropout": 0.5,
            "loss": "wasserstein",
            "penalty": "gradient",
            "penalty_weight": 10.0,
            "penalty_interval": 4,
            "pack": 10,
            "ema_half_life": 0,
            "learning_rate": 2e-4,
            "betas": (0.5, 0.9),
            "weight_decay": 1e-6,
        },
    ),
    "tvae": Preset(
        about="VAE for tables: fast, and close to the columns' distributions",
        source="Xu et al. 2019, arXiv 1907.00503 (section 4.5)",
        values={
            "family": "table_vae",
            "network": "mlp",
            "latent": 128,
            "generator_widths": (128, 128),
            "discriminator_widths": (128, 128),
            "reconstruction": 2.0,
            "learning_rate": 1e-3,
            "betas": (0.9, 0.999),
            "weight_decay": 1e-5,
        },
    ),
    "table_ar": Preset(
        about="Columns of a table one after another: closest to the data, any columns can be fixed",
        source="Uria et al. 2014, arXiv 1310.1757; Hoogeboom et al. 2022, arXiv 2110.02037",
        values={
            "family": "table_ar",
            "network": "mlp",
            "conditional": True,
            "generator_widths": (256, 256, 256),
            "dropout": 0.1,
            "learning_rate": 1e-3,
            "learning_rate_decay": "linear",
            "betas": (0.9, 0.99),
        },
    ),
}


def preset_values(name: str) -> dict[str, Any]:
    """The values of a preset.

    Raises:
        UserError: for a name that is not in `PRESETS`; names the nearest.
    """
    if name not in PRESETS:
        raise UserError(
            "model.preset", name, "must name a preset (`genai-ray presets`)", nearest(name, PRESETS)
        )
    return dict(PRESETS[name].values)
