"""What a sample is: noise, class and model by its index. Needs neither Ray nor torch.

Sample i is a function of (model, seed, i) and its class of (quotas or conditions, seed, i), so any
sample can be made anywhere, again, with the same result.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from genai_ray import rng, sinks
from genai_ray.config import GenerateSpec
from genai_ray.data.image import ImageCodec
from genai_ray.errors import UserError, nearest
from genai_ray.provenance import ModelCard, open_card
from genai_ray.storage import Store

_DRAWN_BATCHES = 16
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_GROUP_ROWS = 65_536  # of a kept conditions table: what is decoded for a shard


class Sampler:
    """Samples by index.

    Args:
        model: the bytes of the ONNX file.
        card: its card.
        seed: of the data set.
        labels: the class of each sample; None for a model without classes.
    """

    def __init__(
        self, model: bytes, card: ModelCard, spec: GenerateSpec, seed: int,
        labels: "Quotas | Conditions | None",
    ):  # fmt: skip
        self.card, self.seed, self.labels = card, seed, labels
        self.batch, self.truncation = spec.batch, spec.truncation
        self.codec = ImageCodec.from_json(card.codec)
        self.session = open_session(model, spec)
        self._run = BoundRun(self.session, spec.batch) if spec.device == "cuda" else self._plain

    def samples(self, start: int, stop: int) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
        """Images (N, H, W, C) and labels (N,) or None of samples start..stop."""
        labels = None if self.labels is None else self.labels.classes(start, stop)
        size, batch = self.codec.size, self.batch
        images = np.empty((stop - start, size, size, self.codec.channels), np.uint8)
        for first in range(0, len(images), _DRAWN_BATCHES * batch):
            # Drawing for several batches at once costs half as much as for each.
            last = min(first + _DRAWN_BATCHES * batch, len(images))
            noise = self._noise(start + first, -(-(last - first) // batch) * batch)
            for at in range(first, last, batch):
                count = min(batch, last - at)
                feed: dict[str, Any] = {"noise": noise[at - first : at - first + batch]}
                if labels is not None:
                    feed["label"] = np.resize(labels[at : at + count], batch)
                images[at : at + count] = self._run(feed)[:count]
        return images, labels

    def _plain(self, feed: dict[str, NDArray[Any]]) -> NDArray[np.uint8]:
        output: Any = self.session.run(None, feed)[0]
        return output

    def _noise(self, start: int, count: int) -> NDArray[np.float32]:
        """Whole batches: a tail of another shape could be computed by another algorithm, and on a
        GPU would be tuned for anew.
        """
        stream, latent = rng.Stream.SAMPLE_NOISE, self.card.latent
        return rng.normal(self.seed, stream, start, count, latent, self.truncation)


class BoundRun:
    """Calls of a session with one batch shape, whose arrays lie on the device from the start.

    Without it each call would copy its input from, and its output to, memory that the card cannot
    read by itself, and allocate both anew.
    """

    def __init__(self, session: ort.InferenceSession, batch: int, device: str = "cuda"):
        self.session, self.binding = session, session.io_binding()
        self._inputs: dict[str, ort.OrtValue] = {}
        types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
        for given in session.get_inputs():
            shape = [batch, *given.shape[1:]]
            value = ort.OrtValue.ortvalue_from_shape_and_type(shape, types[given.type], device, 0)
            self.binding.bind_ortvalue_input(given.name, value)
            self._inputs[given.name] = value
        made = session.get_outputs()[0]
        self._output = ort.OrtValue.ortvalue_from_shape_and_type(
            [batch, *made.shape[1:]], np.uint8, device, 0
        )
        self.binding.bind_ortvalue_output(made.name, self._output)

    def __call__(self, feed: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
        for name, array in feed.items():
            self._inputs[name].update_inplace(np.ascontiguousarray(array))
        self.session.run_with_iobinding(self.binding)
        return self._output.numpy()


def open_session(model: bytes, spec: GenerateSpec) -> ort.InferenceSession:
    """An ONNX Runtime session on the device that was asked for, and on no other.

    Raises:
        UserError: if the provider cannot be used here.
    """
    if spec.device == "cuda" and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    provider = _PROVIDERS[spec.device]
    if provider in ort.get_available_providers():
        chosen: Any = [(provider, provider_options(spec))]
        session = ort.InferenceSession(model, session_options(spec), providers=chosen)
        if session.get_providers()[0] == provider:
            return session
    raise UserError(
        "generate.device", spec.device, f"needs {provider}, which does not load here",
        "Use generate.device=cpu, or install onnxruntime-gpu[cuda,cudnn] and a driver of CUDA 13.",
    )  # fmt: skip


def session_options(spec: GenerateSpec) -> ort.SessionOptions:
    """One thread for each CPU of the worker: Ray's share does not reach ONNX Runtime's own pool."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = max(1, int(spec.cpus_per_worker))
    options.inter_op_num_threads = 1
    # A thread that spins between calls takes its core from another worker.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def provider_options(spec: GenerateSpec) -> dict[str, str]:
    """Options of the execution provider, as ONNX Runtime names them.

    The heuristic search looks at shapes alone. The exhaustive one times algorithms, so two starts
    could choose different ones, with different last bits.
    """
    if spec.device == "cpu":
        return {}
    options = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}
    if spec.gpu_memory_gb is not None or spec.gpus_per_worker < 1:
        # Doubling what it holds, the default, would take the other workers' share.
        options["arena_extend_strategy"] = "kSameAsRequested"
    if spec.gpu_memory_gb is not None:
        options["gpu_mem_limit"] = str(round(spec.gpu_memory_gb * 1e9))
    return options


