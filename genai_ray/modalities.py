"""The registry of modalities, and the modality that a spec, a source or a codec belongs to."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from genai_ray import spec as specs
from genai_ray.errors import UserError, nearest
from genai_ray.modality import Codec, Json, Metric, Modality, Rows, gate_parts
from genai_ray.spec import Preset, Spec

#: name -> the wing whose MODALITY it is
MODALITIES = {"image": "genai_ray.image", "table": "genai_ray.table"}


@cache
def modality(name: str) -> Modality[Rows]:
    """A modality by its name, imported at first use."""
    return import_module(MODALITIES[name]).MODALITY


def every() -> list[Modality[Rows]]:
    return [modality(name) for name in MODALITIES]


def of_spec(spec: Spec) -> Modality[Rows]:
    return next(m for m in every() if isinstance(spec, m.spec))


def codec_from_json(values: Mapping[str, Any]) -> Codec:
    """The codec of any modality, from the JSON of a model card or a checkpoint."""
    return modality(values["modality"]).codec(dict(values))


def presets() -> dict[str, Preset]:
    return {name: preset for m in every() for name, preset in m.presets.items()}


def describe(uri: str, overrides: Sequence[str]) -> Json | None:
    """What is read of a source of real data with overrides such as `data.…=value`; None for what is no source."""
    for kind in every():
        data = kind.recognised(uri)
        if data and kind.describe is not None:
            values = {"name": "inspect", "data": data, "model": {"preset": kind.preset}}
            return kind.describe(parse(specs.override(values, overrides)).data)
    return None


# --- specs ---------------------------------------------------------------------------------------


def load(path: str | Path, overrides: Iterable[str] = ()) -> Spec:
    """Read a YAML spec and apply `key=value` overrides (dotted keys, YAML values).

    Checks everything that needs neither data nor store nor cluster.

    Raises:
        UserError: for a missing file, an unknown key, a wrong type or a broken rule.
    """
    return parse(specs.override(specs.read_yaml(path), overrides))


def parse(values: Mapping[str, Any]) -> Spec:
    """Plain values as a Spec, with the model filled in from its preset.

    Raises:
        UserError: for an unknown key, a wrong type or a broken rule.
    """
    values = {"data": {}, "model": {}} | {k: v for k, v in values.items() if v is not None}
    data, model = values["data"], values["model"]
    if not isinstance(data, Mapping) or not isinstance(model, Mapping):
        return specs.validate(modality("image").spec, values)  # which says what is wrong with it
    values["data"] = {"source": "digits"} | dict(data)
    kind = _of_source(str(values["data"]["source"]))
    values["model"] = _filled_in(kind, {"preset": kind.preset} | dict(model), values["data"]["source"])
    spec = specs.validate(kind.spec, values)
    if spec.generate.sink not in kind.sinks:
        rule = f"must be one of {', '.join(kind.sinks)} for {kind.noun}s"
        raise UserError("generate.sink", spec.generate.sink, rule, nearest(spec.generate.sink, kind.sinks))
    for gate, limit in spec.evaluate.gates.items():
        check_gate(gate, limit, kind.metrics)
    return spec


def saved(values: Mapping[str, Any]) -> Spec:
    """A spec that version 0 saved, without the keys that its family or modality does not have."""
    kind = _of_source(str(values["data"]["source"])).spec
    return parse(specs.without_unread(kind, values))


def _of_source(source: str) -> Modality[Rows]:
    for kind in every():
        if source in kind.sources:
            return kind
    known = [s for m in every() for s in m.sources]
    raise UserError("data.source", source, f"must be one of {', '.join(known)}", nearest(source, known))


def _filled_in(kind: Modality[Rows], given: dict[str, Any], source: str) -> dict[str, Any]:
    """The given values, completed by those of the preset, except for keys that have no effect with them. A dump holds
    every value, so it stays as it is.
    """
    name = str(given["preset"])
    if name not in kind.presets:
        for other in every():
            if name in other.presets:
                rule = f"makes {other.noun}s, and data.source={source} is a source of {kind.noun}s"
                raise UserError("model.preset", name, rule, f"Presets for {kind.noun}s: {', '.join(kind.presets)}.")
        raise UserError("model.preset", name, "must name a preset (`genai-ray presets`)", nearest(name, presets()))
    values = kind.presets[name].values | given
    section = specs.section_type(kind.spec, "model", values)
    effective = section.effective(values)
    return {k: v for k, v in values.items() if k in given or k in effective}


def check_gate(gate: str, limit: float, metrics: Mapping[str, Metric]) -> None:
    """Raises:
    UserError: for a gate that is not `<metric>[_ratio]_(min|max)`, or that no value or every value of the metric would
        pass.
    """
    field = f"evaluate.gates.{gate}"
    name, ratio, _ = gate_parts(gate)
    if name not in metrics or not gate.endswith(("_min", "_max")):
        bounds = {m: "max" if about.better == "lower" else "min" for m, about in metrics.items()}
        known = [f"{m}{kind}_{bound}" for m, bound in bounds.items() for kind in ("", "_ratio")]
        raise UserError(field, limit, "must be <metric>_min, _max, _ratio_min or _ratio_max", nearest(gate, known))
    metric = metrics[name]
    most = float("inf") if ratio else metric.most
    if not (0.0 if ratio else metric.least) <= limit <= most:
        rule = f"must be between {metric.least:g} and {most:g}, as {name} is"
        raise UserError(field, limit, rule, f"Change {field} in the spec or give {field}=… on the command line.")


def schema() -> dict[str, Any]:
    """The JSON Schema of a spec, for editors: any of those of the modalities."""
    parts = [_with_choices(m) for m in every()]
    definitions = {name: value for part in parts for name, value in part.pop("$defs").items()}
    return {"anyOf": parts, "$defs": definitions}


def _with_choices(kind: Modality[Rows]) -> dict[str, Any]:
    out = kind.spec.model_json_schema()
    generate = specs.section_type(kind.spec, "generate", {})
    out["$defs"][generate.__name__]["properties"]["sink"]["enum"] = list(kind.sinks)
    return out
