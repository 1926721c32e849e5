"""The spec: one frozen value that describes a run, from the real data to the published data set.

Here YAML and overrides become plain values, and plain values become a Spec of a given type. `genai_ray.modalities`
chooses that type and fills in the values of the preset.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import pydantic
from pydantic import BaseModel

from genai_ray.errors import UserError, nearest
from genai_ray.spec.notation import assignment, dotted, format_yaml, override, parse_yaml, read_yaml
from genai_ray.spec.sections import DataSpec, EvaluateSpec, ExportSpec, GenerateSpec, ModelSpec, Preset, Section, Spec

__all__ = [
    "DataSpec",
    "EvaluateSpec",
    "ExportSpec",
    "GenerateSpec",
    "ModelSpec",
    "Preset",
    "Section",
    "Spec",
    "assignment",
    "dotted",
    "dump",
    "format_yaml",
    "override",
    "read_presets",
    "read_yaml",
    "section_type",
    "validate",
    "without_unread",
]

S = TypeVar("S", bound=Spec)


def read_presets(beside: str) -> dict[str, Preset]:
    """The presets in the `presets.yaml` in the folder of a file, by name."""
    values = parse_yaml(Path(beside).with_name("presets.yaml").read_text(encoding="utf-8"))
    return {name: Preset.model_validate(preset) for name, preset in values.items()}


def validate(kind: type[S], values: Mapping[str, Any]) -> S:
    """Plain values as a Spec.

    Raises:
        UserError: for an unknown key, a wrong type or a broken rule.
    """
    try:
        return kind.model_validate(values)
    except pydantic.ValidationError as error:
        raise _user_error(error, kind, values) from None


def dump(spec: Spec) -> dict[str, Any]:
    """The spec as plain JSON values, from which the same spec can be made again."""
    return spec.model_dump(mode="json")


def section_type(kind: type[Spec], name: str, values: Mapping[str, Any]) -> type[Section]:
    """The type of a section; of a union by family, the one whose family the values name."""
    annotation = kind.model_fields[name].annotation
    options = [t for t in get_args(annotation) or (annotation,) if isinstance(t, type)]
    for option in options:
        if len(options) == 1 or values.get("family") in get_args(option.model_fields["family"].annotation):
            return option
    return options[0]


def without_unread(kind: type[Spec], values: Mapping[str, Any]) -> dict[str, Any]:
    """A spec that version 0 saved, without the keys that its family or modality does not have."""
    out: dict[str, Any] = {}
    for name, section in values.items():
        if name not in kind.model_fields:
            continue
        if isinstance(section, Mapping):
            kept = cast(Mapping[str, Any], section)
            known = section_type(kind, name, kept).effective(kept)
            section = {k: v for k, v in kept.items() if k in known}
        out[name] = section
    return out


def _user_error(error: pydantic.ValidationError, kind: type[Spec], values: Mapping[str, Any]) -> UserError:
    """The first problem pydantic found, in the four parts of a user error."""
    problems = error.errors(include_url=False)
    # For a field of two types, pydantic also reports a problem with the type that was not meant.
    meant = [p for p in problems if p["type"] != "string_type" or len(problems) == 1]
    problem = (meant or problems)[0]
    context: dict[str, Any] = problem.get("ctx", {})
    if isinstance(context.get("error"), UserError):
        return context["error"]
    path = _path(problem["loc"], values)
    if path[:1] == ["model"] and len(path) > 1 and path[1] == _value_at(values, "model", "family"):
        del path[1]  # pydantic names the family of the union there
    field, value = dotted(path) or "spec", problem["input"]
    if problem["type"] == "extra_forbidden":
        known = _keys_at(kind, path[:-1], values)
        remedy = nearest(path[-1], known)
        if len(path) > 3 and not path[-2].isdecimal():  # below a name of the user's
            remedy += f" A name with a dot in it stands in quotes: {dotted([*path[:-2], '.'.join(path[-2:])])}."
        return UserError(field, value, "is not a key of the spec" + _for_which(values, path), remedy)
    if problem["type"] == "missing":
        return UserError(field, None, "is required", f"Add `{path[-1]}: …` to the spec.")
    if problem["type"] in ("literal_error", "union_tag_invalid"):
        expected = str(context.get("expected", context.get("expected_tags")))
        if "tag" in context:
            field, value = f"{field}.family", context["tag"]
        options = ["".join(o) for o in re.findall(r"'([^']+)'|\b(\d+)\b", expected)]
        return UserError(field, value, f"must be one of {expected}", nearest(str(value), options))
    rule = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "string_type" and value is not None:  # a name such as 2024, or [x]
        written = assignment([], value).removeprefix("'").removesuffix("'")[1:]
        return UserError(field, value, "must be a string", f"Quote what you typed, as in {assignment(path, written)}.")
    remedy = f"Change {field} in the spec or give {field}=… on the command line."
    return UserError(field, value, rule[0].lower() + rule[1:], remedy)


def _path(loc: Sequence[int | str], values: Mapping[str, Any]) -> list[str]:
    """The keys and indices that lead to a problem, without the names of types that pydantic adds."""
    path: list[str] = []
    inside: Any = values
    for part in loc:
        if isinstance(inside, list) and isinstance(part, int):
            is_key = True
        else:
            is_key = isinstance(inside, Mapping) and part in inside
        if is_key or "[" not in str(part):
            path.append(str(part))
        if is_key:
            inside = cast(Any, inside)[part]
    return path


def _value_at(values: Mapping[str, Any], section: str, name: str) -> Any:
    inside: Any = values.get(section)
    return inside.get(name) if isinstance(inside, Mapping) else None


def _for_which(values: Mapping[str, Any], path: list[str]) -> str:
    """For which preset or source a key is unknown: another one may have it."""
    if path[0] == "model":
        return f" for model.preset={_value_at(values, 'model', 'preset')}"
    source = _value_at(values, "data", "source")
    return f" for data.source={source}" if path[0] in ("data", "export", "generate", "evaluate") else ""


def _keys_at(kind: type[Spec], path: list[str], values: Mapping[str, Any]) -> list[str]:
    """The keys that a section may have. path: names of sections, keys of mappings, indices of lists."""
    if not path:
        return list(kind.model_fields)
    inside: Any = values[path[0]]
    model: Any = section_type(kind, path[0], inside)
    if len(path) == 1:
        return model.effective(inside)
    parts = iter(path[1:])
    for part in parts:
        info = model.model_fields.get(part)
        section = None if info is None else _model_in(info.annotation)
        if info is None or section is None:
            return []
        if section is not info.annotation:
            next(parts, None)  # a key of the mapping, or an index of the list
        model = section
    return list(model.model_fields)


def _model_in(annotation: Any) -> Any:
    """The section that a field holds, or that its mapping or list holds; None if there is none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inside = (_model_in(part) for part in get_args(annotation))
    return next((model for model in inside if model is not None), None)
