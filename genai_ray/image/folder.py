"""One object per image, and one table of them per shard: the ImageFolder of Hugging Face.

The table is written after its images and is the one file that the shard records, so that receipts and manifest stay
small; it holds the SHA-256 of each image.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from genai_ray.image.encoding import encode
from genai_ray.image.parquet import labels_of, plain_columns, plain_fields, schema_metadata
from genai_ray.image.rows import RESERVED, SUFFIXES, ImageRead, ImageRows, class_folders
from genai_ray.labels import with_label
from genai_ray.modality import Sink
from genai_ray.provenance import FileRecord
from genai_ray.storage import Store

_THREADS = 16
#: As `datasets` expects it.
TABLE = "metadata.parquet"


def write_images(rows: ImageRows, store: Store) -> list[FileRecord]:
    """`part-000000/<class>/<id>.png`, and `metadata.parquet` beside the folders of classes."""
    folders = class_folders(rows.codec) if rows.labels is not None else ["all"]
    labels = np.zeros(len(rows.images), np.int64) if rows.labels is None else rows.labels
    suffix, base = SUFFIXES[rows.encoding], f"data/part-{rows.index:06d}"
    names = [f"{folders[label]}/{key}.{suffix}" for key, label in zip(rows.keys, labels, strict=True)]
    files = encode(rows)
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(lambda name, file: store.put(f"{base}/{name}", file), names, files))
    data = _table(rows, names, files)
    store.put(f"{base}/{TABLE}", data)
    return [FileRecord.of(f"{base}/{TABLE}", len(files), data)]


def listed(record: FileRecord, data: bytes) -> Iterator[tuple[str, str, int]]:
    """(path in the data set, SHA-256, bytes) of each image that a table names."""
    table = pq.read_table(pa.BufferReader(data), columns=["file_name", "sha256", "bytes"])
    base = record.path.removesuffix(TABLE)
    for name, digest, size in zip(*(column.to_pylist() for column in table.columns), strict=True):
        yield base + name, digest, size


def read_images(record: FileRecord, data: bytes, store: Store) -> ImageRead:
    """Ids, labels and images of a table. Raises ValueError if an image is missing or altered."""
    table = pq.read_table(pa.BufferReader(data))
    with ThreadPoolExecutor(_THREADS) as pool:
        cells = list(pool.map(lambda image: _read(store, *image[:2]), listed(record, data)))
    return ImageRead(table["id"].to_numpy(), labels_of(table), cells)


def _read(store: Store, path: str, digest: str) -> bytes:
    try:
        data = store.read(path)
    except FileNotFoundError:
        raise ValueError(f"{store.uri}/{path} is missing") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{store.uri}/{path} is not what its table says (SHA-256 differs)")
    return data


def _table(rows: ImageRows, names: list[str], files: list[bytes]) -> bytes:
    extra = None if rows.extra is None else rows.extra.schema
    fields, features = plain_fields(rows.codec, rows.labels is not None, extra)
    columns = {
        "file_name": pa.array(names, pa.string()),
        **plain_columns(rows),
        "bytes": pa.array([len(file) for file in files], pa.int64()),
        "sha256": pa.array([hashlib.sha256(file).hexdigest() for file in files], pa.string()),
    }
    name, size, digest = (pa.field(name, columns[name].type) for name in ("file_name", "bytes", "sha256"))
    fields = [name, *fields, size, digest]
    string, integer = ({"dtype": dtype, "_type": "Value"} for dtype in ("string", "int64"))
    features = {"file_name": string, **features, "bytes": integer, "sha256": string}
    schema = pa.schema(fields, metadata=schema_metadata(features, rows.provenance))
    table = pa.Table.from_arrays(list(columns.values()), schema=with_label(schema, rows.producer, rows.part_id))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


IMAGES: Sink[ImageRows] = Sink(
    write=write_images,
    read=read_images,
    objects=listed,
    files=lambda rows: rows + 1,
    # `datasets` treats file_names as images, too.
    reserved=RESERVED | {"file_name", "file_names", "bytes", "sha256"},
)
