"""The check before the work tries what the work rests on, and says what to change where it cannot do that."""

import errno
import http.server
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from genai_ray.errors import IncompleteError, UserError
from genai_ray.storage import Store

ERROR = "<Error><Code>{}</Code><Message>{}</Message></Error>"
EMPTY = "<ListBucketResult><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>"


class S3Server(http.server.ThreadingHTTPServer):
    """Holds objects in a dictionary, as a small S3 server does.

    kind: in what it differs from a whole one. requests: methods, in order.
    """

    daemon_threads = True

    def __init__(self, kind: str):
        self.kind, self.objects, self.requests = kind, dict[str, bytes](), list[str]()
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: S3Server
    protocol_version = "HTTP/1.1"

    def date_time_string(self, timestamp: float | None = None) -> str:
        if self.server.kind == "no date":
            return "yesterday"
        if self.server.kind == "no zone":
            return formatdate(time.time())
        return formatdate(time.time() + (3600 if self.server.kind == "fast clock" else 0), usegmt=True)

    def answer(self, status: int, body: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body.encode())

    def do_GET(self) -> None:
        kind = self.server.kind
        self.server.requests.append(self.command)
        if kind == "no S3":
            self.answer(404, "<html>Not Found</html>")
        elif kind == "redirects":
            self.answer(301, ERROR.format("PermanentRedirect", "elsewhere"))
        elif kind == "old signatures":
            self.answer(400, ERROR.format("InvalidRequest", "The authorization mechanism is not supported."))
        elif kind == "other region":
            error = ERROR.format("AuthorizationHeaderMalformed", "wrong region").replace("</M", "</M", 1)
            self.answer(400, error.replace("</Error>", "<Region>eu-central-9</Region></Error>"))
        else:
            self.answer(200, EMPTY)

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        kind, key = self.server.kind, self.path
        self.server.requests.append(self.command)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        conditional = self.headers["If-None-Match"] is not None
        if kind == "read-only":
            self.answer(403, ERROR.format("AccessDenied", "no"))
        elif kind == "no chunks":
            self.answer(501, ERROR.format("NotImplemented", "aws-chunked is not supported"))
        elif kind == "no conditions" and conditional:
            self.answer(501, ERROR.format("NotImplemented", "If-None-Match is not supported"))
        elif conditional and key in self.server.objects and kind != "ignores conditions":
            self.answer(412, ERROR.format("PreconditionFailed", "exists"))
        else:
            self.server.objects[key] = body
            self.answer(200)

    def do_DELETE(self) -> None:
        self.server.requests.append(self.command)
        self.server.objects.pop(self.path, None)
        self.answer(204)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], S3Server]]:
    """Starts servers; the last one is that of the environment."""
    servers: list[S3Server] = []

    def start(kind: str) -> S3Server:
        server = S3Server(kind)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        return server

    configure(monkeypatch, tmp_path, "")
    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def configure(monkeypatch: pytest.MonkeyPatch, folder: Path, profile: str) -> None:
    """Keys, and nothing else than a config file of these lines."""
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    (folder / "config").write_text(profile)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "none"))


@pytest.mark.parametrize(
    "profile",
    ["credential_process = /no/program", "role_arn = arn:aws:iam::1:role/r\nweb_identity_token_file = /no/token"],
)
def test_credentials_that_cannot_be_read_are_no_missing_object(
    serve: Callable[[str], S3Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, profile: str
):
    serve("")
    configure(monkeypatch, tmp_path, f"[default]\n{profile}\n")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"credentials that can be read.*/no/") as caught:
        Store("s3://b/x").exists("a")
    assert "AWS_CONFIG_FILE" in caught.value.remedy


# --- buckets -------------------------------------------------------------------------------------


def test_a_whole_server_passes_with_a_few_requests_and_keeps_nothing(serve: Callable[[str], S3Server]):
    server = serve("")
    Store("s3://b/x").check()
    assert server.objects == {}
    assert server.requests == ["GET", "PUT", "PUT", "DELETE"]
    Store("s3://b/x").check(write=False)
    assert server.requests[4:] == ["GET"]


@pytest.mark.parametrize("kind", ["no date", "no zone"])
def test_a_server_may_write_dates_of_its_own(serve: Callable[[str], S3Server], kind: str):
    serve(kind)
    Store("s3://b/x").check()


@pytest.mark.parametrize(
    ("kind", "rule", "remedy"),
    [
        ("no S3", "127.0.0.1 refuses ListObjectsV2 of the bucket", "AWS_ENDPOINT_URL"),
        ("read-only", r"refuses the credentials \(AccessDenied\) for PutObject", "policy"),
        ("no chunks", r"127.0.0.1 refuses PutObject .*\(NotImplemented: aws-chunked", "_CALCULATION=when_required"),
        ("no conditions", r"127.0.0.1 refuses PutObject .*\(NotImplemented: If-None-Match", "conditional writes (AWS"),
        ("ignores conditions", "127.0.0.1 ignores If-None-Match", "folder"),
        ("redirects", "127.0.0.1 redirects .* to another region than us-east-1", "AWS_REGION"),
        ("other region", "to another region than us-east-1", "AWS_REGION=eu-central-9"),
        ("old signatures", r"127.0.0.1 refuses ListObjectsV2 .*\(InvalidRequest: The authoriz", "AWS_PROFILE"),
        ("fast clock", r"clocks of 127.0.0.1 and of this machine differ by 3\d\d\d s", "clock"),
    ],
)
def test_what_a_server_cannot_do_is_found_at_the_start(
    serve: Callable[[str], S3Server], kind: str, rule: str, remedy: str
):
    server = serve(kind)
    with pytest.raises(UserError, match=rule) as caught:
        Store("s3://b/x").check()
    assert caught.value.field == "store"
    assert remedy in caught.value.remedy
    assert server.objects == {}


