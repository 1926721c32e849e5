"""The page of a table is one safe file, shows what it should, and hides what few rows have."""

import io
import re

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from test_metrics_table import HOLDOUT, HOW, TRAIN, people, table_scores
from test_report import HOSTILE, assert_safe, minimal_report

from genai_ray.report.page import Report, Score, render_html
from genai_ray.table.metrics import METRICS
from genai_ray.table.panels import (
    MISSING_LABEL,
    OTHERS_LABEL,
    RARE_LABEL,
    Panel,
    blocks,
    column_panels,
    preview_png,
    sample_rows,
)


def hostile(table: pa.Table) -> pa.Table:
    """Hostile names, a hostile category, and the same table otherwise."""
    jobs = pa.array([HOSTILE if job == "nurse" else job for job in table["job"].to_pylist()])
    table = table.set_column(4, "job", jobs)
    return table.rename_columns([name + HOSTILE for name in table.column_names])


@pytest.fixture(scope="module")
def report() -> Report:
    train, holdout, table = (hostile(t.slice(0, 300)) for t in (TRAIN, HOLDOUT, people(300, 3)))
    skip = ["id" + HOSTILE]
    measured = table_scores(train, holdout, table, target="member" + HOSTILE, skip=skip)
    panels = column_panels(train, table, rare=5, skip=skip)
    return minimal_report(
        title=HOSTILE,
        scores=[
            Score(
                name=name,
                fake=value,
                real=measured.real[name],
                explanation=METRICS[name].about,
                better=METRICS[name].better,
            )
            for name, value in measured.fake.items()
        ],
        blocks=blocks(measured.details, panels, *sample_rows(train, table, rare=5, skip=skip)),
        losses={HOSTILE: [(0, 1.0), (100, 0.5)]},
    )


def test_the_page_is_safe_and_has_every_block(report):
    page = render_html(report)
    assert_safe(page)
    titles = ["Scores", "Columns", "Pairs of columns", "Training on the rows", "Most revealing columns"]
    assert re.findall("<h2>([^<]+)", page) == [*titles, "Samples", "Training"]
    assert page.count("<figure>") == 6 + 1  # of six columns and the losses
    assert page.count("<svg") == 8  # and the heat map
    assert len(page) < 200_000


def test_what_was_not_measured_is_left_out():
    assert blocks({}, [], [], []) == []


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
    assert "Too few real values" in page_of({}, [few])


def page_of(details: dict, panels: list[Panel]) -> str:
    return render_html(minimal_report(blocks=blocks(details, panels, [], [])))


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
    assert "2020-09-13" in sample_rows(table, table, rare=5)[1][0][1]
    assert preview_png(table, table, rare=5).startswith(b"\x89PNG")


def test_a_wide_table_shows_the_columns_of_its_worst_pairs():
    names = [f"c{i}" for i in range(40)]
    pairs = [
        {"of": [a, b], "fake": 0.5 if a == "c7" else 0.99, "real": 0.99} for i, a in enumerate(names) for b in names[:i]
    ]
    page = page_of({"pair_trends": pairs}, [])
    assert "Of 40 columns the 30 in the worst pairs" in page
    assert page.count('class="heat"') == 30 * 29 / 2 + 6
    assert "c7 with c0" in page


def test_the_preview_is_one_picture_of_the_first_columns():
    png = preview_png(TRAIN, people(500, 3), rare=5, **HOW)
    picture = Image.open(io.BytesIO(png))
    assert picture.width == 2 * (4 * 284 + 24)
    many = pa.table({f"c{i}": [1.0] * 20 for i in range(30)})
    taller = Image.open(io.BytesIO(preview_png(many, many, rare=5)))
    assert taller.height == 2 * (50 + 3 * (26 + 110 + 24))  # twelve columns


def test_the_end_of_time_is_shown_as_it_is():
    last = np.datetime64("9999-12-31T23:59:59.999999")
    days = np.datetime64("2021-01-01T08:00:00.000000") + np.arange(60).astype("m8[h]")
    table = pa.table({"until": pa.array(np.where(np.arange(60) % 2, last, days))})
    (panel,) = column_panels(table, table, rare=5)
    assert panel.labels[1] == "9999-12-31 23:59:59"
