"""Measure a finished data set against real data it was not trained on, and publish it or not.

What is measured are the shipped bytes, read back and checked against the manifest. Every score
stands beside the same score of real training data, since a bare number says little.
"""

import json
from dataclasses import asdict, dataclass

import numpy as np
import yaml
from numpy.typing import NDArray

from genai_ray import config, rng, sinks
from genai_ray.config import Gates, Spec
from genai_ray.data.image import ImageCodec, ImageData, load_images
from genai_ray.data.stream import ImageStream
from genai_ray.dataset import read_manifest, shipped
from genai_ray.errors import GateError, IncompleteError, UserError
from genai_ray.metrics.extractor import Extractor, kept_extractor
from genai_ray.metrics.fidelity import frechet_distance, kernel_distance, prdc
from genai_ray.metrics.inception import Inception, read_weights
from genai_ray.metrics.memorisation import copy_rates, duplicate_rate, nearest
from genai_ray.metrics.report import (
    Report,
    Score,
    image_grid,
    pair_grid,
    png_bytes,
    render_html,
)
from genai_ray.provenance import Manifest
from genai_ray.storage import Store
from genai_ray.watch import read_metrics

_PREVIEW_COLUMNS = 10
_PAIRS = 20

#: name -> (which way is better, one line on what it says)
METRICS: dict[str, tuple[str, str]] = {
    "fid": ("lower", "Fréchet distance of the feature distributions (Heusel et al. 2017)"),
    "kid": ("lower", "Kernel distance, unbiased: right for small samples (Binkowski et al. 2018)"),
    "precision": ("higher", "Share of generated images that lie where real ones do"),
    "recall": ("higher", "Share of real images that lie where generated ones do"),
    "density": ("higher", "Precision that single outliers cannot raise (Naeem et al. 2020)"),
    "coverage": ("higher", "Share of real images with a generated one near by"),
    "fid_inception": ("lower", "FID against the training set, in features of published figures"),
    "agreement": ("higher", "A classifier trained on real images sees the class that was asked"),
    "duplicate_rate": ("lower", "Share of images that repeat an earlier one, byte for byte"),
    "exact_copy_rate": ("lower", "Share that equals a training image, pixel for pixel"),
    "near_copy_rate": ("lower", "Share as close to a training image as 1 % of unseen real ones"),
}


@dataclass(frozen=True)
class GateOutcome:
    """One gate of the spec: what was measured, what was asked, and whether it passed."""

    name: str
    value: float
    limit: float
    passed: bool


@dataclass(frozen=True)
class EvaluateResult:
    """fake and real: metric name -> value, for generated and for real training images."""

    uri: str
    extractor: str
    samples: int
    fake: dict[str, float]
    real: dict[str, float]
    gates: list[GateOutcome]
    published: bool


