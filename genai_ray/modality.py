"""What the engines know of a modality: this contract, and nothing else.

A modality is a folder (a wing) whose `__init__` holds one `Modality` value, and one line of
`genai_ray.modalities`. Wings never import one another, and no engine names one. What needs torch is
imported by the function that uses it, so that generation stays free of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
    """The function "module:name", or a function that gives the value of that name, imported when it
    is called.
    """

    def call(*arguments: Any) -> Any:
        module, _, name = path.partition(":")
        value = getattr(import_module(module), name)
        return value(*arguments) if callable(value) else value

    return call


class Codec(Protocol):
    """What the arrays of a run mean. Fitted on real data; holds no training sample.

    modality: its name in the registry. label_width: how many different labels a model can be asked
    for; 0 if none. A codec that inherits from this one has no labels.
    """

    modality: ClassVar[str]

    @property
    def label_width(self) -> int:
        return 0

    def labels(self, count: int) -> NDArray[np.int64]:
        """Labels (count, ...) int64 that try every one in turn."""
        raise AssertionError("no model without labels is asked for one")

    def describe(self) -> Json:
        """What a person wants to know of it, in a few lines."""
        ...

    def check(self, spec: GenerateSpec) -> None:
        """What can be said of a request before there is a model.

        Raises:
            UserError: for what these data do not have.
        """

    def to_json(self) -> Json: ...


class Data(Protocol):
    """Real data of a run, split into training samples and a holdout by the data alone, not the seed.

    n: training samples of an epoch. holdout_n: held-out samples. digest: SHA-256 of the training
    samples. skipped: names of what could not be read.
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

    def at(self, seed: int, start: int, stop: int) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
        """Training samples start..stop of the endless line of (seed), and their labels; arrays that
        the caller may write to.
        """
        ...


# --- generation ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ShardOf:
    """Which part of a data set is made: samples start..stop.

    provenance: goes into every file that has a place for it. producer: name or code of the
    provider; given, each file carries the label of GB 45438-2025.
    """

    index: int
    start: int
    stop: int
    provenance: Json
    producer: str | None


class Rows(Protocol):
    """Samples of one shard, as the wing's sinks write them. attempts: samples drawn, with those that
    did not fit what was asked for.
    """

    @property
    def attempts(self) -> int: ...


class Read(Protocol):
    """What a file of a data set holds.

    ids: (N,), None where the file does not say. count: N. labelled: the contents of each sample, where
    each carries a label of its own that says it is synthetic; else empty.
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
    """The samples of a data set by index. Sample i is a function of (model, seed, i) and of the
    request, so any range can be made anywhere. The model is opened when samples are first made.
    Samples that inherit from these are all of one kind, which every model makes.
    """

    @property
    def schema(self) -> pa.Schema:
        """The columns of a Parquet file, without what is said of each file."""
        ...

    def counts(self) -> dict[str, int]:
        """How many samples each request gets, by name; empty if all are of one kind."""
        return {}

    def probe(self) -> None:
        """Raises:
        UserError: if the model makes nothing of the kind that is asked for.
        """

    def rows(self, shard: ShardOf) -> R_co: ...


def one_file(rows: int) -> int:
    return 1


def nothing_beside(record: FileRecord, data: bytes) -> Iterator[tuple[str, str, int]]:
    yield from ()


@dataclass(frozen=True, kw_only=True)
class Sink(Generic[R]):
    """How the samples of a shard become files, and are read back. The name and the bytes of a file
    depend on the shard alone, so writing it again replaces it by the same.

    write: puts the files of a shard; their records, those whose bytes the manifest vouches for.
    read: what a file holds, given its record, its bytes (compared with the record before) and the
    store of the data set; raises ValueError if an object that it lists is missing or altered.
    objects: (path, SHA-256, bytes) of each object that a file lists beside itself.
    columns: whether files are Parquet with the columns that the manifest names.
    files: how many objects a shard of so many samples puts.
    reserved: names that further columns cannot have.
    check: raises UserError for what the sink cannot use, before anything is written.
    commit: makes a finished data set known elsewhere; done again it changes nothing.
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
    """Writes nothing: for benchmarks of what comes before."""

    def read(record: FileRecord, data: bytes, store: Store) -> Read:
        raise AssertionError("a discarded shard has no files")

    return Sink(write=lambda rows, store: [], read=read, files=lambda rows: 0)


# --- evaluation ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """A number that says how good samples are.

    better: which way. about: one line. function: "module:name" of what computes it, from what the
    wing compares; None where it cannot be measured. least, most: the values that it can have.
    """

    better: Literal["lower", "higher"]
    about: str
    function: str
    least: float = 0.0
    most: float = 1.0


def values_of(metrics: Mapping[str, Metric], compared: object) -> dict[str, float]:
    """Each metric of what a wing compares, but for those that cannot be measured."""
    values = {name: named(metric.function)(compared) for name, metric in metrics.items()}
    return {name: value for name, value in values.items() if value is not None}


class Monitor(Protocol):
    """Measures samples while training, beside training data; the holdout is left for the report.

    key: the score by which states are compared; less is better.
    """

    key: str

    def scores(self, outputs: Outputs, labels: NDArray[np.int64] | None) -> dict[str, float]:
        """Of the outputs of the sampler for the labels that were asked for."""
        ...


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """A finished data set, as an evaluator gets it.

    files: what its files hold, in order, checked against the manifest as they are read. run: the
    store of its run. losses: name -> (samples seen, value) of the training.
    """

    manifest: Manifest
    files: Iterator[Read]
    run: Store
    losses: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A data set, measured.

    features: what distances were measured in. fake and real: metric name -> value, for generated
    and for real data. counts: of samples, by what they are. record: what else quality.json says.
    files: name -> bytes of what stands in the report's folder. The rest is what the page shows of
    this modality; see `genai_ray.report.page.Report`.
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

    measure: a finished data set beside held-out and training samples; raises UserError if what is
    asked for cannot be measured. monitor: of a run, with the store of the run. picture: outputs of
    a model as one (H, W, C) uint8; None where nothing can be seen.
    """

    measure: Callable[[Spec, Shipped, Data], Measured]
    monitor: Callable[[Spec, Store, Data], Monitor]
    picture: Callable[[Outputs], NDArray[np.uint8] | None]


# --- the modality --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Modality(Generic[R]):
    """One kind of data, from the spec to the report.

    name: its name in the registry, and in codecs. noun: what one sample is called.
    spec: the type of its specs. sources: what `data.source` may be. presets: its models by name.
    batch: samples in one call of a model, unless the spec says otherwise.
    outputs: names of what its graphs give. sinks: by the name in the spec; opened on use.
    metrics: by name, as gates know them.
    load: read real data. codec: as a model card or a checkpoint holds it. conditions: what a data
    set keeps of a request that came as a file, else None. samples: (model, card, spec, seed, kept
    conditions) -> Samples. to_tensor: arrays of `Data.at` as `Batch.values`. difference: of two
    runs of a graph's outputs for the same inputs, for each value, in `unit`: 0 where it is that of
    rounding, which one value in a thousand may exceed, but none by more than `parity`. evaluator:
    opened on use. check: raises UserError for what a spec names and only this modality can look up,
    before the real data are read. describe: what is inferred of a source, for a person who may know
    better; described: the values of a spec of such a source, and suffixes those of its files.
    """

    name: str
    noun: str
    spec: type[Spec]
    sources: tuple[str, ...]
    presets: Mapping[str, Preset]
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
    described: Mapping[str, Any] = field(default_factory=dict)
    suffixes: tuple[str, ...] = ()
