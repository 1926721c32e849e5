"""What rank 0 makes of a state of training: samples, measurements, checkpoints."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genai_ray import modalities, rng
from genai_ray.errors import IncompleteError
from genai_ray.families import Batch
from genai_ray.modality import Data, Outputs
from genai_ray.spec import Spec
from genai_ray.storage import Store
from genai_ray.training.log import Log
from genai_ray.training.state import State

_GRID = 64  # samples that a picture of them shows


class Watcher:
    """Rank 0's log, and what it makes of a state: samples, scores, checkpoints."""

    def __init__(self, store: Store, spec: Spec, state: State, data: Data, *, done: int, workers: int):
        self.spec, self.state, self.data = spec, state, data
        self.log = Log(store, spec, done=done, workers=workers)
        kind = modalities.modality(data.codec.modality)
        self._evaluator, self._to_tensor = kind.evaluator(), kind.to_tensor
        self._monitor = None
        if spec.train.evaluate_every:
            self._monitor = self._evaluator.monitor(spec, store, data)

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *error: Any) -> None:
        self.log.__exit__(*error)

    def save(self, samples: int, measure: bool, *, flush: bool) -> IncompleteError | None:
        """Store the state, after a measurement if one is due; what went wrong, if anything did.

        flush: come back only when it is stored, as little time may be left.
        """
        self._fit_prior()
        best = self._measure(samples) if measure and self._monitor else False
        grid = None
        if self.log.wants_grid(samples):
            grid = self._evaluator.picture(self._samples(_GRID)[0])
        try:
            self.log.checkpoint(self.state.state_dict(samples), samples, grid, best=best)
            if flush or samples >= self.spec.train.samples or self.state.progress["ended"]:
                self.log.wait()
        except IncompleteError as error:
            return error
        return None

    def _measure(self, samples: int) -> bool:
        """Whether this is the best state so far."""
        assert self._monitor is not None
        outputs, labels = self._samples(self.spec.train.evaluate_samples)
        scores = self._monitor.scores(outputs, labels)
        self.log.measured(samples, scores)
        progress, score = self.state.progress, scores[self._monitor.key]
        best = progress["best"] is None or score < progress["best"]
        progress["best"] = score if best else progress["best"]
        progress["stale"] = 0 if best else progress["stale"] + 1
        patience = self.spec.train.patience
        progress["ended"] = patience is not None and progress["stale"] >= patience
        return best

    def _fit_prior(self) -> None:
        count = min(self.data.n, self.state.family.prior_samples)
        if not count:
            return
        values, labels = self.data.at(self.spec.seed, 0, count)
        device = next(self.state.average.parameters()).device
        targets = None
        if self.spec.model.conditional and labels is not None:
            targets = torch.from_numpy(labels).to(device)
        tensor = self._to_tensor(torch.from_numpy(values).to(device))
        self.state.fit_prior(Batch(tensor, targets))

    @torch.no_grad()
    def _samples(self, count: int) -> tuple[Outputs, NDArray[np.int64] | None]:
        """The outputs of the sampler of the averaged net, for the same noise at every time, and the
        labels that were asked for.
        """
        sampler, family = self.state.sampler(), self.state.family
        device = next(self.state.average.parameters()).device
        noise = rng.normal(self.spec.seed, rng.Stream.EVALUATE, 0, count, family.sampler_latent)
        labels = self.data.codec.labels(count) if self.spec.model.conditional else None
        parts: list[tuple[Tensor, ...]] = []
        for start in range(0, count, 256):
            part = slice(start, start + 256)
            arguments = [noise[part], *([] if labels is None else [labels[part]])]
            made = sampler(*(torch.from_numpy(a).to(device) for a in arguments))
            parts.append(made if isinstance(made, tuple) else (made,))
        outputs = [torch.cat(p).cpu().numpy() for p in zip(*parts, strict=True)]
        return outputs, labels
