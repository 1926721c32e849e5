"""The page of a table is one safe file, shows what it should, and hides what few rows have."""

import io
import re

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from test_metrics_report import HOSTILE, Tags
from test_metrics_table import HOLDOUT, HOW, TRAIN, people

from genai_ray.report.charts import bar_chart, cut, heat_map, histogram
from genai_ray.report.page import Score
from genai_ray.table.metrics import METRICS
from genai_ray.table.panels import (
    MISSING_LABEL,
    OTHERS_LABEL,
    RARE_LABEL,
    Panel,
    column_panels,
    draw_panels,
    sample_rows,
    table_preview_png,
)
from genai_ray.table.report import TableReport, render_table_html
from genai_ray.table.scores import table_scores


def hostile(table: pa.Table) -> pa.Table:
    """Hostile names, a hostile category, and the same table otherwise."""
    jobs = pa.array([HOSTILE if job == "nurse" else job for job in table["job"].to_pylist()])
    table = table.set_column(4, "job", jobs)
    return table.rename_columns([name + HOSTILE for name in table.column_names])


@pytest.fixture(scope="module")
def report() -> TableReport:
    train, holdout, table = (hostile(t.slice(0, 300)) for t in (TRAIN, HOLDOUT, people(300, 3)))
    skip = ["id" + HOSTILE]
    found = table_scores(train, holdout, table, target="member" + HOSTILE, skip=skip)
    columns, rows = sample_rows(train, table, skip=skip)
    return TableReport(
        title=HOSTILE,
        summary={HOSTILE: HOSTILE},
        scores=[
            Score(
                name=name,
                fake=value,
                real=found.real[name],
                explanation=METRICS[name].about,
                better="lower" if METRICS[name].better == "lower" else "higher",
                gate="at least 0.9" if name == "column_shapes" else None,
                passed=True if name == "column_shapes" else None,
            )
            for name, value in found.fake.items()
        ],
        details=found.details,
        panels=column_panels(train, table, skip=skip),
        sample_columns=columns,
        sample_rows=rows,
        losses={HOSTILE: [(0, 1.0), (100, 0.5)]},
        provenance={HOSTILE: [HOSTILE]},
        spec_yaml=HOSTILE,
    )


def empty_report() -> TableReport:
    return TableReport(
        title="t", summary={}, scores=[], details={}, panels=[], sample_columns=[], sample_rows=[]
    )


def test_the_page_is_well_formed_loads_nothing_and_runs_nothing(report):
    for page in (render_table_html(report), render_table_html(empty_report())):
        tags = Tags(page)
        assert tags.open == []
        names = {tag for tag, _ in tags.found}
        assert names.isdisjoint({"script", "link", "iframe", "object", "embed", "a", "form"})
        for _, attributes in tags.found:
            assert attributes.keys().isdisjoint({"href", "src", "style"})
            assert not any(name.startswith("on") for name in attributes)
        assert re.search(r"url\(|@import", page) is None
        assert "default-src 'none'" in page
        assert "<script" not in page


def test_every_part_is_there_and_says_that_it_is_synthetic_first(report):
    page = render_table_html(report)
    parts = [
        "All rows on this page are synthetic",
        "<h2>Scores",
        "<h2>Columns",
        "<h2>Pairs",
        "<h2>Learning",
        "<h2>What gives",
        "<h2>Samples",
        "<h2>Training losses",
        "<h2>Provenance",
        "Specification",
    ]
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    assert "no value of them proves\n  privacy" in page
    assert page.count("<figure>") == 6
    assert page.count("<svg") == 8  # of six columns, the heat map and the losses
    assert "Quality gates" in page
    assert len(page) < 200_000


def test_what_was_not_measured_is_left_out():
    page = render_table_html(empty_report())
    assert not re.search("<h2>|<svg|Quality gates", page)


# --- what the page must not show -----------------------------------------------------------------


def secret_tables() -> tuple[pa.Table, pa.Table]:
    """Real rows with a category of 3, one of 5, and one person who earns a million."""
    real = pa.table(
        {
            "c": ["often"] * 92 + ["hidden"] * 3 + ["known"] * 5,
            "n": [*range(99), 1_000_000],
            "x": np.linspace(0, 1, 100),
        }
    )
    made = pa.table({"c": ["often", "hidden", "made up", None], "n": [5, 6, 7, 8], "x": [0.1] * 4})
    return real, made


