"""Charts as SVG: inline in the page, which styles them, or rasterised to a PNG.

The only renderer of charts. Shares and values are plain sequences; names are escaped.
"""

import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import resvg_py
from markupsafe import Markup
from PIL import ImageFont

Points = Sequence[tuple[float, float]]

#: The style sheet of the page, charts included.
STYLE = Path(__file__).with_name("page.css").read_text()
#: Number of colours of lines; further lines repeat them.
SERIES = 6

_LINE_WIDTH, _LINE_HEIGHT = 440, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 430, 8, 190
_SMALL_WIDTH, _SMALL_HEIGHT, _BAR_ROW, _BAR_LEFT = 260, 110, 22, 120
#: Width of a character of charts, in the widest fonts.
_CHARACTER = 7.2


def line_chart(series: Mapping[str, Points], *, x_label: str) -> Markup:
    """An `<svg>` with axes and ticks, and for each series of (x, y) points, x >= 0, its `smoothed` line.

    A line that smoothing changes has the raw one behind it, faint. Points that are not finite leave a gap: a diverged
    loss must not break the report. Line i has the CSS class `line-j`, j = i mod `SERIES`.
    """
    finite = [point for points in series.values() for point in points if all(map(math.isfinite, point))]
    if not finite:
        return note("No finite values to draw.")
    x_values, y_values = zip(*finite, strict=True)
    y_ticks = ticks(min(y_values), max(y_values))
    x_scale = (_RIGHT - _LEFT) / (max(x_values) or 1)
    y_scale = (_BOTTOM - _TOP) / (y_ticks[-1] - y_ticks[0])

    def at(point: tuple[float, float]) -> tuple[float, float]:
        return _LEFT + point[0] * x_scale, _BOTTOM - (point[1] - y_ticks[0]) * y_scale

    parts = [_open_svg(_LINE_WIDTH, _LINE_HEIGHT, f"{', '.join(series)} against {x_label}")]
    for value in ticks(0, max(x_values)):
        x, _ = at((value, y_ticks[0]))
        if x < _RIGHT + 1:
            parts.append(_text(x, _BOTTOM + 17, "middle", short(value)))
    for value in y_ticks:
        _, y = at((0, value))
        parts.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(_LEFT, y, _RIGHT))
        parts.append(_text(_LEFT - 8, y + 4, "end", short(value)))
    parts.append(_text((_LEFT + _RIGHT) / 2, _BOTTOM + 36, "middle", x_label))
    smooth = {name: smoothed(points) for name, points in series.items()}
    for index, (name, points) in enumerate(series.items()):
        if smooth[name] != list(points):
            parts.append(_line([at(point) for point in points], f"raw line-{index % SERIES}"))
    for index, points in enumerate(smooth.values()):
        parts.append(_line([at(point) for point in points], f"line-{index % SERIES}"))
    return Markup("\n").join([*parts, Markup("</svg>")])


def smoothed(points: Points) -> Points:
    """The same points with the mean of y over a thirtieth of them to each side; NaN and infinity stay."""
    reach = len(points) // 30
    if not reach:
        return list(points)
    x, y = np.array(points, dtype=np.float64).T
    finite = np.isfinite(y)
    window = np.ones(2 * reach + 1)
    sums = np.convolve(np.where(finite, y, 0), window, "same")
    counts = np.convolve(finite, window, "same")
    means = np.where(finite, sums / np.maximum(counts, 1), np.nan)
    return list(zip(x.tolist(), means.tolist(), strict=True))


def histogram(series: Sequence[Sequence[float]], *, low: str, high: str, label: str) -> Markup:
    """An `<svg>` of overlaid histograms: one outline of shares per series.

    All series share equal bins between `low` and `high`, which are strings. Outline i has the CSS class `area-i`.
    """
    top = max((max(shares, default=0) for shares in series), default=0) or 1
    floor = _SMALL_HEIGHT - 20
    parts = [_open_svg(_SMALL_WIDTH, _SMALL_HEIGHT, label)]
    for index, shares in enumerate(series):
        step = _SMALL_WIDTH / max(len(shares), 1)
        heights = [floor - share / top * (floor - 4) for share in shares]
        outline = "".join(f"V{y:.1f}H{(i + 1) * step:.1f}" for i, y in enumerate(heights))
        path = Markup('<path class="area area-{}" d="M0 {}{}V{}Z"/>')
        parts.append(path.format(index, floor, outline, floor))
    parts.append(Markup('<path class="grid" d="M0 {}H{}"/>').format(floor, _SMALL_WIDTH))
    parts.append(_text(0, _SMALL_HEIGHT - 4, "start", low))
    parts.append(_text(_SMALL_WIDTH, _SMALL_HEIGHT - 4, "end", high))
    return Markup("\n").join([*parts, Markup("</svg>")])


