"""All verbs in order, and the two that only look: plan and inspect."""

import json
import math
import time
from dataclasses import dataclass
from typing import Any

from genai_ray import generate as generation
from genai_ray.config import Spec
from genai_ray.data.image import ImageCodec, load_images
from genai_ray.errors import UserError
from genai_ray.evaluate import METRICS, EvaluateResult, evaluate
from genai_ray.export import ExportResult, export
from genai_ray.generate import GenerateResult
from genai_ray.metrics.inception import read_weights
from genai_ray.progress import duration
from genai_ray.provenance import MODEL_KEY, Manifest
from genai_ray.runs import saved_spec
from genai_ray.storage import Store
from genai_ray.train import TrainResult, train

_CALIBRATION_S = 2.0


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
                f"  generate   {made.rows:,} images, {made.bytes / 1e6:,.1f} MB in "
                f"{made.files:,} files, "
                + (f"{made.rate:,.0f} images/s" if made.rate else "done before"),
                "",
                score_table(self.evaluate),
                "",
                f"  model      {self.run}/model/generator.onnx",
                f"  data       {self.run}/dataset/manifest.json",
                f"  report     {self.run}/report/report.html",
            ]
        )


def run(spec: Spec) -> PipelineResult:
    """Train, export, generate and evaluate; each goes on where an earlier run stopped."""
    started = time.monotonic()
    if spec.evaluate.inception:
        read_weights(spec.evaluate.inception)  # a mistake is told now, not after the training
    data = load_images(spec.data, conditional=spec.model.conditional)
    trained = train(spec, data)
    exported = export(spec)
    made = generation.generate(spec)
    measured = evaluate(spec, data)
    seconds = time.monotonic() - started
    return PipelineResult(spec.run_uri, seconds, trained, exported, made, measured)


def score_table(result: EvaluateResult) -> str:
    """Scores of generated images beside those of real ones, with the gates."""
    head = f"  {'':<17} {'generated':>10} {'real':>10}   {result.samples:,} of each"
    lines = [f"{head}, features of {result.extractor}"]
    gates = {g.name.rpartition("_")[0].removesuffix("_ratio"): g for g in result.gates}
    for name, value in result.fake.items():
        gate = gates.get(name)
        note = ""
        if gate is not None:
            note = f"   {'pass' if gate.passed else 'FAIL'} {gate.name} {gate.limit:g}"
        arrow = "↓" if METRICS[name][0] == "lower" else "↑"
        lines.append(f"  {name:<15} {arrow} {value:>10.4f} {result.real[name]:>10.4f}{note}")
    lines.append(f"  published: {'yes' if result.published else 'no'}")
    return "\n".join(lines)


def plan(spec: Spec) -> dict[str, Any]:
    """Shards, files, bytes and time of the data set of a run, by a short trial in this process.

    Raises:
        IncompleteError: if the run has no model yet.
    """
    made = generation.plan(spec)
    done = sum(1 for _ in made.store.list("_receipts/"))
    shards = math.ceil(spec.generate.samples / spec.generate.shard_rows)
    rate, size = generation.calibrate(made, seconds=_CALIBRATION_S)
    files = {"parquet": shards, "images": spec.generate.samples, "discard": 0}[spec.generate.sink]
    left = spec.generate.samples * (1 - min(done / shards, 1))
    return {
        "uri": made.store.uri,
        "model": made.digest,
        "rows": spec.generate.samples,
        "shards": shards,
        "shards_done": done,
        "files": files,
        "bytes": round(size * spec.generate.samples),
        "rows_per_s": round(rate * spec.generate.workers),
        "time": duration(left / (rate * spec.generate.workers)),
        "classes": dict(zip(made.card.codec["classes"], made.quotas, strict=True))
        if made.quotas
        else {},
    }


def inspect(uri: str) -> dict[str, Any]:
    """The card of an ONNX file, the manifest of a data set, or the stages of a run.

    Raises:
        UserError: if the URI is none of these.
    """
    folder, _, name = uri.rstrip("/").rpartition("/")
    if name.endswith(".onnx"):
        try:
            model = Store(folder or ".").read(name)
        except FileNotFoundError:
            raise UserError("uri", uri, "must be a file that exists", "Check the path.") from None
        card, digest = generation.read_model(model, where=uri)
        return {"digest": digest, "bytes": len(model), **json.loads(card.to_json())}
    store = Store(uri)
    manifest = generation.read_manifest(store) or generation.read_manifest(store.at("dataset"))
    spec = saved_spec(store)
    if spec is None and manifest is None:
        raise UserError("uri", uri, "must be a run, a data set or an ONNX file of ours",
                        "Give <store>/<name>, <store>/<name>/dataset or a .onnx file.")  # fmt: skip
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
    codec = ImageCodec.from_json(manifest.card["codec"])
    return {
        "rows": manifest.rows,
        "files": len(manifest.files),
        "bytes": manifest.bytes,
        "model": manifest.model,
        "fingerprint": manifest.fingerprint,
        "seed": manifest.fields["seed"],
        "columns": manifest.columns,
        "images": f"{codec.size}x{codec.size}x{codec.channels}",
        "classes": ", ".join(codec.classes or ()),
    }
