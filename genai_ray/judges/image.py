"""Images: distances of features, agreement with the classes that were asked for, copies."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import yaml
from markupsafe import Markup
from numpy.typing import NDArray

from genai_ray import config, rng, sinks
from genai_ray.config import Spec
from genai_ray.data.image import ImageCodec, ImageData
from genai_ray.data.stream import ImageStream
from genai_ray.dataset import shipped
from genai_ray.errors import UserError
from genai_ray.judges.verdict import Judge, Measured
from genai_ray.metrics.extractor import Extractor, kept_extractor
from genai_ray.metrics.fidelity import frechet_distance, kernel_distance, prdc
from genai_ray.metrics.inception import Inception, read_weights
from genai_ray.metrics.memorisation import copy_rates, duplicate_rate, nearest
from genai_ray.provenance import Manifest
from genai_ray.report.page import Block, Picture, Report, Score, render_html
from genai_ray.report.pictures import image_grid, pair_grid, png_bytes
from genai_ray.runs import loss_curves
from genai_ray.storage import Store

_COLUMNS, _SAMPLES, _PAIRS = 10, 100, 20
#: Classes whose samples the page shows unfolded.
_CLASSES = 20

_NOTICE = Markup(
    "<strong>All images on this page are synthetic.</strong> A model generated them; do not take them for "
    "records of real things or people. The one exception: in “Nearest training images” the lower image of "
    "each pair is real."
)
_SCORES_NOTE = (
    "Compare each score with the one next to it: “real” is the same metric between two sets of real images, "
    "about the best a generator can reach."
)

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


class ImageMonitor:
    """Features are those of the extractor that also makes the report."""

    key = "fid"

    def __init__(self, spec: Spec, store: Store, data: ImageData | ImageStream):
        images = data.train_images
        self.extractor = kept_extractor(store, data.digest, images, data.train_labels, data.codec.label_width)
        n = min(len(images), spec.train.evaluate_samples)
        order = np.argsort(rng.permute(0, rng.Stream.EVALUATE, np.arange(len(images)), len(images)))
        self.real = self.extractor.features(images[order[:n]])
        self.k = _neighbours(spec, n)

    def scores(self, outputs: NDArray[np.uint8], labels: NDArray[np.int64] | None) -> dict[str, float]:
        fake = self.extractor.features(outputs)
        near = prdc(self.real, fake, k=self.k)
        scores = {
            "fid": frechet_distance(self.real, fake),
            "recall": near["recall"],
            "coverage": near["coverage"],
        }
        if labels is not None and self.extractor.classes:
            scores["agreement"] = float((self.extractor.classify(outputs) == labels).mean())
        return scores


def picture(images: NDArray[np.uint8], side: int = 8) -> NDArray[np.uint8]:
    """The first side x side images as one (H, W, C)."""
    tiles = images[: side * side]
    h, w, c = tiles.shape[1:]
    return tiles.reshape(side, side, h, w, c).swapaxes(1, 2).reshape(side * h, side * w, c)


def measure(spec: Spec, store: Store, manifest: Manifest, data: ImageData | ImageStream) -> Measured:
    """Measure the images of a finished data set beside held-out and training ones.

    Raises:
        UserError: if a file is not what the manifest says, or what is asked cannot be measured.
    """
    weights = read_weights(spec.evaluate.inception) if spec.evaluate.inception else None
    codec = ImageCodec.from_json(manifest.card["codec"])
    if weights is not None and isinstance(data, ImageStream):
        raise UserError(
            "evaluate.inception",
            spec.evaluate.inception,
            "compares with every training image, and the data are larger than data.resident_gb",
            "Raise data.resident_gb.",
        )
    extractor = feature_extractor(spec, data)
    shipped_store = store.at(spec.generate.into)
    images, labels, repeated = _read(
        shipped_store, manifest, codec, spec.evaluate.samples, spec.evaluate.duplicate_rows
    )
    holdout = _choose(data.holdout_images, spec)
    train = _choose(data.train_images, spec)
    n = min(len(holdout), len(train), len(images))
    k = _neighbours(spec, n)

    fake_features = extractor.features(images[:n])
    real_features = extractor.features(holdout[:n])
    baseline = extractor.features(train[:n])
    fake = _distances(real_features, fake_features, k)
    real = _distances(real_features, baseline, k)
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

    names = data.codec.classes if labels is not None else None
    tiles = None if labels is None or not names else _tiles_by_class(images, labels, len(names))

    def page(published: bool, scores: list[Score]) -> str:
        return render_html(
            Report(
                title=f"{spec.name}: {manifest.rows:,} synthetic images",
                notice=_NOTICE,
                summary={
                    "Images": f"{manifest.rows:,} of {codec.size}x{codec.size}x{codec.channels}",
                    "Model": f"{spec.model.preset}, {manifest.model[:16]}",
                    "Compared": f"{n:,} generated with {n:,} held-out real",
                    "Features": extractor.name,
                    "Published": "yes" if published else "no",
                },
                scores=scores,
                scores_note=_SCORES_NOTE,
                blocks=[*_samples(images, tiles, names or ()), _closest(images[:_PAIRS], data.train_images)],
                losses=loss_curves(store),
                provenance=manifest.about,
                spec_yaml=yaml.safe_dump(config.dump(spec), sort_keys=False),
            )
        )

    return Measured(
        samples=n,
        features=extractor.name,
        fake=fake,
        real=real,
        counts={
            "generated": manifest.rows,
            "compared": n,
            "train": data.n,
            "holdout": len(data.holdout_images),
        },
        page=page,
        record={
            "k": k,
            "inception_samples": spec.evaluate.inception_samples if spec.evaluate.inception else None,
        },
        files={"preview.png": _png(images[:_SAMPLES] if tiles is None else tiles)},
    )


def _distances(real: NDArray[np.float32], fake: NDArray[np.float32], k: int) -> dict[str, float]:
    return {"fid": frechet_distance(real, fake), "kid": kernel_distance(real, fake), **prdc(real, fake, k=k)}


def _neighbours(spec: Spec, n: int) -> int:
    if spec.evaluate.k >= n:
        raise UserError(
            "evaluate.k", spec.evaluate.k, f"must be below the {n} images that are compared", "Lower it."
        )
    return spec.evaluate.k


def feature_extractor(spec: Spec, data: ImageData | ImageStream) -> Extractor:
    """The feature extractor of this data, trained once for a run and kept beside its reports."""
    classes = len(data.codec.classes or ())
    return kept_extractor(Store(spec.run_uri), data.digest, data.train_images, data.train_labels, classes)


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
    for file in shipped(store, manifest):
        classes, cells = file.labels, file.cells
        taken = cells[: max(0, wanted - rows)]
        images += [sinks.decode(cell, codec, encoding) for cell in taken]
        if classes is not None:
            labels.append(classes[: len(taken)])
        encoded += cells
        rows += len(cells)
        if rows >= max(wanted, searched):
            break
    return np.stack(images), np.concatenate(labels) if labels else None, duplicate_rate(encoded)


# --- the blocks of the page ----------------------------------------------------------------------


def _samples(images: NDArray[np.uint8], tiles: NDArray[np.uint8] | None, names: Sequence[str]) -> list[Block]:
    """A random draw, and the rows of `_tiles_by_class`; those of many classes are folded."""
    drawn = Picture(png=_png(images[:_SAMPLES]), alt="Grid of generated images")
    shown = [Block(title="Samples", note="A random draw, not a selection.", pictures=[drawn])]
    if tiles is not None:
        ends = (0, _CLASSES, len(names))
        pictures = [
            Picture(
                png=_png(tiles[start:stop]),
                alt="Generated images, one row for each class",
                rows=names[start:stop],
                folded=f"{stop - start} more classes" if start else "",
            )
            for start, stop in pairwise(ends)
            if tiles[start:stop].size
        ]
        shown.append(Block(title="Samples by class", pictures=pictures))
    return shown


def _closest(images: NDArray[np.uint8], train: NDArray[np.uint8]) -> Block:
    """Generated images, each above its nearest training image. This discloses real ones."""
    _, closest = nearest(images, train)
    pairs = pair_grid(train[closest], images, columns=_COLUMNS)
    note = Markup(
        "Upper image: generated. Lower image: the <strong>real</strong> training image nearest to it. Pairs "
        "that look the same are a sign of copying; pairs that differ are no proof of privacy."
    )
    picture = Picture(
        png=png_bytes(pairs), alt="Pairs: a generated image above its nearest real training image"
    )
    return Block(title="Nearest training images", note=note, pictures=[picture])


def _png(images: NDArray[np.uint8]) -> bytes:
    """A grid of images (..., h, w, channels)."""
    return png_bytes(image_grid(images.reshape(-1, *images.shape[-3:]), columns=_COLUMNS))


def _tiles_by_class(images: NDArray[np.uint8], labels: NDArray[np.int64], classes: int) -> NDArray[np.uint8]:
    """The first images of each class, (classes, columns, h, w, channels); white where there are too few."""
    tiles = np.full((classes, _COLUMNS, *images.shape[1:]), 255, np.uint8)
    for c in range(classes):
        first = images[labels == c][:_COLUMNS]
        tiles[c, : len(first)] = first
    return tiles


JUDGE = Judge(
    measure=measure, monitor=lambda spec, store, data: ImageMonitor(spec, store, data), picture=picture
)
