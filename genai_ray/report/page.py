"""The quality report: one HTML file that opens anywhere, plus the image grids it shows."""

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jinja2
import numpy as np
from PIL import Image

from genai_ray.report.charts import Points, line_chart


@dataclass(frozen=True, kw_only=True)
class Score:
    """One row of the score table.

    `real` is the same metric between two real sets, the value a perfect generator would reach.
    `gate` is the rule in words, such as "at most 0.05", and `passed` its outcome; both are None
    for a score that only informs.
    """

    name: str
    fake: float
    better: Literal["lower", "higher"]
    explanation: str
    real: float | None = None
    gate: str | None = None
    passed: bool | None = None

    def __post_init__(self) -> None:
        if self.better not in ("lower", "higher"):
            raise ValueError(f"score {self.name!r}: better is {self.better!r}, not lower or higher")
        if (self.gate is None) != (self.passed is None):
            raise ValueError(f"score {self.name!r}: give gate and passed together or neither")


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything the page shows; what is empty or None is left out.

    Pictures are PNG bytes, best from `image_grid` and `png_bytes`. `samples_png` must be a random
    draw and not a selection, since the page says so. `class_samples_png` has one row of tiles per
    name in `class_names`. `neighbour_pairs_png`, from `pair_grid`, discloses real training images:
    leave it None where these are confidential. `losses` maps a name to (samples seen, value)
    points. `provenance` may nest mappings and lists.
    """

    title: str
    summary: Mapping[str, Any]
    scores: Sequence[Score]
    samples_png: bytes
    class_samples_png: bytes | None = None
    class_names: Sequence[str] = ()
    neighbour_pairs_png: bytes | None = None
    losses: Mapping[str, Points] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    spec_yaml: str = ""

    @property
    def passed(self) -> bool | None:
        """Whether every gate passed; None without gates."""
        outcomes = [score.passed for score in self.scores if score.passed is not None]
        return all(outcomes) if outcomes else None


def render_html(report: Report) -> str:
    """The report as one HTML page that loads nothing: pictures, charts and styles are inside.

    All text is escaped, and a content security policy forbids scripts and outside requests.
    """
    chart = line_chart(report.losses, x_label="samples seen") if report.losses else None
    return environment().get_template("report.html.j2").render(report=report, chart=chart)


def environment() -> jinja2.Environment:
    """Where the templates of the pages are read: all text escaped, a name that is missing refused.

    `page.html.j2` is what every page has; `report.html.j2` and `table_report.html.j2` extend it.
    """
    found = jinja2.Environment(
        loader=jinja2.PackageLoader("genai_ray.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["number"] = _number
    found.filters["data_uri"] = _data_uri
    return found


def image_grid(images: np.ndarray, *, columns: int, scale: int | None = None, gap: int = 1) -> np.ndarray:
    """Tile uint8 images (n, h, w, channels) row by row into one (H, W, channels) uint8 picture.

    Each pixel becomes a `scale` x `scale` square, by default the least that makes the shorter side
    of a tile 32 pixels. Tiles are `gap` white pixels apart and unused tiles are white.

    Raises ValueError unless images are uint8 with 1 or 3 channels and there is at least one.
    """
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] not in (1, 3):
        raise ValueError(
            f"images are {images.dtype} of shape {images.shape}; need uint8 "
            "(n, height, width, channels) with 1 or 3 channels"
        )
    if images.size == 0 or columns < 1 or gap < 0 or (scale is not None and scale < 1):
        raise ValueError(
            f"{len(images)} images, columns={columns}, scale={scale}, gap={gap}; need at least "
            "1 image, 1 column, scale 1 and gap 0"
        )
    factor = scale or -(-32 // min(images.shape[1:3]))
    tiles = images.repeat(factor, axis=1).repeat(factor, axis=2)
    tiles = np.pad(tiles, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    n, height, width, channels = tiles.shape
    rows = -(-n // columns)
    canvas = np.full((rows * columns, height, width, channels), 255, dtype=np.uint8)
    canvas[:n] = tiles
    canvas = canvas.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    picture = canvas.reshape(rows * height, columns * width, channels)
    return picture[: rows * height - gap, : columns * width - gap]


def pair_grid(real: np.ndarray, fake: np.ndarray, *, columns: int, scale: int | None = None) -> np.ndarray:
    """`image_grid` of pairs, each generated image above the real one of the same index.

    Wide gaps part the pairs, which touch within.
    """
    if real.shape != fake.shape:
        raise ValueError(f"real has shape {real.shape} and fake {fake.shape}; they must agree")
    return image_grid(np.concatenate([fake, real], axis=1), columns=columns, scale=scale, gap=6)


def png_bytes(image: np.ndarray) -> bytes:
    """Encode a uint8 picture (h, w), (h, w, 1) or (h, w, 3) as PNG."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.dtype != np.uint8 or not (image.ndim == 2 or image.shape[2:] == (3,)):
        raise ValueError(
            f"image is {image.dtype} of shape {image.shape}; need uint8 (h, w), (h, w, 1) or (h, w, 3)"
        )
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4g}"


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + b64encode(png).decode("ascii")
