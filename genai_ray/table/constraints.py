"""Rules that every row keeps: how they are written, whether they contradict each other, which rows keep them.

less: low <= high. together: the combinations are those seen. formula: a column is arithmetic of
others. unique: no value twice, or no combination of several columns. How the codec makes rows that keep them is in
`codec`.
"""

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genai_ray.errors import UserError, nearest
from genai_ray.table import digits
from genai_ray.table.columns import Column
from genai_ray.table.spec import Constraint
from genai_ray.table.values import DAY_NS, plain_dictionary, value_type

FIELD = "data.table.constraints"
Numbers = Callable[[str], NDArray[np.float64]]
_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
}


@dataclass(frozen=True)
class Less:
    low: str
    high: str
    strict: bool

    def __str__(self) -> str:
        return f"{self.low} {'<' if self.strict else '<='} {self.high}"


@dataclass(frozen=True)
class Formula:
    """`column = expression`. Names of columns that are no identifiers are written in backquotes."""

    source: str

    @cached_property
    def _parsed(self) -> tuple[str, ast.expr, dict[str, str]]:
        names: dict[str, str] = {}

        def placeholder(quoted: re.Match[str]) -> str:
            names[f"column_{len(names)}_"] = quoted[1]
            return f"column_{len(names) - 1}_"

        target, equals, expression = re.sub(r"`([^`]+)`", placeholder, self.source).partition("=")
        target = target.strip()
        if not equals or not target:
            raise self._wrong("must be `column = expression`")
        try:
            tree = ast.parse(expression.strip(), mode="eval").body
        except (SyntaxError, ValueError) as error:
            raise self._wrong(f"must be arithmetic ({error})") from None
        for node in ast.walk(tree):
            allowed = (ast.BinOp, ast.UnaryOp, ast.Name, ast.Constant, ast.Load, ast.UAdd, ast.USub)
            number = not isinstance(node, ast.Constant) or type(node.value) in (int, float)
            if not (isinstance(node, (*allowed, *_OPERATORS)) and number):
                raise self._wrong(f"has {type(node).__name__}")
        return names.get(target, target), tree, names

    def _wrong(self, rule: str) -> UserError:
        return UserError(
            FIELD,
            self.source,
            rule,
            "Use + - * /, numbers, parentheses and columns; put a name such as `net price` in backquotes.",
        )

    @property
    def column(self) -> str:
        return self._parsed[0]

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        _, tree, names = self._parsed
        used = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name)]
        return tuple(dict.fromkeys(names.get(n, n) for n in used))

    def compute(self, numbers: Numbers, rows: int) -> NDArray[np.float64]:
        """The expression's value in each row (N,); NaN where it has none."""
        _, tree, names = self._parsed

        def value(node: ast.AST) -> Any:
            if isinstance(node, ast.BinOp):
                return _OPERATORS[type(node.op)](value(node.left), value(node.right))
            if isinstance(node, ast.UnaryOp):
                operand = value(node.operand)
                return -operand if isinstance(node.op, ast.USub) else operand
            if isinstance(node, ast.Constant):
                return np.float64(node.value)  # pyright: ignore[reportArgumentType]
            assert isinstance(node, ast.Name)
            return numbers(names.get(node.id, node.id))

        with np.errstate(all="ignore"):
            out = np.broadcast_to(np.asarray(value(tree), np.float64), (rows,))
        return np.where(np.isfinite(out), out, np.nan)


