"""One tar file per shard, in the WebDataset layout: the files of a sample are adjacent.

Written by hand in the ustar format, since Python's tarfile takes longer for a header than an image takes to encode. The
bytes are those that tarfile would write, without times and owners.
"""

import base64
import datetime
import io
import json
import math
import tarfile
from typing import Any

import numpy as np

from genai_ray.image.encoding import encode
from genai_ray.image.rows import RESERVED, SUFFIXES, ImageRead, ImageRows
from genai_ray.labels import DIGITAL_SOURCE_TYPE, produce_id
from genai_ray.modality import Sink
from genai_ray.provenance import FileRecord
from genai_ray.storage import Store

#: The constant parts of a header: mode, owner and group; then time; then the rest.
_OWNER = b"0000644\0" + b"0000000\0" * 2
_TIME = b"00000000000\0"
_REST = b"0" + bytes(100) + b"ustar\00000" + bytes(64 + 16 + 155 + 12)
_SUM = sum(_OWNER) + sum(_TIME) + 8 * ord(" ") + sum(_REST)
_END = 10_240


def write_webdataset(rows: ImageRows, store: Store) -> list[FileRecord]:
    """`<id>.png`, `<id>.cls` with the class as a number if there is one, and `<id>.json`."""
    suffix = SUFFIXES[rows.encoding]
    labels = None if rows.labels is None else rows.labels.tolist()
    members: list[bytes] = []
    files = zip(rows.keys, encode(rows), _sample_jsons(rows), strict=True)
    for i, (key, file, sample_json) in enumerate(files):
        members += _member(f"{key}.{suffix}", file)
        if labels is not None:
            members += _member(f"{key}.cls", str(labels[i]).encode())
        members += _member(f"{key}.json", sample_json)
    size = 1024 + sum(map(len, members))
    data = b"".join([*members, bytes(1024 + -size % _END)])
    path = f"data/part-{rows.index:06d}.tar"
    store.put(path, data)
    return [FileRecord.of(path, len(rows.images), data)]


def read_webdataset(record: FileRecord, data: bytes, store: Store) -> ImageRead:
    ids, labels, cells = [], [], []
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            key, _, kind = member.name.partition(".")
            content = tar.extractfile(member)
            assert content is not None, "all members are files"
            if kind == "cls":
                labels.append(int(content.read()))
            elif kind != "json":
                ids.append(int(key))
                cells.append(content.read())
    return ImageRead(np.array(ids, np.int64), np.array(labels, np.int64) if labels else None, cells)


def _member(name: str, data: bytes) -> tuple[bytes, bytes, bytes]:
    """Header, content and padding of a file."""
    # ASCII names of 18 characters, and sizes under 8 GiB.
    title, size = name.encode().ljust(100, b"\0"), b"%011o\0" % len(data)
    total = _SUM + sum(title) + sum(size)
    header = b"".join((title, _OWNER, size, _TIME, b"%06o\0 " % total, _REST))
    return header, data, bytes(-len(data) % 512)


def _sample_jsons(rows: ImageRows) -> list[bytes]:
    provenance = {k: rows.provenance[k] for k in ("model", "seed", "fingerprint") if k in rows.provenance}
    provenance["DigitalSourceType"] = DIGITAL_SOURCE_TYPE
    extra = [{}] * len(rows.images) if rows.extra is None else rows.extra.to_pylist()
    names = rows.codec.classes
    jsons = []
    for i, (key, columns) in enumerate(zip(rows.keys, extra, strict=True)):
        sample: dict[str, Any] = {"id": rows.start + i}
        if rows.labels is not None and names:
            sample["label"] = names[rows.labels[i]]
        sample |= {name: _json_value(value) for name, value in columns.items()}
        sample["provenance"] = dict(provenance)
        if rows.producer is not None:
            sample["provenance"]["ProduceID"] = produce_id(rows.provenance, key)
        jsons.append(json.dumps(sample, separators=(",", ":")).encode())
    return jsons


def _json_value(value: Any) -> Any:
    """A value as JSON has it: null for NaN and infinity, a string for dates, base64 for bytes."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {name: _json_value(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_json_value(v) for v in value]
    return value.isoformat() if isinstance(value, (datetime.date, datetime.time)) else str(value)


WEBDATASET: Sink[ImageRows] = Sink(write=write_webdataset, read=read_webdataset, reserved=RESERVED | {"provenance"})
