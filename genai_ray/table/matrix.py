"""Columns of tables as arrays: numbers as floats, categories as codes shared by several tables.

The basis of every score of a table. Whole numbers, floats, decimals and dates count as numbers, strings, dictionaries
and booleans as categories; a caller may name further `categorical` columns. Columns named in `skip`, such as ids, are
ignored. Null and NaN are both missing.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genai_ray import rng
from genai_ray.table import values

#: The code of a missing category.
MISSING = 0


@dataclass(frozen=True)
class Columns:
    """The columns of one of the tables that were encoded together.

    numbers: (N, M) float64, NaN where missing or infinite; a date is a count since 1970 in the unit of its column.
    categories: (N, C) int64; 0 where missing, else 1 + the index of the value in `labels`.
    labels: the values of each category column, in the order in which they first occur.
    names: of all columns, in the order of the tables.
    """

    numbers: NDArray[np.float64]
    categories: NDArray[np.int64]
    number_names: tuple[str, ...]
    category_names: tuple[str, ...]
    labels: tuple[tuple[Any, ...], ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Codes of each category column, with the one for missing."""
        return tuple(len(labels) + 1 for labels in self.labels)

    def counts(self, column: int) -> NDArray[np.int64]:
        """How many rows have each code of a category column."""
        return np.bincount(self.categories[:, column], minlength=self.sizes[column])

    def take(self, index: NDArray[Any]) -> Self:
        """Some rows, by index or mask."""
        return replace(self, numbers=self.numbers[index], categories=self.categories[index])


def encode(
    tables: Sequence[pa.Table], *, categorical: Collection[str] = (), skip: Collection[str] = ()
) -> list[Columns]:
    """Tables of the same columns as arrays in which equal codes mean equal values.

    Every table has rows and the columns of the first, of which `categorical` and `skip` name some.
    """
    numbers: dict[str, NDArray[np.float64]] = {}
    categories: dict[str, NDArray[np.int64]] = {}
    labels: list[tuple[Any, ...]] = []
    names: list[str] = []
    assert set(categorical) <= set(tables[0].column_names), f"categorical={sorted(categorical)}"
    for name, cells in _joined(tables, skip):
        names.append(name)
        if is_number(tables[0].schema.field(name).type) and name not in categorical:
            amounts = values.numbers(cells, values.tick_ns(cells.type))
            numbers[name] = np.where(np.isfinite(amounts), amounts, np.nan)
        else:
            codes, plain = values.plain_dictionary(cells)
            categories[name] = codes + 1
            labels.append(tuple(values.from_plain(plain, cells.type).to_pylist()))
    shared = (tuple(numbers), tuple(categories), tuple(labels), tuple(names))
    each = zip(_split(tables, numbers, np.float64), _split(tables, categories, np.int64), strict=True)
    return [Columns(amounts, codes, *shared) for amounts, codes in each]


def row_keys(tables: Sequence[pa.Table], *, skip: Collection[str] = ()) -> list[NDArray[np.int64]]:
    """A number for each row of each table: equal exactly where two rows agree in every column.

    No hash, so no collision. Missing equals missing, and -0.0 equals 0.0. The tables are as in `encode`.
    """
    keys, span = np.zeros(sum(map(len, tables)), np.int64), 1
    for _, cells in _joined(tables, skip):
        codes, distinct = values.plain_dictionary(cells)
        size = len(distinct) + 1
        if span * size >= 2**62:
            keys = np.unique(keys, return_inverse=True)[1].astype(np.int64)
            span = int(keys.max()) + 1
        keys = keys * size + codes + 1
        span *= size
    return np.split(keys, _ends(tables))


def sample(n: int, most: int, seed: int) -> NDArray[np.int64]:
    """At most `most` different row indices below n, in a random order that the seed decides."""
    return rng.permute(seed, rng.Stream.EVALUATE, np.arange(min(n, most), dtype=np.int64), n)


def ranked(counts: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """For each code its rank by count, greatest first; those beyond `most` share the last rank."""
    rank = np.empty(len(counts), np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(counts))
    return np.minimum(rank, most - 1)


def is_number(kind: pa.DataType) -> bool:
    """Whether columns of this type count as numbers by default."""
    return not pa.types.is_dictionary(kind) and (values.is_number(kind) or values.is_temporal(kind))


def _joined(tables: Sequence[pa.Table], skip: Collection[str]) -> Iterator[tuple[str, pa.ChunkedArray]]:
    """The cells of each column of all tables, of the type of the first, such as dates of one unit."""
    first = tables[0]
    assert set(skip) <= set(first.column_names), f"skip={sorted(skip)}, columns={first.column_names}"
    assert all(map(len, tables)), "scores of no rows are undefined"
    for field in first.schema:
        if field.name not in skip:
            kind = values.value_type(field.type)
            chunks = [c for table in tables for c in table.column(field.name).cast(kind).chunks]
            yield field.name, pa.chunked_array(chunks, kind)


def _split(tables: Sequence[pa.Table], columns: dict[str, NDArray[Any]], dtype: type) -> list[NDArray[Any]]:
    """The columns of all tables as a matrix for each table."""
    rows = sum(map(len, tables))
    matrix = np.stack([*columns.values()], axis=1) if columns else np.zeros((rows, 0), dtype)
    return np.split(matrix, _ends(tables))


def _ends(tables: Sequence[pa.Table]) -> NDArray[np.int64]:
    return np.cumsum([len(table) for table in tables])[:-1]
