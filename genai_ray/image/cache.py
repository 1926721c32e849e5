"""Objects of S3 on the disk of a node: fetched once, shared by its processes, within a limit."""

import contextlib
import os
from pathlib import Path
from zlib import crc32

from filelock import FileLock, Timeout

from genai_ray.errors import IncompleteError, UserError
from genai_ray.storage import Store, StoreUnavailableError

_LOCKS = 64
_DEADLINE_S = 300.0  # for a lock, which a process that dies gives back


def fetched(store: Store, name: str, nbytes: int, folder: str, limit: int) -> Path:
    """An object of S3 as a file in a folder of the cache, which keeps at most `limit` bytes.

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
            with FileLock(root / ".lock", timeout=_DEADLINE_S):  # or two would take the same room
                _make_room(root, limit - nbytes)
                Store(str(path.parent)).put(name, content)
    except (StoreUnavailableError, FileNotFoundError):
        raise
    except Timeout as error:
        raise IncompleteError(f"{error}: another process held it; the same command resumes") from None
    except OSError as error:
        raise UserError(
            "data.cache_gb",
            limit / 1e9,
            f"needs a disk that takes so much, and {root} does not ({error})",
            "Make room, lower data.cache_gb, or let XDG_CACHE_HOME name a folder on a larger disk.",
        ) from None
    return path


def _make_room(root: Path, room: int) -> None:
    """Remove the files that were not used for longest, until the others fit."""
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
