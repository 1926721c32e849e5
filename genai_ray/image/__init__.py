"""Images: the modality of pictures of one size, with or without classes."""

from typing import TYPE_CHECKING, Any

from genai_ray.image.metrics import METRICS
from genai_ray.image.spec import BATCH, PRESETS, SOURCES, ImageRun
from genai_ray.modality import Codec, Modality, Outputs, Sink, discard, named
from genai_ray.spec import Spec

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


def _iceberg() -> Sink[Any]:
    from genai_ray.image.parquet import PARQUET
    from genai_ray.sinks.iceberg import iceberg

    return iceberg(PARQUET)


def _to_tensor(images: "Tensor") -> "Tensor":
    """NHWC in 0..255 as NCHW in -1..1."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def _difference(outputs: Outputs, expected: Outputs, codec: Codec) -> "NDArray[Any]":
    return abs(outputs[0].astype("int16") - expected[0].astype("int16"))


def _check(spec: Spec) -> None:
    from genai_ray.image.inception import read_weights
    from genai_ray.quotas import counts_of

    assert isinstance(spec, ImageRun)
    if spec.evaluate.inception:
        read_weights(spec.evaluate.inception)
    if classes := spec.generate.classes:
        counts_of("generate.classes", [*classes.values()], spec.generate.samples)


MODALITY = Modality(
    name="image",
    noun="image",
    spec=ImageRun,
    sources=SOURCES,
    presets=PRESETS,
    preset="dcgan",
    batch=BATCH,
    outputs=("image",),
    sinks={
        "parquet": named("genai_ray.image.parquet:PARQUET"),
        "images": named("genai_ray.image.folder:IMAGES"),
        "webdataset": named("genai_ray.image.webdataset:WEBDATASET"),
        "iceberg": _iceberg,
        "discard": discard,
    },
    metrics=METRICS,
    load=named("genai_ray.image.source:load"),
    codec=named("genai_ray.image.codec:from_json"),
    conditions=named("genai_ray.image.conditions:read_conditions"),
    samples=named("genai_ray.image.samples:ImageSamples"),
    to_tensor=_to_tensor,
    difference=_difference,
    # Rounding to uint8 turns a float difference of 1e-7 into one grey level where a value lies on the edge between two;
    # more than that is another model.
    parity=1,
    unit="grey levels",
    evaluator=named("genai_ray.image.evaluate:EVALUATOR"),
    check=_check,
    describe=named("genai_ray.image.describe:describe"),
    recognised=named("genai_ray.image.describe:recognised"),
)
