"""The embedded stack for one machine: a Ray head with its jobs API, and a SeaweedFS S3 server.

Both listen on 127.0.0.1 and require generated keys. `up` starts them, `down` stops the processes that `up` started and
no others; the objects stay in the folder and are served again after the next `up`.
"""

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from genai_ray.errors import IncompleteError, UserError
from genai_ray.storage import Store

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

BUCKET = "genai"
#: The bucket of the Iceberg catalog, whose tables refer to files in other buckets.
WAREHOUSE = "warehouse"
HOST = "127.0.0.1"
# Ray replaces 127.0.0.1 by the machine's outside address but keeps other loopback addresses, which only Linux has
# without set-up.
_RAY_HOST = "127.0.0.2" if sys.platform == "linux" else HOST
DEFAULT_FOLDER = Path(".genai-ray")
_START_DEADLINE_S = 90.0
_STOP_DEADLINE_S = 5.0
_SILENCE_DEADLINE_S = 60.0  # without a line of a job's log, after which its status is polled
_REPORTS = ("report.html", "preview.png", "quality.json")


@dataclass(frozen=True)
class Stack:
    """A running stack. processes: pid -> creation time, since the system reuses pids."""

    folder: str
    s3_port: int
    dashboard_port: int
    gcs_port: int
    access_key: str
    secret_key: str = field(repr=False)
    token: str = field(repr=False)
    scratch: str = ""
    iceberg_port: int = 0
    agent_port: int = 0
    processes: dict[str, float] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs: S3 endpoint and keys, the Iceberg catalog as pyiceberg's `default`, address and token of
        the jobs API, and no proxy on the way to them.
        """
        catalog = {
            "TYPE": "rest",
            "URI": f"http://{HOST}:{self.iceberg_port}",
            "WAREHOUSE": f"s3://{WAREHOUSE}",
            "CREDENTIAL": f"{self.access_key}:{self.secret_key}",
            "S3__ENDPOINT": f"http://{HOST}:{self.s3_port}",
            "S3__REGION": "us-east-1",
        }
        direct = _direct_hosts()
        return {
            **{f"PYICEBERG_CATALOG__DEFAULT__{name}": value for name, value in catalog.items()},
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": f"http://{HOST}:{self.s3_port}",
            "AWS_REGION": "us-east-1",
            "RAY_API_SERVER_ADDRESS": f"http://{HOST}:{self.dashboard_port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "no_proxy": direct,
            "NO_PROXY": direct,
        }

    @property
    def alive(self) -> bool:
        return bool(self.processes) and all(_ours(self.processes))


def up(
    folder: Path = DEFAULT_FOLDER,
    *,
    s3_port: int | None = None,
    dashboard_port: int | None = None,
    gcs_port: int | None = None,
    with_ray: bool = True,
) -> Stack:
    """Start the servers unless they run; a port that is not given is any free one.

    Raises:
        UserError: for a port in use.
        IncompleteError: if a server does not answer within 90 s; nothing is left running.
    """
    folder = folder.resolve()
    previous = find(folder)
    if previous is not None and previous.alive:
        return previous
    down(folder)
    stack = Stack(
        folder=str(folder),
        s3_port=_port("--s3-port", s3_port),
        dashboard_port=_port("--dashboard-port", dashboard_port),
        gcs_port=_port("--gcs-port", gcs_port),
        # The object store keeps its keys.
        access_key=previous.access_key if previous else secrets.token_hex(10).upper(),
        secret_key=previous.secret_key if previous else secrets.token_urlsafe(30),
        token=secrets.token_hex(32),
        # Holds sockets, whose paths must be short.
        scratch=tempfile.mkdtemp(prefix="genai-ray-"),
        iceberg_port=_free_port(),
        agent_port=_free_port(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    _save(stack)
    try:
        _start(stack, "s3", _s3_command(stack), lambda: answers(stack))
        if with_ray:
            _start(stack, "ray", _ray_command(stack), lambda: _ray_answers(stack))
    except BaseException:
        down(folder)
        raise
    return stack


def down(folder: Path = DEFAULT_FOLDER) -> bool:
    """Stop the stack's processes with all their children; returns whether any was running."""
    folder = folder.resolve()
    stack = find(folder)
    if stack is None:
        return False
    family = [p for parent in _ours(stack.processes) if parent for p in (parent, *_children(parent))]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, survivors = psutil.wait_procs(family, timeout=_STOP_DEADLINE_S)
    for process in survivors:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(survivors, timeout=_STOP_DEADLINE_S)
    shutil.rmtree(stack.scratch, ignore_errors=True)
    stack.processes.clear()
    _save(stack)
    return bool(family)


