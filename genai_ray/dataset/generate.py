"""Make a data set from a model file: plan -> shards -> receipts -> manifest. Needs no torch.

One item of the Ray Data job is the number of a shard: an actor draws its noise, runs the model,
encodes the samples, puts the files and then the receipt. A shard is a pure function of the plan, so
any can be made anywhere, again, with the same result.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from genai_ray import cluster
from genai_ray.dataset import lease
from genai_ray.dataset import manifest as manifests
from genai_ray.dataset.plan import Plan, Shard, claim, open_plan, refuse_another, reopen
from genai_ray.dataset.shards import ShardMaker, with_settled_rows
from genai_ray.errors import IncompleteError, UserError
from genai_ray.progress import Progress
from genai_ray.provenance import Manifest
from genai_ray.spec import GenerateSpec, Spec, dump
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
    """Make what is missing of the data set of a run, then its manifest.

    Raises:
        UserError: for bad input, or a data set there that was made with other values.
        IncompleteError: if shards failed `generate.max_attempts` times, all others being done; or
            if another driver works on it.
    """
    Store(spec.run_uri).check()
    made = with_settled_rows(open_plan(spec))
    refuse_another(made)
    if (manifest := manifests.read_manifest(made.store)) is not None:
        return _finished(spec, made, manifest)
    started = time.monotonic()
    there = len(made.store.list("_receipts/"))
    if there < made.shard_count:
        _require_cluster(made.spec, made.shard_count - there)
    with lease.hold(made.store, spec.generate.lease_s) as held:
        if (manifest := manifests.read_manifest(made.store)) is not None:
            return _finished(spec, made, manifest)  # another driver was faster
        claim(made)
        receipts = manifests.receipts(made)
        before = len(receipts)
        failures = _make_missing(spec, made, receipts, held)
        if failures:
            raise IncompleteError(_describe(failures, made))
        held.check()
        files, size = manifests.write_manifest(made, receipts)
        _commit(spec, made)
    seconds = time.monotonic() - started
    done_now = made.spec.samples * (1 - before / made.shard_count)
    return GenerateResult(
        uri=made.store.uri, rows=made.spec.samples, files=files, bytes=size, seconds=seconds, rate=done_now / seconds
    )


def _finished(spec: Spec, made: Plan, manifest: Manifest) -> GenerateResult:
    _commit(spec, made)
    return GenerateResult(
        uri=made.store.uri, rows=manifest.rows, files=len(manifest.files), bytes=manifest.bytes, seconds=0.0, rate=0.0
    )


def _commit(spec: Spec, made: Plan) -> None:
    """Make the data set known elsewhere, if its sink does that."""
    commit, manifest = made.sink.commit, manifests.read_manifest(made.store)
    if commit is not None:
        assert manifest is not None
        commit(spec.generate, made.store, manifest)


# --- the Ray Data job ----------------------------------------------------------------------------


def _require_cluster(spec: GenerateSpec, shards: int) -> None:
    cluster.connect()
    gpu = {"GPU": float(spec.gpus_per_worker)} if spec.device == "cuda" else {}
    cluster.require(
        "generate.workers",
        min(spec.workers, shards),
        {"CPU": float(spec.cpus_per_worker)} | gpu,
        timeout_s=spec.start_timeout_s,
        remedy="Lower generate.workers or generate.cpus_per_worker, or use a larger cluster.",
    )


def _make_missing(spec: Spec, made: Plan, receipts: dict[int, bytes], held: lease.Lease) -> list[tuple[int, str]]:
    """Make the shards without a receipt and add theirs; (index, error) of those that failed."""
    missing = [i for i in range(made.shard_count) if i not in receipts]
    if not missing:
        return []
    failures: list[tuple[int, str]] = []
    done = made.spec.samples - sum(s.stop - s.start for s in map(made.shard, missing))
    progress = Progress("generate", made.spec.samples, done=done)
    for index, receipt, error in _run(spec, made, missing):
        held.check()
        if error:
            failures.append((index, error))
            continue
        receipts[index] = receipt
        shard = made.shard(index)
        progress.update(progress.done + shard.stop - shard.start)
    return failures


def _run(spec: Spec, made: Plan, missing: list[int]) -> Iterator[tuple[int, bytes, str]]:
    """(index, receipt, error) of each shard, in the order in which they are done.

    Raises:
        UserError: for a mistake that only a worker can see, such as a card that cannot be used.
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
    # Wherever it lies, that node may be lost.
    attempts = counter.options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    blocks = min(len(missing), _MAX_BLOCKS)
    items = ray.data.from_items(missing, override_num_blocks=blocks)
    job = items.map_batches(
        ShardWorker,
        fn_constructor_args=(made.store.uri, made.fields, dump(spec)["generate"], [attempts]),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(made.spec.workers, len(missing))),
        num_cpus=made.spec.cpus_per_worker,
        num_gpus=made.spec.gpus_per_worker if made.spec.device == "cuda" else None,
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
        raise IncompleteError(f"{made.store.uri}: the job failed, the same command goes on: {error}") from error


class AttemptCounter:
    """An actor that counts attempts at shards: one that kills its process leaves nothing else
    behind, and Ray would try it again without end.
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
        attempts: handle of the AttemptCounter, in a list so that it is passed on as it is.
    """

    def __init__(self, uri: str, fields: dict[str, Any], technical: dict[str, Any], attempts: list[Any]):
        # Read here rather than sent, so that a restarted actor needs nothing of the driver.
        made = reopen(Store(uri), fields, technical)
        self.maker, self.attempts = ShardMaker(made), attempts[0]

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, list[Any]]:
        index = int(batch["item"][0])
        receipt, error = self._attempt(self.maker.plan.shard(index))
        return {"index": [index], "receipt": [receipt], "error": [error]}

    def _attempt(self, shard: Shard) -> tuple[bytes, str]:
        """Try a shard until it is done or its attempts, with those of dead actors, are used up."""
        import ray

        error = "its process died each time"
        while True:
            tried: Any = ray.get(self.attempts.begin.remote(shard.index), timeout=_COUNT_DEADLINE_S)
            if tried > self.maker.plan.spec.max_attempts:
                return b"", error
            try:
                receipt = self.maker.make(shard)
            except StoreUnavailableError:
                raise  # no fault of the shard, and the next would meet it too
            except (OSError, RuntimeError, ValueError) as failure:
                error = f"{type(failure).__name__}: {failure}"
                continue
            self.attempts.end.remote(shard.index)
            return receipt.to_json().encode(), ""


def _describe(failures: list[tuple[int, str]], made: Plan) -> str:
    index, error = failures[0]
    return (
        f"{made.store.uri}: {len(failures)} shards failed {made.spec.max_attempts} times each, all "
        f"others are done; shard {index}: {error}. The same command tries again"
    )
