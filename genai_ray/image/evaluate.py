"""How images are evaluated: distances of features, agreement with the requested classes, copies."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from genai_ray import rng
from genai_ray.errors import UserError
from genai_ray.image.codec import ImageCodec
from genai_ray.image.compared import Compared
from genai_ray.image.encoding import decode
from genai_ray.image.extractor import Extractor, stored_extractor
from genai_ray.image.inception import Inception, read_weights
from genai_ray.image.metrics import METRICS
from genai_ray.image.rows import ImageRead
from genai_ray.image.source import Arrays, ImageData, in_memory
from genai_ray.image.spec import ImageRun
from genai_ray.metrics.fidelity import frechet_distance, prdc
from genai_ray.metrics.memorisation import copy_rates, duplicate_rate, nearest
from genai_ray.modality import Data, Evaluator, Measured, Outputs, Read, Shipped, values_of
from genai_ray.report.page import Block, Picture
from genai_ray.report.pictures import image_grid, pair_grid, png_bytes
from genai_ray.spec import Spec
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


def measure(spec: Spec, shipped: Shipped, data: Data) -> Measured:
    """Compare the images of a finished data set with held-out and training ones."""
    assert isinstance(spec, ImageRun)
    assert isinstance(data, ImageData)
    arrays = in_memory(data)
    settings, manifest = spec.evaluate, shipped.manifest
    codec = ImageCodec.from_json(manifest.card["codec"])
    encoding = manifest.fields["generate.encoding"]
    wanted = max(settings.samples, settings.inception_samples if settings.inception else 0)
    many, labels, repeated = _read(shipped.files, codec, encoding, wanted, settings.duplicate_rows)
    images = many[: settings.samples]
    labels = None if labels is None else labels[: settings.samples]
    fake, real = _compare(spec, shipped.run, data, arrays, many, labels, repeated)
    n = len(fake.features)
    names = data.codec.classes if labels is not None else None
    tiles = None if labels is None or not names else _tiles_by_class(images, labels, len(names))
    return Measured(
        samples=n,
        features=fake.extractor.name,
        fake=values_of(METRICS, fake),
        real=values_of(METRICS, real),
        counts={"generated": manifest.rows, "compared": n, "train": data.n, "holdout": len(arrays.holdout_images)},
        record={"k": settings.k, "inception_samples": settings.inception_samples if settings.inception else None},
        files={"preview.png": _png(images[:_SAMPLES] if tiles is None else tiles)},
        title=f"{manifest.rows:,} synthetic images",
        notice=_NOTICE,
        summary={
            "Images": f"{manifest.rows:,} of {codec.size}x{codec.size}x{codec.channels}",
            "Compared": f"{n:,} generated with {n:,} held-out real",
            "Features": fake.extractor.name,
        },
        scores_note=_SCORES_NOTE,
        blocks=[*_sample_blocks(images, tiles, names or ()), _nearest_block(images[:_PAIRS], arrays.train_images)],
    )


def _compare(
    spec: ImageRun,
    run: Store,
    data: ImageData,
    arrays: Arrays,
    many: NDArray[np.uint8],
    labels: NDArray[np.int64] | None,
    repeated: float,
) -> tuple[Compared, Compared]:
    """What is compared for the generated images, and for real ones in their place; equally many, where it matters."""
    settings = spec.evaluate
    weights = read_weights(settings.inception) if settings.inception else None
    extractor = feature_extractor(run, arrays)
    images = many[: settings.samples]
    holdout, train = (_choose(i, settings.samples) for i in (arrays.holdout_images, arrays.train_images))
    n = min(len(holdout), len(train), len(images))
    inception: tuple[float | None, float | None] = (None, None)
    if weights is not None:
        network = Inception(weights, spec.train.device)
        inception = network.distances(data.train_images, many[: settings.inception_samples], data.holdout_images)
    copies = copy_rates(arrays.train_images, holdout, images[:n])
    fake_labelled = real_labelled = None
    if labels is not None and arrays.holdout_labels is not None:
        fake_labelled, real_labelled = (images, labels), (arrays.holdout_images, arrays.holdout_labels)
    fake = Compared(
        holdout=holdout[:n],
        images=images[:n],
        reference=extractor.features(holdout[:n]),
        features=extractor.features(images[:n]),
        k=_neighbours(spec, n),
        labelled=fake_labelled,
        extractor=extractor,
        repeated=repeated,
        copies=copies["fake"],
        inception=inception[0],
    )
    real = replace(
        fake,
        images=train[:n],
        features=extractor.features(train[:n]),
        labelled=real_labelled,
        repeated=duplicate_rate(arrays.train_images),
        copies=copies["real"],
        inception=inception[1],
    )
    return fake, real


def _neighbours(spec: ImageRun, n: int) -> int:
    if spec.evaluate.k >= n:
        raise UserError("evaluate.k", spec.evaluate.k, f"must be below the {n} images that are compared", "Lower it.")
    return spec.evaluate.k


def feature_extractor(run: Store, data: Arrays) -> Extractor:
    """The feature extractor of this data, trained once for a run and stored beside its reports."""
    return stored_extractor(run, data.digest, data.train_images, data.train_labels, data.codec.label_width)


def _choose(images: NDArray[np.uint8], samples: int) -> NDArray[np.uint8]:
    """A fixed random choice of at most `samples` images, as sources may be sorted."""
    n = len(images)
    order = np.argsort(rng.permute(0, rng.Stream.EVALUATE, np.arange(n), n))
    return images[order[:samples]]


def _read(
    files: Iterator[Read], codec: ImageCodec, encoding: str, samples: int, searched: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None, float]:
    """The first images (samples are independent) with labels, and the share of repeats among the first `searched`."""
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


class ImageMonitor:
    """Measures with the extractor of the report."""

    key = "fid"

    def __init__(self, spec: Spec, store: Store, data: Data):
        assert isinstance(spec, ImageRun)
        assert isinstance(data, ImageData)
        arrays = in_memory(data)
        self.extractor = feature_extractor(store, arrays)
        real = _choose(arrays.train_images, spec.train.evaluate_samples)
        self.real = self.extractor.features(real)
        self.k = _neighbours(spec, len(real))

    def scores(self, outputs: Outputs, labels: NDArray[np.int64] | None) -> dict[str, float]:
        (images,) = outputs
        fake = self.extractor.features(images)
        near = prdc(self.real, fake, k=self.k)
        scores = {"fid": frechet_distance(self.real, fake), "recall": near["recall"], "coverage": near["coverage"]}
        if labels is not None and self.extractor.classes:
            scores["agreement"] = self.extractor.accuracy(images, labels)
        return scores


def picture(outputs: Outputs) -> NDArray[np.uint8]:
    """The first 64 images as one (H, W, C)."""
    side = 8
    tiles = outputs[0][: side * side]
    h, w, c = tiles.shape[1:]
    return tiles.reshape(side, side, h, w, c).swapaxes(1, 2).reshape(side * h, side * w, c)


# --- the blocks of the page ----------------------------------------------------------------------


def _sample_blocks(images: NDArray[np.uint8], tiles: NDArray[np.uint8] | None, names: Sequence[str]) -> list[Block]:
    """The first images, and the rows of `_tiles_by_class`; those beyond 20 classes are folded."""
    drawn = Picture(png=_png(images[:_SAMPLES]), alt="Grid of generated images")
    blocks = [Block(title="Samples", note="A random draw, not a selection.", pictures=[drawn])]
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
        blocks.append(Block(title="Samples by class", pictures=pictures))
    return blocks


def _nearest_block(images: NDArray[np.uint8], train: NDArray[np.uint8]) -> Block:
    """Generated images, each above its nearest training image. This discloses real ones."""
    _, closest = nearest(images, train)
    pairs = pair_grid(train[closest], images, columns=_COLUMNS)
    note = Markup(
        "Upper image: generated. Lower image: the <strong>real</strong> training image nearest to it. Pairs "
        "that look the same are a sign of copying; pairs that differ are no proof of privacy."
    )
    picture = Picture(png=png_bytes(pairs), alt="Pairs: a generated image above its nearest real training image")
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


EVALUATOR = Evaluator(measure=measure, monitor=ImageMonitor, picture=picture)
