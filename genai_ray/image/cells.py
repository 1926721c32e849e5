"""The items of Parquet files: rows with an image in one column and, if there are classes, a label in another."""

import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from genai_ray.errors import UserError
from genai_ray.hive import columns_in_path
from genai_ray.image.items import (
    FETCH,
    POINTER,
    Item,
    Labels,
    NoImageError,
    Pieces,
    Source,
    listed,
    root_error,
    stamp,
    store_of,
)
from genai_ray.image.listing import NO_LABELS, choose_parquet, numbers_if_all
from genai_ray.image.ranges import footer, open_parquet
from genai_ray.image.spec import ImageDataSpec
from genai_ray.modality import Json
from genai_ray.spec import assignment
from genai_ray.storage import Store

_READERS = 16
_ROWS_AT_ONCE = 32  # as photos may be large

#: Key, bytes and version of a file.
File = tuple[str, int, str]


def parquet_source(spec: ImageDataSpec) -> Source:
    """List Parquet files; only their footers are read.

    Raises:
        UserError: for files that are not Parquet, or do not fit together.
    """
    store, name = _root(spec)
    objects, lost = listed(spec, store, name)
    if name:
        objects, lost = {key: about for key, about in objects.items() if key == name}, []
    if name and not objects:
        raise _unreadable(spec, FileNotFoundError(f"there is no {spec.root}"))

    def lacking(keys: Sequence[str]) -> str:
        some = [(key, *objects[key]) for key in keys]
        return "" if _LabelColumn(spec, some, _footers(spec, store, some)).any_label() else NO_LABELS

    chosen = choose_parquet(spec, objects, lost, lacking)
    files = [(key, *objects[key]) for key in chosen.keys]
    footers = _footers(spec, store, files)
    columns = _image_columns(spec, _common_schema(spec, files, footers))
    groups: Pieces = []
    nbytes: list[NDArray[np.int64]] = []
    for file, about in zip(files, footers, strict=True):
        before = 0
        for index in range(about.num_row_groups):
            group = about.row_group(index)
            groups.append([*file, index, before, group.num_rows])
            nbytes.append(np.full(group.num_rows, _column_bytes(group, columns[0]) // max(1, group.num_rows)))
            before += group.num_rows
    ends = np.cumsum([rows for *_, rows in groups])
    if not len(ends) or not ends[-1]:
        raise root_error(spec, "must hold rows, and holds none", "Check the path.")

    def pieces(start: int, stop: int) -> Pieces:
        first, last = np.searchsorted(ends, [start, stop - 1], "right")
        cut: Pieces = []
        for group in range(first, last + 1):
            *head, rows = groups[group]
            begin = int(ends[group]) - rows
            cut.append([*head, max(0, start - begin), min(rows, stop - begin)])
        return cut

    column = _LabelColumn(spec, files, footers)
    trained = sum(footer.num_rows for footer in footers[: len(chosen.train)])
    return Source(
        stamp=stamp(objects, chosen.keys),
        nbytes=np.concatenate(nbytes),
        pieces=pieces,
        labelled=column.there,
        labels=column.labels,
        columns=column.candidates,
        trained=None if chosen.holdout is None else trained,
        chosen=chosen,
    )


def parquet_items(spec: ImageDataSpec, piece: Sequence[Any]) -> Iterator[Item]:
    """The items of a piece: file, row group, rows of the file before it, and which of its rows."""
    key, size, version, group, before, start, stop = piece
    try:
        with open_parquet(_root(spec)[0].uri, key, size, version) as file:
            schema = file.schema_arrow
            shape, columns = _raw_shape(spec, schema, key), _image_columns(spec, schema)
            first = 0
            for batch in file.iter_batches(_ROWS_AT_ONCE, [group], columns, use_threads=False):
                for row, cell in enumerate(batch.column(0).to_pylist(), first):
                    if start <= row < stop:
                        yield Item(f"{key} row {before + row}", partial(_content, spec, key, cell), shape)
                first += len(batch)
                if first >= stop:
                    return
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(spec, error) from None


def _content(spec: ImageDataSpec, key: str, cell: Any) -> bytes:
    """The bytes of a cell, or of the file beside the Parquet file that it names.

    Raises:
        NoImageError: if there are none.
    """
    parts: dict[str, Any] = cell if isinstance(cell, dict) else {"bytes": cell}
    if parts["bytes"]:
        return parts["bytes"]
    path = parts.get("path")
    if not path:
        raise NoImageError("the cell is empty", "Remove the row, or set data.on_corrupt=skip to leave such rows out.")
    store, _ = _root(spec)
    beside = PurePosixPath(key).parent / path
    if not beside.is_absolute() and ".." not in beside.parts:
        try:
            return store.read(str(beside))
        except FileNotFoundError:
            pass
    raise NoImageError(
        f"the cell has no bytes, only the path {path!r}, and there is no such file beside {key}",
        "Put the files there, or write their bytes into the cells; data.on_corrupt=skip leaves such rows out.",
    )


# --- schemas -------------------------------------------------------------------------------------


def image_column_of(schema: pa.Schema) -> str | None:
    """The first column that is made to hold images: as Hugging Face `datasets` writes them, or as we write pixels."""
    features = _features(schema)
    for field in schema:
        kind = field.type
        named = isinstance(features.get(field.name), dict) and features[field.name].get("_type") == "Image"
        both = pa.types.is_struct(kind) and "bytes" in {f.name for f in kind} <= {"bytes", "path"}
        raw = pa.types.is_fixed_size_binary(kind) and b"shape" in (field.metadata or {})
        if named or both or raw:
            return field.name
    return None


def described(store: Store, file: File) -> Json:
    """Keys of the `data` section that name the columns of images and labels in a file; empty if it has no images.

    Raises:
        OSError, ArrowInvalid: if it is not Parquet.
    """
    schema = footer(store.uri, *file).schema.to_arrow_schema()
    column = image_column_of(schema)
    if column is None:
        binary = (f.name for f in schema if pa.types.is_binary(f.type) or pa.types.is_large_binary(f.type))
        with open_parquet(store.uri, *file) as opened:
            column = next((name for name in binary if _begins_with_an_image(opened, name)), None)
    if column is None:
        return {}
    classes = (name for name, feature in _features(schema).items() if isinstance(feature, dict) and "names" in feature)
    label = "label" if "label" in schema.names else next(classes, "label")
    return {"image_column": column, "label_column": label}


def _begins_with_an_image(file: pq.ParquetFile, column: str) -> bool:
    first = next(file.iter_batches(1, columns=[column]), None)
    content = first.column(0)[0].as_py() if first is not None and len(first) else None
    try:
        Image.open(io.BytesIO(content or b""))
    except UnidentifiedImageError:
        return False
    return True


def _root(spec: ImageDataSpec) -> tuple[Store, str]:
    """The store of the Parquet files, and the name of the only one to read; empty: all."""
    uri, name = _place(str(spec.root))
    return store_of(uri), name


@lru_cache(maxsize=8)
def _place(root: str) -> tuple[str, str]:
    folder, _, name = root.rstrip("/").rpartition("/")
    store = store_of(folder or ("/" if root.startswith("/") else "."))
    # Spark gives folders such names, too.
    is_file = name.lower().endswith(".parquet") and (store.exists(name) or not store.listing(f"{name}/"))
    return (store.uri, name) if is_file else (root, "")


def _common_schema(spec: ImageDataSpec, files: Sequence[File], footers: Sequence[pq.FileMetaData]) -> pa.Schema:
    schemas = [footer.schema.to_arrow_schema() for footer in footers]
    for (key, *_), schema in zip(files, schemas, strict=True):
        if any(schema.names.count(name) > 1 for name in (spec.image_column, spec.label_column)):
            raise root_error(spec, f"has two columns of one name in {key}", "Rename one of them, and write it again.")
    shape = _raw_shape(spec, schemas[0], files[0][0])
    for (key, *_), schema in zip(files, schemas, strict=True):
        if _raw_shape(spec, schema, key) != shape:
            raise root_error(spec, f"holds images in another form in {key}", "Keep files of one form together.")
        if (spec.label_column in schema.names) != (spec.label_column in schemas[0].names):
            raise root_error(spec, f"has other columns in {key}", "Keep files of one schema together.")
    return schemas[0]


def _raw_shape(spec: ImageDataSpec, schema: pa.Schema, key: str) -> tuple[int, ...] | None:
    """(H, W, C) of the pixels in the image column; None if it holds image files.

    Raises:
        UserError: if there is no such column, or it holds something else.
    """
    guess = image_column_of(schema)
    remedy = f"Columns: {', '.join(schema.names)}."
    if guess is not None and guess != spec.image_column:
        remedy += f" Set {assignment(('data', 'image_column'), guess)}."
    if spec.image_column not in schema.names:
        raise UserError("data.image_column", spec.image_column, f"is not a column of {key}", remedy)
    field = schema.field(spec.image_column)
    kind = field.type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    raw = pa.types.is_fixed_size_binary(kind) and b"shape" in (field.metadata or {})
    # A column of nothing but paths has no type for its bytes.
    if not (raw or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_null(kind)):
        raise UserError("data.image_column", spec.image_column, f"must hold images, and holds {field.type}", remedy)
    return tuple(json.loads(field.metadata[b"shape"])) if raw else None


def _image_columns(spec: ImageDataSpec, schema: pa.Schema) -> list[str]:
    """The columns of the image as they are stored; the first has the bytes."""
    kind = schema.field(spec.image_column).type
    if not pa.types.is_struct(kind):
        return [spec.image_column]
    return [f"{spec.image_column}.{part}" for part in ("bytes", "path") if kind.get_field_index(part) >= 0]


def _column_bytes(group: Any, column: str) -> int:
    """Bytes of a column of a row group when it is read."""
    columns = (group.column(i) for i in range(group.num_columns))
    return sum(c.total_uncompressed_size for c in columns if c.path_in_schema == column)


def _features(schema: pa.Schema) -> dict[str, Any]:
    """What Hugging Face `datasets` wrote of the columns into the schema."""
    return json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})


