"""One flat all-reduce a phase against one DDP wrapper a network.

    python benchmarks/data_parallel.py

Two gloo processes of one thread take the same steps of the same model in turn: by our reduction,
and by DistributedDataParallel around each network (buffers not broadcast; never a static graph,
under which the gradients of a penalty are not reduced). Prints samples/s, their ratio, and how far
each is from one process that sees the whole batch: the largest relative difference of a gradient.
"""

import argparse
import os
import socket
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from genai_ray import modalities
from genai_ray.families import Batch, Draws, Moment
from genai_ray.image.codec import ImageCodec
from genai_ray.training.reduce import Reduction
from genai_ray.training.state import State

MODELS: dict[str, dict[str, Any]] = {
    "dcgan width 16": {"preset": "dcgan", "conditional": True, "width": 16},
    "mlp_gan": {"preset": "mlp_gan", "dropout": 0.0},
    "mlp_gan, gradient penalty": {"preset": "mlp_gan", "dropout": 0.0, "loss": "wasserstein", "penalty": "gradient"},
}
BATCH = 128


def state_of(values: dict[str, Any]) -> State:
    spec = modalities.parse({"name": "x", "model": values, "train": {"global_batch": BATCH}})
    codec = ImageCodec(28, 1, tuple(str(i) for i in range(10)))
    return State(spec, codec, "", torch.device("cpu"))


def step(
    state: State, wrapped: Mapping[str, nn.Module] | None, part: slice, number: int, reduction: Reduction
) -> dict[str, torch.Tensor]:
    """Gradients of the discriminator's phase, reduced; then both networks step."""
    family = state.family
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(BATCH, 1, 28, 28, generator=generator)[part]
    labels = (torch.arange(BATCH) % 10)[part] if family.classes else None
    normal = torch.randn(BATCH, family.latent, generator=generator)[part]
    uniform = torch.rand(BATCH, family.uniforms, generator=generator)[part]
    gradients: dict[str, torch.Tensor] = {}
    plain = dict(family.nets.items())
    for phase in family.phases:
        for name, net in plain.items():
            net.requires_grad_(name == phase.net)
        if wrapped:
            family.nets[phase.net] = wrapped[phase.net]
        loss, _ = family.loss(phase, Batch(images, labels), Draws(normal, uniform), Moment(number, 0))
        state.optimizers[phase.net].zero_grad(set_to_none=True)
        if wrapped:
            loss.backward()
            family.nets[phase.net] = plain[phase.net]
        else:
            (loss * len(images) / BATCH).backward()
            reduction(plain[phase.net].parameters(), loss.detach())
        for name, parameter in plain[phase.net].named_parameters():
            if parameter.grad is not None:
                gradients[f"{phase.net}.{name}"] = parameter.grad.clone()
        state.optimizers[phase.net].step()
    return gradients


def process(rank: int, port: int, steps: int, rounds: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    half = BATCH // 2
    part = slice(rank * half, (rank + 1) * half)
    for name, values in MODELS.items():
        rates: dict[str, list[float]] = {"flat": [], "ddp": []}
        errors: dict[str, float] = {}
        for round_number in range(rounds):
            for way in rates:
                state = state_of(values)
                state.family.nets.train()
                reduction = Reduction(2, torch.device("cpu"))
                wrapped = None
                if way == "ddp":
                    wrapped = {
                        k: DistributedDataParallel(n, forward_sync_buffers=False) for k, n in state.family.nets.items()
                    }
                first = step(state, wrapped, part, 0, reduction)
                if round_number == 0:
                    whole = step(state_of(values), None, slice(0, BATCH), 0, Reduction(1, torch.device("cpu")))
                    # The first phase only: after it the optimisers have moved.
                    errors[way] = max(
                        ((first[k] - g).norm() / g.norm().clamp_min(1e-12)).item()
                        for k, g in whole.items()
                        if k.startswith("discriminator")
                    )
                dist.barrier()
                started = time.perf_counter()
                for number in range(1, steps + 1):
                    step(state, wrapped, part, number, reduction)
                rates[way].append(steps * BATCH / (time.perf_counter() - started))
        if rank == 0:
            ratios = sorted(a / b for a, b in zip(rates["flat"], rates["ddp"], strict=True))
            print(
                f"{name:<26} flat {statistics.median(rates['flat']):7,.0f}/s  "
                f"ddp {statistics.median(rates['ddp']):7,.0f}/s  "
                f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})   "
                f"error flat {errors['flat']:.1e}  ddp {errors['ddp']:.1e}",
                flush=True,
            )
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(process, (port, options.steps, options.rounds), nprocs=2)


if __name__ == "__main__":
    main()
