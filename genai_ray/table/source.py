"""A table read, checked, split and encoded; and what is inferred of a file, for a person.

Shapes: N training rows; codes (N, parts) int32, scalars (N, numeric parts) float32.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from genai_ray import rng
from genai_ray.errors import UserError
from genai_ray.order import rows_at, split
from genai_ray.spec import Spec, assignment
from genai_ray.table import constraints, files, metadata, values
from genai_ray.table.codec import TableCodec, learnt
from genai_ray.table.columns import Column
from genai_ray.table.constraints import Rules
from genai_ray.table.files import Files
from genai_ray.table.fit import fit_codec
from genai_ray.table.infer import infer_columns
from genai_ray.table.spec import ColumnSpec, TableDataSpec, TableRun
from genai_ray.table.spelling import FileSpelling

#: Whole numbers with at most this many distinct values may be codes.
_CODES = 10


@dataclass(frozen=True)
class TableData:
    """Real rows, split into training rows and a holdout, and the codes of the training rows.

    train, holdout: rows in the schema of the source. by_condition: train by sampling, in which the frequency of a
    category is proportional to the logarithm of its count (Xu et al. 2019, arXiv 1907.00503, section 4.3).
    facts: how the files were read and what was left out. rare: rows that a value must have to be shown.
    """

    codec: TableCodec
    train: pa.Table
    holdout: pa.Table
    codes: NDArray[np.int32]
    scalars: NDArray[np.float32]
    by_condition: bool = False
    skipped: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    rare: int = 5

    @property
    def n(self) -> int:
        """Training rows of an epoch."""
        return len(self.codes)

    @property
    def holdout_n(self) -> int:
        return self.holdout.num_rows

    @property
    def summary(self) -> dict[str, Any]:
        """What was read, for people; see `describe_file`."""
        return self._summary

    @cached_property
    def _summary(self) -> dict[str, Any]:
        table = pa.concat_tables([self.train, self.holdout])
        return _described(table, self.codec.columns, self.facts, self.rare)

    @property
    def digest(self) -> str:
        """SHA-256 of the encoded training rows and of the codec."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(self.codes).astype("<i4", copy=False).data)
        digest.update(np.ascontiguousarray(self.scalars).astype("<f4", copy=False).data)
        # The spelling of CSV changes nothing that is learnt.
        digest.update(json.dumps(learnt(self.codec).to_json(), sort_keys=True).encode())
        return digest.hexdigest()

    def at(self, seed: int, start: int, stop: int) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """Rows (N, parts + numeric parts) by index in the endless order, codes and then scalars, and what they were
        drawn by: labels (N, parts), a code and -1 elsewhere; see `Data.at`.

        by_condition: an index draws a discrete part uniformly; a code of it by log(1 + count); and a row uniformly
        among those that have it.
        """
        if not self.by_condition:
            return self._rows(rows_at(seed, start, stop, self.n)), None
        index = self._index
        draws = rng.bits(seed, rng.Stream.TRAIN_ORDER, start, stop - start, 3)
        unit = (draws >> np.uint64(11)).astype(np.float64) * 2.0**-53
        chosen = _below(unit[:, 0], len(index.parts))
        # Part p has the interval p..p+1 of one line of all codes.
        entry = np.searchsorted(index.line, chosen + unit[:, 1], side="right")
        entry = np.clip(entry, index.first[chosen], index.last[chosen])
        count = index.stop[entry] - index.start[entry]
        rows = index.rows[index.start[entry] + _below(unit[:, 2], count)]
        labels = np.full((stop - start, len(self.codec.parts)), -1, np.int64)
        labels[np.arange(stop - start), index.parts[chosen]] = index.code[entry]
        return self._rows(rows), labels

    def _rows(self, rows: NDArray[np.integer]) -> NDArray[np.float32]:
        return np.concatenate([self.codes[rows], self.scalars[rows]], 1, dtype=np.float32)

    @cached_property
    def _index(self) -> "_Index":
        return _Index.of(self.codec, self.codes)


