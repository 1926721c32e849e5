"""Training resumes exactly, does not depend on the workers, and says what is wrong."""

import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import kill_when, small_spec

from genai_ray import spec as specs
from genai_ray.errors import IncompleteError, UserError
from genai_ray.image.codec import ImageCodec
from genai_ray.image.source import ImageData, in_memory, load
from genai_ray.runs import read_metrics
from genai_ray.spec import Spec
from genai_ray.storage import Store
from genai_ray.training import checkpoint
from genai_ray.training.batches import micro_batches, real_batches
from genai_ray.training.loop import compile_networks, steps
from genai_ray.training.reduce import DivergedError
from genai_ray.training.state import State
from genai_ray.training.train import train


def final_state(spec: Spec) -> dict:
    state = checkpoint.latest(Store(spec.run_uri))
    assert state is not None
    assert state["samples"] == spec.train.samples
    return state


def assert_bit_equal(a: dict, b: dict) -> None:
    for part in ("nets", "average"):
        for name, tensor in a[part].items():
            assert torch.equal(tensor, b[part][name]), f"{part}.{name}"
    for phase, optimizer in a["optimizers"].items():
        for index, values in optimizer["state"].items():
            for name, tensor in values.items():
                assert torch.equal(tensor, b["optimizers"][phase]["state"][index][name])


@pytest.mark.parametrize(
    "preset", ["mlp_gan", pytest.param("dcgan", marks=pytest.mark.slow), pytest.param("vae", marks=pytest.mark.slow)]
)
def test_killed_training_goes_on_to_the_same_weights(preset: str, tmp_path: Path) -> None:
    # A trainer that was killed on this machine is not waited for.
    options = [f"model.preset={preset}", "train.samples=12800", "train.lease_s=600"]
    if preset == "mlp_gan":
        options += ["model.generator_widths=[32]", "model.discriminator_widths=[32]"]
    undisturbed = small_spec(tmp_path / "a", *options)
    train(undisturbed)

    killed = small_spec(tmp_path / "b", *options)
    arguments = f"{str(tmp_path / 'b')!r}, *{options!r}"
    kill_when(
        lambda: checkpoint.saved(Store(killed.run_uri)),
        f"from genai_ray.training.train import train; train(small_spec({arguments}))",
    )
    assert checkpoint.saved(Store(killed.run_uri))[-1] < 12800
    train(killed)

    assert_bit_equal(final_state(undisturbed), final_state(killed))
    losses = [
        [r["loss_" + k] for r in read_metrics(Store(s.run_uri)) for k in _losses(preset)] for s in (undisturbed, killed)
    ]
    assert losses[0] == losses[1]


def _losses(preset: str) -> list[str]:
    return ["kl"] if preset == "vae" else ["discriminator"]


def test_damaged_newest_checkpoint_falls_back_to_the_same_weights(tmp_path: Path) -> None:
    whole, damaged = small_spec(tmp_path / "a"), small_spec(tmp_path / "b")
    train(whole)
    train(damaged)
    store = Store(damaged.run_uri)
    newest = checkpoint.key(checkpoint.saved(store)[-1])
    # As a run that died in its last step would leave it, with the end of the file lost.
    store.put(newest, store.read(newest)[:-1000])
    store.put(checkpoint.key(1279), store.read(newest))
    store.delete(newest)
    with pytest.warns(checkpoint.DamagedCheckpointWarning, match="going back"):
        train(damaged)
    assert_bit_equal(final_state(whole), final_state(damaged))


def test_workers_share_a_batch_without_changing_it() -> None:
    spec = small_spec("/nowhere", "train.workers=[1,4]")
    data = load(spec)
    device = torch.device("cpu")
    for step in (0, 21, 22, 23):  # the epoch of 1,438 images ends within step 22
        whole = next(real_batches(spec, data, step, micro_batches(spec, 0, 1), device))
        for world in (2, 3, 4):
            parts = [
                next(real_batches(spec, data, step, micro_batches(spec, rank, world), device)) for rank in range(world)
            ]
            assert torch.equal(whole.values, torch.cat([p.values for p in parts]))
    assert whole.values.min() == -1
    assert whole.values.max() <= 1


