"""State: what training changes, and what a checkpoint holds."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from genai_ray import rng
from genai_ray.families import Batch, Family, build
from genai_ray.modality import Codec
from genai_ray.spec import Spec


class State:
    """The networks, their averages and optimisers, and how to save and load them whole."""

    def __init__(self, spec: Spec, codec: Codec, source: str, device: torch.device):
        self.spec, self.codec, self.source, self.device = spec, codec, source, device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(rng.fold(spec.seed, rng.Stream.INIT))
            self.family: Family = new_family(spec, codec)
        layout = torch.channels_last if spec.train.channels_last else torch.contiguous_format
        # Only weights of convolutions have the four dimensions that a layout is about.
        self.family.nets.to(device).to(memory_format=layout)
        self.average = copy.deepcopy(self.family.nets[self.family.averaged])
        self.average.requires_grad_(False).eval()
        self.optimizers = {phase.net: _optimizer(spec, phase.net, self.family) for phase in self.family.phases}
        #: The best score, the number of measurements since, and whether training ended by patience.
        self.progress: dict[str, Any] = {"best": None, "stale": 0, "ended": False}
        self._averages = _pairs(self.average, self.family.nets[self.family.averaged])

    def state_dict(self, samples: int) -> dict[str, Any]:
        """Everything, as a copy that later steps do not change."""
        return _copied(
            {
                "samples": samples,
                "codec": self.codec.to_json(),
                "source": self.source,
                "nets": self.family.nets.state_dict(),
                "average": self.average.state_dict(),
                "optimizers": {k: o.state_dict() for k, o in self.optimizers.items()},
                "progress": self.progress,
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.family.nets.load_state_dict(state["nets"])
        self.average.load_state_dict(state["average"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.progress = dict(state["progress"])

    @torch.no_grad()
    def update_average(self, batch: int, samples: int) -> None:
        """Exponential average with a half-life in samples and a ramp-up (Karras et al. 2020)."""
        model = self.spec.model
        half_life = min(model.ema_half_life, int(samples * model.ema_ramp_up))
        decay = 0.5 ** (batch / half_life) if half_life else 0.0
        means, values, copies, originals = self._averages
        torch._foreach_lerp_(means, values, 1 - decay)  # pyright: ignore
        if copies:
            torch._foreach_copy_(copies, originals)  # pyright: ignore

    @torch.no_grad()
    def fit_prior(self, batch: Batch) -> None:
        """Let the family set what no gradient trains, in the average and in the live net."""
        self.family.fit(self.average, batch, self.spec.seed)
        live = self.family.nets[self.family.averaged]
        for name, value in self.average.named_buffers():
            if name.startswith("prior."):
                live.get_buffer(name).copy_(value)

    def sampler(self) -> nn.Module:
        """The sampler of the averaged net, in eval mode."""
        nets, name = self.family.nets, self.family.averaged
        live, nets[name] = nets[name], self.average
        sampler = self.family.sampler().eval()
        nets[name] = live
        return sampler


def new_family(spec: Spec, codec: Codec) -> Family:
    """The untrained model of a spec for data of a codec; weights by torch's current generator."""
    return build(spec.model, codec, codec.label_width if spec.model.conditional else 0)


def _optimizer(spec: Spec, net: str, family: Family) -> torch.optim.Optimizer:
    parameters, model = family.nets[net].parameters(), spec.model
    shared = {"lr": learning_rate(spec, net, 0), "weight_decay": model.weight_decay, "fused": True}
    if model.optimizer == "sgd":
        return torch.optim.SGD(parameters, **shared)
    return torch.optim.Adam(parameters, betas=model.betas, **shared)


def learning_rate(spec: Spec, net: str, samples: int) -> float:
    """The learning rate of a network after a number of real samples."""
    model = spec.model
    left = 1 - samples / spec.train.samples if model.learning_rate_decay == "linear" else 1.0
    return model.rate_of(net) * left


def _pairs(average: nn.Module, live: nn.Module) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """(means, their values, copies, their originals): weights and batch statistics are averaged, all else is copied,
    as the vectors of spectral norm must be: a mean of unit vectors is not one.
    """
    averaged: tuple[list[Tensor], list[Tensor]] = ([], [])
    copied: tuple[list[Tensor], list[Tensor]] = ([], [])
    weights = {name for name, _ in live.named_parameters()}
    values = live.state_dict()
    for name, mean in average.state_dict().items():
        kind = averaged if name in weights or name.endswith(("running_mean", "running_var")) else copied
        kind[0].append(mean)
        kind[1].append(values[name])
    return (*averaged, *copied)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list) else value
