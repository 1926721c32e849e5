"""Evaluation of tables: scores beside those of real rows, and what the page shows."""

from typing import Any

import numpy as np
import pyarrow as pa
from markupsafe import Markup
from numpy.typing import NDArray

from genai_ray.errors import UserError
from genai_ray.modality import Data, Evaluator, Measured, Outputs, Shipped, values_of
from genai_ray.spec import Spec
from genai_ray.storage import Store
from genai_ray.table.codec import TableCodec
from genai_ray.table.compared import Compared, Tables, details
from genai_ray.table.matrix import encode, sample
from genai_ray.table.metrics import METRICS
from genai_ray.table.panels import blocks, column_panels, preview_png, sample_rows
from genai_ray.table.shapes import column_shapes, pair_trends
from genai_ray.table.sinks import TableRead, retyped, spelling_of_files
from genai_ray.table.source import TableData
from genai_ray.table.spec import TableRun

_NOTICE = Markup(
    "<strong>All rows on this page are synthetic.</strong> A model generated them; do not take them for "
    "records of real people or things. Of the real rows the page shows how often values occur, and nothing "
    "that only few of them have."
)
_SCORES_NOTE = Markup(
    "Compare each score with the one next to it: “real” is the same metric of held-out real rows in place of "
    "the synthetic ones, about the best a generator can reach. Copies, duplicates and the share nearer to "
    "training rows are <strong>copying alarms</strong>: they can find a generator that repeats its training "
    "rows, but no value of them proves privacy."
)


class TableMonitor:
    """Distance of columns and pairs from those of training rows."""

    key = "error"

    def __init__(self, spec: Spec, store: Store, data: Data):
        assert isinstance(data, TableData)
        self.codec, self.seed = data.codec, spec.seed
        rows = sample(data.train.num_rows, spec.train.evaluate_samples, 0)
        self.real = data.train.take(rows)
        self.kinds = _kinds(data)

    def scores(self, outputs: Outputs, labels: NDArray[np.int64] | None) -> dict[str, float]:
        codes, values = outputs
        # Ids take no part in these scores, and there may be fewer of them than rows.
        table = self.codec.decode(codes, values, np.zeros(len(codes), np.int64), self.seed)
        both = encode((self.real, table), **self.kinds)
        shapes = np.mean([*column_shapes(*both).values()])
        pairs = np.mean([*pair_trends(*both).values()] or [1.0])
        return {"column_shapes": float(shapes), "pair_trends": float(pairs), "error": float(2 - shapes - pairs)}


def measure(spec: Spec, shipped: Shipped, data: Data) -> Measured:
    """Measure the rows of a finished data set beside held-out ones."""
    assert isinstance(spec, TableRun)
    assert isinstance(data, TableData)
    manifest = shipped.manifest
    target = _target(spec, data)
    schema = TableCodec.from_json(manifest.card["codec"]).schema
    if schema != data.codec.schema:
        raise UserError(
            "data.table",
            shipped.run.uri,
            "has other columns or types than the data set was generated from "
            f"(data set: {schema.names}; spec: {data.codec.schema.names})",
            "Use the spec of the run.",
        )
    table = _read(shipped, data.train.schema, spec.evaluate.samples)
    kinds, rare = _kinds(data), spec.data.table.rare
    tables = Tables(train=data.train, holdout=data.holdout, table=table, target=target, rare=rare, **kinds)
    has_rules = bool(data.codec.rules)
    fake = Compared(tables, "fake", data.codec.valid(table) if has_rules else None)
    real = Compared(tables, "real", data.codec.valid(data.holdout) if has_rules else None)
    scores = {side.side: values_of(METRICS, side) for side in (fake, real)}
    beside = details(fake, real)
    panels = column_panels(data.train, table, rare=rare, **kinds)
    columns, rows = sample_rows(data.train, table, rare=rare, **kinds)
    return Measured(
        samples=tables.n,
        features="columns",
        fake=scores["fake"],
        real=scores["real"],
        counts={"generated": manifest.rows, "compared": tables.n, "train": data.n, "holdout": data.holdout.num_rows},
        record={"details": beside, "accept_rate": manifest.accept_rate},
        files={"preview.png": preview_png(data.train, table, rare=rare, **kinds)},
        title=f"{manifest.rows:,} synthetic rows",
        notice=_NOTICE,
        summary={
            "Rows": f"{manifest.rows:,} of {len(columns)} columns",
            "Compared": f"{tables.n:,} generated with {tables.n:,} held-out real",
            "Rows that fitted": f"{manifest.accept_rate:.1%} of those drawn",
        },
        scores_note=_SCORES_NOTE,
        blocks=blocks(beside, panels, columns, rows),
    )


def _kinds(data: TableData) -> dict[str, Any]:
    """Which columns are categories, whatever their type, and which are ignored."""
    return {"categorical": data.codec.categorical, "skip": data.codec.without_meaning}


def _target(spec: TableRun, data: TableData) -> str | None:
    """The column that is predicted; the last one that means something if none is named."""
    names = [n for n in data.train.column_names if n not in data.codec.without_meaning]
    wanted = spec.evaluate.target
    if wanted is not None and wanted not in names:
        raise UserError(
            "evaluate.target",
            wanted,
            "must be a column that is neither an id nor constant",
            f"Columns: {', '.join(names)}.",
        )
    return wanted or (names[-1] if len(names) > 1 else None)


def _read(shipped: Shipped, schema: pa.Schema, rows: int) -> pa.Table:
    """The first rows: samples do not depend on one another, so they are as good as any."""
    tables, have, own = [], 0, spelling_of_files(shipped.manifest)
    for file in shipped.files:
        assert isinstance(file, TableRead)
        tables.append(retyped(file.table.slice(0, rows - have), schema, own))
        have += tables[-1].num_rows
        if have >= rows:
            break
    return pa.concat_tables(tables).combine_chunks()


EVALUATOR = Evaluator(measure=measure, monitor=TableMonitor, picture=lambda outputs: None)