@dataclass(frozen=True)
class Rules:
    """All constraints of a table. `less` is in an order in which low columns come before high. keys: columns that are
    unique together; the first of each is an id that may repeat beside other values of the rest.
    """

    less: tuple[Less, ...] = ()
    together: tuple[tuple[str, ...], ...] = ()
    formulas: tuple[Formula, ...] = ()
    unique: tuple[str, ...] = ()
    keys: tuple[tuple[str, ...], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.less or self.together or self.formulas or self.unique or self.keys)

    @cached_property
    def beside(self) -> dict[str, tuple[str, ...]]:
        """Of the first column of each key the others."""
        return {key[0]: key[1:] for key in self.keys}

    def lows(self, high: str) -> list[Less]:
        return [rule for rule in self.less if rule.high == high]

    def described(self) -> list[str]:
        together = map(" + ".join, self.together)
        unique = (f"{u} unique" for u in (*self.unique, *map(" + ".join, self.keys)))
        return [*map(str, self.less), *together, *(f.source for f in self.formulas), *unique]

    def to_json(self) -> dict[str, Any]:
        return {
            "less": [[r.low, r.high, r.strict] for r in self.less],
            "together": [list(t) for t in self.together],
            "formulas": [f.source for f in self.formulas],
            "unique": list(self.unique),
            # Codecs of earlier versions have no such list, and keep their digest.
            **({"keys": [list(k) for k in self.keys]} if self.keys else {}),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Rules":
        return cls(
            tuple(Less(*v) for v in values["less"]),
            tuple(tuple(v) for v in values["together"]),
            tuple(Formula(v) for v in values["formulas"]),
            tuple(values["unique"]),
            tuple(map(tuple, values.get("keys", ()))),
        )


def rules_of(constraints: Iterable[Constraint], names: Iterable[str]) -> Rules:
    """The constraints of a spec on a table of these columns.

    Raises:
        UserError: for unknown columns, and for rules that contradict each other.
    """
    constraints, names = list(constraints), list(names)
    formulas = tuple(Formula(c.formula) for c in constraints if c.formula is not None)
    less = tuple(dict.fromkeys(Less(*c.less, c.strict) for c in constraints if c.less is not None))
    together = tuple(c.together for c in constraints if c.together is not None)
    every = dict.fromkeys((c.unique,) if isinstance(c.unique, str) else c.unique for c in constraints if c.unique)
    unique, keys = tuple(k[0] for k in every if len(k) == 1), tuple(k for k in every if len(k) > 1)
    used = [n for f in formulas for n in (f.column, *f.inputs)]
    used += [n for r in less for n in (r.low, r.high)]
    for name in (*used, *(n for t in (*together, *keys) for n in t), *unique):
        if name not in names:
            raise UserError(FIELD, name, "is not a column of the table", nearest(name, names))
    for group in (*together, *keys):
        if len(set(group)) < 2 or len(set(group)) < len(group):
            raise UserError(FIELD, list(group), "must be two or more columns, each once", "Correct the names.")
    computed = [f.column for f in formulas]
    grouped = [n for t in together for n in t]
    compared = {n for r in less for n in (r.low, r.high)}
    ids = [*unique, *(k[0] for k in keys)]
    contradictions = [
        (_twice(computed), "has two formulas"),
        (_twice(grouped), "is in two sets of columns kept together"),
        (set(computed) & set(grouped), "is computed by a formula and kept together with others"),
        (set(computed) & compared, "is computed by a formula and compared by less"),
        (_twice(ids), "is unique in two ways"),
        (set(computed) & set(ids), "is computed by a formula and unique"),
        (set(ids) & set(grouped), "is unique and kept together with others"),
        (set(ids) & compared, "is unique and compared by less"),
        (set(ids) & {n for k in keys for n in k[1:]}, "is an id and beside another in a key"),
    ]
    for columns, what in contradictions:
        if columns:
            raise UserError(
                FIELD, min(columns), f"{what}, which cannot both be promised", "Keep one of the constraints."
            )
    order = _sorted({r.high: [x.low for x in less if x.high == r.high] for r in less}, "less")
    computing = _sorted({f.column: f.inputs for f in formulas}, "formula")
    return Rules(
        tuple(sorted(less, key=lambda r: order.index(r.high))),
        together,
        tuple(sorted(formulas, key=lambda f: computing.index(f.column))),
        unique,
        keys,
    )


def check_kinds(rules: Rules, columns: Mapping[str, Column]) -> None:
    """Check that the kinds of the columns fit the rules.

    Raises:
        UserError: for a rule about numbers that has a column of another kind.
    """

    def need(name: str, allowed: tuple[str, ...], rule: str) -> None:
        column = columns[name]
        kind = _domain(column)
        if kind not in allowed:
            raise UserError(
                FIELD,
                name,
                f"is {column.kind} and cannot be in {rule}",
                "Correct the constraint, or the type by data.table.columns.",
            )

    for formula in rules.formulas:
        for name in (formula.column, *formula.inputs):
            need(name, ("number",), "a formula")
    for rule in rules.less:
        need(rule.low, ("number", "date", "time"), "less")
        need(rule.high, (_domain(columns[rule.low]),), f"less beside {rule.low}")
    for name in (n for t in rules.together for n in t):
        need(name, ("number", "date", "time", "category"), "together")


def _domain(column: Column) -> str:
    if column.kind == "id":
        return "id"
    if column.kind in ("numerical", "formula") or (
        column.kind == "constant"
        and type(column.value) in (int, float)
        and not pa.types.is_temporal(value_type(column.type))
    ):
        return "number"
    if column.kind in ("datetime", "constant"):
        kind = digits.kind(column.digits) if column.digits else value_type(column.type)
        if not pa.types.is_temporal(kind):
            return "category"
        return "time" if pa.types.is_time(kind) else "date"
    return "category"


def rule_masks(
    rules: Rules, columns: Mapping[str, Column], numbers: Numbers, rows: int
) -> Iterator[tuple[str, tuple[str, ...], NDArray[np.bool_]]]:
    """Each rule about numbers as a string, its columns, and which rows (N,) keep it: those with a missing value do."""
    for column in columns.values():
        if column.min is not None or column.max is not None:
            value = numbers(column.name)
            low = -np.inf if column.min is None else column.min
            high = np.inf if column.max is None else column.max
            # NaN compares false.
            inside = ~((value < low) | (value > high))
            yield f"{column.name} in {low:g}..{high:g}", (column.name,), inside
    for rule in rules.less:
        low, high = compared(columns[rule.low], columns[rule.high], numbers)
        broken = (low >= high) if rule.strict else (low > high)
        yield str(rule), (rule.low, rule.high), ~broken
    for formula in rules.formulas:
        value = numbers(formula.column)
        computed = formula.compute(numbers, rows)
        column = columns[formula.column]
        # Half a unit of the last decimal, and the rounding error of arithmetic or of the cell's type.
        lost = 1e-6 if column.decimals is None else 1e-9
        if pa.types.is_floating(value_type(column.type)):
            lost = max(lost, float(np.finfo(value_type(column.type).to_pandas_dtype()).eps))
        margin = column.step * 0.5 + lost * np.maximum(1, np.abs(value))
        missing = np.isnan(value) | np.isnan(computed)
        right = missing | (np.abs(value - computed) <= margin)
        yield formula.source, (formula.column, *formula.inputs), right


def key_masks(rules: Rules, table: pa.Table) -> Iterator[tuple[str, tuple[str, ...], NDArray[np.bool_]]]:
    """Each column, or several, that must be unique, as a string, its columns, and the rows (N,) that repeat no earlier
    one.
    """
    for key in (*((name,) for name in rules.unique), *rules.keys):
        codes = [plain_dictionary(table.column(name))[0] for name in key]
        _, first = np.unique(np.stack(codes, 1), axis=0, return_index=True)
        kept = np.zeros(table.num_rows, bool)
        kept[first] = True
        yield f"{' + '.join(key)} unique", key, kept


def compared(low: Column, high: Column, numbers: Numbers) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The numbers of two columns in the finer unit of the two; in days, if one of them has days alone."""
    days = low.is_date != high.is_date
    unit = DAY_NS if days else min(low.unit, high.unit)
    a, b = (numbers(c.name) * (c.unit / unit if days else c.unit // unit) for c in (low, high))
    return (np.floor(a), np.floor(b)) if days else (a, b)


def _twice(names: list[str]) -> set[str]:
    return {n for n in names if names.count(n) > 1}


def _sorted(needs: Mapping[str, Iterable[str]], what: str) -> list[str]:
    """Names, each after those it needs; those that need nothing first.

    Raises:
        UserError: for a cycle.
    """
    order: list[str] = []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            cycle = [*path[path.index(name) :], name]
            raise UserError(FIELD, " -> ".join(cycle), f"form a cycle by {what}", "Drop one of these constraints.")
        if name not in order:
            for other in needs.get(name, ()):
                visit(other, (*path, name))
            order.append(name)

    for name in needs:
        visit(name, ())
    return order
