"""Model sections for tests: presets with some values changed."""

from typing import Any

from genai_ray import modalities
from genai_ray import spec as specs


def variant(preset: str, narrow: dict[str, Any] | None = None, **values: Any) -> Any:
    """A preset with other values; `narrow` are those that hold only where the family has the key."""
    kind = next(m for m in modalities.every() if preset in m.presets)
    given = kind.presets[preset].values | {"preset": preset} | (narrow or {}) | values
    section = specs.section_type(kind.spec, "model", given)
    known = section.effective(given)
    return section.model_validate({k: v for k, v in given.items() if k in known or k in values})


def presets_of(modality: str) -> list[str]:
    return list(modalities.modality(modality).presets)
