"""The spec: one frozen value that describes a run, from the real data to the published data set.

Here YAML and overrides become plain values, and plain values become a Spec of a given type. `genai_ray.modalities`
chooses that type and fills in the values of the preset.
"""

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import pydantic
import yaml
from pydantic import BaseModel

from genai_ray.errors import UserError, nearest
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
    "dump",
    "override",
    "read_presets",
    "read_yaml",
    "section_type",
    "validate",
    "without_unread",
]

S = TypeVar("S", bound=Spec)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The plain values of a spec file.

    Raises:
        UserError: for a file that is missing or not YAML, or a key that appears twice.
    """
    see = "See jobs/specs/."
    try:
        values: Any = yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeys) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("spec", str(path), f"must be a readable YAML file ({error})", see) from None
    except yaml.YAMLError as error:
        raise UserError("spec", str(path), f"must be valid YAML ({error})", see) from None
    if not isinstance(values, dict):
        raise UserError("spec", str(path), "must hold `key: value` lines", see)
    return cast(dict[str, Any], values)


def read_presets(beside: str) -> dict[str, Preset]:
    """The presets in the `presets.yaml` in the folder of a file, by name."""
    values = yaml.safe_load(Path(beside).with_name("presets.yaml").read_text(encoding="utf-8"))
    return {name: Preset.model_validate(preset) for name, preset in values.items()}


def assignment(path: Sequence[str], value: Any) -> str:
    """The override of a key as a shell takes it; a part of the key that is no plain word is in double quotes."""
    parts = (part if re.fullmatch(r"[^\W\d][\w-]*", part) else json.dumps(part, ensure_ascii=False) for part in path)
    written = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
    return shlex.quote(f"{'.'.join(parts)}={written.removesuffix(chr(10)).removesuffix('...').strip()}")


def _split(assigned: str) -> tuple[list[str], str | None]:
    """The parts of a dotted key, some in double quotes, and the string behind the equals sign."""
    parts: list[str] = []
    while match := re.match(r'("(?:[^"\\]|\\.)*"|[^.="]+)(\.|=|$)', assigned):
        parts.append(json.loads(match[1]) if match[1].startswith('"') else match[1])
        assigned = assigned[match.end() :]
        if match[2] != ".":
            return parts, assigned if match[2] else None
    return [], None


def override(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """The values, with each `key=value` (a dotted key, a YAML value) set in them."""
    for one in overrides:
        key, string = _split(one)
        if not key or string is None:
            raise UserError("override", one, "must look like key=value", "Try train.workers=2.")
        section = values
        *parents, last = key
        for parent in parents:
            if section.get(parent) is None:
                section[parent] = {}
            if not isinstance(section[parent], dict):
                raise UserError("override", one, f"{parent} is a value, not a section", "Shorten the key.")
            section = cast(dict[str, Any], section[parent])
        try:
            value: Any = yaml.safe_load(string) if string else None
        except yaml.YAMLError as error:
            quote = "Quote a string: key='\"a: b\"'."
            raise UserError("override", one, f"must hold a YAML value ({error})", quote) from None
        # YAML 1.1 takes 1_000 for a number, but not 1e-4 without a point.
        if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
            value = float(value)
        section[last] = value
    return values


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


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that appears twice is an error; the default keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # pyright: ignore
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"key {key!r} appears {keys.count(key)} times")
        return super().construct_mapping(node, deep)


def _user_error(error: pydantic.ValidationError, kind: type[Spec], values: Mapping[str, Any]) -> UserError:
    """The first problem pydantic found, in the four parts of a user error."""
    problems = error.errors(include_url=False)
    # For a field of two types, pydantic also reports a problem with the type that was not meant.
    meant = [p for p in problems if p["type"] != "string_type" or len(problems) == 1]
    problem = (meant or problems)[0]
    context: dict[str, Any] = problem.get("ctx", {})
    if isinstance(context.get("error"), UserError):
        return context["error"]
    path = [str(part) for part in problem["loc"] if "[" not in str(part)]
    if path[:1] == ["model"] and len(path) > 1 and path[1] == _value_at(values, "model", "family"):
        del path[1]  # pydantic names the family of the union there
    field, value = ".".join(path) or "spec", problem["input"]
    if problem["type"] == "extra_forbidden":
        known = _keys_at(kind, path[:-1], values)
        return UserError(field, value, "is not a key of the spec" + _for_which(values, path), nearest(path[-1], known))
    if problem["type"] == "missing":
        return UserError(field, None, "is required", f"Add `{path[-1]}: …` to the spec.")
    if problem["type"] in ("literal_error", "union_tag_invalid"):
        expected = str(context.get("expected", context.get("expected_tags")))
        if "tag" in context:
            field, value = f"{field}.family", context["tag"]
        options = ["".join(o) for o in re.findall(r"'([^']+)'|\b(\d+)\b", expected)]
        return UserError(field, value, f"must be one of {expected}", nearest(str(value), options))
    rule = problem["msg"].removeprefix("Value error, ")
    remedy = f"Change {field} in the spec or give {field}=… on the command line."
    return UserError(field, value, rule[0].lower() + rule[1:], remedy)


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
