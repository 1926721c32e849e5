"""What only the report of a table shows: columns, real over synthetic, pairs of columns, sample rows.

What few rows share is hidden, so that no individual can be identified: real categories with fewer than `rare`
rows, the values beyond the `rare`-th least and greatest, and bins with fewer than `rare` real rows.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from markupsafe import Markup
from numpy.typing import NDArray

from genai_ray.report.charts import bar_chart, heat_map, histogram, note, sheet_png, short
from genai_ray.report.page import Block, Figure, Table
from genai_ray.table.matrix import MISSING, encode, is_number
from genai_ray.table.values import from_numbers, tick_ns

RARE_LABEL = "(rare)"
OTHERS_LABEL = "(others)"
MISSING_LABEL = "(missing)"

_KEY = ("real", "synthetic")
#: Bins of a number, rows of the sample, columns of the preview: at most.
_BINS, _ROWS, _PREVIEW = 24, 20, 12
#: Columns of the heat map, at most; of more, those that are in the worst pairs.
_HEAT_COLUMNS = 30
#: Where the colour of the heat map is full, at least: pairs of good tables differ by some 0.02.
_HEAT_FULL = 0.05


@dataclass(frozen=True)
class Panel:
    """How often a column has which values, in real and in synthetic rows.

    real, fake: shares of all rows, 0..1, one for each bin or category.
    labels: of a category, one for each share; of a number, the two ends as strings, where the outer
        bins also hold what lies beyond; empty if nothing can be shown.
    missing: shares of missing values, real and synthetic; of a category they are a label, too.
    """

    name: str
    kind: Literal["number", "category"]
    labels: tuple[str, ...]
    real: tuple[float, ...]
    fake: tuple[float, ...]
    missing: tuple[float, float]


def column_panels(
    real: pa.Table,
    table: pa.Table,
    *,
    rare: int,
    categorical: Collection[str] = (),
    skip: Collection[str] = (),
    most: int = 10,
) -> list[Panel]:
    """The panels of all columns, in the order of the real table.

    Args:
        rare: see the top of this module; `real` should be all rows that count for it.
        most: categories by name, the most frequent real ones; the rest is one label.
    """
    a, b = encode((real, table), categorical=categorical, skip=skip)
    rare = max(rare, 1)
    panels = {
        name: _number(name, real.schema.field(name).type, a.numbers[:, j], b.numbers[:, j], rare)
        for j, name in enumerate(a.number_names)
    }
    for j, name in enumerate(a.category_names):
        counts = [np.bincount(c.categories[:, j], minlength=a.sizes[j]) for c in (a, b)]
        panels[name] = _category(name, a.labels[j], counts[0], counts[1], rare, most)
    return [panels[name] for name in real.column_names if name in panels]


def sample_rows(
    real: pa.Table, table: pa.Table, *, rare: int, categorical: Collection[str] = (), skip: Collection[str] = ()
) -> tuple[list[str], list[list[str]]]:
    """The first rows of `table` as strings, with the names of the columns.

    A category that fewer than `rare` rows of `real` have is shown as (rare). Columns in `skip` are shown too: they are
    synthetic. Samples do not depend on one another, so the first rows of a generated table are a random draw.
    """
    first = table.slice(0, _ROWS)
    columns = []
    for name in table.column_names:
        values = _plain(first.column(name)).to_pylist()
        hidden: set[Any] = set()
        discrete = name in categorical or not is_number(table.schema.field(name).type)
        if discrete and name not in skip:
            seen = _plain(real.column(name)).value_counts().to_pylist()
            hidden = {each["values"] for each in seen if each["counts"] < rare}
        columns.append([RARE_LABEL if v is not None and v in hidden else _cell(v) for v in values])
    return list(table.column_names), [list(row) for row in zip(*columns, strict=True)]


def preview_png(
    real: pa.Table, table: pa.Table, *, rare: int, categorical: Collection[str] = (), skip: Collection[str] = ()
) -> bytes:
    """One PNG with the charts of the first columns, some 1,160 points wide."""
    panels = column_panels(real, table, categorical=categorical, skip=skip, rare=rare, most=5)
    charts = {panel.name: panel_chart(panel) for panel in panels[:_PREVIEW]}
    return sheet_png(charts, key=_KEY, columns=4)


def panel_chart(panel: Panel) -> Markup:
    """The panel as SVG: real is series 0, synthetic series 1."""
    label = f"{panel.name}: real and synthetic"
    if not panel.labels:
        return note("Too few real values to show.")
    if panel.kind == "number":
        low, high = panel.labels
        return histogram([panel.real, panel.fake], low=low, high=high, label=label)
    return bar_chart(panel.labels, [panel.real, panel.fake], label=label)


# --- the blocks of the page ----------------------------------------------------------------------


def blocks(
    details: Mapping[str, Any], panels: Sequence[Panel], names: Sequence[str], rows: Sequence[Sequence[str]]
) -> list[Block]:
    """What only the report of a table shows.

    details: of `genai_ray.table.compared`. panels: from `column_panels`. names and rows: from
    `sample_rows`, which keeps rare real categories off the page; a random draw, since the page says so.
    """
    shown = []
    if panels:
        shown.append(_columns(panels, details.get("column_shapes", []), details.get("tail_error", [])))
    if pairs := details.get("pair_trends"):
        shown.append(_pairs(pairs))
    if efficacy := details.get("efficacy"):
        shown.append(_efficacy(efficacy))
    if detection := details.get("detection"):
        note = (
            "How much worse a classifier separates synthetic from training rows after a column is shuffled. "
            "The first columns, or their links to others, reveal the generator most."
        )
        table = Table(header=("Column", "Loss of ROC AUC"), rows=[*detection.items()])
        shown.append(Block(title="Most revealing columns", note=note, table=table))
    if rows:
        note = "A random draw, not a selection. A category that hardly any real row has reads (rare)."
        shown.append(Block(title="Samples", note=note, table=Table(header=names, rows=rows, wide=True)))
    return shown


def _columns(panels: Sequence[Panel], shapes: Sequence[Mapping[str, Any]], tails: Sequence[Mapping[str, Any]]) -> Block:
    scores = {each["of"]: f"shape {each['fake']:.4g}, real {each['real']:.4g}" for each in shapes}
    for each in tails:
        scores[each["of"]] += f" · tail error {each['fake']:.3g}, real {each['real']:.3g}"
    figures = []
    for panel in panels:
        real, fake = (f"{share:.1%}" for share in panel.missing)
        lacking = f"missing {fake}, real {real}" if any(panel.missing) else ""
        caption = " · ".join(filter(None, [scores.get(panel.name), lacking]))
        figures.append(Figure(title=panel.name, chart=panel_chart(panel), note=caption))
    note = (
        "Shares of rows. The shape is the score of the column alone, next to that of the holdout. Values "
        "that few real rows have are grouped or left out."
    )
    return Block(title="Columns", note=note, key=_KEY, figures=figures)


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> Block:
    """The heat map of 1 - pair_trend, of many columns for the worst pairs, and the five worst pairs."""
    worst: dict[str, float] = {}
    for pair in pairs:
        for name in pair["of"]:
            worst[name] = min(worst.get(name, 1.0), pair["fake"])
    shown = set(sorted(worst, key=lambda name: worst[name])[:_HEAT_COLUMNS])
    names = [name for name in worst if name in shown]
    distances = {tuple(pair["of"]): 1 - pair["fake"] for pair in pairs if shown.issuperset(pair["of"])}
    note = "1 - pair_trend of each pair of columns: an empty cell is a pair that is related as in the real rows."
    if len(names) < len(worst):
        note += f" Of {len(worst)} columns the {len(names)} in the worst pairs."
    lowest = sorted(pairs, key=lambda pair: pair["fake"])[:5]
    return Block(
        title="Pairs of columns",
        note=note,
        chart=heat_map(
            names, distances, darkest=max(_HEAT_FULL, *distances.values()), label="1 - pair_trend of each pair"
        ),
        table=Table(
            header=("Lowest pairs", "Synthetic", "Real"),
            rows=[(" with ".join(pair["of"]), pair["fake"], pair["real"]) for pair in lowest],
        ),
    )


def _efficacy(efficacy: Mapping[str, Any]) -> Block:
    note = Markup(
        "Classifiers or regressors predict <strong>{}</strong> ({}) after training on {:,} rows, and are "
        "tested on held-out real rows."
    ).format(efficacy["target"], efficacy["task"], efficacy["rows"])
    rows = [
        (model, metric, value, efficacy["real"][model][metric])
        for model, scores in efficacy["fake"].items()
        for metric, value in scores.items()
    ]
    header = ("Model", "Metric", "Trained on synthetic", "Trained on real")
    return Block(title="Training on the rows", note=note, table=Table(header=header, rows=rows))


# --- what is counted -----------------------------------------------------------------------------


def _number(name: str, kind: pa.DataType, real: NDArray[np.float64], fake: NDArray[np.float64], rare: int) -> Panel:
    missing = (float(np.isnan(real).mean()), float(np.isnan(fake).mean()))
    known, generated = np.sort(real[~np.isnan(real)]), fake[~np.isnan(fake)]
    if len(known) < 2 * rare:
        return Panel(name, "number", (), (), (), missing)
    low, high = known[rare - 1], known[-rare]
    bins = min(_BINS, max(1, len(known) // (2 * rare)))  # thin bins would be empty ones
    # Counted from the low end, as a date in nanoseconds leaves no room for halves.
    span = high - low
    if np.all(known == np.rint(known)):
        step = max(1, -(-(span + 1) // bins))
        edges = np.arange(-0.5, span + step, step)
    else:
        edges = np.linspace(0, span or 1, bins + 1)
    shares = []
    for values, rows in ((known, len(real)), (generated, len(fake))):
        counts, _ = np.histogram(np.clip(values, low, high) - low, edges)
        if values is known:
            counts = np.where(counts < rare, 0, counts)
        shares.append(tuple((counts / rows).tolist()))
    ends = (_end(low, kind), _end(high, kind))
    return Panel(name, "number", ends, shares[0], shares[1], missing)


def _category(
    name: str, labels: tuple[Any, ...], real: NDArray[np.int64], fake: NDArray[np.int64], rare: int, most: int
) -> Panel:
    totals = (int(real.sum()), int(fake.sum()))
    # A value that no real row has betrays none, and that a generator makes it up is worth seeing.
    order = sorted(range(1, len(real)), key=lambda c: (-real[c], -fake[c], c))
    shown = [c for c in order if real[c] >= rare or (not real[c] and fake[c])][:most]
    rows = [(_cell(labels[c - 1]), int(real[c]), int(fake[c])) for c in shown]
    rest = [c for c in order if c not in set(shown)]
    if rest:
        rows.append((OTHERS_LABEL, int(real[rest].sum()), int(fake[rest].sum())))
    if real[MISSING] or fake[MISSING]:
        rows.append((MISSING_LABEL, int(real[MISSING]), int(fake[MISSING])))
    return Panel(
        name,
        "category",
        tuple(label for label, _, _ in rows),
        tuple(count / totals[0] for _, count, _ in rows),
        tuple(count / totals[1] for _, _, count in rows),
        (float(real[MISSING] / totals[0]), float(fake[MISSING] / totals[1])),
    )


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cells that Python has values for: no dictionaries and no nanoseconds."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return column.cast(kind.value_type)
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return column.cast(pa.timestamp("us", kind.tz), safe=False)
    if pa.types.is_duration(kind) and kind.unit == "ns":
        return column.cast(pa.duration("us"), safe=False)
    if pa.types.is_time64(kind):
        return column.cast(pa.time64("us"), safe=False)
    return column


def _end(value: float, kind: pa.DataType) -> str:
    if not pa.types.is_temporal(kind):
        return short(float(value))
    scalar = from_numbers(np.array([value], np.float64), kind, tick_ns(kind))
    if pa.types.is_timestamp(kind):
        scalar = scalar.cast(pa.timestamp("s", kind.tz), safe=False)
    elif pa.types.is_duration(kind):
        scalar = scalar.cast(pa.duration("s"), safe=False)
    elif pa.types.is_time(kind):
        scalar = scalar.cast(pa.time32("s"), safe=False)
    return _cell(scalar[0].as_py())


def _cell(value: Any) -> str:
    """A value as a reader writes it; missing is empty."""
    if value is None or value != value:
        return ""
    if isinstance(value, datetime):
        return value.isoformat(" ").removesuffix(" 00:00:00")
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)