def evaluate(spec: Spec, data: ImageData | ImageStream | None = None) -> EvaluateResult:
    """Measure the data set of a run, write its report, and publish it if the gates pass.

    Raises:
        IncompleteError: if the data set is not complete.
        UserError: if a file is not what the manifest says, or a gate cannot be measured.
        GateError: if a gate fails; the report is there, `_SUCCESS` is not.
    """
    store = Store(spec.run_uri)
    store.check()
    manifest = read_manifest(store.at(spec.generate.into))
    if manifest is None:
        raise IncompleteError(f"{spec.run_uri} has no finished data set; run `genai-ray generate`")
    if not manifest.files:
        raise UserError("generate.sink", "discard", "leaves nothing to measure",
                        "Generate with sink=parquet or sink=images.")  # fmt: skip
    weights = read_weights(spec.evaluate.inception) if spec.evaluate.inception else None
    data = data or load_images(spec.data)
    codec = ImageCodec.from_json(manifest.card["codec"])
    if weights is not None and isinstance(data, ImageStream):
        raise UserError(
            "evaluate.inception", spec.evaluate.inception, "compares with every training image, "
            "and the data are larger than data.resident_gb", "Raise data.resident_gb.",
        )  # fmt: skip
    extractor = feature_extractor(spec, data)
    shipped_store = store.at(spec.generate.into)
    images, labels, repeated = _read(shipped_store, manifest, codec, spec.evaluate.samples,
                                     spec.evaluate.duplicate_rows)  # fmt: skip
    holdout = _choose(data.holdout_images, spec)
    train = _choose(data.train_images, spec)
    n = min(len(holdout), len(train), len(images))

    fake_features = extractor.features(images[:n])
    real_features = extractor.features(holdout[:n])
    baseline = extractor.features(train[:n])
    fake = _distances(real_features, fake_features, spec.evaluate.k)
    real = _distances(real_features, baseline, spec.evaluate.k)
    if weights is not None:
        many, _, _ = _read(shipped_store, manifest, codec, spec.evaluate.inception_samples, 0)
        network = Inception(weights, spec.train.device)
        fake["fid_inception"], real["fid_inception"] = network.distances(
            data.train_images, many, data.holdout_images
        )
    if labels is not None and extractor.classes and data.holdout_labels is not None:
        fake["agreement"] = float((extractor.classify(images) == labels).mean())
        real["agreement"] = extractor.accuracy(data.holdout_images, data.holdout_labels)
    fake["duplicate_rate"], real["duplicate_rate"] = repeated, duplicate_rate(data.train_images)
    copies = copy_rates(data.train_images, holdout, images[:n])
    fake |= copies["fake"]
    real |= copies["real"]

    gates = judge(spec.evaluate.gates, fake, real)
    result = EvaluateResult(
        uri=f"{spec.run_uri}/{spec.report}", extractor=extractor.name, samples=n, fake=fake,
        real=real, gates=gates, published=all(g.passed for g in gates),
    )  # fmt: skip
    _write_report(store, spec, manifest, data, result, images, labels)
    if not result.published:
        store.delete(f"{spec.generate.into}/_SUCCESS")
        failed = "; ".join(f"{g.name}: {g.value:.4g}, limit {g.limit:g}"
                           for g in gates if not g.passed)  # fmt: skip
        raise GateError(f"{spec.run_uri}: not published, gates failed: {failed}. See {result.uri}")
    store.put(f"{spec.generate.into}/_SUCCESS", b"")
    return result


def judge(gates: Gates, fake: dict[str, float], real: dict[str, float]) -> list[GateOutcome]:
    """Compare measured values with the gates that are set: `<metric>[_ratio]_(min|max)`.

    Raises:
        UserError: for a gate on a metric that was not measured.
    """
    outcomes = []
    for gate, limit in gates.model_dump(exclude_none=True).items():
        metric, _, bound = gate.rpartition("_")
        ratio = metric.endswith("_ratio")
        metric = metric.removesuffix("_ratio")
        if metric not in fake:
            raise UserError(
                f"evaluate.gates.{gate}", limit, f"{metric} was not measured: the model or the "
                "data have no classes, or evaluate.inception is not given", "Remove the gate.",
            )  # fmt: skip
        value = fake[metric] / max(real[metric], 1e-12) if ratio else fake[metric]
        passed = value >= limit if bound == "min" else value <= limit
        outcomes.append(GateOutcome(gate, value, limit, bool(passed)))
    return outcomes


def _distances(
    real: NDArray[np.float32], fake: NDArray[np.float32], k: int
) -> dict[str, float]:  # fmt: skip
    return {
        "fid": frechet_distance(real, fake),
        "kid": kernel_distance(real, fake),
        **prdc(real, fake, k=k),
    }


def feature_extractor(spec: Spec, data: ImageData | ImageStream) -> Extractor:
    """The feature extractor of this data, trained once for a run and kept beside its reports."""
    classes = len(data.codec.classes or ())
    return kept_extractor(
        Store(spec.run_uri), data.digest, data.train_images, data.train_labels, classes
    )


def _choose(images: NDArray[np.uint8], spec: Spec) -> NDArray[np.uint8]:
    """A fixed random choice of at most `evaluate.samples` images, as sources may be sorted."""
    n = len(images)
    order = np.argsort(rng.permute(0, rng.Stream.EVALUATE, np.arange(n), n))
    return images[order[: spec.evaluate.samples]]


# --- reading what was shipped --------------------------------------------------------------------


def _read(
    store: Store, manifest: Manifest, codec: ImageCodec, samples: int, searched: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None, float]:
    """The first images with labels, and the share of repeats among the `searched` first.

    Samples do not depend on one another, so the first ones are as good a choice as any.
    """
    wanted, rows = min(samples, manifest.rows), 0
    encoding = manifest.fields["generate.encoding"]
    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.int64]] = []
    encoded: list[bytes] = []
    for _, classes, cells in shipped(store, manifest):
        taken = cells[: max(0, wanted - rows)]
        images += [sinks.decode(cell, codec, encoding) for cell in taken]
        if classes is not None:
            labels.append(classes[: len(taken)])
        encoded += cells
        rows += len(cells)
        if rows >= max(wanted, searched):
            break
    return np.stack(images), np.concatenate(labels) if labels else None, duplicate_rate(encoded)


