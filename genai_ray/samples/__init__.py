"""The samples of a data set by index: what each is asked for, and how a range becomes rows.

Sample i is a function of (model, seed, i) and of the request, so any range can be made anywhere.
"""

from collections.abc import Callable
from typing import Any, Protocol

import pyarrow as pa

from genai_ray.config import GenerateSpec
from genai_ray.provenance import ModelCard
from genai_ray.samples.image import ImageSamples
from genai_ray.samples.table import TableSamples

__all__ = ["SAMPLES", "Samples"]


class Samples(Protocol):
    """What a data set asks of a model; the model is opened when samples are first made."""

    @property
    def schema(self) -> pa.Schema:
        """The columns of a Parquet file, without what is said of each file."""
        ...

    def counts(self) -> dict[str, int]:
        """How many samples each request gets, by name."""
        ...

    def probe(self) -> None:
        """Raises:
        UserError: if the model makes nothing of the kind that is asked for.
        """
        ...

    def rows(
        self, index: int, start: int, stop: int, provenance: dict[str, Any], producer: str | None
    ) -> Any:
        """Samples start..stop as the shard that a sink writes."""
        ...


#: modality -> (model, card, spec, seed, the kept table of conditions) -> Samples
SAMPLES: dict[str, Callable[[bytes, ModelCard, GenerateSpec, int, bytes | None], Samples]] = {
    "image": ImageSamples,
    "table": TableSamples,
}
