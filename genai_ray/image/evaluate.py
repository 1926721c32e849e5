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
from genai_ray.image.source import ImageData
from genai_ray.image.spec import ImageRun
from genai_ray.image.stream import ImageStream
from genai_ray.metrics.fidelity import frechet_distance, kernel_distance, prdc
from genai_ray.metrics.memorisation import copy_rates, duplicate_rate, nearest
from genai_ray.modality import Data, Evaluator, Measured, Outputs, Read, Shipped, values_of
from genai_ray.report.page import Report, Score, image_grid, pair_grid, png_bytes, render_html
from genai_ray.spec import Spec, dump
from genai_ray.storage import Store

_PREVIEW_COLUMNS = 10
_PAIRS = 20


@dataclass(frozen=True)
class Compared:
    """What metrics are computed from: generated images beside held-out real ones, or real images in
    their place.

    holdout, images: (N, H, W, C) of the holdout, and what is compared with it. reference, features:
    (N, D) of the same. k: neighbours. labelled: images and labels that a classifier is asked about,
    None without classes. repeated: share of exact repeats. copies: rates by name. inception:
    fid_inception, None if not measured.
    """

    holdout: NDArray[np.uint8]
    images: NDArray[np.uint8]
    reference: NDArray[np.float32]
    features: NDArray[np.float32]
    k: int
    labelled: tuple[NDArray[np.uint8], NDArray[np.int64]] | None
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
    if compared.labelled is None or not compared.extractor.classes:
        return None
    return compared.extractor.accuracy(*compared.labelled)


def duplicates(compared: Compared) -> float:
    return compared.repeated


def exact_copies(compared: Compared) -> float:
    return compared.copies["exact_copy_rate"]


def near_copies(compared: Compared) -> float:
    return compared.copies["near_copy_rate"]


def measure(spec: Spec, shipped: Shipped, data: Data) -> Measured:
    """Measure the images of a finished data set beside held-out and training ones."""
    assert isinstance(spec, ImageRun)
    assert isinstance(data, ImageData | ImageStream)
    settings, manifest = spec.evaluate, shipped.manifest
    weights = read_weights(settings.inception) if settings.inception else None
    codec = ImageCodec.from_json(manifest.card["codec"])
    extractor = feature_extractor(shipped.run, data)
    wanted = settings.samples if weights is None else max(settings.samples, settings.inception_samples)
    encoding = manifest.fields["generate.encoding"]
    many, labels, repeated = _read(shipped.files, codec, encoding, wanted, settings.duplicate_rows)
    images = many[: settings.samples]
    labels = None if labels is None else labels[: settings.samples]
    holdout, train = (_choose(i, settings.samples) for i in (data.holdout_images, data.train_images))
    n = min(len(holdout), len(train), len(images))
    inception: tuple[float | None, float | None] = (None, None)
    if weights is not None:
        network = Inception(weights, spec.train.device)
        inception = network.distances(
            data.train_images, many[: settings.inception_samples], data.holdout_images
        )
    copies = copy_rates(data.train_images, holdout, images[:n])
    reference = extractor.features(holdout[:n])
    labelled = None
    if labels is not None and data.holdout_labels is not None:
        labelled = (images, labels), (data.holdout_images, data.holdout_labels)
    fake = Compared(
        holdout=holdout[:n],
        images=images[:n],
        reference=reference,
        features=extractor.features(images[:n]),
        k=settings.k,
        labelled=labelled and labelled[0],
        extractor=extractor,
        repeated=repeated,
        copies=copies["fake"],
        inception=inception[0],
    )
    real = Compared(
        holdout=holdout[:n],
        images=train[:n],
        reference=reference,
        features=extractor.features(train[:n]),
        k=settings.k,
        labelled=labelled and labelled[1],
        extractor=extractor,
        repeated=duplicate_rate(data.train_images),
        copies=copies["real"],
        inception=inception[1],
    )
    names = data.codec.classes if labels is not None else None
    by_class = None if labels is None or not names else _per_class(images, labels, len(names))
    samples = image_grid(images[:100], columns=_PREVIEW_COLUMNS)

    def page(published: bool, scores: list[Score]) -> str:
        _, closest = nearest(images[:_PAIRS], data.train_images)
        pairs = pair_grid(data.train_images[closest], images[:_PAIRS], columns=_PREVIEW_COLUMNS)
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
        fake=values_of(METRICS, fake),
        real=values_of(METRICS, real),
        counts={
            "generated": manifest.rows,
            "compared": n,
            "train": data.n,
            "holdout": len(data.holdout_images),
        },
        page=page,
        record={
            "k": settings.k,
            "inception_samples": settings.inception_samples if settings.inception else None,
        },
        files={"preview.png": png_bytes(samples if by_class is None else by_class)},
    )


def feature_extractor(run: Store, data: ImageData | ImageStream) -> Extractor:
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
        assert isinstance(data, ImageData | ImageStream)
        images = data.train_images
        self.extractor = feature_extractor(store, data)
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