def find(folder: Path = DEFAULT_FOLDER) -> Stack | None:
    """The stack of a folder, running or not; None if there never was one."""
    try:
        return Stack(**json.loads((folder.resolve() / "stack.json").read_text()))
    except FileNotFoundError:
        return None


def run_job(
    spec_path: str, overrides: Sequence[str], output: Path, *, folder: Path, then: Callable[[str], None]
) -> int:
    """Start the stack, submit the pipeline of a spec as a job, follow it, fetch its report, stop the stack.

    Returns the exit code of the job. After a successful one, `then` is called with the URI of the run.
    """
    from genai_ray import modalities

    spec = modalities.load(spec_path, overrides)
    # A stack that is still up belongs to a call that was killed, and may still be working on this run.
    down(folder)
    with running(folder) as stack, environment(stack.environment):
        code = run_command(stack, ["python", "jobs/pipeline.py", spec_path, *overrides])
        report = Store(spec.run_uri).at(spec.report)
        output.mkdir(parents=True, exist_ok=True)
        for name in _REPORTS:
            if report.exists(name):
                (output / name).write_bytes(report.read(name))
        if code == 0:
            then(spec.run_uri)
    return code


@contextlib.contextmanager
def running(folder: Path = DEFAULT_FOLDER, *, with_ray: bool = True) -> Iterator[Stack]:
    """A stack that is up within a `with` block."""
    try:
        yield up(folder, with_ray=with_ray)
    finally:
        down(folder)


# --- a job -----------------------------------------------------------------------------------------------------------


def run_command(stack: Stack, command: Sequence[str]) -> int:
    """Run a command as a job in a copy of the current folder and print its log until it ends.

    The environment must be that of the stack. Returns the exit code of the command; 3 if it was killed or never
    started.

    Raises:
        IncompleteError: if the jobs API fails or stops answering.
    """
    from aiohttp import ClientError
    from ray.job_submission import JobSubmissionClient

    for handler in logging.getLogger("ray").handlers:
        handler.setLevel(logging.WARNING)  # it logs each file that is left out of the upload
    entrypoint = shlex.join(command)
    sys.stderr.write(f"$ ray job submit --working-dir . -- {entrypoint}\n")
    try:
        # By itself it sends the first token that Ray met in this process.
        headers = {"Authorization": f"Bearer {stack.token}"}
        client = JobSubmissionClient(stack.environment["RAY_API_SERVER_ADDRESS"], headers=headers)
        job = client.submit_job(entrypoint=entrypoint, runtime_env={"working_dir": "."})
        asyncio.run(_print_log(stack, client, job))
        details = client.get_job_info(job)
    except (RuntimeError, OSError, ClientError) as error:
        log = Path(stack.folder) / "ray.log"
        raise IncompleteError(f"the jobs API of the stack failed ({error}); see {log}") from error
    code = details.driver_exit_code
    # Of a command killed by a signal it is -signal, or 128 + signal where a shell started it.
    if code is None or not 0 <= code < 128:
        sys.stderr.write(f"job {job}: {details.message}\n")
        return IncompleteError.exit_code
    return code


async def _print_log(stack: Stack, client: "JobSubmissionClient", job: str) -> None:
    """Copy the log of a job to stdout until the job ends, however long it logs nothing.

    Raises:
        TimeoutError: if there is neither a line of the log nor an answer of the jobs API.
    """
    log = client.tail_job_logs(job)
    while True:
        lines = asyncio.ensure_future(anext(log, None))
        while not (await asyncio.wait([lines], timeout=_SILENCE_DEADLINE_S))[0]:
            if not _ray_answers(stack):
                raise TimeoutError(f"no answer and no line of the log for {_SILENCE_DEADLINE_S:g} s")
            if client.get_job_status(job).is_terminal():
                return
        if (chunk := lines.result()) is None:
            return
        sys.stdout.write(chunk)
        sys.stdout.flush()


# --- the two servers -------------------------------------------------------------------------------------------------


def _s3_command(stack: Stack) -> list[str]:
    data = Path(stack.folder) / "s3"
    data.mkdir(exist_ok=True)
    # Every port is given: the defaults are fixed, so two stacks would collide.
    servers = ("master", "volume", "filer", "admin")
    ports = ["s3.port.grpc", *(f"{name}.port{kind}" for name in servers for kind in ("", ".grpc"))]
    return [
        _executable("weed"),
        "mini",
        f"-dir={data}",
        f"-ip={HOST}",
        f"-ip.bind={HOST}",
        f"-bucket={BUCKET}",
        f"-tableBucket={WAREHOUSE}",
        f"-s3.port={stack.s3_port}",
        f"-s3.port.iceberg={stack.iceberg_port}",
        "-s3.port.lance=0",
        "-webdav=false",
        "-admin.ui=false",
        "-master.telemetry=false",
        *(f"-{port}={_free_port()}" for port in ports),
    ]


