"""Train a model, data-parallel, by Ray Train: `train(spec)`.

A step shows one global batch and walks the family's phases. What a step does depends on
(spec, step) alone: the batch and its randomness are cut into micro-batches, each of w workers takes
a run of them, and gradients are added up by one flat all-reduce a phase. So the number of workers
changes speed, not the order of samples, and may change while training; and a run that goes on from
a checkpoint is the run that was never stopped.
"""

import contextlib
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genai_ray import checkpoint, cluster, config, rng, watch
from genai_ray.config import Spec
from genai_ray.data import Data, codec_from_json, load
from genai_ray.errors import IncompleteError, UserError
from genai_ray.feed import micro_batches, real_batches, step_draws
from genai_ray.models import Family
from genai_ray.models.families import Batch, Draws, Moment, Phase
from genai_ray.runs import claim
from genai_ray.state import State, learning_rate
from genai_ray.storage import Store

_PREEMPTION_POLL_S = 2.0
_RESIZE_POLL_S = 10.0  # between looks whether more workers could join
_ROLL_CALL_S = 1.0
_STARTS = 3  # of a worker group that does not come up, before the call ends
_PENDING_LOSSES = 50  # on a card: looked at together, since each look waits for the card


@dataclass(frozen=True)
class TrainResult:
    """samples: real samples seen by the model; seconds and rate: of this call alone."""

    samples: int
    seconds: float
    rate: float


class DivergedError(IncompleteError):
    """A loss stopped being finite; the message says at which step and phase."""


def train(spec: Spec, data: Data | None = None) -> TrainResult:
    """Train until `spec.train.samples` real samples were seen, going on from what is in the store.

    Args:
        spec: the run.
        data: the real data, if already loaded.

    Raises:
        UserError: for bad input, another fingerprint, or more workers than the cluster has.
        DivergedError: for a loss that is not finite.
        IncompleteError: for workers that crash or do not come up, or a store that takes nothing.
    """
    store = Store(spec.run_uri)
    store.check()
    if spec.train.mlflow:
        watch.require_mlflow(spec.train.mlflow)
    data = data or load(spec.data, conditional=spec.model.trains_on_labels)
    if not data.resident and not spec.train.workers:
        raise UserError(
            "train.workers",
            0,
            f"cannot stream, and the data are larger than data.resident_gb={spec.data.resident_gb:g}",
            "Set train.workers=1, or data.ingest=resident.",
        )
    if spec.train.workers:
        cluster.connect()
        cluster.require(
            "train.workers",
            spec.train.least_workers,
            _resources(spec),
            timeout_s=spec.train.start_timeout_s,
            remedy="Lower train.workers or train.cpus_per_worker, or use a larger cluster; "
            "train.start_timeout_s says how long to wait.",
        )
    claim(store, spec)
    if (samples := finished(store, spec)) is not None:
        return TrainResult(samples=samples, seconds=0.0, rate=0.0)
    shared = {"spec": config.dump(spec), "codec": data.codec.to_json(), "source": data.digest}
    if not spec.train.workers:
        return TrainResult(**_fit(shared, data, rank=0, world=1))
    return TrainResult(**_fit_on_cluster(spec, shared, data))


def finished(store: Store, spec: Spec) -> int | None:
    """Samples seen by a run that is trained to its end; None if it is not."""
    newest = max(checkpoint.saved(store), default=0)
    if newest >= spec.train.samples:
        return newest
    if spec.train.patience and newest:
        state = checkpoint.latest(store)
        if state is not None and state["progress"]["ended"]:
            return state["samples"]
    return None


# --- Ray -----------------------------------------------------------------------------------------


def _resources(spec: Spec) -> dict[str, float]:
    gpu = {"GPU": 1.0} if spec.train.device == "cuda" else {}
    return {"CPU": float(spec.train.cpus_per_worker)} | gpu


