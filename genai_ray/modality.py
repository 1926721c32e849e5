"""What the engines know of a modality: this contract, and nothing else.

A modality is a folder (a wing) whose `__init__` holds one `Modality` value, and one line of `genai_ray.modalities`.
Wings never import one another, and no engine names one. torch is imported only inside the functions that use it, so
that generation does not need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeAlias, TypeVar

from genai_ray.provenance import FileRecord, Manifest, ModelCard
from genai_ray.spec import DataSpec, GenerateSpec, Preset, Spec
from genai_ray.storage import Store

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray
    from torch import Tensor

    from genai_ray.report.page import Block


Outputs: TypeAlias = "Sequence[NDArray[Any]]"
Json = dict[str, Any]


def named(path: str) -> Callable[..., Any]:
    """A function that, when called, imports "module:name" and calls it, or returns it if it is a value."""

    def call(*arguments: Any) -> Any:
        module, _, name = path.partition(":")
        value = getattr(import_module(module), name)
        return value(*arguments) if callable(value) else value

    return call


class Codec(Protocol):
    """What the arrays of a run mean. Fitted on real data; holds no training sample.

    modality: its name in the registry. label_width: how many different labels a model accepts; 0 if none. A codec that
    inherits from this one has no labels.
    """

    modality: ClassVar[str]

    @property
    def label_width(self) -> int:
        return 0

    def labels(self, count: int) -> NDArray[np.int64]:
        """Labels (count, ...) int64 that go through all labels in turn."""
        raise AssertionError("a model without labels takes none")

    def describe(self) -> Json:
        """A summary for `genai-ray inspect`."""
        ...

    def check(self, spec: GenerateSpec) -> None:
        """Check what can be checked of a request before there is a model.

        Raises:
            UserError: for something that these data do not have.
        """

    def to_json(self) -> Json: ...


class Data(Protocol):
    """Real data of a run, split into training samples and a holdout by the data alone, not the seed.

    n: training samples of an epoch. holdout_n: held-out samples. digest: SHA-256 of the training samples. skipped:
    names of samples that could not be read. summary: what was read of the source and what was left out, for a person;
    see `Modality.describe`.
    """

    @property
    def codec(self) -> Codec: ...

    @property
    def n(self) -> int: ...

    @property
    def holdout_n(self) -> int: ...

    @property
    def digest(self) -> str: ...

    @property
    def skipped(self) -> tuple[str, ...]: ...

    @property
    def summary(self) -> Json: ...

    def at(self, seed: int, start: int, stop: int) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Training samples start..stop of the endless order that the seed gives, and their labels; the caller may write
        to the arrays.
        """
        ...


# --- generation ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ShardOf:
    """The part of a data set that is made: samples start..stop.

    provenance: written into every file whose format can hold it. producer: name or code of the provider; if given,
    each file carries the label of GB 45438-2025.
    """

    index: int
    start: int
    stop: int
    provenance: Json
    producer: str | None


class Rows(Protocol):
    """Samples of one shard, as the wing's sinks write them. attempts: samples drawn, including those that did not fit
    the request.
    """

    @property
    def attempts(self) -> int: ...


class Read(Protocol):
    """What a file of a data set holds.

    ids: (N,), None where the file has none. count: N. labelled: the bytes of each sample if each carries its own label
    that it is synthetic; else empty.
    """

    @property
    def ids(self) -> NDArray[np.int64] | None: ...

    @property
    def count(self) -> int: ...

    @property
    def labelled(self) -> Sequence[bytes]: ...


R = TypeVar("R", bound=Rows)
R_co = TypeVar("R_co", bound=Rows, covariant=True)


class Samples(Protocol[R_co]):
    """The samples of a data set by index. Sample i depends only on (model, seed, i) and the request: any range can be
    made anywhere. The model is opened when samples are first made. A class that inherits from this one has samples of a
    single kind, which every model makes.
    """

    @property
    def schema(self) -> pa.Schema:
        """The columns of a Parquet file, without the metadata of each file."""
        ...

    def counts(self) -> dict[str, int]:
        """How many samples each request gets, by name; empty if all are of one kind."""
        return {}

    def probe(self) -> None:
        """Raises:
        UserError: if the model makes no sample that fits the request.
        """

    def rows(self, shard: ShardOf) -> R_co: ...


def one_file(rows: int) -> int:
    return 1


def nothing_beside(record: FileRecord, data: bytes) -> Iterator[tuple[str, str, int]]:
    yield from ()


@dataclass(frozen=True, kw_only=True)
class Sink(Generic[R]):
    """How the samples of a shard become files, and are read back. The name and the bytes of a file depend on the shard
    alone, so writing a shard again changes nothing.

    write: puts the files of a shard; returns the records of those that the manifest lists.
    read: what a file holds, given its record, its bytes (already compared with the record) and the store of the data
    set; raises ValueError if an object that it lists is missing or altered.
    objects: (path, SHA-256, bytes) of each further object that a file lists.
    columns: whether files are Parquet with the columns that the manifest names.
    files: how many objects a shard of a number of samples consists of.
    reserved: names that columns of a request cannot have.
    check: raises UserError for what the sink cannot write, before anything is written.
    commit: registers a finished data set elsewhere; a second call changes nothing.
    """

    write: Callable[[R, Store], list[FileRecord]]
    read: Callable[[FileRecord, bytes, Store], Read]
    objects: Callable[[FileRecord, bytes], Iterator[tuple[str, str, int]]] = nothing_beside
    columns: bool = False
    files: Callable[[int], int] = one_file
    reserved: frozenset[str] = frozenset()
    check: Callable[[GenerateSpec, Store, pa.Schema], None] | None = None
    commit: Callable[[GenerateSpec, Store, Manifest], None] | None = None