# --- the report ----------------------------------------------------------------------------------


def _write_report(
    store: Store, spec: Spec, manifest: Manifest, data: ImageData | ImageStream,
    result: EvaluateResult, images: NDArray[np.uint8], labels: NDArray[np.int64] | None,
) -> None:  # fmt: skip
    record = {
        **asdict(result),
        "counts": {"generated": manifest.rows, "compared": result.samples,
                   "train": data.n, "holdout": len(data.holdout_images)},
        "k": spec.evaluate.k,
        "inception_samples": spec.evaluate.inception_samples if spec.evaluate.inception else None,
        "dataset": manifest.fingerprint,
        "model": manifest.model,
        "skipped_source_images": list(data.skipped),
    }  # fmt: skip
    store.put(f"{spec.report}/quality.json", json.dumps(record, indent=2).encode())
    names = data.codec.classes if labels is not None else None
    by_class = None if labels is None or not names else _per_class(images, labels, len(names))
    preview = image_grid(images[:100], columns=_PREVIEW_COLUMNS) if by_class is None else by_class
    store.put(f"{spec.report}/preview.png", png_bytes(preview))
    _, closest = nearest(images[:_PAIRS], data.train_images)
    pairs = pair_grid(data.train_images[closest], images[:_PAIRS], columns=_PREVIEW_COLUMNS)
    page = render_html(
        Report(
            title=f"{spec.name}: {manifest.rows:,} synthetic images",
            summary={
                "Images": f"{manifest.rows:,} of {data.codec.size}x{data.codec.size}"
                f"x{data.codec.channels}",
                "Model": f"{spec.model.preset}, {manifest.model[:16]}",
                "Compared": f"{result.samples:,} generated with {result.samples:,} held-out real",
                "Features": result.extractor,
                "Published": "yes" if result.published else "no",
            },
            scores=_scores(result),
            samples_png=png_bytes(image_grid(images[:100], columns=_PREVIEW_COLUMNS)),
            class_samples_png=None if by_class is None else png_bytes(by_class),
            class_names=names or (),
            neighbour_pairs_png=png_bytes(pairs),
            losses=_curves(store),
            provenance={
                "data set": manifest.fingerprint,
                "digital source type": manifest.synthetic,
                "model card": manifest.card,
                "versions": manifest.versions,
            },
            spec_yaml=yaml.safe_dump(config.dump(spec), sort_keys=False),
        )
    )
    store.put(f"{spec.report}/report.html", page.encode())


def _scores(result: EvaluateResult) -> list[Score]:
    gates = {g.name.rpartition("_")[0].removesuffix("_ratio"): g for g in result.gates}
    scores = []
    for name, value in result.fake.items():
        better, explanation = METRICS[name]
        gate = gates.get(name)
        rule = None
        if gate is not None:
            bound = "at least" if gate.name.endswith("_min") else "at most"
            unit = " times real" if "_ratio_" in gate.name else ""
            rule = f"{bound} {gate.limit:g}{unit}"
        scores.append(
            Score(
                name=f"{name}@{result.extractor}" if name in ("fid", "kid") else name,
                fake=value,
                real=result.real[name],
                better="lower" if better == "lower" else "higher",
                explanation=explanation,
                gate=rule,
                passed=None if gate is None else gate.passed,
            )
        )
    return scores


def _per_class(
    images: NDArray[np.uint8], labels: NDArray[np.int64], classes: int
) -> NDArray[np.uint8]:
    """A row of the first images of each class; a class that was not asked for has an empty row."""
    tiles = np.full((classes, _PREVIEW_COLUMNS, *images.shape[1:]), 255, np.uint8)
    for c in range(classes):
        found = images[labels == c][:_PREVIEW_COLUMNS]
        tiles[c, : len(found)] = found
    return image_grid(tiles.reshape(-1, *images.shape[1:]), columns=_PREVIEW_COLUMNS)


def _curves(store: Store) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in read_metrics(store):
        for name, value in row.items():
            if name not in ("samples", "rate", "workers", "alarm"):
                curves.setdefault(name, []).append((row["samples"], value))
    return curves
