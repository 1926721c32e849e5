"""Columns of tables as arrays: numbers as floats, categories as codes shared by several tables.

What every score of a table stands on. Whole numbers, floats, decimals and dates count as numbers,
text, dictionaries and booleans as categories; a caller who knows better names the `categorical`
columns. Columns named in `skip`, such as ids, take no part. Null and NaN are both missing.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from genai_ray import rng

#: The code of a missing category.
MISSING = 0


@dataclass(frozen=True)
class Columns:
    """The columns of one of the tables that were encoded together.

    numbers: (N, M) float64, NaN where missing or infinite; a date is a count since 1970 in the
        unit of its column.
    categories: (N, C) int64; 0 where missing, else 1 + the place of the value in `labels`.
    labels: the values of each category column, in the order in which the tables show them.
    """

    numbers: NDArray[np.float64]
    categories: NDArray[np.int64]
    number_names: tuple[str, ...]
    category_names: tuple[str, ...]
    labels: tuple[tuple[Any, ...], ...]

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each category column, with the one for missing."""
        return tuple(len(labels) + 1 for labels in self.labels)

    def take(self, index: NDArray[Any]) -> Self:
        """Some rows, by number or mask."""
        return type(self)(
            self.numbers[index], self.categories[index], self.number_names, self.category_names, self.labels
        )


def encode(
    tables: Sequence[pa.Table], *, categorical: Collection[str] = (), skip: Collection[str] = ()
) -> list[Columns]:
    """Tables of the same columns as arrays in which equal codes mean equal values.

    Raises:
        ValueError: for a table without rows or without one of the columns of the first, for a
            name in `categorical` or `skip` that is none of them, and for a column of a type that
            is neither number, date, text nor boolean.
    """
    names = _names(tables, skip, categorical)
    numbers: list[list[NDArray[np.float64]]] = []
    categories: list[list[NDArray[np.int64]]] = []
    labels: list[tuple[Any, ...]] = []
    number_names, category_names = [], []
    for name in names:
        columns = [table.column(name) for table in tables]
        if is_number(columns[0].type) and name not in categorical:
            number_names.append(name)
            numbers.append([_floats(column, columns[0].type) for column in columns])
        else:
            category_names.append(name)
            codes, values = _codes(name, columns)
            categories.append(codes)
            labels.append(values)
    return [
        Columns(
            _stack([column[t] for column in numbers], len(table), np.float64),
            _stack([column[t] for column in categories], len(table), np.int64),
            tuple(number_names),
            tuple(category_names),
            tuple(labels),
        )
        for t, table in enumerate(tables)
    ]


def row_keys(tables: Sequence[pa.Table], *, skip: Collection[str] = ()) -> list[NDArray[np.int64]]:
    """A number for each row of each table: equal exactly where two rows agree in every column.

    No hash, so no collision. Missing equals missing, and -0.0 equals 0.0.

    Raises:
        ValueError: as `encode`.
    """
    names = _names(tables, skip, ())
    ends = np.cumsum([len(table) for table in tables])
    keys, span = np.zeros(ends[-1], np.int64), 1
    for name in names:
        codes, values = _codes(name, [table.column(name) for table in tables])
        size = len(values) + 1
        if span * size >= 2**62:
            keys = np.unique(keys, return_inverse=True)[1].astype(np.int64)
            span = int(keys.max()) + 1
        keys = keys * size + np.concatenate(codes)
        span *= size
    return np.split(keys, ends[:-1])


def sample(n: int, most: int, seed: int) -> NDArray[np.int64]:
    """At most `most` different row numbers out of n, in a random order that the seed decides."""
    return rng.permute(seed, rng.Stream.EVALUATE, np.arange(min(n, most), dtype=np.int64), n)


def is_number(kind: pa.DataType) -> bool:
    """Whether columns of this type count as numbers where nothing else is said."""
    return (
        pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_temporal(kind)
    )


def _names(tables: Sequence[pa.Table], skip: Collection[str], categorical: Collection[str]) -> list[str]:
    known = tables[0].column_names
    for argument, given in (("skip", skip), ("categorical", categorical)):
        if strange := sorted(set(given) - set(known)):
            raise ValueError(f"{argument} names {strange}; the columns are {known}")
    for table in tables:
        if not len(table):
            raise ValueError("a table has no rows; scores of nothing are undefined")
        if lacking := sorted(set(known) - set(table.column_names)):
            raise ValueError(f"a table lacks the columns {lacking} that another has")
    return [name for name in known if name not in skip]


def _stack(columns: list[NDArray[Any]], rows: int, dtype: type) -> NDArray[Any]:
    return np.stack(columns, axis=1) if columns else np.zeros((rows, 0), dtype)


def _floats(column: pa.ChunkedArray, kind: pa.DataType) -> NDArray[np.float64]:
    column = column.cast(kind)  # so that dates of two tables have one unit
    if pa.types.is_temporal(kind):
        column = column.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
    values = column.cast(pa.float64(), safe=False).to_numpy().astype(np.float64)
    values[~np.isfinite(values)] = np.nan
    return values


def _codes(name: str, columns: Sequence[pa.ChunkedArray]) -> tuple[list[NDArray[np.int64]], tuple[Any, ...]]:
    kind = columns[0].type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    plain = [column.cast(kind) for column in columns]
    ends = np.cumsum([len(column) for column in columns])
    if pa.types.is_null(kind):
        return np.split(np.zeros(ends[-1], np.int64), ends[:-1]), ()
    whole = pa.chunked_array([chunk for column in plain for chunk in column.chunks], kind)
    if pa.types.is_floating(kind):
        # + 0.0 turns -0.0, which Arrow takes for another value, into 0.0.
        values = whole.cast(pa.float64()).to_numpy() + 0.0
        whole = pa.chunked_array([pa.array(values, mask=np.isnan(values))])
    try:
        coded = whole.dictionary_encode().combine_chunks()
    except pa.ArrowNotImplementedError:
        raise ValueError(f"column {name!r} is {kind}; need numbers, dates, text or booleans") from None
    coded = coded.chunk(0) if isinstance(coded, pa.ChunkedArray) else coded
    codes = pc.fill_null(coded.indices, -1).to_numpy().astype(np.int64) + 1
    return np.split(codes, ends[:-1]), tuple(coded.dictionary.to_pylist())
