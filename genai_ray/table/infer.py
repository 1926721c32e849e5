"""What the columns of a table are: kind and type of each, from its cells and from what a spec says.

Text of CSV is a number, date or truth value if all of it reads as one; else an id if no cell is
like another and all follow one pattern; else a category; else it is refused as free text. The
types of Parquet are taken as they are, but where a spec says that texts are numbers or dates, or a
dictionary is of numbers that are no categories.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genai_ray.errors import UserError, nearest
from genai_ray.table import ids, values
from genai_ray.table.columns import Column
from genai_ray.table.files import Files, texts
from genai_ray.table.spec import ColumnSpec
from genai_ray.table.values import first_true, pc

#: A text column with more categories than this may be free text.
MANY = 50
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_WHOLE = r"^[+-]?\d{1,18}$"
_INFINITE = r"^(?i:[+-]?inf(inity)?)$"
#: 007 and 01234 are codes, such as of places, whose zeros would be lost.
_CODE = r"^[+-]?0\d"
_TRUTH = {"true": True, "false": False}
_MORE_TRUTH = {
    **_TRUTH,
    "yes": True,
    "no": False,
    "y": True,
    "n": False,
    "t": True,
    "f": False,
    "1": True,
    "0": False,
}
#: Shapes of dates that are not ISO 8601, and how each may be meant.
_DATES = (
    (r"^\d{1,2}/\d{1,2}/\d{4}$", ("%d/%m/%Y", "%m/%d/%Y")),
    (r"^\d{1,2}-\d{1,2}-\d{4}$", ("%d-%m-%Y", "%m-%d-%Y")),
    (r"^\d{1,2}\.\d{1,2}\.\d{4}$", ("%d.%m.%Y",)),
    (r"^\d{4}/\d{1,2}/\d{1,2}$", ("%Y/%m/%d",)),
    (r"^\d{1,2} [A-Za-z]{3} \d{4}$", ("%d %b %Y",)),
    (r"^\d{1,2}-[A-Za-z]{3}-\d{4}$", ("%d-%b-%Y",)),
    (r"^\d{1,2}:\d{2}:\d{2}$", ("%H:%M:%S",)),
    (r"^\d{1,2}:\d{2}$", ("%H:%M",)),
)
#: Numbers beyond are marks of something else, such as the largest float64.
_LARGEST = 1e100
_ISO_DAY = r"^\d{4}-\d{2}-\d{2}$"
_ISO = r"^\d{4}-\d{2}-\d{2}[T ]\d{2}(:\d{2}){0,2}(\.\d{1,9})?(Z|[+-]\d{2}(:?\d{2})?)?$"
_ID_NAME = re.compile(r"(^|[^A-Za-z])(?i:id|uuid|guid|key|no|nr|number)$|[a-z](Id|ID|Key|Nr|No)$")


def infer(
    files: Files,
    specs: Mapping[str, ColumnSpec],
    unique: Collection[str] = (),
    computed: Collection[str] = (),
) -> tuple[pa.Table, tuple[Column, ...]]:
    """The table with cells of their types, without dropped columns, and what its columns are.

    Args:
        specs: what is known better than the cells tell, by column.
        unique: columns that are ids by a constraint. computed: columns that have a formula.

    Raises:
        UserError: for a column that no model can be made of, and for a spec that does not fit.
    """
    names = files.table.column_names
    for name in specs:
        if name not in names:
            raise UserError("data.table.columns", name, "is not a column of the files", nearest(name, names))
    arrays, columns = {}, []
    for name in names:
        spec = specs.get(name, ColumnSpec())
        if spec.type == "drop":
            continue
        if name in unique and spec.type not in (None, "id"):
            raise UserError(
                f"data.table.columns.{name}",
                spec.type,
                "is unique by a constraint, and so an id",
                "Drop the type or the constraint.",
            )
        if name in unique or (spec.type is None and spec.pattern):
            spec = spec.model_copy(update={"type": "id"})
        elif name in computed or (spec.type is None and spec.decimals is not None):
            spec = spec.model_copy(update={"type": "numerical"})
        elif spec.type is None and spec.datetime_format:
            spec = spec.model_copy(update={"type": "datetime"})
        reader = _Reader(files, name, spec, files.table.column(name))
        array, column = reader.read()
        columns.append(replace(column, kind="formula") if name in computed else column)
        arrays[name] = array
    if not columns:
        raise UserError("data.table.columns", list(specs), "leave no column", "Drop fewer.")
    return pa.table(arrays), tuple(columns)


@dataclass
class _Reader:
    """One column on its way to a type."""

    files: Files
    name: str
    spec: ColumnSpec
    cells: pa.ChunkedArray

    @property
    def field(self) -> str:
        return f"data.table.columns.{self.name}"

    @property
    def rare(self) -> int:
        return self.files.spec.rare

    def wrong(self, rule: str, remedy: str, row: int | None = None, value: Any = None) -> UserError:
        where = f"{self.files.place(row)}: {value}" if row is not None else value
        return UserError(self.field, where, rule, remedy)

    def read(self) -> tuple[pa.Array, Column]:
        if self.cells.null_count == len(self.cells):
            raise self.wrong(
                "is a column that is all missing", f"Leave it out: data.table.columns.{self.name}=drop."
            )
        if values.is_text(self.cells.type):
            array, column = self._text(texts(self.cells))
        else:
            array, column = self._typed(self.cells, "of its type", None)
        column = replace(column, missing=array.null_count > 0 or _has_nan(array))
        if column.kind in ("id", "constant"):
            return array, column
        return array, self._range(column, array)

    # --- text --------------------------------------------------------------------------------

    def _text(self, cells: pa.DictionaryArray) -> tuple[pa.Array, Column]:
        """A column of texts, each once in the dictionary of `cells`."""
        distinct: Any = cells.dictionary
        wanted = self.spec.type
        if wanted == "numerical":
            return self._typed(*self._numbers(cells, distinct))
        if wanted == "datetime":
            dates = self._dates(cells, distinct, self.spec.datetime_format)
            if dates is None:
                raise self.wrong(
                    "does not read as dates",
                    "Give datetime_format, such as %d/%m/%Y.",
                    *self._first(cells, None),
                )
            return self._typed(dates, "as the spec says", None)
        if wanted == "boolean":
            return self._typed(self._truth(cells, distinct, _MORE_TRUTH), "as the spec says", None)
        if self.files.text and wanted in (None, "categorical", "constant"):
            found = self._read_as_values(cells, distinct)
            if found is not None:
                return found
        if wanted == "id" and self.files.text and self._all(distinct, r"^([1-9]\d{0,17}|0)$"):
            whole = distinct.cast(pa.int64()).take(cells.indices)
            return self._typed(whole, "as the spec says", None)
        kind = pa.string() if self.files.text else self.cells.type
        array = cells.dictionary_decode() if self.files.text else values.whole(self.cells)
        return array, self._words(cells, distinct, kind)

    def _read_as_values(self, cells: pa.DictionaryArray, distinct: Any) -> tuple[pa.Array, Column] | None:
        """The column as numbers, truth values or dates, if all its texts read so."""
        number = self._like(distinct, _NUMBER) & ~self._like(distinct, _CODE)
        number |= self._like(distinct, _INFINITE)
        long = self._like(distinct, r"^[+-]?\d{17,}$")
        if number.all() and not long.any():
            return self._typed(*self._numbers(cells, distinct))
        if self.spec.type is None and number.any() and not number.all():
            self._refuse_mixed(cells, distinct, number)
        if set(pc.unique(pc.utf8_lower(distinct)).to_pylist()) <= set(_TRUTH):
            return self._typed(self._truth(cells, distinct, _TRUTH), "true and false", None)
        dates = self._dates(cells, distinct, None) if self.spec.type is None else None
        if dates is not None:
            return self._typed(dates, "all cells read as dates or times", None)
        return None

    def _refuse_mixed(self, cells: Any, distinct: Any, number: NDArray[np.bool_]) -> None:
        """Numbers with a few words among them are a mistake; few values of both are categories."""
        counts = _counts(cells)
        odd, rows = counts[~number].sum(), counts.sum()
        if odd > rows / 2 or (number.sum() <= MANY and odd >= self.rare):
            return
        raise self.wrong(
            f"mixes numbers and text; this is the first of {odd} cells that are no number",
            "Mend the cell, add it to data.table.nulls if it means a missing value, or set "
            f"data.table.columns.{self.name}=categorical.",
            *self._first(cells, ~number),
        )

    def _numbers(self, cells: Any, distinct: Any) -> tuple[pa.Array, str, int | None]:
        number = self._like(distinct, _NUMBER) | self._like(distinct, _INFINITE)
        if not number.all():
            raise self.wrong(
                "is not a number, as data.table.columns demands",
                "Mend the cell, or change the type.",
                *self._first(cells, ~number),
            )
        plain = pc.replace_substring_regex(distinct, r"^\+", "")
        if self._all(plain, _WHOLE):
            return plain.cast(pa.int64()).take(cells.indices), "all cells are whole numbers", 0
        point = np.asarray(pc.find_substring(plain, "."))
        places = np.where(point < 0, 0, np.asarray(pc.utf8_length(plain)) - point - 1).max()
        if self._like(plain, "[eE]").any():
            places = values.decimals_of(plain.cast(pa.float64()).to_numpy())
        decimals = None if places is None or places > 12 else int(places)
        return plain.cast(pa.float64()).take(cells.indices), "all cells are numbers", decimals

    def _truth(self, cells: Any, distinct: Any, words: Mapping[str, bool]) -> pa.Array:
        truth = [words.get(t.lower()) for t in distinct.to_pylist()]
        odd = np.array([t is None for t in truth])
        if odd.any():
            raise self.wrong(
                "is not true or false", f"Use {', '.join(words)}, or another type.", *self._first(cells, odd)
            )
        return pa.array(truth, pa.bool_()).take(cells.indices)

    def _dates(self, cells: Any, distinct: Any, form: str | None) -> pa.Array | None:
        """The column as dates, times or points in time; None if it is none of them."""
        if form is not None:
            parsed = _strptime(distinct, form)
            if parsed.null_count:
                raise self.wrong(
                    f"does not fit datetime_format={form}",
                    "Correct the format or the cell; what means a missing value belongs in data.table.nulls.",
                    *self._first(cells, _isnull(parsed)),
                )
            return _compact(parsed, form).take(cells.indices)
        try:
            if self._all(distinct, _ISO_DAY):
                return distinct.cast(pa.date32()).take(cells.indices)
            if self._all(distinct, f"({_ISO})|({_ISO_DAY})"):
                zoned = self._like(distinct, r"[T ].*(Z|[+-]\d{2}(:?\d{2})?)$")
                if zoned.any() and not zoned.all():
                    return None
                kind = pa.timestamp("us", "UTC" if zoned.all() else None)
                return _compact(distinct.cast(kind), "%H").take(cells.indices)
        except pa.ArrowInvalid:  # a day that no month has
            return None
        for shape, forms in _DATES:
            if not self._all(distinct, shape):
                continue
            parsed = {f: p for f in forms if not (p := _strptime(distinct, f)).null_count}
            if len(parsed) > 1:
                raise self.wrong(
                    f"may be meant as {' or '.join(parsed)}",
                    f"Say which: data.table.columns.{self.name}.datetime_format={next(iter(parsed))}.",
                    *self._first(cells, None),
                )
            if parsed:
                ((form, array),) = parsed.items()
                return _compact(array, form).take(cells.indices)
        return None

    def _words(self, cells: Any, distinct: Any, kind: pa.DataType) -> Column:
        """A column of texts that stay texts: constant, id or categorical."""
        wanted, counts = self.spec.type, _counts(cells)
        rows, complete = int(counts.sum()), cells.null_count == 0
        if wanted == "constant" or (wanted is None and len(distinct) == 1 and complete):
            return self._constant(len(distinct), complete, distinct[0].as_py(), kind)
        # Of few different dates categories can be made.
        many = wanted is None and len(distinct) > MANY
        if many and self._dates(cells, distinct, None) is not None:
            raise self.wrong(
                f"is of type {kind} and reads as dates or times",
                "Set data.table.columns."
                f"{self.name}=datetime, to have them as such, or =categorical, =id or =drop.",
                *self._first(cells, None),
            )
        if wanted == "id" or (wanted is None and complete and len(distinct) == rows > 1):
            pattern = self.spec.pattern or (
                ids.infer(distinct.to_pylist()) if len(distinct) == rows else None
            )
            if wanted == "id" or pattern:
                self._check_unique(cells, counts)
            if pattern:
                return self._id(pattern, cells, distinct, kind)
            if wanted == "id":
                raise self.wrong(
                    "is an id whose pattern is not seen in the cells",
                    f"Give data.table.columns.{self.name}.pattern, such as [A-Z]{{3}}-[0-9]{{6}}.",
                    *self._first(cells, None),
                )
        common = int(counts[counts >= self.rare].sum())
        if wanted is None and len(distinct) > MANY and common < rows / 2:
            raise self.wrong(
                f"is free text: {len(distinct)} different texts in {rows} rows, most of them in "
                f"fewer than data.table.rare={self.rare}",
                f"Set data.table.columns.{self.name} to "
                "drop, to categorical (rare texts become one category), to id with a pattern, or "
                "to datetime with its format.",
                *self._first(cells, None),
            )
        self._check_common(counts)
        why = "as the spec says" if wanted else f"{len(distinct)} different texts"
        return Column(self.name, "categorical", kind, why=why)

    # --- typed cells -------------------------------------------------------------------------

    def _typed(
        self, cells: pa.Array | pa.ChunkedArray, why: str, decimals: int | None
    ) -> tuple[pa.Array, Column]:
        """A column of numbers, truth values, dates or times."""
        array, wanted = values.whole(cells), self.spec.type
        why = "as the spec says" if wanted else why
        if pa.types.is_dictionary(array.type):
            if wanted is None:
                wanted, why = "categorical", "a dictionary in the source"
            elif wanted not in ("categorical", "constant"):
                array = values.dense(array)
        kind = array.type
        temporal, truth = values.is_temporal(kind), pa.types.is_boolean(values.value_type(kind))
        which = "datetime" if temporal else "boolean" if truth else "numerical"
        fits = {
            "datetime": ("datetime",),
            "boolean": ("boolean",),
            "numerical": ("numerical", "id", "boolean"),
        }[which]
        if wanted not in (None, "categorical", "constant", *fits):
            raise self.wrong(f"holds cells of type {kind}, which are not {wanted}", "Correct the type.")
        if which == "numerical":
            self._check_finite(array)
        if wanted == "boolean" and which == "numerical":
            odd = ~np.isin(values.numbers(array), (0, 1)) & ~np.isnan(values.numbers(array))
            if odd.any():
                row = first_true(odd)
                assert row is not None
                raise self.wrong("is not 0 or 1", "Use another type.", row, array[row].as_py())
            wanted = "categorical"
        dense = values.dense(array)
        distinct = pc.count_distinct(dense, mode="only_valid").as_py()
        complete = dense.null_count == 0 and not _has_nan(dense)
        if wanted == "constant" or (wanted is None and distinct == 1 and complete):
            value = values.plain(dense.drop_null().slice(0, 1))[0].as_py()
            return array, self._constant(distinct, complete, value, kind)
        if which == "numerical" and wanted in (None, "id"):
            reason = self._looks_like_id(dense, distinct, complete)
            if wanted == "id" or reason:
                found = self._numeric_id(dense, distinct, complete, kind, why if wanted else reason)
                if found:
                    return array, found
        if wanted == "categorical" or which == "boolean":
            if wanted == "categorical":
                which_value, _ = values.plain_dictionary(dense)
                self._check_common(np.bincount(which_value[which_value >= 0]))
            return array, Column(self.name, "boolean" if truth else "categorical", kind, why=why)
        if temporal:
            unit = values.step_ns(dense)
            return array, Column(self.name, "datetime", kind, decimals=0, unit=unit, why=why)
        if decimals is None:
            decimals = self._decimals(dense)
        places = self.spec.decimals if self.spec.decimals is not None else decimals
        if pa.types.is_integer(dense.type):
            places = 0
        return array, Column(self.name, "numerical", kind, decimals=places, why=why)

    def _decimals(self, array: Any) -> int | None:
        if pa.types.is_integer(array.type):
            return 0
        if pa.types.is_decimal(array.type):
            return max(0, array.type.scale)
        single = array.type.bit_width < 64
        return values.decimals_of(values.numbers(array), single)

    def _check_finite(self, array: Any) -> None:
        found = values.numbers(array)
        row = first_true(np.abs(found) > _LARGEST)
        if row is not None:
            raise self.wrong(
                "is infinite, or so large that it cannot be meant",
                "Put a number there, or leave "
                "the cell empty; what means a missing value in CSV belongs in data.table.nulls.",
                row,
                array[row].as_py(),
            )
        row = first_true(np.abs(found) > values.EXACT)
        if (
            row is not None
            and self.spec.type in (None, "numerical")
            and not pa.types.is_floating(values.value_type(array.type))
        ):
            raise self.wrong(
                "is a whole number beyond 2**53, which float64 does not hold",
                f"Set data.table.columns.{self.name} to id or categorical, or store it as float.",
                row,
                array[row].as_py(),
            )

    def _looks_like_id(self, array: Any, distinct: int, complete: bool) -> str:
        """Why whole numbers are ids; empty if they are not."""
        if not (complete and distinct == len(array) > 1 and pa.types.is_integer(array.type)):
            return ""
        if _ID_NAME.search(self.name):
            return "no value twice, and the name says so"
        low, high = (pc.min_max(array)[k].as_py() for k in ("min", "max"))
        consecutive = high - low + 1 == len(array) >= 4 * self.rare
        return "no value twice, and one after the other" if consecutive else ""

    def _numeric_id(
        self, array: Any, distinct: int, complete: bool, kind: pa.DataType, why: str
    ) -> Column | None:
        """An id of whole numbers: of the pattern, or of as many digits as there are."""
        if not pa.types.is_integer(array.type) or not complete:
            raise self.wrong(
                "cannot be an id: ids are texts or whole numbers, and none is missing", "Set another type."
            )
        if distinct < len(array):
            encoded = array.dictionary_encode()
            self._check_unique(encoded, _counts(encoded))
        digits = len(str(pc.max(pc.abs(array.cast(pa.int64(), safe=False))).as_py()))
        text = self.spec.pattern or ("[0-9]" if digits == 1 else f"[1-9][0-9]{{{digits - 1}}}")
        pattern = ids.parse(text, f"{self.field}.pattern")
        largest = "".join(max(p) for p in pattern.places)
        if not all(c.isdigit() for p in pattern.places for c in p):
            raise self.wrong(
                "is a column of whole numbers, and its pattern has other characters",
                "Use digits, such as [0-9]{6}.",
                value=text,
            )
        limit = 2 ** (array.type.bit_width - pa.types.is_signed_integer(array.type)) - 1
        if int(largest) > min(limit, 2**62):
            if self.spec.type is None:
                return None  # ids of as many digits do not fit the type, so these are numbers
            raise self.wrong(
                f"has ids up to {largest}, which {array.type} does not hold",
                "Use a shorter pattern.",
                value=text,
            )
        return Column(self.name, "id", kind, pattern=text, why=why)

    # --- what both have ----------------------------------------------------------------------

    def _constant(self, distinct: int, complete: bool, value: Any, kind: pa.DataType) -> Column:
        if distinct != 1 or not complete:
            raise self.wrong(
                f"is not constant: it has {distinct} different values"
                f"{'' if complete else ' and missing ones'}",
                "Set another type.",
            )
        return Column(self.name, "constant", kind, value=value, why="one value in all rows")

    def _id(self, text: str, cells: Any, distinct: Any, kind: pa.DataType) -> Column:
        pattern = ids.parse(text, f"{self.field}.pattern")
        if self.spec.pattern:
            odd = np.array([not pattern.fits(t) for t in distinct.to_pylist()])
            if odd.any():
                raise self.wrong(
                    f"does not fit the pattern {pattern.text}",
                    "Correct the pattern.",
                    *self._first(cells, odd),
                )
        if cells.null_count:
            raise self.wrong(
                "is an id, and missing in some rows",
                "Set another type, or drop it.",
                *self._first_missing(cells),
            )
        why = "as the spec says" if self.spec.type else "no text twice, all of one pattern"
        return Column(self.name, "id", kind, pattern=pattern.text, why=why)

    def _check_unique(self, cells: Any, counts: NDArray[np.int64]) -> None:
        if not (counts > 1).any():
            return
        repeated = cells.indices.fill_null(-1).to_numpy()
        rows = np.flatnonzero(repeated == np.flatnonzero(counts > 1)[0])
        raise self.wrong(
            f"is an id, and also stands in {self.files.place(int(rows[0]))}",
            f"Remove the repeated row, or set data.table.columns.{self.name}=categorical.",
            int(rows[1]),
            cells[int(rows[1])].as_py(),
        )

    def _check_common(self, counts: NDArray[np.int64]) -> None:
        if counts.max(initial=0) < self.rare:
            raise self.wrong(
                f"has {len(counts)} categories, all of them in fewer than data.table.rare={self.rare} rows",
                f"Set data.table.columns.{self.name}=drop, "
                "an id with a pattern, or a smaller data.table.rare.",
            )

    def _range(self, column: Column, array: pa.Array) -> Column:
        """The column with `min` and `max` of the spec in its own numbers."""
        bounds = {}
        for end in ("min", "max"):
            bound = getattr(self.spec, end)
            if bound is None:
                continue
            if column.kind not in ("numerical", "datetime"):
                raise self.wrong(f"is {column.kind} and has no {end}", f"Drop {end}.", value=bound)
            if isinstance(bound, str) != (column.kind == "datetime"):
                raise self.wrong(
                    f"is {column.kind}, and its {end} is of another kind",
                    "Give a number, or a date as in 2024-12-31.",
                    value=bound,
                )
            if isinstance(bound, str):
                bounds[end] = self._moment(bound, column)
            elif pa.types.is_floating(values.value_type(column.type)):
                # As the cells have it: float32 has no 0.1.
                as_cell = values.from_numbers(np.array([bound], np.float64), column.type)
                bounds[end] = float(values.numbers(as_cell)[0])
            else:
                bounds[end] = float(bound)
        return replace(column, **bounds)

    def _moment(self, text: str, column: Column) -> float:
        try:
            array = values.literal(text, column.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
            raise self.wrong(
                f"does not read as {column.type} ({error})",
                "Write it as 2024-12-31 or 2024-12-31T23:59:00.",
                value=text,
            ) from None
        return float(values.numbers(array, column.unit)[0])

    def _first(self, cells: Any, which: NDArray[np.bool_] | None) -> tuple[int, Any]:
        """Row and text of the first cell whose entry in the dictionary is marked; None: any."""
        index = cells.indices.fill_null(-1).to_numpy()
        marked = index >= 0 if which is None else np.append(which, False)[index]
        row = first_true(marked)
        assert row is not None
        return row, cells[row].as_py()

    def _first_missing(self, cells: Any) -> tuple[int, Any]:
        row = first_true(cells.is_null())
        assert row is not None
        return row, None

    @staticmethod
    def _like(distinct: Any, pattern: str) -> NDArray[np.bool_]:
        return np.asarray(pc.match_substring_regex(distinct, pattern))

    def _all(self, distinct: Any, pattern: str) -> bool:
        return bool(self._like(distinct, pattern).all())


def _has_nan(array: Any) -> bool:
    array = values.dense(array)
    return pa.types.is_floating(array.type) and bool(pc.any(pc.is_nan(array)).as_py())


def _isnull(array: Any) -> NDArray[np.bool_]:
    return array.is_null().to_numpy(zero_copy_only=False)


def _counts(cells: Any) -> NDArray[np.int64]:
    """How often each entry of the dictionary occurs."""
    index = cells.indices.drop_null().to_numpy()
    return np.bincount(index, minlength=len(cells.dictionary))


def _strptime(distinct: Any, form: str) -> pa.Array:
    """Texts as timestamps in microseconds, null where they do not fit the format."""
    if not re.search("%[fzZpcxXGuVU]", form):
        return pc.strptime(distinct, format=form, unit="us", error_is_null=True)
    parsed: list[datetime | None] = []
    for text in distinct.to_pylist():
        try:
            parsed.append(datetime.strptime(text, form))
        except ValueError:
            parsed.append(None)
    zoned = any(p is not None and p.tzinfo for p in parsed)
    if zoned:
        parsed = [p and p.astimezone(UTC) for p in parsed]
    return pa.array(parsed, pa.timestamp("us", "UTC" if zoned else None))


def _compact(array: pa.Array, form: str) -> pa.Array:
    """Timestamps as time of day if the format has no date; as dates if it has no time; else in
    milliseconds if that is exact.
    """
    if not re.search("%[aAwdbBmyYjUWcxGuVDFe]", form) and "%H" in form and form != "%H":
        # Not in seconds, which Parquet does not have.
        fine = values.step_ns(array) < 10**6
        return array.cast(pa.time64("us") if fine else pa.time32("ms"), safe=False)
    if not re.search("%[HIMSpfcXTR]", form):
        return array.cast(pa.date32(), safe=False)
    unit = "ms" if values.step_ns(array) >= 10**6 else "us"
    return array.cast(pa.timestamp(unit, array.type.tz))
