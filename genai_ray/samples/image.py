"""Images by index: noise, class, pixels."""

from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genai_ray import sinks
from genai_ray.config import GenerateSpec
from genai_ray.data.image import ImageCodec
from genai_ray.provenance import ModelCard
from genai_ray.sampler import Sampler
from genai_ray.samples.classes import Conditions, Quotas, class_counts


class ImageSamples:
    """See `Samples`.

    Raises:
        UserError: for classes that the model does not know, or counts that do not add up.
    """

    def __init__(
        self, model: bytes, card: ModelCard, spec: GenerateSpec, seed: int, conditions: bytes | None
    ):
        self.card, self.spec = card, spec
        self.codec = ImageCodec.from_json(card.codec)
        self._model, self._seed = model, seed
        self._labels: Quotas | Conditions | None = None
        if conditions is not None:
            self._labels = Conditions(conditions)
        elif (counts := class_counts(spec, card)) is not None:
            self._labels = Quotas(counts, seed)

    @cached_property
    def sampler(self) -> Sampler:
        return Sampler(self._model, self.card, self.spec, self._seed)

    @property
    def schema(self) -> pa.Schema:
        beside = self._labels.schema if isinstance(self._labels, Conditions) else None
        return sinks.parquet_schema(self.codec, self.spec.encoding, self.card.conditional, {}, beside)

    def counts(self) -> dict[str, int]:
        if not isinstance(self._labels, Quotas):
            return {}
        return dict(zip(self.codec.classes or (), self._labels.counts, strict=True))

    def probe(self) -> None:
        """Every image of a class that the model knows can be made."""

    def samples(self, start: int, stop: int) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
        """Images (N, H, W, C) and labels (N,) or None of samples start..stop."""
        labels = None if self._labels is None else self._labels.classes(start, stop)
        (images,) = self.sampler.outputs(start, stop, labels)
        return images, labels

    def rows(
        self, index: int, start: int, stop: int, provenance: dict[str, Any], producer: str | None
    ) -> sinks.Rows:
        images, labels = self.samples(start, stop)
        beside = None
        if isinstance(self._labels, Conditions):
            beside = self._labels.beside(start, stop)
        return sinks.Rows(
            index=index,
            start=start,
            images=images,
            labels=labels,
            codec=self.codec,
            encoding=self.spec.encoding,
            quality=self.spec.quality,
            producer=producer,
            extra=beside,
            provenance=provenance,
        )
