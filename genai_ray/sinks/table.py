"""Rows of a table as Parquet or CSV: the columns of the source, and no other.

A Parquet file says in its metadata which model, seed and range made it; in CSV there is no place
for that, so only the manifest says it.
"""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from genai_ray.labels import DIGITAL_SOURCE_TYPE
from genai_ray.provenance import FileRecord
from genai_ray.sinks.parquet import with_label
from genai_ray.sinks.rows import TableRows
from genai_ray.storage import Store

_ABOUT = "genai_ray"
_ROWS = "rows"  # key in the provenance of a table's file, which has no column of ids


def write_table(rows: TableRows, store: Store) -> list[FileRecord]:
    """One Parquet file with the types of the source; texts are dictionary-encoded."""
    about = {
        _ABOUT: json.dumps(rows.provenance | {_ROWS: "table"}, sort_keys=True),
        "DigitalSourceType": DIGITAL_SOURCE_TYPE,
    }
    # Metadata of the source, such as pandas' index, would be wrong of other rows.
    schema = with_label(rows.table.schema.with_metadata(about), rows)
    sink = pa.BufferOutputStream()
    pq.write_table(rows.table.cast(schema), sink, compression="zstd")
    return _put(rows, "parquet", sink.getvalue().to_pybytes(), store)


def read_table(data: bytes) -> tuple[NDArray[np.int64], pa.Table] | None:
    """Ids and rows of a file of `write_table`; None for another Parquet file."""
    table = pq.read_table(pa.BufferReader(data))
    about: dict[str, Any] = json.loads((table.schema.metadata or {}).get(_ABOUT.encode(), b"{}"))
    if about.get(_ROWS) != "table":
        return None
    return about["start"] + np.arange(table.num_rows), table.replace_schema_metadata(None)


def write_csv(rows: TableRows, store: Store) -> list[FileRecord]:
    """One CSV file (RFC 4180) with a header; a missing value is an empty cell."""
    sink = pa.BufferOutputStream()
    options = pacsv.WriteOptions(quoting_style="needed")
    pacsv.write_csv(_as_text(rows.table), sink, options)
    return _put(rows, "csv", sink.getvalue().to_pybytes(), store)


def read_csv(data: bytes) -> pa.Table:
    """The rows, every column as text."""
    names = pacsv.open_csv(pa.BufferReader(data)).schema.names
    return _parsed(data, dict.fromkeys(names, pa.string()))


def retyped(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Rows that were read back, from either kind of file, in the types of a schema."""
    if table.schema == schema:
        return table
    sink = pa.BufferOutputStream()
    pacsv.write_csv(_as_text(table), sink)
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


def _as_text(table: pa.Table) -> pa.Table:
    """Dictionaries as plain values, which the CSV writer cannot do itself."""
    for i, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            plain = table.column(i).cast(field.type.value_type)
            table = table.set_column(i, field.name, plain)
    return table