@dataclass(frozen=True)
class _Index:
    """Training rows by category. An entry is a code that some row has, part after part.

    parts: numbers (D,) of the discrete parts; first, last: of each, its first and last entry.
    line: upper ends (entries,) of intervals as long as the code is likely, within p..p+1 for part p.
    code: of each entry; rows[start:stop]: the rows that have it.
    """

    parts: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    line: NDArray[np.float64]
    code: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    rows: NDArray[np.int32]

    @classmethod
    def of(cls, codec: TableCodec, codes: NDArray[np.int32]) -> "_Index":
        chosen = np.array([i for i, p in enumerate(codec.parts) if p.discrete], np.int64)
        n, first, last = len(codes), [], []
        line, code, start, stop, rows = [], [], [], [], []
        for number, part in enumerate(chosen):
            counts = np.bincount(codes[:, part], minlength=codec.parts[part].size)
            present = np.flatnonzero(counts)
            share = np.log1p(counts[present])
            first.append(sum(map(len, code)))
            last.append(first[-1] + len(present) - 1)
            line.append(number + np.cumsum(share) / share.sum())
            code.append(present)
            ends = np.cumsum(counts[present]) + number * n
            stop.append(ends)
            start.append(ends - counts[present])
            rows.append(np.argsort(codes[:, part], kind="stable").astype(np.int32))
        joined = [np.concatenate(x) for x in (line, code, start, stop, rows)]
        return cls(chosen, np.array(first), np.array(last), *joined)


def _below(unit: NDArray[np.float64], count: Any) -> NDArray[np.int64]:
    """Uniforms in 0..1 as whole numbers below `count`."""
    return np.minimum((unit * count).astype(np.int64), np.asarray(count, np.int64) - 1)


def load(spec: Spec) -> TableData:
    """Read the table that a spec names; see `load_table`."""
    assert isinstance(spec, TableRun)
    return load_table(spec.data, conditional=spec.model.trains_on_labels)


def load_table(spec: TableDataSpec, *, conditional: bool = False) -> TableData:
    """Read, check, split and encode the table that the spec names.

    Args:
        spec: the `data` section.
        conditional: train by sampling, with the categories that were drawn as labels.

    Raises:
        UserError: for files that cannot be read, columns that cannot be learnt, and constraints
            that contradict each other or the data.
    """
    source, table, columns, rules = _read_and_infer(spec)
    n, held = table.num_rows, source.held
    if held:
        train, holdout = table.slice(0, n - held), table.slice(n - held)
    else:
        train_rows, holdout_rows = split(spec.holdout, n, "row")
        train, holdout = table.take(pa.array(train_rows)), table.take(pa.array(holdout_rows))
    facts, csv = _facts(source, holdout.num_rows), _csv(source)
    del source, table
    codec, codes, scalars = fit_codec(train, columns, rules, spec.table)
    codec = replace(codec, csv=csv)
    if conditional and not codec.discrete:
        raise UserError(
            "model.conditional",
            True,
            "needs columns of categories, and the table has none",
            "Give model.conditional=false, or make a column categorical.",
        )
    return TableData(codec, train, holdout, codes, scalars, conditional, facts=facts, rare=spec.table.rare)


def describe_file(spec: TableDataSpec) -> dict[str, Any]:
    """What is inferred of a table, for a person who may override it.

    Returns:
        rows, files, how CSV was read (read), which strings were read as missing, what was left out, and by column:
        type, cells (Arrow), why, distinct, missing, range or the most frequent values (none that fewer than
        `data.table.rare` rows have), and override.

    Raises:
        UserError: as `load_table`, up to the split.
    """
    source, table, columns, _ = _read_and_infer(spec)
    return _described(table, columns, _facts(source, None), spec.table.rare) | {
        "override": "data.table.columns.NAME=TYPE, TYPE one of numerical, categorical, boolean, "
        "datetime, id, constant, drop; more by data.table.columns.NAME.datetime_format, .decimals, "
        ".pattern, .min, .max, .nulls"
    }


def _facts(source: Files, held: int | None) -> dict[str, Any]:
    """What is known of the files: how many, how they are read, what means a missing value, what was left out."""
    facts: dict[str, Any] = {"files": len(source.parts), **source.facts}
    if "missing" in facts:
        shown = {name: {s or "(empty)": n for s, n in counts.items()} for name, counts in facts["missing"].items()}
        facts["missing"] = shown
    if held is not None:
        where = source.parts[-1].key if source.held else f"a share of {held / max(1, source.table.num_rows):.2g}"
        facts["holdout"] = f"{held}, {where}"
    return facts


def _csv(source: Files) -> dict[str, str] | None:
    """How the cells of CSV are separated; None if it is not CSV, or as Arrow does it."""
    part = source.parts[0]
    if part.dialect is None or part.dialect.delimiter == "space":
        return None
    own = FileSpelling(part.dialect.delimiter, part.encoding, part.dialect.escape).to_json()
    return None if own == FileSpelling().to_json() else own


def _described(table: pa.Table, columns: tuple[Column, ...], facts: Mapping[str, Any], rare: int) -> dict[str, Any]:
    about = {c.name: _column_summary(c, table.column(c.name), rare) for c in columns}
    return {"rows": table.num_rows, **facts, "columns": about}


