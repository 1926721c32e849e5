"""Plain values as users write them: YAML files, and overrides `key=value`.

Scalars follow the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema): only true and false are
booleans, so that `no`, `on`, dates and `1:30` are strings, and 1e6 is a number. Two rules differ from it: 010 is a
string, as a code with leading zeros is, and 1_000 is a number. Every key of a mapping is the string that is written.
"""

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from genai_ray.errors import UserError

_DIGITS = r"(0|[1-9][0-9_]*)"
_FLOAT = rf"[-+]?(\.[0-9]+|{_DIGITS}(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
#: Tag -> the plain scalars that have it, in the order in which they are tried.
_SCHEMA = {
    "null": "~|null|Null|NULL|",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": rf"[-+]?{_DIGITS}|0x[0-9a-fA-F]+|0o[0-7]+",
    "float": _FLOAT,
    "merge": "<<",
}
_PART = re.compile(r'"(?:[^"\\]|\\.)*"|[^".=][^.=]*', re.DOTALL)
_FLOW = tuple("\"'[{")


class _Loader(yaml.SafeLoader):
    """The schema above, in which a key that appears twice is an error; PyYAML's keeps the last one."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if not isinstance(key, str):
                raise yaml.YAMLError(f"a key must be a string{node.start_mark}")
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"key {key!r} appears {keys.count(key)} times")
        self.flatten_mapping(node)
        return {key.value: self.construct_object(value, deep=deep) for key, value in node.value}


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would read as something else than a string; in double quotes, as shells use
    the other ones.
    """

    def choose_scalar_style(self) -> str:
        style = super().choose_scalar_style()
        return '"' if style == "'" else style


for _tag, _pattern in _SCHEMA.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), None)


def parse_yaml(string: str | bytes) -> Any:
    """The value of a YAML document; bytes may be UTF-16, as PowerShell writes them.

    Raises:
        yaml.YAMLError: if it is none, or a key appears twice.
    """
    return yaml.load(string, _Loader)


def format_yaml(value: Any) -> str:
    """The YAML document of a plain value, which YAML 1.1 and `parse_yaml` read alike."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The plain values of a spec file.

    Raises:
        UserError: for a file that is missing or not YAML, or a key that appears twice.
    """
    see = "See jobs/specs/."
    try:
        values = parse_yaml(Path(path).read_bytes()) or {}
    except (OSError, yaml.reader.ReaderError) as error:
        raise UserError("spec", str(path), f"must be a readable YAML file ({error})", see) from None
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError("spec", str(path), f"must be valid YAML ({error})", see) from None
    if not isinstance(values, dict):
        raise UserError("spec", str(path), "must hold `key: value` lines", see)
    return cast(dict[str, Any], values)


def override(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """The values, with each `key=value` set in them.

    The parts of a key are joined by dots; a part that has dots, `=` or quotes in it stands in double quotes, as in
    `data.table.columns."note.text"=drop`. A value is a YAML list, mapping, quoted string, number, boolean or null;
    anything else is the string as it stands, and nothing at all is null.

    Raises:
        UserError: for one that cannot be read so.
    """
    for one in overrides:
        path, string = _split(one)
        section = values
        for parent in path[:-1]:
            if section.get(parent) is None:
                section[parent] = {}
            if not isinstance(section[parent], dict):
                raise UserError("override", one, f"{parent} is a value, not a section", "Shorten the key.")
            section = cast(dict[str, Any], section[parent])
        try:
            section[path[-1]] = _value(string)
        except yaml.YAMLError as error:
            quote = f"If it is a string, quote it: {assignment(path, string)}."
            raise UserError("override", one, f"must hold a YAML value ({error})", quote) from None
    return values


def assignment(path: Sequence[str], value: Any) -> str:
    """The override that sets a value, as it is typed in a shell. path: the parts of its key."""
    plain = isinstance(value, str) and not value.lstrip().startswith(_FLOW) and _value(value) == value
    return shlex.quote(f"{dotted(path)}={value if plain else _inline(value)}")


def dotted(path: Sequence[str]) -> str:
    """The key of an override, whose parts are these."""
    return ".".join(part if _PART.fullmatch(part) and part[0] != '"' else _quoted(part) for part in path)


def _split(one: str) -> tuple[list[str], str]:
    """The parts of the key, and the value."""
    path: list[str] = []
    end = -1
    while match := _PART.match(one, end + 1):
        part, end = match[0], match.end()
        try:
            path.append(parse_yaml(part) if part.startswith('"') else part)
        except yaml.YAMLError:
            break
        if one[end : end + 1] == "=":
            return path, one[end + 1 :]
        if one[end : end + 1] != ".":
            break
    raise UserError("override", one, "must look like key=value", "Try train.workers=2.")


def _value(string: str) -> Any:
    stripped = string.strip()
    if not stripped.startswith(_FLOW):
        loader = _Loader("")
        tag = loader.resolve(yaml.ScalarNode, stripped, (True, False))
        if not string or (stripped and tag != loader.DEFAULT_SCALAR_TAG and stripped != "<<"):
            return loader.construct_object(yaml.ScalarNode(tag, stripped), deep=True)
        return string
    node = yaml.compose(stripped, _Loader)
    if node is None or node.end_mark.index < len(stripped) or not getattr(node, "flow_style", True):
        raise yaml.YAMLError("something follows its end")
    return parse_yaml(stripped)


def _inline(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, str):
        return _quoted(value)
    width = float("inf")  # which keeps a long list on its line
    listed = yaml.dump(
        [value], Dumper=_Dumper, default_flow_style=True, allow_unicode=True, sort_keys=False, width=width
    )
    return listed.strip()[1:-1]


def _quoted(string: str) -> str:
    return yaml.dump(string, Dumper=_Dumper, default_style='"', allow_unicode=True, width=float("inf")).strip()
