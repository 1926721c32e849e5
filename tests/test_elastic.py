"""Workers that come and go: a node is lost, or told that it will be, and another comes."""

import json
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest

from genai_ray.runs import read_metrics
from genai_ray.storage import Store
from genai_ray.training import checkpoint

ROOT = Path(__file__).resolve().parents[1]

#: Plain descent without batch statistics: only the order of float additions may differ.
OPTIONS = [
    "model.preset=mlp_gan",
    "model.dropout=0",
    "model.optimizer=sgd",
    "model.learning_rate=0.01",
    "model.generator_widths=[256,512]",
    "model.discriminator_widths=[512,256]",
    "train.workers=[1,2]",
    "train.start_timeout_s=90",
]

CLUSTER = """
import json, os, socket, sys, threading, time
sys.path.insert(0, "tests")
import ray
from ray.cluster_utils import Cluster
from conftest import small_spec
from genai_ray.training import checkpoint, group, train as training
from genai_ray.storage import Store
from genai_ray.runs import read_metrics

with socket.socket() as free:  # the usual port may be that of another cluster
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
head = {"num_cpus": 1, "include_dashboard": True, "dashboard_port": port}
cluster = Cluster(initialize_head=True, head_node_args=head)
other = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
group._RESIZE_POLL_S = 2.0
spec = small_spec(sys.argv[1], *json.loads(sys.argv[2]))
store = Store(spec.run_uri)

def wait(true, seconds=120):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.05)

def stored_by(workers):
    # Whether a group of that size logged a row that its checkpoint keeps.
    newest = max(checkpoint.saved(store), default=0)
    kept = [r for r in read_metrics(store) if r["samples"] <= newest]
    return bool(kept) and kept[-1]["workers"] == workers

def disturb():
"""


def run(folder: Path, options: list[str], disturb: str) -> str:
    """Train on a cluster of two nodes while something happens; ends when that has happened."""
    code = (
        CLUSTER
        + disturb
        + (
            """
# Ray starts nodes in the main thread only.
threading.Thread(target=training.train, args=(spec,), daemon=True).start()
disturb()
print("happened", flush=True)
cluster.shutdown()
os._exit(0)
"""
        )
    )
    # Ray notes the newest cluster there, and later ones of this machine would ask for it in vain.
    with tempfile.TemporaryDirectory(prefix="elastic-", ignore_cleanup_errors=True) as scratch:
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder), json.dumps(options)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"RAY_TMPDIR": scratch},
        )
    assert "happened" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(320)
def test_a_lost_node_shrinks_the_group_and_a_new_one_grows_it(tmp_path: Path) -> None:
    run(
        tmp_path,
        [*OPTIONS, "train.samples=10000000", "train.checkpoint_every=6400"],
        """
    wait(lambda: stored_by(2))
    cluster.remove_node(other, allow_graceful=False)
    wait(lambda: stored_by(1))
    cluster.add_node(num_cpus=1)
    wait(lambda: stored_by(2))
""",
    )
    rows = read_metrics(Store(f"{tmp_path}/small"))
    seen = [r["workers"] for r in rows]
    assert [seen[0], *(b for a, b in pairwise(seen) if a != b)] == [2, 1, 2]
    # Each group went on from the one before.
    assert all(a["samples"] < b["samples"] for a, b in pairwise(rows))


@pytest.mark.slow
@pytest.mark.timeout(320)
def test_a_notice_of_preemption_stores_a_checkpoint(tmp_path: Path) -> None:
    # No checkpoint is due before the end, so the one that is found came from the notice.
    run(
        tmp_path,
        [*OPTIONS, "train.samples=100000000", "train.checkpoint_every=100000000"],
        """
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    wait(lambda: store.list("spec.yaml"))
    time.sleep(20)
    deadline = int((time.time() + 100) * 1000)
    GcsClient(address=cluster.address).drain_node(
        other.node_id, autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION, "spot", deadline
    )
    wait(lambda: checkpoint.saved(store), 90)
""",
    )
    (stored,) = checkpoint.saved(Store(f"{tmp_path}/small"))
    assert 0 < stored < 100_000_000
