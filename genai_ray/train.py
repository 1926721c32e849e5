"""Train a model, data-parallel, by Ray Train: `train(spec)`.

A step shows one global batch and walks the family's phases. What a step does depends on
(spec, step) alone: rank r of w takes the r-th slice of the batch and of the noise, gradients are
averaged by one flat all-reduce a phase. So changing the number of workers changes speed, not the
order of samples, and a run that goes on from a checkpoint is the run that was never stopped.
"""

import contextlib
import copy
import json
import math
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from genai_ray import checkpoint, cluster, config, rng
from genai_ray.config import Spec
from genai_ray.data.image import ImageCodec, ImageData, load_images
from genai_ray.errors import IncompleteError, UserError
from genai_ray.models import Family, build
from genai_ray.models.families import Batch, Phase
from genai_ray.progress import Progress
from genai_ray.runs import claim
from genai_ray.storage import Store

_METRIC_ROWS = 400  # of a whole run; enough for a curve, little enough to keep
_EMA_RAMP_UP = 0.05  # of the samples seen: the average forgets the first steps sooner


@dataclass(frozen=True)
class TrainResult:
    """samples: real samples seen by the model; seconds and rate: of this call alone."""

    samples: int
    seconds: float
    rate: float


class DivergedError(IncompleteError):
    """A loss stopped being finite; the message says at which step and phase."""


def train(spec: Spec, data: ImageData | None = None) -> TrainResult:
    """Train until `spec.train.samples` real samples were seen, going on from what is in the store.

    Args:
        spec: the run.
        data: the real data, if already loaded.

    Raises:
        UserError: for bad input, another fingerprint, or more workers than the cluster has.
        DivergedError: for a loss that is not finite.
    """
    store = Store(spec.run_uri)
    store.check()
    data = data or load_images(spec.data, conditional=spec.model.conditional)
    if spec.train.workers:
        cluster.connect()
        cluster.require(
            "train.workers", spec.train.workers, _resources(spec),
            timeout_s=spec.train.start_timeout_s,
            remedy="Lower train.workers or train.cpus_per_worker, or use a larger cluster; "
            "train.start_timeout_s says how long to wait.",
        )  # fmt: skip
    claim(store, spec)
    if spec.train.samples <= max(checkpoint.saved(store), default=0):
        return TrainResult(samples=spec.train.samples, seconds=0.0, rate=0.0)
    shared = {
        "spec": config.dump(spec),
        "codec": data.codec.to_json(),
        "source": data.digest,
    }
    if not spec.train.workers:
        result = _fit(shared, data.train_images, data.train_labels, rank=0, world=1)
    else:
        result = _fit_on_cluster(spec, shared, data)
    return TrainResult(**result)


# --- Ray -----------------------------------------------------------------------------------------


def _resources(spec: Spec) -> dict[str, float]:
    gpu = {"GPU": 1.0} if spec.train.device == "cuda" else {}
    return {"CPU": float(spec.train.cpus_per_worker)} | gpu


def _fit_on_cluster(spec: Spec, shared: dict[str, Any], data: ImageData) -> dict[str, Any]:
    import ray
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    # One copy a node, mapped by every worker on it.
    arrays = ray.put((data.train_images, data.train_labels))
    with tempfile.TemporaryDirectory(prefix="genai_ray-") as scratch:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"shared": shared, "arrays": [arrays]},
            scaling_config=ScalingConfig(
                num_workers=spec.train.workers,
                use_gpu=spec.train.device == "cuda",
                resources_per_worker=_resources(spec),
            ),
            # Checkpoints are ours (checkpoint.py); Ray only keeps its own notes here.
            run_config=RunConfig(
                name=spec.name,
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=spec.train.max_failures),
                # Without a dashboard Ray's own watcher warns every second.
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        try:
            result: Any = trainer.fit().return_value
        except TrainingFailedError as error:
            raise IncompleteError(
                f"training of {spec.run_uri} stopped after {spec.train.max_failures} restarts: "
                f"{error}"
            ) from error
    if "diverged" in result:
        raise DivergedError(result["diverged"])
    return result