def read_model(model: bytes, *, where: str) -> tuple[ModelCard, str]:
    """The card and the digest of an ONNX file of ours.

    Raises:
        UserError: if it is not ours, was altered, or is too new.
    """
    try:
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    except Exception as error:
        # The runtime's exceptions share no base class of their own.
        raise UserError("model", where, f"must be an ONNX file ({str(error).splitlines()[0]})",
                        "Export it again with `genai-ray export`.") from None  # fmt: skip
    return open_card(session.get_modelmeta().custom_metadata_map, model, where=where)


# --- classes -------------------------------------------------------------------------------------


class Quotas:
    """Exact class counts, well mixed: a random permutation sends sample i to a place in the line of
    all classes in order.
    """

    def __init__(self, counts: list[int], seed: int):
        self.counts, self.seed = counts, seed
        self._ends = np.cumsum(counts)

    def classes(self, start: int, stop: int) -> NDArray[np.int64]:
        """The classes of samples start..stop, (N,)."""
        stream, n = rng.Stream.SAMPLE_CLASS, int(self._ends[-1])
        places = rng.permute(self.seed, stream, np.arange(start, stop), n)
        return np.searchsorted(self._ends, places, side="right").astype(np.int64)


class Conditions:
    """A table with one row a sample: its column `label`, and what stands beside it.

    Kept as Parquet inside the data set, so that a shard can be made again when the table that was
    given is long gone.
    """

    def __init__(self, data: bytes):
        self._file = pq.ParquetFile(io.BytesIO(data))
        self.rows: int = self._file.metadata.num_rows
        self.schema: pa.Schema = self._file.schema_arrow.remove(0)  # of what stands beside

    def classes(self, start: int, stop: int) -> NDArray[np.int64]:
        """The classes of samples start..stop, (N,)."""
        return self._rows(start, stop)["label"].to_numpy()

    def beside(self, start: int, stop: int) -> pa.Table | None:
        """The other columns of samples start..stop; None if there are none."""
        return self._rows(start, stop).drop_columns("label") if self.schema.names else None

    def _rows(self, start: int, stop: int) -> pa.Table:
        first, last = start // _GROUP_ROWS, (stop - 1) // _GROUP_ROWS
        table = self._file.read_row_groups(list(range(first, last + 1)))
        return table.slice(start - first * _GROUP_ROWS, stop - start)


