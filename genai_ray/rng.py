"""Counter-based random numbers: every draw is a pure function of (seed, stream, index).

Philox-4x64-10 (Salmon et al., SC 2011) turns a key and a counter into bits. The key is (seed, stream); sample `i` owns
a fixed block of counters, so any range of samples can be drawn anywhere, in any order, and gives the same numbers.
Nothing here has state.

Normals are read from a table of 65,536 standard normal quantiles by 16 random bits. That needs no logarithm or cosine,
whose last bits differ between processors: the numbers are the same on every machine. The largest is 4.2; the variance
is 1 to within 1e-4.
"""

from enum import IntEnum
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_WORDS_PER_COUNTER = 4  # one Philox counter gives four 64-bit words


class Stream(IntEnum):
    """The purpose of a draw; draws of two streams at the same index are independent. Never renumber."""

    SAMPLE_NOISE = 1
    SAMPLE_CLASS = 2
    TRAIN_ORDER = 3
    TRAIN_NOISE = 4
    TRAIN_DROPOUT = 5
    HOLDOUT = 6
    EVALUATE = 7
    INIT = 8
    TRAIN_UNIFORM = 9
    SAMPLE_ID = 10
    TABLE_MODES = 11
    SAMPLE_CONDITION = 12
    SAMPLE_RETRY = 13


def bits(seed: int, stream: int, start: int, count: int, words: int) -> NDArray[np.uint64]:
    """Random 64-bit words of samples start..start+count, shape (count, words).

    `words` is rounded up to whole counters inside, so a sample's words never depend on `count`.
    """
    counters = -(-words // _WORDS_PER_COUNTER)
    philox = np.random.Philox(key=np.array([seed, stream], np.uint64), counter=start * counters)
    raw = philox.random_raw(count * counters * _WORDS_PER_COUNTER)
    return raw.reshape(count, counters * _WORDS_PER_COUNTER)[:, :words]


def normal(
    seed: int, stream: int, start: int, count: int, size: int, truncation: float | None = None
) -> NDArray[np.float32]:
    """Standard normals of samples start..start+count, shape (count, size).

    truncation: draw from the normal distribution restricted to -truncation..truncation (the truncation trick of Brock
    et al. 2019, arXiv 1809.11096, section 3.1).
    """
    return _quantiles(truncation)[_halfwords(seed, stream, start, count, size)]


def uniform(seed: int, stream: int, start: int, count: int, size: int) -> NDArray[np.float32]:
    """Uniforms of samples start..start+count, shape (count, size): mid-points of 65,536 cells of 0..1, never 0 or 1."""
    cells = _halfwords(seed, stream, start, count, size).astype(np.float32)
    return (cells + np.float32(0.5)) * np.float32(2**-16)


def permute(seed: int, stream: int, index: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """The image of each index under a random permutation of 0..n-1, without a table of n entries.

    A four-round Feistel network on the smallest even number of bits that holds n, repeated until the value is below n
    (cycle walking; Black and Rogaway, CT-RSA 2002).

    Raises:
        ValueError: if an index lies outside 0..n-1.
    """
    index = np.asarray(index, np.int64)
    if index.size and (index.min() < 0 or index.max() >= n):
        raise ValueError(f"indices must lie in 0..{n - 1}, got {index.min()}..{index.max()}")
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    keys = bits(seed, stream, 0, 1, 4)[0]
    out = _feistel(index.astype(np.uint64), keys, half)
    outside = np.flatnonzero(out >= n)
    while outside.size:
        out[outside] = _feistel(out[outside], keys, half)
        outside = outside[out[outside] >= n]
    return out.astype(np.int64)


def fold(seed: int, *parts: int) -> int:
    """A 63-bit seed that depends on every part; for libraries that take a single seed."""
    for part in parts:
        seed = int(bits(seed, part & (2**64 - 1), 0, 1, 1)[0, 0]) >> 1
    return seed


def _feistel(x: NDArray[np.uint64], keys: NDArray[np.uint64], half: int) -> NDArray[np.uint64]:
    mask = np.uint64((1 << half) - 1)
    left, right = x >> np.uint64(half), x & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << np.uint64(half)) | right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al., OOPSLA 2014): all input bits move all others."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _halfwords(seed: int, stream: int, start: int, count: int, size: int) -> NDArray[np.uint16]:
    """Random 16-bit words of samples start..start+count, shape (count, size)."""
    words = bits(seed, stream, start, count, -(-size // 4))
    # Little-endian by definition of the format, so that a big-endian machine agrees.
    index = np.ascontiguousarray(words).astype("<u8", copy=False).view("<u2")
    return index.reshape(count, 4 * words.shape[1])[:, :size]


@cache
def _quantiles(truncation: float | None) -> NDArray[np.float32]:
    """Quantiles at the mid-points of 65,536 equal cells, exactly symmetric about zero."""
    normal = NormalDist()
    share = 1.0 if truncation is None else 2 * normal.cdf(truncation) - 1
    upper = [normal.inv_cdf(0.5 + share * (i + 0.5) / 65536) for i in range(32768)]
    return np.array([-x for x in reversed(upper)] + upper, np.float32)