def test_an_epoch_shows_every_image_once() -> None:
    spec = small_spec("/nowhere", "train.global_batch=10", "model.conditional=false")
    images = np.arange(70, dtype=np.uint8).reshape(70, 1, 1, 1)
    data = ImageData(ImageCodec(1, 1, None), images, None, images, None)
    batches = real_batches(spec, data, 0, micro_batches(spec, 0, 1), torch.device("cpu"))
    seen = [batch.values for batch, _ in zip(batches, range(14), strict=False)]
    first, second = torch.cat(seen[:7]).flatten(), torch.cat(seen[7:]).flatten()
    assert first.unique().numel() == 70
    assert second.unique().numel() == 70
    assert not torch.equal(first, second)


#: Without batch statistics and dropout only the order of float additions may differ.
PLAIN = [
    "model.preset=mlp_gan",
    "model.dropout=0",
    "train.samples=3200",
    "model.optimizer=sgd",
    "model.learning_rate=0.05",
    "model.generator_widths=[32]",
    "model.discriminator_widths=[32]",
]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("penalty", "numbers"),
    [
        ([], ["0", "[1,2]"]),
        (["model.loss=wasserstein", "model.penalty=gradient", "model.learning_rate=0.01"], ["0", "2", "4"]),
    ],
    ids=["plain", "penalty"],
)
def test_workers_learn_what_one_learns(penalty: list[str], numbers: list[str], tmp_path: Path) -> None:
    """After 50 steps, also with a penalty, whose gradients would stay each worker's own if they
    were not reduced.
    """
    states = []
    for workers in numbers:
        options = [*PLAIN, *penalty, f"train.workers={workers}", "train.cpus_per_worker=0.5"]
        spec = small_spec(tmp_path / workers, *options)
        train(spec)
        states.append(final_state(spec)["nets"])
    for state in states[1:]:
        for name, weights in states[0].items():
            difference = (state[name] - weights).norm() / weights.norm()
            assert difference < 1e-5, name
    start = State(spec, load(spec).codec, "", torch.device("cpu")).family.nets
    moved = [(states[0][n] - w).norm() / w.norm() for n, w in start.state_dict().items()]
    assert max(moved) > 0.1  # else nothing was learnt that could differ


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_more_workers_than_the_cluster_has(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, "train.workers=64")
    with pytest.raises(UserError, match=r"train.workers: got 64; need 64 CPU, and .* has 2 CPU"):
        train(spec)
    assert not list(tmp_path.iterdir())


def test_divergence_names_step_and_phase(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, "model.learning_rate=1e30", "model.discriminator_norm=none")
    with pytest.raises(DivergedError, match=r"step \d+, phase \w+: the loss is (nan|inf)"):
        train(spec)


def test_finished_run_refuses_another_fingerprint(tmp_path: Path) -> None:
    train(small_spec(tmp_path))
    with pytest.raises(UserError, match=r"model.width is 8 in the store and 16 here; seed is 0 .* 7 here"):
        train(small_spec(tmp_path, "model.width=16", "seed=7"))
    # What cannot change the result may change.
    assert train(small_spec(tmp_path, "train.log_seconds=1")).seconds == 0


@pytest.mark.parametrize("finished", [False, True])
def test_other_images_than_the_run_began_with(tmp_path: Path, finished: bool) -> None:
    spec = small_spec(tmp_path)
    train(spec)
    store = Store(spec.run_uri)
    if not finished:
        store.delete(checkpoint.key(1280))
    saved, data = store.read("spec.yaml"), in_memory(load(spec))
    data.train_images[0] ^= 255
    with pytest.raises(UserError, match=r"data.source: got 'digits'; holds other samples than the run was begun with"):
        train(small_spec(tmp_path, "train.log_seconds=7"), data)
    assert store.read("spec.yaml") == saved


def test_conditional_model_without_classes(tmp_path: Path) -> None:
    from PIL import Image

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i in range(20):
        Image.new("L", (8, 8), i * 12).save(pictures / f"{i}.png")
    spec = small_spec(tmp_path / "store", "data.source=folder", f"data.root={pictures}")
    with pytest.raises(UserError, match=r"model.conditional: got True; needs labels"):
        train(spec)
    assert not (tmp_path / "store").exists()


