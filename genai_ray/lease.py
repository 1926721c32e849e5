"""One driver at a time trains a run, and one makes a data set: a lease in the store, renewed by a heartbeat.

A lease is an object `_lease/000001.json`, its name being its term. It is put if absent, so only one of two drivers gets
it. The holder puts it again every third of `seconds` with a higher beat. A driver that meets a lease watches its beat
by its own clock: a beat that rises belongs to a living driver. If it does not rise for `seconds`, the driver puts the
next term if absent; the old holder, should it wake up, sees that term and stops. No two clocks are compared.

Two drivers could not corrupt a data set, as shards are pure functions and puts are atomic; the lease keeps them from
doing all work twice, and on a GPU from mixing the checkpoints of two trainings.
"""

import contextlib
import getpass
import json
import os
import re
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
_NAME = re.compile(r"_lease/[0-9]{6,}\.json")
_POLL_S = 0.5
_JOIN_S = 5.0


class LeaseError(IncompleteError):
    """Another driver does the same work; the message says which."""


class Lease:
    """A lease that this process holds; `check` raises once another driver has taken it."""

    def __init__(self, store: Store, term: int, seconds: float, field: str, content: dict[str, Any]):
        self.store, self.key, self.seconds, self.field = store, _key(term), seconds, field
        self._term, self._content = term, content
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
                f"{self.store.uri}: this driver had no heartbeat for {self.field}={self.seconds:g} s, and "
                f"{self._lost} took over"
            )

    def release(self) -> None:
        self._done.set()
        self._thread.join(_JOIN_S)  # it may be waiting for the store
        with contextlib.suppress(OSError, ValueError):  # a lease that is left expires
            self.store.delete(self.key)

    def _beat(self) -> None:
        while not self._done.wait(self.seconds / 3):
            # A store that does not answer is reported by the callers that read or write data.
            with contextlib.suppress(OSError, ValueError):
                term, stored = _newest(self.store)
                if term > self._term:
                    self._lost = _holder(stored)
                    return
                self._content["beat"] += 1
                self.store.put(self.key, json.dumps(self._content).encode())


@contextlib.contextmanager
def hold(store: Store, seconds: float, field: str) -> Iterator[Lease]:
    """Hold the lease of a run or a data set for the length of a block; waits at most `seconds` for a silent holder.

    field: of the spec, which holds the seconds.

    Raises:
        LeaseError: if another driver holds it and is alive.
    """
    lease = _acquire(store, seconds, field)
    try:
        yield lease
    finally:
        lease.release()


def _acquire(store: Store, seconds: float, field: str) -> Lease:
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
        term, stored = _newest(store)
        if term:
            _wait_until_dead(store, term, stored, seconds)
        if store.put_if_absent(_key(term + 1), json.dumps(content).encode()):
            for key in store.list(_PREFIX):
                if key < _key(term + 1):
                    store.delete(key)
            return Lease(store, term + 1, seconds, field, content)


def _wait_until_dead(store: Store, term: int, stored: dict[str, Any], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not _is_gone(stored):
        newest, latest = _newest(store)
        if newest < term:
            return  # released
        if newest > term or latest.get("beat") != stored.get("beat"):
            raise LeaseError(
                f"{store.uri}: {_holder(latest)} works on it; wait for that, or stop it and resume with the same "
                "command"
            )
        time.sleep(min(_POLL_S, seconds / 6))


def _newest(store: Store) -> tuple[int, dict[str, Any]]:
    """Term and content of the newest lease; (0, {}) if there is none."""
    keys = [key for key in store.list(_PREFIX) if _NAME.fullmatch(key)]  # not what a program that copies folders adds
    if not keys:
        return 0, {}
    term = int(keys[-1].removeprefix(_PREFIX).removesuffix(".json"))
    try:
        return term, json.loads(store.read(keys[-1]) or b"{}")  # empty while it is written, where there are no links
    except ValueError:  # damaged: a holder that lives writes it again
        return term, {}
    except FileNotFoundError:
        return 0, {}  # released since it was listed


def _key(term: int) -> str:
    return f"{_PREFIX}{term:06d}.json"


def _holder(content: dict[str, Any]) -> str:
    return f"{content.get('user')} on {content.get('host')} (process {content.get('pid')})"


def _is_gone(content: dict[str, Any]) -> bool:
    """Whether the holder ran on this machine and has ended; False where that cannot be known."""
    if content.get("machine") != _machine():
        return False
    try:
        process = psutil.Process(content["pid"])
        # A killed process stays a zombie until its parent reads its exit code.
        gone = process.status() == psutil.STATUS_ZOMBIE
        return gone or abs(process.create_time() - content["started"]) > 1
    except psutil.NoSuchProcess:
        return True


def _machine() -> str:
    """Identifies what a pid is unique in: this boot of this machine, and this namespace of pids."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return "/".join(parts)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without a user of that id
        return str(os.getuid())
