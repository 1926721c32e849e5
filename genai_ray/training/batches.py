"""What a step of training is given: its share of real samples and of randomness.

Both depend on (spec, step) alone; how many workers there are says only who works on which part.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch

from genai_ray import modalities, rng
from genai_ray.families import Batch, Draws, Family, Moment
from genai_ray.modality import Data
from genai_ray.spec import Spec


def micro_batches(spec: Spec, rank: int, world: int) -> list[slice]:
    """The positions in a global batch that a rank works on, one slice a forward pass."""
    batch = spec.train.global_batch
    size = spec.train.micro_batch or batch // max(1, spec.train.most_workers)
    count = batch // size
    mine = range(rank * count // world, (rank + 1) * count // world)
    return [slice(i * size, (i + 1) * size) for i in mine]


def real_batches(spec: Spec, data: Data, first_step: int, cuts: list[slice], device: torch.device) -> Iterator[Batch]:
    """This rank's share of the real samples of each step, from `first_step` on."""
    to_tensor = modalities.modality(data.codec.modality).to_tensor
    for step in itertools.count(first_step):
        index = step * spec.train.global_batch
        values, labels = data.at(spec.seed, index + cuts[0].start, index + cuts[-1].stop)
        targets = None
        if spec.model.conditional and labels is not None:
            targets = torch.from_numpy(labels).to(device)
        tensor = to_tensor(torch.from_numpy(values).to(device))
        yield Batch(tensor if spec.train.channels_last else tensor.contiguous(), targets)


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