def test_what_training_leaves(tmp_path: Path) -> None:
    spec = small_spec(tmp_path)
    result = train(spec)
    store = Store(spec.run_uri)
    assert result.samples == 1280
    assert checkpoint.saved(store) == [960, 1280]
    rows = read_metrics(store)
    assert rows[-1]["samples"] == 1280
    assert {"loss_discriminator", "loss_generator", "accuracy_discriminator"} <= set(rows[0])
    assert any("tfevents" in key for key in store.list("train/"))
    assert specs.dump(spec)["train"]["samples"] == 1280


# --- faults --------------------------------------------------------------------------------------


TWO = ["train.workers=2", "train.samples=6400"]


@pytest.fixture(scope="module")
def undisturbed(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What two workers learn when nothing happens to them."""
    spec = small_spec(tmp_path_factory.mktemp("undisturbed"), *TWO)
    train(spec)
    return final_state(spec)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(400)
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hangs"])
def test_without_a_worker_it_goes_on_to_the_same_weights(
    fault: signal.Signals, undisturbed: dict, tmp_path: Path
) -> None:
    struck = small_spec(tmp_path, *TWO, "train.stall_timeout_s=10")
    with ThreadPoolExecutor(1) as pool:
        striking = pool.submit(_strike, fault, lambda: checkpoint.saved(Store(struck.run_uri)))
        train(struck)
        victim = striking.result()
    assert not victim.is_running()  # Ray has ended the one that hung
    assert_bit_equal(undisturbed, final_state(struck))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(400)
def test_a_worker_that_never_comes_up(undisturbed: dict, tmp_path: Path) -> None:
    struck = small_spec(tmp_path, *TWO, "train.start_timeout_s=20")
    with ThreadPoolExecutor(1) as pool:
        striking = pool.submit(_strike, signal.SIGSTOP, lambda: True)
        with pytest.raises(IncompleteError, match="no worker came up for 40 s"):
            train(struck)
        striking.result().kill()
    # What was given up continues in this process, with the worker that Ray now starts instead.
    deadline = time.monotonic() + 120
    while 6400 not in checkpoint.saved(Store(struck.run_uri)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert_bit_equal(undisturbed, final_state(struck))


def _strike(fault: signal.Signals, ready: Callable[[], object]) -> psutil.Process:
    """Send a signal to a training worker as soon as there is a new one and things are ready."""
    before, deadline = set(_train_workers()), time.monotonic() + 60
    while time.monotonic() < deadline:
        new = [p for p in _train_workers() if p not in before]
        if new and ready():
            new[-1].send_signal(fault)
            return new[-1]
        time.sleep(0.005)
    raise AssertionError("no worker came")


def _train_workers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_everything_killed_at_random_times_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    """The driver, Ray and its workers at once, again and again, in a cluster of their own."""
    options = ["train.workers=2", "train.samples=32000", "train.checkpoint_every=1600"]
    root = Path(__file__).resolve().parents[1]

    def start(folder: str) -> subprocess.Popen:
        code = f"""
import sys, ray
sys.path.insert(0, "tests")
from conftest import small_spec
from genai_ray.training.train import train
ray.init(address="local", num_cpus=2, include_dashboard=True, log_to_driver=False)
train(small_spec({str(tmp_path / folder)!r}, *{options!r}))
"""
        return subprocess.Popen([sys.executable, "-c", code], cwd=root, stderr=subprocess.DEVNULL)

    def newest() -> int:
        return max(checkpoint.saved(Store(spec.run_uri)), default=0)

    moments = random.Random(7)
    spec = small_spec(tmp_path / "b", *options)
    for blow in range(4):  # the first may fall anywhere, the others while it trains
        before, process = newest(), start("b")
        deadline = time.monotonic() + 100
        while blow and newest() == before:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 1 if blow else 12))
        everything = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
        for one in everything:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait(10)
    assert 0 < newest() < spec.train.samples
    for folder in "ab":
        assert start(folder).wait(200) == 0
    assert_bit_equal(final_state(small_spec(tmp_path / "a", *options)), final_state(spec))


@pytest.mark.slow
def test_a_store_that_is_full_ends_as_incomplete_and_goes_on(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk: a write fails half-way."""
    whole, full = small_spec(tmp_path / "a"), small_spec(tmp_path / "b")
    train(whole)
    size = max(p.stat().st_size for p in (tmp_path / "a").rglob("checkpoint-*"))
    code = f"""
import resource, signal, sys
sys.path.insert(0, 'tests')
from conftest import small_spec
from genai_ray.training.train import train
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2}, {size // 2}))
try:
    train(small_spec({str(tmp_path / "b")!r}))
except Exception as error:
    print(type(error).__name__, error)
"""
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=100)
    assert done.stdout.startswith("IncompleteError"), done.stdout + done.stderr
    assert "a checkpoint could not be stored" in done.stdout
    assert "File too large" in done.stdout
    assert checkpoint.saved(Store(full.run_uri)) == []
    train(full)
    assert_bit_equal(final_state(whole), final_state(full))