def test_rare_categories_are_lumped_together_and_masked_in_samples():
    real, made = secret_tables()
    panel = column_panels(real, made, rare=5)[0]
    assert panel.labels == ("often", "known", "made up", OTHERS_LABEL, MISSING_LABEL)
    assert panel.real == pytest.approx((0.92, 0.05, 0, 0.03, 0))
    assert panel.fake == pytest.approx((0.25, 0, 0.25, 0.25, 0.25))
    columns, rows = sample_rows(real, made, rare=5)
    assert columns == ["c", "n", "x"]
    assert [row[0] for row in rows] == ["often", RARE_LABEL, "made up", ""]
    assert rows[0][1:] == ["5", "0.1"]
    # A number that is named as a category keeps its rare values to itself, too.
    assert {row[1] for row in sample_rows(real, made, rare=5, categorical=["n"])[1]} == {RARE_LABEL}


def test_outliers_lie_in_the_last_bin_and_thin_bins_are_empty():
    real, made = secret_tables()
    panel = column_panels(real, made, rare=5)[1]
    assert panel.labels == ("4", "95")
    assert sum(panel.real) == pytest.approx(1)
    assert panel.real[-1] >= 0.05
    thin = pa.table({"n": [0] * 50 + [5] * 3 + [10] * 50})
    assert column_panels(thin, thin, rare=5)[0].real == pytest.approx((50 / 103, *[0] * 4, 50 / 103))
    few = column_panels(real.slice(0, 9), made, rare=5)[1]
    assert few.labels == few.real == ()
    assert "Too few real values" in render_table_html(_with_panels([few]))


def _with_panels(panels: list[Panel]) -> TableReport:
    return TableReport(
        title="t", summary={}, scores=[], details={}, panels=panels, sample_columns=[], sample_rows=[]
    )


def test_panels_of_dates_constants_and_nothing():
    days = pa.array(np.arange("2020-01-01", "2020-02-10", dtype="M8[D]"))
    stamp = pa.array([1_600_000_000_000_000_001] * 40, pa.timestamp("ns"))
    table = pa.table(
        {
            "day": days,
            "stamp": stamp,
            "flat": [2.5] * 40,
            "nothing": pa.nulls(40, pa.float64()),
            "none": pa.nulls(40, pa.string()),
            "yes": [True] * 40,
        }
    )
    panels = column_panels(table, table, rare=2)
    assert panels[0].labels == ("2020-01-02", "2020-02-08")
    assert panels[1].labels[0].startswith("2020-09-13")
    assert panels[2].labels == ("2.5", "2.5")
    assert panels[3].missing == (1, 1)
    assert panels[4].labels == (MISSING_LABEL,)
    assert panels[5].labels == ("true",)
    for panel in panels:
        assert panel.real == pytest.approx(panel.fake)
    assert "2020-09-13" in sample_rows(table, table)[1][0][1]
    assert table_preview_png(table, table).startswith(b"\x89PNG")


# --- charts --------------------------------------------------------------------------------------


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
    assert widths == pytest.approx([150, 30, 75, 0])
    assert f"<title>{name}</title>" in svg
    assert cut(name, 14) in svg


def test_a_heat_map_has_a_cell_for_each_pair_that_was_measured():
    values = {("a", "b"): 0.1, ("c", "a"): 0.4}
    svg = str(heat_map(["a", "b", "c"], values, darkest=0.2, label="x"))
    assert re.findall(r'fill-opacity="([\d.]+)"', svg) == ["0.50", "1.00"]
    assert "<title>a with b: 0.100</title>" in svg


def test_a_wide_table_shows_the_columns_of_its_worst_pairs():
    names = [f"c{i}" for i in range(40)]
    pairs = [
        {"of": [a, b], "fake": 0.5 if a == "c7" else 0.99, "real": 0.99}
        for i, a in enumerate(names)
        for b in names[:i]
    ]
    page = render_table_html(
        TableReport(
            title="t",
            summary={},
            scores=[],
            details={"pair_trends": pairs},
            panels=[],
            sample_columns=[],
            sample_rows=[],
        )
    )
    assert "Of 40 columns the 30 in the worst pairs" in page
    assert page.count('class="heat"') == 30 * 29 / 2
    assert "c7 with c0" in page


# --- the preview ---------------------------------------------------------------------------------


def test_the_preview_is_one_picture_of_the_first_columns():
    png = table_preview_png(TRAIN, people(500, 3), columns=3, **HOW)
    assert png == table_preview_png(TRAIN, people(500, 3), columns=3, **HOW)
    picture = Image.open(io.BytesIO(png))
    assert picture.width == 2 * (3 * 236 + 16)
    pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    colours = {tuple(c) for c in np.unique(pixels, axis=0).tolist()}
    assert {(37, 99, 235), (217, 72, 15)} <= colours  # an outline of either table
    smaller = Image.open(io.BytesIO(table_preview_png(TRAIN, TRAIN, columns=3, most=3, **HOW)))
    assert smaller.height < picture.height


def test_a_preview_of_nothing_is_refused():
    with pytest.raises(ValueError, match="need 1 of each"):
        draw_panels([])
