"""What the columns of a table are: kind and type of each, from its cells and from what a spec says.

Strings that read as numbers, dates or booleans become such (see `reading`). Strings are an id if all differ and follow
one pattern; else a category; else they are refused as free text. The types of Parquet are taken as they are; a
dictionary of numbers is a category, and whole numbers such as 20240131 are dates.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genai_ray.errors import UserError, nearest
from genai_ray.spec import assignment
from genai_ray.table import digits, ids, values
from genai_ray.table.columns import Column
from genai_ray.table.files import Files, without
from genai_ray.table.numerals import MANY
from genai_ray.table.problems import Choice, ColumnError, joined
from genai_ray.table.reading import INFINITE, Reading, Source, as_dates, asked_forms, no_dates, read_cells
from genai_ray.table.spec import ColumnSpec
from genai_ray.table.values import first_true, pc

#: Numbers beyond are sentinel values, such as the largest float64.
_LARGEST = 1e100
_ID_NAME = re.compile(r"(^|[^A-Za-z])(?i:id|uuid|guid|key|no|nr|number)$|[a-z](Id|ID|Key|Nr|No)$")
_BY_SPEC = "as the spec says"


def infer_columns(
    files: Files,
    specs: Mapping[str, ColumnSpec],
    unique: Collection[str],
    computed: Collection[str],
    repeated: Collection[str] = (),
) -> tuple[pa.Table, tuple[Column, ...]]:
    """The table with cells of their types, without dropped columns, and what its columns are.

    Args:
        specs: what the spec says of a column, by name.
        unique: columns that are ids by a constraint. computed: columns that have a formula. repeated: ids that may
            come several times.

    Raises:
        UserError: for a column that no model can be made of, and for a spec that does not fit.
    """
    names = files.table.column_names
    for name in specs:
        if name not in names:
            raise UserError("data.table.columns", name, "is not a column of the files", nearest(name, names))
    arrays: dict[str, pa.Array] = {}
    columns: dict[str, Column] = {}
    failed: list[tuple[Source, ColumnError]] = []
    for name in names:
        spec = _implied(name, specs.get(name, ColumnSpec()), (*unique, *repeated), computed)
        if spec.type == "drop":
            continue
        source = Source(files, name, spec, files.table.column(name), name in repeated)
        try:
            arrays[name], column = _infer(source)
        except ColumnError as error:
            failed.append((source, error))
            continue
        columns[name] = replace(column, kind="formula") if name in computed else column
    categories = {n: values.dense(arrays[n]) for n, c in columns.items() if c.kind == "categorical" and not c.missing}
    sources = [s for s, _ in failed] + [Source(files, n, ColumnSpec(), files.table.column(n)) for n in columns]
    for source in sources:
        column = _id_with_prefix(source, columns.get(source.name), specs.get(source.name, ColumnSpec()), categories)
        if column is not None:
            cells = values.dense(source.strings) if files.from_csv else values.whole(source.cells)
            columns[source.name], arrays[source.name] = replace(column, type=cells.type), cells
    problems = [_with_ways_out(error, source) for source, error in failed if source.name not in columns]
    if problems and not columns and files.from_csv and all(p.choices == ("drop",) for p in problems):
        rules = "; ".join(f"{p.name} {p.rule}" for p in problems[:3])
        raise UserError(
            "data.table.columns",
            [p.name if p.value is None else f"{p.name}, {p.value}" for p in problems],
            f"have nothing that can be learnt: {rules}",
            "Check the file, and how it is read: data.table.delimiter, data.table.header and data.table.skip.",
        )
    if problems:
        raise joined(problems)
    if not columns:
        raise UserError("data.table.columns", list(specs), "leave no column", "Drop fewer.")
    kept = [n for n in names if n in columns]
    return pa.table({n: arrays[n] for n in kept}), tuple(columns[n] for n in kept)


def _id_with_prefix(
    source: Source, column: Column | None, spec: ColumnSpec, categories: Mapping[str, pa.Array]
) -> Column | None:
    """An id whose strings each begin with the category of another column in their row; None if they do not.

    column: what it is without that, None: nothing that can be learnt. categories: cells of other columns.
    """
    kind = source.cells.type if column is None else column.type
    if (column and column.kind != "id") or spec.pattern or spec.type not in (None, "id") or not values.is_string(kind):
        return None
    if source.strings.null_count or (len(source.distinct) < len(source.strings) and not source.repeated):
        return None
    strings = values.dense(source.strings)
    for name, cells in categories.items():
        if values.is_string(cells.type):
            # Twice as often as in training, where none of them must become the label of the rare ones.
            pattern = ids.infer_prefix(strings, cells, 2 * source.rare)
            if pattern is not None:
                why = f"each begins with {name}, then all are of one pattern"
                return Column(source.name, "id", kind, pattern=pattern, prefix=name, why=why)
    return None


def _with_ways_out(error: ColumnError, source: Source) -> ColumnError:
    """The error with those of its choices, and of the usual ones, with which the column can be learnt."""

    said = source.spec.model_dump(exclude_defaults=True)

    def works(choice: Choice) -> bool:
        told = {"type": choice} if isinstance(choice, str) else dict(choice or {})
        try:
            spec = _implied(source.name, ColumnSpec.model_validate(told), (), ())
            cells = source.cells if spec.nulls is None else without(source.cells, spec.nulls)
            _infer(Source(source.files, source.name, spec, cells))
        except (UserError, ValueError):
            return False
        return True

    def whole(choice: Choice) -> Choice:
        if not isinstance(choice, Mapping):
            return choice
        return {k: v for k, v in (said | dict(choice)).items() if v is not None} or None

    likely = [c for c in map(whole, error.choices) if c != "drop" and works(c)]
    usual = [c for c in ("numerical", "categorical") if c not in likely and works(c)]
    return ColumnError(error.name, error.value, error.rule, error.hint, (*likely, "drop", *usual))


def _implied(name: str, spec: ColumnSpec, unique: Collection[str], computed: Collection[str]) -> ColumnSpec:
    """The spec of a column with the type that its other fields and the constraints imply."""
    if spec.type == "drop":
        return spec
    if name in unique and spec.type not in (None, "id"):
        raise UserError(
            f"data.table.columns.{name}",
            spec.type,
            "is unique by a constraint, and so an id",
            "Drop the type or the constraint.",
        )
    if name in unique or (spec.type is None and spec.pattern):
        return spec.model_copy(update={"type": "id"})
    if name in computed or (spec.type is None and spec.decimals is not None):
        return spec.model_copy(update={"type": "numerical"})
    if spec.type is None and spec.datetime_format:
        return spec.model_copy(update={"type": "datetime"})
    return spec


def _infer(source: Source) -> tuple[pa.Array, Column]:
    cells = source.cells
    if cells.null_count == len(cells):
        raise source.wrong("is a column that is all missing")
    reading = Reading(values.whole(cells), "of its type")
    if values.is_string(cells.type):
        reading = read_cells(source)
    if source.spec.type:
        reading = reading._replace(why=_BY_SPEC)
    if values.is_string(reading.array.type):
        array, column = reading.array, _kind_of_strings(source, reading)
    else:
        array, column = _kind_of_values(source, reading)
    missing = array.null_count > 0 or _has_nan(values.dense(array))
    column = replace(column, missing=missing, spelling=reading.spelling)
    return array, column if column.kind in ("id", "constant") else _bounded(source, column)


# --- strings -------------------------------------------------------------------------------------


def _kind_of_strings(source: Source, reading: Reading) -> Column:
    """A column of strings that stay strings: constant, id or categorical."""
    wanted, kind, distinct, counts = source.spec.type, reading.array.type, source.distinct, source.counts
    rows, complete = int(counts.sum()), source.strings.null_count == 0
    if wanted == "constant" or (wanted is None and len(distinct) == 1 and complete):
        return _constant(source, kind, len(distinct), complete, distinct[0].as_py())
    # Few distinct dates may be categories.
    if wanted is None and len(distinct) > MANY and as_dates(source) is not None:
        raise source.wrong_cell(f"is of type {kind} and reads as dates or times", choices=["datetime", "id"])
    if wanted == "id" or (wanted is None and complete and len(distinct) == rows > 1):
        if wanted is None:
            _refuse_dates(source)
        once = len(distinct) == rows or source.repeated
        pattern = source.spec.pattern or (ids.infer_pattern(distinct.to_pylist()) if once else None)
        if wanted == "id":
            _check_unique(source, source.strings)
        if pattern:
            return _id_of_strings(source, pattern, kind)
        if wanted == "id":
            raise source.wrong_cell(
                "is an id whose pattern is not seen in the cells",
                f"Give {source.field}.pattern, such as [A-Z]{{3}}-[0-9]{{6}}.",
                choices=[None],
            )
    if wanted is None and len(distinct) > MANY and counts[counts >= source.rare].sum() < rows / 2:
        raise source.wrong_cell(
            f"is free text: {len(distinct)} different strings in {rows} rows, most of them in "
            f"fewer than data.table.rare={source.rare}",
            "Give it a pattern if it is an id, or a datetime_format; as a category, rare strings become one.",
            choices=[*({"datetime_format": form} for form in asked_forms(source)), *source.nulls(no_dates(source))],
        )
    _check_common(source, counts)
    return Column(source.name, "categorical", kind, why=reading.why)


def _refuse_dates(source: Source) -> None:
    """Report strings that are no id although all differ: the pattern of dates has days that no month has."""
    forms, odd = asked_forms(source), no_dates(source)
    if forms:
        rule = "reads as dates or times, which are not of a form that is read unasked"
        raise source.wrong_cell(rule, choices=[{"datetime_format": form} for form in forms])
    if odd.any() and 2 * odd.sum() < len(odd):
        raise source.wrong_cell("is no date or time, as most cells are", "", odd, source.nulls(odd))
    if not odd.any():
        raise source.wrong_cell("looks like dates or times, some of which no calendar has")


def _id_of_strings(source: Source, regex: str, kind: pa.DataType) -> Column:
    pattern = ids.parse_pattern(regex, f"{source.field}.pattern")
    if source.spec.pattern:
        odd = np.array([not pattern.fits(t) for t in source.distinct.to_pylist()])
        if odd.any():
            rule = f"does not fit the pattern {pattern.regex}"
            raise source.wrong_cell(rule, "Correct the pattern.", odd, [{"pattern": None}])
    missing = first_true(source.strings.is_null())
    if missing is not None:
        rule = "is an id, and missing in some rows"
        raise source.wrong(rule, row=missing, choices=[None])
    why = _BY_SPEC if source.spec.type else "no string twice, all of one pattern"
    return Column(source.name, "id", kind, pattern=pattern.regex, why=why)


# --- numbers, booleans, dates ----------------------------------------------------------------


def _kind_of_values(source: Source, reading: Reading) -> tuple[pa.Array, Column]:
    """A column of numbers, booleans, dates or times."""
    array, wanted, why = reading.array, source.spec.type, reading.why
    if pa.types.is_dictionary(array.type):
        if wanted is None:
            wanted, why = "categorical", "a dictionary in the source"
        elif wanted not in ("categorical", "constant"):
            array = values.dense(array)
    dense, kind = values.dense(array), array.type
    natural = _natural_kind(dense.type)
    if wanted not in (None, "categorical", "constant", *_FITS[natural]):
        raise source.wrong(f"holds cells of type {kind}, which are not {wanted}", choices=[None])
    if natural == "numerical":
        _check_numbers(source, dense)
    distinct = pc.count_distinct(dense, mode="only_valid").as_py()
    complete = dense.null_count == 0 and not _has_nan(dense)
    if natural == "numerical" and wanted in (None, "datetime"):
        # A number of an order may look like a date and a time.
        is_id = (
            wanted is None and complete and _looks_like_id(source, dense, distinct) and not digits.named(source.name)
        )
        column = None if is_id else _dates_in_digits(source, dense)
        if column:
            return array, column
    if wanted == "constant" or (wanted is None and distinct == 1 and complete):
        value = values.plain(dense.drop_null().slice(0, 1))[0].as_py()
        return array, _constant(source, kind, distinct, complete, value)
    if natural == "numerical" and wanted in (None, "id"):
        column = _id_of_numbers(source, dense, distinct, complete)
        if column:
            return array, column
    if wanted == "categorical" or (wanted == "boolean" and natural == "numerical"):
        which, _ = values.plain_dictionary(dense)
        _check_common(source, np.bincount(which[which >= 0]))
        shown = "boolean" if natural == "boolean" else "categorical"
        return array, Column(source.name, shown, kind, why=why)
    if natural == "datetime":
        unit = values.step_ns(dense)
        return array, Column(source.name, natural, kind, decimals=0, unit=unit, why=why)
    if natural == "numerical":
        _check_exact(source, dense)
    decimals = None if natural == "boolean" else _decimals(source, dense, reading.decimals)
    return array, Column(source.name, natural, kind, decimals=decimals, why=why)


#: By what cells are, the kinds that a spec may make of them, besides a category and a constant.
_FITS = {"datetime": ("datetime",), "boolean": ("boolean",), "numerical": ("numerical", "id", "boolean", "datetime")}


def _natural_kind(kind: pa.DataType) -> Literal["datetime", "boolean", "numerical"]:
    if values.is_temporal(kind):
        return "datetime"
    return "boolean" if pa.types.is_boolean(kind) else "numerical"


def _check_numbers(source: Source, dense: Any) -> None:
    """That numbers are finite, and 0 or 1 where they are to be booleans."""
    numbers = values.numbers(dense)
    row = first_true(np.abs(numbers) > _LARGEST)
    if row is not None:
        infinite = source.like(INFINITE) if source.files.from_csv else np.zeros(len(source.distinct), np.bool_)
        raise source.wrong(
            "is infinite, or so large that it must be a sentinel value",
            "Put a number there, or leave "
            "the cell empty; what means a missing value in CSV belongs in data.table.nulls.",
            row,
            dense[row].as_py(),
            source.nulls(infinite),
        )
    row = first_true(~np.isin(numbers, (0, 1)) & ~np.isnan(numbers))
    if row is not None and source.spec.type == "boolean":
        raise source.wrong("is not 0 or 1", "", row, dense[row].as_py(), [None])


def _check_exact(source: Source, dense: Any) -> None:
    """That float64 holds whole numbers that are modelled as numbers."""
    row = None if pa.types.is_floating(dense.type) else first_true(np.abs(values.numbers(dense)) > values.EXACT)
    if row is not None:
        rule = "is a whole number beyond 2**53, which float64 does not hold"
        raise source.wrong(rule, "Store it as float, if it is a measure.", row, dense[row].as_py(), ["id"])


def _dates_in_digits(source: Source, dense: Any) -> Column | None:
    """A column of dates or times that whole numbers write, as in 20240131; None if they are none."""
    form, why = source.spec.datetime_format, _BY_SPEC
    if form is None:
        whole = values.decimals_of(values.numbers(dense)) == 0
        form, why = digits.infer(source.name, dense) if whole else "", "all cells read as dates or times of the form "
        if whole and not form and source.spec.type is None:
            _refuse_marks(source, dense)
    if form and digits.is_digits(form):
        row = first_true(np.isnan(digits.read(dense, form)) & ~np.isnan(values.numbers(dense)))
        if row is None:
            why = why if why == _BY_SPEC else why + form
            unit = digits.unit_ns(form)
            return Column(source.name, "datetime", dense.type, decimals=0, unit=unit, digits=form, why=why)
        raise source.wrong(
            f"does not fit datetime_format={form}",
            "Correct the format or the cell.",
            row,
            dense[row].as_py(),
            ["numerical"],
        )
    if source.spec.type == "datetime":
        raise source.wrong(
            f"holds cells of type {dense.type}, which are not datetime without a datetime_format such as %Y%m%d",
            choices=[None],
        )
    return None


def _refuse_marks(source: Source, dense: Any) -> None:
    """Report whole numbers that are dates but for a few: as numbers, they would become days that no month has."""
    form, marks = digits.marks(source.name, dense)
    if form:
        row = first_true(np.isin(values.numbers(dense), marks))
        odd = np.isin(values.numbers(source.distinct.cast(pa.float64())), marks)
        rule = f"is no date or time of the form {form}, as all but {len(marks)} different cells are"
        raise source.wrong(rule, "", row, int(marks[0]), [*source.nulls(odd), "numerical"])


def _decimals(source: Source, dense: Any, read: int | None) -> int | None:
    if pa.types.is_integer(dense.type):
        return 0
    if source.spec.decimals is not None or read is not None:
        return read if source.spec.decimals is None else source.spec.decimals
    if pa.types.is_decimal(dense.type):
        return values.decimals_used(dense)
    return values.decimals_of(values.numbers(dense), single=dense.type.bit_width < 64)


def _id_of_numbers(source: Source, dense: Any, distinct: int, complete: bool) -> Column | None:
    """An id of whole numbers, of the spec's pattern or no wider than they are; None if they are no id."""
    demanded, whole = source.spec.type == "id", pa.types.is_integer(dense.type)
    why = _BY_SPEC if demanded else _looks_like_id(source, dense, distinct) if whole and complete else ""
    if not why:
        return None
    if not whole or not complete:
        rule = "cannot be an id: ids are strings or whole numbers, and none is missing"
        raise source.wrong(rule, choices=[None])
    _check_unique(source, dense.dictionary_encode())
    row = first_true(pc.less(dense, 0))
    if row is not None:
        if not demanded:
            return None
        raise source.wrong("is an id, and negative", "", row, dense[row].as_py(), [None])
    regex = source.spec.pattern or ids.infer_whole(dense.unique().cast(pa.string()).to_pylist())
    largest = ids.parse_pattern(regex, f"{source.field}.pattern").largest(len(dense))
    if not largest.isdigit():
        rule = "is a column of whole numbers, and its pattern has other characters"
        raise source.wrong(rule, "Use digits, such as [0-9]{6}.", value=regex, choices=[{"pattern": None}])
    if int(largest) > values.greatest(dense.type):
        if not demanded:
            return None  # ids of as many digits do not fit the type, so these are numbers
        rule = f"has ids up to {largest}, which {dense.type} does not hold"
        raise source.wrong(rule, "Use a shorter pattern.", value=regex, choices=[{"pattern": None}])
    return Column(source.name, "id", dense.type, pattern=regex, why=why)