def test_a_checkpoint_is_never_unpickled_into_code(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self):
            return (Path(tmp_path / "harmed").touch, ())

    spec = small_spec(tmp_path / "store")
    train(spec)
    store = Store(spec.run_uri)
    store.put(checkpoint.key(1279), checkpoint.pack({"samples": Harm()}))
    store.delete(checkpoint.key(1280))
    with pytest.warns(checkpoint.DamagedCheckpointWarning, match="going back"):
        train(spec)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.workers=3", "train.global_batch: got 64; must be divisible by train.workers=3"),
        ("train.micro_batch=48", "must be divisible by train.micro_batch=48. Use train.global_batch"),
        ("train.workers=[2,1]", r"train.workers: got \(2, 1\); must be a number, or"),
        ("train.precision=tf32", "train.precision: got 'tf32'; needs train.device=cuda"),
        ("train.compile=cuda_graphs", "train.compile: got 'cuda_graphs'; needs train.device=cuda"),
        ("model.learning_rate=.inf", "model.learning_rate: got inf"),
    ],
)
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        small_spec("/nowhere", override)


# --- what changes speed, not the result ----------------------------------------------------------


def first_losses(spec: Spec, count: int = 4) -> list[float]:
    """Loss of each phase of the first steps."""
    data = load(spec)
    state = State(spec, data.codec, data.digest, torch.device("cpu"))
    if spec.train.compile != "none":
        compile_networks(state.family, spec)
    found: list[float] = []
    losses = state.family.loss

    def recorded(*args):
        loss, logs = losses(*args)
        found.append(float(loss.detach()))
        return loss, logs

    state.family.loss = recorded  # pyright: ignore
    for _ in zip(steps(spec, state, data, 0), range(count), strict=False):
        pass
    return found


@pytest.mark.parametrize(
    ("override", "tolerance"), [("train.channels_last=false", 1e-4), ("train.precision=bf16", 3e-2)]
)
def test_layout_and_precision_keep_the_losses(override: str, tolerance: float) -> None:
    plain = first_losses(small_spec("/nowhere"))
    assert first_losses(small_spec("/nowhere", override)) == pytest.approx(plain, rel=tolerance)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("penalty", ["none", "gradient"])
def test_compiled_networks_keep_the_losses(penalty: str) -> None:
    options = [f"model.penalty={penalty}", "model.width=4"]
    plain = first_losses(small_spec("/nowhere", *options))
    compiled = first_losses(small_spec("/nowhere", *options, "train.compile=default"))
    assert compiled == pytest.approx(plain, rel=1e-3)


def test_micro_batches_add_up_to_the_batch() -> None:
    spec = small_spec("/nowhere", "train.workers=[1,4]")
    for world in (1, 2, 3, 4):
        cuts = [c for rank in range(world) for c in micro_batches(spec, rank, world)]
        assert [c.start for c in cuts] == [0, 16, 32, 48]
        assert all(micro_batches(spec, rank, world) for rank in range(world))
