"""Store: the only place that knows local paths, S3, credentials, retries and atomic writes.

A store is a folder or an `s3://bucket/prefix`; keys are relative, with `/`. A put is atomic or raises; a reader never
sees a part of an object. Credentials and the endpoint come from the environment or the standard AWS chain
(`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...) and are never part of a Store, so a Store can be pickled, printed and
logged.

Requests to a server that fails are retried for a minute, so that a restart of it does not end the work of hours.
"""

import base64
import contextlib
import io
import itertools
import logging
import os
import random
import re
import stat
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from genai_ray.errors import IncompleteError, UserError

T = TypeVar("T")
Keys = list[str]

_PATIENCE_S = 60.0  # since the first failure of a call
_CHECK_PATIENCE_S = 3.0
_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 4.0
_DAY_S = 86_400.0
_MULTIPART_BYTES = 64 << 20
_EXISTS = ("PreconditionFailed", "412")
_BEYOND_END = ("InvalidRange", "416")
_REFUSED = ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken")
# Besides 429 and all of 5xx: the request arrived damaged or too slowly, collided with another one, completed an upload
# whose first response was lost, or was refused with a response that was cut off ("400").
_TRANSIENT = (
    "RequestTimeout",
    "IncompleteBody",
    "BadDigest",
    "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch",
    "ConditionalRequestConflict",
    "OperationAborted",
    "NoSuchUpload",
    "400",
)
_BUCKET = re.compile(r"s3://[A-Za-z0-9._:-]+(/|$)")


class StoreUnavailableError(OSError, IncompleteError):
    """The store failed for longer than requests are retried; the same command resumes later."""


class _TruncatedError(OSError):
    """The data that arrived are not those that were sent."""


class _RefusedError(OSError):
    """The server refuses this request; sending it again does not help."""

    code = ""
    retried = False


