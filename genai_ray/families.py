"""The contract of a model: all that the training loop, the checkpoint and the export know of it."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import onnx
from torch import Tensor, nn

from genai_ray.modality import Codec, named
from genai_ray.spec import ModelSpec


class Batch(NamedTuple):
    """Real samples of one step, and their labels (None: unconditional).

    values: images NCHW in -1..1, with labels (N,) int64, the classes; or rows of a table (N, parts + numbers), as codes
    and then scalars, with labels (N, parts) int64, a code or -1.
    """

    values: Tensor
    labels: Tensor | None


class Draws(NamedTuple):
    """The randomness of one phase of one step, each a function of (seed, step, phase, sample).

    normal: standard normals (N, latent). uniform: (N, uniforms) in 0..1.
    """

    normal: Tensor
    uniform: Tensor


class Moment(NamedTuple):
    """How far training has come: steps taken and real samples shown before this step."""

    step: int
    samples: int


@dataclass(frozen=True)
class Phase:
    """One optimiser step: the network it updates, and the interval in steps at which it is taken."""

    name: str
    net: str
    interval: int = 1


class Family(Protocol):
    """A kind of model. What few families need has a default, for those that inherit.

    nets: everything with weights, by name; each `Phase` updates one of them.
    averaged: the net whose exponential average is evaluated and exported.
    latent: normals drawn for a real sample, in every phase.
    uniforms: uniforms drawn for a real sample, in every phase; 0 if no loss needs them.
    sampler_latent: numbers in the noise vector of one generated sample.
    classes: the number of labels; 0: unconditional.
    given: how much one label may fix: one thing (a class, a category of one column), or any columns.
    dropout: share of the units that are dropped in training; 0: no loss draws by torch itself.
    prior_samples: real samples that `fit` needs; 0: there is nothing to fit.
    """

    nets: nn.ModuleDict
    phases: tuple[Phase, ...]
    averaged: str
    latent: int
    uniforms: int = 0
    sampler_latent: int
    classes: int
    given: str = "one"
    dropout: float = 0.0
    prior_samples: int = 0

    def loss(self, phase: Phase, batch: Batch, draws: Draws, moment: Moment) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, averaged over the batch, and detached scalars for the log."""
        ...

    def fit(self, net: nn.Module, batch: Batch, seed: int) -> None:
        """Set what gradients do not train (a latent prior) in `net`, a copy of `nets[averaged]`, from real samples.
        Most families have nothing of the kind.
        """

    def sampler(self) -> nn.Module:
        """(noise (N, sampler_latent), labels?) -> what the codec decodes: images uint8 NHWC, or the codes and values of
        a table; shares the weights of `nets[averaged]`.
        """
        ...


@runtime_checkable
class WritesGraph(Protocol):
    """A sampler that writes its ONNX graph itself, where tracing its steps would take too long."""

    def graph(self, inputs: list[str], outputs: list[str], opset: int) -> onnx.ModelProto:
        """What `forward` computes, with a dynamic batch; the names are those of the arguments and of the results."""
        ...


def build(model: ModelSpec, codec: Codec, classes: int) -> Family:
    """The untrained family of a model section for data of a codec; `classes` 0: unconditional."""
    return named(model.implementation)(model, codec, classes)
