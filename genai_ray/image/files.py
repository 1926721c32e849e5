"""The items of a folder of images or of Parquet: names, sizes, labels and content.

An item is an image file or a row of Parquet; items are numbered in the order of object names and rows.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from genai_ray.errors import UserError
from genai_ray.image.spec import ImageDataSpec
from genai_ray.storage import Store

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
#: What Pillow raises for content that is not a whole image.
CORRUPT = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_READERS = 16
_ROWS_AT_ONCE = 32  # of Parquet, as photos may be large
_BUFFER = 1 << 20

Labels = tuple[NDArray[np.int64] | None, tuple[str, ...] | None]
Pieces = list[list[Any]]


@dataclass(frozen=True, eq=False)
class Source:
    """The items of a source, N of them.

    stamp: digest of object names, sizes and versions. nbytes: (N,) of each item, as stored. pieces: items start..stop
    as JSON values that `items` reads on any node. labelled: whether there are classes. labels: class numbers and names
    of the items of a mask (N,), or None and None.
    """

    stamp: str
    nbytes: NDArray[np.int64]
    pieces: Callable[[int, int], Pieces]
    labelled: bool
    labels: Callable[[NDArray[np.bool_]], Labels]


@dataclass(frozen=True)
class Item:
    """shape: (H, W, C) of raw pixels; None if the content is an image file."""

    name: str
    read: Callable[[], bytes | None]
    shape: tuple[int, ...] | None = None


def list_source(spec: ImageDataSpec) -> Source:
    """List a folder or Parquet; of its objects only footers are read.

    Raises:
        UserError: for a source that is missing, empty, or whose files do not fit together.
    """
    return (_folder if spec.source == "folder" else _parquet)(spec)


def items(spec: ImageDataSpec, pieces: Pieces) -> Iterator[Item]:
    """The items of some pieces in order. Raises UserError for unreadable Parquet, `Item.read` for an image."""
    if spec.source == "folder":
        yield from (Item(key, partial(_read_file, spec, key)) for (key,) in pieces)
    else:
        for piece in pieces:
            yield from _rows_of_group(spec, *piece)


def open_image(content: bytes | None, shape: tuple[int, ...] | None) -> Image.Image:
    """An image whose size is known and whose pixels may not be decoded yet; raises one of CORRUPT."""
    return raw_image(content, shape) if shape else Image.open(io.BytesIO(content or b""))


def raw_image(content: bytes | None, shape: tuple[int, ...]) -> Image.Image:
    """An image of raw pixels: uint8, or float32 in 0..1.

    Raises:
        ValueError: for another number of bytes, and for floats that are NaN or outside 0..1.
    """
    content, count = content or b"", int(np.prod(shape))
    if len(content) == 4 * count:
        floats = np.frombuffer(content, "<f4")
        wrong = ~((floats >= 0) & (floats <= 1))  # true of NaN as well
        if wrong.any():
            raise ValueError(f"{wrong.sum()} of {count} floats are not in 0..1, the first is {floats[wrong][0]}")
        content = np.rint(floats * 255).astype(np.uint8).tobytes()
    return Image.fromarray(np.frombuffer(content, np.uint8).reshape(shape).squeeze())


# --- folders -------------------------------------------------------------------------------------


def _folder(spec: ImageDataSpec) -> Source:
    listing = _listing(spec, _store(str(spec.root)))
    keys = [k for k in sorted(listing) if k.lower().endswith(SUFFIXES)]
    classes = _sub_folders(spec, keys)

    def labels(kept: NDArray[np.bool_]) -> Labels:
        if classes is None:
            return None, None
        index = {name: i for i, name in enumerate(classes)}
        return np.array([index[k.split("/")[0]] for k in keys], np.int64)[kept], classes

    nbytes = np.array([listing[k][0] for k in keys], np.int64)
    pieces = [[key] for key in keys]
    return Source(_stamp(listing, keys), nbytes, lambda a, b: pieces[a:b], classes is not None, labels)


def _sub_folders(spec: ImageDataSpec, keys: Sequence[str]) -> tuple[str, ...] | None:
    """The sub-folders that hold the images; None if the folder itself holds them.

    Raises:
        UserError: if there is no image, or there are both kinds.
    """
    if not keys:
        rule = f"must hold images ({', '.join(SUFFIXES)}), and holds none"
        raise _root_error(spec, rule, "Check the path; classes are sub-folders.")
    nested = [k for k in keys if "/" in k]
    if nested and len(nested) < len(keys):
        loose = next(k for k in keys if "/" not in k)
        rule = f"has images both beside ({loose}) and in ({nested[0]}) sub-folders"
        raise _root_error(spec, rule, "Put every image in the sub-folder of its class, or none.")
    return tuple(sorted({k.split("/")[0] for k in keys})) if nested else None


def _read_file(spec: ImageDataSpec, key: str) -> bytes:
    try:
        return _store(str(spec.root)).read(key)
    except FileNotFoundError as error:
        rule = f"must stay as it was, and be seen by every node ({error})"
        remedy = "Restore the file; on several nodes use an s3:// URI or a shared folder."
        raise _root_error(spec, rule, remedy) from None


# --- Parquet -------------------------------------------------------------------------------------


def _parquet(spec: ImageDataSpec) -> Source:
    store, name = _parquet_root(spec)
    listing = _listing(spec, store, name)
    keys = [k for k in sorted(listing) if k == name or (not name and k.endswith(".parquet"))]
    if name and not keys:
        raise _unreadable(spec, FileNotFoundError(f"there is no {spec.root}"))
    if not keys:
        raise _root_error(spec, "must hold .parquet files, and holds none", "Check the path.")
    files = [(key, *listing[key]) for key in keys]
    try:
        with ThreadPoolExecutor(_READERS) as pool:
            footers = list(pool.map(lambda file: _footer(store.uri, *file), files))
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(spec, error) from None
    schema = _common_schema(spec, keys, footers)
    column = _column_path(spec, schema)
    groups: Pieces = []
    nbytes: list[NDArray[np.int64]] = []
    for file, footer in zip(files, footers, strict=True):
        before = 0
        for index in range(footer.num_row_groups):
            group = footer.row_group(index)
            groups.append([*file, index, before, group.num_rows])
            nbytes.append(np.full(group.num_rows, _column_bytes(group, column) // max(1, group.num_rows)))
            before += group.num_rows
    ends = np.cumsum([rows for *_, rows in groups])
    if not len(ends) or not ends[-1]:
        raise _root_error(spec, "must hold rows, and holds none", "Check the path.")

    def pieces(start: int, stop: int) -> Pieces:
        first, last = np.searchsorted(ends, [start, stop - 1], "right")
        cut: Pieces = []
        for group in range(first, last + 1):
            *head, rows = groups[group]
            begin = int(ends[group]) - rows
            cut.append([*head, max(0, start - begin), min(rows, stop - begin)])
        return cut

    labels = partial(_label_column, spec, files, schema)
    return Source(_stamp(listing, keys), np.concatenate(nbytes), pieces, spec.label_column in schema.names, labels)


def _rows_of_group(
    spec: ImageDataSpec, key: str, size: int, version: str, group: int, before: int, start: int, stop: int
) -> Iterator[Item]:
    """Items of rows start..stop of a row group, which begins after `before` rows of the file."""
    try:
        with _parquet_file(spec, key, size, version) as file:
            shape, column = _raw_shape(spec, file.schema_arrow, key), _column_path(spec, file.schema_arrow)
            first = 0
            for batch in file.iter_batches(_ROWS_AT_ONCE, [group], [column], use_threads=False):
                for row, cell in enumerate(batch.column(0).to_pylist(), first):
                    content = cell["bytes"] if isinstance(cell, dict) else cell
                    if start <= row < stop:
                        yield Item(f"{key} row {before + row}", lambda content=content: content, shape)
                first += len(batch)
                if first >= stop:
                    return
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(spec, error) from None


def _parquet_root(spec: ImageDataSpec) -> tuple[Store, str]:
    """The store of the Parquet files, and the name of the only one to read; empty: all."""
    root = str(spec.root)
    if not root.endswith(".parquet"):
        return _store(root), ""
    root, _, name = root.rpartition("/")
    return _store(root or "."), name


def _common_schema(spec: ImageDataSpec, keys: list[str], footers: list[Any]) -> pa.Schema:
    schema = footers[0].schema.to_arrow_schema()
    shape = _raw_shape(spec, schema, keys[0])
    for key, footer in zip(keys, footers, strict=True):
        other = footer.schema.to_arrow_schema()
        if _raw_shape(spec, other, key) != shape:
            raise _root_error(spec, f"holds images in another form in {key}", "Keep files of one form together.")
        if other.get_field_index(spec.label_column) != schema.get_field_index(spec.label_column):
            raise _root_error(spec, f"has other columns in {key}", "Keep files of one schema together.")
    return schema


def _raw_shape(spec: ImageDataSpec, schema: pa.Schema, key: str) -> tuple[int, ...] | None:
    """(H, W, C) of the pixels in the image column; None if it holds image files.

    Raises:
        UserError: if there is no such column, or it holds something else.
    """
    remedy = f"Columns: {', '.join(schema.names)}."
    if spec.image_column not in schema.names:
        raise UserError("data.image_column", spec.image_column, f"is not a column of {key}", remedy)
    field = schema.field(spec.image_column)
    kind = field.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    raw = pa.types.is_fixed_size_binary(kind) and b"shape" in (field.metadata or {})
    if not (raw or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise UserError("data.image_column", spec.image_column, f"must hold images, and holds {field.type}", remedy)
    return tuple(json.loads(field.metadata[b"shape"])) if raw else None


def _column_path(spec: ImageDataSpec, schema: pa.Schema) -> str:
    inside = ".bytes" if pa.types.is_struct(schema.field(spec.image_column).type) else ""
    return spec.image_column + inside


def _column_bytes(group: Any, column: str) -> int:
    """Bytes of a column of a row group when it is read."""
    columns = (group.column(i) for i in range(group.num_columns))
    return sum(c.total_uncompressed_size for c in columns if c.path_in_schema == column)


def _label_column(
    spec: ImageDataSpec, files: list[tuple[str, int, str]], schema: pa.Schema, kept: NDArray[np.bool_]
) -> Labels:
    if spec.label_column not in schema.names:
        return None, None

    def column_of(file: tuple[str, int, str]) -> pa.ChunkedArray:
        with _parquet_file(spec, *file) as opened:
            return opened.read([spec.label_column], use_threads=False).column(0)

    with ThreadPoolExecutor(_READERS) as pool:
        columns = list(pool.map(column_of, files))
    values = pa.chunked_array([c for column in columns for c in column.chunks]).filter(pa.array(kept))
    if values.null_count:
        raise UserError("data.label_column", spec.label_column, "has empty cells", "Fill them, or name another column.")
    if (names := _class_names(spec, schema)) is not None:
        return values.to_numpy().astype(np.int64), names
    distinct = sorted(values.unique().to_pylist())
    index = {value: i for i, value in enumerate(distinct)}
    return np.array([index[v] for v in values.to_pylist()], np.int64), tuple(str(v) for v in distinct)


def _class_names(spec: ImageDataSpec, schema: pa.Schema) -> tuple[str, ...] | None:
    """Class names of the integers in the label column, if Hugging Face `datasets` wrote them into the schema."""
    hugging_face = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = hugging_face.get("info", {}).get("features", {}).get(spec.label_column, {})
    return tuple(feature["names"]) if "names" in feature else None


def _unreadable(spec: ImageDataSpec, error: Exception) -> UserError:
    return _root_error(spec, f"must be readable Parquet ({error})", "Check the file.")


def _root_error(spec: ImageDataSpec, rule: str, remedy: str) -> UserError:
    return UserError("data.root", spec.root, rule, remedy)


# --- objects in a store --------------------------------------------------------------------------


@lru_cache(maxsize=8)
def _store(uri: str) -> Store:
    """One connection per store and process."""
    return Store(uri, "data.root")


def _listing(spec: ImageDataSpec, store: Store, prefix: str = "") -> dict[str, tuple[int, str]]:
    listing, folder = store.listing(prefix), store.path()
    if folder is not None and not folder.is_dir():
        raise _root_error(spec, "must be a folder that exists", "Check the path.")
    return listing


def _stamp(listing: dict[str, tuple[int, str]], keys: list[str]) -> str:
    lines = (f"{key}\0{listing[key][0]}\0{listing[key][1]}\n" for key in keys)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class _Ranges(io.RawIOBase):
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


def _parquet_file(spec: ImageDataSpec, key: str, size: int, version: str) -> pq.ParquetFile:
    uri = _parquet_root(spec)[0].uri
    return _opened(uri, key, size, _footer(uri, key, size, version))


@lru_cache(maxsize=512)
def _footer(uri: str, key: str, size: int, version: str) -> pq.FileMetaData:
    with _opened(uri, key, size) as file:
        return file.metadata


def _opened(uri: str, key: str, size: int, footer: pq.FileMetaData | None = None) -> pq.ParquetFile:
    store = _store(uri)
    source: Any = store.path(key) or _Ranges(store, key, size)
    # Buffered, so that a column chunk is not read as a whole.
    return pq.ParquetFile(source, metadata=footer, buffer_size=_BUFFER)
