"""Tables: distributions, what learners make of them, what gives them away, copies."""

from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from markupsafe import Markup
from numpy.typing import NDArray

from genai_ray import config
from genai_ray.config import Spec
from genai_ray.data.table import TableCodec, TableData
from genai_ray.dataset import shipped
from genai_ray.errors import UserError
from genai_ray.judges.verdict import Judge, Measured
from genai_ray.metrics import table as scores_of_tables
from genai_ray.metrics.table import table_scores
from genai_ray.metrics.table_columns import sample
from genai_ray.metrics.table_fidelity import column_shapes, pair_trends
from genai_ray.metrics.table_panels import blocks, column_panels, preview_png, sample_rows
from genai_ray.provenance import Manifest
from genai_ray.report.page import Report, Score, render_html
from genai_ray.runs import loss_curves
from genai_ray.sinks import retyped
from genai_ray.storage import Store

METRICS = scores_of_tables.METRICS

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
    """How far columns and pairs are from those of training rows."""

    key = "error"

    def __init__(self, spec: Spec, store: Store, data: TableData):
        self.codec, self.seed = data.codec, spec.seed
        rows = sample(data.train.num_rows, spec.train.evaluate_samples, 0)
        self.real = data.train.take(rows)
        self.how: dict[str, Any] = _kinds(data)

    def scores(
        self, outputs: tuple[NDArray[Any], NDArray[Any]], labels: NDArray[np.int64] | None
    ) -> dict[str, float]:
        codes, values = outputs
        # Ids take no part in these scores, and there may be fewer of them than rows.
        table = self.codec.decode(codes, values, np.zeros(len(codes), np.int64), self.seed)
        shapes = np.mean([*column_shapes(self.real, table, **self.how).values()])
        pairs = np.mean([*pair_trends(self.real, table, **self.how).values()] or [1.0])
        return {
            "column_shapes": float(shapes),
            "pair_trends": float(pairs),
            "error": float(2 - shapes - pairs),
        }


def measure(spec: Spec, store: Store, manifest: Manifest, data: TableData) -> Measured:
    """Measure the rows of a finished data set beside held-out ones.

    Raises:
        UserError: if a file is not what the manifest says, or the target is no column.
    """
    target = _target(spec, data)
    made = TableCodec.from_json(manifest.card["codec"]).schema
    if made != data.codec.schema:
        raise UserError(
            "data.table",
            store.uri,
            "reads other columns or types than the data set was made from "
            f"({made.names} there, {data.codec.schema.names} here)",
            "Use the spec of the run.",
        )
    table = _read(store.at(spec.generate.into), manifest, data.train.schema, spec.evaluate.samples)
    kinds, rare = _kinds(data), spec.data.table.rare
    valid = data.codec.valid(table) if data.codec.rules else None
    found = table_scores(
        data.train,
        data.holdout,
        table,
        target=target,
        rare=rare,
        valid=valid,
        holdout_valid=None if valid is None else data.codec.valid(data.holdout),
        **kinds,
    )
    compared = found.details["rows"]["compared"]

    def page(published: bool, scores: list[Score]) -> str:
        panels = column_panels(data.train, table, rare=rare, **kinds)
        columns, rows = sample_rows(data.train, table, rare=rare, **kinds)
        return render_html(
            Report(
                title=f"{spec.name}: {manifest.rows:,} synthetic rows",
                summary={
                    "Rows": f"{manifest.rows:,} of {len(columns)} columns",
                    "Model": f"{spec.model.preset}, {manifest.model[:16]}",
                    "Compared": f"{compared:,} generated with {compared:,} held-out real",
                    "Rows that fitted": f"{manifest.accept_rate:.1%} of those drawn",
                    "Published": "yes" if published else "no",
                },
                notice=_NOTICE,
                scores=scores,
                scores_note=_SCORES_NOTE,
                blocks=blocks(found.details, panels, columns, rows),
                losses=loss_curves(store),
                provenance=manifest.about,
                spec_yaml=yaml.safe_dump(config.dump(spec), sort_keys=False),
            )
        )

    return Measured(
        samples=compared,
        features="columns",
        fake=found.fake,
        real=found.real,
        counts={
            "generated": manifest.rows,
            "compared": compared,
            "train": data.n,
            "holdout": data.holdout.num_rows,
        },
        page=page,
        record={"details": found.details, "accept_rate": manifest.accept_rate},
        files={"preview.png": preview_png(data.train, table, rare=rare, **kinds)},
    )


def _kinds(data: TableData) -> dict[str, Any]:
    """Which columns are categories, whatever their type, and which take no part."""
    return {"categorical": data.codec.categorical, "skip": data.codec.without_meaning}


def _target(spec: Spec, data: TableData) -> str | None:
    """The column that learners predict; the last one that means something if none is named."""
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


def _read(store: Store, manifest: Manifest, schema: pa.Schema, rows: int) -> pa.Table:
    """The first rows: samples do not depend on one another, so they are as good as any."""
    tables, have = [], 0
    for file in shipped(store, manifest):
        assert file.table is not None
        tables.append(retyped(file.table.slice(0, rows - have), schema))
        have += tables[-1].num_rows
        if have >= rows:
            break
    return pa.concat_tables(tables).combine_chunks()


JUDGE = Judge(
    measure=measure,
    monitor=lambda spec, store, data: TableMonitor(spec, store, data),
    picture=lambda outputs: None,
)
