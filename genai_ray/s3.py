"""Objects in a bucket of an S3 server: requests, retries, and what a refusal means to a user.

Credentials, region and endpoint come from the environment or the standard AWS chain (`AWS_ACCESS_KEY_ID`,
`AWS_PROFILE`, `AWS_ENDPOINT_URL`, ...). Requests to a server that fails are retried for a minute, so that a restart
of it does not end the work of hours.
"""

import base64
import contextlib
import io
import ipaddress
import itertools
import logging
import os
import random
import secrets
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from genai_ray.errors import IncompleteError, UserError

T = TypeVar("T")

_PATIENCE_S = 60.0  # since the first failure of a call
_CHECK_PATIENCE_S = 3.0
_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 4.0
_CLOCK_SKEW_S = 900.0  # from which AWS refuses a signature
_MULTIPART_BYTES = 64 << 20
_EXISTS = ("PreconditionFailed", "412")
_BEYOND_END = ("InvalidRange", "416")
_CREDENTIALS = ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken")
_REGION = (
    "PermanentRedirect",
    "TemporaryRedirect",
    "301",
    "307",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
)
_OF_ONE_OBJECT = ("GetObject", "HeadObject", "DeleteObject")
_UPLOADS = ("PutObject", "CreateMultipartUpload", "UploadPart")
_UNKNOWN_UPLOAD = ("NotImplemented", "InvalidArgument", "InvalidRequest", "MissingContentLength", "501")
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


class StoreUnavailableError(OSError, IncompleteError):
    """The store failed for longer than requests are retried; the same command resumes later."""


class _TruncatedError(OSError):
    """The data that arrived are not those that were sent."""


class _ExpectedError(OSError):
    """The server refuses a request for a reason that its caller handles. retried: it was sent before."""

    retried = False


