"""Fitting a codec to the training rows of a table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genai_ray.errors import UserError
from genai_ray.spec import assignment
from genai_ray.table import constraints, modes, values
from genai_ray.table.codec import Codes, Scalars, TableCodec
from genai_ray.table.columns import Column, Part, combinations
from genai_ray.table.constraints import Rules
from genai_ray.table.problems import ColumnError, joined
from genai_ray.table.spec import TableSpec

#: Codes of all columns together, beyond which a network of them is too large: some 200 MB, several times over.
MOST_CODES = 100_000
#: A part, the indices of its columns, and the combinations of their codes; see `TableCodec`.
_Piece = tuple[Part, tuple[int, ...], tuple[tuple[int, ...], ...]]


def fit_codec(
    table: pa.Table, columns: tuple[Column, ...], rules: Rules, spec: TableSpec
) -> tuple[TableCodec, Codes, Scalars]:
    """A codec for a table, and the table in it.

    Args:
        table: training rows. columns: what `infer` says of them. rules: constraints that `table` keeps.

    Raises:
        UserError: if nothing in the table varies, or a column has too few rows of any value.
    """
    constant = {c.name for c in columns if c.kind == "constant"}
    groups = [[n for n in group if n not in constant] for group in rules.together]
    group_of = {n: group for group in groups if len(group) > 1 for n in group}
    columns = _all_completed(columns, table, spec, group_of)
    pieces = list(_pieces(columns, group_of, table, spec))
    if not any(p.size > 1 if p.discrete else p.low < p.high for p, _, _ in pieces):
        raise UserError(
            "data",
            [c.name for c in columns][:4],
            "are columns of which none varies: nothing can be learnt",
            "Check the file, data.table.columns and data.table.rare.",
        )
    _check_size(columns, table, spec)
    columns = tuple(_with_ranges(c, table, rules, spec.rare) for c in columns)
    parts, members, combos = zip(*pieces, strict=True)
    codec = _with_modes(TableCodec(columns, parts, members, combos, rules), table, spec)
    codes, scalars = codec.encode(table)
    shares = [np.bincount(codes[:, i], minlength=p.size) / len(codes) for i, p in enumerate(codec.parts)]
    parts = [replace(p, shares=tuple(s.tolist())) for p, s in zip(codec.parts, shares, strict=True)]
    return replace(codec, parts=tuple(parts)), codes, scalars


def _pieces(
    columns: Sequence[Column], group_of: Mapping[str, list[str]], table: pa.Table, spec: TableSpec
) -> Iterator[_Piece]:
    """What is modelled, in the order of the columns; a group where its first column is."""
    index = {c.name: i for i, c in enumerate(columns)}
    for i, column in enumerate(columns):
        group = group_of.get(column.name, [column.name])
        if column.kind in ("constant", "id", "formula") or group[0] != column.name:
            continue
        if len(group) > 1:
            combos = _common_combinations([columns[index[n]] for n in group], table, spec)
            yield Part("+".join(group), len(combos), ()), tuple(index[n] for n in group), combos
        elif column.categories:
            size = len(column.categories)
            missing = size if column.missing else None
            yield Part(column.name, size + column.missing, (), missing=missing), (i,), ()
        else:
            assert column.low is not None
            assert column.high is not None
            part = Part(column.name, 0, (), (0.0,), decimals=column.decimals, low=column.low, high=column.high)
            yield replace(part, missing=0 if column.missing else None), (i,), ()


def _with_modes(codec: TableCodec, table: pa.Table, spec: TableSpec) -> TableCodec:
    """The codec with the codes of its numbers."""
    parts = list(codec.parts)
    numeric = [i for i, p in enumerate(parts) if not p.discrete]
    amounts = [codec.modelled(codec.columns_of(i)[0], table) for i in numeric]
    ready = [_of_distance(codec, parts[i], x, spec) for i, x in zip(numeric, amounts, strict=True)]
    for i, part in zip(numeric, modes.fit_parts(ready, amounts, spec.numbers, spec.rare), strict=True):
        parts[i] = part
    return replace(codec, parts=tuple(parts))


def _of_distance(codec: TableCodec, part: Part, amounts: NDArray[np.float64], spec: TableSpec) -> Part:
    """The part with the range and decimals of the distance, if that is what it models."""
    distance = codec.distances.get(part.name)
    if not distance:
        return part
    decimals = distance.decimals
    low, high = modes.span(np.sort(amounts[~np.isnan(amounts)]), spec.rare)
    least = 0.0 if decimals is None or not distance.strict else 10.0**-decimals
    return replace(part, low=max(low, least), high=max(high, low, least), decimals=decimals)


def _all_completed(
    columns: Sequence[Column], table: pa.Table, spec: TableSpec, group_of: Mapping[str, list[str]]
) -> tuple[Column, ...]:
    """The columns with what their training rows say.

    Raises:
        UserError: for all of them that have too few rows of any value.
    """
    completed: list[Column] = []
    problems: list[ColumnError] = []
    for column in columns:
        try:
            completed.append(_completed(column, table, spec, column.name in group_of))
        except ColumnError as error:
            problems.append(error)
    if problems:
        raise joined(problems)
    return tuple(completed)


def _check_size(columns: Sequence[Column], table: pa.Table, spec: TableSpec) -> None:
    """That there are not too many categories.

    Raises:
        UserError: with the least `rare` that leaves few enough.
    """
    large = max(columns, key=lambda c: len(c.categories))
    if sum(len(c.categories) for c in columns) <= MOST_CODES:
        return
    which, _ = values.plain_dictionary(table.column(large.name))
    counts = np.sort(np.bincount(which[which >= 0]))
    fewer = assignment(("data", "table", "rare"), int(counts[-MOST_CODES // 2]) + 1)
    rule = f"has {len(large.categories):,} categories of at least data.table.rare={spec.rare} rows"
    most = f"a model holds {MOST_CODES:,} of all columns"
    raise ColumnError(large.name, large.name, f"{rule}; {most}", f"Give {fewer}.")


def _completed(column: Column, table: pa.Table, spec: TableSpec, grouped: bool) -> Column:
    """The column with what its training rows say: categories, or a range."""
    cells = table.column(column.name)
    if column.kind in ("categorical", "boolean") or grouped:
        column = _with_categories(column, cells, spec)
    of_numbers = values.is_number(column.type) or values.is_temporal(column.type)
    if not of_numbers or not (column.is_number or column.kind == "constant"):
        return column
    numbers = column.numbers(cells)
    numbers = np.sort(numbers[~np.isnan(numbers)])
    if len(numbers) < spec.rare:
        if column.kind == "formula":
            return column
        rule = f"is the number of training rows with a value, fewer than data.table.rare={spec.rare}"
        raise ColumnError(column.name, len(numbers), rule, "")
    column = replace(column, exact=_beyond(column, numbers, cells, spec.rare))
    low, high = modes.span(numbers, spec.rare)
    low = column.min if column.min is not None else low
    high = column.max if column.max is not None else high
    return replace(column, low=low, high=max(high, low))


def _with_ranges(column: Column, table: pa.Table, rules: Rules, rare: int) -> Column:
    """The column; one that is modelled as a distance with its ranges, as its marks are no marks among distances."""
    if not rules.lows(column.name) or column.kind not in ("numerical", "datetime") or column.categories:
        return column
    numbers = column.numbers(table.column(column.name))
    return replace(column, ranges=modes.ranges_of(np.sort(numbers[~np.isnan(numbers)]), rare))


def _beyond(column: Column, ascending: NDArray[np.float64], cells: pa.ChunkedArray, rare: int) -> tuple[int, ...]:
    """Dates and times beyond 2**53 units that at least `rare` rows have."""
    if column.kind != "datetime" or max(-ascending[0], ascending[-1]) <= values.EXACT or column.digits:
        return ()
    count = values.ticks(cells.drop_null()).to_numpy() // max(1, column.unit // values.tick_ns(column.type))
    found, rows = np.unique(count[np.abs(count) > values.EXACT], return_counts=True)
    return tuple(found[rows >= rare].tolist())


def _with_categories(column: Column, cells: pa.ChunkedArray, spec: TableSpec) -> Column:
    which, distinct = values.plain_dictionary(cells)
    counts = np.bincount(which[which >= 0], minlength=len(distinct))
    kept = [v for v, c in zip(distinct, counts, strict=True) if c >= spec.rare]
    if not (pa.types.is_dictionary(column.type) and column.type.ordered):
        kept.sort()
    if not kept:
        rule = f"has {int((counts > 0).sum())} categories, all of them in fewer than data.table.rare={spec.rare}"
        smaller = assignment(("data", "table", "rare"), int(counts.max()))
        raise ColumnError(column.name, column.name, f"{rule} training rows", f"Give {smaller}, for all columns.")
    other = distinct[int(counts.argmax())]
    if values.is_string(column.type) and counts[counts < spec.rare].sum() >= spec.rare:
        other = spec.rare_label
        kept += [other] if other not in kept else []
    return replace(column, categories=tuple(kept), other=kept.index(other))


def _common_combinations(columns: list[Column], table: pa.Table, spec: TableSpec) -> tuple[tuple[int, ...], ...]:
    """Codes of columns kept together that enough rows have."""
    distinct, which = combinations(columns, table)
    kept = distinct[np.bincount(which) >= spec.rare]
    if not len(kept):
        raise UserError(
            constraints.FIELD,
            [c.name for c in columns],
            f"have {len(distinct)} combinations, all of them in fewer than data.table.rare={spec.rare} rows",
            f"Drop the constraint, or give {assignment(('data', 'table', 'rare'), int(np.bincount(which).max()))}.",
        )
    return tuple(map(tuple, kept.tolist()))
