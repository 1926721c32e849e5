"""Store: the only place that knows local paths and atomic writes; `s3.py` does the same for S3.

A store is a folder or an `s3://bucket/prefix`; keys are relative, with `/`. A put is atomic or raises; a reader never
sees a part of an object. Credentials and the endpoint are never part of a Store, so a Store can be pickled, printed and
logged.
"""

import contextlib
import errno
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genai_ray.errors import UserError
from genai_ray.s3 import S3, StoreUnavailableError

__all__ = ["Store", "StoreUnavailableError", "s3_spelling"]

Keys = list[str]

_DAY_S = 86_400.0
#: Of jobs' working directories, in the folder of a Ray session.
_JOB_FOLDER = "working_dir_files"
#: How file systems without hard links answer (FAT, SMB, many of FUSE).
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
_BUCKET = re.compile(r"s3://[A-Za-z0-9._:-]+(/|$)")


def s3_spelling(uri: str) -> str:
    """What to do about a URI such as s3a://bucket, which other programs read; empty for all others."""
    scheme, _, rest = uri.partition("://")
    return f"Write s3://{rest}." if scheme.lower() in ("s3", "s3a", "s3n") else ""


class Store:
    """Objects under one URI. field: of the spec, which errors name.

    Raises:
        UserError: from every method, when the store does not exist or refuses the keys.
        StoreUnavailableError: from every method but `check`, when it failed for a minute.
    """

    def __init__(self, uri: str, field: str = "store"):
        if "://" in uri and not uri.startswith(("s3://", "file://")):
            raise UserError(
                field,
                uri,
                "must be a folder or start with s3://",
                s3_spelling(uri)
                or "Copy what it names to a folder or a bucket; clouds with an S3 interface have AWS_ENDPOINT_URL.",
            )
        if uri.startswith("s3://") and not _BUCKET.match(uri):
            raise UserError(field, uri, "must name a bucket", "Write s3://bucket/prefix.")
        self.uri = os.path.expanduser(uri.removeprefix("file://")).rstrip("/") or "/"
        #: Whether every node of a cluster has it: a bucket, or a folder that is declared so by file://.
        self.shared = "://" in uri
        self.field = field
        self._backend: _Local | S3 | None = None

    def __reduce__(self) -> Any:
        return Store, (self._declared, self.field)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    @property
    def _declared(self) -> str:
        return f"file://{self.uri}" if self.shared and self.path() else self.uri

    def at(self, path: str) -> "Store":
        """The store of a subfolder."""
        return Store(f"{self._declared}/{path.strip('/')}", self.field)

    def check(self, *, write: bool = True) -> None:
        """Fail before any work is done if the store does not exist or cannot be listed.

        write: try also what a run rests on: one write, one that must not replace it, and the clock. Nothing is left.

        Raises:
            UserError: also if it cannot be reached, which at the start is a mistake of the user.
        """
        self._open().check(write=write)

    def read(self, key: str) -> bytes:
        """The whole object.

        Raises:
            FileNotFoundError: if there is no such object.
        """
        return self._open().read(key)

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes start..stop-1 of an object, fewer if it ends before.

        Raises:
            FileNotFoundError: if there is no such object.
        """
        return self._open().read_range(key, start, stop)

    def put(self, key: str, data: bytes) -> None:
        """Write or replace a whole object."""
        self._open().put(key, data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless it exists; whether it was written. Atomic between writers."""
        return self._open().put_if_absent(key, data)

    def list(self, prefix: str = "") -> list[str]:
        """Sorted keys that begin with a prefix."""
        return sorted(self.sizes(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Keys that begin with a prefix, and the bytes of each."""
        return {key: size for key, (size, _) in self.listing(prefix).items()}

    def listing(self, prefix: str = "", lost: Keys | None = None) -> dict[str, tuple[int, str]]:
        """Keys that begin with a prefix, with the bytes and the version of each: its time of modification or ETag.

        lost: gets the keys that cannot be followed: links that lead nowhere or to a folder above, closed folders.
        """
        return dict(self._open().listing(prefix, [] if lost is None else lost))

    def exists(self, key: str) -> bool:
        return self._open().exists(key)

    def path(self, key: str = "") -> Path | None:
        """The local path of an object, so that it can be memory-mapped; None on S3."""
        return None if self.uri.startswith("s3://") else Path(self.uri) / key

    def delete(self, key: str) -> None:
        """Remove an object, if it exists."""
        self._open().delete(key)

    def _open(self) -> "_Local | S3":
        if self._backend is None:
            self._backend = S3(self.uri, self.field) if self.uri.startswith("s3://") else _Local(self.uri, self.field)
        return self._backend


class _Local:
    def __init__(self, uri: str, field: str):
        self.root, self.field = Path(uri), field
        self.swept: set[Path] = set()

    def check(self, *, write: bool) -> None:
        if not write:
            return
        if _JOB_FOLDER in self.root.parts:
            raise self._error(
                "lies in the folder that Ray made for this job, and deletes",
                f"Give a bucket, {self.field}=s3://bucket/prefix, or the absolute path of a folder that stays.",
            )
        # The first put creates the folder; here its nearest parent stands for it.
        folder, written = self.root, list[str]()
        try:
            while not folder.exists():
                folder = folder.parent
            for content in (b"1", b"2"):
                written.append(_write(folder, content))
            written.append(f"{written[0]}-claimed")
            claims = [_claim(name, written[2]) for name in written[:2]]
            skew = abs(time.time() - os.stat(written[2]).st_mtime)
        except OSError as error:
            raise self._not_writable(folder, error) from None
        finally:
            for name in written:
                with contextlib.suppress(OSError):
                    os.unlink(name)
        if claims != [True, False]:
            rule = f"must keep two drivers apart, and {folder} lets both create one file"
            raise self._error(rule, f"Choose a folder on another file system with {self.field}=….")
        if skew > _DAY_S / 2:
            rule = f"the clocks of its file system and of this machine differ by {skew:.0f} s"
            raise self._error(f"{rule}, so files in use would be taken for leftovers", "Set the clock.")

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        with (self.root / key).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def put(self, key: str, data: bytes) -> None:
        temporary = self._temporary(key, data)
        try:
            os.replace(temporary, self.root / key)
        except OSError:
            os.unlink(temporary)
            raise

    def put_if_absent(self, key: str, data: bytes) -> bool:
        temporary = self._temporary(key, data)
        try:
            return _claim(temporary, self.root / key)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)

    def listing(self, prefix: str, lost: Keys) -> Iterator[tuple[str, tuple[int, str]]]:
        for path in _files(self.root / prefix.rpartition("/")[0], lost):
            key = path.relative_to(self.root).as_posix()
            if key.startswith(prefix) and not path.name.startswith(".tmp-"):
                try:
                    status = path.stat()
                except OSError:
                    if path.is_symlink():  # else deleted since it was listed
                        lost.append(key)
                    continue
                if stat.S_ISREG(status.st_mode):
                    yield key, (status.st_size, str(status.st_mtime_ns))

    def exists(self, key: str) -> bool:
        return (self.root / key).is_file()

    def delete(self, key: str) -> None:
        (self.root / key).unlink(missing_ok=True)

    def _temporary(self, key: str, data: bytes) -> str:
        """Name of a file with the data, synced to disk, that `list` does not show."""
        folder = (self.root / key).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._sweep(folder)
            return _write(folder, data)
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise self._not_writable(folder, error) from None
        except OSError as error:  # a full disk, a quota, a mount that is gone
            raise StoreUnavailableError(f"{folder}: cannot be written ({error.strerror})") from error

    def _not_writable(self, folder: Path, error: OSError) -> UserError:
        remedy = f"Choose another folder with {self.field}=… or change its rights."
        return self._error(f"must be a folder that can be written ({error.strerror}: {folder})", remedy)

    def _error(self, rule: str, remedy: str) -> UserError:
        return UserError(self.field, str(self.root), rule, remedy)

    def _sweep(self, folder: Path) -> None:
        """Once per folder: remove files that killed writers left; no write takes a day."""
        if folder in self.swept:
            return
        self.swept.add(folder)
        for left in folder.glob(".tmp-*"):
            with contextlib.suppress(OSError):  # another process may sweep too
                if time.time() - left.stat().st_mtime > _DAY_S:
                    left.unlink()


def _files(folder: Path, lost: Keys) -> Iterator[Path]:
    """What is no folder under a folder; links are followed. lost: gets what cannot be followed."""
    above: dict[str, tuple[tuple[int, int], ...]] = {}  # folder -> identities of it and of those above it

    def closed(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            lost.append(str(error.filename))

    for place, folders, names in os.walk(folder, followlinks=True, onerror=closed):
        with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
            status, identities = os.stat(place), above.pop(place, ())
            identity = status.st_dev, status.st_ino
            if identity in identities:  # a link led to a folder above
                lost.append(place)
                folders.clear()
                continue
            above |= {os.path.join(place, name): (*identities, identity) for name in folders}
        yield from (Path(place, name) for name in names)


def _write(folder: Path, data: bytes) -> str:
    """Name of a new file with the data, synced to disk."""
    handle, name = tempfile.mkstemp(prefix=".tmp-", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):  # not every file system has rights
            os.chmod(name, 0o644)
    except BaseException:
        os.unlink(name)
        raise
    return name


def _claim(temporary: str, target: str | Path) -> bool:
    """Give a file a second or another name, unless that is taken; returns whether it has it."""
    try:
        os.link(temporary, target)  # unlike rename, it refuses to replace
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # For an instant the target is an empty file.
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            return False
        try:
            os.replace(temporary, target)
        except OSError:
            os.unlink(target)
            raise
    return True
