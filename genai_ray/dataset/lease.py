"""One driver at a time works on a data set: a lease in its store, kept up by a sign of life.

A lease is an object `_lease/000001.json` that is put if absent, so of two drivers one gets it. The
holder puts it again every third of `seconds` with a higher beat. Who finds a lease watches its beat
by a clock of its own: one that moves belongs to a living driver; one that stands still for
`seconds` is taken over by putting the next number if absent, and the old holder, should it wake,
sees that number and stops. No two clocks are compared.

Shards are pure functions and puts are whole, so two drivers could not spoil anything; the lease
keeps them from doing everything twice.
"""

import contextlib
import getpass
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from genai_ray.errors import IncompleteError
from genai_ray.storage import Store

_PREFIX = "_lease/"
_POLL_S = 0.5
_JOIN_S = 5.0


class LeaseError(IncompleteError):
    """Another driver works on the same data set; the message says which."""


class Lease:
    """A lease that this process holds; `check` raises once another driver has taken it."""

    def __init__(self, store: Store, number: int, seconds: float, content: dict[str, Any]):
        self.store, self.key, self.seconds = store, _key(number), seconds
        self._number, self._content = number, content
        self._lost: str | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises:
        LeaseError: if another driver took the lease, since this one seemed dead.
        """
        if self._lost is not None:
            raise LeaseError(
                f"{self.store.uri}: this driver gave no sign of life for generate.lease_s="
                f"{self.seconds:g} s, and {self._lost} took over"
            )

    def release(self) -> None:
        self._done.set()
        self._thread.join(_JOIN_S)  # it may be waiting for the store
        with contextlib.suppress(OSError, ValueError):  # then it ends by itself
            self.store.delete(self.key)

    def _beat(self) -> None:
        while not self._done.wait(self.seconds / 3):
            # A store that does not answer is left to those who need it for more than this.
            with contextlib.suppress(OSError, ValueError):
                number, there = _newest(self.store)
                if number > self._number:
                    self._lost = _holder(there)
                    return
                self._content["beat"] += 1
                self.store.put(self.key, json.dumps(self._content).encode())


@contextlib.contextmanager
def hold(store: Store, seconds: float) -> Iterator[Lease]:
    """Hold the lease of a data set for the length of a block.

    Waits at most `seconds` for a holder that gives no sign.

    Raises:
        LeaseError: if another driver holds it and lives.
    """
    lease = _acquire(store, seconds)
    try:
        yield lease
    finally:
        lease.release()


def _acquire(store: Store, seconds: float) -> Lease:
    content = {
        "host": socket.gethostname(),
        "user": _user(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "machine": _machine(),
        "token": secrets.token_hex(8),
        "beat": 0,
    }
    while True:
        number, there = _newest(store)
        if number:
            _wait_until_dead(store, number, there, seconds)
        if store.put_if_absent(_key(number + 1), json.dumps(content).encode()):
            for key in store.list(_PREFIX):
                if key < _key(number + 1):
                    store.delete(key)
            return Lease(store, number + 1, seconds, content)


def _wait_until_dead(store: Store, number: int, there: dict[str, Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not _is_gone(there):
        now, found = _newest(store)
        if now < number:
            return  # given back
        if now > number or found.get("beat") != there.get("beat"):
            raise LeaseError(
                f"{store.uri}: {_holder(found)} works on this data set; wait for it, or end it, "
                "and the same command goes on from there"
            )
        time.sleep(min(_POLL_S, seconds / 6))


def _newest(store: Store) -> tuple[int, dict[str, Any]]:
    """Number and content of the newest lease; (0, {}) if there is none."""
    keys = store.list(_PREFIX)
    if not keys:
        return 0, {}
    number = int(keys[-1].removeprefix(_PREFIX).removesuffix(".json"))
    try:
        return number, json.loads(store.read(keys[-1]))
    except FileNotFoundError:
        return 0, {}  # given back since it was listed


def _key(number: int) -> str:
    return f"{_PREFIX}{number:06d}.json"


def _holder(content: dict[str, Any]) -> str:
    return f"{content.get('user')} on {content.get('host')} (process {content.get('pid')})"


def _is_gone(content: dict[str, Any]) -> bool:
    """Whether the holder ran here and does not any more; False where that cannot be known."""
    if content.get("machine") != _machine():
        return False
    try:
        process = psutil.Process(content["pid"])
        # One that was killed stays a zombie until its parent asks for its exit code.
        gone = process.status() == psutil.STATUS_ZOMBIE
        return gone or abs(process.create_time() - content["started"]) > 1
    except psutil.NoSuchProcess:
        return True


def _machine() -> str:
    """Where a pid means one process: this boot of this machine, and this namespace of pids."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "/".join(parts)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without a user of that number
        return str(os.getuid())
