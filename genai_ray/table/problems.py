"""Columns that need a decision: all of them in one error, with the lines to paste that make the file run."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from genai_ray.errors import UserError
from genai_ray.spec import assignment

_PATH = ("data", "table", "columns")
#: What the spec may say of a column: a type, values of its keys, or nothing.
Choice = str | Mapping[str, Any] | None


class ColumnError(UserError):
    """A column that cannot be learnt as it is.

    name: of the column. hint: what else can be done than to change the spec. choices: what the spec may say of the
    column so that the file runs, the likeliest first.
    """

    def __init__(self, name: str, value: object, rule: str, hint: str, choices: tuple[Choice, ...] = ()):
        self.name, self.hint, self.choices = name, hint, choices or ("drop",)
        ways = ", or ".join(map(self.override, self.choices))
        super().__init__(".".join((*_PATH, name)), value, rule, f"{hint} Give {ways}".strip())

    def __reduce__(self) -> Any:
        return type(self), (self.name, self.value, self.rule, self.hint, self.choices)

    def override(self, choice: Choice) -> str:
        """The override that makes a choice, whatever the spec says of the column."""
        return assignment((*_PATH, self.name), dict(choice) if isinstance(choice, Mapping) else choice)


def joined(errors: Sequence[ColumnError]) -> UserError:
    """One error of all columns; of one column alone its own."""
    if len(errors) == 1:
        return errors[0]
    rules = "".join(f"\n  {e.name}: {'' if e.value is None else f'{e.value!r}; '}{e.rule}" for e in errors)
    lines = ""
    for error in errors:
        first, *others = map(_flow, error.choices)
        more = f"  # or {', or '.join(others)}" if others else ""
        lines += f"      {_flow(error.name)}: {first}{more}\n"
    overrides = " ".join(e.override(e.choices[0]) for e in errors)
    return UserError(
        ".".join(_PATH),
        [e.name for e in errors],
        f"each need a decision:{rules}",
        f"\nThis makes the file run; in the spec:\n\ndata:\n  table:\n    columns:\n{lines}\n"
        f"or on the command line:\n\n{overrides}",
    )


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    plain = dict(value) if isinstance(value, Mapping) else value
    written = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, sort_keys=False, width=10**6)
    return written.removesuffix("\n").removesuffix("...").strip()