def _column_summary(column: Column, cells: pa.ChunkedArray, rare: int) -> dict[str, Any]:
    which, distinct = values.plain_dictionary(cells)
    counts = np.bincount(which[which >= 0], minlength=len(distinct))
    out: dict[str, Any] = {
        "type": column.kind,
        "cells": values.type_name(column.type),
        "why": column.why,
        "distinct": int((counts > 0).sum()),
        "missing": int((which < 0).sum()),
    }
    if column.kind == "id":
        return out | {"pattern": column.described_pattern}
    if column.is_number:
        numbers = column.numbers(cells)
        ends = (float(np.nanmin(numbers)), float(np.nanmax(numbers)))
        out |= {"range": [*map(column.shown, ends)], "decimals": column.decimals}
        step, _ = values.spacing(numbers[~np.isnan(numbers)], column.decimals)
        out |= {"step": values.tidy(step)} if step and column.kind == "numerical" else {}
        return out | _offered(column, numbers)
    order = np.argsort(-counts, kind="stable")[:5]
    kept = [i for i in order if counts[i] >= rare]
    shown = values.from_plain([distinct[i] for i in kept], column.type).to_pylist()
    return out | {"most frequent": {str(v): int(counts[i]) for v, i in zip(shown, kept, strict=True)}}


def _offered(column: Column, numbers: NDArray[np.float64]) -> dict[str, Any]:
    """What whole numbers of few values may be besides: categories, or true and false."""
    distinct = np.unique(numbers[~np.isnan(numbers)])
    if column.kind != "numerical" or column.decimals != 0 or len(distinct) > _CODES:
        return {}
    kind = "boolean" if np.isin(distinct, (0, 1)).all() else "categorical"
    return {"may be codes": assignment(("data", "table", "columns", column.name), kind)}


# --- steps ---------------------------------------------------------------------------------------


def _read_and_infer(spec: TableDataSpec) -> tuple[Files, pa.Table, tuple[Column, ...], Rules]:
    """The files, the table with cells of their types, its columns, and the rules that all rows keep."""
    if spec.source == "table":
        assert spec.root is not None
        source = files.read_files(spec.table, spec.root, spec.holdout_root)
    else:
        source = _bundled(spec)
    known, names = spec.table.columns, source.table.column_names
    if spec.table.metadata:
        declared = metadata.read_metadata(spec.table.metadata, names, [n for n, c in known.items() if c.type])
        known = {n: _merged(declared.get(n), known.get(n)) for n in {**declared, **known}}
    dropped = {n for n, c in known.items() if c.type == "drop"}
    rules = constraints.rules_of(spec.table.constraints, [n for n in names if n not in dropped])
    computed = {f.column for f in rules.formulas}
    table, columns = infer_columns(source, known, rules.unique, computed, rules.beside)
    constraints.check_kinds(rules, {c.name: c for c in columns})
    _check_rows(rules, columns, table, source)
    return source, table, columns, rules


def _merged(declared: ColumnSpec | None, known: ColumnSpec | None) -> ColumnSpec:
    """What the metadata say, overridden by the spec."""
    base = declared or ColumnSpec()
    return base.model_copy(update=known.model_dump(exclude_unset=True) if known else {})


def _check_rows(rules: Rules, columns: tuple[Column, ...], table: pa.Table, source: Files) -> None:
    """Check that all rows, the holdout included, keep the constraints."""
    by_name = {c.name: c for c in columns}

    def number(name: str) -> NDArray[np.float64]:
        return by_name[name].numbers(table.column(name))

    masks = constraints.rule_masks(rules, by_name, number, table.num_rows)
    for rule, used, kept in (*masks, *constraints.key_masks(rules, table)):
        row = values.first_true(~kept)
        if row is not None:
            cells = {n: table.column(n)[row].as_py() for n in by_name if n in used}
            raise UserError(
                constraints.FIELD,
                f"{source.location(row)}: {cells}",
                f"breaks {rule}, as {int((~kept).sum())} of {len(kept)} rows do",
                "Correct the rows, or drop the constraint.",
            )


def _bundled(spec: TableDataSpec) -> Files:
    """A table that ships with scikit-learn, its target last and by name."""
    from sklearn import datasets

    if spec.source == "diabetes":
        bunch: Any = datasets.load_diabetes(scaled=False)
    else:
        bunch = getattr(datasets, f"load_{spec.source}")()
    arrays: dict[str, Any] = {
        str(name): pa.array(np.ascontiguousarray(bunch.data[:, i])) for i, name in enumerate(bunch.feature_names)
    }
    if "target_names" in bunch:
        names = pa.array([str(n) for n in bunch.target_names])
        arrays["target"] = names.take(pa.array(bunch.target))
    else:
        arrays["target"] = pa.array(bunch.target)
    table = pa.table(arrays)
    part = files.File("data.source", files.Store("."), "", table.num_rows)
    return Files(spec.table, table, False, (part,))