def _looks_like_id(source: Source, dense: Any, distinct: int) -> str:
    """Why whole numbers, none of them missing, are ids; empty if they are not."""
    if not distinct == len(dense) > 1:
        return ""
    if _ID_NAME.search(source.name):
        return "no value twice, and the name says so"
    low, high = (pc.min_max(dense)[k].as_py() for k in ("min", "max"))
    if high - low + 1 == len(dense) >= 4 * source.rare:
        return "no value twice, and one after the other"
    # Only numbers of many digits, so that there are enough others.
    checked = low >= 10**7 and ids.infer_whole(dense.cast(pa.string()).to_pylist()).endswith(">")
    return "no value twice, and each ends with a check digit" if checked else ""


# --- what both have ------------------------------------------------------------------------------


def _constant(source: Source, kind: pa.DataType, distinct: int, complete: bool, value: Any) -> Column:
    if distinct != 1 or not complete:
        more = "" if complete else " and missing ones"
        rule = f"is not constant: it has {distinct} different values{more}"
        raise source.wrong(rule, choices=[None])
    return Column(source.name, "constant", kind, value=value, why="one value in all rows")


def _check_unique(source: Source, cells: Any) -> None:
    """That no entry of a dictionary array comes twice, unless it may."""
    index = cells.indices.fill_null(-1).to_numpy()
    repeated = np.flatnonzero(np.bincount(index[index >= 0]) > 1)
    if repeated.size and not source.repeated:
        first, second = (int(row) for row in np.flatnonzero(index == repeated[0])[:2])
        raise source.wrong(
            f"is an id, and is also in {source.files.location(first)}",
            "Remove the repeated row.",
            second,
            cells[second].as_py(),
            [None],
        )


