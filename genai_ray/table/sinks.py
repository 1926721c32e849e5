"""Rows of a table as Parquet or CSV: the columns of the source, and no other.

A Parquet file says in its metadata which model, seed and range made it; CSV cannot hold this, so only the manifest says
it.
"""

import json
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from genai_ray.labels import DIGITAL_SOURCE_TYPE, produce_id, with_label
from genai_ray.modality import Sink
from genai_ray.provenance import FileRecord, Manifest
from genai_ray.storage import Store
from genai_ray.table import spelling, values
from genai_ray.table.codec import TableCodec, file_spelling
from genai_ray.table.spelling import FileSpelling

_ABOUT = "genai_ray"
_ROWS = "rows"  # key in the provenance of a table's file, which has no column of ids


@dataclass(frozen=True)
class TableRows:
    """What a shard of a table holds: rows start..start+N.

    provenance: goes into every Parquet file as it is. producer: name or code of the provider; given,
    each file carries the label of GB 45438-2025. attempts: rows drawn, with those that did not fit.
    spelling: of CSV; None: as Arrow writes it.
    """

    index: int
    start: int
    table: pa.Table
    provenance: dict[str, Any]
    producer: str | None = None
    attempts: int = 0
    spelling: FileSpelling | None = None

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
    """One CSV file (RFC 4180) with a header; a missing value is an empty cell, an empty string is in quotes."""
    if rows.spelling is not None:
        return _put(rows, "csv", spelling.write(rows.table, rows.spelling), store)
    sink = pa.BufferOutputStream()
    options = pacsv.WriteOptions(quoting_style="needed")
    pacsv.write_csv(_without_dictionaries(rows.table), sink, options)
    return _put(rows, "csv", sink.getvalue().to_pybytes(), store)


def read_csv(record: FileRecord, data: bytes, store: Store) -> TableRead:
    """The rows, every column as strings; read as the manifest of the data set says that they are written."""
    return TableRead(None, spelling.read(data, _spelling_in(store) or FileSpelling()))


def spelling_of_files(manifest: Manifest) -> FileSpelling | None:
    """How the CSV files of a data set are written; None: as Arrow writes them."""
    if manifest.fields.get("generate.spelling", "source") != "source":
        return None
    return file_spelling(TableCodec.from_json(manifest.card["codec"]))


_spellings: WeakKeyDictionary[Store, FileSpelling | None] = WeakKeyDictionary()


def _spelling_in(store: Store) -> FileSpelling | None:
    """The spelling of the data set in a store, whose manifest is read once for all its files."""
    if store not in _spellings:
        try:
            _spellings[store] = spelling_of_files(Manifest.from_json(store.read("manifest.json")))
        except FileNotFoundError:
            return None
    return _spellings[store]


def retyped(table: pa.Table, schema: pa.Schema, own: FileSpelling | None = None) -> pa.Table:
    """Rows that were read back, from either kind of file, in the types of a schema.

    own: the spelling of the CSV that they are from.
    """
    if table.schema == schema:
        return table
    spellings = own.columns if own is not None else {}
    columns = [
        spelling.unspelled(table.column(f.name), f.type, spellings.get(f.name))
        if values.is_string(table.schema.field(f.name).type)
        else table.column(f.name).cast(f.type)
        for f in schema
    ]
    return pa.table(columns, schema=schema)


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
