"""Cells of Arrow columns as numbers and as plain Python values, and back.

Temporal columns count in ticks of their type; `unit` is the number of nanoseconds of 1.0.
A missing cell is NaN among numbers and None among plain values; a float NaN counts as missing.
"""

import datetime
import decimal
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

#: Its functions are created on import, so that type checkers do not see them.
pc: Any = pyarrow.compute
DAY_NS = 86_400 * 10**9
#: Whole numbers up to here are exact in float64, which numbers travel in.
EXACT = 2**53
#: Seconds since 1970 at which the year 1 begins and the year 9999 ends, beyond which Python has no dates.
_FIRST_S, _END_S = -62_135_596_800, 253_402_300_800
_TICKS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
#: Different numbers from which on a common step is no chance.
_SPACED = 20
#: Steps in which dates and times may be kept, in nanoseconds, the longest first.
_STEPS = (DAY_NS, 3600 * 10**9, 60 * 10**9, 10**9, 10**6, 10**3, 100, 1)
_NAMES = (
    "int8 int16 int32 int64 uint8 uint16 uint32 uint64 halffloat float double bool string large_string "
    "date32[day] date64[ms] timestamp[s] timestamp[ms] timestamp[us] timestamp[ns] "
    "time32[s] time32[ms] time64[us] time64[ns]"
)
_SIMPLE: dict[str, pa.DataType] = {name: pa.type_for_alias(name) for name in _NAMES.split()}


# --- types ---------------------------------------------------------------------------------------


def type_name(kind: pa.DataType) -> str:
    """A name of an Arrow type that `type_from_name` reads in any version of Arrow."""
    if pa.types.is_dictionary(kind):
        ordered = ", ordered" if kind.ordered else ""
        return f"dictionary({kind.index_type}, {type_name(kind.value_type)}{ordered})"
    return str(kind)


def type_from_name(name: str) -> pa.DataType:
    """The Arrow type of a name.

    Raises:
        ValueError: for a type that tables cannot have here.
    """
    if name in _SIMPLE:
        return _SIMPLE[name]
    if match := re.fullmatch(r"timestamp\[(\w+), tz=(.+)\]", name):
        return pa.timestamp(match[1], match[2])
    if match := re.fullmatch(r"decimal(32|64|128|256)\((\d+), (-?\d+)\)", name):
        return getattr(pa, f"decimal{match[1]}")(int(match[2]), int(match[3]))
    if match := re.fullmatch(r"dictionary\((u?int\d+), (.+?)(, ordered)?\)", name):
        return pa.dictionary(_SIMPLE[match[1]], type_from_name(match[2]), ordered=bool(match[3]))
    raise ValueError(f"columns of type {name} are not supported")


def supported(kind: pa.DataType) -> bool:
    try:
        return type_from_name(type_name(kind)) == kind
    except ValueError:
        return False


def value_type(kind: pa.DataType) -> pa.DataType:
    """The type of the cells, also of a dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_string(kind: pa.DataType) -> bool:
    kind = value_type(kind)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_temporal(kind: pa.DataType) -> bool:
    return pa.types.is_temporal(value_type(kind))


def is_number(kind: pa.DataType) -> bool:
    kind = value_type(kind)
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def greatest(kind: pa.DataType) -> int:
    """The greatest whole number of an integer type; of unsigned 64 bits what signed ones hold."""
    return 2 ** min(63, kind.bit_width - pa.types.is_signed_integer(kind)) - 1


def tick_ns(kind: pa.DataType) -> int:
    """Nanoseconds of one tick of a temporal type; 1 for any other."""
    kind = value_type(kind)
    if pa.types.is_date32(kind):
        return DAY_NS
    if pa.types.is_date64(kind):
        return _TICKS["ms"]
    return _TICKS[kind.unit] if pa.types.is_temporal(kind) else 1


# --- columns -------------------------------------------------------------------------------------


def whole(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column in one piece."""
    if isinstance(column, pa.ChunkedArray):
        if pa.types.is_dictionary(column.type):
            column = column.unify_dictionaries()
        return column.combine_chunks()
    return column