def _worker(arguments: dict[str, Any]) -> dict[str, Any]:
    import ray
    import ray.train.torch

    context = ray.train.get_context()
    if (device := ray.train.torch.get_device()).type == "cuda":
        torch.cuda.set_device(device)  # the workers of a node see all its cards
    images, labels = ray.get(arguments["arrays"][0])
    try:
        return _fit(
            arguments["shared"], images, labels,
            rank=context.get_world_rank(), world=context.get_world_size(),
        )  # fmt: skip
    except DivergedError as error:
        # As a value: an exception would be taken for a crash and tried again.
        return {"diverged": str(error)}


# --- the loop ------------------------------------------------------------------------------------


class _State:
    """The networks, their averages and optimisers, and how to save and load them whole."""

    def __init__(self, spec: Spec, codec: ImageCodec, source: str, device: torch.device):
        self.codec, self.source = codec, source
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.fold(spec.seed, rng.Stream.INIT))
            self.family: Family = new_family(spec, codec)
        self.family.nets.to(device)
        self.average = copy.deepcopy(self.family.nets[self.family.averaged])
        self.average.requires_grad_(False).eval()
        self.optimizers = {
            phase.name: torch.optim.Adam(
                self.family.nets[phase.net].parameters(), lr=spec.model.learning_rate,
                betas=spec.model.betas, fused=True,
            )
            for phase in self.family.phases
        }  # fmt: skip

    def state_dict(self, samples: int) -> dict[str, Any]:
        return {
            "samples": samples,
            "codec": self.codec.to_json(),
            "source": self.source,
            "nets": self.family.nets.state_dict(),
            "average": self.average.state_dict(),
            "optimizers": {k: o.state_dict() for k, o in self.optimizers.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.family.nets.load_state_dict(state["nets"])
        self.average.load_state_dict(state["average"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])


def new_family(spec: Spec, codec: ImageCodec) -> Family:
    """The untrained model of a spec for data of a shape; weights by torch's current generator."""
    classes = len(codec.classes or ()) if spec.model.conditional else 0
    return build(spec.model, codec, classes)


def _fit(
    shared: dict[str, Any], images: NDArray[np.uint8], labels: NDArray[np.int64] | None,
    *, rank: int, world: int,
) -> dict[str, Any]:  # fmt: skip
    """What every worker runs; returns the fields of a TrainResult."""
    spec, codec = config.parse(shared["spec"]), ImageCodec.from_json(shared["codec"])
    device = torch.device(spec.train.device)
    torch.set_num_threads(max(1, int(spec.train.cpus_per_worker)))
    store = Store(spec.run_uri)
    state = _State(spec, codec, shared["source"], device)
    samples = 0
    if (found := checkpoint.latest(store)) is not None:
        if found["source"] != shared["source"]:
            raise UserError(
                "data", spec.data.source, "holds other images than the run was begun with",
                "Restore them, or give the run another name.",
            )  # fmt: skip
        state.load_state_dict(found)
        samples = found["samples"]
    if not spec.model.conditional:
        labels = None

    first, started = samples, time.monotonic()
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(_Log(store, spec, done=samples)) if rank == 0 else None
        for samples, logs in _steps(spec, state, images, labels, first, rank, world):
            if log:
                log.step(samples, logs)
            if _checkpoint_is_due(spec, samples):
                _synchronise_buffers([state.family.nets, state.average], world)
                if log:
                    log.checkpoint(state, samples)
    seconds = time.monotonic() - started
    rate = (samples - first) / max(seconds, 1e-9)
    return {"samples": samples, "seconds": seconds, "rate": rate}


def _steps(
    spec: Spec, state: _State, images: NDArray[np.uint8], labels: NDArray[np.int64] | None,
    samples: int, rank: int, world: int,
) -> Iterator[tuple[int, dict[str, Tensor]]]:  # fmt: skip
    """Take the steps that are left; yields the samples seen and the logs of each.

    Raises:
        DivergedError: on every rank at the same step.
    """
    device = torch.device(spec.train.device)
    batch, total = spec.train.global_batch, spec.train.samples
    for step in range(samples // batch, math.ceil(total / batch)):
        torch.manual_seed(rng.fold(spec.seed, rng.Stream.TRAIN_DROPOUT, step, rank))
        real = _batch(spec, images, labels, step, rank, world, device)
        logs: dict[str, Tensor] = {}
        for number, phase in enumerate(state.family.phases):
            if step % phase.interval == 0:
                noise = _noise(spec, state.family, step, number, rank, world, device)
                loss, values = _step(state, phase, real, noise, spec)
                logs |= values
                if not math.isfinite(loss):
                    raise DivergedError(
                        f"step {step}, phase {phase.name}: the loss is {loss}; lower "
                        "model.learning_rate, or check the data"
                    )
        samples = min((step + 1) * batch, total)
        _update_average(state, spec.model.ema_half_life, batch, samples)
        yield samples, logs


def _step(
    state: _State, phase: Phase, real: Batch, noise: Tensor, spec: Spec
) -> tuple[float, dict[str, Tensor]]:
    """One optimiser step of one phase; the loss averaged over the workers, and its logs."""
    nets = state.family.nets
    for name, net in nets.items():
        # The other networks pass gradients on but do not collect any.
        net.requires_grad_(name == phase.net)
    with torch.autocast(real.images.device.type, torch.bfloat16,
                        enabled=spec.train.precision == "bf16"):  # fmt: skip
        loss, logs = state.family.loss(phase, real, noise)
    optimizer = state.optimizers[phase.name]
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    mean_loss = _average_gradients(nets[phase.net].parameters(), loss.detach())
    value = float(mean_loss)
    if math.isfinite(value):
        optimizer.step()
    return value, logs


def _average_gradients(parameters: Iterable[Tensor], loss: Tensor) -> Tensor:
    """All-reduce the gradients as one flat tensor; the loss rides along, so all ranks see NaNs."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return loss
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads] + [loss.reshape(1)])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    start = 0
    for grad in grads:
        grad.copy_(flat[start : start + grad.numel()].view_as(grad))
        start += grad.numel()
    return flat[-1]


def _synchronise_buffers(modules: Iterable[torch.nn.Module], world: int) -> None:
    """Average batch-norm statistics over the workers, so what is saved depends on no rank."""
    if world == 1:
        return
    for module in modules:
        buffers = [b for b in module.buffers() if b.is_floating_point()]
        if buffers:
            flat = torch.cat([b.flatten() for b in buffers])
            dist.all_reduce(flat)
            flat /= world
            start = 0
            for buffer in buffers:
                buffer.copy_(flat[start : start + buffer.numel()].view_as(buffer))
                start += buffer.numel()


@torch.no_grad()
def _update_average(state: _State, half_life: int, batch: int, samples: int) -> None:
    """Exponential average with a half-life in samples and a ramp-up (Karras et al. 2020)."""
    half_life = min(half_life, int(samples * _EMA_RAMP_UP))
    decay = 0.5 ** (batch / half_life) if half_life else 0.0
    net = state.family.nets[state.family.averaged]
    for mean, value in zip(state.average.state_dict().values(), net.state_dict().values(),
                           strict=True):  # fmt: skip
        if value.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


def _batch(
    spec: Spec, images: NDArray[np.uint8], labels: NDArray[np.int64] | None,
    step: int, rank: int, world: int, device: torch.device,
) -> Batch:  # fmt: skip
    """This rank's slice of a step's real samples: every sample once an epoch, in a fresh order."""
    positions = _slice(spec.train.global_batch, step, rank, world)
    n = len(images)
    index = np.array([_order(spec.seed, p // n, n)[p % n] for p in positions])
    # Fancy indexing copies, so the batch is writable though the shared array is not.
    pixels = torch.from_numpy(images[index]).to(device).permute(0, 3, 1, 2)
    targets = None if labels is None else torch.from_numpy(labels[index]).to(device)
    return Batch(pixels.float() / 127.5 - 1, targets)


def _noise(
    spec: Spec, family: Family, step: int, number: int, rank: int, world: int,
    device: torch.device,
) -> Tensor:  # fmt: skip
    """This rank's slice of the standard normals of a phase of a step, (N, latent)."""
    positions = _slice(spec.train.global_batch, step * len(family.phases) + number, rank, world)
    stream = rng.Stream.TRAIN_NOISE
    values = rng.normal(spec.seed, stream, positions.start, len(positions), family.latent)
    return torch.from_numpy(values).to(device)


def _slice(batch: int, step: int, rank: int, world: int) -> range:
    share = batch // world
    return range(step * batch + rank * share, step * batch + (rank + 1) * share)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    return rng.permute(rng.fold(seed, epoch), rng.Stream.TRAIN_ORDER, np.arange(n), n)


def _checkpoint_is_due(spec: Spec, samples: int) -> bool:
    every = spec.train.checkpoint_every
    return samples == spec.train.samples or _passes(samples, spec.train.global_batch, every)


def _passes(samples: int, batch: int, every: int) -> bool:
    """Whether the last batch reached or passed a multiple of `every`."""
    return samples // every > (samples - batch) // every


# --- what rank 0 writes --------------------------------------------------------------------------


class _Log:
    """Progress line, metrics.jsonl, TensorBoard events and checkpoints, written beside training.

    Uploads run in one background thread, in order; an upload that failed is raised at the next.
    """

    def __init__(self, store: Store, spec: Spec, *, done: int):
        self.store, self.spec = store, spec
        self.rows = [r for r in read_metrics(store) if r["samples"] <= done]
        self.progress = Progress(
            "train", spec.train.samples, done=done, every_s=spec.train.log_seconds
        )
        self._interval = max(1, spec.train.samples // _METRIC_ROWS)
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._pool = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._events = _Events(store, done)

    def step(self, samples: int, logs: dict[str, Tensor]) -> None:
        for name, value in logs.items():
            self._sums[name] = self._sums.get(name, 0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        if _passes(samples, self.spec.train.global_batch, self._interval):
            means = {k: float(v) / self._counts[k] for k, v in self._sums.items()}
            self._sums, self._counts = {}, {}
            self.rows.append({"samples": samples, **means, "rate": round(self.progress.rate, 1)})
        last = self.rows[-1] if self.rows else {}
        note = "  ".join(f"{k} {v:.3f}" for k, v in last.items() if k not in ("samples", "rate"))
        self.progress.update(samples, note)

    def checkpoint(self, state: _State, samples: int) -> None:
        self._wait()
        packed = checkpoint.pack(state.state_dict(samples))
        grid = _sample_grid(state, self.spec)
        self._pending = self._pool.submit(self._publish, packed, samples, list(self.rows), grid)

    def __enter__(self) -> "_Log":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._wait()
        finally:
            self._pool.shutdown()
            self._events.close()

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()

    def _publish(
        self, packed: bytes, samples: int, rows: list[dict[str, Any]], grid: NDArray[np.uint8]
    ) -> None:
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        self.store.put("train/metrics.jsonl", lines.encode())
        self._events.add(rows, grid, samples)
        # Last, so that what is beside a checkpoint is never older than it.
        self.store.put(checkpoint.key(samples), packed)
        checkpoint.prune(self.store, self.spec.train.keep_checkpoints)


class _Events:
    """TensorBoard events: one file for each time that training was started."""

    def __init__(self, store: Store, done: int):
        self.store, self._written, self._writer = store, done, None
        self._folder = tempfile.TemporaryDirectory(prefix="genai_ray-events-")

    def add(self, rows: list[dict[str, Any]], grid: NDArray[np.uint8], samples: int) -> None:
        from tensorboardX import SummaryWriter  # slow to import: not before the first checkpoint

        if self._writer is None:
            self._writer = SummaryWriter(self._folder.name)
        for row in rows:
            if row["samples"] > self._written:
                for name, value in row.items():
                    if name != "samples":
                        self._writer.add_scalar(name, value, row["samples"])
        self._written = samples
        self._writer.add_image("samples", grid, samples, dataformats="HWC")
        self._writer.flush()
        for path in Path(self._folder.name).iterdir():
            self.store.put(f"train/{path.name}", path.read_bytes())

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._folder.cleanup()


@torch.no_grad()
def _sample_grid(state: _State, spec: Spec, side: int = 8) -> NDArray[np.uint8]:
    """side x side samples of the averaged net for the same noise at every checkpoint, (H, W, C)."""
    family = state.family
    live = family.nets[family.averaged]
    family.nets[family.averaged] = state.average
    sampler = family.sampler()
    family.nets[family.averaged] = live
    device = next(state.average.parameters()).device
    noise = rng.normal(spec.seed, rng.Stream.EVALUATE, 0, side * side, family.latent)
    labels = None
    if spec.model.conditional:
        labels = (torch.arange(side * side) % family.classes).to(device)
    tiles = sampler(torch.from_numpy(noise).to(device), labels).cpu().numpy()
    h, w, c = tiles.shape[1:]
    return tiles.reshape(side, side, h, w, c).swapaxes(1, 2).reshape(side * h, side * w, c)


def read_metrics(store: Store) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl: samples seen, and mean losses since the row before."""
    try:
        lines = store.read("train/metrics.jsonl").decode().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]
