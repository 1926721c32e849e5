"""What rank 0 derives from a state of training: samples, scores, checkpoints."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from genai_ray import modalities, rng
from genai_ray.errors import IncompleteError
from genai_ray.modality import Data, Outputs
from genai_ray.spec import Spec
from genai_ray.storage import Store
from genai_ray.training.batches import real_batch
from genai_ray.training.log import Log
from genai_ray.training.state import State

_GRID = 64  # samples in a preview
_BATCH = 256  # samples in one call of the sampler


class Watcher:
    """Rank 0's log, and what it derives from a state: samples, scores, checkpoints."""

    def __init__(self, store: Store, spec: Spec, state: State, data: Data, *, done: int, workers: int):
        self.spec, self.state, self.data = spec, state, data
        self.log = Log(store, spec, done=done, workers=workers)
        self._evaluator = modalities.modality(data.codec.modality).evaluator()
        self._monitor = self._evaluator.monitor(spec, store, data) if spec.train.evaluate_every else None

    def save(self, samples: int, measure: bool, *, flush: bool) -> IncompleteError | None:
        """Store the state, after a measurement if one is due; returns the error of a failed upload.

        flush: return only when it is stored, as little time may be left.
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
        """Log the scores of the state; returns whether it is the best so far."""
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
        if count:
            self.state.fit_prior(real_batch(self.spec, self.data, 0, count, self.state.device))

    @torch.no_grad()
    def _samples(self, count: int) -> tuple[Outputs, NDArray[np.int64] | None]:
        """Outputs of the averaged net's sampler, for the same noise every time, and the labels requested."""
        sampler, family = self.state.sampler(), self.state.family
        noise = rng.normal(self.spec.seed, rng.Stream.EVALUATE, 0, count, family.sampler_latent)
        labels = self.data.codec.labels(count) if self.spec.model.conditional else None
        arguments = [torch.from_numpy(a) for a in (noise, labels) if a is not None]
        parts: list[tuple[Tensor, ...]] = []
        for start in range(0, count, _BATCH):
            outputs = sampler(*(a[start : start + _BATCH].to(self.state.device) for a in arguments))
            parts.append(outputs if isinstance(outputs, tuple) else (outputs,))
        return [torch.cat(p).cpu().numpy() for p in zip(*parts, strict=True)], labels