def test_a_refusal_in_the_middle_of_the_work_is_an_error_of_the_user_too(serve: Callable[[str], S3Server]):
    serve("no chunks")
    with pytest.raises(UserError, match=r"127.0.0.1 refuses PutObject of a/b \(NotImplemented"):
        Store("s3://b/x").put("a/b", b"1")


@pytest.mark.parametrize(
    ("profile", "variable", "region", "host"),
    [
        ("", "", "us-east-1", "amazonaws.com"),
        ("[default]\nregion = eu-central-9\n", "", "eu-central-9", "s3.eu-central-9.amazonaws.com"),
        ("[default]\nregion = cn-north-1\n", "", "cn-north-1", "s3.cn-north-1.amazonaws.com.cn"),
        ("[default]\nregion = cn-north-1\n", "AWS_REGION", "eu-west-1", "s3.eu-west-1.amazonaws.com"),
        ("[default]\nregion = cn-north-1\n", "AWS_DEFAULT_REGION", "eu-west-1", "s3.eu-west-1.amazonaws.com"),
    ],
)
def test_the_region_of_the_profile_holds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, profile: str, variable: str, region: str, host: str
):
    configure(monkeypatch, tmp_path, profile)
    if variable:
        monkeypatch.setenv(variable, region)
    backend: Any = Store("s3://b/x")._open()
    assert backend.client.meta.region_name == region
    assert backend.host.endswith(host)


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_a_server_on_this_machine_is_reached_without_a_proxy(
    serve: Callable[[str], S3Server], monkeypatch: pytest.MonkeyPatch, variable: str
):
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    serve("")
    Store("s3://b/x").check()


def test_a_server_elsewhere_is_reached_by_the_proxy(serve: Callable[[str], S3Server], monkeypatch: pytest.MonkeyPatch):
    proxy = serve("")
    monkeypatch.setenv("http_proxy", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://storage.example:9000")
    Store("s3://b/x").check()
    assert proxy.requests == ["GET", "PUT", "PUT", "DELETE"]


# --- folders -------------------------------------------------------------------------------------


def left_in(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob("*")]


def test_a_folder_is_tried_and_nothing_is_left(tmp_path: Path):
    Store(str(tmp_path / "a" / "b")).check()
    assert left_in(tmp_path) == []


@pytest.fixture(params=[errno.EPERM, errno.ENOTSUP, errno.ENOSYS], ids=["FAT", "SMB", "FUSE"])
def linkless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without hard links, such as this machine has none."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("linkless")
def test_without_hard_links_one_writer_wins_all_the_same(tmp_path: Path):
    store = Store(str(tmp_path))
    store.check()
    assert left_in(tmp_path) == []
    wins: list[bytes] = []
    start = threading.Barrier(8)

    def write(content: bytes) -> None:
        start.wait()
        if Store(str(tmp_path)).put_if_absent("key", content):
            wins.append(content)

    writers = [threading.Thread(target=write, args=(b"%d" % i,)) for i in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    assert [store.read("key")] == wins
    assert left_in(tmp_path) == ["key"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that nobody can write")
def test_a_file_system_that_takes_no_files_is_found_at_the_start():
    with pytest.raises(UserError, match="must be a folder that can be written") as caught:
        Store("/proc/store").check()
    assert "store=" in caught.value.remedy


def test_a_disk_that_is_full_stops_the_work_and_it_resumes(tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(IncompleteError, match="cannot be written"):
            Store(str(tmp_path)).put("a", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_the_folder_of_a_job_is_no_store(tmp_path: Path):
    package = tmp_path / "session_1" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    package.mkdir(parents=True)
    with pytest.raises(UserError, match="lies in the folder that Ray made for this job") as caught:
        Store(str(package / "runs")).check()
    assert "store=s3://" in caught.value.remedy
    Store(str(package)).check(write=False)


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["hf://datasets/u/x", "gs://b/x", "https://host/x.zip"])
@pytest.mark.parametrize("field", ["store", "data.root"])
def test_an_error_names_the_field_that_holds_the_uri(uri: str, field: str):
    with pytest.raises(UserError) as caught:
        Store(uri, field)
    assert (caught.value.field, caught.value.value) == (field, uri)


@pytest.mark.parametrize("uri", ["s3a://b/x", "S3://b/x", "s3n://b/x"])
def test_the_uris_of_other_programs_are_told_how_to_be_written(uri: str):
    with pytest.raises(UserError, match=r"Write s3://b/x\."):
        Store(uri)


def test_a_store_is_shared_if_it_is_a_bucket_or_declared_so():
    import pickle

    shared = {"/a": False, "file:///a": True, "s3://b/x": True}
    for uri, expected in shared.items():
        for store in (Store(uri), Store(uri).at("x"), pickle.loads(pickle.dumps(Store(uri).at("x")))):
            assert store.shared == expected
            assert "file:" not in store.uri
