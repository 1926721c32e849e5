"""The ways in which a run can fail, each with its exit code."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can correct: names the field, the value, the rule and the remedy."""

    exit_code = 2

    def __init__(self, field: str, value: object, rule: str, remedy: str):
        self.field, self.value, self.rule, self.remedy = field, value, rule, remedy
        super().__init__(f"{field}: got {value!r}; {rule}. {remedy}")

    def __reduce__(self):
        # Exceptions travel between processes; the default would call __init__ with one argument.
        return type(self), (self.field, self.value, self.rule, self.remedy)


class IncompleteError(RuntimeError):
    """The work stopped before its end; the same command resumes it."""

    exit_code = 3


class ParityError(RuntimeError):
    """ONNX Runtime and torch give different outputs for the same inputs; nothing was published."""

    exit_code = 1


class GateError(RuntimeError):
    """The data set is complete, but its measured quality does not pass the gates of the spec."""

    exit_code = 4


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint with the nearest known word, or with all known words if none is near."""
    known = sorted(known)
    match = difflib.get_close_matches(word, known, n=1)
    return f"Did you mean {match[0]!r}?" if match else f"Known: {', '.join(known)}."
