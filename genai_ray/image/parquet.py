"""One Parquet file per shard: columns id, label, those of the conditions, image."""

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from genai_ray.image.codec import ImageCodec
from genai_ray.image.encoding import encode
from genai_ray.image.rows import RESERVED, SUFFIXES, ImageRead, ImageRows
from genai_ray.labels import DIGITAL_SOURCE_TYPE, with_label
from genai_ray.modality import Sink
from genai_ray.provenance import FileRecord
from genai_ray.storage import Store

_ROW_GROUP_BYTES = 32 << 20


def write_parquet(rows: ImageRows, store: Store) -> list[FileRecord]:
    """One file, which Hugging Face `datasets` opens as images."""
    columns = plain_columns(rows)
    names = [name for name in columns if name != "id"]
    raw = rows.encoding == "raw"
    columns["image"] = _raw_column(rows) if raw else _file_column(rows)
    compression = {"image": "zstd"} if raw else {"image.bytes": "none", "image.path": "zstd"}
    extra = None if rows.extra is None else rows.extra.schema
    schema = parquet_schema(rows.codec, rows.encoding, rows.labels is not None, rows.provenance, extra)
    table = pa.Table.from_arrays(list(columns.values()), schema=with_label(schema, rows.producer, rows.part_id))
    options: Any = {
        # Image files do not compress further; statistics and dictionaries of blobs only cost space.
        "compression": dict.fromkeys(["id", *names], "zstd") | compression,
        "use_dictionary": names,
        "write_statistics": ["id", *names],
    }
    count = len(rows.images)
    group_rows = max(1, _ROW_GROUP_BYTES * count // max(1, table.nbytes))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=group_rows, **options)
    data = sink.getvalue().to_pybytes()
    path = f"data/part-{rows.index:06d}.parquet"
    store.put(path, data)
    return [FileRecord.of(path, count, data)]


def read_parquet(record: FileRecord, data: bytes, store: Store) -> ImageRead:
    table = pq.read_table(pa.BufferReader(data))
    column = table["image"].combine_chunks()
    raw = not pa.types.is_struct(column.type)
    cells = column if raw else column.field("bytes")
    return ImageRead(table["id"].to_numpy(), labels_of(table), cells.to_pylist(), raw)


def labels_of(table: pa.Table) -> NDArray[np.int64] | None:
    return table["label"].to_numpy() if "label" in table.column_names else None


def parquet_schema(
    codec: ImageCodec, encoding: str, labelled: bool, provenance: dict[str, Any], extra: pa.Schema | None = None
) -> pa.Schema:
    """The columns of a data set, with the metadata that `datasets` and our own reader need."""
    fields, features = plain_fields(codec, labelled, extra)
    if encoding == "raw":
        shape = (codec.size, codec.size, codec.channels)
        metadata = {"shape": json.dumps(shape), "dtype": "uint8"}
        fields.append(pa.field("image", pa.binary(math.prod(shape)), metadata=metadata))
        features["image"] = {"dtype": "binary", "_type": "Value"}
    else:
        parts = [pa.field("bytes", pa.binary()), pa.field("path", pa.string())]
        fields.append(pa.field("image", pa.struct(parts)))
        features["image"] = {"_type": "Image"}
    return pa.schema(fields, metadata=schema_metadata(features, provenance))


def plain_columns(rows: ImageRows) -> dict[str, pa.Array | pa.ChunkedArray]:
    """All columns but the image, by name."""
    columns: dict[str, Any] = {"id": pa.array(np.asarray(rows.ids, np.int64))}
    if rows.labels is not None:
        columns["label"] = pa.array(rows.labels)
    if rows.extra is not None:
        columns |= zip(rows.extra.column_names, rows.extra.columns, strict=True)
    return columns


def plain_fields(codec: ImageCodec, labelled: bool, extra: pa.Schema | None) -> tuple[list[pa.Field], dict[str, Any]]:
    """Fields of all columns but the image, and their features for Hugging Face `datasets`."""
    # All nullable: `datasets` uses the metadata below only if fields equal its own.
    fields = [pa.field("id", pa.int64())]
    features: dict[str, Any] = {"id": {"dtype": "int64", "_type": "Value"}}
    if labelled:
        fields.append(pa.field("label", pa.int64()))
        features["label"] = {"names": list(codec.classes or ()), "_type": "ClassLabel"}
    for field in extra or ():
        # Without the metadata of the source file, such as field numbers.
        fields.append(pa.field(field.name, field.type))
        features[field.name] = _feature(field.type)
    return fields, features


def schema_metadata(features: dict[str, Any], provenance: dict[str, Any]) -> dict[str, str]:
    """Key-value metadata of a Parquet file; without features if `datasets` has no name for one of them."""
    metadata = {"genai_ray": json.dumps(provenance, sort_keys=True), "DigitalSourceType": DIGITAL_SOURCE_TYPE}
    if all(features.values()):
        # First, as in files of earlier versions.
        metadata = {"huggingface": json.dumps({"info": {"features": features}})} | metadata
    return metadata


def _feature(kind: pa.DataType) -> dict[str, str] | None:
    """A type as `datasets` writes it; None for nested and other types."""
    names = {pa.float16(): "float16", pa.float32(): "float32", pa.float64(): "float64"}
    names |= {pa.date32(): "date32", pa.date64(): "date64"}
    t = pa.types
    same = (t.is_integer, t.is_boolean, t.is_string, t.is_large_string, t.is_timestamp, t.is_time)
    if kind not in names and not any(f(kind) for f in same):
        return None
    return {"dtype": names.get(kind, str(kind)), "_type": "Value"}


def _file_column(rows: ImageRows) -> pa.Array:
    suffix = SUFFIXES[rows.encoding]
    paths = pa.array([f"{key}.{suffix}" for key in rows.keys], pa.string())
    return pa.StructArray.from_arrays([pa.array(encode(rows), pa.binary()), paths], ["bytes", "path"])


def _raw_column(rows: ImageRows) -> pa.Array:
    flat = np.ascontiguousarray(rows.images).reshape(len(rows.images), -1)
    return pa.Array.from_buffers(pa.binary(flat.shape[1]), len(flat), [None, pa.py_buffer(flat)])


PARQUET: Sink[ImageRows] = Sink(write=write_parquet, read=read_parquet, columns=True, reserved=RESERVED)
