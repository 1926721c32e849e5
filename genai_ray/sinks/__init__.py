"""How a shard becomes files. A sink is a function: (shard's rows, store) -> records of its files.

The name and the bytes of a file depend on the shard alone, so writing it again replaces it by the
same. Every file but CSV says inside that it is synthetic; a Parquet file also which model, seed
and range made it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from genai_ray.provenance import FileRecord
from genai_ray.sinks.encoding import Stamp, decode, encode, encode_jpeg, encode_png, encode_webp
from genai_ray.sinks.iceberg import check_iceberg, commit_iceberg
from genai_ray.sinks.images import TABLE, listed, read_images, write_images
from genai_ray.sinks.parquet import parquet_schema, read_parquet, write_parquet
from genai_ray.sinks.rows import SUFFIXES, Read, Rows, TableRows, class_folders
from genai_ray.sinks.table import read_csv, read_table, retyped, write_csv, write_table
from genai_ray.sinks.webdataset import read_webdataset, write_webdataset
from genai_ray.storage import Store

__all__ = [
    "RESERVED",
    "SINKS",
    "SUFFIXES",
    "Read",
    "Rows",
    "Stamp",
    "TableRows",
    "check_iceberg",
    "class_folders",
    "commit_iceberg",
    "decode",
    "discard",
    "encode",
    "encode_jpeg",
    "encode_png",
    "encode_webp",
    "objects",
    "parquet_schema",
    "read",
    "retyped",
    "write_images",
    "write_parquet",
    "write_webdataset",
]


def discard(rows: Rows | TableRows, store: Store) -> list[FileRecord]:
    """Nothing is written: for benchmarks of what comes before."""
    return []


#: modality -> name in the spec -> sink
SINKS: dict[str, dict[str, Callable[..., list[FileRecord]]]] = {
    "image": {
        "parquet": write_parquet,
        "images": write_images,
        "webdataset": write_webdataset,
        # The files are those of Parquet; the table learns of them once, by `commit_iceberg`.
        "iceberg": write_parquet,
        "discard": discard,
    },
    "table": {"parquet": write_table, "csv": write_csv, "iceberg": write_table, "discard": discard},
}

_RESERVED = frozenset({"id", "label", "image"})
#: Names of columns that are ours in the image files of a sink: no further column may have them.
RESERVED: dict[str, frozenset[str]] = {
    **dict.fromkeys(SINKS["image"], _RESERVED),
    # `datasets` takes file_names for images, too.
    "images": _RESERVED | {"file_name", "file_names", "bytes", "sha256"},
    "webdataset": _RESERVED | {"provenance"},
}


def read(record: FileRecord | Mapping[str, Any], data: bytes, store: Store) -> Read:
    """What a file that a manifest names holds.

    Args:
        record: its record; the path says of which sink it is.
        data: its bytes, already compared with the record.
        store: of the data set; images that the file only lists are read from there.

    Raises:
        ValueError: if a listed image is missing or was altered.
    """
    path = _path(record)
    if path.endswith(f"/{TABLE}"):
        return Read(*read_images(path, data, store))
    if path.endswith(".tar"):
        return Read(*read_webdataset(data))
    if path.endswith(".csv"):
        return Read(None, None, [], read_csv(data))
    table = read_table(data)
    return Read(*read_parquet(data)) if table is None else Read(table[0], None, [], table[1])


def objects(record: FileRecord | Mapping[str, Any], data: bytes) -> Iterator[tuple[str, str, int]]:
    """(path in the data set, SHA-256, bytes) of each object that a file lists beside itself."""
    path = _path(record)
    if path.endswith(f"/{TABLE}"):
        yield from listed(path, data)


def _path(record: FileRecord | Mapping[str, Any]) -> str:
    return record.path if isinstance(record, FileRecord) else record["path"]
