"""TableCodec: rows of a table as codes and scalars for a network, and back.

What of a real table it holds: names, types, categories of at least `rare` rows each, and of numbers
the atoms, modes or bins and the range that `rare` rows reach. It holds no row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genai_ray import rng
from genai_ray.errors import UserError, nearest
from genai_ray.spec import GenerateSpec
from genai_ray.table import constraints, ids, modes, values
from genai_ray.table.columns import Column, Part
from genai_ray.table.constraints import Less, Rules
from genai_ray.table.spec import TableGenerateSpec, TableSpec
from genai_ray.table.values import pc

Codes = NDArray[np.int32]
Scalars = NDArray[np.float32]


@dataclass(frozen=True)
class TableCodec:
    """Columns of a table and the parts that a network models of them.

    columns: as they are decoded, in the order of the source. parts: what is modelled. members: by
    part, the numbers of its columns, several for columns kept together. combos: by part, the codes
    of its columns that each of its own codes means, -1 for missing; empty for one column alone.
    rules: the constraints.

    A column that `less` puts above others is modelled as its distance from the greatest of them (or
    from the least value they can have, where they are all missing).
    """

    columns: tuple[Column, ...]
    parts: tuple[Part, ...]
    members: tuple[tuple[int, ...], ...]
    combos: tuple[tuple[tuple[int, ...], ...], ...]
    rules: Rules

    modality: ClassVar[str] = "table"

    @property
    def discrete(self) -> tuple[Part, ...]:
        return tuple(p for p in self.parts if p.discrete)

    @property
    def numeric(self) -> tuple[Part, ...]:
        return tuple(p for p in self.parts if not p.discrete)

    @property
    def label_width(self) -> int:
        """How many different categories a model can be asked for."""
        return sum(p.size for p in self.discrete)

    @property
    def categorical(self) -> tuple[str, ...]:
        """Columns of categories, whatever the type of their cells."""
        return tuple(c.name for c in self.columns if c.kind in ("categorical", "boolean"))

    @property
    def without_meaning(self) -> tuple[str, ...]:
        """Columns that say nothing of a row: ids and constants."""
        return tuple(c.name for c in self.columns if c.kind in ("id", "constant"))

    @cached_property
    def schema(self) -> pa.Schema:
        """Of the tables that `decode` makes: names, order and types of the source."""
        return pa.schema([(c.name, c.type) for c in self.columns])

    @cached_property
    def _by_name(self) -> dict[str, Column]:
        return {c.name: c for c in self.columns}

    @cached_property
    def _part_of(self) -> dict[str, int]:
        return {self.columns[m].name: i for i, of in enumerate(self.members) for m in of}

    # --- to codes ----------------------------------------------------------------------------

    def encode(self, table: pa.Table, start: int = 0) -> tuple[Codes, Scalars]:
        """Codes (N, parts) int32 and scalars (N, numeric parts) float32 of rows of the source.

        start: number of the first row. The mode of a number is drawn by the number of its row, so
        a table may be encoded whole or in pieces.
        """
        n = table.num_rows
        codes = np.empty((n, len(self.parts)), np.int32)
        scalars = np.empty((n, len(self.numeric)), np.float32)
        draws = _draws(start, n, len(self.numeric))
        number = 0
        for i, part in enumerate(self.parts):
            if part.discrete:
                codes[:, i] = self._categories(i, table)
            else:
                column = self.columns[self.members[i][0]]
                given = self._modelled(column, table)
                codes[:, i], scalars[:, number] = modes.encode(part, given, draws[:, number])
                number += 1
        return codes, scalars

    def _categories(self, index: int, table: pa.Table) -> Codes:
        part, columns = self.parts[index], [self.columns[m] for m in self.members[index]]
        coded = [_coded(c, table.column(c.name), c.other) for c in columns]
        if not self.combos[index]:
            missing = part.size - 1 if part.missing is None else part.missing
            # A missing value where training had none goes with the rare ones.
            gone = columns[0].other if part.missing is None else missing
            return np.where(coded[0] < 0, gone, coded[0]).astype(np.int32)
        joined = np.stack(coded, 1)
        distinct, which = np.unique(joined, axis=0, return_inverse=True)
        known = {combo: i for i, combo in enumerate(self.combos[index])}
        lookup = [known.get(c, -1) for c in map(tuple, distinct.tolist())]
        all_known = np.array(self.combos[index])
        order = np.argsort(-np.array(part.shares or np.ones(len(all_known))), kind="stable")
        for i, code in enumerate(lookup):
            if code < 0:  # the combination with the most in common, of these the most frequent
                alike = (all_known[order] == distinct[i]).sum(1)
                lookup[i] = int(order[alike.argmax()])
        return np.array(lookup, np.int32)[which.reshape(-1)]

    def _modelled(self, column: Column, table: pa.Table) -> NDArray[np.float64]:
        """The numbers of a column, or their distance from what they must not be less than."""
        own = self._numbers(column.name, table)
        rules = self._differences.get(column.name)
        if not rules:
            return own
        floor, unit = self._floor(rules, lambda name: self._numbers(name, table))
        return np.maximum(own * (column.unit // unit) - floor, 0)

    def _numbers(self, name: str, table: pa.Table) -> NDArray[np.float64]:
        return values.numbers(table.column(name), self._by_name[name].unit)

    @cached_property
    def _differences(self) -> dict[str, list[Less]]:
        """Columns that are modelled by their distance from others, and the rules that say so."""
        highs = dict.fromkeys(r.high for r in self.rules.less)
        return {h: self.rules.lows(h) for h in highs if _own_number(self._by_name[h])}

    def _floor(self, rules: list[Less], numbers: constraints.Numbers) -> tuple[NDArray[np.float64], int]:
        """What a column must not be less than (N,), and the unit of that in nanoseconds."""
        columns = [self._by_name[r.low] for r in rules]
        unit = min(c.unit for c in (*columns, self._by_name[rules[0].high]))
        lows = np.stack([numbers(c.name) * (c.unit // unit) for c in columns])
        least = max((c.low or 0.0) * (c.unit // unit) for c in columns)
        filled = np.where(np.isnan(lows), -np.inf, lows).max(0)
        return np.where(np.isinf(filled), least, filled), unit

    # --- from codes --------------------------------------------------------------------------

    def business(
        self, codes: NDArray[np.integer], scalars: NDArray[np.floating]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """What the end of the ONNX graph makes of codes and scalars: codes of the discrete parts
        (N, D) and values of the numeric parts (N, M), NaN for missing.
        """
        chosen = [i for i, p in enumerate(self.parts) if p.discrete]
        numbers = [(i, p) for i, p in enumerate(self.parts) if not p.discrete]
        out = [modes.decode(p, codes[:, i], scalars[:, j]) for j, (i, p) in enumerate(numbers)]
        shape = (len(codes), len(out))
        return (codes[:, chosen].astype(np.int64), np.stack(out, 1) if out else np.empty(shape, np.float64))

    def decode(
        self,
        codes: NDArray[np.integer],
        numbers: NDArray[np.floating],
        rows: NDArray[np.int64],
        seed: int,
        *,
        preview: bool = False,
    ) -> pa.Table:
        """Rows of the source's schema.

        Args:
            codes: (N, D) of the discrete parts. numbers: (N, M) of the numeric parts, NaN for
                missing. rows: numbers (N,) of the rows, from which their ids are made. seed: of the
                data set. preview: ids may repeat, so that there are enough for any rows.

        Raises:
            ValueError: if there are fewer ids than rows; `check_ids` tells before.
        """
        done: dict[str, pa.Array] = {}
        known: dict[str, NDArray[np.float64]] = {}

        def number(name: str) -> NDArray[np.float64]:
            if name not in known:
                known[name] = values.numbers(done[name], self._by_name[name].unit)
            return known[name]

        modelled: dict[str, NDArray[np.float64]] = {}
        at_code = at_number = 0
        for i, part in enumerate(self.parts):
            if part.discrete:
                done |= self._from_categories(i, np.asarray(codes[:, at_code]))
                at_code += 1
            else:
                name = self.columns[self.members[i][0]].name
                modelled[name] = np.asarray(numbers[:, at_number], np.float64)
                at_number += 1
        for place, column in enumerate(self.columns):
            if column.kind == "constant":
                done[column.name] = values.taken((column.value,), np.zeros(len(rows), np.int64), column.type)
            elif column.kind == "id":
                pattern, which = self._patterns[column.name], np.asarray(rows, np.int64)
                which = which % min(pattern.size, 2**62) if preview else which
                done[column.name] = _ids_as(pattern.ids(which, seed, place), column.type)
        for name in [*(n for n in modelled if n not in self._differences), *self._differences]:
            column = self._by_name[name]
            value = modelled[name]
            if name in self._differences:
                value = self._raised(column, value, number)
            done[name] = values.from_numbers(value, column.type, column.unit)
        for formula in self.rules.formulas:
            column = self._by_name[formula.column]
            value = formula.compute(number, len(rows))
            if column.decimals is not None:
                value = np.round(value, column.decimals) + 0.0
            done[formula.column] = values.from_numbers(value, column.type)
        return pa.table([done[c.name] for c in self.columns], schema=self.schema)

    def _from_categories(self, index: int, codes: NDArray[np.integer]) -> dict[str, pa.Array]:
        columns = [self.columns[m] for m in self.members[index]]
        if not self.combos[index]:
            missing = self.parts[index].missing
            which = codes if missing is None else np.where(codes == missing, -1, codes)
            return {columns[0].name: values.taken(columns[0].categories, which, columns[0].type)}
        combos = np.array(self.combos[index])[codes]
        return {c.name: values.taken(c.categories, combos[:, j], c.type) for j, c in enumerate(columns)}

    def _raised(
        self, column: Column, distance: NDArray[np.float64], number: constraints.Numbers
    ) -> NDArray[np.float64]:
        """A column from its distance from what it must not be less than."""
        rules = self._differences[column.name]
        floor, unit = self._floor(rules, number)
        ratio = column.unit // unit
        assert column.low is not None
        assert column.high is not None
        # Rounded up where rounding would go below; what the range takes away again, `valid` finds.
        value = np.clip((floor + distance) / ratio, column.low, column.high)
        if column.decimals is not None:
            value = np.round(value, column.decimals)
            below = value * ratio <= floor if any(r.strict for r in rules) else value * ratio < floor
            value = np.where(below, np.round(value + column.step, column.decimals), value)
        return value + 0.0

    @cached_property
    def _patterns(self) -> dict[str, ids.Pattern]:
        return {
            c.name: ids.parse(c.pattern, f"data.table.columns.{c.name}.pattern")
            for c in self.columns
            if c.kind == "id"
        }

    def check_ids(self, samples: int) -> None:
        """That there are ids for so many rows.

        Raises:
            UserError: naming the column whose pattern has too few.
        """
        for name, pattern in self._patterns.items():
            if pattern.size < samples:
                raise UserError(
                    f"data.table.columns.{name}.pattern",
                    pattern.text,
                    f"has {pattern.size} ids, and {samples} rows are asked for",
                    f"Set it to a longer one, such as {pattern.wider(samples)}, or ask for fewer rows.",
                )

    def check(self, spec: GenerateSpec) -> None:
        """That a request names columns and categories that are there, and not more rows than ids.

        Raises:
            UserError: if it does not.
        """
        assert isinstance(spec, TableGenerateSpec)
        self.check_ids(spec.samples)
        for condition in spec.conditions or ():
            self.given(condition.where, "generate.conditions")

    # --- conditions and rules ----------------------------------------------------------------

    def given(self, where: Mapping[str, Any], field: str) -> dict[int, int]:
        """The codes, by part, that a condition fixes: column to value, None for missing.

        A number is the code of its atom, bin or likeliest mode. Columns kept together are fixed
        when the condition leaves one combination; those that are computed or stand above others by
        `less` are not fixed. `matches` tells which rows the condition holds for in the end.

        Args:
            field: of the spec, for errors.

        Raises:
            UserError: for a column or category that is not known.
        """
        out: dict[int, int] = {}
        grouped: dict[int, dict[int, int]] = {}
        for name, value in where.items():
            column = self._column(name, field)
            if column.kind == "constant":
                if self._literal(column, value, field) != column.value:
                    raise UserError(
                        field, f"{name}={value}", "is a column of one other value", "Drop the condition."
                    )
                continue
            index = self._part_of.get(name)
            code = self._code(column, value, field)
            if index is None or name in self._differences:
                continue
            part = self.parts[index]
            if self.combos[index]:
                grouped.setdefault(index, {})[self.members[index].index(self._place(name))] = code
            elif part.discrete:
                out[index] = part.missing if code < 0 and part.missing is not None else code
            else:
                out[index] = self._number_code(column, part, value, field)
        for index, wanted in grouped.items():
            fits = [
                i
                for i, combo in enumerate(self.combos[index])
                if all(combo[m] == c for m, c in wanted.items())
            ]
            if not fits:
                raise UserError(
                    field,
                    dict(where),
                    "is a combination that the source does not have often enough",
                    "Change one of the values.",
                )
            if len(fits) == 1:
                out[index] = fits[0]
        return out

    def matches(self, table: pa.Table, where: Mapping[str, Any]) -> NDArray[np.bool_]:
        """Which rows (N,) of a decoded table a condition holds for."""
        out = np.ones(table.num_rows, bool)
        for name, value in where.items():
            column = self._column(name, "where")
            cells = values.dense(table.column(name))
            if value is None:
                out &= cells.is_null().to_numpy(zero_copy_only=False)
            else:
                wanted = _literal(column, value)[0]
                same = pc.fill_null(pc.equal(cells, wanted), False)
                out &= same.to_numpy(zero_copy_only=False)
        return out

    def valid(self, table: pa.Table, *, unique: bool = True) -> NDArray[np.bool_]:
        """Which rows (N,) keep all constraints; of rows with the same unique value only the first
        does. A combination that fewer than `rare` rows have does not count as seen.

        unique: False to leave repeats alone, as between several attempts at one row.
        """
        out = np.ones(table.num_rows, bool)

        def number(name: str) -> NDArray[np.float64]:
            return self._numbers(name, table)

        for _, _, kept in constraints.checks(self.rules, self._by_name, number, table.num_rows):
            out &= kept
        for index, combos in enumerate(self.combos):
            if combos:
                coded = [
                    _coded(self.columns[m], table.column(self.columns[m].name), -2)
                    for m in self.members[index]
                ]
                distinct, which = np.unique(np.stack(coded, 1), axis=0, return_inverse=True)
                seen = np.array([c in set(combos) for c in map(tuple, distinct.tolist())], bool)
                out &= seen[which.reshape(-1)]
        for name in self.rules.unique if unique else ():
            which, _ = values.plain_dictionary(table.column(name))
            first = np.zeros(len(which), bool)
            first[np.unique(which, return_index=True)[1]] = True
            out &= first
        return out

    def labels(self, count: int) -> NDArray[np.int64]:
        """Conditions (count, parts) as `draw_labels` makes them of a fixed seed."""
        seed = rng.Stream.SAMPLE_CONDITION
        return self.draw_labels(rng.bits(0, seed, 0, count, 2).astype(np.float64) * 2.0**-64)

    def draw_labels(self, places: NDArray[np.float64]) -> NDArray[np.int64]:
        """Conditions (N, parts): one category each, of a discrete part drawn evenly, as often as
        it is in the training rows; -1 elsewhere.

        places: (N, 2) in 0..1, which part and which category.
        """
        out = np.full((len(places), len(self.parts)), -1, np.int64)
        chosen = np.array([i for i, p in enumerate(self.parts) if p.discrete], np.int64)
        if not len(chosen):
            return out
        ends = np.full((len(chosen), max(self.parts[i].size for i in chosen)), np.inf)
        for row, i in enumerate(chosen):
            # The last takes what rounding leaves below 1.
            ends[row, : self.parts[i].size - 1] = np.cumsum(self.parts[i].shares)[:-1]
        part = np.minimum((places[:, 0] * len(chosen)).astype(np.int64), len(chosen) - 1)
        out[np.arange(len(places)), chosen[part]] = (places[:, 1:] >= ends[part]).sum(1)
        return out

    def _place(self, name: str) -> int:
        return next(i for i, c in enumerate(self.columns) if c.name == name)

    def _column(self, name: str, field: str) -> Column:
        if name not in self._by_name:
            raise UserError(field, name, "is not a column of the table", nearest(name, self._by_name))
        column = self._by_name[name]
        if column.kind == "id":
            raise UserError(field, name, "is an id, which cannot be asked for", "Drop it.")
        return column

    def _literal(self, column: Column, value: Any, field: str) -> Any:
        """A value that a person wrote as a plain one."""
        try:
            return values.plain(_literal(column, value))[0].as_py()
        except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:
            raise UserError(
                field,
                f"{column.name}={value}",
                f"must be a value of type {column.type} ({error})",
                "Correct it.",
            ) from None

    def _code(self, column: Column, value: Any, field: str) -> int:
        """The number of a category, -1 for missing; 0 for numbers."""
        if value is None:
            if not column.missing:
                raise UserError(
                    field, f"{column.name}=null", "has no missing values in the source", "Ask for a value."
                )
            return -1
        wanted = self._literal(column, value, field)
        if not column.categories:
            return 0
        if wanted not in column.categories:
            shown = [str(v) for v in values.from_plain(column.categories, column.type).to_pylist()]
            raise UserError(
                field,
                f"{column.name}={value}",
                "is a category that the source does not have, or that is too rare there",
                nearest(str(value), shown),
            )
        return column.categories.index(wanted)

    def _number_code(self, column: Column, part: Part, value: Any, field: str) -> int:
        if value is None:
            assert part.missing is not None
            return part.missing
        number = values.numbers(_literal(column, value), column.unit)
        if not part.low <= number[0] <= part.high:
            ends = [values.shown(e, column.type, column.unit) for e in (part.low, part.high)]
            raise UserError(
                field,
                f"{column.name}={value}",
                f"must lie in {ends[0]} .. {ends[1]}",
                "Ask for a value that is generated.",
            )
        middle = np.array([0.5])
        if not part.weights:
            return int(modes.encode(part, number, middle)[0][0])
        # The likeliest mode is the one most draws hit.
        spread = (np.arange(101) + 0.5) / 101
        codes, _ = modes.encode(part, np.repeat(number, 101), spread)
        return int(np.bincount(codes).argmax())

    # --- files and people --------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        return {
            "modality": self.modality,
            "columns": [c.to_json() for c in self.columns],
            "parts": [p.to_json() for p in self.parts],
            "members": [list(m) for m in self.members],
            "combos": [[list(c) for c in combos] for combos in self.combos],
            "rules": self.rules.to_json(),
        }

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> "TableCodec":
        return cls(
            tuple(Column.from_json(c) for c in given["columns"]),
            tuple(Part.from_json(p) for p in given["parts"]),
            tuple(tuple(m) for m in given["members"]),
            tuple(tuple(tuple(c) for c in combos) for combos in given["combos"]),
            Rules.from_json(given["rules"]),
        )

    def describe(self) -> dict[str, Any]:
        """What a person wants to know of it: columns by kind, categories and ranges."""
        kinds: dict[str, list[str]] = {}
        for column in self.columns:
            kinds.setdefault(column.kind, []).append(self._described(column))
        out: dict[str, Any] = {kind: ", ".join(columns) for kind, columns in kinds.items()}
        rules = [f"{r.low} {'<' if r.strict else '<='} {r.high}" for r in self.rules.less]
        rules += [" + ".join(t) for t in self.rules.together]
        rules += [f.text for f in self.rules.formulas] + [f"{u} unique" for u in self.rules.unique]
        return out | ({"constraints": "; ".join(rules)} if rules else {})

    def _described(self, column: Column) -> str:
        if column.kind in ("categorical", "boolean"):
            return f"{column.name} ({len(column.categories)})"
        if column.kind == "id":
            return f"{column.name} ({column.pattern})"
        if column.low is None or column.high is None:
            return column.name
        low, high = (values.shown(e, column.type, column.unit) for e in (column.low, column.high))
        return f"{column.name} ({low} .. {high})"


# --- fitting -------------------------------------------------------------------------------------


def fit(
    table: pa.Table, columns: tuple[Column, ...], rules: Rules, spec: TableSpec
) -> tuple[TableCodec, Codes, Scalars]:
    """A codec for a table, and the table in it.

    Args:
        table: training rows. columns: what `infer` found. rules: constraints that `table` keeps.

    Raises:
        UserError: if nothing in the table varies, or a column has too few rows of any value.
    """
    fixed = {c.name for c in columns if c.kind == "constant"}
    groups = [[n for n in group if n not in fixed] for group in rules.together]
    together = {n: group for group in groups if len(group) > 1 for n in group}
    columns = tuple(_completed(c, table, spec, c.name in together) for c in columns)
    place = {c.name: i for i, c in enumerate(columns)}
    parts: list[Part] = []
    members: list[tuple[int, ...]] = []
    combos: list[tuple[tuple[int, ...], ...]] = []
    for i, column in enumerate(columns):
        if column.kind in ("constant", "id", "formula"):
            continue
        group = together.get(column.name)
        if group and place[group[0]] != i:
            continue
        if group:
            found = _combinations([columns[place[n]] for n in group], table, spec)
            parts.append(Part("+".join(group), len(found), ()))
            members.append(tuple(place[n] for n in group))
            combos.append(found)
            continue
        if column.categories:
            size = len(column.categories)
            part = Part(column.name, size + column.missing, (), missing=size if column.missing else None)
        else:
            assert column.low is not None
            assert column.high is not None
            part = Part(
                column.name,
                0,
                (),
                (0.0,),
                low=column.low,
                high=column.high,
                decimals=column.decimals,
                missing=0 if column.missing else None,
            )
        parts.append(part)
        members.append((i,))
        combos.append(())
    if not any(p.size > 1 if p.discrete else p.low < p.high for p in parts):
        raise UserError(
            "data",
            [c.name for c in columns][:4],
            "are columns of which none varies, so that there is nothing to learn",
            "Check the file, data.table.columns and data.table.rare.",
        )
    codec = TableCodec(columns, tuple(parts), tuple(members), tuple(combos), rules)
    numeric = [i for i, p in enumerate(parts) if not p.discrete]
    modelled = [codec._modelled(columns[members[i][0]], table) for i in numeric]
    ready = [_of_distance(codec, parts[i], x, spec) for i, x in zip(numeric, modelled, strict=True)]
    for i, part in zip(numeric, modes.fit_parts(ready, modelled, spec.numbers, spec.rare), strict=True):
        parts[i] = part
    codec = replace(codec, parts=tuple(parts))
    codes, scalars = codec.encode(table)
    shares = [np.bincount(codes[:, i], minlength=p.size) / len(codes) for i, p in enumerate(parts)]
    known = [replace(p, shares=tuple(s.tolist())) for p, s in zip(parts, shares, strict=True)]
    return replace(codec, parts=tuple(known)), codes, scalars


def _own_number(column: Column) -> bool:
    return column.kind in ("numerical", "datetime") and not column.categories


def _literal(column: Column, value: Any) -> pa.Array:
    """A value that a person wrote, as a column of one cell.

    Raises:
        ValueError: (or as `values.literal`) if it does not read as the column's type.
    """
    if isinstance(value, bool) and values.is_text(column.type):
        # YAML reads yes, no, true and the like as truth, where they are words of the table.
        words = ("true", "yes", "on") if value else ("false", "no", "off")
        known = column.categories or (column.value,)
        meant = [c for c in known if isinstance(c, str) and c.lower() in words]
        if len(meant) > 1:
            raise ValueError(f"may be meant as {' or '.join(meant)}; write it in quotes")
        value = meant[0] if meant else str(value)
    elif isinstance(value, bool) and column.categories and set(column.categories) <= {0, 1}:
        value = int(value)
    return values.literal(value, column.type)


def _draws(start: int, n: int, count: int) -> NDArray[np.float64]:
    """Uniforms in 0..1 (n, count), by the number of the row."""
    words = rng.bits(0, rng.Stream.TABLE_MODES, start, n, max(1, count))
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _coded(column: Column, cells: pa.ChunkedArray, unknown: int) -> NDArray[np.int64]:
    """The numbers of categories (N,), -1 for missing."""
    which, found = values.plain_dictionary(cells)
    known = {v: i for i, v in enumerate(column.categories)}
    return np.array([*(known.get(v, unknown) for v in found), -1], np.int64)[which]


def _completed(column: Column, table: pa.Table, spec: TableSpec, grouped: bool) -> Column:
    """The column with what its training rows say: categories, or a range."""
    cells = table.column(column.name)
    if column.kind in ("categorical", "boolean") or grouped:
        column = _with_categories(column, cells, spec)
    if not (column.is_number or column.kind == "constant") or values.is_text(column.type):
        return column
    if pa.types.is_boolean(values.value_type(column.type)):
        return column
    numbers = values.numbers(cells, column.unit)
    numbers = np.sort(numbers[~np.isnan(numbers)])
    if len(numbers) < spec.rare:
        if column.kind == "formula":
            return column
        raise UserError(
            f"data.table.columns.{column.name}",
            len(numbers),
            f"is how many training rows have a value there, fewer than data.table.rare={spec.rare}",
            "Set it to drop.",
        )
    low, high = modes.span(numbers, spec.rare)
    low = column.min if column.min is not None else low
    high = column.max if column.max is not None else high
    return replace(column, low=low, high=max(low, high))


def _with_categories(column: Column, cells: pa.ChunkedArray, spec: TableSpec) -> Column:
    which, found = values.plain_dictionary(cells)
    counts = np.bincount(which[which >= 0], minlength=len(found))
    kept = sorted(v for v, c in zip(found, counts, strict=True) if c >= spec.rare)
    if not kept:
        raise UserError(
            f"data.table.columns.{column.name}",
            column.name,
            f"has {int((counts > 0).sum())} "
            f"categories, all of them in fewer than data.table.rare={spec.rare} training rows",
            "Set it to drop, or choose a smaller data.table.rare.",
        )
    rare_rows = int(counts[counts < spec.rare].sum())
    most = kept.index(found[int(counts.argmax())])
    if not values.is_text(column.type) or rare_rows < spec.rare:
        return replace(column, categories=tuple(kept), other=most)
    if spec.rare_label not in kept:
        kept.append(spec.rare_label)
    return replace(column, categories=tuple(kept), other=kept.index(spec.rare_label))


def _combinations(columns: list[Column], table: pa.Table, spec: TableSpec) -> tuple[tuple[int, ...], ...]:
    """Codes of columns kept together that enough rows have."""
    coded = np.stack([_coded(c, table.column(c.name), c.other) for c in columns], 1)
    distinct, counts = np.unique(coded, axis=0, return_counts=True)
    kept = distinct[counts >= spec.rare]
    if not len(kept):
        raise UserError(
            constraints.FIELD,
            [c.name for c in columns],
            f"have {len(distinct)} combinations, all of them in fewer than data.table.rare={spec.rare} rows",
            "Drop the constraint, or choose a smaller data.table.rare.",
        )
    return tuple(map(tuple, kept.tolist()))


def _of_distance(codec: TableCodec, part: Part, modelled: NDArray[np.float64], spec: TableSpec) -> Part:
    """The part with the range and decimals of the distance, if that is what it models."""
    rules = codec._differences.get(part.name)
    if not rules:
        return part
    columns = [codec._by_name[n] for n in (part.name, *(r.low for r in rules))]
    places = [c.decimals for c in columns]
    decimals = None if None in places else max(p for p in places if p is not None)
    low, high = modes.span(np.sort(modelled[~np.isnan(modelled)]), spec.rare)
    least = 0.0 if decimals is None or not any(r.strict for r in rules) else 10.0**-decimals
    return replace(part, low=max(low, least), high=max(high, low, least), decimals=decimals)


def _ids_as(texts: NDArray[np.str_], kind: pa.DataType) -> pa.Array:
    if values.is_text(kind):
        return pa.array(texts.tolist(), values.value_type(kind)).cast(kind)
    return pa.array(texts.astype(np.int64)).cast(kind)


def from_json(values: dict[str, Any]) -> TableCodec:
    """The codec as a model card or a checkpoint holds it."""
    return TableCodec.from_json(values)
