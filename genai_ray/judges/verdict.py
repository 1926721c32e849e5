"""What a judge of a modality gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray

from genai_ray.config import Spec
from genai_ray.provenance import Manifest
from genai_ray.report.page import Score
from genai_ray.storage import Store


class Monitor(Protocol):
    """Measures samples while training, beside training data; the holdout is left for the report.

    key: the score by which states are compared; less is better.
    """

    key: str

    def scores(self, outputs: Any, labels: NDArray[Any] | None) -> dict[str, float]:
        """Of what the sampler gave for the labels that were asked for."""
        ...


@dataclass(frozen=True)
class Measured:
    """A data set, measured.

    features: what distances were measured in. fake and real: metric name -> value, for generated
    and for real data. counts: of samples, by what they are. record: what else quality.json says.
    files: name -> bytes of what stands in the report's folder. page: its HTML, given whether the
    data set is published, and the scores with their gates.
    """

    samples: int
    features: str
    fake: dict[str, float]
    real: dict[str, float]
    counts: dict[str, int]
    page: Callable[[bool, list[Score]], str]
    record: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Judge:
    """The functions of a modality.

    measure: a finished data set against real data. monitor: for scores while training. picture: of
    samples that the model gave, as (H, W, C) uint8; None where nothing can be seen.
    """

    measure: Callable[[Spec, Store, Manifest, Any], Measured]
    monitor: Callable[[Spec, Store, Any], Monitor]
    picture: Callable[[Any], NDArray[Any] | None]
