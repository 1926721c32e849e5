"""The images of a data set by index: noise, class, pixels."""

from functools import cached_property

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genai_ray.image.codec import ImageCodec
from genai_ray.image.conditions import Conditions, class_counts
from genai_ray.image.parquet import parquet_schema
from genai_ray.image.rows import ImageRows
from genai_ray.image.spec import BATCH, ImageGenerateSpec
from genai_ray.modality import Samples, ShardOf
from genai_ray.onnx_session import Sampler
from genai_ray.provenance import ModelCard
from genai_ray.quotas import Quotas
from genai_ray.spec import GenerateSpec


class ImageSamples(Samples[ImageRows]):
    """See `Samples`. Raises UserError for classes that the model does not know, or counts that do not add up."""

    def __init__(self, model: bytes, card: ModelCard, spec: GenerateSpec, seed: int, conditions: bytes | None):
        assert isinstance(spec, ImageGenerateSpec)
        self.card, self.spec = card, spec
        self.codec = ImageCodec.from_json(card.codec)
        self._model, self._seed = model, seed
        self._classes: Quotas | Conditions | None = None
        if conditions is not None:
            self._classes = Conditions(conditions)
        elif (counts := class_counts(spec, card)) is not None:
            self._classes = Quotas(counts, seed)

    @cached_property
    def sampler(self) -> Sampler:
        return Sampler(self._model, self.card, self.spec, self._seed, BATCH, self.spec.truncation)

    @property
    def schema(self) -> pa.Schema:
        extra = self._classes.schema if isinstance(self._classes, Conditions) else None
        return parquet_schema(self.codec, self.spec.encoding, self.card.conditional, {}, extra)

    def counts(self) -> dict[str, int]:
        if not isinstance(self._classes, Quotas):
            return {}
        return dict(zip(self.codec.classes or (), self._classes.counts, strict=True))

    def images(self, start: int, stop: int) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
        """Images (N, H, W, C) and labels (N,) or None of samples start..stop."""
        labels = None if self._classes is None else self._classes.classes(start, stop)
        (images,) = self.sampler.outputs(start, stop, labels)
        return images, labels

    def rows(self, shard: ShardOf) -> ImageRows:
        images, labels = self.images(shard.start, shard.stop)
        conditions = self._classes if isinstance(self._classes, Conditions) else None
        return ImageRows(
            index=shard.index,
            start=shard.start,
            images=images,
            labels=labels,
            codec=self.codec,
            encoding=self.spec.encoding,
            quality=self.spec.quality,
            producer=shard.producer,
            extra=conditions and conditions.further_columns(shard.start, shard.stop),
            provenance=shard.provenance,
        )
