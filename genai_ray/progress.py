"""One progress line with rate and ETA: rewritten in place on a terminal, plain lines in a log."""

import sys
import time
from typing import TextIO


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
