"""A checkpoint comes back as it was saved, or not at all; a damaged one gives way to an older."""

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genai_ray.errors import IncompleteError
from genai_ray.storage import Store
from genai_ray.training import checkpoint
from genai_ray.training.checkpoint import DamagedCheckpointWarning, key, latest, pack, prune, saved, unpack


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "run"))


def state(samples: int) -> dict[str, Any]:
    return {"samples": samples, "weights": torch.full((3,), float(samples))}


def save(store: Store, *samples: int) -> None:
    for count in samples:
        store.put(key(count), pack(state(count)))


def damage(store: Store, samples: int) -> None:
    data = bytearray(store.read(key(samples)))
    data[len(data) // 2] ^= 1
    store.put(key(samples), bytes(data))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_tensors_come_back_bit_for_bit(dtype: torch.dtype):
    tensor = torch.arange(-6, 6).reshape(3, 4).to(dtype)
    back = unpack(pack({"tensor": tensor}))["tensor"]
    assert back.dtype == dtype
    assert torch.equal(back, tensor)


def test_not_a_number_and_infinity_come_back():
    tensor = torch.tensor([float("nan"), float("inf"), -0.0])
    back = unpack(pack({"tensor": tensor}))["tensor"]
    assert torch.equal(back.view(torch.int32), tensor.view(torch.int32))


def test_plain_values_come_back():
    values = {
        "samples": 2**40,
        "none": None,
        "flag": True,
        "text": "ünïcode",
        "rows": [{"loss": 0.1}],
        "pair": (0.5, 0.999),
        "bytes": b"\0",
    }
    assert unpack(pack(values)) == values


def test_an_optimiser_goes_on_as_if_it_had_not_been_saved():
    def step(net: torch.nn.Module, adam: torch.optim.Optimizer, times: int) -> None:
        for i in range(times):
            adam.zero_grad()
            net(torch.arange(4.0) + i).square().sum().backward()
            adam.step()

    def make() -> tuple[torch.nn.Linear, torch.optim.Adam]:
        torch.manual_seed(0)
        net = torch.nn.Linear(4, 2)
        return net, torch.optim.Adam(net.parameters(), betas=(0.5, 0.999))

    net, adam = make()
    step(net, adam, 2)
    packed = pack({"net": net.state_dict(), "adam": adam.state_dict()})
    step(net, adam, 2)
    other, other_adam = make()
    found = unpack(packed)
    other.load_state_dict(found["net"])
    other_adam.load_state_dict(found["adam"])
    for i in range(2):
        other_adam.zero_grad()
        other(torch.arange(4.0) + i).square().sum().backward()
        other_adam.step()
    assert torch.equal(net.weight, other.weight)


def test_a_checkpoint_is_a_snapshot():
    tensor = torch.zeros(3)
    packed = pack({"tensor": tensor})
    tensor += 1
    assert unpack(packed)["tensor"].tolist() == [0, 0, 0]


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_flipped_bit_is_found(data: Any):
    packed = bytearray(pack(state(7)))
    position = data.draw(st.integers(0, len(packed) - 1))
    packed[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ValueError, match="checksum differs"):
        unpack(bytes(packed))


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, -33, -32, -1])
def test_truncation_is_found(length: int):
    packed = pack(state(7))
    with pytest.raises(ValueError, match="checksum differs"):
        unpack(packed[:length])


class Exploit:
    """Its pickle, once loaded, makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_malicious_checkpoint_is_not_executed(tmp_path: Path):
    path = tmp_path / "executed"
    buffer = io.BytesIO()
    torch.save({"samples": Exploit(path)}, buffer)
    body = buffer.getvalue()
    with pytest.raises(pickle.UnpicklingError, match="Weights only"):
        unpack(body + hashlib.sha256(body).digest())
    assert not path.exists()
    pickle.loads(pickle.dumps(Exploit(path)))
    assert path.exists(), "the exploit itself must work, or this test shows nothing"


# --- many of them --------------------------------------------------------------------------------


def test_names_sort_as_their_samples(store: Store):
    save(store, 900, 1000, 5, 10**11)
    store.put("train/metrics.jsonl", b"")
    store.put("train/checkpoint-12.pt.part", b"")
    assert saved(store) == [5, 900, 1000, 10**11]
    assert [key(s) for s in saved(store)] == [*store.list("train/checkpoint-0"), key(10**11)]


def test_the_latest_is_the_one_with_most_samples(store: Store):
    assert latest(store) is None
    save(store, 300, 100, 200)
    found = latest(store)
    assert found is not None
    assert found["samples"] == 300
    assert found["weights"].tolist() == [300, 300, 300]


def test_a_damaged_one_gives_way_to_the_one_before(store: Store):
    save(store, 100, 200, 300)
    damage(store, 300)
    with pytest.warns(DamagedCheckpointWarning, match=key(300)) as warned:
        found = latest(store)
    assert found is not None
    assert found["samples"] == 200
    assert len(warned) == 1
    damage(store, 200)
    with pytest.warns(DamagedCheckpointWarning) as warned:
        found = latest(store)
    assert found is not None
    assert found["samples"] == 100
    assert len(warned) == 2


def test_an_empty_object_is_a_damaged_one(store: Store):
    save(store, 100)
    store.put(key(200), b"")
    with pytest.warns(DamagedCheckpointWarning, match="0 bytes"):
        found = latest(store)
    assert found is not None
    assert found["samples"] == 100


def test_when_all_are_damaged_nothing_is_made_up(store: Store):
    save(store, 100, 200)
    damage(store, 100)
    damage(store, 200)
    with pytest.warns(DamagedCheckpointWarning), pytest.raises(IncompleteError, match="none of 2 checkpoints"):
        latest(store)


@pytest.mark.parametrize(("keep", "left"), [(1, [300]), (2, [200, 300]), (3, [100, 200, 300]), (9, [100, 200, 300])])
def test_prune_keeps_the_newest(store: Store, keep: int, left: list[int]):
    save(store, 100, 200, 300)
    store.put("train/metrics.jsonl", b"rows")
    prune(store, keep)
    assert saved(store) == left
    assert store.read("train/metrics.jsonl") == b"rows"


def test_saving_again_replaces(store: Store):
    save(store, 100, 100)
    assert store.list() == [checkpoint.key(100)]