def dense(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column in one piece, with the cells of a dictionary written out."""
    column = whole(column)
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def ticks(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A temporal column as int64."""
    array = dense(column)
    if pa.types.is_date32(array.type) or pa.types.is_time32(array.type):
        array = array.cast(pa.int32())
    return array.cast(pa.int64())


def numbers(column: pa.ChunkedArray | pa.Array, unit: int = 1) -> NDArray[np.float64]:
    """A column of numbers, dates or times (N,) float64, missing as NaN.

    unit: nanoseconds of 1.0, in a temporal column.
    """
    if not is_temporal(column.type):
        array = dense(column).cast(pa.float64(), safe=False)
        # A copy, since Arrow's memory may not be written to, without negative zeros.
        return array.to_numpy(zero_copy_only=False) + 0.0
    array, tick = ticks(column), tick_ns(column.type)
    count = np.asarray(array.fill_null(0).to_numpy(), np.int64)
    # Divided as whole numbers where that is exact, so that nanoseconds of today fit.
    step = max(1, unit // tick)
    exact = not np.any(count % step)
    out = (count // step if exact else count / step).astype(np.float64) * max(1, tick // unit)
    out[array.is_null().to_numpy(zero_copy_only=False)] = np.nan
    return out


def from_numbers(
    values: NDArray[np.float64],
    kind: pa.DataType,
    unit: int = 1,
    decimals: int | None = None,
    exact: Sequence[int] = (),
) -> pa.Array:
    """Numbers (N,) as a column; NaN becomes a missing cell. What a type cannot hold is clipped, and so are dates before
    the year 1 or after 9999; no zero is negative.

    decimals: of cells of a decimal type. exact: whole numbers beyond 2**53, one of which every number there is.
    """
    missing = np.isnan(values)
    cells = value_type(kind)
    if pa.types.is_floating(cells):
        limit = np.finfo(cells.to_pandas_dtype()).max
        narrow = np.clip(values, -limit, limit).astype(cells.to_pandas_dtype())
        array = pa.array(narrow + narrow.dtype.type(0), cells, mask=missing)
    elif pa.types.is_decimal(cells):
        limit = 10.0 ** (cells.precision - cells.scale) - 10.0**-cells.scale
        limit = min(limit, float(EXACT))
        clipped = np.clip(values, -limit, limit)
        if decimals is not None and decimals < cells.scale:
            # By way of a whole number: float64 has no 0.1, and the decimals of the type would show it.
            count = np.rint(np.where(missing, 0, clipped) * 10.0**decimals).astype(np.int64)
            least = pa.scalar(decimal.Decimal(1).scaleb(-decimals), pa.decimal128(decimals + 1, decimals))
            array = pc.multiply(pa.array(count, mask=missing).cast(pa.decimal128(19, 0)), least).cast(cells)
        else:
            array = pa.array(clipped, mask=missing).cast(cells, safe=False)
    else:
        width = cells.bit_width
        unsigned = pa.types.is_unsigned_integer(cells)
        low, high = (0, 2**width - 1) if unsigned else (-(2 ** (width - 1)), 2 ** (width - 1) - 1)
        if pa.types.is_time(cells):
            low, high = 0, DAY_NS // tick_ns(cells) - 1
        elif pa.types.is_temporal(cells):
            low, high = max(low, _FIRST_S * 10**9 // tick_ns(cells)), min(high, _END_S * 10**9 // tick_ns(cells) - 1)
        tick = tick_ns(cells) if pa.types.is_temporal(cells) else unit
        # Ticks of today are beyond what float64 holds exactly, so they are counted as integers.
        ratio = max(1, unit // tick)
        least, most = _toward_zero(-(-low // ratio)), _toward_zero(high // ratio)
        steps = np.rint(np.where(missing, 0, values) * (1 if unit >= tick else unit / tick))
        wide: Any = np.uint64 if unsigned else np.int64
        integers = np.clip(steps, least, most).astype(wide) * wide(ratio)
        if pa.types.is_temporal(cells):
            integers = np.clip(integers, low, high)
        if len(exact):
            far = np.flatnonzero(np.abs(steps) > EXACT)
            nearest = np.abs(np.array(exact, np.float64) - steps[far, None]).argmin(1)
            integers[far] = np.array(exact, np.int64)[nearest] * ratio
        array = pa.array(integers, mask=missing)
        if pa.types.is_temporal(cells) and width == 32:
            array = array.cast(pa.int32())
        array = array.cast(cells)
    return retyped(array, kind)


def _toward_zero(bound: int) -> float:
    """The nearest float64 to a whole number that is not beyond it."""
    near = float(bound)
    return near if abs(int(near)) <= abs(bound) else float(np.nextafter(near, 0))


def step_ns(column: pa.ChunkedArray | pa.Array) -> int:
    """The longest step, in nanoseconds, that all dates or times of a column are multiples of."""
    tick = tick_ns(column.type)
    count = np.asarray(ticks(column).drop_null().to_numpy(), np.int64)
    for step in _STEPS:
        if step <= tick or not np.any(count % (step // tick)):
            return max(step, tick)
    raise AssertionError


def plain(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column as string, bool, int64, uint64 or float64, in which values are compared and kept; dictionaries stay
    dictionaries of such.
    """
    array = whole(column)
    if pa.types.is_dictionary(array.type):
        return pa.DictionaryArray.from_arrays(array.indices, plain(array.dictionary))
    kind = array.type
    if is_string(kind) or pa.types.is_decimal(kind):
        return array.cast(pa.string())
    if pa.types.is_temporal(kind):
        return ticks(array)
    if pa.types.is_floating(kind):
        return pc.add(array.cast(pa.float64()), 0.0)  # no negative zero
    if pa.types.is_boolean(kind):
        return array
    return array.cast(pa.uint64() if pa.types.is_uint64(kind) else pa.int64())


def from_plain(values: Sequence[Any] | NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Plain values as a column of a type; None is a missing cell."""
    cells = value_type(kind)
    if pa.types.is_temporal(cells):
        small = cells.bit_width == 32
        array = pa.array(values, pa.int32() if small else pa.int64()).cast(cells)
    elif pa.types.is_decimal(cells):
        array = pa.array(values, pa.string()).cast(cells)
    else:
        array = pa.array(values, cells)
    return retyped(array, kind)


def take(values: tuple[Any, ...], index: NDArray[np.integer], kind: pa.DataType) -> pa.Array:
    """Cell i is values[index[i]]; an index below 0 is a missing cell."""
    indices = pa.array(np.maximum(index, 0), mask=index < 0)
    if not pa.types.is_dictionary(kind):
        return from_plain(values, kind).take(indices)
    narrow = indices.cast(kind.index_type)
    return pa.DictionaryArray.from_arrays(narrow, from_plain(values, kind.value_type), ordered=kind.ordered)


def plain_dictionary(column: pa.ChunkedArray | pa.Array) -> tuple[NDArray[np.int64], list[Any]]:
    """(which (N,), values): cell i is values[which[i]], and missing where which[i] is -1."""
    array = plain(column)
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    which = np.asarray(array.indices.fill_null(-1).to_numpy(), np.int64)
    values = array.dictionary.to_pylist()
    gone = [i for i, v in enumerate(values) if v is None or v != v]
    if gone:
        which = np.where(np.isin(which, gone), -1, which)
    return which, values


def decimals_of(values: NDArray[np.float64], single: bool = False) -> int | None:
    """Fewest decimals, 0..12, that all finite values are written with; None: they have more.

    single: the values come from float32, so that they need only be equal there.
    """
    values = values[np.isfinite(values)]
    some = values[:2000]
    for decimals in range(13):
        if _written_with(some, decimals, single) and _written_with(values, decimals, single):
            return decimals
    return None


def _written_with(values: NDArray[np.float64], decimals: int, single: bool) -> bool:
    rounded = np.round(values, decimals)
    if single:
        return bool(np.array_equal(rounded.astype(np.float32), values.astype(np.float32)))
    return bool(np.array_equal(rounded, values))


def decimals_used(cells: pa.Array) -> int:
    """Fewest decimals that all cells of a decimal type are written with."""
    for decimals in range(max(0, cells.type.scale)):
        if pc.all(pc.equal(pc.round(cells, decimals), cells)).as_py() is not False:
            return decimals
    return max(0, cells.type.scale)


def spacing(numbers: NDArray[np.float64], decimals: int | None) -> tuple[float, float]:
    """(step, phase): all numbers (N,) are phase + a multiple of step, of several units of their last decimal; zeros if
    there is no such step, or too few different numbers to say so.
    """
    if decimals is None:
        return 0.0, 0.0
    counts = np.unique(np.rint(numbers * 10.0**decimals))
    if len(counts) < _SPACED or np.abs(counts[[0, -1]]).max() > EXACT:
        return 0.0, 0.0
    whole_ = counts.astype(np.int64)
    step = int(np.gcd.reduce(np.diff(whole_)))
    # Few numbers may be the only ones that use the last decimal.
    if step % 10 and (whole_ % 10 != whole_[0] % 10).sum() < _SPACED / 2:
        return 0.0, 0.0
    phase = int(whole_[0]) % step
    return (step / 10.0**decimals, phase / 10.0**decimals) if step > 1 else (0.0, 0.0)


def tidy(value: float) -> float | int:
    """A whole number without its `.0`, for people; no number of NumPy, which would say so."""
    return int(value) if math.isfinite(value) and value == int(value) else float(value)


def shown(value: float, kind: pa.DataType, unit: int) -> Any:
    """A number of a column as people write it: dates and times as strings."""
    if not is_temporal(kind):
        return tidy(value)
    return str(from_numbers(np.array([value]), value_type(kind), unit)[0])


def retyped(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Values as a column of a type, which may be a dictionary of them."""
    if not pa.types.is_dictionary(kind):
        return array
    encoded = array.dictionary_encode()
    return pa.DictionaryArray.from_arrays(
        encoded.indices.cast(kind.index_type), encoded.dictionary, ordered=kind.ordered
    )


def first_true(mask: Any) -> int | None:
    """Where a boolean mask, of NumPy or Arrow, is first true."""
    index = np.flatnonzero(np.asarray(mask))
    return int(index[0]) if index.size else None


def literal(value: Any, kind: pa.DataType) -> pa.Array:
    """A value that a person wrote, by itself or as YAML reads it, as a column of one cell.

    Raises:
        ValueError: (or TypeError, OverflowError or one of Arrow's) if it does not read as the type.
    """
    cells = value_type(kind)
    if is_string(cells):
        value = str(value)
    elif pa.types.is_boolean(cells):
        words = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
        if str(value).lower() not in words:
            raise ValueError(f"{value!r} is not true or false")
        value = words[str(value).lower()]
    elif pa.types.is_temporal(cells):
        value = _moment(value, cells)
    elif pa.types.is_decimal(cells):
        try:
            value = decimal.Decimal(str(value))
        except decimal.InvalidOperation:
            raise ValueError(f"{value!r} is not a number") from None
    elif isinstance(value, bool):
        raise ValueError(f"{value} is no number")
    elif isinstance(value, str):
        whole_number = pa.types.is_integer(cells) and re.fullmatch(r"[+-]?\d+", value)
        value = int(value) if whole_number else float(value)
    if pa.types.is_integer(cells) and isinstance(value, float) and not value.is_integer():
        raise ValueError(f"{value} is no whole number")
    return pa.array([value], cells)


def _moment(value: Any, cells: pa.DataType) -> Any:
    """A date or time as Python has it for a column of the type."""
    if not isinstance(value, str | datetime.date | datetime.time):
        # YAML reads 10:11:12 as a number to the base 60.
        raise ValueError("no date or time; write it in quotes")
    if pa.types.is_time(cells):
        value = datetime.time.fromisoformat(value) if isinstance(value, str) else value
        if not isinstance(value, datetime.time):
            raise ValueError(f"{value} is no time of day")
        return value
    if isinstance(value, str):
        value = datetime.datetime.fromisoformat(value)
    if isinstance(value, datetime.time):
        raise ValueError(f"{value} is no date")
    if not isinstance(value, datetime.datetime):
        value = datetime.datetime.combine(value, datetime.time())
    if pa.types.is_timestamp(cells):
        # Without a zone it is meant in UTC, in which the column counts.
        return value.replace(tzinfo=datetime.UTC) if value.tzinfo is None and cells.tz else value
    if value.time() != datetime.time():
        raise ValueError("a date has no time of day")
    return value.date()
