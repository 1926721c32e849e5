"""What was read of a source of images, for people; see `Data.summary`."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from genai_ray.image.listing import few
from genai_ray.image.pixels import Scale, depth_summary, is_transparent, scales_of
from genai_ray.image.spec import ImageDataSpec
from genai_ray.modality import Json
from genai_ray.order import DEFAULT_HOLDOUT

_SHOWN_CLASSES = 20


def summary_of(
    classes: Sequence[str] | None, labels: NDArray[np.int64] | None, samples: int, holdout: str, found: Json
) -> Json:
    """See `Data.summary`.

    Args:
        classes, labels: names, and numbers of all samples; -1 is not counted.
        samples: how many train or are held out. holdout: how many are held out, and why those.
        found: further lines, of which those that hold nothing are left out.
    """
    counts: Json = {}
    if classes is not None and labels is not None:
        sizes = np.bincount(labels[labels >= 0], minlength=len(classes)).tolist()
        counts = dict(zip(classes[:_SHOWN_CLASSES], sizes, strict=False))
        if len(classes) > _SHOWN_CLASSES:
            counts[f"{len(classes) - _SHOWN_CLASSES:,} more classes"] = sum(sizes[_SHOWN_CLASSES:])
    lines = {"samples": samples, "classes": counts, "holdout": holdout, **found}
    return {name: value for name, value in lines.items() if value}


def lines_of(
    spec: ImageDataSpec, sizes: Mapping[str, int], modes: Mapping[str, int], depths: Mapping[str, Scale], several: int
) -> Json:
    """The images themselves.

    Args:
        sizes, modes: how many images have each. depths: the extremes of deep values, by kind.
        several: how many files hold several images.
    """
    transparent = sum(count for mode, count in modes.items() if is_transparent(mode))
    return {
        "sizes": few(sizes),
        "modes": few(modes),
        "transparency": f"of {transparent:,} images, laid on {spec.background}" if transparent else "",
        "depth": depth_summary(depths, scales_of(spec, depths)),
        "frames": f"{several:,} files hold several images; the first of each is read" if several else "",
    }


def share_of(spec: ImageDataSpec) -> str:
    """Why the images of the holdout are held out, where no split of the source is."""
    return f"a share of {spec.holdout or DEFAULT_HOLDOUT:g}"
