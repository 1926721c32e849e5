"""Real data, split into what trains and what judges, and the Codec that says what their arrays are.

What the engine knows of a modality stands here; images and tables are one module each.
"""

from typing import Any, ClassVar, Protocol

from numpy.typing import NDArray

from genai_ray.config import DataSpec, GenerateSpec


class Codec(Protocol):
    """What the arrays of a run mean. Fitted on real data; holds no training row.

    modality: its key in registries. label_width: how many different labels a model can be asked
    for; 0 if none.
    """

    modality: ClassVar[str]

    @property
    def label_width(self) -> int: ...

    def labels(self, count: int) -> NDArray[Any]:
        """Labels (count, ...) int64 that try every one in turn."""
        ...

    def describe(self) -> dict[str, Any]:
        """What a person wants to know of it, in a few lines."""
        ...

    def check(self, asked: GenerateSpec) -> None:
        """What can be told of a request before there is a model.

        Raises:
            UserError: for what these data do not have.
        """
        ...

    def to_json(self) -> dict[str, Any]: ...


class Data(Protocol):
    """Real data of a run. The split depends on the data alone, not on the seed.

    n: training samples of an epoch. digest: SHA-256 of the training samples. skipped: what could
    not be read. resident: whether all samples are in memory, so that `at` can be called.
    """

    resident: ClassVar[bool]

    @property
    def codec(self) -> Any: ...

    @property
    def n(self) -> int: ...

    @property
    def digest(self) -> Any: ...

    @property
    def skipped(self) -> tuple[str, ...]: ...

    def at(self, seed: int, start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Training samples at places start..stop of the endless line of (seed), and their labels;
        arrays that the caller may write to.
        """
        ...


def load(spec: DataSpec, *, conditional: bool = False) -> Data:
    """Read the source that the spec names.

    Args:
        spec: the `data` section.
        conditional: whether the model will be asked for labels.

    Raises:
        UserError: for a source that is missing, empty, corrupt, or without the labels asked for.
    """
    if spec.modality == "table":
        from genai_ray.data.table import load_table

        return load_table(spec, conditional=conditional)
    from genai_ray.data.image import load_images

    return load_images(spec, conditional=conditional)


def codec_from_json(values: dict[str, Any]) -> Any:
    """The Codec of any modality, as a model card or a checkpoint holds it."""
    if values["modality"] == "table":
        from genai_ray.data.table import TableCodec

        return TableCodec.from_json(values)
    from genai_ray.data.image import ImageCodec

    return ImageCodec.from_json(values)
