"""The values of a spec that can change a result, and their digest."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic_core import PydanticUndefined

from genai_ray.spec.sections import Section, Spec

#: What version 0 put into the fingerprint of every section, whether the family or modality had such a key or not. A
#: section without the key still contributes this value (or its own `Section.v0`), so that the runs and data sets of
#: version 0 keep their fingerprints. Nothing is ever added here.
V0: dict[str, dict[str, object]] = {
    "data": {
        "source": None,
        "size": None,
        "channels": None,
        "holdout": None,
        "on_corrupt": "fail",
        "image_column": "image",
        "label_column": "label",
        "ingest": "auto",
        "resident_gb": 4.0,
    },
    "model": {
        "family": None,
        "network": "conv",
        "latent": 100,
        "width": 64,
        "generator_widths": [],
        "discriminator_widths": [],
        "init": "normal",
        "dropout": 0.0,
        "discriminator_norm": "none",
        "generator_spectral_norm": False,
        "attention": False,
        "hierarchical": False,
        "pooling": "sum",
        "loss": "nonsaturating",
        "penalty": "none",
        "penalty_weight": 10.0,
        "penalty_interval": 1,
        "consistency": 0.0,
        "augment": [],
        "mirror": False,
        "n_dis": 1,
        "posterior": "gaussian",
        "beta": 1.0,
        "kl_warm_up": 0,
        "decoder_decay": 0.0,
        "prior": "normal",
        "mixture_components": 10,
        "adversarial": 1.0,
        "optimizer": "adam",
        "learning_rate": 2e-4,
        "discriminator_learning_rate": None,
        "learning_rate_decay": "none",
        "betas": [0.5, 0.999],
        "ema_half_life": 10_000,
        "ema_ramp_up": 0.05,
        "preset": None,
        "conditional": False,
    },
    "train": {"evaluate_samples": 2_000},
    "generate": {
        "samples": None,
        "seed": None,
        "shard_rows": None,
        "shard_bytes": None,
        "truncation": None,
        "sink": None,
        "encoding": "png",
        "quality": 90,
        "classes": None,
        "conditions": None,
        "device": None,
    },
}


def fields(spec: Spec, stage: Literal["train", "generate"]) -> dict[str, Any]:
    """Dotted name -> value of every key that can change the result of a stage.

    Training depends on seed, data, model and train; generation on the model file (whose digest the caller adds), the
    seed, generate and provenance.
    """
    sections = {"train": ("data", "model", "train"), "generate": ("generate", "provenance")}[stage]
    out: dict[str, Any] = {"seed": spec.seed if stage == "train" else spec.generation_seed}
    for name in sections:
        section: Section = getattr(spec, name)
        values = dict(V0.get(name, {})) | dict(type(section).v0) | _values(section)
        out |= {f"{name}.{k}": v for k, v in values.items()}
    if stage == "generate":
        del out["generate.seed"]
    return out


def digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of the fields, as hex."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _values(section: Section) -> dict[str, Any]:
    """What a section contributes to a fingerprint, its inner sections included."""
    dumped, values = section.model_dump(mode="json"), section.__dict__
    out = {}
    for name, info in type(section).model_fields.items():
        extra: Any = info.json_schema_extra or {}
        if not extra.get("fingerprint", True) or name not in dumped:
            continue
        default = None if info.default is PydanticUndefined else info.default
        value = extra["was"] if "was" in extra and values[name] == default else _value(values[name], dumped[name])
        unchanged = value == _values(default) if isinstance(default, Section) else values[name] == default
        if not (extra.get("later") and unchanged):
            out[name] = value
    return out


def _value(value: Any, dumped: Any) -> Any:
    """A value as it was dumped, but of inner sections what they contribute."""
    if isinstance(value, Section):
        return _values(value)
    if isinstance(value, Mapping):
        pairs: Any = zip(dumped.items(), value.values(), strict=True)  # a dump keeps the order
        return {name: _value(inner, plain) for (name, plain), inner in pairs}
    if isinstance(value, tuple):
        pairs = zip(value, dumped, strict=True)
        return [_value(inner, plain) for inner, plain in pairs]
    return dumped
