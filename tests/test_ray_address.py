"""RAY_ADDRESS names a cluster that runs, or ends in an error; and a cluster of several machines shares its store."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from genai_ray import cluster
from genai_ray.cluster import connect, require_answer, require_shared
from genai_ray.errors import UserError
from genai_ray.storage import Store


@pytest.fixture
def answering() -> Iterator[int]:
    """A port at which a gRPC server answers, as that of a cluster does."""
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        port = server.add_insecure_port("0.0.0.0:0")
        server.start()
        yield port
        server.stop(None).wait(10)


@pytest.fixture
def silent() -> Iterator[int]:
    """A port at which something listens that is no Ray."""
    with socket.socket() as server:
        server.bind(("0.0.0.0", 0))
        server.listen()
        yield server.getsockname()[1]


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize(
    "address",
    [
        *(
            "http://10.1.2.3:8265",
            "https://ray.example",
            "10.1.2.3",
            "ray://10.1.2.3",
            "redis://h:6379",
            ":6379",
            "h:",
            "x",
        ),
        *(":6379", "h:", "x", "Local", "10.1.2.3:6379/x"),
    ],
)
def test_an_address_of_another_form_is_refused(address: str):
    with pytest.raises(UserError, match="must be host:port of the head of a cluster") as caught:
        require_answer(address)
    assert (caught.value.field, caught.value.value) == ("RAY_ADDRESS", address)
    assert "unset RAY_ADDRESS" in caught.value.remedy
    assert address.startswith("http") == (f"ray job submit --address {address} " in caught.value.remedy)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}"])
def test_a_cluster_that_does_not_answer_is_refused(
    form: str, answering: int, silent: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    require_answer(form.format(answering))
    monkeypatch.setattr(cluster, "_ANSWER_S", 0.5)
    with pytest.raises(UserError, match=r"must be the address of a cluster that runs .* is no Ray"):
        require_answer(form.format(silent))
    with pytest.raises(UserError, match=r"must be the address of a cluster that runs .*refused"):
        require_answer(form.format(closed_port()))


@pytest.mark.parametrize("address", ["no-such-host.invalid:6379", "127.0.0.1:99999", "a..b:1", f"{'x' * 70}:1"])
def test_an_address_that_cannot_be_is_refused(address: str):
    with pytest.raises(UserError, match="must be the address of a cluster that runs"):
        require_answer(address)


def test_this_machine_needs_no_address():
    require_answer("local")


def test_no_private_ray_is_started_for_an_address_that_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    code = (
        "from genai_ray.cluster import connect\nfrom genai_ray.storage import Store\n"
        "try:\n    connect(Store('.'))\nexcept ValueError as error:\n    print(error)\n"
        "import ray\nassert not ray.is_initialized()"
    )
    monkeypatch.setenv("RAY_ADDRESS", "http://10.1.2.3:8265")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "RAY_ADDRESS: got 'http://10.1.2.3:8265'" in done.stdout


@pytest.mark.parametrize(
    ("uri", "hosts", "grows", "refused"),
    [
        ("/a", {"one"}, False, False),
        ("/a", {"one", "two"}, False, True),
        ("/a", {"one"}, True, True),
        ("file:///a", {"one", "two"}, True, False),
        ("s3://b/x", {"one", "two"}, True, False),
    ],
)
def test_machines_of_a_cluster_share_the_store(uri: str, hosts: set[str], grows: bool, refused: bool):
    if not refused:
        require_shared(Store(uri), hosts, grows=grows)
        return
    with pytest.raises(UserError, match="is a folder, and the cluster") as caught:
        require_shared(Store(uri), hosts, grows=grows)
    assert caught.value.field == "store"
    assert "store=file:///" in caught.value.remedy


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_is_joined_by_its_address_and_takes_a_folder_if_it_is_this_machine(tmp_path: Path):
    import ray

    connect(Store(str(tmp_path)))
    code = (
        "from genai_ray.cluster import connect\nfrom genai_ray.storage import Store\n"
        "import ray\nconnect(Store('.'))\nprint(ray.nodes()[0]['NodeID'])"
    )
    joined = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = subprocess.run([sys.executable, "-c", code], env=joined, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [ray.nodes()[0]["NodeID"]], done.stderr