# --- labels --------------------------------------------------------------------------------------


class _LabelColumn:
    """The labels of some files: a column, or folders such as `label=cat`.

    there: whether there are any. names: of classes, if `datasets` wrote them. candidates: columns that could be meant.

    Raises:
        UserError: for a column that the spec names and no file has, or whose types or names differ between files.
    """

    def __init__(self, spec: ImageDataSpec, files: Sequence[File], footers: Sequence[pq.FileMetaData]):
        self.spec, self.files = spec, files
        self.rows = [footer.num_rows for footer in footers]
        schemas = [footer.schema.to_arrow_schema() for footer in footers]
        self.in_files = all(spec.label_column in schema.names for schema in schemas)
        self.folders = [columns_in_path(key).get(spec.label_column or "") for key, *_ in files]
        self.candidates = tuple(dict.fromkeys((*schemas[0].names, *columns_in_path(files[0][0]))))
        self.there = self.in_files or any(label is not None for label in self.folders)
        self.names: tuple[str, ...] | None = None
        if self.in_files:
            self._check(schemas)
        elif not self.there and spec.label_column not in (None, type(spec).model_fields["label_column"].default):
            remedy = f"Columns: {', '.join(self.candidates)}."
            raise UserError("data.label_column", spec.label_column, f"is not a column of {files[0][0]}", remedy)

    def _check(self, schemas: Sequence[pa.Schema]) -> None:
        seen: tuple[str, str, pa.DataType] | None = None
        named_in = ""
        for (key, *_), schema in zip(self.files, schemas, strict=True):
            kind = schema.field(self.spec.label_column).type
            what = _label_kind(kind)
            if what is None:
                rule = f"must hold strings or whole numbers, and holds {kind} in {key}"
                remedy = (
                    "Name another column, or set data.label_column=null and model.conditional=false to learn without."
                )
                raise UserError("data.label_column", self.spec.label_column, rule, remedy)
            if what != "nothing" and seen is not None and seen[0] != what:
                raise self._error(f"holds {what} ({kind}) in {key}, and {seen[0]} ({seen[2]}) in {seen[1]}")
            seen = (what, key, kind) if seen is None and what != "nothing" else seen
            names = _features(schema).get(self.spec.label_column or "", {}).get("names")
            if names is None or what != "whole numbers":
                continue
            if self.names is not None and self.names != tuple(names):
                raise self._error(f"has other class names in {key} than in {named_in}")
            self.names, named_in = tuple(names), key

    def _error(self, rule: str) -> UserError:
        remedy = (
            f"Write the column alike in all files, or read one file alone: {assignment(('data', 'root'), self._one())}."
        )
        return UserError("data.label_column", self.spec.label_column, rule, remedy)

    def _one(self) -> str:
        root = str(self.spec.root).rstrip("/")
        return root if root.lower().endswith(".parquet") else f"{root}/{self.files[0][0]}"

    def any_label(self) -> bool:
        return any(not self._missing(column).all() for column in self._read())

    def labels(self, kept: NDArray[np.bool_]) -> Labels:
        """See `Source.labels`.

        Raises:
            UserError: for numbers that name no class, and for rows without a label unless data.unlabelled=skip.
        """
        if not self.there:
            return None, None
        columns = self._read()
        missing = [self._missing(column) for column in columns]
        if self.spec.unlabelled == "fail":
            parts = np.split(kept, np.cumsum(self.rows)[:-1])
            self._refuse(columns, [m & part for m, part in zip(missing, parts, strict=True)])
        present = [column.filter(pa.array(~m)) for column, m in zip(columns, missing, strict=True)]
        values: Any = pa.concat_arrays(present)
        out = np.full(len(kept), -1, np.int64)
        known = ~np.concatenate(missing)
        if self.names is not None:
            out[known] = values.to_numpy(zero_copy_only=False)
            self._check_range(out)
            return out[kept], self.names
        encoded = values.dictionary_encode()
        found: list[Any] = encoded.dictionary.to_pylist()
        distinct = sorted(found)
        number = {value: i for i, value in enumerate(distinct)}
        out[known] = np.array([number[value] for value in found], np.int64)[encoded.indices.to_numpy()]
        # Pandas writes whole numbers as floats where some are missing.
        whole = pa.types.is_floating(values.type) and all(value.is_integer() for value in distinct)
        return out[kept], tuple(str(int(value) if whole else value) for value in distinct)

    def _read(self) -> list[pa.Array]:
        """The labels of each file, in types that are the same for all files."""

        def column_of(file: File) -> pa.Array:
            with open_parquet(_root(self.spec)[0].uri, *file) as opened:
                column = opened.read([self.spec.label_column], use_threads=False).column(0)
            kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
            common = _COMMON[_label_kind(kind) or "nothing"]
            try:
                return column.cast(kind).cast(common).combine_chunks()
            except pa.ArrowInvalid as error:
                raise self._error(f"holds a number beyond those of 64 bits in {file[0]} ({error})") from None

        if not self.there:
            return []
        if not self.in_files:
            labels = numbers_if_all(self.folders)
            kind = pa.array(labels).type
            return [pa.array([label] * rows, kind) for label, rows in zip(labels, self.rows, strict=True)]
        with ThreadPoolExecutor(_READERS) as pool:
            columns = list(pool.map(column_of, self.files))
        kind = next((column.type for column in columns if not pa.types.is_null(column.type)), pa.null())
        return [column.cast(kind) for column in columns]

    def _missing(self, column: pa.Array) -> NDArray[np.bool_]:
        missing = column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
        if self.names is not None:
            missing = missing | (column.fill_null(-1).to_numpy(zero_copy_only=False) == -1)
        if pa.types.is_string(column.type):
            missing = missing | (column.to_numpy(zero_copy_only=False) == "")
        return missing

    def _refuse(self, columns: Sequence[pa.Array], missing: Sequence[NDArray[np.bool_]]) -> None:
        count = int(sum(m.sum() for m in missing))
        if not count:
            return
        place = next(i for i, m in enumerate(missing) if m.any())
        row = int(missing[place].argmax())
        empty = columns[place][row].as_py() != -1
        raise UserError(
            "data.label_column",
            self.spec.label_column,
            f"has {'empty cells' if empty else '-1, which is no class'}: row {row} of {self.files[place][0]}, and "
            f"{count - 1:,} more of {sum(self.rows):,} rows",
            "Set data.unlabelled=skip to leave such rows out.",
        )

    def _check_range(self, labels: NDArray[np.int64]) -> None:
        count = len(self.names or ())
        beyond = np.flatnonzero((labels < -1) | (labels >= count))
        if len(beyond):
            ends = np.cumsum(self.rows)
            place = int(np.searchsorted(ends, beyond[0], "right"))
            row = int(beyond[0]) - (int(ends[place]) - self.rows[place])
            rule = (
                f"is {labels[beyond[0]]} in row {row} of {self.files[place][0]}, and ClassLabel names {count} classes"
            )
            raise self._error(rule)


