"""Line charts as inline SVG, coloured by the style sheet around them."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 466, 12, 232
LEGEND_COLUMNS = 2
COLOURS = 6


def line_chart(series: Mapping[str, Points], *, x_label: str) -> Markup:
    """An `<svg>` element with axes, ticks and a legend; one line per series of (x, y) points.

    Points that are not finite leave a gap, as a diverged loss must not break the report. Line i
    has the CSS class `line-j`, j = i mod 6. Names are escaped.
    """
    finite = [
        point for points in series.values() for point in points if all(map(math.isfinite, point))
    ]
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
    return Markup('<path class="line line-{}" d="{}"/>').format(
        number % COLOURS, " ".join(commands)
    )


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


def _text(x: float, y: float, anchor: str, text: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        x, y, anchor, text
    )


def short(value: float) -> str:
    """4 significant digits with k, M or G for thousands: 1500000 -> 1.5M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"