class Store:
    """Objects under one URI.

    Raises:
        UserError: from every method, when the store does not exist or refuses the keys.
        StoreUnavailableError: from every method but `check`, when it failed for a minute.
    """

    def __init__(self, uri: str):
        if "://" in uri and not uri.startswith(("s3://", "file://")):
            raise UserError("store", uri, "must be a folder or start with s3://", "Change store.")
        if uri.startswith("s3://") and not _BUCKET.match(uri):
            raise UserError("store", uri, "must name a bucket", "Write s3://bucket/prefix.")
        self.uri = uri.removeprefix("file://").rstrip("/") or "/"
        self._backend: _Local | _S3 | None = None

    def __reduce__(self) -> Any:
        return Store, (self.uri,)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    def at(self, path: str) -> "Store":
        """The store of a subfolder."""
        return Store(f"{self.uri}/{path.strip('/')}")

    def check(self, *, write: bool = True) -> None:
        """Fail before any work is done if the store does not exist or cannot be listed.

        write: a folder must also be writable.

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

    def _open(self) -> "_Local | _S3":
        if self._backend is None:
            self._backend = _S3(self.uri) if self.uri.startswith("s3://") else _Local(self.uri)
        return self._backend


class _Local:
    def __init__(self, uri: str):
        self.root = Path(uri)
        self.swept: set[Path] = set()

    def check(self, *, write: bool) -> None:
        if not write:
            return
        # The first put creates the folder; here only the rights of its parent can be checked.
        folder = self.root
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(
                "store",
                str(self.root),
                f"{folder} must be a folder that can be written",
                "Choose another folder with store=… or change its rights.",
            )

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
            # link, unlike rename, refuses to replace.
            os.link(temporary, self.root / key)
        except FileExistsError:
            return False
        finally:
            os.unlink(temporary)
        return True

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
            handle, name = tempfile.mkstemp(prefix=".tmp-", dir=folder)
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise UserError(
                "store",
                str(self.root),
                f"must be a folder that can be written ({error})",
                "Choose another folder with store=… or change its rights.",
            ) from None
        self._sweep(folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o644)
        except BaseException:
            os.unlink(name)
            raise
        return name

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


class _S3:
    def __init__(self, uri: str):
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        # At INFO, botocore logs the source of the credentials in every process of a job.
        logging.getLogger("botocore").setLevel(logging.WARNING)
        self.uri = uri
        self.bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        config = Config(
            # These retry single requests, such as one part of a large upload; `_call` retries for longer.
            retries={"mode": "standard", "total_max_attempts": 3},
            connect_timeout=3,
            read_timeout=30,
            max_pool_connections=32,
        )
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        try:
            self.client: Any = boto3.Session().client("s3", config=config, region_name=region or "us-east-1")
        except (BotoCoreError, ValueError) as error:
            raise UserError(
                "store",
                uri,
                f"needs AWS settings that can be used ({error})",
                "Check AWS_ENDPOINT_URL (http://host:port) and AWS_PROFILE.",
            ) from None

    def check(self, *, write: bool) -> None:
        try:
            self._call("", self._page, patience_s=_CHECK_PATIENCE_S, MaxKeys=1)
        except StoreUnavailableError as error:
            raise UserError(
                "store",
                self.uri,
                f"must be reachable ({error.__cause__})",
                "Check AWS_ENDPOINT_URL; `genai-ray local up` starts a server on this machine.",
            ) from None

    def read(self, key: str) -> bytes:
        return self._call(key, self._get)

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        if stop <= start:
            return b""
        try:
            return self._call(key, self._get, Range=f"bytes={start}-{stop - 1}")
        except _RefusedError as error:
            if error.code in _BEYOND_END:
                return b""
            raise

    def put(self, key: str, data: bytes) -> None:
        self._call(key, self._upload if len(data) > _MULTIPART_BYTES else self._put, Body=data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        try:
            self._call(key, self._put, Body=data, IfNoneMatch="*")
        except _RefusedError as error:
            if error.code not in _EXISTS:
                raise
            # The response to an earlier attempt may have been lost: then the object is ours.
            with contextlib.suppress(FileNotFoundError):
                return error.retried and self.read(key) == data
            return False
        return True

    def listing(self, prefix: str, lost: Keys) -> Iterator[tuple[str, tuple[int, str]]]:
        token: dict[str, Any] = {}
        while True:
            page = self._call(prefix, self._page, **token)
            for entry in page.get("Contents", ()):
                yield entry["Key"][len(self.prefix) :], (entry["Size"], entry.get("ETag", ""))
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def exists(self, key: str) -> bool:
        try:
            self._call(key, self.client.head_object)
        except FileNotFoundError:
            return False
        return True

    def delete(self, key: str) -> None:
        self._call(key, self.client.delete_object)

    # --- requests --------------------------------------------------------------------------------

    def _get(self, **arguments: Any) -> bytes:
        answer = self.client.get_object(**arguments)
        data = answer["Body"].read()
        if len(data) != answer["ContentLength"]:
            raise _TruncatedError(f"{len(data)} of {answer['ContentLength']} bytes arrived")
        return data

    def _put(self, Body: bytes, **arguments: Any) -> None:
        # The request carries the body's length, SHA-256 and CRC32; a server keeps nothing if they do not match.
        answer = self.client.put_object(Body=Body, **arguments)
        stored = answer.get("ChecksumCRC32")
        if stored and base64.b64decode(stored) != zlib.crc32(Body).to_bytes(4, "big"):
            raise _TruncatedError(f"the server stored a body with CRC32 {stored}")

    def _upload(self, Body: bytes, **arguments: Any) -> None:
        # A multipart upload: the object becomes visible when the last part is confirmed.
        self.client.upload_fileobj(io.BytesIO(Body), **arguments)

    def _page(self, Key: str, **arguments: Any) -> dict[str, Any]:
        return self.client.list_objects_v2(Prefix=Key, **arguments)

    def _call(self, key: str, request: Callable[..., T], *, patience_s: float | None = None, **arguments: Any) -> T:
        """Make a request until it is answered or patience ends."""
        deadline = None
        for failed in itertools.count():
            try:
                return request(Bucket=self.bucket, Key=self.prefix + key, **arguments)
            except Exception as error:
                if not _passes(error):
                    self._refused(error, key, failed)
                now = time.monotonic()
                patience = _PATIENCE_S if patience_s is None else patience_s
                deadline = deadline or now + patience
                if now >= deadline:
                    raise StoreUnavailableError(f"{self.uri}: failed for {patience:g} s ({error})") from error
                # Jitter, so that many workers do not come back at once; no sample depends on it.
                pause = min(_PAUSE_S * 2**failed, _LONGEST_PAUSE_S) * random.uniform(0.5, 1)
                time.sleep(min(pause, deadline - now))
        raise AssertionError

    def _refused(self, error: Exception, key: str, failed: int) -> NoReturn:
        """Raise a UserError for what a user can correct, a FileNotFoundError for a missing key."""
        from botocore import exceptions

        if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
            remedy = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a folder: store=runs."
            raise UserError("store", self.uri, "needs credentials and there are none", remedy) from None
        if not isinstance(error, exceptions.ClientError):
            raise error
        code = error.response.get("Error", {}).get("Code", "")
        if code in ("NoSuchKey", "404"):
            raise FileNotFoundError(f"{self.uri}: no object {key}") from None
        if code == "NoSuchBucket":
            raise UserError(
                "store", self.uri, f"bucket {self.bucket!r} does not exist", "Create it or correct the name."
            ) from None
        if code in _REFUSED:
            raise UserError(
                "store",
                self.uri,
                f"the server refuses the credentials ({code})",
                "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy.",
            ) from None
        refused = _RefusedError(f"{self.uri}: {key} is refused ({error})")
        refused.code = code
        retries = error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0)
        refused.retried = failed + retries > 0
        raise refused from None


def _passes(error: Exception) -> bool:
    """Whether a failure may be transient."""
    import urllib3
    from botocore import exceptions, parsers

    if isinstance(error, exceptions.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        code = error.response.get("Error", {}).get("Code", "")
        # 501: the server does not support the request.
        return status == 429 or (status >= 500 and status != 501) or code in _TRANSIENT
    return isinstance(
        error,
        exceptions.ConnectionError  # refused, unknown host, TLS
        | exceptions.HTTPClientError  # closed, reset, too slow
        | exceptions.IncompleteReadError
        | exceptions.FlexibleChecksumError
        | urllib3.exceptions.HTTPError  # while botocore reads the body of an error response
        | parsers.ResponseParserError
        | _TruncatedError,
    )
