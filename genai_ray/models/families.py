"""What the training loop, the checkpoint and the export know of a model: this and no more."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor, nn


class Batch(NamedTuple):
    """Real samples of one step: images NCHW in -1..1, labels (N,) int64 (None: unconditional)."""

    images: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class Phase:
    """One optimiser step: the network it moves, and every how many steps it is taken."""

    name: str
    net: str
    interval: int = 1


class Family(Protocol):
    """A kind of model.

    nets: everything with weights, by name; each `Phase` moves one of them.
    averaged: the net whose exponential average is evaluated and exported.
    latent: numbers in the noise vector of one sample, for every phase and for the sampler.
    classes: how many classes can be asked for; 0 means unconditional.
    """

    nets: nn.ModuleDict
    phases: tuple[Phase, ...]
    averaged: str
    latent: int
    classes: int

    def loss(self, phase: Phase, batch: Batch, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, averaged over the batch, and detached scalars for the log."""
        ...

    def sampler(self) -> nn.Module:
        """(noise (N, latent), labels (N,)?) -> uint8 NHWC; shares weights with `averaged`."""
        ...
