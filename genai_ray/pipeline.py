"""All verbs in order, and the two that only look: plan and inspect."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genai_ray import config, dataset
from genai_ray.config import Spec
from genai_ray.data import codec_from_json, load
from genai_ray.dataset import ForgetfulStore, Plan, Shard, ShardMaker
from genai_ray.errors import UserError
from genai_ray.evaluate import EvaluateResult, evaluate
from genai_ray.export import ExportResult, export
from genai_ray.generate import GenerateResult, generate
from genai_ray.judges import METRICS
from genai_ray.metrics.inception import read_weights
from genai_ray.progress import duration
from genai_ray.provenance import MODEL_KEY, Manifest
from genai_ray.runs import saved_spec
from genai_ray.sampler import read_model
from genai_ray.samples.classes import counts_of
from genai_ray.storage import Store
from genai_ray.train import TrainResult, train

_CALIBRATION_S = 2.0
_FIRST_TRIAL = 64  # samples
_TABLES = (".csv", ".tsv", ".parquet")


@dataclass(frozen=True)
class PipelineResult:
    """What each verb gave."""

    run: str
    seconds: float
    train: TrainResult
    export: ExportResult
    generate: GenerateResult
    evaluate: EvaluateResult

    @property
    def summary(self) -> str:
        trained, made = self.train, self.generate
        return "\n".join(
            [
                f"\n{self.run}  ({duration(self.seconds)})",
                f"  train      {trained.samples:,} samples, "
                + (f"{trained.rate:,.0f}/s" if trained.rate else "done before"),
                f"  export     {self.export.bytes:,} bytes, digest {self.export.digest[:16]}",
                f"  generate   {made.rows:,} rows, {made.bytes / 1e6:,.1f} MB in "
                f"{made.files:,} files, " + (f"{made.rate:,.0f} rows/s" if made.rate else "done before"),
                "",
                score_table(self.evaluate),
                "",
                f"  model      {self.run}/model/generator.onnx",
                f"  data       {self.generate.uri}/manifest.json",
                f"  report     {self.evaluate.uri}/report.html",
            ]
        )


def run(spec: Spec) -> PipelineResult:
    """Train, export, generate and evaluate; each goes on where an earlier run stopped."""
    started = time.monotonic()
    if spec.evaluate.inception:
        read_weights(spec.evaluate.inception)  # a mistake is told now, not after the training
    data = load(spec.data, conditional=spec.model.trains_on_labels)
    data.codec.check(spec.generate)
    if spec.generate.classes:
        counts_of("generate.classes", [*spec.generate.classes.values()], spec.generate.samples)
    trained = train(spec, data)
    exported = export(spec)
    made = generate(spec)
    measured = evaluate(spec, data)
    seconds = time.monotonic() - started
    return PipelineResult(spec.run_uri, seconds, trained, exported, made, measured)


def score_table(result: EvaluateResult) -> str:
    """Scores of generated data beside those of real data, with the gates."""
    head = f"  {'':<21} {'generated':>10} {'real':>10}   {result.samples:,} of each"
    lines = [f"{head}, features of {result.extractor}"]
    gates = {g.name.rpartition("_")[0].removesuffix("_ratio"): g for g in result.gates}
    for name, value in result.fake.items():
        gate = gates.get(name)
        note = ""
        if gate is not None:
            note = f"   {'pass' if gate.passed else 'FAIL'} {gate.name} {gate.limit:g}"
        arrow = "↓" if METRICS[name][0] == "lower" else "↑"
        lines.append(f"  {name:<19} {arrow} {value:>10.4f} {result.real[name]:>10.4f}{note}")
    lines.append(f"  published: {'yes' if result.published else 'no'}")
    return "\n".join(lines)


def plan(spec: Spec) -> dict[str, Any]:
    """Shards, files, bytes, requests, time and money of the data set of a run, by a short trial on
    one core of this machine.

    Raises:
        IncompleteError: if the run has no model yet.
    """
    Store(spec.run_uri).check(write=False)
    made = dataset.plan(spec)
    shards, rows = made.shard_count, spec.generate.samples
    done = len(made.store.list("_receipts/"))
    rate, size = _calibrate(made)
    rate *= spec.generate.workers
    images = rows if spec.generate.sink == "images" else 0
    files = 0 if spec.generate.sink == "discard" else shards + images
    seconds = rows * (1 - min(done / shards, 1)) / rate
    puts, prices = files + shards + 3, spec.prices  # the files, their receipts, and the manifest
    nodes = math.ceil(spec.generate.workers / prices.workers_per_node)
    return {
        "uri": made.store.uri,
        "model": made.digest,
        "rows": rows,
        "shards": shards,
        "shards_done": done,
        "files": files,
        "bytes": round(size * rows),
        "put_requests": puts,
        "rows_per_s": round(rate),
        "time": duration(seconds),
        "cost": {
            "computing": round(nodes * seconds / 3600 * prices.node_hour, 2),
            "requests": round(puts / 1000 * prices.put_1000, 2),
            "a_month_of_storage": round(size * rows / 1e9 * prices.gb_month, 2),
        },
        "counts": made.samples().counts(),
    }


def _calibrate(made: Plan) -> tuple[float, float]:
    """(rows per second of one worker, bytes per row), tried on the first samples; nothing is kept.

    Encoding goes through the same code as a real shard, into a store that forgets.
    """
    maker, forgetful = ShardMaker(made), ForgetfulStore()
    limit = min(made.spec.samples, made.spec.shard_rows)
    count = min(made.spec.batch or _FIRST_TRIAL, limit)
    maker.files(Shard(0, 0, count), ForgetfulStore())  # the first call also plans the graph
    rows, started = 0, time.monotonic()
    while time.monotonic() - started < _CALIBRATION_S:
        maker.files(Shard(0, 0, count), forgetful)
        rows, count = rows + count, min(2 * count, limit)
    return rows / (time.monotonic() - started), forgetful.bytes / rows


def inspect(uri: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The card of an ONNX file, the types of a table's columns, the manifest of a data set, or the
    stages of a run.

    Args:
        overrides: `data.table.…=value`, how to read a table.

    Raises:
        UserError: if the URI is none of these.
    """
    folder, _, name = uri.rstrip("/").rpartition("/")
    if overrides or name.endswith(_TABLES) or (Path(uri).is_file() and not name.endswith(".onnx")):
        from genai_ray.data.table import describe_file

        return describe_file(config.table_to_inspect(uri, overrides).data)
    if name.endswith(".onnx"):
        try:
            model = Store(folder or ".").read(name)
        except FileNotFoundError:
            raise UserError("uri", uri, "must be a file that exists", "Check the path.") from None
        card, digest = read_model(model, where=uri)
        return {"digest": digest, "bytes": len(model), **json.loads(card.to_json())}
    store = Store(uri)
    store.check(write=False)
    manifest = dataset.read_manifest(store) or dataset.read_manifest(store.at("dataset"))
    spec = saved_spec(store)
    if spec is None and manifest is None:
        raise UserError(
            "uri",
            uri,
            "must be a run, a data set, an ONNX file of ours or a table",
            "Give <store>/<name>, <store>/<name>/dataset, a .onnx, a .csv or a .parquet file.",
        )
    found: dict[str, Any] = {"uri": store.uri}
    if spec is not None:
        found |= _stages(store, spec)
    if manifest is not None:
        found["dataset"] = _described(manifest)
    return found


def _stages(store: Store, spec: Spec) -> dict[str, Any]:
    from genai_ray import checkpoint

    return {
        "preset": spec.model.preset,
        "source": spec.data.source,
        "trained": max(checkpoint.saved(store), default=0),
        "of": spec.train.samples,
        "exported": store.exists(MODEL_KEY),
        "receipts": len(store.list("dataset/_receipts/")),
        "published": store.exists("dataset/_SUCCESS"),
    }


def _described(manifest: Manifest) -> dict[str, Any]:
    return {
        "rows": manifest.rows,
        "files": len(manifest.files),
        "bytes": manifest.bytes,
        "model": manifest.model,
        "fingerprint": manifest.fingerprint,
        "seed": manifest.fields["seed"],
        "accept_rate": manifest.accept_rate,
        **codec_from_json(manifest.card["codec"]).describe(),
    }