def _fit_on_cluster(spec: Spec, shared: dict[str, Any], data: Data) -> dict[str, Any]:
    import ray
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    # Ray gives a group that finds no place this long, and then tries again.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(spec.train.start_timeout_s / _STARTS)
    # One copy a node, mapped by every worker on it.
    shelf = ray.put(data)
    # Wherever it lies, that node may be lost.
    roll: Any = ray.remote(_Roll).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    with tempfile.TemporaryDirectory(prefix="genai_ray-") as scratch:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"shared": shared, "data": [shelf], "roll": roll},
            torch_config=TorchConfig(timeout_s=math.ceil(spec.train.stall_timeout_s)),
            scaling_config=ScalingConfig(
                num_workers=spec.train.workers,
                use_gpu=spec.train.device == "cuda",
                resources_per_worker=_resources(spec),
                elastic_resize_monitor_interval_s=_RESIZE_POLL_S,
            ),
            # Checkpoints are ours (checkpoint.py); Ray only keeps its own notes here.
            run_config=RunConfig(
                name=spec.name,
                storage_path=scratch,
                failure_config=FailureConfig(
                    max_failures=spec.train.max_failures, controller_failure_limit=_STARTS
                ),
                # Without a dashboard Ray's own watcher warns every second.
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        try:
            result: Any = _while_answered(roll, 2 * spec.train.start_timeout_s, trainer.fit)
            result = result.return_value
        except TrainingFailedError as error:
            raise IncompleteError(
                f"training of {spec.run_uri} stopped: its workers crashed more than "
                f"train.max_failures={spec.train.max_failures} times, or did not come up: {error}"
            ) from error
    if "error" in result:
        raise result["error"]
    return result


class _Roll:
    """An actor that the workers answer to, since Ray waits for ever for one that hangs at start."""

    def __init__(self) -> None:
        self._answered = time.monotonic()

    def answer(self) -> None:
        self._answered = time.monotonic()

    def silence(self) -> float:
        """Seconds since any worker answered."""
        return time.monotonic() - self._answered


def _while_answered(roll: Any, limit_s: float, call: Callable[[], Any]) -> Any:
    """The result of a call that is given up when no worker answers for so long.

    What was given up is still held by this process, and ends with it.
    """
    import ray

    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    while True:
        with contextlib.suppress(TimeoutError):
            return done.result(timeout=_ROLL_CALL_S)
        silence: Any = ray.get(roll.silence.remote(), timeout=limit_s)
        if silence > limit_s:
            raise IncompleteError(
                f"no worker came up for {limit_s:g} s, twice train.start_timeout_s; the same "
                "command goes on from the newest checkpoint"
            )


def _answer(roll: Any, done: threading.Event) -> None:
    while not done.wait(_ROLL_CALL_S):
        roll.answer.remote()


def _worker(arguments: dict[str, Any]) -> dict[str, Any]:
    import ray
    import ray.train.torch

    context = ray.train.get_context()
    if (device := ray.train.torch.get_device()).type == "cuda":
        torch.cuda.set_device(device)  # the workers of a node see all its cards
    done = threading.Event()
    threading.Thread(target=_answer, args=(arguments["roll"], done), daemon=True).start()
    data: Any = ray.get(arguments["data"][0])
    try:
        return _fit(arguments["shared"], data, rank=context.get_world_rank(), world=context.get_world_size())
    except (UserError, IncompleteError) as error:
        # As a value: an exception would be taken for a crash and tried again.
        return {"error": error}
    finally:
        done.set()


def _preempted() -> bool:
    """Whether a node of this job is about to be taken away; a barrier of all workers."""
    import ray.train

    return ray.train.get_preemption_info() is not None


# --- the loop ------------------------------------------------------------------------------------


def _fit(shared: dict[str, Any], data: Data, *, rank: int, world: int) -> dict[str, Any]:
    """What every worker runs; returns the fields of a TrainResult."""
    spec, codec = config.parse(shared["spec"]), codec_from_json(shared["codec"])
    device = torch.device(spec.train.device)
    torch.set_num_threads(max(1, int(spec.train.cpus_per_worker)))
    torch.backends.cuda.matmul.allow_tf32 = spec.train.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = spec.train.precision == "tf32"
    store = Store(spec.run_uri)
    state = State(spec, codec, shared["source"], device)
    samples = _resume(store, spec, state, rank, world)
    if spec.train.compile != "none":
        compile_networks(state.family, spec)

    first, started = samples, time.monotonic()
    with contextlib.ExitStack() as stack:
        watcher = None
        if rank == 0:
            watcher = watch.Watcher(store, spec, state, data, done=first, workers=world)
            stack.enter_context(watcher)
        for seen in steps(spec, state, data, first, rank, world, watcher):
            samples = seen
    seconds = time.monotonic() - started
    rate = (samples - first) / max(seconds, 1e-9)
    return {"samples": samples, "seconds": seconds, "rate": rate}


def _resume(store: Store, spec: Spec, state: State, rank: int, world: int) -> int:
    """Load the newest checkpoint that rank 0 can read; the samples seen."""
    found = checkpoint.latest(store) if rank == 0 else None
    samples = 0 if found is None else found["samples"]
    if world > 1:
        agreed = torch.tensor(samples, device=spec.train.device)
        dist.broadcast(agreed, 0)
        samples = int(agreed)
        if rank and samples:
            found = checkpoint.unpack(store.read(checkpoint.key(samples)))
    if found is not None:
        if found["source"] != state.source:
            raise UserError(
                "data",
                spec.data.source,
                "holds other samples than the run was begun with",
                "Restore them, or give the run another name.",
            )
        state.load_state_dict(found)
    return samples


def compile_networks(family: Family, spec: Spec) -> None:
    """Compile each network's call. Penalties use `forward` and stay as they are: what is compiled
    has no second derivative.
    """
    mode = "reduce-overhead" if spec.train.compile == "cuda_graphs" else None
    for net in family.nets.values():
        for part in net.values() if isinstance(net, nn.ModuleDict) else (net,):
            part.compile(mode=mode, dynamic=False)


def steps(
    spec: Spec,
    state: State,
    data: Data,
    samples: int,
    rank: int = 0,
    world: int = 1,
    watcher: "watch.Watcher | None" = None,
) -> Iterator[int]:
    """Take the steps that are left; yields the samples seen after each.

    Raises:
        DivergedError: on every rank at the same step.
        IncompleteError: on every rank, if rank 0 cannot store or the replicas differ.
    """
    batch, total = spec.train.global_batch, spec.train.samples
    first = samples // batch
    cuts = micro_batches(spec, rank, world)
    device = torch.device(spec.train.device)
    feed = real_batches(spec, data, first, cuts, device)
    reduction, losses = _Reduction(world, device), _Losses()
    noticed = False
    for step in range(first, math.ceil(total / batch)):
        moment = Moment(step, step * batch)
        samples = min((step + 1) * batch, total)
        real = next(feed)
        logs: dict[str, Tensor] = {}
        for number, phase in enumerate(state.family.phases):
            if step % phase.interval == 0:
                draws = step_draws(spec, state.family, moment, number, cuts, device)
                loss, values = _step(state, phase, real, draws, moment, cuts, reduction)
                losses.add(step, phase.name, loss)
                logs |= values
                if watcher and watcher.log.closes_row(samples):
                    logs[f"gradient_{phase.name}"] = _gradient_norm(state, phase)
        state.update_average(batch, samples)
        if watcher:
            watcher.log.step(samples, logs)
        # A barrier, so all ask at the same step, and only now and then.
        notice = not noticed and reduction.asked(step) and _preempted()
        noticed = noticed or notice
        measure = _measurement_is_due(spec, samples)
        if notice or measure or _checkpoint_is_due(spec, samples):
            losses.check()
            _synchronise([state.family.nets, state.average], world)
            error = watcher.save(samples, measure, flush=notice) if watcher else None
            _agree(state, error, world, device)
        yield samples
        if state.progress["ended"]:
            return
    losses.check()


def _step(
    state: State,
    phase: Phase,
    real: Batch,
    draws: Draws,
    moment: Moment,
    cuts: list[slice],
    reduction: "_Reduction",
) -> tuple[Tensor, dict[str, Tensor]]:
    """One optimiser step of one phase; the loss over all workers, and the logs of this one."""
    spec, nets = state.spec, state.family.nets
    for name, net in nets.items():
        # The other networks pass gradients on but do not collect any.
        net.requires_grad_(name == phase.net)
    optimizer = state.optimizers[phase.net]
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(spec, phase.net, moment.samples)
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=real.values.device)
    logs: dict[str, Tensor] = {}
    for cut in cuts:
        part = slice(cut.start - cuts[0].start, cut.stop - cuts[0].start)
        if spec.model.dropout:
            torch.manual_seed(rng.fold(spec.seed, rng.Stream.TRAIN_DROPOUT, moment.step, cut.start))
        batch = Batch(real.values[part], None if real.labels is None else real.labels[part])
        with torch.autocast(real.values.device.type, torch.bfloat16, enabled=spec.train.precision == "bf16"):
            loss, values = state.family.loss(
                phase, batch, Draws(draws.normal[part], draws.uniform[part]), moment
            )
        share = (cut.stop - cut.start) / spec.train.global_batch
        (loss * share).backward()
        total += loss.detach() * share
        for name, value in values.items():
            logs[name] = logs.get(name, 0) + value / len(cuts)
    total = reduction(nets[phase.net].parameters(), total)
    # On a card this is looked at later; weights that a step has spoilt are never stored.
    if total.is_cuda or math.isfinite(total):
        optimizer.step()
    return total, logs


