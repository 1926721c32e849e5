"""Make a data set from a model file: plan -> shards -> receipts -> manifest. Needs no torch.

One item of the Ray Data job is one shard: an actor draws its noise, runs the model, encodes the
samples, puts the files and then the receipt. Sample i is a function of (model, seed, i) and its
class of (classes, seed, i), so any shard can be made anywhere, again, with the same result.
"""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from genai_ray import cluster, config, rng, sinks
from genai_ray.config import GenerateSpec, Spec
from genai_ray.data.image import ImageCodec
from genai_ray.errors import IncompleteError, UserError, nearest
from genai_ray.progress import Progress
from genai_ray.provenance import MODEL_KEY, FileRecord, Manifest, ModelCard, ShardReceipt, open_card
from genai_ray.runs import refuse_difference, versions
from genai_ray.storage import Store

_MAX_BLOCKS = 20_000  # of the Ray Data job; beyond that a block holds several shards
_DRAWN_BATCHES = 16
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True)
class Shard:
    """Samples start..stop of a data set: the unit of work, of retry and of resume."""

    index: int
    start: int
    stop: int


@dataclass(frozen=True)
class GenerateResult:
    """rows, files, bytes: of the whole data set; seconds and rate: of this call alone."""

    uri: str
    rows: int
    files: int
    bytes: int
    seconds: float
    rate: float


@dataclass(frozen=True)
class Plan:
    """All that the shards of a data set depend on."""

    store: Store
    spec: GenerateSpec
    model: bytes
    card: ModelCard
    digest: str
    seed: int
    fields: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return config.fingerprint(self.fields)

    @property
    def quotas(self) -> list[int] | None:
        return class_counts(self.spec, self.card)

    def shards(self) -> Iterator[Shard]:
        rows, total = self.spec.shard_rows, self.spec.samples
        for index, start in enumerate(range(0, total, rows)):
            yield Shard(index, start, min(start + rows, total))


def plan(spec: Spec) -> Plan:
    """Read the model of a run and check that the data set can be made; nothing is written.

    Raises:
        UserError: for a model file that is missing, not ours or altered, and for bad classes.
        IncompleteError: if the run has no model yet.
    """
    store = Store(spec.run_uri)
    try:
        model = store.read(MODEL_KEY)
    except FileNotFoundError:
        raise IncompleteError(
            f"{spec.run_uri} has no model; run `genai-ray train` and `genai-ray export` first"
        ) from None
    card, digest = read_model(model, where=f"{spec.run_uri}/{MODEL_KEY}")
    fields = config.fingerprint_fields(spec, "generate") | {"model": digest}
    made = Plan(
        store=store.at("dataset"), spec=spec.generate, model=model, card=card, digest=digest,
        seed=config.generation_seed(spec), fields=fields,
    )  # fmt: skip
    class_counts(spec.generate, card)
    return made


def generate(spec: Spec) -> GenerateResult:
    """Make what is missing of the data set of a run, then its manifest.

    Raises:
        UserError: for bad input, or a data set there that was made with other values.
        IncompleteError: if shards failed `generate.max_attempts` times; all others are done.
    """
    Store(spec.run_uri).check()
    made = plan(spec)
    _refuse_another(made)
    if (manifest := read_manifest(made.store)) is not None:
        return _result(made, manifest, seconds=0.0, done_now=0)
    started = time.monotonic()
    receipts = {r.index: r for r in _receipts(made)}
    missing = [s for s in made.shards() if s.index not in receipts]
    done_before = sum(r.stop - r.start for r in receipts.values())
    failures = []
    if missing:
        _require_cluster(made.spec, len(missing))
        _claim(made)
        for key in made.store.list("_attempts/"):
            made.store.delete(key)
        progress = Progress("generate", spec.generate.samples, done=done_before)
        for row in _run(spec, made, missing):
            if row["error"]:
                failures.append(row)
            else:
                receipt = ShardReceipt.from_json(row["receipt"])
                receipts[receipt.index] = receipt
                progress.update(progress.done + receipt.stop - receipt.start)
    if failures:
        raise IncompleteError(_describe(failures, made))
    manifest = _manifest(made, [receipts[i] for i in sorted(receipts)])
    made.store.put("manifest.json", manifest.to_json().encode())
    return _result(
        made, manifest, seconds=time.monotonic() - started,
        done_now=spec.generate.samples - done_before,
    )  # fmt: skip


