"""A group of Ray Train workers, each of which runs the same loop: `train_on_cluster`."""

import contextlib
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch
import torch.distributed as dist

from genai_ray import modalities
from genai_ray.errors import IncompleteError, UserError
from genai_ray.lease import Lease
from genai_ray.modality import Data
from genai_ray.spec import Spec
from genai_ray.storage import Store
from genai_ray.training import checkpoint
from genai_ray.training.loop import compile_networks, steps
from genai_ray.training.state import State
from genai_ray.training.watcher import Watcher

_RESIZE_POLL_S = 10.0  # how often Ray checks whether more workers could join
_HEARTBEAT_S = 1.0
_START_ATTEMPTS = 3  # of a worker group that does not come up


def resources(spec: Spec) -> dict[str, float]:
    gpu = {"GPU": 1.0} if spec.train.device == "cuda" else {}
    return {"CPU": float(spec.train.cpus_per_worker)} | gpu


def train_on_cluster(spec: Spec, shared: dict[str, Any], data: Data, held: Lease) -> dict[str, Any]:
    """The fields of a TrainResult; raises LeaseError when the lease is lost."""
    import ray
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    # Ray waits this long for the resources of a group, and then tries again.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(spec.train.start_timeout_s / _START_ATTEMPTS)
    # One copy a node, mapped by every worker on it.
    data_ref = [ray.put(data)]
    # It needs no resources, and restarts if its node is lost.
    heartbeat: Any = ray.remote(_Heartbeat).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    with tempfile.TemporaryDirectory(prefix="genai_ray-") as scratch:
        trainer = TorchTrainer(
            _worker,
            train_loop_config={"shared": shared, "data": data_ref, "heartbeat": heartbeat},
            torch_config=TorchConfig(timeout_s=math.ceil(spec.train.stall_timeout_s)),
            scaling_config=ScalingConfig(
                num_workers=spec.train.workers,
                use_gpu=spec.train.device == "cuda",
                resources_per_worker=resources(spec),
                elastic_resize_monitor_interval_s=_RESIZE_POLL_S,
            ),
            # Checkpoints are ours (checkpoint.py); Ray keeps only its own records here.
            run_config=RunConfig(
                name=spec.name,
                storage_path=scratch,
                failure_config=FailureConfig(
                    max_failures=spec.train.max_failures, controller_failure_limit=_START_ATTEMPTS
                ),
                # Without a dashboard Ray's own watcher warns every second.
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        try:
            result: Any = _while_alive(heartbeat, 2 * spec.train.start_timeout_s, trainer.fit, held)
            result = result.return_value
        except TrainingFailedError as error:
            raise IncompleteError(
                f"training of {spec.run_uri} stopped: its workers crashed more than "
                f"train.max_failures={spec.train.max_failures} times, or did not come up: {error}"
            ) from error
    if "error" in result:
        raise result["error"]
    return result


class _Heartbeat:
    """An actor that holds the time of the workers' last heartbeat.

    Ray Train's controller waits without a timeout for a new worker's first answer, so one that hangs while it starts
    would block training for ever:
    https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/train/v2/_internal/execution/worker_group/worker_group.py#L494
    """

    def __init__(self) -> None:
        self._last = time.monotonic()

    def beat(self) -> None:
        self._last = time.monotonic()

    def age(self) -> float:
        """Seconds since the last heartbeat of any worker."""
        return time.monotonic() - self._last


def _while_alive(heartbeat: Any, limit_s: float, call: Callable[[], Any], held: Lease) -> Any:
    """The result of a call, which is abandoned when the last heartbeat is older than the limit, or the lease is lost.

    An abandoned call keeps running in this process, and ends with it.
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
            return done.result(timeout=_HEARTBEAT_S)
        held.check()
        age: Any = ray.get(heartbeat.age.remote(), timeout=limit_s)
        if age > limit_s:
            raise IncompleteError(
                f"no worker came up for {limit_s:g} s, twice train.start_timeout_s; the same command resumes from the "
                "newest checkpoint"
            )


def _beat(heartbeat: Any, done: threading.Event) -> None:
    while not done.wait(_HEARTBEAT_S):
        heartbeat.beat.remote()


def _worker(arguments: dict[str, Any]) -> dict[str, Any]:
    import ray
    import ray.train.torch

    context = ray.train.get_context()
    if (device := ray.train.torch.get_device()).type == "cuda":
        torch.cuda.set_device(device)  # the workers of a node see all its GPUs
    done = threading.Event()
    threading.Thread(target=_beat, args=(arguments["heartbeat"], done), daemon=True).start()
    data: Any = ray.get(arguments["data"][0])
    try:
        return train_rank(arguments["shared"], data, rank=context.get_world_rank(), world=context.get_world_size())
    except (UserError, IncompleteError) as error:
        # As a value: Ray would take an exception for a crash and start the worker again.
        return {"error": error}
    finally:
        done.set()


def _preempted() -> bool:
    """Whether a node of this job is about to be taken away; a barrier of all workers."""
    import ray.train

    return ray.train.get_preemption_info() is not None


def train_rank(
    shared: dict[str, Any], data: Data, *, rank: int, world: int, held: Lease | None = None
) -> dict[str, Any]:
    """What every worker runs; returns the fields of a TrainResult. held: the lease, where the driver does it itself."""
    spec, codec = modalities.parse(shared["spec"]), modalities.codec_from_json(shared["codec"])
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
            watcher = Watcher(store, spec, state, data, done=first, workers=world)
            stack.enter_context(watcher.log)
        for seen in steps(spec, state, data, first, rank, world, watcher, _preempted):
            samples = seen
            if held:
                held.check()
    seconds = time.monotonic() - started
    return {"samples": samples, "seconds": seconds, "rate": (samples - first) / max(seconds, 1e-9)}


def _resume(store: Store, spec: Spec, state: State, rank: int, world: int) -> int:
    """Load the newest checkpoint that rank 0 can read; returns the samples seen."""
    stored = checkpoint.latest(store) if rank == 0 else None
    samples = 0 if stored is None else stored["samples"]
    if world > 1:
        agreed = torch.tensor(samples, device=spec.train.device)
        dist.broadcast(agreed, 0)
        samples = int(agreed)
        if rank and samples:
            stored = checkpoint.unpack(store.read(checkpoint.key(samples)))
    if stored is not None:
        state.load_state_dict(stored)
    return samples
