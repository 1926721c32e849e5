"""What the workers of a training sum, compare and agree on; a single worker skips it."""

import math
import time
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from genai_ray.errors import IncompleteError
from genai_ray.training.state import State

_PREEMPTION_POLL_S = 2.0
_PENDING_LOSSES = 50  # on a GPU: checked together, since each check waits for it


class DivergedError(IncompleteError):
    """A loss stopped being finite; the message says at which step and phase."""


class Reduction:
    """One flat all-reduce of gradients, loss and a poll-preemption flag of rank 0, so that every rank sees a
    non-finite loss, and polls for preemption, at the same step.
    """

    def __init__(self, world: int, device: torch.device):
        self.world = world
        self._every = 1 if device.type == "cpu" else _PENDING_LOSSES
        self._poll_flag = torch.zeros(1, device=device)
        self._reduced_flag = self._poll_flag
        self._polled = time.monotonic()

    def __call__(self, parameters: Iterable[Tensor], loss: Tensor) -> Tensor:
        if self.world == 1:
            return loss
        if dist.get_rank() == 0 and time.monotonic() - self._polled > _PREEMPTION_POLL_S:
            self._poll_flag.fill_(1.0)
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([*(g.flatten() for g in grads), loss.reshape(1), self._poll_flag])
        dist.all_reduce(flat)
        parts = flat[:-2].split([g.numel() for g in grads])
        sums = [p.view_as(g) for p, g in zip(parts, grads, strict=True)]
        torch._foreach_copy_(grads, sums)  # pyright: ignore
        self._reduced_flag = flat[-1:]
        return flat[-2]

    def poll_is_due(self, step: int) -> bool:
        """Whether all ranks shall now poll for preemption; the same on every rank."""
        if self.world == 1 or step % self._every or not bool(self._reduced_flag):
            return False
        self._poll_flag.zero_()
        self._reduced_flag = self._poll_flag
        self._polled = time.monotonic()
        return True


class LossCheck:
    """Ends training at the first loss that is not finite.

    On a GPU every check is a sync, losses are checked in batches, and always before something is stored.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[int, str, Tensor]] = []

    def add(self, step: int, phase: str, loss: Tensor) -> None:
        self._pending.append((step, phase, loss))
        if not loss.is_cuda or len(self._pending) >= _PENDING_LOSSES:
            self.check()

    def check(self) -> None:
        pending, self._pending = self._pending, []
        if not pending or bool(torch.stack([p[2] for p in pending]).isfinite().all()):
            return
        step, phase, loss = next(p for p in pending if not math.isfinite(p[2]))
        raise DivergedError(
            f"step {step}, phase {phase}: the loss is {float(loss)}; lower model.learning_rate, or check the data"
        )


def synchronise(modules: Iterable[nn.Module], world: int) -> None:
    """Average batch-norm statistics over the workers, so that what is saved depends on no rank.

    Raises:
        IncompleteError: if the weights, which all ranks update alike, are not the same on all.
    """
    if world == 1:
        return
    for module in modules:
        weights = torch.stack([p.detach().double().sum() for p in module.parameters()])
        extremes = torch.stack([weights, -weights])
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
        if not torch.equal(extremes[0], -extremes[1]):
            raise IncompleteError("the workers' weights differ; the same command resumes from the newest checkpoint")
        buffers = [b for b in module.buffers() if b.is_floating_point()]
        if buffers:
            flat = torch.cat([b.flatten() for b in buffers])
            dist.all_reduce(flat)
            parts = (flat / world).split([b.numel() for b in buffers])
            for buffer, part in zip(buffers, parts, strict=True):
                buffer.copy_(part.view_as(buffer))


def agree(state: State, error: IncompleteError | None, world: int, device: torch.device) -> None:
    """Share with all ranks whether rank 0 failed to store, and whether training ends early.

    Raises:
        IncompleteError: on every rank, if rank 0 failed.
    """
    if world > 1:
        flags = torch.tensor([error is not None, state.progress["ended"]], device=device).int()
        dist.broadcast(flags, 0)
        state.progress["ended"] = bool(flags[1])
        if flags[0] and error is None:
            error = IncompleteError("rank 0 could not store a checkpoint")
    if error is not None:
        raise error
