"""Networks, losses and families. A family says what is trained and how; the loop does the rest."""

from collections.abc import Callable
from typing import Any

from genai_ray.data import Codec
from genai_ray.models.families import Family, Phase
from genai_ray.models.gan import Gan
from genai_ray.models.table import TableAr, TableGan, TableVae
from genai_ray.models.vae import Vae
from genai_ray.models.vae_gan import VaeGan
from genai_ray.presets import Variant

FAMILIES: dict[str, Callable[[Variant, Any, int], Family]] = {
    "gan": Gan,
    "vae": Vae,
    "vae_gan": VaeGan,
    "table_gan": TableGan,
    "table_vae": TableVae,
    "table_ar": TableAr,
}


def build(variant: Variant, codec: Codec, classes: int) -> Family:
    """The untrained family of a variant for data of a codec; `classes` 0 means unconditional."""
    return FAMILIES[variant.family](variant, codec, classes)


__all__ = ["FAMILIES", "Family", "Phase", "build"]
