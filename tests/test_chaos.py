"""Everything that can fail, fails, in a seeded random order; the data set comes out the same.

`GENAI_RAY_CHAOS_SECONDS=1800 pytest tests/test_chaos.py` runs for that long, and
`GENAI_RAY_CHAOS_SEED` gives another order. Each kind of fault strikes at least once in any case.
"""

import contextlib
import hashlib
import json
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from conftest import SMALL, small_spec
from fault_proxy import HEAVY, FaultProxy

from genai_ray import local
from genai_ray.provenance import MODEL_KEY
from genai_ray.storage import Store

pytestmark = [pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[1]
SPEC = "jobs/specs/digits.yaml"
SECONDS = float(os.environ.get("GENAI_RAY_CHAOS_SECONDS", "0"))
SEED = int(os.environ.get("GENAI_RAY_CHAOS_SEED", "0"))
SHARDS = 120
DATA = [f"generate.samples={SHARDS * 200}", "generate.shard_rows=200", "generate.workers=2"]
DEADLINE_S = 150.0  # of whatever is waited for
VOLATILE = "_lease/"  # all else in a data set must be equal

# Ray starts nodes in the main thread of a process that then owns them. Each line it gets is another
# node.
CLUSTER = """
import json, socket, sys
from ray.cluster_utils import Cluster

def free_port():  # the usual ones may be those of another cluster
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]

port = free_port()
small = {"num_cpus": 2, "object_store_memory": 100 << 20}
head = {"include_dashboard": True, "dashboard_port": port,
        "dashboard_agent_listen_port": free_port(), **small}
cluster = Cluster(initialize_head=True, head_node_args=head)
about = {"address": cluster.address, "jobs": f"http://127.0.0.1:{port}"}
for line in sys.stdin:
    (raylet,) = cluster.add_node(**small).all_processes["raylet"]
    print(json.dumps(about | {"other": raylet.process.pid}), flush=True)
cluster.shutdown()
"""


class World:
    """An S3 server behind a proxy, a Ray cluster of two nodes, and a driver that comes and goes."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.stack = local.up(folder / "stack", with_ray=False)
        self.proxy = FaultProxy(self.stack.s3_port, {}, SEED)
        self.scratch = tempfile.mkdtemp(prefix="chaos-")  # short, since sockets lie there
        self.environment = {
            **os.environ,
            **self.stack.environment,
            "AWS_ENDPOINT_URL": self.proxy.url,
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": self.scratch,
            "RAY_JOB_STOP_WAIT_TIME_S": "20",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        }
        self.cluster: subprocess.Popen[str] | None = None
        self.driver: subprocess.Popen[bytes] | None = None
        self.about: dict[str, str] = {}
        self.whole = False  # whether the cluster has both of its nodes
        self.log = (folder / "log").open("ab")

    def start_cluster(self) -> None:
        """Start what is missing of the cluster."""
        if self.cluster is None or self.cluster.poll() is not None:
            self.cluster = subprocess.Popen(
                [sys.executable, "-c", CLUSTER],
                cwd=ROOT,
                env=self.environment,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
            )
            self.whole = False
        if not self.whole:
            assert self.cluster.stdin is not None
            assert self.cluster.stdout is not None
            self.cluster.stdin.write("node\n")
            self.cluster.stdin.flush()
            self.about = json.loads(self.cluster.stdout.readline())
            self.whole = True

    def start_driver(self, uri: str) -> subprocess.Popen[bytes]:
        self.start_cluster()
        environment = self.environment | {"RAY_ADDRESS": self.about["address"]}
        self.driver = subprocess.Popen(
            [sys.executable, "jobs/generate.py", SPEC, *overrides(uri)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
        )
        return self.driver

    def generate(self, uri: str) -> int:
        """The exit code of a whole run."""
        return self.start_driver(uri).wait(DEADLINE_S)

    def job(self, verb: str, *arguments: str) -> str:
        """What `ray job` prints, asked until it does what it is asked for."""
        environment = self.environment | {"RAY_API_SERVER_ADDRESS": self.about["jobs"]}
        command = [Path(sys.executable).parent / "ray", "job", verb, *arguments]
        deadline = time.monotonic() + DEADLINE_S
        while True:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=DEADLINE_S
            )
            if done.returncode == 0:
                return done.stdout
            # The agent that starts jobs comes some seconds after its node.
            assert time.monotonic() < deadline, done.stdout + done.stderr

    def processes(self, name: str) -> list[psutil.Process]:
        """Of Ray's workers, those of this name."""
        found = []
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                if name in "".join(process.cmdline()[:1]):
                    found.append(process)
        return found

    def family(self) -> list[psutil.Process]:
        """The cluster and the driver, with all their children."""
        found = []
        for process in (self.cluster, self.driver):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process is not None and process.poll() is None:
                    parent = psutil.Process(process.pid)
                    found += [parent, *parent.children(recursive=True)]
        return found

    def close(self) -> None:
        kill(self.family())
        for process in (self.cluster, self.driver):
            if process is not None:
                process.wait(DEADLINE_S)
        self.log.close()
        local.down(self.folder / "stack")
        shutil.rmtree(self.scratch, ignore_errors=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("chaos"))
    aws = {k: v for k, v in world.stack.environment.items() if k.startswith("AWS_")}
    try:
        with local.environment(aws), world.proxy.running():
            yield world
    finally:
        world.close()


@pytest.fixture(scope="module")
def undisturbed(world: World, trained_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Key to digest of the data set that nothing disturbed, in a folder."""
    uri = str(shutil.copytree(trained_store, tmp_path_factory.mktemp("undisturbed") / "s"))
    assert world.generate(uri) == 0
    return digests(uri)


@pytest.fixture
def uri(trained_store: Path) -> str:
    """A run of its own in the S3 server with the trained model."""
    uri = f"s3://{local.BUCKET}/{secrets.token_hex(8)}"
    Store(f"{uri}/small").put(MODEL_KEY, (trained_store / "small" / MODEL_KEY).read_bytes())
    return uri


def overrides(uri: str) -> list[str]:
    return [f"store={uri}", *SMALL, *DATA]


def dataset(uri: str) -> Store:
    return Store(small_spec(uri).run_uri).at("dataset")


def digests(uri: str) -> dict[str, str]:
    store = dataset(uri)
    keys = [key for key in store.list() if not key.startswith(VOLATILE)]
    return {key: hashlib.sha256(store.read(key)).hexdigest() for key in keys}


def empty(store: Store) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(store.delete, store.list()))


def wait(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    wait(lambda: all(map(ended, processes)))


def ended(process: psutil.Process) -> bool:
    """Whether it runs no more, though its parent may not have asked for its exit code yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


# --- faults: each says whether it struck ---------------------------------------------------------


def kill_a_worker(world: World, chance: random.Random, uri: str) -> bool:
    workers = world.processes("ShardWorker")
    kill(chance.sample(workers, min(1, len(workers))))
    return bool(workers)


def kill_the_counter_of_attempts(world: World, chance: random.Random, uri: str) -> bool:
    counters = world.processes("AttemptCounter")
    kill(counters)
    return bool(counters)


def kill_the_driver(world: World, chance: random.Random, uri: str) -> bool:
    assert world.driver is not None
    world.driver.kill()
    return world.driver.wait(DEADLINE_S) == -signal.SIGKILL


def kill_everything(world: World, chance: random.Random, uri: str) -> bool:
    assert world.driver is not None
    kill(world.family())
    return world.driver.wait(DEADLINE_S) == -signal.SIGKILL


def lose_a_node(world: World, chance: random.Random, uri: str) -> bool:
    if not world.whole:
        return False
    raylet = psutil.Process(int(world.about["other"]))
    kill([raylet, *raylet.children(recursive=True)])
    world.whole = False
    return True


def kill_the_server(world: World, chance: random.Random, uri: str) -> bool:
    (server,) = (psutil.Process(int(pid)) for pid in world.stack.processes)
    kill([server])
    time.sleep(chance.uniform(2, 6))
    world.stack = local.up(world.folder / "stack", s3_port=world.stack.s3_port, with_ray=False)
    return True


def stop_the_job(world: World, chance: random.Random, uri: str) -> bool:
    """SIGTERM, as `ray job stop` and preempting schedulers send it."""
    assert kill_the_driver(world, chance, uri)
    job, before = f"job-{secrets.token_hex(4)}", receipts(uri)
    world.job(
        "submit",
        "--no-wait",
        "--working-dir",
        ".",
        "--submission-id",
        job,
        "--",
        sys.executable,
        "jobs/generate.py",
        SPEC,
        *overrides(uri),
    )
    # Its own progress: receipts may still come from workers of a driver that was killed.
    wait(lambda: receipts(uri) > before and re.search(r"generate +[\d,]+/", world.job("logs", job)))
    assert "was stopped" in world.job("stop", job)
    assert "stopped by SIGTERM; the same command resumes" in world.job("logs", job)
    return True


FAULTS = [
    kill_a_worker,
    kill_the_counter_of_attempts,
    kill_the_driver,
    kill_everything,
    lose_a_node,
    kill_the_server,
    stop_the_job,
]


def receipts(uri: str) -> int:
    return len(dataset(uri).list("_receipts/"))


# --- tests ---------------------------------------------------------------------------------------


@pytest.mark.timeout(600 + SECONDS)
def test_any_order_of_faults_gives_the_same_data_set(world: World, uri: str, undisturbed: dict[str, str]) -> None:
    chance, struck, began = random.Random(SEED), Counter(), time.monotonic()
    world.proxy.injected.clear()
    world.proxy.faults = HEAVY
    waiting, driver = [], world.start_driver(uri)
    while len(struck) < len(FAULTS) or time.monotonic() - began < SECONDS:
        waiting = waiting or chance.sample(FAULTS, len(FAULTS))
        if driver.poll() is not None:
            # 3: shards that failed too often; the same command tries them again.
            assert driver.returncode in (0, 3, -signal.SIGKILL)
            if dataset(uri).exists("manifest.json"):
                assert digests(uri) == undisturbed
                empty(dataset(uri))
            driver = world.start_driver(uri)
        goal = min(receipts(uri) + chance.randint(1, SHARDS // 8), SHARDS)
        wait(lambda goal=goal, driver=driver: receipts(uri) >= goal or driver.poll() is not None)
        if driver.poll() is None and waiting[-1](world, chance, uri):
            struck[waiting.pop().__name__] += 1
    driver.wait(DEADLINE_S)
    world.proxy.faults = {}
    assert world.generate(uri) == 0
    assert digests(uri) == undisturbed
    assert {name for name in HEAVY if not world.proxy.injected[name]} == set()


@pytest.mark.timeout(300)
def test_a_shard_that_cannot_be_put_is_a_failure_and_all_others_are_done(
    world: World, uri: str, undisturbed: dict[str, str]
) -> None:
    world.proxy.poison = b"part-000002"
    try:
        assert world.generate(uri) == 3
    finally:
        world.proxy.poison = b""
    assert receipts(uri) == SHARDS - 1
    assert not dataset(uri).exists("manifest.json")
    assert world.generate(uri) == 0
    assert digests(uri) == undisturbed


@pytest.mark.timeout(300)
def test_a_disk_that_becomes_full(world: World, run_store: Path, undisturbed: dict[str, str]) -> None:
    uri = str(run_store)
    driver = world.start_driver(uri)
    wait(lambda: receipts(uri) > 0)
    workers = world.processes("ShardWorker")
    assert workers
    for worker in workers:
        worker.rlimit(psutil.RLIMIT_FSIZE, (50_000, 50_000))  # less than a shard
    assert driver.wait(DEADLINE_S) == 3
    assert 0 < receipts(uri) < SHARDS
    assert not list(run_store.rglob(".tmp-*"))
    assert world.generate(uri) == 0
    assert digests(uri) == undisturbed
