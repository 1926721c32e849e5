"""The quality report of a business table: one HTML file that opens anywhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from genai_ray.report.charts import Points, bar_chart, heat_map, histogram, line_chart
from genai_ray.report.page import Score, environment
from genai_ray.table.panels import Panel

#: Columns of the heat map, at most; of more, those that are in the worst pairs.
_HEAT_COLUMNS = 30
#: Where the colour of the heat map is full, at least: pairs of good tables differ by some 0.02.
_HEAT_FULL = 0.05


@dataclass(frozen=True, kw_only=True)
class TableReport:
    """Everything the page shows; what is empty is left out.

    details: of `genai_ray.metrics.table.TableScores`.
    panels: from `column_panels`; sample_columns and sample_rows: from `sample_rows`, which keep
        rare real categories off the page. The rows must be a random draw and not a selection,
        since the page says so.
    losses: name -> (samples seen, value) points. provenance may nest mappings and lists.
    """

    title: str
    summary: Mapping[str, Any]
    scores: Sequence[Score]
    details: Mapping[str, Any]
    panels: Sequence[Panel]
    sample_columns: Sequence[str]
    sample_rows: Sequence[Sequence[str]]
    losses: Mapping[str, Points] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    spec_yaml: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether every gate passed; None without gates."""
        outcomes = [score.passed for score in self.scores if score.passed is not None]
        return all(outcomes) if outcomes else None


def render_table_html(report: TableReport) -> str:
    """The report as one HTML page that loads nothing: charts and styles are inside.

    All text is escaped, and a content security policy forbids scripts and outside requests.
    """
    chart = line_chart(report.losses, x_label="samples seen") if report.losses else None
    shapes = {each["of"]: each for each in report.details.get("column_shapes", [])}
    columns = [
        {"panel": panel, "chart": panel_chart(panel), "shape": shapes.get(panel.name)}
        for panel in report.panels
    ]
    pairs = [
        (tuple(each["of"]), each["fake"], each["real"]) for each in report.details.get("pair_trends", [])
    ]
    template = environment().get_template("table_report.html.j2")
    return template.render(
        report=report,
        chart=chart,
        columns=columns,
        heat=_heat(pairs),
        worst=sorted(pairs, key=lambda pair: pair[1])[:5],
        efficacy=report.details.get("efficacy"),
        detection=report.details.get("detection"),
    )


def panel_chart(panel: Panel) -> Markup:
    """The panel as SVG: real is series 0, synthetic series 1."""
    label = f"{panel.name}: real and synthetic"
    if not panel.labels:
        return Markup('<p class="soft">Too few real values to show.</p>')
    if panel.kind == "number":
        low, high = panel.labels
        return histogram([panel.real, panel.fake], low=low, high=high, label=label)
    return bar_chart(panel.labels, [panel.real, panel.fake], label=label)


def _heat(pairs: Sequence[tuple[tuple[str, ...], float, float]]) -> dict[str, Any] | None:
    """The heat map of what each pair lacks to 1, with what its darkest colour stands for."""
    if not pairs:
        return None
    worst: dict[str, float] = {}
    for names, score, _ in pairs:
        for name in names:
            worst[name] = min(worst.get(name, 1.0), score)
    shown = set(sorted(worst, key=lambda name: worst[name])[:_HEAT_COLUMNS])
    names = [name for name in worst if name in shown]
    lacks = {(of[0], of[1]): 1 - score for of, score, _ in pairs if shown.issuperset(of)}
    darkest = max(_HEAT_FULL, *lacks.values())
    chart = heat_map(names, lacks, darkest=darkest, label="What each pair of columns lacks to 1")
    return {"chart": chart, "darkest": darkest, "shown": len(names), "columns": len(worst)}