def read_conditions(spec: GenerateSpec, card: ModelCard) -> bytes:
    """A table of conditions as the Parquet file that a data set keeps: `label` as class numbers
    first, then the other columns as they were.

    Raises:
        UserError: for a table that cannot be read or does not fit the model.
    """
    field, uri, samples = "generate.conditions", spec.conditions or "", spec.samples
    table = _read_table(uri)
    names = list(card.codec["classes"] or ())
    for name in table.column_names:
        taken = name != "label" and name in sinks.RESERVED[spec.sink]
        if taken or table.column_names.count(name) > 1:
            raise UserError(
                field, uri, f"column {name!r} " + (f"is one of sink={spec.sink}'s own" if taken
                                                   else "stands there more than once"),
                "Rename it in the table.",
            )  # fmt: skip
    if "label" not in table.column_names:
        raise UserError(
            field, uri, f"must have a column 'label'; it has {', '.join(table.column_names)}",
            "Name the column that holds the class 'label'.",
        )  # fmt: skip
    if table.num_rows != samples:
        raise UserError(
            field, uri, f"has {table.num_rows} rows for generate.samples={samples}",
            f"Set generate.samples={table.num_rows}.",
        )  # fmt: skip
    labels = table["label"].to_pylist()
    known: dict[Any, int] = {
        **dict(enumerate(range(len(names)))),
        **{n: i for i, n in enumerate(names)},
    }
    numbers = np.empty(len(labels), np.int64)
    for row, label in enumerate(labels):
        # A class that is named 3 stands as a number in most tables.
        number = known.get(str(label), known.get(label))
        if number is None:
            raise UserError(field, label, f"in row {row} of {uri} is not a class of the model",
                            nearest(str(label), names))  # fmt: skip
        numbers[row] = number
    others = table.drop_columns("label")
    columns = [pa.chunked_array([numbers]), *others.columns]
    kept = pa.table(columns, names=["label", *others.column_names])
    sink = io.BytesIO()
    pq.write_table(kept.replace_schema_metadata(None), sink, row_group_size=_GROUP_ROWS)
    return sink.getvalue()


def _read_table(uri: str) -> pa.Table:
    folder, _, name = uri.rpartition("/")
    try:
        data = Store(folder or "/").read(name)
        if name.endswith(".csv"):
            return pacsv.read_csv(io.BytesIO(data))
        return pq.read_table(io.BytesIO(data))
    except (FileNotFoundError, IsADirectoryError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise UserError("generate.conditions", uri, f"must be a Parquet or CSV file ({reason})",
                        "Check the path; a CSV file ends in .csv.") from None  # fmt: skip


def class_counts(spec: GenerateSpec, card: ModelCard) -> list[int] | None:
    """How many samples each class gets; exactly `spec.samples` together. None without classes.

    Raises:
        UserError: for an unknown class, or counts that do not add up.
    """
    if not card.conditional:
        if spec.classes:
            raise UserError("generate.classes", spec.classes, "asks for labels, but the model has "
                            "no classes", "Train with model.conditional=true.")  # fmt: skip
        return None
    names = list(card.codec["classes"])
    asked = spec.classes or dict.fromkeys(names, 1 / len(names))
    for name, value in asked.items():
        if name not in names:
            raise UserError("generate.classes", name, "is not a class of the model",
                            nearest(name, names))  # fmt: skip
        if value < 0:
            raise UserError("generate.classes", {name: value}, "must not be negative", "Raise it.")
    values = [asked.get(name, 0) for name in names]
    total = sum(values)
    if abs(total - spec.samples) < 1e-6 and all(v == int(v) for v in values):
        return [int(v) for v in values]
    if abs(total - 1) > 1e-6:
        raise UserError(
            "generate.classes", asked, f"add up to {total:g}; counts must give "
            f"generate.samples={spec.samples}, shares must give 1", "Correct the numbers.",
        )  # fmt: skip
    # Largest remainders, so that shares become counts that add up.
    exact = [v * spec.samples for v in values]
    counts = [int(e) for e in exact]
    by_rest = sorted(range(len(names)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_rest[: spec.samples - sum(counts)]:
        counts[i] += 1
    return counts