# --- the Ray Data job ----------------------------------------------------------------------------


def _require_cluster(spec: GenerateSpec, shards: int) -> None:
    cluster.connect()
    cluster.require(
        "generate.workers", min(spec.workers, shards),
        {"CPU": float(spec.cpus_per_worker)} | ({"GPU": 1.0} if spec.device == "cuda" else {}),
        timeout_s=spec.start_timeout_s,
        remedy="Lower generate.workers or generate.cpus_per_worker, or use a larger cluster.",
    )  # fmt: skip


def _run(spec: Spec, made: Plan, shards: list[Shard]) -> Iterator[dict[str, Any]]:
    """Rows {index, receipt, error}, one a shard, in the order in which they are done."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # It warns when bars are off, as they are here because the driver draws its own.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    blocks = min(len(shards), _MAX_BLOCKS)
    # One block a shard: a receipt is seen as soon as its block is done.
    dataset = ray.data.from_items([asdict(s) for s in shards], override_num_blocks=blocks)
    dataset = dataset.map_batches(
        ShardWorker,
        fn_constructor_args=(config.dump(spec), made.digest),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(made.spec.workers, len(shards))),
        num_cpus=made.spec.cpus_per_worker,
        num_gpus=1 if made.spec.device == "cuda" else None,
    )
    yield from dataset.iter_rows()


class ShardWorker:
    """The actor: makes one shard a call. Keeps one session of the model."""

    def __init__(self, spec: dict[str, Any], digest: str):
        # Read here rather than sent, so that a restarted actor needs nothing of the driver.
        self.plan = plan(config.parse(spec))
        if self.plan.digest != digest:
            raise RuntimeError(f"{self.plan.store.uri}: the model was replaced during the job")
        self.sampler = Sampler(self.plan)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, list[Any]]:
        shard = Shard(*(int(batch[k][0]) for k in ("index", "start", "stop")))
        receipt, error = self._attempt(shard)
        text = receipt.to_json() if receipt else ""
        return {"index": [shard.index], "receipt": [text], "error": [error]}

    def _attempt(self, shard: Shard) -> tuple[ShardReceipt | None, str]:
        """Try a shard until it is done or its attempts, with those of dead actors, are used up."""
        store, limit = self.plan.store, self.plan.spec.max_attempts
        marker = f"_attempts/{shard.index:06d}"
        tried = int(store.read(marker)) if store.exists(marker) else 0
        error = "its process died each time"
        while tried < limit:
            tried += 1
            # Counted in the store and before the work, since a crash of this process leaves
            # nothing else behind, and Ray would repeat it without end.
            store.put(marker, str(tried).encode())
            try:
                receipt = self._make(shard)
            except (OSError, RuntimeError, ValueError) as failure:
                error = f"{type(failure).__name__}: {failure}"
                continue
            store.delete(marker)
            return receipt, ""
        return None, error

    def _make(self, shard: Shard) -> ShardReceipt:
        made = self.plan
        rows = _rows(made, self.sampler, shard)
        files = sinks.SINKS[made.spec.sink](rows, made.store)
        receipt = ShardReceipt(
            index=shard.index, start=shard.start, stop=shard.stop, fingerprint=made.fingerprint,
            files=[asdict(f) for f in files],
        )  # fmt: skip
        made.store.put(ShardReceipt.key(shard.index), receipt.to_json().encode())
        return receipt


class Sampler:
    """Samples of a plan by index: noise, model, classes."""

    def __init__(self, made: Plan):
        self.plan = made
        self.session = open_session(made.model, made.spec)
        self.quotas = made.quotas

    def samples(self, start: int, stop: int) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
        """Images (N, H, W, C) and labels (N,) or None of samples start..stop."""
        labels = None
        if self.quotas is not None:
            labels = sample_classes(self.quotas, self.plan.seed, start, stop)
        codec = ImageCodec.from_json(self.plan.card.codec)
        images = np.empty((stop - start, codec.size, codec.size, codec.channels), np.uint8)
        batch = self.plan.spec.batch
        for first in range(0, len(images), _DRAWN_BATCHES * batch):
            # Drawing for several batches at once costs half as much as for each.
            last = min(first + _DRAWN_BATCHES * batch, len(images))
            noise = self._noise(start + first, -(-(last - first) // batch) * batch)
            for at in range(first, last, batch):
                count = min(batch, last - at)
                feed: dict[str, Any] = {"noise": noise[at - first : at - first + batch]}
                if labels is not None:
                    feed["label"] = np.resize(labels[at : at + count], batch)
                output: Any = self.session.run(None, feed)[0]
                images[at : at + count] = output[:count]
        return images, labels

    def _noise(self, start: int, count: int) -> NDArray[np.float32]:
        """Whole batches: a tail of another shape could be computed by another algorithm, and on a
        GPU would be tuned for anew.
        """
        stream, latent = rng.Stream.SAMPLE_NOISE, self.plan.card.latent
        cut = self.plan.spec.truncation
        return rng.normal(self.plan.seed, stream, start, count, latent, cut)


def calibrate(made: Plan, *, seconds: float) -> tuple[float, float]:
    """(rows per second of one worker, bytes per row), tried on the first samples; nothing is kept.

    Encoding goes through the same code as a real shard, into a store that forgets.
    """
    sampler, forgetful = Sampler(made), _Forgetful()
    count, rows, size = made.spec.batch, 0, 0
    sampler.samples(0, min(count, made.spec.samples))  # the first call also plans the graph
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        stop = min(count, made.spec.samples)
        files = sinks.SINKS[made.spec.sink](_rows(made, sampler, Shard(0, 0, stop)), forgetful)
        rows, size = rows + stop, size + sum(f.bytes for f in files)
        count = min(2 * count, made.spec.shard_rows)
    return rows / (time.monotonic() - started), size / rows


class _Forgetful(Store):
    def __init__(self) -> None:
        super().__init__("/dev/null")

    def put(self, key: str, data: bytes) -> None:
        pass


def _rows(made: Plan, sampler: Sampler, shard: Shard) -> sinks.Rows:
    images, labels = sampler.samples(shard.start, shard.stop)
    return sinks.Rows(
        index=shard.index, start=shard.start, images=images, labels=labels,
        codec=ImageCodec.from_json(made.card.codec), encoding=made.spec.encoding,
        provenance=_provenance(made, shard),
    )  # fmt: skip


def open_session(model: bytes, spec: GenerateSpec) -> ort.InferenceSession:
    """An ONNX Runtime session on the device that was asked for, and on no other.

    Raises:
        UserError: if the provider cannot be used here.
    """
    options = ort.SessionOptions()
    # Ray's share of the processor does not reach ONNX Runtime's own pool.
    options.intra_op_num_threads = max(1, int(spec.cpus_per_worker))
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if spec.device == "cuda" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    provider = _PROVIDERS[spec.device]
    if provider in ort.get_available_providers():
        session = ort.InferenceSession(model, options, providers=[provider])
        if session.get_providers()[0] == provider:
            return session
    raise UserError(
        "generate.device", spec.device, f"needs {provider}, which does not load here",
        "Use generate.device=cpu, or install onnxruntime-gpu[cuda,cudnn] and a driver of CUDA 13.",
    )  # fmt: skip


# --- what a sample is ----------------------------------------------------------------------------


def read_model(model: bytes, *, where: str) -> tuple[ModelCard, str]:
    """The card and the digest of an ONNX file of ours.

    Raises:
        UserError: if it is not ours, was altered, or is too new.
    """
    try:
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    except Exception as error:
        # The runtime's exceptions share no base class of their own.
        raise UserError("model", where, f"must be an ONNX file ({str(error).splitlines()[0]})",
                        "Export it again with `genai-ray export`.") from None  # fmt: skip
    return open_card(session.get_modelmeta().custom_metadata_map, model, where=where)


def class_counts(spec: GenerateSpec, card: ModelCard) -> list[int] | None:
    """How many samples each class gets; exactly `spec.samples` together. None without classes.

    Raises:
        UserError: for an unknown class, or counts that do not add up.
    """
    if not card.conditional:
        if spec.classes:
            raise UserError("generate.classes", spec.classes, "asks for labels, but the model has "
                            "no classes", "Train with model.conditional=true.")  # fmt: skip
        return None
    names = list(card.codec["classes"])
    asked = spec.classes or dict.fromkeys(names, 1 / len(names))
    for name, value in asked.items():
        if name not in names:
            raise UserError("generate.classes", name, "is not a class of the model",
                            nearest(name, names))  # fmt: skip
        if value < 0:
            raise UserError("generate.classes", {name: value}, "must not be negative", "Raise it.")
    values = [asked.get(name, 0) for name in names]
    total = sum(values)
    if abs(total - spec.samples) < 1e-6 and all(v == int(v) for v in values):
        return [int(v) for v in values]
    if abs(total - 1) > 1e-6:
        raise UserError(
            "generate.classes", asked, f"add up to {total:g}; counts must give "
            f"generate.samples={spec.samples}, shares must give 1", "Correct the numbers.",
        )  # fmt: skip
    # Largest remainders, so that shares become counts that add up.
    exact = [v * spec.samples for v in values]
    counts = [int(e) for e in exact]
    by_rest = sorted(range(len(names)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_rest[: spec.samples - sum(counts)]:
        counts[i] += 1
    return counts


def sample_classes(counts: list[int], seed: int, start: int, stop: int) -> NDArray[np.int64]:
    """The classes of samples start..stop, (N,): over all samples each class has its exact count.

    A random permutation sends sample i to a place in the line of all classes in order.
    """
    places = rng.permute(seed, rng.Stream.SAMPLE_CLASS, np.arange(start, stop), sum(counts))
    return np.searchsorted(np.cumsum(counts), places, side="right").astype(np.int64)


# --- receipts and manifest -----------------------------------------------------------------------


def read_manifest(store: Store) -> Manifest | None:
    """The manifest of a data set; None while it is not complete."""
    try:
        return Manifest.from_json(store.read("manifest.json"))
    except FileNotFoundError:
        return None


def _claim(made: Plan) -> None:
    """Say with which values the data set is made, before anything else of it is written."""
    fields = json.dumps(made.fields, sort_keys=True).encode()
    if not made.store.put_if_absent("_fields.json", fields):
        _refuse_another(made)  # another driver was faster


def _refuse_another(made: Plan) -> None:
    if made.store.exists("_fields.json"):
        there = json.loads(made.store.read("_fields.json"))
        refuse_difference(there, made.fields, made.store.uri)


def _receipts(made: Plan) -> Iterator[ShardReceipt]:
    for key in made.store.list("_receipts/"):
        receipt = ShardReceipt.from_json(made.store.read(key))
        if receipt.fingerprint == made.fingerprint:
            yield receipt


def _provenance(made: Plan, shard: Shard) -> dict[str, Any]:
    return {
        "generator": made.card.name,
        "model": made.digest,
        "seed": made.seed,
        "fingerprint": made.fingerprint,
        "start": shard.start,
        "stop": shard.stop,
        "training": made.card.training,
        "genai_ray": made.card.versions.get("genai-ray", ""),
    }


def _manifest(made: Plan, receipts: list[ShardReceipt]) -> Manifest:
    files = [FileRecord(**f) for r in receipts for f in r.files]
    schema = sinks.parquet_schema(
        ImageCodec.from_json(made.card.codec), made.spec.encoding, made.card.conditional, {}
    )
    return Manifest(
        fingerprint=made.fingerprint,
        fields=made.fields,
        model=made.digest,
        card=asdict(made.card),
        rows=made.spec.samples,
        bytes=sum(f.bytes for f in files),
        files=[asdict(f) for f in files],
        shards=[{"index": r.index, "start": r.start, "stop": r.stop} for r in receipts],
        columns={f.name: str(f.type) for f in schema} if made.spec.sink == "parquet" else {},
        versions=versions(),
    )


def _result(made: Plan, manifest: Manifest, *, seconds: float, done_now: int) -> GenerateResult:
    return GenerateResult(
        uri=made.store.uri, rows=manifest.rows, files=len(manifest.files), bytes=manifest.bytes,
        seconds=seconds, rate=done_now / seconds if seconds else 0.0,
    )  # fmt: skip


def _describe(failures: list[dict[str, Any]], made: Plan) -> str:
    first = failures[0]
    return (
        f"{made.store.uri}: {len(failures)} shards failed {made.spec.max_attempts} times each, all "
        f"others are done; shard {first['index']}: {first['error']}. The same command tries again"
    )
