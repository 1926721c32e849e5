"""What a condition requests of a column, as a code of its part; or an error that says what is available."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genai_ray.errors import UserError, nearest
from genai_ray.table import modes, values
from genai_ray.table.columns import Column, Part
from genai_ray.table.values import pc


def requested_column(name: str, columns: Mapping[str, Column], field: str) -> Column:
    """The column of a condition.

    Raises:
        UserError: if there is none, or it is an id.
    """
    if name not in columns:
        raise UserError(field, name, "is not a column of the table", nearest(name, columns))
    if columns[name].kind == "id":
        raise UserError(field, name, "is an id, which a condition cannot fix", "Drop it.")
    return columns[name]


def category_code(column: Column, value: Any, field: str) -> int:
    """The code of a category, -1 for missing; 0 for a number or a constant.

    Raises:
        UserError: for a value that the column does not have, or that cannot be parsed as its type.
    """

    def wrong(rule: str, remedy: str) -> UserError:
        shown = "null" if value is None and column.kind != "constant" else value
        return UserError(field, f"{column.name}={shown}", rule, remedy)

    if isinstance(value, list | tuple) or (isinstance(value, str) and value[:1] in ("<", ">") and column.is_number):
        raise wrong(
            "is no value of the column", f"Write a range as {{where: {{{column.name}: {{min: 60, max: 80}}}}}}."
        )
    if value is None and column.kind != "constant":
        if not column.missing:
            raise wrong("has no missing values in the source", "Request a value.")
        return -1
    try:
        plain = values.plain(as_cell(column, value))[0].as_py()
    except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:
        raise wrong(f"must be a value of type {column.type} ({error})", "Correct it.") from None
    if column.kind == "constant" and plain != column.value:
        raise wrong("is a column of one other value", "Drop the condition.")
    if not column.categories:
        return 0
    if plain not in column.categories:
        known = map(str, values.from_plain(column.categories, column.type).to_pylist())
        rule = "is a category that the source does not have, or that is too rare in it"
        raise wrong(rule, nearest(str(value), known))
    return column.categories.index(plain)


def range_ends(column: Column, value: Mapping[str, Any], field: str) -> tuple[float, float]:
    """The ends of a condition `{min: …, max: …}`, in the numbers of the column; infinite where it has none.

    Raises:
        UserError: for a column without numbers, other keys, or ends that the column never reaches.
    """

    def wrong(rule: str, remedy: str) -> UserError:
        return UserError(field, f"{column.name}={dict(value)}", rule, remedy)

    if not (values.is_number(column.type) or values.is_temporal(column.type)):
        raise wrong(f"is a range, and the column is {column.kind}", "Request one of its values.")
    if not value or set(value) - {"min", "max"}:
        raise wrong("must be a value, or a range by min and max", "Write {min: 60, max: 80}, or one of the two.")
    ends = {"min": -np.inf, "max": np.inf}
    for end, bound in value.items():
        try:
            ends[end] = float(column.numbers(as_cell(column, bound))[0])
        except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:
            raise wrong(f"must have ends of type {column.type} ({error})", "Correct it.") from None
    low, high = ends["min"], ends["max"]
    if low > high:
        raise wrong("has a min above its max", "Swap them.")
    known = (column.low, column.high)
    if known[0] is not None and known[1] is not None and (low > known[1] or high < known[0]):
        rule = f"must reach into {column.shown(known[0])} .. {column.shown(known[1])}"
        raise wrong(rule, "Request a part of this range.")
    return low, high


def number_code(column: Column, part: Part, value: Any, field: str) -> int:
    """The code of a number's atom, bin or likeliest mode, or of missing.

    Raises:
        UserError: for a number that is not generated.
    """
    if value is None:
        assert part.missing is not None
        return part.missing
    number = column.numbers(as_cell(column, value))
    if not part.low <= number[0] <= part.high:
        rule = f"must lie in {column.shown(part.low)} .. {column.shown(part.high)}"
        raise UserError(field, f"{column.name}={value}", rule, "Request a value in this range.")
    check_reached(column, part, (number[0], number[0]), value, field)
    # The mode is drawn; the likeliest one is that which most draws hit.
    draws = (np.arange(101) + 0.5) / 101
    codes, _ = modes.encode_numbers(part, np.repeat(number, len(draws)), draws)
    return int(np.bincount(codes).argmax())


def check_reached(column: Column, part: Part, ends: tuple[float, float], value: Any, field: str) -> None:
    """Report numbers in a gap of the column, such as between ages and a mark of -999: no row would have them."""
    if part.offset and not part.reaches(*ends):
        shown = dict(value) if isinstance(value, Mapping) else value
        rule = "lies where the source has no values, and none is generated"
        raise UserError(field, f"{column.name}={shown}", rule, "Request values that the source has.")


def holds(column: Column, cells: pa.ChunkedArray, value: Any) -> NDArray[np.bool_]:
    """In which rows (N,) a column has the value, or lies in the range, of a condition."""
    if isinstance(value, Mapping):
        low, high = range_ends(column, value, "generate.conditions")
        numbers = column.numbers(cells)
        return (numbers >= low) & (numbers <= high)
    dense = values.dense(cells)
    same = dense.is_null() if value is None else pc.fill_null(pc.equal(dense, as_cell(column, value)[0]), False)
    return same.to_numpy(zero_copy_only=False)


def as_cell(column: Column, value: Any) -> pa.Array:
    """A value that a person wrote, as a column of one cell.

    Raises:
        ValueError: (or as `values.literal`) if it cannot be parsed as the column's type.
    """
    if isinstance(value, bool) and values.is_string(column.type):
        # YAML parses yes, no, true and the like as booleans, even if they are strings of the table.
        words = ("true", "yes", "on") if value else ("false", "no", "off")
        known = column.categories or (column.value,)
        meant = [c for c in known if isinstance(c, str) and c.lower() in words]
        if len(meant) > 1:
            raise ValueError(f"may be meant as {' or '.join(meant)}; write it in quotes")
        value = meant[0] if meant else str(value)
    elif isinstance(value, bool) and column.categories and set(column.categories) <= {0, 1}:
        value = int(value)
    return values.literal(value, column.type)


def draw_labels(parts: Sequence[Part], uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
    """See `TableCodec.draw_labels`."""
    out = np.full((len(uniforms), len(parts)), -1, np.int64)
    discrete = np.array([i for i, p in enumerate(parts) if p.discrete], np.int64)
    if not len(discrete):
        return out
    ends = np.full((len(discrete), max(parts[i].size for i in discrete)), np.inf)
    for row, i in enumerate(discrete):
        # The last takes what rounding leaves below 1.
        ends[row, : parts[i].size - 1] = np.cumsum(parts[i].shares)[:-1]
    chosen = np.minimum((uniforms[:, 0] * len(discrete)).astype(np.int64), len(discrete) - 1)
    out[np.arange(len(uniforms)), discrete[chosen]] = (uniforms[:, 1:] >= ends[chosen]).sum(1)
    return out
