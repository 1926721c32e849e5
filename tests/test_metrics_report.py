"""The report is one safe, self-contained file and its pictures show what they should."""

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from genai_ray.report.charts import line_chart, ticks
from genai_ray.report.page import Report, Score, image_grid, pair_grid, png_bytes, render_html

PNG = png_bytes(np.zeros((4, 4), np.uint8))
HOSTILE = "\"><script src='https://evil.example/x.js'></script>&"


class Tags(HTMLParser):
    """Collects (tag, attributes) and fails on a tag that is closed but not open."""

    VOID = frozenset({"meta", "img"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def full_report(text: str = "text") -> Report:
    return Report(
        title=text,
        summary={text: text, "images": 1000},
        scores=[
            Score(
                name=text, fake=1.23456, real=0.5, better="lower", explanation=text, gate=text, passed=True
            ),
            Score(name="density", fake=0.9, better="higher", explanation=text),
        ],
        samples_png=PNG,
        class_samples_png=PNG,
        class_names=[text, text],
        neighbour_pairs_png=PNG,
        losses={text: [(0, 1.0), (1000, 0.5)], "other": [(0, 2.0), (1000, float("nan"))]},
        provenance={text: {text: [text, {text: text}]}, "seed": 7},
        spec_yaml=text,
    )


def minimal_report(**changes) -> Report:
    return Report(**({"title": "t", "summary": {}, "scores": [], "samples_png": PNG} | changes))


@pytest.mark.parametrize("report", [full_report(), full_report(HOSTILE), minimal_report()])
def test_the_page_is_well_formed_and_loads_nothing(report):
    html = render_html(report)
    tags = Tags(html)
    assert tags.open == []
    names = {tag for tag, _ in tags.found}
    assert names.isdisjoint({"script", "link", "iframe", "object", "embed", "a", "form"})
    for _, attributes in tags.found:
        assert "href" not in attributes
        assert (attributes.get("src") or "data:image/png;").startswith("data:image/png;")
        assert not any(name.startswith("on") for name in attributes)
    assert re.search(r"url\(|@import", html) is None
    assert "default-src 'none'" in html


def test_hostile_text_is_shown_not_run():
    html = render_html(full_report(HOSTILE))
    assert "<script" not in html
    assert html.count("&lt;script") >= 15  # every place that shows text


def test_it_says_that_images_are_synthetic_before_any_image():
    html = render_html(full_report())
    assert html.index("All images on this page are synthetic") < html.index("<img")


def test_real_images_are_owned_up_to_only_if_shown():
    exception = "lower image of each pair is real"
    assert exception in render_html(full_report())
    assert exception not in render_html(minimal_report())


@pytest.mark.parametrize(
    ("outcomes", "verdict"), [([True, None], True), ([True, False], False), ([None], None)]
)
def test_one_failed_gate_fails_the_report(outcomes, verdict):
    scores = [
        Score(
            name="s",
            fake=1,
            better="lower",
            explanation="",
            passed=passed,
            gate=None if passed is None else "at most 2",
        )
        for passed in outcomes
    ]
    report = minimal_report(scores=scores)
    assert report.passed is verdict
    assert ("Quality gates" in render_html(report)) is (verdict is not None)


def test_a_score_without_a_real_value_says_so():
    html = render_html(minimal_report(scores=[Score(name="s", fake=1, better="lower", explanation="")]))
    assert 'data-label="Real">n/a</td>' in html


def test_contradictory_scores_are_refused():
    with pytest.raises(ValueError, match="gate and passed"):
        Score(name="s", fake=1, better="lower", explanation="", gate="at most 2")
    with pytest.raises(ValueError, match="better is 'up'"):
        Score(name="s", fake=1, better="up", explanation="")  # pyright: ignore[reportArgumentType]


def test_chart_shows_every_series_and_gaps_where_values_are_missing():
    svg = str(line_chart({"a": [(0, 1), (1, float("inf")), (2, 3), (3, 2)]}, x_label="x"))
    (path,) = re.findall(r'class="line line-0" d="(M[^h"]+)"', svg)
    assert path.count("M") == 2
    assert path.count("L") == 1


@pytest.mark.parametrize("series", [{"a": []}, {"a": [(0, float("nan"))]}])
def test_chart_without_values_says_so(series):
    assert "No finite values" in line_chart(series, x_label="x")


def test_chart_of_a_single_point_has_axes():
    assert "<svg" in line_chart({"a": [(5, 0)]}, x_label="x")


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9))
def test_ticks_enclose_the_range(low, span):
    found = ticks(low, low + span)
    slack = 1e-9 * max(abs(low), span)
    assert found[0] <= low + slack
    assert found[-1] >= low + span - slack
    assert 2 <= len(found) <= 12


def test_grid_places_tiles_row_by_row():
    images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
    grid = image_grid(images, columns=2, scale=2, gap=1)
    expected = [
        [0, 0, 255, 1, 1],
        [0, 0, 255, 1, 1],
        [255, 255, 255, 255, 255],
        [2, 2, 255, 255, 255],
        [2, 2, 255, 255, 255],
    ]
    np.testing.assert_array_equal(grid[:, :, 0], expected)


@pytest.mark.parametrize(("size", "side"), [(8, 32), (28, 56), (32, 32), (64, 64)])
def test_tiny_tiles_are_enlarged_to_32_pixels(size, side):
    assert image_grid(np.zeros((1, size, size, 3), np.uint8), columns=1).shape == (side, side, 3)


def test_grid_without_gap_keeps_every_pixel():
    images = np.arange(2 * 32 * 32, dtype=np.uint16).astype(np.uint8).reshape(2, 32, 32, 1)
    grid = image_grid(images, columns=2, gap=0)
    np.testing.assert_array_equal(grid, np.concatenate(list(images), axis=1))


def test_pairs_show_the_generated_image_above():
    real, fake = np.full((2, 32, 32, 1), 200, np.uint8), np.zeros((2, 32, 32, 1), np.uint8)
    grid = pair_grid(real, fake, columns=2)
    assert grid.shape == (64, 70, 1)
    assert grid[0, 0] == 0
    assert grid[-1, 0] == 200


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3)])
def test_png_is_lossless(shape):
    image = np.random.Generator(np.random.Philox(0)).integers(0, 256, shape, dtype=np.uint8)
    decoded = np.asarray(Image.open(io.BytesIO(png_bytes(image))))
    np.testing.assert_array_equal(decoded, image.squeeze())


@pytest.mark.parametrize(
    "call",
    [
        lambda: image_grid(np.zeros((2, 8, 8, 1)), columns=1),
        lambda: image_grid(np.zeros((0, 8, 8, 1), np.uint8), columns=1),
        lambda: image_grid(np.zeros((2, 8, 8, 1), np.uint8), columns=0),
        lambda: pair_grid(np.zeros((1, 8, 8, 1), np.uint8), np.zeros((2, 8, 8, 1), np.uint8), columns=1),
        lambda: png_bytes(np.zeros((8, 8, 2), np.uint8)),
        lambda: png_bytes(np.zeros((8, 8))),
    ],
)
def test_unfit_pictures_are_refused(call):
    with pytest.raises(ValueError, match=r"need|agree"):
        call()
