"""The quality report: one HTML file that opens anywhere, with the same parts for every modality.

Title, summary, scores, training curves, provenance and spec are here; a modality hands in its own blocks.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jinja2
from markupsafe import Markup

from genai_ray.report.charts import SERIES, STYLE, Points, line_chart

#: First word of a training metric -> the title of the panel that it shares with the others.
_PANELS = {
    "loss": "Losses",
    "accuracy": "Accuracy",
    "logit": "Logits",
    "gradient": "Gradient norms",
    "penalty": "Penalty",
}


@dataclass(frozen=True, kw_only=True)
class Score:
    """One row of the score table.

    `real` is the same metric between two real sets, the value a perfect generator would reach. `gate` is the rule in
    words, such as "at most 0.05", and `passed` its outcome; both are None for a score without a gate.
    """

    name: str
    fake: float
    real: float
    better: Literal["lower", "higher"]
    explanation: str
    gate: str | None = None
    passed: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart as `<svg>` with its title and note; `key` names its series, in the order of their colours."""

    title: str
    chart: Markup
    note: str = ""
    key: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A PNG and what it shows. rows: names of its rows. folded: a line that opens the picture by a click."""

    png: bytes
    alt: str
    rows: Sequence[str] = ()
    folded: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells are strings or numbers; a `wide` table scrolls sideways instead of wrapping its cells."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | float]]
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Block:
    """A section of the page; what is empty is left out. `key` names the series of all its figures."""

    title: str
    note: str = ""
    key: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    chart: Markup | None = None
    pictures: Sequence[Picture] = ()
    table: Table | None = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything the page shows; what is empty is left out.

    notice: that the data are synthetic; at the top of the page. Strings are escaped, `Markup` is not.
    losses: name -> (samples seen, value) points. data: what was read of the source. data and provenance may nest
    mappings and lists.
    """

    title: str
    notice: str
    summary: Mapping[str, Any]
    data: Mapping[str, Any]
    scores: Sequence[Score]
    scores_note: str
    blocks: Sequence[Block]
    losses: Mapping[str, Points]
    provenance: Mapping[str, Any]
    spec_yaml: str

    @property
    def passed(self) -> bool | None:
        """Whether every gate passed; None without gates."""
        outcomes = [score.passed for score in self.scores if score.passed is not None]
        return all(outcomes) if outcomes else None


def render_html(report: Report) -> str:
    """The report as one HTML page that loads nothing: pictures, charts and styles are inside.

    All strings are escaped, and a content security policy forbids scripts and outside requests.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("genai_ray.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": "{:.4g}".format, "data_uri": _data_uri}
    environment.tests["count"] = lambda value: isinstance(value, int | float)
    template = environment.get_template("page.html.j2")
    return template.render(
        report=report, blocks=[*report.blocks, *_training(report.losses)], style=Markup(STYLE), colours=SERIES
    )


def _training(curves: Mapping[str, Points]) -> list[Block]:
    """Panels of metrics that share a unit: by their first word, else scores of 0..1, else each alone."""
    panels: dict[str, dict[str, Points]] = {}
    for name, points in curves.items():
        first, _, rest = name.partition("_")
        title = "Scores of samples" if all(0 <= value <= 1 for _, value in points) else name
        label = rest or name if first in _PANELS else name
        panels.setdefault(_PANELS.get(first, title), {})[label] = points
    figures = []
    for title, series in panels.items():
        key = [] if title.lower() in series else [*series]
        figures.append(Figure(title=title, chart=line_chart(series, x_label="samples seen"), key=key))
    note = "Each line is smoothed; the faint one behind it is as recorded."
    return [Block(title="Training", note=note, figures=figures)] if figures else []


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + b64encode(png).decode("ascii")
