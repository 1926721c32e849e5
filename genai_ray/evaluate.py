"""Measure a finished data set against real data it was not trained on, and publish it or not.

The shipped bytes are read back, checked against the manifest and measured. Each score is shown next to the same score
of real training data, since a bare number says little.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from genai_ray import modalities
from genai_ray.dataset.manifest import read_files, read_manifest
from genai_ray.errors import GateError, IncompleteError, UserError
from genai_ray.modality import Data, Measured, Metric, Shipped, gate_parts
from genai_ray.report.page import Report, Score, render_html
from genai_ray.runs import loss_curves, refuse_other_data
from genai_ray.spec import Spec, dump, format_yaml
from genai_ray.storage import Store


@dataclass(frozen=True)
class GateOutcome:
    """One gate of the spec: the measured value, the limit, and whether it passed."""

    name: str
    value: float
    limit: float
    passed: bool


@dataclass(frozen=True)
class EvaluateResult:
    """extractor: the features that were compared. fake, real: metric name -> value for generated and for real data.
    better: metric name -> "lower" or "higher".
    """

    uri: str
    extractor: str
    samples: int
    fake: dict[str, float]
    real: dict[str, float]
    gates: list[GateOutcome]
    published: bool
    better: dict[str, str]


def evaluate(spec: Spec, data: Data | None = None) -> EvaluateResult:
    """Measure the data set of a run, write its report, and publish it if the gates pass.

    Raises:
        IncompleteError: if the data set is not complete.
        UserError: if a file is not what the manifest says, the data are others than were learnt, or a gate cannot be
            measured.
        GateError: if a gate fails; the report is written, `_SUCCESS` is not.
    """
    store = Store(spec.run_uri)
    store.check()
    dataset_store = store.at(spec.generate.into)
    manifest = read_manifest(dataset_store)
    if manifest is None:
        raise IncompleteError(f"{spec.run_uri} has no finished data set; run `genai-ray generate`")
    if not manifest.files:
        raise UserError("generate.sink", "discard", "leaves nothing to measure", "Generate with another sink.")
    kind = modalities.of_spec(spec)
    data = data or kind.load(spec)
    refuse_other_data(spec, manifest.card["training"]["data"], data.digest)
    files = read_files(dataset_store, manifest)
    dataset = Shipped(manifest=manifest, files=files, run=store, losses=loss_curves(store))
    measured = kind.evaluator().measure(spec, dataset, data)
    gates = gate_outcomes(spec.evaluate.gates, measured.fake, measured.real)
    result = EvaluateResult(
        uri=f"{spec.run_uri}/{spec.report}",
        extractor=measured.features,
        samples=measured.samples,
        fake=measured.fake,
        real=measured.real,
        gates=gates,
        published=all(g.passed for g in gates),
        better={name: kind.metrics[name].better for name in measured.fake},
    )
    record = {
        **asdict(result),
        **measured.record,
        "counts": measured.counts,
        "dataset": manifest.fingerprint,
        "model": manifest.model,
        "skipped_source_images": list(data.skipped),
        "data": data.summary,
    }
    store.put(f"{spec.report}/quality.json", json.dumps(record, indent=2).encode())
    for name, content in measured.files.items():
        store.put(f"{spec.report}/{name}", content)
    report = _report(spec, dataset, data, measured, result)
    store.put(f"{spec.report}/report.html", render_html(report).encode())
    if not result.published:
        dataset_store.delete("_SUCCESS")
        failed = "; ".join(f"{g.name}: {g.value:.4g}, limit {g.limit:g}" for g in gates if not g.passed)
        raise GateError(f"{spec.run_uri}: not published, gates failed: {failed}. See {result.uri}")
    dataset_store.put("_SUCCESS", b"")
    return result


def gate_outcomes(gates: dict[str, float], fake: dict[str, float], real: dict[str, float]) -> list[GateOutcome]:
    """Compare measured values with the gates that are set: `<metric>[_ratio]_(min|max)`.

    Raises:
        UserError: for a gate on a metric that was not measured.
    """
    outcomes = []
    for gate, limit in gates.items():
        metric, is_ratio, is_minimum = gate_parts(gate)
        if metric not in fake:
            raise UserError(
                f"evaluate.gates.{gate}",
                limit,
                f"{metric} was not measured: the data have no classes, no such target or no constraints, or "
                "evaluate.inception is not given",
                "Remove the gate.",
            )
        value = fake[metric] / max(real[metric], 1e-12) if is_ratio else fake[metric]
        passed = value >= limit if is_minimum else value <= limit
        outcomes.append(GateOutcome(gate, value, limit, bool(passed)))
    return outcomes


def _report(spec: Spec, dataset: Shipped, data: Data, measured: Measured, result: EvaluateResult) -> Report:
    return Report(
        title=f"{spec.name}: {measured.title}",
        notice=measured.notice,
        summary={
            **measured.summary,
            "Model": f"{spec.model.preset}, {dataset.manifest.model[:16]}",
            "Published": "yes" if result.published else "no",
        },
        data=data.summary,
        scores=_scores(result, modalities.of_spec(spec).metrics),
        scores_note=measured.scores_note,
        blocks=measured.blocks,
        losses=dataset.losses,
        provenance=dataset.manifest.about,
        spec_yaml=format_yaml(dump(spec)),
    )


def _scores(result: EvaluateResult, metrics: Mapping[str, Metric]) -> list[Score]:
    gates = {gate_parts(g.name)[0]: g for g in result.gates}
    scores = []
    for name, value in result.fake.items():
        gate, rule = gates.get(name), None
        if gate is not None:
            _, is_ratio, is_minimum = gate_parts(gate.name)
            rule = f"{'at least' if is_minimum else 'at most'} {gate.limit:g}{' times real' if is_ratio else ''}"
        scores.append(
            Score(
                name=f"{name}@{result.extractor}" if metrics[name].of_features else name,
                fake=value,
                real=result.real[name],
                better=metrics[name].better,
                explanation=metrics[name].about,
                gate=rule,
                passed=None if gate is None else gate.passed,
            )
        )
    return scores
