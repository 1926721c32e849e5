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

    family: Literal["gan", "vae"] = "gan"
    network: Literal["mlp", "conv"] = "conv"
    latent: int = Field(default=100, ge=1, description="numbers in one noise vector")
    width: int = Field(default=64, ge=1, description="channels of the finest layer (conv networks)")
    generator_widths: tuple[int, ...] = Field(
        default=(), description="hidden layers (mlp networks)"
    )
    discriminator_widths: tuple[int, ...] = Field(
        default=(), description="hidden layers (mlp networks)"
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="in the discriminator")
    spectral_norm: bool = Field(default=False, description="in the discriminator")
    loss: Literal["nonsaturating", "hinge"] = "nonsaturating"
    n_dis: int = Field(default=1, ge=1, description="discriminator steps for one generator step")
    beta: float = Field(default=1.0, ge=0, description="weight of the KL term (vae family)")
    learning_rate: float = Field(default=2e-4, gt=0)
    betas: tuple[float, float] = Field(default=(0.5, 0.999), description="of Adam")
    ema_half_life: int = Field(
        default=10_000, ge=0, description="of the generator average, in samples; 0 is off"
    )

    @field_validator("betas")
    @classmethod
    def _betas_below_one(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= b < 1 for b in betas):
            raise ValueError("each of Adam's betas must be at least 0 and below 1")
        return betas

    @model_validator(mode="after")
    def _mlp_has_layers(self) -> "Variant":
        if self.network == "mlp" and not self.discriminator_widths:
            raise UserError(
                "model.discriminator_widths", self.discriminator_widths,
                "must name hidden layers for model.network=mlp (an encoder has them too)",
                "The preset mlp_gan shows some.",
            )  # fmt: skip
        return self


class Preset(BaseModel):
    """A named variant, what it is for, and the paper it follows."""

    model_config = ConfigDict(frozen=True)

    about: str
    source: str
    values: dict[str, Any]


_DCGAN = {
    "family": "gan",
    "network": "conv",
    "latent": 100,
    "width": 64,
    "spectral_norm": True,
    "loss": "nonsaturating",
    "learning_rate": 2e-4,
    "betas": (0.5, 0.999),
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
    "vae": Preset(
        about="Convolutional variational autoencoder with a Gaussian encoder",
        source="Kingma and Welling 2013, arXiv 1312.6114",
        values=_VAE,
    ),
    "beta_vae": Preset(
        about="VAE with a heavier KL term: smoother samples, more independent latents",
        source="Higgins et al. 2017, ICLR (beta-VAE)",
        values=_VAE | {"beta": 4.0},
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
