"""The training loop: `steps`. It knows neither Ray nor the kind of model.

A step shows one global batch and walks the family's phases. What a step does depends on (spec, step) alone: the batch
and its randomness are cut into micro-batches, each worker takes a range of them, and gradients are summed by one flat
all-reduce a phase. So the number of workers changes speed, not the order of samples, and may change while training; and
a run that resumes from a checkpoint gives the weights of one that was never stopped.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from genai_ray import rng
from genai_ray.families import Batch, Draws, Family, Moment, Phase
from genai_ray.modality import Data
from genai_ray.spec import Spec
from genai_ray.training.batches import micro_batches, phase_draws, real_batches
from genai_ray.training.log import is_due
from genai_ray.training.reduce import LossCheck, Reduction, agree, synchronise
from genai_ray.training.state import State, learning_rate
from genai_ray.training.watcher import Watcher


def steps(
    spec: Spec,
    state: State,
    data: Data,
    samples: int,
    rank: int = 0,
    world: int = 1,
    watcher: Watcher | None = None,
    preempted: Callable[[], bool] = lambda: False,
) -> Iterator[int]:
    """Take the steps that are left; yields the samples seen after each.

    Raises:
        DivergedError: on every rank at the same step.
        IncompleteError: on every rank, if rank 0 cannot store or the replicas differ.
    """
    batch, total = spec.train.global_batch, spec.train.samples
    first = samples // batch
    cuts = micro_batches(spec, rank, world)
    device = torch.device(spec.train.device)
    real_iterator = real_batches(spec, data, first, cuts, device)
    reduction, loss_check = Reduction(world, device), LossCheck()
    preempting = False
    for step in range(first, math.ceil(total / batch)):
        moment = Moment(step, step * batch)
        samples = min((step + 1) * batch, total)
        real = next(real_iterator)
        logs: dict[str, Tensor] = {}
        for index, phase in enumerate(state.family.phases):
            if step % phase.interval == 0:
                draws = phase_draws(spec, state.family, moment, index, cuts, device)
                loss, values = _step(state, phase, real, draws, moment, cuts, reduction)
                loss_check.add(step, phase.name, loss)
                logs |= values
                if watcher and watcher.log.closes_row(samples):
                    logs[f"gradient_{phase.name}"] = _gradient_norm(state, phase)
        state.update_average(batch, samples)
        if watcher:
            watcher.log.step(samples, logs)
        # `preempted` is a barrier: all ranks poll at the same step, and rarely.
        notice = not preempting and reduction.poll_is_due(step) and preempted()
        preempting = preempting or notice
        ends = samples == total
        measure = spec.train.evaluate_every is not None and (ends or is_due(spec, samples, spec.train.evaluate_every))
        if notice or measure or ends or is_due(spec, samples, spec.train.checkpoint_every):
            loss_check.check()
            synchronise([state.family.nets, state.average], world)
            error = watcher.save(samples, measure, flush=notice) if watcher else None
            agree(state, error, world, device)
        yield samples
        if state.progress["ended"]:
            return
    loss_check.check()


def _step(
    state: State, phase: Phase, real: Batch, draws: Draws, moment: Moment, cuts: list[slice], reduction: Reduction
) -> tuple[Tensor, dict[str, Tensor]]:
    """One optimiser step of one phase; returns the loss over all workers, and the logs of this one."""
    spec, nets = state.spec, state.family.nets
    for name, net in nets.items():
        # The other networks pass gradients on but do not collect any.
        net.requires_grad_(name == phase.net)
    optimizer = state.optimizers[phase.net]
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(spec, phase.net, moment.samples)
    optimizer.zero_grad(set_to_none=True)
    total = torch.zeros((), device=real.values.device)
    logs: dict[str, Tensor] = {}
    for cut in cuts:
        part = slice(cut.start - cuts[0].start, cut.stop - cuts[0].start)
        if state.family.dropout:
            torch.manual_seed(rng.fold(spec.seed, rng.Stream.TRAIN_DROPOUT, moment.step, cut.start))
        batch = Batch(real.values[part], None if real.labels is None else real.labels[part])
        with torch.autocast(real.values.device.type, torch.bfloat16, enabled=spec.train.precision == "bf16"):
            loss, values = state.family.loss(phase, batch, Draws(draws.normal[part], draws.uniform[part]), moment)
        share = (cut.stop - cut.start) / spec.train.global_batch
        (loss * share).backward()
        total += loss.detach() * share
        for name, value in values.items():
            logs[name] = logs.get(name, 0) + value / len(cuts)
    total = reduction(nets[phase.net].parameters(), total)
    # On a GPU, `LossCheck` looks later, to avoid a sync; no checkpoint is written after a non-finite loss.
    if total.is_cuda or math.isfinite(total):
        optimizer.step()
    return total, logs


def _gradient_norm(state: State, phase: Phase) -> Tensor:
    grads = [p.grad for p in state.family.nets[phase.net].parameters() if p.grad is not None]
    return torch.stack([g.norm() for g in grads]).norm()


def compile_networks(family: Family, spec: Spec) -> None:
    """Compile each network's call. Penalties use `forward`, which stays as it is: compiled code has no second
    derivative.
    """
    mode = "reduce-overhead" if spec.train.compile == "cuda_graphs" else None
    for net in family.nets.values():
        for part in net.values() if isinstance(net, nn.ModuleDict) else (net,):
            part.compile(mode=mode, dynamic=False)
