"""All verbs in order: `run(spec)`."""

import time
from dataclasses import dataclass

from genai_ray import modalities
from genai_ray.dataset.generate import GenerateResult, generate
from genai_ray.evaluate import EvaluateResult, evaluate
from genai_ray.export import ExportResult, export
from genai_ray.modality import gate_parts
from genai_ray.progress import duration
from genai_ray.spec import Spec
from genai_ray.training.train import TrainResult, train


@dataclass(frozen=True)
class PipelineResult:
    """The results of all verbs."""

    run: str
    seconds: float
    train: TrainResult
    export: ExportResult
    generate: GenerateResult
    evaluate: EvaluateResult

    @property
    def summary(self) -> str:
        trained, generated = self.train, self.generate
        return "\n".join(
            [
                f"\n{self.run}  ({duration(self.seconds)})",
                f"  train      {trained.samples:,} samples, "
                + (f"{trained.rate:,.0f}/s" if trained.rate else "done before"),
                f"  export     {self.export.bytes:,} bytes, digest {self.export.digest[:16]}",
                f"  generate   {generated.rows:,} rows, {generated.bytes / 1e6:,.1f} MB in {generated.files:,} files, "
                + (f"{generated.rate:,.0f} rows/s" if generated.rate else "done before"),
                "",
                score_table(self.evaluate),
                "",
                f"  model      {self.run}/model/generator.onnx",
                f"  data       {self.generate.uri}/manifest.json",
                f"  report     {self.evaluate.uri}/report.html",
            ]
        )


def run(spec: Spec) -> PipelineResult:
    """Train, export, generate and evaluate; each resumes where an earlier run stopped."""
    started = time.monotonic()
    kind = modalities.of_spec(spec)
    kind.check(spec)
    data = kind.load(spec)
    data.codec.check(spec.generate)
    results = train(spec, data), export(spec), generate(spec), evaluate(spec, data)
    return PipelineResult(spec.run_uri, time.monotonic() - started, *results)


def score_table(result: EvaluateResult) -> str:
    """Scores of generated data beside those of real data, with the gates."""
    head = f"  {'':<21} {'generated':>10} {'real':>10}   {result.samples:,} of each, features of {result.extractor}"
    lines, gates = [head], {gate_parts(g.name)[0]: g for g in result.gates}
    for name, value in result.fake.items():
        gate = gates.get(name)
        note = "" if gate is None else f"   {'pass' if gate.passed else 'FAIL'} {gate.name} {gate.limit:g}"
        arrow = "↓" if result.better[name] == "lower" else "↑"
        lines.append(f"  {name:<19} {arrow} {value:>10.4f} {result.real[name]:>10.4f}{note}")
    lines.append(f"  published: {'yes' if result.published else 'no'}")
    return "\n".join(lines)