def _check_common(source: Source, counts: NDArray[np.int64]) -> None:
    if counts.max(initial=0) < source.rare:
        raise source.wrong(
            f"has {len(counts)} categories, all of them in fewer than data.table.rare={source.rare} rows",
            f"Give {assignment(('data', 'table', 'rare'), int(counts.max(initial=1)))}, or a pattern if it is an id.",
            choices=[None] if source.spec.type else [],
        )


def _has_nan(dense: Any) -> bool:
    return pa.types.is_floating(dense.type) and bool(pc.any(pc.is_nan(dense)).as_py())


def _bounded(source: Source, column: Column) -> Column:
    """The column with `min` and `max` of the spec in its own numbers."""
    bounds: dict[str, Any] = {}
    for end in ("min", "max"):
        bound = getattr(source.spec, end)
        if bound is None:
            continue
        if column.kind not in ("numerical", "datetime"):
            raise source.wrong(f"is {column.kind} and has no {end}", value=bound, choices=[{end: None}])
        if isinstance(bound, str) != (column.kind == "datetime"):
            rule = f"is {column.kind}, and its {end} is of another kind"
            raise source.wrong(rule, "Give a number, or a date as in 2024-12-31.", None, bound, [{end: None}])
        kind = digits.kind(column.digits) if column.digits else column.type
        cell = _moment(source, bound, kind, end) if isinstance(bound, str) else None
        if cell is None and pa.types.is_floating(values.value_type(column.type)):
            # As the cells have it: float32 has no 0.1.
            cell = values.from_numbers(np.array([bound], np.float64), column.type)
        bounds[end] = float(bound) if cell is None else float(values.numbers(cell, column.unit)[0])
    return replace(column, **bounds)


def _moment(source: Source, string: str, kind: pa.DataType, end: str) -> pa.Array:
    try:
        return values.literal(string, kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        remedy = "Write it as 2024-12-31 or 2024-12-31T23:59:00."
        rule = f"does not read as {kind} ({error})"
        raise source.wrong(rule, remedy, value=string, choices=[{end: None}]) from None
