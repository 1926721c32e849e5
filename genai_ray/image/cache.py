"""A disk cache of S3 objects: fetched once per node, shared by its processes, limited in size."""

import contextlib
import os
from pathlib import Path
from zlib import crc32

from filelock import FileLock, Timeout

from genai_ray.errors import IncompleteError, UserError
from genai_ray.storage import Store, StoreUnavailableError

_LOCKS = 64
_DEADLINE_S = 300.0  # for a lock; a process that dies releases its locks


def fetched(store: Store, name: str, nbytes: int, folder: str, limit: int) -> Path:
    """An S3 object as a file in a folder of the cache, which keeps at most `limit` bytes.

    Processes of a node share it: one fetches an object while the others wait, and a file that is removed stays readable
    where it is mapped.

    Raises:
        UserError: if the disk is full, or the folder cannot be written.
        IncompleteError: if another process fetches the object for too long.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genai_ray" / "spool"
    path = root / folder / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".lock-{crc32(name.encode()) % _LOCKS}", timeout=_DEADLINE_S):
            if path.exists():
                os.utime(path)
                return path
            content = store.read(name)
            with FileLock(root / ".lock", timeout=_DEADLINE_S):  # else two processes would use the same space
                _make_room(root, limit - nbytes)
                Store(str(path.parent)).put(name, content)
    except (StoreUnavailableError, FileNotFoundError):
        raise
    except Timeout as error:
        raise IncompleteError(f"{error}: another process held it; the same command resumes") from None
    except OSError as error:
        rule = f"needs a disk with that much space, and {root} has less ({error})"
        remedy = "Make room, lower data.cache_gb, or let XDG_CACHE_HOME name a folder on a larger disk."
        raise UserError("data.cache_gb", limit / 1e9, rule, remedy) from None
    return path


def _make_room(root: Path, room: int) -> None:
    """Remove the least recently used files until the others fit."""
    files = []
    for path in root.glob("*/[!.]*"):
        with contextlib.suppress(FileNotFoundError):  # removed by another process
            files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= room:
            return
        path.unlink(missing_ok=True)
        total -= size
