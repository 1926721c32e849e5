"""The report is one safe, self-contained file; its charts and pictures show what they should."""

import io
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from genai_ray.report.charts import SERIES, bar_chart, cut, heat_map, histogram, line_chart, sheet_png, smoothed, ticks
from genai_ray.report.page import Block, Figure, Picture, Report, Score, Table, render_html
from genai_ray.report.pictures import image_grid, pair_grid, png_bytes

PNG = png_bytes(np.zeros((4, 4, 1), np.uint8))
HOSTILE = "\"><script src='https://evil.example/x.js'></script>&"


class Tags(HTMLParser):
    """Collects (tag, attributes) and fails on a tag that is closed but not open."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def assert_safe(page: str) -> None:
    """Well-formed, without scripts, and with nothing to load but what is inside."""
    tags = Tags(page)
    assert tags.open == []
    names = {tag for tag, _ in tags.seen}
    assert names.isdisjoint({"script", "link", "iframe", "object", "embed", "a", "form"})
    for _, attributes in tags.seen:
        assert attributes.keys().isdisjoint({"href", "style"})
        assert (attributes.get("src") or "data:image/png;").startswith("data:image/png;")
        assert not any(name.startswith("on") for name in attributes)
    assert re.search(r"url\(|@import|<script", page) is None
    assert "default-src 'none'" in page


def minimal_report(**changes) -> Report:
    parts: dict[str, Any] = {"summary": {}, "data": {}, "scores": [], "blocks": [], "losses": {}, "provenance": {}}
    parts |= {"title": "t", "notice": "All images are synthetic", "scores_note": "", "spec_yaml": ""}
    return Report(**(parts | changes))


def full_report(text: str = "text") -> Report:
    chart = bar_chart([text], [[0.5]], label=text)
    picture = Picture(png=PNG, alt=text, rows=[text, text])
    return minimal_report(
        title=text,
        summary={text: text, "images": 1000},
        data={text: {text: 2}},
        scores=[
            Score(name=text, fake=1.23456, real=0.5, better="lower", explanation=text, gate=text, passed=True),
            Score(name="density", fake=0.9, real=1, better="higher", explanation=text),
        ],
        scores_note=text,
        blocks=[
            Block(title=text, note=text, key=[text], chart=chart),
            Block(title="figures", figures=[Figure(title=text, note=text, key=[text], chart=chart)]),
            Block(title="pictures", pictures=[picture, Picture(png=PNG, alt=text, folded=text)]),
            Block(title="table", table=Table(header=(text, "n"), rows=[(text, 1.5)], wide=True)),
        ],
        losses={text: [(0, 1.0), (1000, 0.5)], "other": [(0, 2.0), (1000, float("nan"))]},
        provenance={text: {text: [text, {text: text}]}, "seed": 7},
        spec_yaml=text,
    )


# --- the page ------------------------------------------------------------------------------------


@pytest.mark.parametrize("report", [full_report(), full_report(HOSTILE), minimal_report()])
def test_the_page_is_well_formed_and_loads_nothing(report):
    assert_safe(render_html(report))


def test_hostile_strings_are_shown_not_run():
    assert render_html(full_report(HOSTILE)).count("&lt;script") >= 30  # every string of the page


def test_the_notice_comes_before_any_image():
    page = render_html(full_report())
    assert page.index("All images are synthetic") < page.index("<img")


def test_what_is_empty_is_left_out():
    assert not re.search("<h2>|<svg|<img|Quality gates", render_html(minimal_report()))


def test_long_lists_are_folded():
    page = render_html(minimal_report(provenance={"few": [1, 2], "many": [*range(100)]}))
    assert "<summary>100 values</summary>" in page
    assert page.count("<details>") == 1
    assert "<details><summary>text</summary>" in render_html(full_report())


@pytest.mark.parametrize(("outcomes", "verdict"), [([True, None], True), ([True, False], False), ([None], None)])
def test_one_failed_gate_fails_the_report(outcomes, verdict):
    scores = [Score(name="s", fake=1, real=1, better="lower", explanation="", passed=passed) for passed in outcomes]
    report = minimal_report(scores=scores)
    assert report.passed is verdict
    assert ("Quality gates" in render_html(report)) is (verdict is not None)


def test_training_metrics_of_one_unit_share_a_panel():
    names = ["loss_generator", "gradient_generator", "loss_discriminator", "recall", "coverage", "fid"]
    values = {name: [(0, 0.5), (1, 9.0 if name == "fid" else 0.7)] for name in names}
    page = render_html(minimal_report(losses=values))
    panels = re.findall(r"<figcaption>([^<]+)", page)
    assert panels == ["Losses", "Gradient norms", "Scores of samples", "fid"]
    assert [svg.count('class="line line-') for svg in page.split("<svg")[1:]] == [2, 1, 2, 1]


# --- charts --------------------------------------------------------------------------------------


def test_chart_shows_every_series_and_gaps_where_values_are_missing():
    svg = line_chart({"a": [(0, 1), (1, float("inf")), (2, 3), (3, 2)]}, x_label="x")
    (path,) = re.findall(r'class="line line-0" d="(M[^"]+)"', svg)
    assert path.count("M") == 2
    assert path.count("L") == 1


def test_a_noisy_line_is_smoothed_before_its_raw_one():
    noise = np.random.Generator(np.random.Philox(0)).normal(size=300)
    noise[7] = np.nan
    points = [*enumerate(noise.tolist())]
    smooth = [y for _, y in smoothed(points)]
    assert smooth[150] == pytest.approx(noise[140:161].mean())
    assert np.isnan(smooth).nonzero()[0].tolist() == [7]
    assert smoothed(points[:29]) == points[:29]
    svg = line_chart({"a": points}, x_label="x")
    assert svg.index('class="line raw line-0"') < svg.index('class="line line-0"')


def test_each_line_has_a_colour():
    svg = line_chart({str(i): [(0, i), (1, i)] for i in range(SERIES)}, x_label="x")
    assert {f"line-{i}" for i in range(SERIES)} == set(re.findall(r'"line (line-\d)"', svg))


@pytest.mark.parametrize("series", [{"a": []}, {"a": [(0, float("nan"))]}])
def test_chart_without_values_says_so(series):
    assert "No finite values" in line_chart(series, x_label="x")


def test_chart_of_a_single_point_has_a_dot_and_axes():
    svg = line_chart({"a": [(5, 0)]}, x_label="samples seen")
    assert 'h0"' in svg
    assert svg.count("<text") > 4


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_enclose_the_range(low, span):
    values = ticks(low, low + span)
    slack = 1e-9 * max(abs(low), span)
    assert values[0] <= low + slack
    assert values[-1] >= low + span - slack
    assert 2 <= len(values) <= 12


def test_a_histogram_draws_each_series_to_one_scale():
    svg = str(histogram([[0.5, 0.25], [1.0, 0]], low="0", high="9", label="x"))
    first, second = re.findall(r'class="area area-\d" d="([^"]+)"', svg)
    floor, top = 90, 4
    assert first == f"M0 {floor}V{(floor + top) / 2:.1f}H130.0V{floor - 86 / 4:.1f}H260.0V90Z"
    assert second.startswith(f"M0 {floor}V{top:.1f}")
    assert "<svg" in histogram([[], []], low="", high="", label="x")


def test_bars_have_lengths_by_share_and_whole_names_in_tooltips():
    name = "a name that is longer than its place"
    svg = str(bar_chart([name, "b"], [[0.5, 0.25], [0.1, 0]], label="x"))
    widths = [float(w) for w in re.findall(r'<rect[^>]* width="([\d.]+)"', svg)]
    assert widths == pytest.approx([140, 28, 70, 0])
    assert f"<title>{name}</title>" in svg
    assert cut(name, 15) in svg


def test_a_heat_map_has_a_cell_for_each_pair_that_was_measured_and_a_scale():
    values = {("a", "b"): 0.1, ("c", "a"): 0.4}
    svg = heat_map(["a", "b", "c"], values, darkest=0.2, label="x")
    cells = re.findall(r'fill-opacity="([\d.]+)"><title>([^<]+)', svg)
    assert cells == [("0.50", "a with b: 0.100"), ("1.00", "a with c: 0.400")]
    assert svg.count('class="heat"') == 2 + 6
    assert ">0.2</text>" in svg


def test_a_heat_map_is_as_large_as_its_columns_need():
    def width(count: int) -> int:
        names = [f"c{i}" for i in range(count)]
        tags = Tags(heat_map(names, {}, darkest=1, label="x"))
        return int(tags.seen[0][1]["width"] or 0)

    assert width(3) < 200 < 400 < width(30)


def test_a_sheet_is_one_picture_in_the_colours_of_a_light_page():
    charts = {f"<column {i}>": histogram([[1.0], [0.0]], low="0", high="1", label="x") for i in range(3)}
    png = sheet_png(charts, key=("real", "synthetic"), columns=2)
    assert png == sheet_png(charts, key=("real", "synthetic"), columns=2)
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    assert picture.width == 2 * (2 * (260 + 24) + 24)
    colours = {colour for _, colour in picture.getcolors(1 << 20) or []}
    assert {(255, 255, 255), (0, 114, 178)} <= colours  # the page, an outline
    above = np.asarray(picture)[:100, 200:].min(axis=2)
    assert above.min() < 128  # names, whatever fonts the machine has
    first = {"<column 0>": charts["<column 0>"]}
    smaller = Image.open(io.BytesIO(sheet_png(first, key=(), columns=2)))
    assert smaller.height < picture.height


# --- pictures ------------------------------------------------------------------------------------


def test_grid_places_tiles_row_by_row():
    images = np.arange(3, dtype=np.uint8).repeat(64 * 64).reshape(3, 64, 64, 1)
    grid = image_grid(images, columns=2, gap=1)
    assert grid.shape == (129, 129, 1)
    assert grid[[0, 0, 0, 64, 65, 65], [0, 64, 65, 0, 0, 65], 0].tolist() == [0, 255, 1, 255, 2, 255]


@pytest.mark.parametrize(("size", "side"), [(8, 64), (28, 84), (32, 64), (64, 64), (128, 128)])
def test_tiny_tiles_are_enlarged_to_64_pixels(size, side):
    assert image_grid(np.zeros((1, size, size, 3), np.uint8), columns=1).shape == (side, side, 3)


def test_grid_without_gap_keeps_every_pixel():
    images = np.arange(2 * 64 * 64).astype(np.uint8).reshape(2, 64, 64, 1)
    np.testing.assert_array_equal(image_grid(images, columns=2, gap=0), np.concatenate(list(images), axis=1))


def test_pairs_show_the_generated_image_above():
    real, fake = np.full((2, 64, 64, 1), 200, np.uint8), np.zeros((2, 64, 64, 1), np.uint8)
    grid = pair_grid(real, fake, columns=2)
    assert grid.shape == (128, 134, 1)
    assert grid[0, 0] == 0
    assert grid[-1, 0] == 200


@pytest.mark.parametrize("shape", [(5, 7, 1), (5, 7, 3)])
def test_png_is_lossless(shape):
    image = np.random.Generator(np.random.Philox(0)).integers(0, 256, shape, dtype=np.uint8)
    decoded = np.asarray(Image.open(io.BytesIO(png_bytes(image))))
    np.testing.assert_array_equal(decoded, image.squeeze())
