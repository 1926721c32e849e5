"""A small picture of each column, real over synthetic, that shows nobody: as data and as PNG.

Rows of few are kept out of sight: real categories with fewer than `rare` rows, the values beyond
the `rare`-th least and greatest, and bins with fewer than `rare` real rows in them.
"""

import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from genai_ray.report.charts import cut, short
from genai_ray.table.matrix import MISSING, encode, is_number

RARE_LABEL = "(rare)"
OTHERS_LABEL = "(others)"
MISSING_LABEL = "(missing)"

#: Colours of the PNG: page, ink, soft ink, real, synthetic.
_PAGE, _INK, _SOFT = (255, 255, 255), (28, 34, 48), (91, 100, 117)
_REAL, _FAKE = (37, 99, 235), (217, 72, 15)
_PANEL_WIDTH, _PANEL_HEIGHT, _GAP = 220, 118, 16


@dataclass(frozen=True)
class Panel:
    """How often a column has which values, in real and in synthetic rows.

    real, fake: shares of all rows, 0..1, one for each bin or category.
    labels: of a category, one for each share; of a number, the two ends as text, where the outer
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
    categorical: Collection[str] = (),
    skip: Collection[str] = (),
    rare: int = 5,
    bins: int = 24,
    most: int = 10,
) -> list[Panel]:
    """The panels of all columns, in the order of the real table.

    Args:
        rare: see the top of this module; `real` should be all rows that count for it.
        bins: of a number, at most, and fewer for few rows; whole numbers have whole bins.
        most: categories by name, the most frequent real ones; the rest is one label.
    """
    a, b = encode((real, table), categorical=categorical, skip=skip)
    rare = max(rare, 1)
    panels = {
        name: _number(name, real.schema.field(name).type, a.numbers[:, j], b.numbers[:, j], rare, bins)
        for j, name in enumerate(a.number_names)
    }
    for j, name in enumerate(a.category_names):
        counts = [np.bincount(c.categories[:, j], minlength=a.sizes[j]) for c in (a, b)]
        panels[name] = _category(name, a.labels[j], counts[0], counts[1], rare, most)
    return [panels[name] for name in real.column_names if name in panels]


def sample_rows(
    real: pa.Table,
    table: pa.Table,
    *,
    categorical: Collection[str] = (),
    skip: Collection[str] = (),
    rare: int = 5,
    count: int = 20,
) -> tuple[list[str], list[list[str]]]:
    """The first rows of `table` as text, with the names of the columns.

    A category that fewer than `rare` rows of `real` have is shown as (rare). Columns in `skip`
    are shown too: they are synthetic. Samples do not depend on one another, so the first rows of a
    generated table are a random draw.
    """
    first = table.slice(0, count)
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


def table_preview_png(
    real: pa.Table,
    table: pa.Table,
    *,
    categorical: Collection[str] = (),
    skip: Collection[str] = (),
    rare: int = 5,
    columns: int = 4,
    most: int = 12,
) -> bytes:
    """One PNG with a small histogram or bars for each of the first `most` columns.

    About 960 pixels wide with 4 columns, at twice that resolution. Names that Pillow's own font
    has no glyphs for are drawn as boxes.
    """
    panels = column_panels(real, table, categorical=categorical, skip=skip, rare=rare, most=5)
    return draw_panels(panels[:most], columns=columns)


def draw_panels(panels: Sequence[Panel], *, columns: int = 4, scale: int = 2) -> bytes:
    """`table_preview_png` of panels that are at hand.

    Raises:
        ValueError: without panels.
    """
    if not panels or columns < 1 or scale < 1:
        raise ValueError(f"{len(panels)} panels, columns={columns}, scale={scale}; need 1 of each")
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    width = columns * (_PANEL_WIDTH + _GAP) + _GAP
    height = rows * (_PANEL_HEIGHT + _GAP) + _GAP + 22
    picture = Image.new("RGB", (width * scale, height * scale), _PAGE)
    draw = ImageDraw.Draw(picture, "RGBA")
    pen = _Pen(draw, scale)
    pen.box(_GAP, _GAP, 12, 10, _REAL, 110)
    pen.text(_GAP + 18, _GAP - 2, "real", 12, _SOFT)
    pen.box(_GAP + 60, _GAP, 12, 10, _FAKE, 110)
    pen.text(_GAP + 78, _GAP - 2, "synthetic", 12, _SOFT)
    for place, panel in enumerate(panels):
        row, column = divmod(place, columns)
        x = _GAP + column * (_PANEL_WIDTH + _GAP)
        y = _GAP + 22 + row * (_PANEL_HEIGHT + _GAP)
        pen.text(x, y, cut(panel.name, 28), 13, _INK)
        (_draw_number if panel.kind == "number" else _draw_category)(pen, panel, x, y + 20)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


# --- what is counted -----------------------------------------------------------------------------


def _number(
    name: str, kind: pa.DataType, real: NDArray[np.float64], made: NDArray[np.float64], rare: int, bins: int
) -> Panel:
    missing = (float(np.isnan(real).mean()), float(np.isnan(made).mean()))
    there, drawn = np.sort(real[~np.isnan(real)]), made[~np.isnan(made)]
    if len(there) < 2 * rare:
        return Panel(name, "number", (), (), (), missing)
    low, high = there[rare - 1], there[-rare]
    bins = min(bins, max(1, len(there) // (2 * rare)))  # thin bins would be empty ones
    # Counted from the low end, as a date in nanoseconds leaves no room for halves.
    span = high - low
    if np.all(there == np.rint(there)):
        step = max(1, -(-(span + 1) // bins))
        edges = np.arange(-0.5, span + step, step)
    else:
        edges = np.linspace(0, span or 1, bins + 1)
    shares = []
    for values, rows in ((there, len(real)), (drawn, len(made))):
        counts, _ = np.histogram(np.clip(values, low, high) - low, edges)
        if values is there:
            counts = np.where(counts < rare, 0, counts)
        shares.append(tuple((counts / rows).tolist()))
    ends = (_end(low, kind), _end(high, kind))
    return Panel(name, "number", ends, shares[0], shares[1], missing)


def _category(
    name: str, labels: tuple[Any, ...], real: NDArray[np.int64], made: NDArray[np.int64], rare: int, most: int
) -> Panel:
    totals = (int(real.sum()), int(made.sum()))
    # A value that no real row has betrays none, and that a generator makes it up is worth seeing.
    order = sorted(range(1, len(real)), key=lambda c: (-real[c], -made[c], c))
    shown = [c for c in order if real[c] >= rare or (not real[c] and made[c])][:most]
    rows = [(_cell(labels[c - 1]), int(real[c]), int(made[c])) for c in shown]
    rest = [c for c in order if c not in set(shown)]
    if rest:
        rows.append((OTHERS_LABEL, int(real[rest].sum()), int(made[rest].sum())))
    if real[MISSING] or made[MISSING]:
        rows.append((MISSING_LABEL, int(real[MISSING]), int(made[MISSING])))
    return Panel(
        name,
        "category",
        tuple(label for label, _, _ in rows),
        tuple(count / totals[0] for _, count, _ in rows),
        tuple(count / totals[1] for _, _, count in rows),
        (float(real[MISSING] / totals[0]), float(made[MISSING] / totals[1])),
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
    whole = pa.array([round(value)], pa.int32() if kind.bit_width == 32 else pa.int64())
    scalar = whole.cast(kind)
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


# --- the picture ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pen:
    """Draws in points; a point has `scale` pixels each way."""

    draw: ImageDraw.ImageDraw
    scale: int

    def box(
        self, x: float, y: float, width: float, height: float, colour: tuple[int, int, int], alpha: int
    ) -> None:
        if width * self.scale >= 0.5 and height * self.scale >= 0.5:
            corners = [x * self.scale, y * self.scale]
            far = [(x + width) * self.scale - 1, (y + height) * self.scale - 1]
            ends = [max(a, b) for a, b in zip(corners, far, strict=True)]
            self.draw.rectangle((*corners, *ends), fill=(*colour, alpha))

    def outline(self, points: list[tuple[float, float]], colour: tuple[int, int, int]) -> None:
        scaled = [(x * self.scale, y * self.scale) for x, y in points]
        self.draw.line(scaled, fill=(*colour, 255), width=max(1, self.scale))

    def text(
        self, x: float, y: float, text: str, size: int, colour: tuple[int, int, int], anchor: str = "la"
    ) -> None:
        font = ImageFont.load_default(size * self.scale)
        self.draw.text((x * self.scale, y * self.scale), text, colour, font, anchor)


def _draw_number(pen: _Pen, panel: Panel, x: float, y: float) -> None:
    height = _PANEL_HEIGHT - 36
    floor = y + height
    if not panel.labels:
        pen.text(x, y + 20, "no values to show", 11, _SOFT)
        return
    top = max(*panel.real, *panel.fake) or 1
    for shares, colour in ((panel.real, _REAL), (panel.fake, _FAKE)):
        step = _PANEL_WIDTH / len(shares)
        points = [(x, floor)]
        for i, share in enumerate(shares):
            tall = share / top * (height - 4)
            pen.box(x + i * step, floor - tall, step, tall, colour, 90)
            points += [(x + i * step, floor - tall), (x + (i + 1) * step, floor - tall)]
        pen.outline([*points, (x + _PANEL_WIDTH, floor)], colour)
    pen.text(x, floor + 3, panel.labels[0], 10, _SOFT)
    pen.text(x + _PANEL_WIDTH, floor + 3, panel.labels[1], 10, _SOFT, "ra")


def _draw_category(pen: _Pen, panel: Panel, x: float, y: float) -> None:
    if not panel.labels:
        pen.text(x, y + 20, "no values to show", 11, _SOFT)
        return
    shown = min(len(panel.labels), 7)
    row = (_PANEL_HEIGHT - 22) / 7
    left, top = 92, max(*panel.real, *panel.fake) or 1
    for i in range(shown):
        middle = y + i * row
        pen.text(x + left - 6, middle + row / 2, cut(panel.labels[i], 15), 10, _SOFT, "rm")
        for number, (shares, colour) in enumerate(((panel.real, _REAL), (panel.fake, _FAKE))):
            length = shares[i] / top * (_PANEL_WIDTH - left)
            pen.box(x + left, middle + 2 + number * 5, length, 5, colour, 170)
