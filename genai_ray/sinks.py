"""How a shard becomes files. A sink is a function: (shard's rows, store) -> records of its files.

The name and the bytes of a file depend on the shard alone, so writing it again replaces it by the
same. Every file says inside that it is synthetic; a Parquet file also which model, seed and range
made it.
"""

import json
import re
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from isal import isal_zlib
from numpy.typing import NDArray

from genai_ray.data.image import ImageCodec
from genai_ray.provenance import DIGITAL_SOURCE_TYPE, FileRecord, xmp_packet
from genai_ray.storage import Store

_PUT_THREADS = 16
_ROW_GROUP_BYTES = 32 << 20
_ISAL_LEVEL = 1


@dataclass(frozen=True)
class Rows:
    """What a shard holds: samples start..start+N.

    images: (N, H, W, C) uint8. labels: (N,) int64, or None without classes.
    provenance: goes into every Parquet file as it is.
    """

    index: int
    start: int
    images: NDArray[np.uint8]
    labels: NDArray[np.int64] | None
    codec: ImageCodec
    encoding: str
    provenance: dict[str, Any]


def write_parquet(rows: Rows, store: Store) -> list[FileRecord]:
    """One file: id, label, image; opened as images by Hugging Face `datasets`."""
    count = len(rows.images)
    columns: dict[str, pa.Array] = {"id": pa.array(np.arange(rows.start, rows.start + count))}
    if rows.labels is not None:
        columns["label"] = pa.array(rows.labels)
    columns["image"] = _IMAGE_COLUMNS[rows.encoding](rows)
    schema = parquet_schema(rows.codec, rows.encoding, rows.labels is not None, rows.provenance)
    table = pa.Table.from_arrays(list(columns.values()), schema=schema)
    sink = pa.BufferOutputStream()
    plain = [name for name in table.column_names if name != "image"]
    options: Any = {
        # PNGs do not get smaller; statistics and dictionaries of blobs only cost space.
        "compression": {name: "zstd" for name in plain}
        | ({"image.bytes": "none", "image.path": "zstd"} if rows.encoding == "png"
           else {"image": "zstd"}),
        "use_dictionary": [name for name in plain if name != "id"],
        "write_statistics": plain,
    }  # fmt: skip
    groups = max(1, _ROW_GROUP_BYTES * count // max(1, table.nbytes))
    pq.write_table(table, sink, row_group_size=groups, **options)
    data = sink.getvalue().to_pybytes()
    path = f"data/part-{rows.index:06d}.parquet"
    store.put(path, data)
    return [FileRecord.of(path, count, data)]


def write_images(rows: Rows, store: Store) -> list[FileRecord]:
    """One PNG a sample, in a folder for each class: the layout of torchvision's ImageFolder."""
    folders = class_folders(rows.codec) if rows.labels is not None else ["all"]
    labels = rows.labels if rows.labels is not None else np.zeros(len(rows.images), np.int64)
    files = [
        (f"data/{folders[label]}/{rows.start + i:012d}.png", png)
        for i, (label, png) in enumerate(zip(labels, encode_png(rows.images), strict=True))
    ]
    with ThreadPoolExecutor(_PUT_THREADS) as pool:
        list(pool.map(lambda file: store.put(*file), files))
    return [FileRecord.of(path, 1, data) for path, data in files]


def discard(rows: Rows, store: Store) -> list[FileRecord]:
    """Nothing is written: for benchmarks of what comes before."""
    return []


SINKS: dict[str, Callable[[Rows, Store], list[FileRecord]]] = {
    "parquet": write_parquet,
    "images": write_images,
    "discard": discard,
}


def parquet_schema(
    codec: ImageCodec, encoding: str, labelled: bool, provenance: dict[str, Any]
) -> pa.Schema:
    """The columns of a data set, with what `datasets` and our own reader need to know of them."""
    # Nullable all: `datasets` believes the metadata below only if fields equal its own.
    fields = [pa.field("id", pa.int64())]
    features: dict[str, Any] = {"id": {"dtype": "int64", "_type": "Value"}}
    if labelled:
        fields.append(pa.field("label", pa.int64()))
        features["label"] = {"names": list(codec.classes or ()), "_type": "ClassLabel"}
    if encoding == "png":
        parts = [pa.field("bytes", pa.binary()), pa.field("path", pa.string())]
        fields.append(pa.field("image", pa.struct(parts)))
        features["image"] = {"_type": "Image"}
    else:
        shape = (codec.size, codec.size, codec.channels)
        about = {"shape": json.dumps(shape), "dtype": "uint8"}
        width = codec.size * codec.size * codec.channels
        fields.append(pa.field("image", pa.binary(width), metadata=about))
        features["image"] = {"dtype": "binary", "_type": "Value"}
    metadata = {
        "huggingface": json.dumps({"info": {"features": features}}),
        "genai_ray": json.dumps(provenance, sort_keys=True),
        "DigitalSourceType": DIGITAL_SOURCE_TYPE,
    }
    return pa.schema(fields, metadata=metadata)


def class_folders(codec: ImageCodec) -> list[str]:
    """A folder name for each class: letters, digits and `._-`, distinct."""
    names = [re.sub(r"[^\w.-]+", "-", name) for name in codec.classes or ()]
    if len(set(names)) < len(names) or any(not name.strip(".") for name in names):
        names = [f"{i}-{name}" for i, name in enumerate(names)]
    return names


def _png_column(rows: Rows) -> pa.Array:
    pngs = encode_png(rows.images)
    paths = [f"{i:012d}.png" for i in range(rows.start, rows.start + len(pngs))]
    return pa.StructArray.from_arrays(
        [pa.array(pngs, pa.binary()), pa.array(paths, pa.string())], ["bytes", "path"]
    )


def _raw_column(rows: Rows) -> pa.Array:
    flat = np.ascontiguousarray(rows.images).reshape(len(rows.images), -1)
    buffers = [None, pa.py_buffer(flat)]
    return pa.Array.from_buffers(pa.binary(flat.shape[1]), len(flat), buffers)


_IMAGE_COLUMNS = {"png": _png_column, "raw": _raw_column}


def encode_png(images: NDArray[np.uint8]) -> list[bytes]:
    """PNG files of a batch (N, H, W, C), with an XMP packet that says they are synthetic.

    Rows are filtered by Up (PNG specification, section 9), one subtraction for the whole batch, and
    deflated by ISA-L, which on small images is several times faster than zlib.
    """
    n, height, width, channels = images.shape
    rows = images.reshape(n, height, width * channels)
    filtered = np.empty((n, height, 1 + width * channels), np.uint8)
    filtered[:, :, 0] = 2  # filter type Up; above the first row are zeros
    filtered[:, 0, 1:] = rows[:, 0]
    np.subtract(rows[:, 1:], rows[:, :-1], out=filtered[:, 1:, 1:])
    color_type = {1: 0, 3: 2}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8, color_type, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _XMP
    compress, crc32, join = isal_zlib.compress, isal_zlib.crc32, b"".join
    tag_crc = crc32(b"IDAT")
    pngs = []
    # Slices of one memoryview cost less than rows of an array.
    pixels, step = filtered.data.cast("B"), filtered[0].size
    for at in range(0, n * step, step):
        body = compress(pixels[at : at + step], _ISAL_LEVEL)
        crc = crc32(body, tag_crc)
        size = len(body).to_bytes(4, "big")
        pngs.append(join((start, size, b"IDAT", body, crc.to_bytes(4, "big"), _END)))
    return pngs


def _chunk(tag: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))


#: iTXt chunk of the XMP packet: keyword, no compression, no language (XMP specification part 3).
_XMP = _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp_packet())
_END = _chunk(b"IEND", b"")
