"""Images: distances of features, agreement with the classes that were asked for, copies."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import yaml
from numpy.typing import NDArray

from genai_ray import rng
from genai_ray.image.codec import ImageCodec
from genai_ray.image.encoding import decode
from genai_ray.image.extractor import Extractor, kept_extractor
from genai_ray.image.inception import Inception, read_weights
from genai_ray.image.metrics import METRICS
from genai_ray.image.rows import ImageRead
from genai_ray.image.source import Arrays, ImageData, in_memory
from genai_ray.image.spec import ImageRun
from genai_ray.metrics.fidelity import frechet_distance, kernel_distance, prdc
from genai_ray.metrics.memorisation import copy_rates, duplicate_rate, nearest
from genai_ray.modality import Data, Evaluator, Measured, Outputs, Read, Shipped, named
from genai_ray.report.page import Report, Score, image_grid, pair_grid, png_bytes, render_html
from genai_ray.spec import Spec, dump
from genai_ray.storage import Store

_PREVIEW_COLUMNS = 10
_PAIRS = 20


@dataclass(frozen=True)
class Compared:
    """What metrics are computed from: generated images beside held-out real ones, or real images in
    their place.

    reference, features: (N, D) of the holdout and of what is compared with it. k: neighbours.
    images, labels: what a classifier is asked about, None without classes. repeated: share of exact
    repeats. copies: rates by name. inception: fid_inception, None if not measured.
    """

    reference: NDArray[np.float32]
    features: NDArray[np.float32]
    k: int
    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    extractor: Extractor
    repeated: float
    copies: dict[str, float]
    inception: float | None

    @cached_property
    def near(self) -> dict[str, float]:
        """Precision, recall, density and coverage, which share their distances."""
        return prdc(self.reference, self.features, k=self.k)


def fid(compared: Compared) -> float:
    return frechet_distance(compared.reference, compared.features)


def kid(compared: Compared) -> float:
    return kernel_distance(compared.reference, compared.features)


def precision(compared: Compared) -> float:
    return compared.near["precision"]


def recall(compared: Compared) -> float:
    return compared.near["recall"]


def density(compared: Compared) -> float:
    return compared.near["density"]


def coverage(compared: Compared) -> float:
    return compared.near["coverage"]


def fid_inception(compared: Compared) -> float | None:
    return compared.inception


def agreement(compared: Compared) -> float | None:
    if compared.labels is None or not compared.extractor.classes:
        return None
    return compared.extractor.accuracy(compared.images, compared.labels)


def duplicates(compared: Compared) -> float:
    return compared.repeated


def exact_copies(compared: Compared) -> float:
    return compared.copies["exact_copy_rate"]


def near_copies(compared: Compared) -> float:
    return compared.copies["near_copy_rate"]


def measure(spec: Spec, shipped: Shipped, data: Data) -> Measured:
    """Measure the images of a finished data set beside held-out and training ones."""
    assert isinstance(spec, ImageRun)
    assert isinstance(data, ImageData)
    arrays = in_memory(data)
    settings, manifest = spec.evaluate, shipped.manifest
    weights = read_weights(settings.inception) if settings.inception else None
    codec = ImageCodec.from_json(manifest.card["codec"])
    extractor = feature_extractor(shipped.run, arrays)
    wanted = settings.samples if weights is None else max(settings.samples, settings.inception_samples)
    encoding = manifest.fields["generate.encoding"]
    many, labels, repeated = _read(shipped.files, codec, encoding, wanted, settings.duplicate_rows)
    images = many[: settings.samples]
    labels = None if labels is None else labels[: settings.samples]
    holdout, train = (_choose(i, settings.samples) for i in (arrays.holdout_images, arrays.train_images))
    n = min(len(holdout), len(train), len(images))
    inception: tuple[float | None, float | None] = (None, None)
    if weights is not None:
        network = Inception(weights, spec.train.device)
        inception = network.distances(
            data.train_images, many[: settings.inception_samples], data.holdout_images
        )
    copies = copy_rates(arrays.train_images, holdout, images[:n])
    reference = extractor.features(holdout[:n])
    fake = Compared(
        reference=reference,
        features=extractor.features(images[:n]),
        k=settings.k,
        images=images,
        labels=None if arrays.holdout_labels is None else labels,
        extractor=extractor,
        repeated=repeated,
        copies=copies["fake"],
        inception=inception[0],
    )
    real = Compared(
        reference=reference,
        features=extractor.features(train[:n]),
        k=settings.k,
        images=arrays.holdout_images,
        labels=None if labels is None else arrays.holdout_labels,
        extractor=extractor,
        repeated=duplicate_rate(arrays.train_images),
        copies=copies["real"],
        inception=inception[1],
    )
    names = data.codec.classes if labels is not None else None
    by_class = None if labels is None or not names else _per_class(images, labels, len(names))
    samples = image_grid(images[:100], columns=_PREVIEW_COLUMNS)

    def page(published: bool, scores: list[Score]) -> str:
        _, closest = nearest(images[:_PAIRS], arrays.train_images)
        pairs = pair_grid(arrays.train_images[closest], images[:_PAIRS], columns=_PREVIEW_COLUMNS)
        return render_html(
            Report(
                title=f"{spec.name}: {manifest.rows:,} synthetic images",
                summary={
                    "Images": f"{manifest.rows:,} of {codec.size}x{codec.size}x{codec.channels}",
                    "Model": f"{spec.model.preset}, {manifest.model[:16]}",
                    "Compared": f"{n:,} generated with {n:,} held-out real",
                    "Features": extractor.name,
                    "Published": "yes" if published else "no",
                },
                scores=scores,
                samples_png=png_bytes(samples),
                class_samples_png=None if by_class is None else png_bytes(by_class),
                class_names=names or (),
                neighbour_pairs_png=png_bytes(pairs),
                losses=shipped.losses,
                provenance=manifest.about,
                spec_yaml=yaml.safe_dump(dump(spec), sort_keys=False),
            )
        )

    return Measured(
        samples=n,
        features=extractor.name,
        fake=_values(fake),
        real=_values(real),
        counts={
            "generated": manifest.rows,
            "compared": n,
            "train": data.n,
            "holdout": len(arrays.holdout_images),
        },
        page=page,
        record={
            "k": settings.k,
            "inception_samples": settings.inception_samples if settings.inception else None,
        },
        files={"preview.png": png_bytes(samples if by_class is None else by_class)},
    )


def _values(compared: Compared) -> dict[str, float]:
    values = {name: named(metric.function)(compared) for name, metric in METRICS.items()}
    return {name: value for name, value in values.items() if value is not None}


def feature_extractor(run: Store, data: Arrays) -> Extractor:
    """The feature extractor of this data, trained once for a run and kept beside its reports."""
    classes = data.codec.label_width
    return kept_extractor(run, data.digest, data.train_images, data.train_labels, classes)


def _choose(images: NDArray[np.uint8], samples: int) -> NDArray[np.uint8]:
    """A fixed random choice of at most so many images, as sources may be sorted."""
    n = len(images)
    order = np.argsort(rng.permute(0, rng.Stream.EVALUATE, np.arange(n), n))
    return images[order[:samples]]


def _read(
    files: Iterator[Read], codec: ImageCodec, encoding: str, samples: int, searched: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None, float]:
    """The first images with labels, and the share of repeats among the `searched` first.

    Samples do not depend on one another, so the first ones are as good a choice as any.
    """
    images: list[NDArray[np.uint8]] = []
    labels: list[NDArray[np.int64]] = []
    encoded: list[bytes] = []
    for file in files:
        assert isinstance(file, ImageRead)
        cells = file.cells[: max(0, samples - len(images))]
        images += [decode(cell, codec, encoding) for cell in cells]
        if file.labels is not None:
            labels.append(file.labels[: len(cells)])
        encoded += file.cells[: max(0, searched - len(encoded))]
        if len(images) >= samples and len(encoded) >= searched:
            break
    return np.stack(images), np.concatenate(labels) if labels else None, duplicate_rate(encoded)


def _per_class(images: NDArray[np.uint8], labels: NDArray[np.int64], classes: int) -> NDArray[np.uint8]:
    """A row of the first images of each class; a class that was not asked for has an empty row."""
    tiles = np.full((classes, _PREVIEW_COLUMNS, *images.shape[1:]), 255, np.uint8)
    for c in range(classes):
        found = images[labels == c][:_PREVIEW_COLUMNS]
        tiles[c, : len(found)] = found
    return image_grid(tiles.reshape(-1, *images.shape[1:]), columns=_PREVIEW_COLUMNS)


class ImageMonitor:
    """Features are those of the extractor that also makes the report."""

    key = "fid"

    def __init__(self, spec: Spec, store: Store, data: Data):
        assert isinstance(spec, ImageRun)
        assert isinstance(data, ImageData)
        arrays = in_memory(data)
        images = arrays.train_images
        self.extractor = feature_extractor(store, arrays)
        n = min(len(images), spec.train.evaluate_samples)
        order = np.argsort(rng.permute(0, rng.Stream.EVALUATE, np.arange(len(images)), len(images)))
        self.real = self.extractor.features(images[order[:n]])
        self.k = spec.evaluate.k

    def scores(self, outputs: Outputs, labels: NDArray[np.int64] | None) -> dict[str, float]:
        (images,) = outputs
        fake = self.extractor.features(images)
        near = prdc(self.real, fake, k=self.k)
        scores = {
            "fid": frechet_distance(self.real, fake),
            "recall": near["recall"],
            "coverage": near["coverage"],
        }
        if labels is not None and self.extractor.classes:
            scores["agreement"] = float((self.extractor.classify(images) == labels).mean())
        return scores


def picture(outputs: Outputs) -> NDArray[np.uint8]:
    """The first 64 images as one (H, W, C)."""
    side = 8
    tiles = outputs[0][: side * side]
    h, w, c = tiles.shape[1:]
    return tiles.reshape(side, side, h, w, c).swapaxes(1, 2).reshape(side * h, side * w, c)


EVALUATOR = Evaluator(measure=measure, monitor=ImageMonitor, picture=picture)
