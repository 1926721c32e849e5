"""Which samples train, and in which order they are shown."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from genai_ray import rng
from genai_ray.errors import UserError

DEFAULT_HOLDOUT = 0.2


def rows_at(seed: int, start: int, stop: int, n: int) -> NDArray[np.int64]:
    """Which of n samples stand at places start..stop of the endless line in which every sample
    comes once an epoch, in a fresh order each.
    """
    places = np.arange(start, stop)
    epochs = places // n
    rows = np.empty_like(places)
    for epoch in range(epochs[0], epochs[-1] + 1):
        chosen = epochs == epoch
        rows[chosen] = _order(seed, epoch, n)[places[chosen] % n]
    return rows


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    return rng.permute(rng.fold(seed, epoch), rng.Stream.TRAIN_ORDER, np.arange(n), n)


def split(share: float | None, n: int, noun: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of n samples train and which are held out, both ascending; by n and the share alone.

    Raises:
        UserError: if one part would be empty.
    """
    held = round(n * (share or DEFAULT_HOLDOUT))
    if not 1 <= held < n:
        raise UserError(
            "data.holdout",
            share,
            f"leaves {n - held} of {n} {noun}s to train and {held} for the holdout",
            f"Add {noun}s or change the share.",
        )
    order = np.argsort(rng.permute(0, rng.Stream.HOLDOUT, np.arange(n), n))
    return np.sort(order[held:]), np.sort(order[:held])
