"""What a person reads of the work: one line with rate and ETA, rewritten in place on a terminal, plain lines in a log;
and outlines of nested values.
"""

import sys
import time
from collections.abc import Mapping
from itertools import islice
from typing import Any, TextIO

#: Values of a mapping, such as classes or columns, that a run shows before its first step.
SHOWN = 12


class Progress:
    """Counts towards a total and prints a line at most every few seconds.

    Args:
        what: first word of the line.
        total: samples at which the count ends.
        done: the count at the start, if earlier work is resumed.
        every_s: seconds between lines of a log; a terminal is refreshed five times a second.
    """

    def __init__(self, what: str, total: int, *, done: int = 0, every_s: float = 5.0, stream: TextIO | None = None):
        self.what, self.total, self.done = what, total, done
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.every_s = 0.2 if self.terminal else every_s
        self._first, self._started = done, time.monotonic()
        self._next = self._started + self.every_s

    @property
    def rate(self) -> float:
        """Samples per second since this object was created."""
        return (self.done - self._first) / max(time.monotonic() - self._started, 1e-9)

    def update(self, done: int, note: str = "") -> None:
        """Set the count; the note is the end of the line."""
        self.done = done
        now = time.monotonic()
        if now < self._next and done < self.total:
            return
        self._next = now + self.every_s
        end = "\n" if not self.terminal or done >= self.total else ""
        start = "\r\x1b[2K" if self.terminal else ""
        self.stream.write(f"{start}{self.line(note)}{end}")
        self.stream.flush()

    def line(self, note: str = "") -> str:
        rate = self.rate
        left = (self.total - self.done) / rate if rate else 0
        share = self.done / max(self.total, 1)
        return (
            f"{self.what} {self.done:,}/{self.total:,} {share:4.0%}  {rate:,.0f}/s  ETA {duration(left)}  {note}"
        ).rstrip()


def duration(seconds: float) -> str:
    """12s, 3m05s or 2h04m."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def show(text: str) -> None:
    """Lines for a person, apart from the result of a command."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def outline(values: Mapping[str, Any], *, most: int | None = None) -> str:
    """Nested values, a line for each; of a mapping of mappings a line for each of these.

    most: values of a mapping inside another one that are shown; None: all.
    """
    lines: list[str] = []
    for key, value in values.items():
        if not (isinstance(value, Mapping) and any(isinstance(inside, Mapping) for inside in value.values())):
            lines.append(f"{key:<14} {_shown(value, most)}".rstrip())
            continue
        lines.append(key)
        lines += [f"  {name:<14} {_shown(inside, most)}".rstrip() for name, inside in islice(value.items(), most)]
        if most is not None and len(value) > most:
            lines.append(f"  and {len(value) - most:,} more")
    return "\n".join(lines)


def _shown(value: Any, most: int | None = None) -> str:
    if isinstance(value, Mapping):
        named = ((k, v) for k, v in value.items() if v is not None)
        each = [
            f"{_shown(k)} ({_shown(v)})" if isinstance(v, Mapping) else f"{_shown(k)} {_shown(v)}"
            for k, v in islice(named, most)
        ]
        more = 0 if most is None else len(value) - most
        return ", ".join(each + [f"and {more:,} more"] * (more > 0))
    if isinstance(value, list | tuple):
        return " .. ".join(map(_shown, value)) if len(value) == 2 else ", ".join(map(_shown, value))
    return f"{value:,}" if isinstance(value, int | float) else " ".join(str(value).split())
