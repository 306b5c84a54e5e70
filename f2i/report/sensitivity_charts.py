"""Pictures of a quantization: what each layer costs in quality and in arithmetic, and what leaving layers float buys. Data for inline SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from f2i_runtime.files import write_text
from jinja2 import Environment, PackageLoader, StrictUndefined

from f2i.report.charts import HEIGHT, WIDTH, axis_ticks, spread

ROW = 18
"""Height of a unit's row, in the SVG's own units."""
HEAD = 44
NAMES, BARS = 430, 190
"""Width of the names and of each of the two columns of bars."""
DECIBELS = 80.0
"""How many decibels below the longest bar an error has no length."""
FULL_WIDTH = NAMES + 2 * BARS + 100


def unit_rows(record: Mapping[str, Any]) -> dict[str, Any]:
    """One row per unit in the order of the graph: the output's error with it alone quantized (a bar in dB), and its share of the multiply-adds."""
    units = record["units"]
    power = sum(u["mse"] for u in units) or 1.0
    worst = min((u["psnr_db"] for u in units if u["psnr_db"] is not None), default=0.0)
    most_macs = max((u["macs_share"] for u in units), default=0.0) or 1.0
    rows = [
        {
            "y": HEAD + k * ROW,
            "name": _shortened(u["name"]),
            "title": f"{u['name']}: {_db(u['psnr_db'])} PSNR alone, {u['mse'] / power:.1%} of the error, {u['macs_share']:.1%} of the multiply-adds",
            "error": 0.0 if u["psnr_db"] is None else round(BARS * max(0.0, 1 - (u["psnr_db"] - worst) / DECIBELS), 1),
            "macs": round(BARS * u["macs_share"] / most_macs, 1),
            "value": _db(u["psnr_db"]),
        }
        for k, u in enumerate(units)
    ]
    together = _db(record["quantized_psnr_db"])
    return {
        "width": FULL_WIDTH,
        "height": HEAD + ROW * len(rows) + 8,
        "names": NAMES,
        "second": NAMES + BARS + 70,
        "row": ROW,
        "rows": rows,
        "together": together,
    }


def trade_off(mixed: Mapping[str, Any]) -> dict[str, Any] | None:
    """Share of multiply-adds in float against PSNR: the prediction as a line, what was measured as points, and the choice. None without two points."""
    predicted = [(100 * p["macs_share"], p["predicted_psnr_db"]) for p in mixed["curve"] if p["predicted_psnr_db"] is not None]
    measured = [(100 * p["macs_share"], p["psnr_db"], p["units"]) for p in mixed["curve"] if p["psnr_db"] is not None]
    if len(predicted) < 2 or not measured:
        return None
    target = mixed["target_psnr_db"]
    chosen = (100 * mixed["macs_share"], mixed["psnr_db"])
    every = [y for _, y in predicted] + [y for _, y, _ in measured] + [target]
    # The end of the curve, where next to nothing is quantized, would flatten the part that decides.
    low, high = spread(min(every), min(max(every), target + 25.0), 6.0)
    left, right, top, bottom = 64, WIDTH - 24, 24, HEIGHT - 56
    farthest = max(x for x, _ in predicted) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        y = min(max(y, low), high)
        return round(left + x / farthest * (right - left), 1), round(bottom - (y - low) / (high - low) * (bottom - top), 1)

    points = [{"x": place(x, y)[0], "y": place(x, y)[1], "title": f"{n} units in float: {y:.1f} dB"} for x, y, n in measured if y <= high]
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "plot": {"left": left, "right": right, "top": top, "bottom": bottom},
        "line": " ".join("{},{}".format(*place(x, y)) for x, y in predicted),
        "points": points,
        "target": {"y": place(0, target)[1], "label": f"wanted: {target:g} dB"},
        "chosen": None if chosen[1] is None else dict(zip(("x", "y"), place(chosen[0], chosen[1]), strict=True)),
        "x_ticks": [{"at": place(t, low)[0], "label": f"{t:g} %"} for t in axis_ticks(0.0, farthest)],
        "y_ticks": [{"at": place(0, t)[1], "label": f"{t:g}"} for t in axis_ticks(low, high)],
    }


def write_svg(path: Path, record: Mapping[str, Any]) -> None:
    """The picture of what ``f2i quantize --sensitivity`` measured, complete or not at all. Raises UsageError when it cannot be written."""
    environment = Environment(
        loader=PackageLoader("f2i.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    write_text(path, environment.get_template("sensitivity.svg.j2").render(chart=unit_rows(record)))


def _db(value: float | None) -> str:
    return "no error" if value is None else f"{value:.1f} dB"


def _shortened(name: str, most: int = 62) -> str:
    """Returns the end of a long path, which says more than its beginning."""
    return name if len(name) <= most else "…" + name[1 - most :]