_COMMON = {
    "strings": pa.string(),
    "whole numbers": pa.int64(),
    "numbers": pa.float64(),
    "booleans": pa.bool_(),
    "nothing": pa.null(),
}


def _label_kind(kind: pa.DataType) -> str | None:
    """What labels of a type are; None if they cannot be labels."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "strings"
    if pa.types.is_integer(kind):
        return "whole numbers"
    if pa.types.is_floating(kind):
        return "numbers"
    if pa.types.is_boolean(kind):
        return "booleans"
    return "nothing" if pa.types.is_null(kind) else None


# --- files ---------------------------------------------------------------------------------------


def _footers(spec: ImageDataSpec, store: Store, files: Sequence[File]) -> list[pq.FileMetaData]:
    def footer_of(file: File) -> pq.FileMetaData:
        try:
            return footer(store.uri, *file)
        except (OSError, pa.ArrowInvalid) as error:
            pointer = store.read_range(file[0], 0, len(POINTER)) == POINTER
            rule = f"must be readable Parquet, and {file[0]} is not ({error})"
            raise root_error(spec, rule, FETCH if pointer else "Restore or remove that file.") from None

    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(footer_of, files))


def _unreadable(spec: ImageDataSpec, error: Exception) -> UserError:
    return root_error(spec, f"must be readable Parquet ({error})", "Check the file.")
