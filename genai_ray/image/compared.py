"""What is compared of images, and the metrics of it: one function each, which `metrics.py` names."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from genai_ray.image.extractor import Extractor
from genai_ray.metrics.fidelity import frechet_distance, kernel_distance, prdc


@dataclass(frozen=True)
class Compared:
    """What metrics are computed from: generated images beside held-out real ones, or real images in their place.

    holdout, images: (N, H, W, C) of the holdout, and what is compared with it. reference, features: (N, D) of the same.
    k: neighbours. labelled: images and labels that a classifier is asked about, None without classes. repeated: share
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