def _ray_command(stack: Stack) -> list[str]:
    return [
        _executable("ray"),
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        f"--node-ip-address={_RAY_HOST}",
        f"--port={stack.gcs_port}",
        f"--dashboard-host={HOST}",
        f"--dashboard-port={stack.dashboard_port}",
        f"--temp-dir={stack.scratch}",
        f"--ray-client-server-port={_free_port()}",
        "--include-dashboard=true",
        f"--dashboard-agent-listen-port={stack.agent_port}",
    ]


def _start(stack: Stack, name: str, command: list[str], answers: Callable[[], bool]) -> None:
    """Start a server in its own session and wait until it answers."""
    log = Path(stack.folder) / f"{name}.log"
    # Inherited by every job and actor, so that no job's description has to hold a key.
    variables = {**os.environ, **stack.environment, "PATH": _path()}
    # By default a head that is stopped first waits for its node to be drained.
    variables["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"
    variables["RAY_JOB_STOP_WAIT_TIME_S"] = "30"
    for unwanted in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        variables.pop(unwanted, None)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=stack.folder,
        )
    stack.processes[str(process.pid)] = psutil.Process(process.pid).create_time()
    _save(stack)
    deadline = time.monotonic() + _START_DEADLINE_S
    while not answers():
        if process.poll() is not None or time.monotonic() > deadline:
            ended = "ended" if process.poll() is not None else "does not answer"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
            raise IncompleteError(f"the {name} server {ended}; see {log}:\n{tail}")
        time.sleep(0.1)


def answers(stack: Stack) -> bool:
    """Whether the S3 server is up and has its bucket."""
    if _http_status(f"http://{HOST}:{stack.s3_port}/{BUCKET}") not in (200, 403):  # 403: it requires a key
        return False
    with environment(stack.environment):
        try:
            Store(f"s3://{BUCKET}").check(write=False)  # the bucket is created after the first answer
        except UserError:
            return False
    return True


def _ray_answers(stack: Stack) -> bool:
    """Whether the jobs API is up, and the agent that starts jobs, for which the API waits only 10 s."""
    urls = (
        f"http://{HOST}:{stack.dashboard_port}/api/jobs/",
        f"http://{_RAY_HOST}:{stack.agent_port}/api/local_raylet_healthz",
    )
    return all(_http_status(url, stack.token) == 200 for url in urls)


def _http_status(url: str, token: str = "") -> int | None:
    """The status of a GET; None if there is no answer within 5 s."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


# --- processes, ports, files -----------------------------------------------------------------------------------------


def _ours(processes: Mapping[str, float]) -> list[psutil.Process | None]:
    """The processes that `up` started; None for each that has ended, even if its pid is in use again."""
    ours: list[psutil.Process | None] = []
    for pid, created in processes.items():
        try:
            process = psutil.Process(int(pid))
            same = abs(process.create_time() - created) < 0.01
            ours.append(process if same and process.status() != psutil.STATUS_ZOMBIE else None)
        except psutil.NoSuchProcess:
            ours.append(None)
    return ours


def _children(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def _port(option: str, requested: int | None) -> int:
    if requested is None:
        return _free_port()
    with socket.socket() as probe:
        # As servers do, so that a port in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, requested))
        except (OSError, OverflowError) as error:
            remedy = "Give another, or none to have one chosen."
            raise UserError(option, requested, f"must be a free port of {HOST} ({error})", remedy) from None
    return requested


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def _direct_hosts() -> str:
    """What `no_proxy` holds: the hosts of the stack, after those of the user."""
    given = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").replace(" ", "").split(",")
    return ",".join(dict.fromkeys([*filter(None, given), HOST, _RAY_HOST, "localhost"]))


def _path() -> str:
    """PATH with this environment's programs first, so that jobs run in it."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"


def _executable(name: str) -> str:
    path = shutil.which(name, path=_path())
    if path is None:
        raise UserError("environment", name, "must be on the PATH", "It is installed by pip install genai-ray.")
    return path


def _save(stack: Stack) -> None:
    """Write stack.json, readable by its owner only: it holds the keys."""
    path = Path(stack.folder) / "stack.json"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump(asdict(stack), file)


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables with these values, within a `with` block."""
    previous = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
