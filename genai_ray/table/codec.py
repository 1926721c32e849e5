"""TableCodec: rows of a table as codes and scalars for a network, and back.

What it keeps of a real table: names, types, categories of at least `rare` rows each, and of numbers
the atoms, modes or bins and the range that `rare` rows reach. It holds no row.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genai_ray import rng
from genai_ray.errors import UserError
from genai_ray.spec import GenerateSpec
from genai_ray.table import conditions, constraints, ids, modes, values
from genai_ray.table.columns import Column, Part, combinations
from genai_ray.table.constraints import Rules
from genai_ray.table.distances import Distance
from genai_ray.table.spec import TableGenerateSpec
from genai_ray.table.spelling import FileSpelling

Codes = NDArray[np.int32]
Scalars = NDArray[np.float32]


@dataclass(frozen=True)
class TableCodec:
    """Columns of a table and the parts that a network models of them.

    columns: as they are decoded, in the order of the source. parts: what is modelled. members: by part, the indices of
    its columns, several for columns kept together. combos: by part, the codes of its columns that each of its own codes
    means, -1 for missing; empty for one column alone. rules: the constraints. csv: how cells are
    separated in the files of the source, if not as Arrow does it; see `spelling.FileSpelling`.

    A column that `less` bounds below by others is modelled as its distance from the greatest of them.
    """

    columns: tuple[Column, ...]
    parts: tuple[Part, ...]
    members: tuple[tuple[int, ...], ...]
    combos: tuple[tuple[tuple[int, ...], ...], ...]
    rules: Rules
    csv: Mapping[str, str] | None = None

    modality: ClassVar[str] = "table"

    @property
    def discrete(self) -> tuple[Part, ...]:
        return tuple(p for p in self.parts if p.discrete)

    @property
    def numeric(self) -> tuple[Part, ...]:
        return tuple(p for p in self.parts if not p.discrete)

    @property
    def label_width(self) -> int:
        """How many different categories a model can be conditioned on."""
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
    def by_name(self) -> dict[str, Column]:
        return {c.name: c for c in self.columns}

    @cached_property
    def distances(self) -> dict[str, Distance]:
        """Of the columns that are modelled as a distance from others."""
        out = {}
        for name in dict.fromkeys(r.high for r in self.rules.less):
            column, rules = self.by_name[name], self.rules.lows(name)
            if column.kind in ("numerical", "datetime") and not column.categories:
                lows = tuple(self.by_name[r.low] for r in rules)
                out[name] = Distance(column, lows, any(r.strict for r in rules))
        return out

    def columns_of(self, part: int) -> list[Column]:
        return [self.columns[i] for i in self.members[part]]

    # --- to codes ----------------------------------------------------------------------------

    def encode(self, table: pa.Table) -> tuple[Codes, Scalars]:
        """Codes (N, parts) int32 and scalars (N, numeric parts) float32 of rows of the source. The mode of a number is
        drawn by the index of its row.
        """
        n = table.num_rows
        codes = np.empty((n, len(self.parts)), np.int32)
        scalars = np.empty((n, len(self.numeric)), np.float32)
        words = rng.bits(0, rng.Stream.TABLE_MODES, 0, n, max(1, len(self.numeric)))
        draws = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
        number = 0
        for i, part in enumerate(self.parts):
            if part.discrete:
                codes[:, i] = self._categories(i, table)
            else:
                amounts = self.modelled(self.columns_of(i)[0], table)
                codes[:, i], scalars[:, number] = modes.encode_numbers(part, amounts, draws[:, number])
                number += 1
        return codes, scalars

    def _categories(self, index: int, table: pa.Table) -> NDArray[np.integer]:
        part, columns = self.parts[index], self.columns_of(index)
        if not self.combos[index]:
            # A missing value where training had none counts as a rare one.
            missing = columns[0].other if part.missing is None else part.missing
            codes = columns[0].codes(table.column(columns[0].name), columns[0].other)
            return np.where(codes < 0, missing, codes)
        distinct, which = combinations(columns, table)
        known = {combo: i for i, combo in enumerate(self.combos[index])}
        code_of = np.array([known.get(c, -1) for c in map(tuple, distinct.tolist())])
        frequent = np.argsort(-np.array(part.shares or np.ones(len(known))), kind="stable")
        for i in np.flatnonzero(code_of < 0):  # the combination with the most in common, then the most rows
            alike = (np.array(self.combos[index])[frequent] == distinct[i]).sum(1)
            code_of[i] = frequent[alike.argmax()]
        return code_of[which]

    def modelled(self, column: Column, table: pa.Table) -> NDArray[np.float64]:
        """The numbers of a column (N,), or their distance from their lower bound."""
        number, distance = self._numbers_of(table), self.distances.get(column.name)
        return distance.measure(number) if distance else number(column.name)

    def _numbers_of(self, cells: pa.Table | Mapping[str, pa.Array]) -> constraints.Numbers:
        """The numbers of a column by name, read from its cells once."""
        return cache(lambda name: self.by_name[name].numbers(cells[name]))

    # --- from codes --------------------------------------------------------------------------

    def decode(
        self, codes: NDArray[np.integer], numbers: NDArray[np.floating], rows: NDArray[np.int64], seed: int
    ) -> pa.Table:
        """Rows of the source's schema.

        Args:
            codes: (N, D) of the discrete parts. numbers: (N, M) of the numeric parts, NaN for missing. rows: indices
                (N,) of the rows, from which their ids are made. seed: of the data set.

        Raises:
            ValueError: if there are fewer ids than rows, which `check` reports earlier.
        """
        cells: dict[str, pa.Array] = {}
        number = self._numbers_of(cells)
        amounts: dict[str, NDArray[np.float64]] = {}
        next_codes, next_numbers = iter(codes.T), iter(np.asarray(numbers, np.float64).T)
        for i, part in enumerate(self.parts):
            if part.discrete:
                cells |= self._from_categories(i, next(next_codes))
            else:
                amounts[self.columns_of(i)[0].name] = next(next_numbers)
        for column in self.columns:
            if column.kind == "constant":
                cells[column.name] = values.take((column.value,), np.zeros(len(rows), int), column.type)
        for name in (*(n for n in amounts if n not in self.distances), *self.distances):
            column, amount = self.by_name[name], amounts[name]
            if name in self.distances:
                amount = self.distances[name].restore(amount, number)
            cells[name] = column.cells(amount)
        for formula in self.rules.formulas:
            column = self.by_name[formula.column]
            amount = formula.compute(number, len(rows))
            if column.decimals is not None:
                amount = np.round(amount, column.decimals)
            cells[column.name] = column.cells(amount)
        for index, column in enumerate(self.columns):
            if column.kind == "id":
                beside = [cells[name] for name in self.rules.beside.get(column.name, ())]
                first = [cells[column.prefix]] if column.prefix else []
                strings = ids.beside(self._patterns[column.name], rows, seed, index, [*beside, *first])
                strings = ids.joined(*first, strings)
                plain = strings.tolist() if values.is_string(column.type) else strings.astype(np.int64)
                cells[column.name] = values.from_plain(plain, column.type)
        return pa.table([cells[c.name] for c in self.columns], schema=self.schema)

    def _from_categories(self, index: int, codes: NDArray[np.integer]) -> dict[str, pa.Array]:
        columns, missing = self.columns_of(index), self.parts[index].missing
        if self.combos[index]:
            each = np.array(self.combos[index])[codes].T
        else:
            each = [codes if missing is None else np.where(codes == missing, -1, codes)]
        return {c.name: values.take(c.categories, of, c.type) for c, of in zip(columns, each, strict=True)}

    @cached_property
    def _patterns(self) -> dict[str, ids.Pattern | ids.Counted]:
        of_ids = [c for c in self.columns if c.kind == "id"]
        return {c.name: ids.parse_pattern(c.pattern, f"data.table.columns.{c.name}.pattern") for c in of_ids}

    # --- conditions and rules ----------------------------------------------------------------

    def check(self, spec: GenerateSpec) -> None:
        """Check that a request names existing columns and categories, and not more rows than ids.

        Raises:
            UserError: if it does not.
        """
        assert isinstance(spec, TableGenerateSpec)
        for name, pattern in self._patterns.items():
            ids.check_enough(name, pattern, self.by_name[name].type, spec.samples)
        for condition in spec.conditions or ():
            self.requested_codes(condition.where, "generate.conditions")

    def requested_codes(self, where: Mapping[str, Any], field: str) -> dict[int, int]:
        """The codes, by part, that a condition fixes: column to value, None for missing.

        A number is the code of its atom, bin or likeliest mode; a range by min and max fixes none. Columns kept
        together are fixed when the condition leaves one combination; those that are computed, or bounded below by
        `less`, are not fixed. `matches` says for which decoded rows the condition holds.

        Args:
            field: of the spec, for errors.

        Raises:
            UserError: for a column or category that is not known.
        """
        fixed: dict[int, int] = {}
        left: dict[int, list[int]] = {}  # by part, the combinations that the condition leaves
        part_of = {self.columns[m].name: (i, j) for i, of in enumerate(self.members) for j, m in enumerate(of)}
        for name, value in where.items():
            column = conditions.requested_column(name, self.by_name, field)
            if isinstance(value, Mapping):
                ends = conditions.range_ends(column, value, field)
                if name in part_of and name not in self.distances:
                    conditions.check_reached(column, self.parts[part_of[name][0]], ends, value, field)
                continue
            code = conditions.category_code(column, value, field)
            if name not in part_of or name in self.distances:
                continue
            index, member = part_of[name]
            part, combos = self.parts[index], self.combos[index]
            if combos:
                left[index] = [c for c in left.get(index, range(len(combos))) if combos[c][member] == code]
            elif part.discrete:
                fixed[index] = part.missing if code < 0 and part.missing is not None else code
            else:
                fixed[index] = conditions.number_code(column, part, value, field)
        if not all(left.values()):
            rule = "is a combination that the source does not have often enough"
            raise UserError(field, dict(where), rule, "Change one of the values.")
        return fixed | {index: codes[0] for index, codes in left.items() if len(codes) == 1}

    def matches(self, table: pa.Table, where: Mapping[str, Any]) -> NDArray[np.bool_]:
        """For which rows (N,) of a decoded table a condition holds."""
        out = np.ones(table.num_rows, bool)
        for name, value in where.items():
            out &= conditions.holds(self.by_name[name], table.column(name), value)
        return out

    def valid(self, table: pa.Table, *, unique: bool = True) -> NDArray[np.bool_]:
        """Which rows (N,) keep all constraints; of rows with the same unique value only the first does. A combination
        that fewer than `rare` rows have does not count as seen.

        unique: False to leave repeats alone, as between several attempts at one row.
        """
        out = np.ones(table.num_rows, bool)
        numbers = self._numbers_of(table)
        for _, _, kept in constraints.rule_masks(self.rules, self.by_name, numbers, table.num_rows):
            out &= kept
        for index, combos in enumerate(self.combos):
            if combos:
                distinct, which = combinations(self.columns_of(index), table, unknown=-2)
                known = set(combos)
                out &= np.array([tuple(c) in known for c in distinct.tolist()], bool)[which]
        for _, _, kept in constraints.key_masks(self.rules, table) if unique else ():
            out &= kept
        return out

    def labels(self, count: int) -> NDArray[np.int64]:
        """Conditions (count, parts) as `draw_labels` makes them of a fixed seed."""
        words = rng.bits(0, rng.Stream.SAMPLE_CONDITION, 0, count, 2)
        return self.draw_labels(words.astype(np.float64) * 2.0**-64)

    def draw_labels(self, uniforms: NDArray[np.float64]) -> NDArray[np.int64]:
        """Conditions (N, parts): one category each, of a discrete part drawn evenly, as often as it is in the training
        rows; -1 elsewhere.

        uniforms: (N, 2) in 0..1, for which part and which category.
        """
        return conditions.draw_labels(self.parts, uniforms)

    # --- files and people --------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        return {
            "modality": self.modality,
            "columns": [c.to_json() for c in self.columns],
            "parts": [p.to_json() for p in self.parts],
            "members": [list(m) for m in self.members],
            "combos": [[list(c) for c in combos] for combos in self.combos],
            "rules": self.rules.to_json(),
        } | ({} if self.csv is None else {"csv": dict(self.csv)})

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "TableCodec":
        return cls(
            columns=tuple(map(Column.from_json, stored["columns"])),
            parts=tuple(map(Part.from_json, stored["parts"])),
            members=tuple(map(tuple, stored["members"])),
            combos=tuple(tuple(map(tuple, combos)) for combos in stored["combos"]),
            rules=Rules.from_json(stored["rules"]),
            csv=stored.get("csv"),
        )

    def describe(self) -> dict[str, Any]:
        """What a person wants to know of it: columns by kind, categories and ranges."""
        kinds: dict[str, list[str]] = {}
        for column in self.columns:
            kinds.setdefault(column.kind, []).append(column.described())
        rules = "; ".join(self.rules.described())
        out: dict[str, Any] = {kind: ", ".join(columns) for kind, columns in kinds.items()}
        return out | ({"constraints": rules} if rules else {})


def file_spelling(codec: TableCodec) -> FileSpelling | None:
    """How CSV is written as the source was; None if that is how Arrow writes it."""
    columns = {c.name: c.spelling for c in codec.columns if c.spelling is not None}
    own = FileSpelling(columns=columns, **(codec.csv or {}))
    return None if own == FileSpelling() else own


def learnt(codec: TableCodec) -> TableCodec:
    """A codec without what only the spelling of CSV needs."""
    return replace(codec, columns=tuple(replace(c, spelling=None) for c in codec.columns), csv=None)


def from_json(stored: dict[str, Any]) -> TableCodec:
    """The codec as a model card or a checkpoint holds it."""
    return TableCodec.from_json(stored)
