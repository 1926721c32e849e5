"""What a step of training is given: its share of real samples and of randomness.

Both depend on (spec, step) alone; how many workers there are says only who works on which part.
"""

import contextlib
import itertools
from collections.abc import Generator
from typing import Any

import numpy as np
import torch

from genai_ray import modalities, rng
from genai_ray.families import Batch, Draws, Family, Moment
from genai_ray.image import ingest
from genai_ray.modality import Data
from genai_ray.spec import Spec


def micro_batches(spec: Spec, rank: int, world: int) -> list[slice]:
    """The positions in a global batch that a rank works on, one slice a forward pass."""
    batch = spec.train.global_batch
    size = spec.train.micro_batch or batch // max(1, spec.train.most_workers)
    count = batch // size
    mine = range(rank * count // world, (rank + 1) * count // world)
    return [slice(i * size, (i + 1) * size) for i in mine]


def real_batches(
    spec: Spec, data: Data, first_step: int, cuts: list[slice], device: torch.device
) -> Generator[Batch, None, None]:
    """This rank's share of the real samples of each step, from `first_step` on."""
    arrays = _resident if getattr(data, "resident", True) else _streamed
    to_tensor = modalities.modality(data.codec.modality).to_tensor
    with contextlib.closing(arrays(spec, data, first_step, cuts)) as line:
        for values, labels in line:
            targets = None
            if spec.model.conditional and labels is not None:
                targets = torch.from_numpy(labels).to(device)
            tensor = to_tensor(torch.from_numpy(values).to(device))
            yield Batch(tensor if spec.train.channels_last else tensor.contiguous(), targets)


def _resident(
    spec: Spec, data: Data, first_step: int, cuts: list[slice]
) -> Generator[tuple[Any, Any], None, None]:
    for step in itertools.count(first_step):
        place = step * spec.train.global_batch
        yield data.at(spec.seed, place + cuts[0].start, place + cuts[-1].stop)


def _streamed(
    spec: Spec, data: Any, first_step: int, cuts: list[slice]
) -> Generator[tuple[Any, Any], None, None]:
    return ingest.batches(
        data,
        seed=spec.seed,
        global_batch=spec.train.global_batch,
        first_step=first_step,
        lo=cuts[0].start,
        hi=cuts[-1].stop,
    )


def step_draws(
    spec: Spec, family: Family, moment: Moment, number: int, cuts: list[slice], device: torch.device
) -> Draws:
    """This rank's share of the randomness of a phase of a step."""
    block = (moment.step * len(family.phases) + number) * spec.train.global_batch
    start, count = block + cuts[0].start, cuts[-1].stop - cuts[0].start
    normal = rng.normal(spec.seed, rng.Stream.TRAIN_NOISE, start, count, family.latent)
    uniform = np.empty((count, 0), np.float32)
    if family.uniforms:
        stream = rng.Stream.TRAIN_UNIFORM
        uniform = rng.uniform(spec.seed, stream, start, count, family.uniforms)
    return Draws(torch.from_numpy(normal).to(device), torch.from_numpy(uniform).to(device))
