"""The picture of ``f2i estimate``: quality against estimated milliseconds of several models, as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from f2i_bench.npu.estimate_records import EstimateReport
from f2i_runtime.errors import UsageError
from f2i_runtime.files import write_text
from jinja2 import Environment, PackageLoader, StrictUndefined

from f2i.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, axis_ticks, log_ticks, place_names, spread

RADIUS = 6.0
SHAPES = {"fp16": "circle", "w8a8": "diamond", "w8a16": "square"}


def check_picture(report: EstimateReport) -> None:
    """Raises UsageError where no model has a quality to draw."""
    if not any(m.quality is not None and m.ms for m in report.models):
        raise UsageError('no model has a known quality, so there is no picture to draw; give one with --quality FILE.json, {"MODEL": dB}')


@dataclass(frozen=True)
class Mark:
    """A model in one precision: milliseconds for a tile with the compiler's two bounds, and PSNR in dB. ``uncosted``: some of its ops have no cost."""

    name: str
    title: str
    precision: str
    ms: tuple[float, float, float]
    """Lower bound, estimate, upper bound."""
    psnr_db: float
    uncosted: bool


def estimate_chart(report: EstimateReport) -> dict[str, Any]:
    """Returns positions for the template: the models of a report whose quality is known."""
    marks = [
        Mark(Path(m.model).name, m.model, m.precision, (m.ms_lower or m.ms, m.ms, m.ms_upper), m.quality, bool(m.uncosted_ops))
        for m in report.models
        if m.quality is not None and m.ms
    ]
    return chart_of(marks, report.source)


def chart_of(shown: Sequence[Mark], source: str) -> dict[str, Any]:
    """Returns positions for the template: milliseconds (logarithmic) to the right, PSNR upwards; a line has the compiler's two bounds."""
    bounds = [math.log10(ms) for m in shown for ms in m.ms]
    x_low, x_high = spread(min(bounds), max(bounds), 0.3)
    y_low, y_high = spread(min(m.psnr_db for m in shown), max(m.psnr_db for m in shown), 0.5)

    def place_x(ms: float) -> float:
        return round(LEFT + (math.log10(ms) - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def place_y(decibels: float) -> float:
        return round(HEIGHT - BOTTOM - (decibels - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    points = [
        {
            "name": f"{m.name} {m.precision}{'*' * m.uncosted}",
            "shape": SHAPES[m.precision],
            "x": place_x(m.ms[1]),
            "y": place_y(m.psnr_db),
            "r": RADIUS,
            "low": place_x(m.ms[0]),
            "high": place_x(m.ms[2]),
            "title": f"{m.title} {m.precision}: {m.ms[1]:.2f} ms ({m.ms[0]:.2f} … {m.ms[2]:.2f}), {m.psnr_db:.2f} dB",
        }
        for m in shown
    ]
    place_names(points)
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "plot": {"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM},
        "x_ticks": [{"at": place_x(t), "label": f"{t:g}"} for t in log_ticks(x_low, x_high)],
        "y_ticks": [{"at": place_y(t), "label": f"{t:g}"} for t in axis_ticks(y_low, y_high)],
        "points": points,
        "source": source,
        "uncosted": any(m.uncosted for m in shown),
    }


def write_picture(path: Path, report: EstimateReport) -> None:
    """Write the picture, complete or not at all. Raises UsageError when it cannot be written."""
    write_text(path, picture(estimate_chart(report)))


def picture(chart: dict[str, Any]) -> str:
    """Returns the SVG of a chart."""
    environment = Environment(
        loader=PackageLoader("f2i.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("estimate.svg.j2").render(chart=chart)
