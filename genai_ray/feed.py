"""What a step of training is given: its share of real samples and of randomness.

Both depend on (spec, step) alone; how many workers there are says only who works on which part.
"""

import contextlib
from collections.abc import Generator
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from genai_ray import ingest, rng
from genai_ray.config import Spec
from genai_ray.data.image import ImageData
from genai_ray.data.stream import ImageStream
from genai_ray.models import Family
from genai_ray.models.families import Batch, Draws, Moment


def micro_batches(spec: Spec, rank: int, world: int) -> list[slice]:
    """The positions in a global batch that a rank works on, one slice a forward pass."""
    batch = spec.train.global_batch
    size = spec.train.micro_batch or batch // max(1, spec.train.most_workers)
    count = batch // size
    mine = range(rank * count // world, (rank + 1) * count // world)
    return [slice(i * size, (i + 1) * size) for i in mine]


def real_batches(
    spec: Spec, data: ImageData | ImageStream, first_step: int, cuts: list[slice],
    device: torch.device,
) -> Generator[Batch, None, None]:  # fmt: skip
    """This rank's share of the real samples of each step, from `first_step` on."""
    if isinstance(data, ImageStream):
        arrays = ingest.batches(
            data, seed=spec.seed, global_batch=spec.train.global_batch, first_step=first_step,
            lo=cuts[0].start, hi=cuts[-1].stop,
        )  # fmt: skip
    else:
        arrays = _resident(spec, data, first_step, cuts)
    with contextlib.closing(arrays):
        for images, labels in arrays:
            pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
            targets = None
            if spec.model.conditional and labels is not None:
                targets = torch.from_numpy(labels).to(device)
            pixels = pixels.float() / 127.5 - 1
            if not spec.train.channels_last:
                pixels = pixels.contiguous()
            yield Batch(pixels, targets)


def _resident(
    spec: Spec, data: ImageData, first_step: int, cuts: list[slice]
) -> Generator[tuple[NDArray[np.uint8], NDArray[np.int64] | None], None, None]:
    """Every sample once an epoch, in a fresh order each."""
    n, batch, step = len(data.train_images), spec.train.global_batch, first_step
    while True:
        positions = np.arange(step * batch + cuts[0].start, step * batch + cuts[-1].stop)
        epochs = positions // n
        index = np.empty_like(positions)
        for epoch in range(epochs[0], epochs[-1] + 1):
            chosen = epochs == epoch
            index[chosen] = _order(spec.seed, epoch, n)[positions[chosen] % n]
        # Fancy indexing copies, so the batch is writable though the shared array is not.
        labels = None if data.train_labels is None else data.train_labels[index]
        yield data.train_images[index], labels
        step += 1


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    return rng.permute(rng.fold(seed, epoch), rng.Stream.TRAIN_ORDER, np.arange(n), n)


def step_draws(
    spec: Spec, family: Family, moment: Moment, number: int, cuts: list[slice],
    device: torch.device,
) -> Draws:  # fmt: skip
    """This rank's share of the randomness of a phase of a step."""
    block = (moment.step * len(family.phases) + number) * spec.train.global_batch
    start, count = block + cuts[0].start, cuts[-1].stop - cuts[0].start
    normal = rng.normal(spec.seed, rng.Stream.TRAIN_NOISE, start, count, family.latent)
    uniform = np.empty((count, 0), np.float32)
    if family.uniforms:
        stream = rng.Stream.TRAIN_UNIFORM
        uniform = rng.uniform(spec.seed, stream, start, count, family.uniforms)
    return Draws(torch.from_numpy(normal).to(device), torch.from_numpy(uniform).to(device))