class _Reduction:
    """Adds gradients up over the workers, as one flat tensor.

    The loss rides along, so that all ranks see at the same step what is not finite, and a flag of
    the clock of rank 0: it is time to ask for news of preemption.
    """

    def __init__(self, world: int, device: torch.device):
        self.world = world
        self._every = 1 if device.type == "cpu" else _PENDING_LOSSES
        self._due = torch.zeros(1, device=device)
        self._seen = self._due
        self._asked = time.monotonic()

    def __call__(self, parameters: Iterable[Tensor], loss: Tensor) -> Tensor:
        if self.world == 1:
            return loss
        if dist.get_rank() == 0 and time.monotonic() - self._asked > _PREEMPTION_POLL_S:
            self._due.fill_(1.0)
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([*(g.flatten() for g in grads), loss.reshape(1), self._due])
        dist.all_reduce(flat)
        parts = flat[:-2].split([g.numel() for g in grads])
        sums = [p.view_as(g) for p, g in zip(parts, grads, strict=True)]
        torch._foreach_copy_(grads, sums)  # pyright: ignore
        self._seen = flat[-1:]
        return flat[-2]

    def asked(self, step: int) -> bool:
        """Whether all ranks shall now ask; the same on every rank."""
        if self.world == 1 or step % self._every or not bool(self._seen):
            return False
        self._due.zero_()
        self._seen = self._due
        self._asked = time.monotonic()
        return True