def discard() -> Sink[Any]:
    """A sink that writes nothing, for benchmarks of generation without storage."""

    def read(record: FileRecord, data: bytes, store: Store) -> Read:
        raise AssertionError("a discarded shard has no files")

    return Sink(write=lambda rows, store: [], read=read, files=lambda rows: 0)


# --- evaluation ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A measure of the quality of samples.

    better: whether lower or higher values are. about: one line. function: "module:name"; it takes what the wing
    compares, and returns None where the metric cannot be measured. least, most: the range of its values. of_features:
    whether it is a distance of features, whose name is then shown with it.
    """

    better: Literal["lower", "higher"]
    about: str
    function: str
    least: float = 0.0
    most: float = 1.0
    of_features: bool = False


def gate_parts(gate: str) -> tuple[str, bool, bool]:
    """A gate `<metric>[_ratio]_(min|max)` as (metric, whether it limits the ratio to real, whether from below)."""
    name, _, bound = gate.rpartition("_")
    return name.removesuffix("_ratio"), name.endswith("_ratio"), bound == "min"


def values_of(metrics: Mapping[str, Metric], compared: object) -> dict[str, float]:
    """Each metric of what a wing compares, without those that cannot be measured."""
    values = {name: named(metric.function)(compared) for name, metric in metrics.items()}
    return {name: value for name, value in values.items() if value is not None}


class Monitor(Protocol):
    """Compares samples with training data while training; the holdout is kept for the report.

    key: the score by which states are compared; lower is better.
    """

    key: str

    def scores(self, outputs: Outputs, labels: NDArray[np.int64] | None) -> dict[str, float]:
        """Scores of the outputs of the sampler for these labels."""
        ...


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """A finished data set, as an evaluator gets it.

    files: what its files hold, in order, each checked against the manifest when it is read. run: the store of its run.
    losses: name -> (samples seen, value) of the training.
    """

    manifest: Manifest
    files: Iterator[Read]
    run: Store
    losses: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The measurements of a data set.

    features: the feature space of distances. fake and real: metric name -> value, for generated and for real data.
    counts: of samples, by their role. record: further keys of quality.json. files: name -> bytes of further files of
    the report. The other fields are the modality's part of the page; see `genai_ray.report.page.Report`.
    """

    samples: int
    features: str
    fake: dict[str, float]
    real: dict[str, float]
    counts: dict[str, int]
    record: Mapping[str, Any]
    files: Mapping[str, bytes]
    title: str
    notice: str
    summary: Mapping[str, Any]
    scores_note: str
    blocks: Sequence[Block]


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """How the samples of a modality are evaluated: while training, and as a finished data set.

    measure: compares a finished data set with held-out and training samples; raises UserError if a requested metric
    cannot be measured. monitor: of a run, given its store. picture: outputs of a model as one (H, W, C) uint8 image;
    None if they cannot be shown.
    """

    measure: Callable[[Spec, Shipped, Data], Measured]
    monitor: Callable[[Spec, Store, Data], Monitor]
    picture: Callable[[Outputs], NDArray[np.uint8] | None]


# --- the modality --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Modality(Generic[R]):
    """One kind of data, from the spec to the report.

    name: its name in the registry, and in codecs. noun: what one sample is called.
    spec: the type of its specs. sources: the values of `data.source`. presets: its models by name; preset: the
    one that is used if a spec names none.
    batch: samples in one call of a model, unless the spec sets it.
    outputs: names of the outputs of its graphs. sinks: by the name in the spec; created on use.
    metrics: by the name that gates use.
    load: read real data. codec: from the JSON of a model card or a checkpoint. conditions: what a data set keeps of a
    request that came as a file, else None. samples: (model, card, spec, seed, kept conditions) -> Samples.
    to_tensor: arrays of `Data.at` as `Batch.values`.
    difference: between a graph's outputs in two runs with the same inputs, for each value, in `unit`. It is 0 for
    differences by rounding; one value in a thousand may differ by more, but none by more than `parity`.
    evaluator: created on use. check: raises UserError for names in a spec that only this modality can look up, before
    the real data are read. describe: what is read of a source and what is inferred of it, for a person to correct:
    strings and numbers by name, and mappings of these. recognised: the `data` section that reads a URI; empty for what
    is no source of the modality.
    """

    name: str
    noun: str
    spec: type[Spec]
    sources: tuple[str, ...]
    presets: Mapping[str, Preset]
    preset: str
    batch: int
    outputs: tuple[str, ...]
    sinks: Mapping[str, Callable[[], Sink[R]]]
    metrics: Mapping[str, Metric]
    load: Callable[[Spec], Data]
    codec: Callable[[Json], Codec]
    samples: Callable[[bytes, ModelCard, GenerateSpec, int, bytes | None], Samples[R]]
    difference: Callable[[Outputs, Outputs, Codec], NDArray[Any]]
    parity: float
    unit: str
    evaluator: Callable[[], Evaluator]
    conditions: Callable[[GenerateSpec, ModelCard, frozenset[str]], bytes | None] = lambda spec, card, reserved: None
    to_tensor: Callable[[Tensor], Tensor] = lambda values: values
    check: Callable[[Spec], None] = lambda spec: None
    describe: Callable[[DataSpec], Json] | None = None
    recognised: Callable[[str], Json] = lambda uri: {}
