"""Store: the only place that knows local paths, S3, credentials, retries and atomic writes.

A store is a folder or an `s3://bucket/prefix`; keys are relative, with `/`. A put is whole or
raises; a reader never sees a part of an object. Credentials and the endpoint come from the
environment or the standard AWS chain (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...) and are never
part of a Store, so a Store can be pickled, printed and logged.
"""

import contextlib
import io
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from genai_ray.errors import UserError

_MULTIPART_BYTES = 64 << 20
_EXISTS = ("PreconditionFailed", "412", "ConditionalRequestConflict")
_REFUSED = ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken",
            "InvalidToken")  # fmt: skip
_BUCKET = re.compile(r"s3://[A-Za-z0-9._:-]+(/|$)")


class Store:
    """Objects under one URI.

    Raises:
        UserError: from every method, when the store does not exist or refuses the keys.
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
        """The store one or more folders further down."""
        return Store(f"{self.uri}/{path.strip('/')}")

    def check(self) -> None:
        """Fail now if the store is not there or may not be listed, before any work is done."""
        self._open().check()

    def read(self, key: str) -> bytes:
        """The whole object.

        Raises:
            FileNotFoundError: if there is no such object.
        """
        return self._open().read(key)

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Bytes start..stop-1 of an object, fewer where it ends before.

        Raises:
            FileNotFoundError: if there is no such object.
        """
        return self._open().read_range(key, start, stop)

    def put(self, key: str, data: bytes) -> None:
        """Write or replace an object, whole."""
        self._open().put(key, data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless it exists; says whether it was written. Atomic between writers."""
        return self._open().put_if_absent(key, data)

    def list(self, prefix: str = "") -> list[str]:
        """Sorted keys that begin with a prefix."""
        return sorted(self.sizes(prefix))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Keys that begin with a prefix, and the bytes of each."""
        return dict(self._open().sizes(prefix))

    def exists(self, key: str) -> bool:
        return self._open().exists(key)

    def delete(self, key: str) -> None:
        """Remove an object; none there is fine."""
        self._open().delete(key)

    def _open(self) -> "_Local | _S3":
        if self._backend is None:
            self._backend = _S3(self.uri) if self.uri.startswith("s3://") else _Local(self.uri)
        return self._backend


class _Local:
    def __init__(self, uri: str):
        self.root = Path(uri)

    def check(self) -> None:
        # A folder is made by the first put; what can be known now is whether its parent allows it.
        there = self.root
        while not there.exists():
            there = there.parent
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise UserError(
                "store", str(self.root), f"{there} must be a folder that can be written",
                "Choose another folder with store=… or change its rights.",
            )  # fmt: skip

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

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        folder = self.root / prefix.rpartition("/")[0]
        for path in folder.rglob("*"):
            key = path.relative_to(self.root).as_posix()
            if key.startswith(prefix) and not path.name.startswith(".tmp-") and path.is_file():
                with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                    yield key, path.stat().st_size

    def exists(self, key: str) -> bool:
        return (self.root / key).is_file()

    def delete(self, key: str) -> None:
        (self.root / key).unlink(missing_ok=True)

    def _temporary(self, key: str, data: bytes) -> str:
        """The data, safe on disk under a name that list() does not show."""
        folder = (self.root / key).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=".tmp-", dir=folder)
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise UserError(
                "store", str(self.root), f"must be a folder that can be written ({error})",
                "Choose another folder with store=… or change its rights.",
            ) from None  # fmt: skip
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


class _S3:
    def __init__(self, uri: str):
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        # At INFO it tells, in every process of a job, where it found credentials.
        logging.getLogger("botocore").setLevel(logging.WARNING)
        self.uri = uri
        self.bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        config = Config(
            retries={"mode": "standard", "total_max_attempts": 8},
            connect_timeout=10,
            read_timeout=60,
            max_pool_connections=32,
        )
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        try:
            self.client: Any = boto3.Session().client(
                "s3", config=config, region_name=region or "us-east-1"
            )
        except (BotoCoreError, ValueError) as error:
            raise UserError(
                "store", uri, f"needs AWS settings that can be used ({error})",
                "Check AWS_ENDPOINT_URL (http://host:port) and AWS_PROFILE.",
            ) from None  # fmt: skip

    def check(self) -> None:
        self._call("list_objects_v2", Prefix=self.prefix, MaxKeys=1)

    def read(self, key: str) -> bytes:
        return self._call("get_object", Key=self.prefix + key, then=lambda r: r["Body"].read())

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        if stop <= start:
            return b""
        return self._call(
            "get_object", Key=self.prefix + key, Range=f"bytes={start}-{stop - 1}",
            then=lambda r: r["Body"].read(),
        )  # fmt: skip

    def put(self, key: str, data: bytes) -> None:
        if len(data) > _MULTIPART_BYTES:
            # A multipart upload becomes visible only when its last part is confirmed.
            self._call(
                "upload_fileobj", Fileobj=io.BytesIO(data), Key=self.prefix + key
            )  # fmt: skip
        else:
            self._call("put_object", Key=self.prefix + key, Body=data)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        try:
            self._call("put_object", Key=self.prefix + key, Body=data, IfNoneMatch="*")
        except ClientError as error:
            if error.response["Error"]["Code"] in _EXISTS:
                return False
            raise
        return True

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        token: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", Prefix=self.prefix + prefix, **token)
            for entry in page.get("Contents", ()):
                yield entry["Key"][len(self.prefix) :], entry["Size"]
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def exists(self, key: str) -> bool:
        try:
            self._call("head_object", Key=self.prefix + key)
        except FileNotFoundError:
            return False
        return True

    def delete(self, key: str) -> None:
        self._call("delete_object", Key=self.prefix + key)

    def _call(self, operation: str, then: Any = None, **arguments: Any) -> Any:
        """Call S3; what a user can mend becomes a UserError, a missing key a FileNotFoundError."""
        from botocore import exceptions

        try:
            answer = getattr(self.client, operation)(Bucket=self.bucket, **arguments)
            return then(answer) if then else answer
        except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError):
            raise UserError(
                "store", self.uri, "needs credentials and there are none",
                "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a folder: store=runs.",
            ) from None  # fmt: skip
        except exceptions.ConnectionError as error:  # refused, unknown host, timeout, TLS
            raise UserError(
                "store", self.uri, f"must be reachable ({error})",
                "Check AWS_ENDPOINT_URL; `genai-ray local up` starts a server on this machine.",
            ) from None  # fmt: skip
        except exceptions.ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in ("NoSuchKey", "404"):
                raise FileNotFoundError(f"{self.uri}: no object {arguments.get('Key')}") from None
            if code == "NoSuchBucket":
                raise UserError(
                    "store", self.uri, f"bucket {self.bucket!r} does not exist",
                    "Create it or correct the name.",
                ) from None  # fmt: skip
            if code in _REFUSED:
                raise UserError(
                    "store", self.uri, f"the server refuses the credentials ({code})",
                    "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy.",
                ) from None  # fmt: skip
            raise
