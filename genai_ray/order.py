"""Which samples train, and in which order they are shown."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from genai_ray import rng
from genai_ray.errors import UserError

DEFAULT_HOLDOUT = 0.2


def rows_at(seed: int, start: int, stop: int, n: int) -> NDArray[np.int64]:
    """Which of n samples are at indices start..stop of the endless sequence of epochs, each of which is a new
    permutation of all samples.
    """
    indices = np.arange(start, stop)
    epochs = indices // n
    rows = np.empty_like(indices)
    for epoch in range(epochs[0], epochs[-1] + 1):
        chosen = epochs == epoch
        rows[chosen] = _order(seed, epoch, n)[indices[chosen] % n]
    return rows


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    return rng.permute(rng.fold(seed, epoch), rng.Stream.TRAIN_ORDER, np.arange(n), n)


@dataclass(frozen=True, eq=False)
class Blocks:
    """The order of samples that are read in blocks: an epoch shuffles the blocks, and then the samples within each
    window of `window` blocks, so that a block is read once an epoch.

    ends: (B,) cumulative number of samples of the blocks.
    """

    ends: NDArray[np.int64]
    window: int

    def rows_at(self, seed: int, start: int, stop: int) -> NDArray[np.int64]:
        """The same as the function `rows_at`."""
        n = int(self.ends[-1])
        epochs, offsets = np.divmod(np.arange(start, stop), n)
        rows = np.empty_like(offsets)
        for epoch in np.unique(epochs).tolist():
            blocks, ends, cuts = _shuffled(self, seed, epoch)
            starts = np.concatenate([[0], ends])[cuts]
            in_epoch = np.flatnonzero(epochs == epoch)
            windows = np.searchsorted(starts, offsets[in_epoch], "right") - 1
            for window in np.unique(windows).tolist():
                chosen = in_epoch[windows == window]
                first, last = int(starts[window]), int(starts[window + 1])
                key = rng.fold(seed, epoch, window)
                within = rng.permute(key, rng.Stream.TRAIN_ORDER, offsets[chosen] - first, last - first)
                block = np.searchsorted(ends, first + within, "right")
                rows[chosen] = self.ends[blocks[block]] - (ends[block] - first - within)
        return rows

    def next_window(self, seed: int, index: int) -> NDArray[np.int64]:
        """The blocks of the window after the one that holds an index of the endless sequence."""
        epoch, offset = divmod(index, int(self.ends[-1]))
        blocks, ends, cuts = _shuffled(self, seed, epoch)
        window = int(np.searchsorted(np.concatenate([[0], ends])[cuts], offset, "right"))
        if window == len(cuts) - 1:
            window, (blocks, _, cuts) = 0, _shuffled(self, seed, epoch + 1)
        return blocks[cuts[window] : cuts[window + 1]]


@lru_cache(maxsize=4)
def _shuffled(order: Blocks, seed: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Blocks of an epoch in order, (B,) their cumulative number of samples, and (W + 1,) cuts into windows."""
    count = len(order.ends)
    blocks = rng.permute(rng.fold(seed, epoch), rng.Stream.TRAIN_ORDER, np.arange(count), count)
    windows = max(1, count // order.window)  # a remainder makes the windows larger
    return blocks, np.cumsum(np.diff(order.ends, prepend=0)[blocks]), np.arange(windows + 1) * count // windows


def split(share: float | None, n: int, noun: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of n samples train and which are held out, both ascending; a function of n and the share alone.

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
