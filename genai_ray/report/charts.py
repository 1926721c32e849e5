"""Charts as inline SVG, coloured by the style sheet around them."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 466, 12, 232
LEGEND_COLUMNS = 2
COLOURS = 6
#: Of the small charts that stand side by side, one a column of a table.
SMALL_WIDTH, SMALL_HEIGHT, BAR_ROW, BAR_LEFT = 260, 110, 22, 110
CELL, HEAT_LEFT = 18, 130


def line_chart(series: Mapping[str, Points], *, x_label: str) -> Markup:
    """An `<svg>` element with axes, ticks and a legend; one line per series of (x, y) points.

    Points that are not finite leave a gap, as a diverged loss must not break the report. Line i
    has the CSS class `line-j`, j = i mod 6. Names are escaped.
    """
    finite = [point for points in series.values() for point in points if all(map(math.isfinite, point))]
    if not finite:
        return Markup("<p>No finite values to draw.</p>")
    x_ticks, y_ticks = (ticks(min(values), max(values)) for values in zip(*finite, strict=True))
    x_span, y_span = x_ticks[-1] - x_ticks[0], y_ticks[-1] - y_ticks[0]

    def x_at(x: float) -> float:
        return LEFT + (x - x_ticks[0]) / x_span * (RIGHT - LEFT)

    def y_at(y: float) -> float:
        return BOTTOM - (y - y_ticks[0]) / y_span * (BOTTOM - TOP)

    parts = [
        Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="Values against {}">').format(
            WIDTH, HEIGHT + 20 * ((len(series) - 1) // LEGEND_COLUMNS), x_label
        )
    ]
    parts += [_vertical_tick(x_at(value), value) for value in x_ticks]
    parts += [_horizontal_tick(y_at(value), value) for value in y_ticks]
    parts.append(_text((LEFT + RIGHT) / 2, BOTTOM + 38, "middle", x_label))
    for number, (name, points) in enumerate(series.items()):
        parts.append(_line([(x_at(x), y_at(y)) for x, y in points], number))
        parts.append(_legend_entry(name, number))
    return Markup("\n").join([*parts, Markup("</svg>")])


def histogram(series: Sequence[Sequence[float]], *, low: str, high: str, label: str) -> Markup:
    """An `<svg>` of histograms laid over one another: one outline of shares per series.

    All series share equal bins between `low` and `high`, which is text. Outline i has the CSS
    class `area-i`.
    """
    top = max((max(shares, default=0) for shares in series), default=0) or 1
    floor = SMALL_HEIGHT - 20
    parts = [_open_svg(SMALL_WIDTH, SMALL_HEIGHT, label)]
    for number, shares in enumerate(series):
        step = SMALL_WIDTH / max(len(shares), 1)
        heights = [floor - share / top * (floor - 4) for share in shares]
        outline = "".join(f"V{y:.1f}H{(i + 1) * step:.1f}" for i, y in enumerate(heights))
        parts.append(
            Markup('<path class="area area-{}" d="M0 {}{}V{}Z"/>').format(
                number % COLOURS, floor, outline, floor
            )
        )
    parts.append(Markup('<path class="grid" d="M0 {}H{}"/>').format(floor, SMALL_WIDTH))
    parts.append(_text(0, SMALL_HEIGHT - 4, "start", low))
    parts.append(_text(SMALL_WIDTH, SMALL_HEIGHT - 4, "end", high))
    return Markup("\n").join([*parts, Markup("</svg>")])


def bar_chart(labels: Sequence[str], series: Sequence[Sequence[float]], *, label: str) -> Markup:
    """An `<svg>` of horizontal bars: a row for each label, in it one bar of shares per series.

    The longest bar fills the width. Bars of series i have the CSS class `area-i`; a label that is
    cut is whole in a tooltip.
    """
    top = max((max(shares, default=0) for shares in series), default=0) or 1
    thick = (BAR_ROW - 6) / max(len(series), 1)
    parts = [_open_svg(SMALL_WIDTH, BAR_ROW * max(len(labels), 1), label)]
    for row, name in enumerate(labels):
        y = row * BAR_ROW
        parts.append(_text(BAR_LEFT - 8, y + 15, "end", cut(name, 14), name))
        for number, shares in enumerate(series):
            length = shares[row] / top * (SMALL_WIDTH - BAR_LEFT)
            parts.append(
                Markup(
                    '<rect class="area area-{}" x="{}" y="{:.1f}" width="{:.1f}" height="{:.1f}">'
                    "<title>{}: {:.2%}</title></rect>"
                ).format(number % COLOURS, BAR_LEFT, y + 3 + number * thick, length, thick, name, shares[row])
            )
    return Markup("\n").join([*parts, Markup("</svg>")])


def heat_map(
    names: Sequence[str], values: Mapping[tuple[str, str], float], *, darkest: float, label: str
) -> Markup:
    """An `<svg>` with a cell for each pair of names that has a value, below the diagonal.

    0 is invisible and `darkest` or more has full colour. Each cell says its names and its value in
    a tooltip. Rows and columns are in the order of `names`.
    """
    count = len(names)
    side = count * CELL
    parts = [_open_svg(HEAT_LEFT + side, side + HEAT_LEFT, label)]
    for row, name in enumerate(names):
        parts.append(_text(HEAT_LEFT - 8, (row + 1) * CELL - 5, "end", cut(name, 17), name))
        parts.append(
            Markup('<g transform="translate({} {}) rotate(-90)">{}</g>').format(
                HEAT_LEFT + row * CELL + 13, side + 6, _text(0, 0, "end", cut(name, 17), name)
            )
        )
        for column, other in enumerate(names[:row]):
            value = values.get((other, name), values.get((name, other)))
            if value is not None:
                strength = min(max(value / darkest, 0.0), 1.0) if darkest > 0 else 0.0
                parts.append(
                    Markup(
                        '<rect class="heat" x="{}" y="{}" width="{}" height="{}" '
                        'fill-opacity="{:.2f}"><title>{} with {}: {:.3f}</title></rect>'
                    ).format(
                        HEAT_LEFT + column * CELL,
                        row * CELL,
                        CELL - 1,
                        CELL - 1,
                        strength,
                        other,
                        name,
                        value,
                    )
                )
    return Markup("\n").join([*parts, Markup("</svg>")])


def cut(text: str, length: int) -> str:
    """Text of at most `length` characters, the last of them … where more was there."""
    return text if len(text) <= length else text[: length - 1] + "…"


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """At least two round numbers (1, 2 or 5 times a power of ten) that enclose low..high."""
    if low == high:
        low, high = low - (abs(low) / 2 or 0.5), high + (abs(high) / 2 or 0.5)
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, last + 1)]


def _line(points: Points, number: int) -> Markup:
    commands, pen_down = [], False
    for x, y in points:
        drawable = math.isfinite(x) and math.isfinite(y)
        if drawable:
            commands.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
        pen_down = drawable
    return Markup('<path class="line line-{}" d="{}"/>').format(number % COLOURS, " ".join(commands))


def _legend_entry(name: str, number: int) -> Markup:
    row, column = divmod(number, LEGEND_COLUMNS)
    x, y = LEFT + column * 205, BOTTOM + 62 + row * 20
    return Markup('<path class="line line-{}" d="M{} {}h20"/>{}').format(
        number % COLOURS, x, y - 4, _text(x + 26, y, "start", name)
    )


def _vertical_tick(x: float, value: float) -> Markup:
    return Markup('<path class="grid" d="M{:.1f} {}V{}"/>{}').format(
        x, TOP, BOTTOM, _text(x, BOTTOM + 18, "middle", short(value))
    )


def _horizontal_tick(y: float, value: float) -> Markup:
    return Markup('<path class="grid" d="M{} {:.1f}H{}"/>{}').format(
        LEFT, y, RIGHT, _text(LEFT - 8, y + 4, "end", short(value))
    )


def _open_svg(width: int, height: int, label: str) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(width, height, label)


def _text(x: float, y: float, anchor: str, text: str, whole: str = "") -> Markup:
    """Text at a place; `whole` is what a tooltip says where the text is a part of it."""
    tip = Markup("<title>{}</title>").format(whole) if whole not in ("", text) else ""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}{}</text>').format(x, y, anchor, text, tip)


def short(value: float) -> str:
    """4 significant digits with k, M or G for thousands: 1500000 -> 1.5M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"
