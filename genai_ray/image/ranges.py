"""Parquet files of a source, opened where they lie: by memory map, or by range requests."""

import io
from functools import lru_cache
from typing import Any

import pyarrow.parquet as pq

from genai_ray.image.items import store_of
from genai_ray.storage import Store

_BUFFER = 1 << 20


def open_parquet(uri: str, key: str, size: int, version: str) -> pq.ParquetFile:
    """A file of a store, of a number of bytes and a version, by which its footer is kept."""
    return _opened(uri, key, size, footer(uri, key, size, version))


@lru_cache(maxsize=512)
def footer(uri: str, key: str, size: int, version: str) -> pq.FileMetaData:
    with _opened(uri, key, size) as file:
        return file.metadata


def _opened(uri: str, key: str, size: int, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    store = store_of(uri)
    source: Any = store.path(key) or Ranges(store, key, size)
    # Buffered, so that a column chunk is not read as a whole.
    return pq.ParquetFile(source, metadata=metadata, buffer_size=_BUFFER)


class Ranges(io.RawIOBase):
    """An object as a file; each read is one range request."""

    def __init__(self, store: Store, key: str, size: int):
        self._store, self._key, self._size, self._position = store, key, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        stop = self._size if size < 0 else min(self._size, self._position + size)
        data = self._store.read_range(self._key, self._position, stop)
        self._position += len(data)
        return data
