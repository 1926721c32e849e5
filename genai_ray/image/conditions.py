"""The class of each image: exact counts, or a table with one row per sample."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from genai_ray.errors import UserError, nearest, store_is_of
from genai_ray.image.spec import ImageGenerateSpec
from genai_ray.provenance import ModelCard
from genai_ray.quotas import counts_of
from genai_ray.spec import GenerateSpec
from genai_ray.storage import Store

_GROUP_ROWS = 65_536  # of a stored conditions table: what is decoded for a shard


class Conditions:
    """A table with one row per sample: its column `label`, and further columns.

    Stored as Parquet inside the data set, so that a shard can be generated again after the original table is gone.
    """

    def __init__(self, data: bytes):
        self._file = pq.ParquetFile(io.BytesIO(data))
        self.schema: pa.Schema = self._file.schema_arrow.remove(0)  # of the further columns

    def classes(self, start: int, stop: int) -> NDArray[np.int64]:
        """The classes of samples start..stop, (N,)."""
        return self._rows(start, stop)["label"].to_numpy()

    def further_columns(self, start: int, stop: int) -> pa.Table | None:
        """The further columns of samples start..stop; None if there are none."""
        return self._rows(start, stop).drop_columns("label") if self.schema.names else None

    def _rows(self, start: int, stop: int) -> pa.Table:
        first, last = start // _GROUP_ROWS, (stop - 1) // _GROUP_ROWS
        table = self._file.read_row_groups(list(range(first, last + 1)))
        return table.slice(start - first * _GROUP_ROWS, stop - start)


def read_conditions(spec: GenerateSpec, card: ModelCard, reserved: frozenset[str]) -> bytes | None:
    """The table of conditions as the Parquet file that a data set stores: `label` as class indices first, then the
    other columns unchanged. None if the spec names no table.

    Args:
        reserved: names of columns that the sink has itself.

    Raises:
        UserError: for a table that cannot be read or does not fit the model.
    """
    assert isinstance(spec, ImageGenerateSpec)
    if spec.conditions is None:
        return None
    uri, table = spec.conditions, _read_table(spec.conditions)
    _check_columns(spec, table, reserved)
    names = list(card.codec["classes"] or ())
    index_of: dict[Any, int] = {**dict(enumerate(range(len(names)))), **{name: i for i, name in enumerate(names)}}
    indices = np.empty(table.num_rows, np.int64)
    for row, label in enumerate(table["label"].to_pylist()):
        # A class that is named 3 is a number in most tables.
        index = index_of.get(str(label), index_of.get(label))
        if index is None:
            rule = f"in row {row} of {uri} is not a class of the model"
            raise UserError("generate.conditions", label, rule, nearest(str(label), names))
        indices[row] = index
    others = table.drop_columns("label")
    stored = pa.table([pa.chunked_array([indices]), *others.columns], names=["label", *others.column_names])
    sink = io.BytesIO()
    pq.write_table(stored.replace_schema_metadata(None), sink, row_group_size=_GROUP_ROWS)
    return sink.getvalue()


def _read_table(uri: str) -> pa.Table:
    folder, _, name = uri.rpartition("/")
    try:
        with store_is_of("generate.conditions", uri):
            data = io.BytesIO(Store(folder or "/").read(name))
        return pacsv.read_csv(data) if name.endswith(".csv") else pq.read_table(data)
    except (FileNotFoundError, IsADirectoryError, pa.ArrowInvalid) as error:
        rule = f"must be a Parquet or CSV file ({str(error).splitlines()[0]})"
        raise UserError("generate.conditions", uri, rule, "Check the path; a CSV file ends in .csv.") from None


def _check_columns(spec: ImageGenerateSpec, table: pa.Table, reserved: frozenset[str]) -> None:
    def error(rule: str, remedy: str) -> UserError:
        return UserError("generate.conditions", spec.conditions, rule, remedy)

    names = table.column_names
    for name in names:
        if name != "label" and name in reserved:
            raise error(f"column {name!r} is one of sink={spec.sink}'s own", "Rename it in the table.")
        if names.count(name) > 1:
            raise error(f"column {name!r} occurs more than once", "Rename it in the table.")
    if "label" not in names:
        remedy = "Name the column that holds the class 'label'."
        raise error(f"must have a column 'label'; it has {', '.join(names)}", remedy)
    if table.num_rows != spec.samples:
        rule = f"has {table.num_rows} rows for generate.samples={spec.samples}"
        raise error(rule, f"Set generate.samples={table.num_rows}.")


def class_counts(spec: ImageGenerateSpec, card: ModelCard) -> list[int] | None:
    """How many samples each class gets; exactly `spec.samples` together. None without classes.

    Raises:
        UserError: for an unknown class, or counts that do not add up.
    """
    if not card.conditional:
        if spec.classes:
            rule = "asks for labels, but the model has no classes"
            raise UserError("generate.classes", spec.classes, rule, "Train with model.conditional=true.")
        return None
    names = list(card.codec["classes"])
    requested = spec.classes or dict.fromkeys(names, 1 / len(names))
    for name, value in requested.items():
        if name not in names:
            raise UserError("generate.classes", name, "is not a class of the model", nearest(name, names))
        if value < 0:
            raise UserError("generate.classes", {name: value}, "must not be negative", "Raise it.")
    return counts_of("generate.classes", [requested.get(name, 0) for name in names], spec.samples)