class _Losses:
    """Ends training at the first loss that is not finite.

    On a card every look waits for the card, so many losses are looked at together, and always
    before something is stored.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[int, str, Tensor]] = []

    def add(self, step: int, phase: str, loss: Tensor) -> None:
        self._pending.append((step, phase, loss))
        if not loss.is_cuda or len(self._pending) >= _PENDING_LOSSES:
            self.check()

    def check(self) -> None:
        pending, self._pending = self._pending, []
        if not pending or bool(torch.stack([p[2] for p in pending]).isfinite().all()):
            return
        step, phase, loss = next(p for p in pending if not math.isfinite(p[2]))
        raise DivergedError(
            f"step {step}, phase {phase}: the loss is {float(loss)}; lower "
            "model.learning_rate, or check the data"
        )


def _gradient_norm(state: State, phase: Phase) -> Tensor:
    grads = [p.grad for p in state.family.nets[phase.net].parameters() if p.grad is not None]
    return torch.stack([g.norm() for g in grads]).norm()


def _synchronise(modules: Iterable[nn.Module], world: int) -> None:
    """Average batch-norm statistics over the workers, so what is saved depends on no rank.

    Raises:
        IncompleteError: if the weights, which all ranks step alike, are not the same on all.
    """
    if world == 1:
        return
    for module in modules:
        weights = torch.stack([p.detach().double().sum() for p in module.parameters()])
        ends = torch.stack([weights, -weights])
        dist.all_reduce(ends, dist.ReduceOp.MAX)
        if not torch.equal(ends[0], -ends[1]):
            raise IncompleteError("the workers' weights differ; go on from the checkpoint before")
        buffers = [b for b in module.buffers() if b.is_floating_point()]
        if buffers:
            flat = torch.cat([b.flatten() for b in buffers])
            dist.all_reduce(flat)
            parts = (flat / world).split([b.numel() for b in buffers])
            for buffer, part in zip(buffers, parts, strict=True):
                buffer.copy_(part.view_as(buffer))


def _agree(state: State, error: IncompleteError | None, world: int, device: torch.device) -> None:
    """Let all ranks know whether rank 0 failed to store, or saw that training may end."""
    if world > 1:
        news = torch.tensor([error is not None, state.progress["ended"]], device=device).int()
        dist.broadcast(news, 0)
        state.progress["ended"] = bool(news[1])
        if news[0] and error is None:
            error = IncompleteError("rank 0 could not store a checkpoint")
    if error is not None:
        raise error


def _checkpoint_is_due(spec: Spec, samples: int) -> bool:
    every = spec.train.checkpoint_every
    return samples == spec.train.samples or watch.passes(samples, spec.train.global_batch, every)


def _measurement_is_due(spec: Spec, samples: int) -> bool:
    every = spec.train.evaluate_every
    if every is None:
        return False
    return samples == spec.train.samples or watch.passes(samples, spec.train.global_batch, every)
