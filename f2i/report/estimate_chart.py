"""The picture of ``f2i estimate``: quality against estimated milliseconds of several models, as SVG."""

from __future__ import annotations

import math
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


def estimate_chart(report: EstimateReport) -> dict[str, Any]:
    """Returns positions for the template: milliseconds (logarithmic) to the right, PSNR upwards; a line has the compiler's two bounds."""
    shown = [(m, m.quality) for m in report.models if m.quality is not None and m.ms]
    bounds = [math.log10(ms) for m, _ in shown for ms in (m.ms_lower or m.ms, m.ms_upper)]
    x_low, x_high = spread(min(bounds), max(bounds), 0.3)
    y_low, y_high = spread(min(q for _, q in shown), max(q for _, q in shown), 0.5)

    def place_x(ms: float) -> float:
        return round(LEFT + (math.log10(ms) - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def place_y(decibels: float) -> float:
        return round(HEIGHT - BOTTOM - (decibels - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    points = [
        {
            "name": f"{Path(m.model).name} {m.precision}{'*' * bool(m.uncosted_ops)}",
            "shape": SHAPES[m.precision],
            "x": place_x(m.ms),
            "y": place_y(quality),
            "r": RADIUS,
            "low": place_x(m.ms_lower or m.ms),
            "high": place_x(m.ms_upper),
            "title": f"{m.model} {m.precision}: {m.ms:.2f} ms ({m.ms_lower:.2f} … {m.ms_upper:.2f}), {quality:.2f} dB",
        }
        for m, quality in shown
    ]
    place_names(points)
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "plot": {"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM},
        "x_ticks": [{"at": place_x(t), "label": f"{t:g}"} for t in log_ticks(x_low, x_high)],
        "y_ticks": [{"at": place_y(t), "label": f"{t:g}"} for t in axis_ticks(y_low, y_high)],
        "points": points,
        "source": report.source,
        "uncosted": any(m.uncosted_ops for m, _ in shown),
    }


def write_picture(path: Path, report: EstimateReport) -> None:
    """Write the picture, complete or not at all. Raises UsageError when it cannot be written."""
    environment = Environment(
        loader=PackageLoader("f2i.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    write_text(path, environment.get_template("estimate.svg.j2").render(chart=estimate_chart(report)))
