"""Of what class each image is: exact counts, or a table with one row a sample."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from genai_ray.errors import UserError, nearest
from genai_ray.image.spec import ImageGenerateSpec
from genai_ray.provenance import ModelCard
from genai_ray.quotas import counts_of
from genai_ray.spec import GenerateSpec
from genai_ray.storage import Store

_GROUP_ROWS = 65_536  # of a kept conditions table: what is decoded for a shard


class Conditions:
    """A table with one row a sample: its column `label`, and what stands beside it.

    Kept as Parquet inside the data set, so that a shard can be made again when the table that was given is long gone.
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


def read_conditions(spec: GenerateSpec, card: ModelCard, reserved: frozenset[str]) -> bytes | None:
    """A table of conditions as the Parquet file that a data set keeps: `label` as class numbers first, then the other
    columns as they were. None if the spec names no table.

    Args:
        reserved: names of columns that the sink has itself.

    Raises:
        UserError: for a table that cannot be read or does not fit the model.
    """
    assert isinstance(spec, ImageGenerateSpec)
    if spec.conditions is None:
        return None
    field, uri, samples = "generate.conditions", str(spec.conditions), spec.samples
    table = _read_table(uri)
    names = list(card.codec["classes"] or ())
    for name in table.column_names:
        taken = name != "label" and name in reserved
        if taken or table.column_names.count(name) > 1:
            raise UserError(
                field,
                uri,
                f"column {name!r} " + (f"is one of sink={spec.sink}'s own" if taken else "stands there more than once"),
                "Rename it in the table.",
            )
    if "label" not in table.column_names:
        raise UserError(
            field,
            uri,
            f"must have a column 'label'; it has {', '.join(table.column_names)}",
            "Name the column that holds the class 'label'.",
        )
    if table.num_rows != samples:
        raise UserError(
            field,
            uri,
            f"has {table.num_rows} rows for generate.samples={samples}",
            f"Set generate.samples={table.num_rows}.",
        )
    labels = table["label"].to_pylist()
    known: dict[Any, int] = {**dict(enumerate(range(len(names)))), **{n: i for i, n in enumerate(names)}}
    numbers = np.empty(len(labels), np.int64)
    for row, label in enumerate(labels):
        # A class that is named 3 stands as a number in most tables.
        number = known.get(str(label), known.get(label))
        if number is None:
            raise UserError(
                field, label, f"in row {row} of {uri} is not a class of the model", nearest(str(label), names)
            )
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
        raise UserError(
            "generate.conditions",
            uri,
            f"must be a Parquet or CSV file ({reason})",
            "Check the path; a CSV file ends in .csv.",
        ) from None


def class_counts(spec: ImageGenerateSpec, card: ModelCard) -> list[int] | None:
    """How many samples each class gets; exactly `spec.samples` together. None without classes.

    Raises:
        UserError: for an unknown class, or counts that do not add up.
    """
    if not card.conditional:
        if spec.classes:
            raise UserError(
                "generate.classes",
                spec.classes,
                "asks for labels, but the model has no classes",
                "Train with model.conditional=true.",
            )
        return None
    names = list(card.codec["classes"])
    asked = spec.classes or dict.fromkeys(names, 1 / len(names))
    for name, value in asked.items():
        if name not in names:
            raise UserError("generate.classes", name, "is not a class of the model", nearest(name, names))
        if value < 0:
            raise UserError("generate.classes", {name: value}, "must not be negative", "Raise it.")
    return counts_of("generate.classes", [asked.get(name, 0) for name in names], spec.samples)


def check_classes(spec: ImageGenerateSpec) -> None:
    """Raises:
    UserError: for counts or shares of classes that do not add up.
    """
    if spec.classes:
        counts_of("generate.classes", [*spec.classes.values()], spec.samples)
