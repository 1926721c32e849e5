"""Rows of a table as Parquet or CSV: the columns of the source, and no other.

A Parquet file says in its metadata which model, seed and range made it; CSV cannot hold this, so only the manifest says
it.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from genai_ray.labels import DIGITAL_SOURCE_TYPE, produce_id, with_label
from genai_ray.modality import Sink
from genai_ray.provenance import FileRecord
from genai_ray.storage import Store

_ABOUT = "genai_ray"
_ROWS = "rows"  # key in the provenance of a table's file, which has no column of ids


@dataclass(frozen=True)
class TableRows:
    """What a shard of a table holds: rows start..start+N.

    provenance: goes into every Parquet file as it is. producer: name or code of the provider; given,
    each file carries the label of GB 45438-2025. attempts: rows drawn, with those that did not fit.
    """

    index: int
    start: int
    table: pa.Table
    provenance: dict[str, Any]
    producer: str | None = None
    attempts: int = 0

    @property
    def part_id(self) -> str:
        return produce_id(self.provenance, f"part-{self.index:06d}")


@dataclass(frozen=True)
class TableRead:
    """What a file holds: its rows, and their ids (N,), None for CSV, which has none."""

    ids: NDArray[np.int64] | None
    table: pa.Table

    @property
    def count(self) -> int:
        return self.table.num_rows

    @property
    def labelled(self) -> tuple[()]:
        return ()


def write_table(rows: TableRows, store: Store) -> list[FileRecord]:
    """One Parquet file with the types of the source; strings are dictionary-encoded."""
    about = {
        _ABOUT: json.dumps(rows.provenance | {_ROWS: "table"}, sort_keys=True),
        "DigitalSourceType": DIGITAL_SOURCE_TYPE,
    }
    # Metadata of the source, such as pandas' index, would be wrong of other rows.
    schema = with_label(rows.table.schema.with_metadata(about), rows.producer, rows.part_id)
    sink = pa.BufferOutputStream()
    pq.write_table(rows.table.cast(schema), sink, compression="zstd")
    return _put(rows, "parquet", sink.getvalue().to_pybytes(), store)


def read_table(record: FileRecord, data: bytes, store: Store) -> TableRead:
    """Ids and rows of a file of `write_table`."""
    table = pq.read_table(pa.BufferReader(data))
    about: dict[str, Any] = json.loads((table.schema.metadata or {}).get(_ABOUT.encode(), b"{}"))
    if about.get(_ROWS) != "table":
        raise ValueError("is not a Parquet file of a generated table")
    return TableRead(about["start"] + np.arange(table.num_rows), table.replace_schema_metadata(None))


def write_csv(rows: TableRows, store: Store) -> list[FileRecord]:
    """One CSV file (RFC 4180) with a header; a missing value is an empty cell."""
    sink = pa.BufferOutputStream()
    options = pacsv.WriteOptions(quoting_style="needed")
    pacsv.write_csv(_without_dictionaries(rows.table), sink, options)
    return _put(rows, "csv", sink.getvalue().to_pybytes(), store)


def read_csv(record: FileRecord, data: bytes, store: Store) -> TableRead:
    """The rows, every column as strings."""
    names = pacsv.open_csv(pa.BufferReader(data)).schema.names
    return TableRead(None, _parsed(data, dict.fromkeys(names, pa.string())))


def retyped(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows that were read back, from either kind of file, in the types of a schema."""
    if table.schema == schema:
        return table
    sink = pa.BufferOutputStream()
    pacsv.write_csv(_without_dictionaries(table), sink)
    kinds = {f.name: f.type.value_type if pa.types.is_dictionary(f.type) else f.type for f in schema}
    return _parsed(sink.getvalue().to_pybytes(), kinds).cast(schema)


def _parsed(data: bytes, kinds: dict[str, pa.DataType]) -> pa.Table:
    convert = pacsv.ConvertOptions(column_types=kinds, strings_can_be_null=True, null_values=[""])
    # A table of one column has an empty line where its value is missing.
    parse = pacsv.ParseOptions(ignore_empty_lines=False)
    return pacsv.read_csv(pa.BufferReader(data), parse_options=parse, convert_options=convert)


def _put(rows: TableRows, suffix: str, data: bytes, store: Store) -> list[FileRecord]:
    path = f"data/part-{rows.index:06d}.{suffix}"
    store.put(path, data)
    return [FileRecord.of(path, rows.table.num_rows, data)]


def _without_dictionaries(table: pa.Table) -> pa.Table:
    """Dictionaries as plain values, which the CSV writer cannot do itself."""
    for i, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            plain = table.column(i).cast(field.type.value_type)
            table = table.set_column(i, field.name, plain)
    return table


PARQUET: Sink[TableRows] = Sink(write=write_table, read=read_table, columns=True)
CSV: Sink[TableRows] = Sink(write=write_csv, read=read_csv)