class S3:
    """The objects below s3://bucket/prefix; what the methods do is said in `storage.Store`.

    field: of the spec, which errors name.
    """

    def __init__(self, uri: str, field: str):
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        # At INFO, botocore logs the source of the credentials in every process of a job.
        logging.getLogger("botocore").setLevel(logging.WARNING)
        self.uri, self.field = uri, field
        self.bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        self.prefix = f"{prefix}/" if prefix else ""
        config = Config(
            # These retry single requests, such as one part of a large upload; `_call` retries for longer.
            retries={"mode": "standard", "total_max_attempts": 3},
            connect_timeout=3,
            read_timeout=30,
            max_pool_connections=32,
        )
        try:
            session = boto3.Session()
            # boto3 reads AWS_DEFAULT_REGION and the profile, but not AWS_REGION, as other SDKs do.
            region = os.environ.get("AWS_REGION") or session.region_name or "us-east-1"
            self.client: Any = session.client("s3", config=config, region_name=region)
            if _is_loopback(self.host):
                # The proxies of the environment lie outside this machine.
                config = config.merge(Config(proxies={}))
                self.client = session.client("s3", config=config, region_name=region)
        except OSError as error:
            self._refuse_credentials(error)
        except (BotoCoreError, ValueError) as error:
            raise UserError(
                field,
                uri,
                f"needs AWS settings that can be used ({error})",
                "Check AWS_ENDPOINT_URL (http://host:port) and AWS_PROFILE.",
            ) from None

    @property
    def host(self) -> str:
        return urlsplit(self.client.meta.endpoint_url).hostname or ""

    def check(self, *, write: bool) -> None:
        try:
            page = self._call("", self._page, patience_s=_CHECK_PATIENCE_S, MaxKeys=1)
            self._check_clock(page["ResponseMetadata"]["HTTPHeaders"].get("date"))
            if write:
                self._check_writes()
        except StoreUnavailableError as error:
            raise UserError(
                self.field,
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
            return self._call(key, self._get, expected=_BEYOND_END, Range=f"bytes={start}-{stop - 1}")
        except _ExpectedError:
            return b""

    def put(self, key: str, data: bytes, *, patience_s: float | None = None) -> None:
        request = self._upload if len(data) > _MULTIPART_BYTES else self._put
        self._call(key, request, patience_s=patience_s, Body=data)

    def put_if_absent(self, key: str, data: bytes, *, patience_s: float | None = None) -> bool:
        try:
            self._call(key, self._put, patience_s=patience_s, expected=_EXISTS, Body=data, IfNoneMatch="*")
        except _ExpectedError as error:
            # The response to an earlier attempt may have been lost: then the object is ours.
            with contextlib.suppress(FileNotFoundError):
                return error.retried and self.read(key) == data
            return False
        return True

    def listing(self, prefix: str, lost: list[str]) -> Iterator[tuple[str, tuple[int, str]]]:
        """lost: stays as it is, for there are no links."""
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
        with contextlib.suppress(FileNotFoundError):
            self._call(key, self.client.delete_object)

    # --- what a run rests on ---------------------------------------------------------------------

    def _check_clock(self, date: str | None) -> None:
        """date: of a response."""
        if date is None:
            return
        try:
            told = parsedate_to_datetime(date)
        except ValueError:
            return  # a server that writes no date of HTTP
        skew = abs(time.time() - (told if told.tzinfo else told.replace(tzinfo=UTC)).timestamp())
        if skew > _CLOCK_SKEW_S:
            self._refuse_clock(f" by {skew:.0f} s")

    def _refuse_clock(self, by: str) -> NoReturn:
        rule = f"the clocks of {self.host} and of this machine differ{by}, and signatures hold for 15 minutes"
        raise UserError(self.field, self.uri, rule, "Set the clock, as by `timedatectl set-ntp true`.") from None

    def _check_writes(self) -> None:
        """Write an object, write it again if absent, delete it."""
        key = f"_check/{secrets.token_hex(8)}"
        self.put(key, b"1", patience_s=_CHECK_PATIENCE_S)
        remedy = "Use a server that has conditional writes (AWS, MinIO, SeaweedFS, Ceph), or a folder."
        try:
            ignored = self.put_if_absent(key, b"2", patience_s=_CHECK_PATIENCE_S)
        except UserError as error:  # of a write that is refused for its condition
            raise UserError(self.field, self.uri, error.rule, remedy) from None
        finally:
            self.delete(key)
        if ignored:
            rule = f"must have conditional writes, which keep two drivers apart, and {self.host} ignores If-None-Match"
            raise UserError(self.field, self.uri, rule, remedy)

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

    def _call(
        self,
        key: str,
        request: Callable[..., T],
        *,
        patience_s: float | None = None,
        expected: tuple[str, ...] = (),
        **arguments: Any,
    ) -> T:
        """Make a request until it is answered or patience ends. expected: codes for which _ExpectedError is raised."""
        deadline = None
        for failed in itertools.count():
            try:
                return request(Bucket=self.bucket, Key=self.prefix + key, **arguments)
            except Exception as error:
                if not _passes(error):
                    self._refused(error, key, failed, expected)
                now = time.monotonic()
                patience = _PATIENCE_S if patience_s is None else patience_s
                deadline = deadline or now + patience
                if now >= deadline:
                    raise StoreUnavailableError(f"{self.uri}: failed for {patience:g} s ({error})") from error
                # Jitter, so that many workers do not come back at once; no sample depends on it.
                pause = min(_PAUSE_S * 2**failed, _LONGEST_PAUSE_S) * random.uniform(0.5, 1)
                time.sleep(min(pause, deadline - now))
        raise AssertionError

    def _refused(self, error: Exception, key: str, failed: int, expected: tuple[str, ...]) -> NoReturn:
        """Raise an _ExpectedError, a FileNotFoundError for a missing key, a UserError for any other refusal."""
        from botocore import exceptions

        if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
            remedy = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a folder."
            raise UserError(self.field, self.uri, "needs credentials and there are none", remedy) from None
        if isinstance(error, RecursionError):  # botocore asks a server that redirects without end for the region
            self._refuse_region("")
        if isinstance(error, exceptions.BotoCoreError):  # such as a login that ended, or a name no bucket can have
            remedy = "Check AWS_PROFILE and the name of the bucket."
            raise UserError(self.field, self.uri, f"needs AWS settings that can be used ({error})", remedy) from None
        if isinstance(error, OSError):
            self._refuse_credentials(error)
        if not isinstance(error, exceptions.ClientError):
            raise error
        details = error.response.get("Error", {})
        code = details.get("Code", "")
        if code in expected:
            answer = _ExpectedError(f"{self.uri}: {key} ({error})")
            answer.retried = failed + error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0) > 0
            raise answer from None
        if code in ("NoSuchKey", "404") and error.operation_name in _OF_ONE_OBJECT:
            raise FileNotFoundError(f"{self.uri}: no object {key}") from None
        if code in _REGION:
            self._refuse_region(details.get("Region", ""))
        if code == "RequestTimeTooSkewed":
            self._refuse_clock("")
        rule, remedy = self._explained(code, error.operation_name, key, details.get("Message", ""))
        raise UserError(self.field, self.uri, rule, remedy) from None

    def _refuse_credentials(self, error: OSError) -> NoReturn:
        """error: of a file or a program that gives credentials, which must not pass for that of a missing object."""
        remedy = "Check what AWS_CONFIG_FILE, AWS_PROFILE and AWS_WEB_IDENTITY_TOKEN_FILE name."
        raise UserError(self.field, self.uri, f"needs credentials that can be read ({error})", remedy) from None

    def _refuse_region(self, region: str) -> NoReturn:
        rule = f"{self.host} redirects requests for bucket {self.bucket!r} to another region than "
        known = f"AWS_REGION={region}" if region else "AWS_REGION to the region of the bucket"
        remedy = f"Set {known}; for a server outside AWS set AWS_ENDPOINT_URL to its own address."
        raise UserError(self.field, self.uri, f"{rule}{self.client.meta.region_name}", remedy) from None

    def _explained(self, code: str, operation: str, key: str, message: str) -> tuple[str, str]:
        """Rule and remedy of a refusal that only the user can mend."""
        if code == "NoSuchBucket":
            return f"bucket {self.bucket!r} does not exist", "Create it or correct the name."
        if code in _CREDENTIALS:
            remedy = "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy."
            return f"the server refuses the credentials ({code}) for {operation}", remedy
        rule = f"{self.host} refuses {operation} of {key or 'the bucket'} ({code}: {message})"
        if operation in _UPLOADS and code in _UNKNOWN_UPLOAD:
            setting = "AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
            return rule, f"Set {setting}, which uploads without aws-chunked, and check that the server is one of S3."
        return rule, "Check AWS_ENDPOINT_URL, AWS_REGION and AWS_PROFILE, and what this server supports."


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


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
