"""Make a data set from a model file: plan -> shards -> receipts -> manifest. Needs no torch.

An item of the Ray Data job is the index of a shard. An actor draws the noise of that shard, runs the model, encodes
the samples, and puts the files and then the receipt. A shard is a pure function of the plan, so it can be made on any
machine, and again, with the same bytes.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from genai_ray import cluster, lease
from genai_ray.dataset import manifest as manifests
from genai_ray.dataset.plan import Plan, Shard, open_plan, refuse_other_fields, reopen, write_fields
from genai_ray.dataset.shards import ShardMaker, with_settled_rows
from genai_ray.errors import IncompleteError, UserError
from genai_ray.progress import Progress
from genai_ray.provenance import Manifest
from genai_ray.spec import GenerateSpec, Spec
from genai_ray.storage import Store, StoreUnavailableError

_MAX_BLOCKS = 4_000  # of the Ray Data job; beyond that a block holds several shards
_COUNT_DEADLINE_S = 120.0  # for the counter of attempts, which may have to move to another node


@dataclass(frozen=True)
class GenerateResult:
    """rows, files, bytes: of the whole data set; seconds and rate: of this call alone."""

    uri: str
    rows: int
    files: int
    bytes: int
    seconds: float
    rate: float


def generate(spec: Spec) -> GenerateResult:
    """Make the missing shards of a run's data set, then its manifest.

    Raises:
        UserError: for bad input, or if the stored data set was begun with other values.
        IncompleteError: if shards failed `generate.max_attempts` times, all others being done; or if another driver
            works on it.
    """
    Store(spec.run_uri).check()
    plan = with_settled_rows(open_plan(spec))
    refuse_other_fields(plan)
    if (manifest := manifests.read_manifest(plan.store)) is not None:
        return _finished(plan, manifest)
    started = time.monotonic()
    stored = len(plan.store.list("_receipts/"))
    if stored < plan.shard_count:
        _require_cluster(plan.store, plan.spec, plan.shard_count - stored)
    with lease.hold(plan.store, spec.generate.lease_s, "generate.lease_s") as held:
        if (manifest := manifests.read_manifest(plan.store)) is not None:
            return _finished(plan, manifest)  # another driver was faster
        write_fields(plan)
        receipts = manifests.read_receipts(plan)
        resumed = len(receipts)
        if failures := _make_missing(plan, receipts, held):
            index, error = failures[0]
            raise IncompleteError(
                f"{plan.store.uri}: {len(failures)} shards failed {plan.spec.max_attempts} times each, all others are "
                f"done; shard {index}: {error}. The same command tries again"
            )
        held.check()
        files, size = manifests.write_manifest(plan, receipts)
        _commit(plan)
    seconds = time.monotonic() - started
    rate = plan.spec.samples * (1 - resumed / plan.shard_count) / seconds
    return GenerateResult(plan.store.uri, plan.spec.samples, files, size, seconds, rate)


def _finished(plan: Plan, manifest: Manifest) -> GenerateResult:
    _commit(plan)
    return GenerateResult(plan.store.uri, manifest.rows, len(manifest.files), manifest.bytes, seconds=0.0, rate=0.0)


def _commit(plan: Plan) -> None:
    """Register the data set elsewhere, if its sink does that."""
    commit = plan.sink.commit
    if commit is not None:
        manifest = manifests.read_manifest(plan.store)
        assert manifest is not None
        commit(plan.spec, plan.store, manifest)


# --- the Ray Data job ----------------------------------------------------------------------------


def _require_cluster(store: Store, spec: GenerateSpec, shards: int) -> None:
    cluster.connect(store)
    gpu = {"GPU": float(spec.gpus_per_worker)} if spec.device == "cuda" else {}
    cluster.require(
        "generate.workers",
        min(spec.workers, shards),
        {"CPU": float(spec.cpus_per_worker)} | gpu,
        timeout_s=spec.start_timeout_s,
        remedy="Lower generate.workers or generate.cpus_per_worker, or use a larger cluster.",
    )


def _make_missing(plan: Plan, receipts: dict[int, bytes], held: lease.Lease) -> list[tuple[int, str]]:
    """Make the shards without a receipt and add their receipts; (index, error) of those that failed."""
    missing = [i for i in range(plan.shard_count) if i not in receipts]
    if not missing:
        return []
    failures: list[tuple[int, str]] = []
    done = plan.spec.samples - sum(s.stop - s.start for s in map(plan.shard, missing))
    progress = Progress("generate", plan.spec.samples, done=done)
    for index, receipt, error in _run_job(plan, missing):
        held.check()
        if error:
            failures.append((index, error))
            continue
        receipts[index] = receipt
        shard = plan.shard(index)
        progress.update(progress.done + shard.stop - shard.start)
    return failures


def _run_job(plan: Plan, missing: list[int]) -> Iterator[tuple[int, bytes, str]]:
    """(index, receipt, error) of each shard, in the order in which they finish.

    Raises:
        UserError: for a mistake that only a worker can see, such as a GPU that cannot be used.
        IncompleteError: if the job itself fails.
    """
    import ray
    import ray.data
    from ray.exceptions import RayError

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # It warns when bars are off, as they are here because the driver draws its own.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    counter = ray.remote(AttemptCounter)
    # It must survive the loss of its node.
    attempts = counter.options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    items = ray.data.from_items(missing, override_num_blocks=min(len(missing), _MAX_BLOCKS))
    job = items.map_batches(
        ShardWorker,
        fn_constructor_args=(plan.store.uri, plan.fields, plan.spec.model_dump(mode="json"), [attempts]),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(plan.spec.workers, len(missing))),
        num_cpus=plan.spec.cpus_per_worker,
        num_gpus=plan.spec.gpus_per_worker if plan.spec.device == "cuda" else None,
    )
    try:
        for row in job.iter_rows():
            yield row["index"], row["receipt"], row["error"]
    except RayError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, UserError):
                raise UserError(cause.field, cause.value, cause.rule, cause.remedy) from None
            cause = cause.__cause__ or getattr(cause, "cause", None)
        raise IncompleteError(f"{plan.store.uri}: the job failed, the same command resumes it: {error}") from error


class AttemptCounter:
    """An actor that counts the attempts at each shard. A shard that kills its process leaves no other trace, and Ray
    would retry it forever.
    """

    def __init__(self) -> None:
        self._begun: dict[int, int] = {}

    def begin(self, index: int) -> int:
        """Which attempt at a shard this is, from 1."""
        self._begun[index] = self._begun.get(index, 0) + 1
        return self._begun[index]

    def end(self, index: int) -> None:
        self._begun.pop(index, None)


class ShardWorker:
    """The actor: makes one shard a call.

    Args:
        uri: of the data set. fields: with which it was begun. technical: the section generate.
        attempts: handle of the AttemptCounter; in a list, so that Ray passes the handle itself.
    """

    def __init__(self, uri: str, fields: dict[str, Any], technical: dict[str, Any], attempts: list[Any]):
        # The plan is read here rather than sent, so that a restarted actor needs nothing of the driver.
        self.maker, self.attempts = ShardMaker(reopen(Store(uri), fields, technical)), attempts[0]

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, list[Any]]:
        index = int(batch["item"][0])
        receipt, error = self._attempt(self.maker.plan.shard(index))
        return {"index": [index], "receipt": [receipt], "error": [error]}

    def _attempt(self, shard: Shard) -> tuple[bytes, str]:
        """Try a shard until it is done or its attempts, with those of dead actors, are used up."""
        import ray

        error = "its process died each time"
        while True:
            attempt: Any = ray.get(self.attempts.begin.remote(shard.index), timeout=_COUNT_DEADLINE_S)
            if attempt > self.maker.plan.spec.max_attempts:
                return b"", error
            try:
                receipt = self.maker.make(shard)
            except StoreUnavailableError:
                raise  # not the fault of this shard: the next one would fail too
            except (OSError, RuntimeError, ValueError) as failure:
                error = f"{type(failure).__name__}: {failure}"
                continue
            self.attempts.end.remote(shard.index)
            return receipt.to_json().encode(), ""
