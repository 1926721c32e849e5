"""What a step of training is given: its share of real samples and of randomness.

Both depend on (spec, step) alone; the number of workers only decides which worker takes which part.
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
    return [slice(i * size, (i + 1) * size) for i in range(rank * count // world, (rank + 1) * count // world)]


def real_batch(spec: Spec, data: Data, start: int, stop: int, device: torch.device) -> Batch:
    """Real samples start..stop of the order of training, as tensors."""
    values, labels = data.at(spec.seed, start, stop)
    targets = torch.from_numpy(labels).to(device) if spec.model.conditional and labels is not None else None
    to_tensor = modalities.modality(data.codec.modality).to_tensor
    return Batch(to_tensor(torch.from_numpy(values).to(device)), targets)


def real_batches(spec: Spec, data: Data, first_step: int, cuts: list[slice], device: torch.device) -> Iterator[Batch]:
    """This rank's share of the real samples of each step, from `first_step` on."""
    for step in itertools.count(first_step):
        index = step * spec.train.global_batch
        batch = real_batch(spec, data, index + cuts[0].start, index + cuts[-1].stop, device)
        yield batch if spec.train.channels_last else batch._replace(values=batch.values.contiguous())


def phase_draws(
    spec: Spec, family: Family, moment: Moment, phase_index: int, cuts: list[slice], device: torch.device
) -> Draws:
    """This rank's share of the randomness of a phase of a step."""
    block = (moment.step * len(family.phases) + phase_index) * spec.train.global_batch
    start, count = block + cuts[0].start, cuts[-1].stop - cuts[0].start
    normal = rng.normal(spec.seed, rng.Stream.TRAIN_NOISE, start, count, family.latent)
    uniform = np.empty((count, 0), np.float32)
    if family.uniforms:
        uniform = rng.uniform(spec.seed, rng.Stream.TRAIN_UNIFORM, start, count, family.uniforms)
    return Draws(torch.from_numpy(normal).to(device), torch.from_numpy(uniform).to(device))
