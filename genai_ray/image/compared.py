"""The image metrics, one function each as named in `metrics.py`, and the data that they compare."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from genai_ray.image.extractor import Extractor
from genai_ray.metrics.fidelity import frechet_distance, kernel_distance, prdc


@dataclass(frozen=True)
class Compared:
    """The input of the metrics: generated images and held-out real ones, or training images in place of generated ones.

    holdout, images: (N, H, W, C) of the holdout, and what is compared with it. reference, features: (N, D) of the same.
    k: neighbours. labelled: images and labels for the classifier, None without classes. repeated: share
    of exact repeats. copies: rates by name. inception: fid_inception, None if not measured.
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


def agreement(compared: Compared) -> float | None:
    if compared.labelled is None or not compared.extractor.classes:
        return None
    return compared.extractor.accuracy(*compared.labelled)


def _neighbour_metric(name: str) -> Callable[[Compared], float]:
    return lambda compared: compared.near[name]


def _copy_rate(name: str) -> Callable[[Compared], float]:
    return lambda compared: compared.copies[name]


precision = _neighbour_metric("precision")
recall = _neighbour_metric("recall")
density = _neighbour_metric("density")
coverage = _neighbour_metric("coverage")
exact_copies = _copy_rate("exact_copy_rate")
near_copies = _copy_rate("near_copy_rate")
duplicates = attrgetter("repeated")
fid_inception = attrgetter("inception")