def bar_chart(labels: Sequence[str], series: Sequence[Sequence[float]], *, label: str) -> Markup:
    """An `<svg>` of horizontal bars: a row for each label, with one bar of shares per series.

    The longest bar fills the width. Bars of series i have the CSS class `area-i`; a tooltip has the full label.
    """
    top = max((max(shares, default=0) for shares in series), default=0) or 1
    thick = (_BAR_ROW - 6) / max(len(series), 1)
    parts = [_open_svg(_SMALL_WIDTH, _BAR_ROW * max(len(labels), 1), label)]
    bar = Markup(
        '<rect class="bar area-{}" x="{}" y="{:.1f}" width="{:.1f}" height="{:.1f}"><title>{}: {:.2%}</title></rect>'
    )
    for row, name in enumerate(labels):
        y = row * _BAR_ROW
        parts.append(_text(_BAR_LEFT - 8, y + 15, "end", cut(name, 15), name))
        for index, shares in enumerate(series):
            length = shares[row] / top * (_SMALL_WIDTH - _BAR_LEFT)
            parts.append(bar.format(index, _BAR_LEFT, y + 3 + index * thick, length, thick, name, shares[row]))
    return Markup("\n").join([*parts, Markup("</svg>")])


def heat_map(names: Sequence[str], values: Mapping[tuple[str, str], float], *, darkest: float, label: str) -> Markup:
    """An `<svg>` with its colour scale and, below the diagonal, a cell for each pair that has a value.

    0 is invisible and `darkest` or more has full colour. A tooltip has the names and the value of a cell. Rows and
    columns are in the order of `names`. The size depends on the number and the length of the names.
    """
    rows, columns = names[1:], names[:-1]
    cell = min(max(640 // len(rows), 16), 32)
    longest, slanted = (_CHARACTER * max(len(cut(name, 20)) for name in side) for side in (rows, columns))
    left, top = round(max(longest, 0.71 * slanted)) + 12, 34
    floor = top + cell * len(rows)
    parts = [_open_svg(left + max(cell * len(columns), 160), round(floor + 0.71 * slanted + 20), label)]
    parts += _colour_scale(left, darkest)
    square = Markup(
        '<rect class="heat" x="{}" y="{}" width="{}" height="{}" fill-opacity="{:.2f}"><title>{}</title></rect>'
    )
    for row, name in enumerate(rows):
        y = top + row * cell
        parts.append(_text(left - 8, y + cell / 2 + 4, "end", cut(name, 20), name))
        for column, other in enumerate(names[: row + 1]):
            value = values.get((other, name), values.get((name, other)))
            if value is not None:
                strength = min(max(value / darkest, 0.0), 1.0) if darkest > 0 else 0.0
                tip = f"{other} with {name}: {value:.3f}"
                parts.append(square.format(left + column * cell, y, cell - 1, cell - 1, strength, tip))
    for column, name in enumerate(columns):
        slant = Markup('<g transform="translate({:.1f} {}) rotate(-45)">{}</g>')
        text = _text(0, 0, "end", cut(name, 20), name)
        parts.append(slant.format(left + (column + 0.5) * cell + 4, floor + 12, text))
    return Markup("\n").join([*parts, Markup("</svg>")])


def note(text: str) -> Markup:
    """An `<svg>` that explains why there is no chart."""
    return Markup("\n").join([_open_svg(_SMALL_WIDTH, 40, text), _text(0, 25, "start", text), Markup("</svg>")])


def sheet_png(charts: Mapping[str, Markup], *, key: Sequence[str], columns: int) -> bytes:
    """One PNG of small charts with their names, and the key of their series; each point is 2 x 2 pixels."""
    assert charts, "a sheet needs a chart"
    gap, head = 24, 26
    columns = min(columns, len(charts))
    width, y = gap + columns * (_SMALL_WIDTH + gap), 50
    parts, x = [], gap
    for index, name in enumerate(key):
        square = Markup('<rect class="area area-{}" x="{}" y="18" width="12" height="12"/>{}')
        parts.append(square.format(index, x, _text(x + 20, 28, "start", name)))
        x += 50 + round(_CHARACTER * len(name))
    for start in range(0, len(charts), columns):
        row = list(charts.items())[start : start + columns]
        for column, (name, chart) in enumerate(row):
            move = Markup('<g transform="translate({} {})"><text class="name" y="14">{}</text>')
            parts.append(move.format(gap + column * (_SMALL_WIDTH + gap), y, cut(name, 34)))
            parts.append(Markup('<g transform="translate(0 {})">{}</g></g>').format(head, chart))
        y += head + max(_height(chart) for _, chart in row) + gap
    root = Markup('<svg xmlns="http://www.w3.org/2000/svg" width="{0}" height="{1}" viewBox="0 0 {0} {1}">')
    return rasterise(str(Markup("\n").join([root.format(width, y), *parts, Markup("</svg>")])))


def rasterise(svg: str) -> bytes:
    """An `<svg>` with its namespace as PNG, twice its size, in the colours of a light page.

    The font is a common sans serif of the machine, or the one of Pillow if there is none.
    """
    light = dict(reversed(re.findall(r"--([\w-]+): (#\w+)", STYLE)))  # the first of each name
    style = re.sub(r"var\(--([\w-]+)\)", lambda match: light[match[1]], STYLE)
    families = "'Noto Sans', 'DejaVu Sans', 'Liberation Sans', Arial, Helvetica, Aileron"
    font = ImageFont.load_default(12)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "font.ttf")
        file.write_bytes(font.font_bytes)
        png = resvg_py.svg_to_bytes(
            svg_string=svg,
            style_sheet=f"text {{ font-family: {families}; }} {style}",
            background=light["panel"],
            font_files=[str(file)],
            zoom=2,
        )
    return bytes(png)


def cut(text: str, length: int) -> str:
    """A string of at most `length` characters, the last of them … if it was longer."""
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


def short(value: float) -> str:
    """4 significant digits with k, M or G for thousands: 1500000 -> 1.5M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


def _line(points: Points, classes: str) -> Markup:
    commands, pen_down = [], False
    for x, y in points:
        drawable = math.isfinite(x) and math.isfinite(y)
        if drawable:
            # A line of length 0 is drawn as a dot: a point without neighbours.
            commands.append(f"L{x:.1f} {y:.1f}" if pen_down else f"M{x:.1f} {y:.1f}h0")
        pen_down = drawable
    return Markup('<path class="line {}" d="{}"/>').format(classes, " ".join(commands))


def _colour_scale(left: int, darkest: float) -> list[Markup]:
    """Six squares from 0 to `darkest`, between these two numbers."""
    square = Markup('<rect class="heat" x="{}" y="4" width="15" height="15" fill-opacity="{:.2f}"/>')
    parts = [square.format(left + 14 + 16 * i, i / 5) for i in range(6)]
    ends = _text(left, 16, "start", "0"), _text(left + 116, 16, "start", f"{darkest:.2g}")
    return [*ends, *parts]


def _height(chart: Markup) -> int:
    height = re.search(r'height="(\d+)"', chart)
    assert height
    return int(height[1])


def _open_svg(width: int, height: int, label: str) -> Markup:
    tag = '<svg width="{0}" height="{1}" viewBox="0 0 {0} {1}" role="img" aria-label="{2}">'
    return Markup(tag).format(width, height, label)


def _text(x: float, y: float, anchor: str, text: str, whole: str = "") -> Markup:
    """A string at a point, with the tooltip `whole` if that is longer."""
    tip = Markup("<title>{}</title>").format(whole) if whole not in ("", text) else ""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}{}</text>').format(x, y, anchor, text, tip)
