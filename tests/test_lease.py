"""Two drivers on one data set: one works, the other says who does."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import small_spec

from genai_ray import lease
from genai_ray.lease import LeaseError, hold
from genai_ray.storage import Store
from genai_ray.training.train import train

FIELD = "generate.lease_s"


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return Store(str(tmp_path))
    return Store(request.getfixturevalue("s3_uri"))


def foreign(store: Store, beat: int = 0) -> None:
    """A lease of a driver on another machine, whose pid means nothing here."""
    there = {"host": "elsewhere", "user": "ada", "pid": 1, "started": 0, "machine": "x", "token": "t", "beat": beat}
    store.put("_lease/000001.json", json.dumps(there).encode())


def test_a_second_driver_learns_who_works(store: Store) -> None:
    with hold(store, 1.0, FIELD) as held:
        with pytest.raises(LeaseError, match=r"works on it") as refused, hold(store, 1, FIELD):
            pass
        assert lease._user() in str(refused.value)
        held.check()
    assert store.list() == []
    with hold(store, 1.0, FIELD):
        pass


@pytest.mark.parametrize("content", [b"", b'{"beat": 1, "pi', b"\xff"])
def test_a_damaged_lease_expires(store: Store, content: bytes) -> None:
    store.put("_lease/000001.json", content)
    store.put("_lease/000009 (conflicted copy).json", b"x")
    with hold(store, 0.2, FIELD) as held:
        assert "_lease/000002.json" in store.list()
        held.check()


def test_a_beating_lease_is_not_taken(store: Store) -> None:
    foreign(store)
    beats = threading.Timer(0.7, foreign, (store, 1))
    beats.start()
    with pytest.raises(LeaseError, match=r"ada on elsewhere \(process 1\)"), hold(store, 5, FIELD):
        pass
    beats.join()


def test_a_silent_lease_is_taken_over_and_its_holder_stops(store: Store) -> None:
    foreign(store)
    started = time.monotonic()
    with hold(store, 1.0, FIELD) as held:
        assert time.monotonic() - started >= 1
        assert store.list() == ["_lease/000002.json"]
        # A third driver takes this one for dead, as it would if it had been stopped for a while.
        there = json.loads(store.read("_lease/000002.json"))
        store.put("_lease/000003.json", json.dumps(there | {"host": "third"}).encode())
        deadline = time.monotonic() + 20
        while held._lost is None and time.monotonic() < deadline:
            time.sleep(0.05)
        with pytest.raises(LeaseError, match=r"on third .* took over"):
            held.check()
    assert store.list() == ["_lease/000003.json"]


def test_a_holder_that_died_here_is_not_waited_for(tmp_path: Path) -> None:
    code = f"""
import os, sys
from genai_ray.lease import _acquire
from genai_ray.storage import Store
from genai_ray.training.train import train
_acquire(Store({str(tmp_path)!r}), 600, "")
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 9
    store = Store(str(tmp_path))
    assert store.list() == ["_lease/000001.json"]
    started = time.monotonic()
    with hold(store, 600, FIELD):
        assert time.monotonic() - started < 60


def test_of_many_at_once_one_wins(store: Store) -> None:
    """Each notes what it saw while it held the lease; nobody holds it beside another."""
    inside, most, refused = [0], [0], []
    guard = threading.Lock()

    def drive() -> None:
        try:
            with hold(Store(store.uri), 3.0, FIELD):
                with guard:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                time.sleep(2.5)
                with guard:
                    inside[0] -= 1
        except LeaseError as error:
            refused.append(error)

    threads = [threading.Thread(target=drive) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most[0] == 1
    assert len(refused) < 4


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_two_drivers_of_one_data_set(run_store: Path) -> None:
    from genai_ray.dataset.generate import generate

    spec = small_spec(run_store, "generate.lease_s=1")
    made = Store(spec.run_uri).at("dataset")
    with hold(made, 1.0, FIELD), pytest.raises(LeaseError, match="works on it"):
        generate(spec)
    assert [k for k in made.list() if not k.startswith("_lease")] == []
    assert generate(spec).rows == 1000


# --- training ------------------------------------------------------------------------------------


def test_a_second_training_of_a_run_learns_who_trains_it(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, "train.lease_s=1")
    store = Store(spec.run_uri)
    with hold(store, 1.0, "train.lease_s"), pytest.raises(LeaseError, match=rf"{store.uri}: .* works on it") as refused:
        train(spec)
    assert refused.value.exit_code == 3
    assert store.list() == []  # not even its spec
    assert train(spec).samples == spec.train.samples
    assert store.list("_lease/") == []


def test_a_training_that_was_taken_over_stops(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, "train.lease_s=1", "train.samples=100_000_000", "train.checkpoint_every=100_000_000")
    store = Store(spec.run_uri)

    def take_over() -> None:
        while not (held := store.list("_lease/")):
            time.sleep(0.05)
        there = json.loads(store.read(held[0]))
        store.put("_lease/000002.json", json.dumps(there | {"host": "third"}).encode())

    taking = threading.Thread(target=take_over, daemon=True)
    taking.start()
    with pytest.raises(LeaseError, match=r"no heartbeat for train.lease_s=1 s, and .* on third .* took over"):
        train(spec)
    taking.join()
    assert store.list("_lease/") == ["_lease/000002.json"]
