"""Charts of a report as data for inline SVG: positions are computed here, the template draws them."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, TypeAlias

from f2i_runtime.targets import CPU
from f2i_runtime.targets import Variant as VariantKey

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 24, 56
"""Margins around the plot, in the SVG's own units."""
SHAPES = {"fp32": "circle", "fp16": "square", "w8": "triangle", "w8a8": "diamond", "w8a8-mixed": "diamond", "w8a16": "triangle"}
"""The mark of each precision. Palettes (p8, p6, p4) are circles."""

CHARACTER, LINE = 10.2, 21.0
"""The width of a character and the height of a line of a name where they are largest: on a phone."""
REACH = 1.2
"""How far the widest mark reaches, in multiples of its radius."""
Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class Variant:
    """What a chart shows of one variant. ``latency`` is relative to the torch reference on the machine that validated."""

    target: str
    precision: str
    megabytes: float
    latency: float | None
    psnr_db: float | None
    accelerator: str = CPU

    @property
    def name(self) -> str:
        """The variant as text."""
        return str(VariantKey(self.target, self.precision, self.accelerator))


def pareto_front(variants: list[Variant]) -> set[str]:
    """Names of the variants that no other beats in latency, size and quality at once (no worse in all three, better in one)."""

    def key(v: Variant) -> tuple[float, float, float]:
        return (v.latency or math.inf, v.megabytes, -(v.psnr_db or -math.inf))

    def beaten(v: Variant) -> bool:
        return any(all(a <= b for a, b in zip(key(o), key(v), strict=True)) and key(o) != key(v) for o in variants)

    return {v.name for v in variants if not beaten(v)}


def scatter(variants: list[Variant]) -> dict[str, Any] | None:
    """Latency (logarithmic) against photo PSNR, area by size. None when no variant has both figures."""
    shown = [v for v in variants if v.latency and v.psnr_db is not None]
    if not shown:
        return None
    latencies = [math.log10(v.latency or 1.0) for v in shown]
    x_low, x_high = spread(min(latencies), max(latencies), 0.2)
    qualities = [v.psnr_db or 0.0 for v in shown]
    y_low, y_high = spread(min(qualities), max(qualities), 10.0)
    largest = max(v.megabytes for v in shown)
    front = pareto_front(shown)

    def place_x(value: float) -> float:
        return round(LEFT + (value - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def place_y(value: float) -> float:
        return round(HEIGHT - BOTTOM - (value - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    points = [
        {
            "name": v.name,
            "target": v.target,
            "shape": SHAPES.get(v.precision, "circle"),
            "x": place_x(math.log10(v.latency or 1.0)),
            "y": place_y(v.psnr_db or 0.0),
            "r": round(6 + 10 * math.sqrt(v.megabytes / largest), 1),
            "front": v.name in front,
            "title": f"{v.name}: {v.latency:.2f} × torch, {v.psnr_db:.1f} dB, {v.megabytes:.1f} MB",
        }
        for v in shown
    ]
    place_names(points)
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "plot": {"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM},
        "x_ticks": [{"at": place_x(math.log10(t)), "label": f"{t:g}×"} for t in log_ticks(x_low, x_high)],
        "y_ticks": [{"at": place_y(t), "label": f"{t:g}"} for t in axis_ticks(y_low, y_high)],
        "points": points,
    }


def shares(parts: dict[str, float]) -> list[dict[str, Any]]:
    """Parts of a whole as percentages with their offsets, for a stacked bar."""
    total = sum(parts.values()) or 1.0
    starts = itertools.accumulate([0.0, *parts.values()])
    return [
        {"name": name, "value": value, "percent": 100 * value / total, "offset": 100 * start / total}
        for (name, value), start in zip(parts.items(), starts, strict=False)
    ]


def place_names(points: list[dict[str, Any]]) -> None:
    """Places each point's name: beside it, or as near as it covers no mark and no other name, and then with a line to it."""
    taken: list[Box] = [
        (p["x"] - p["r"] * REACH, p["y"] - p["r"] * REACH, p["x"] + p["r"] * REACH, p["y"] + p["r"] * REACH) for p in points
    ]
    for point in sorted(points, key=lambda p: (p["y"], p["x"])):
        length = CHARACTER * len(point["name"])
        places = [(step, *place) for step in range(10) for place in _places(point, length, step)]
        free = (p for p in places if _inside(p[3]) and not any(_cross(p[3], other) for other in taken))
        step, anchor, x, box = next(free, places[0])
        taken.append(box)
        middle = (box[1] + box[3]) / 2
        point |= {"label_x": round(x, 1), "label_y": round(middle + 5, 1), "anchor": anchor}
        point["leader"] = {"x": round(x, 1), "y": round(box[3] if middle < point["y"] else box[1], 1)} if step else None


def _places(point: dict[str, Any], length: float, step: int) -> list[tuple[str, float, Box]]:
    """Where a name may stand, ``step`` lines away from its point: anchor, x, and what it covers."""
    gap = point["r"] * REACH + 4
    columns = [("start", point["x"] + gap, 0.0), ("end", point["x"] - gap, -length)] + (
        [("middle", point["x"], -length / 2)] if step else []
    )
    rows = [-1, 1] if step else [0]
    found = []
    for side, (anchor, x, shift) in itertools.product(rows, columns):
        y = point["y"] + side * (point["r"] * REACH + LINE * (step - 0.5) if step else 0)
        found.append((anchor, x, (x + shift, y - LINE / 2, x + shift + length, y + LINE / 2)))
    return found


def _inside(box: Box) -> bool:
    return box[0] >= LEFT and box[1] >= 0 and box[2] <= WIDTH - 4 and box[3] <= HEIGHT - BOTTOM + 4


def _cross(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def spread(low: float, high: float, least: float) -> tuple[float, float]:
    """The range widened by a tenth on each side, at least ``least`` wide."""
    middle, half = (low + high) / 2, max(high - low, least) * 0.6
    return middle - half, middle + half


def axis_ticks(low: float, high: float) -> list[float]:
    """Round values inside the range, at most eight."""
    step = next(s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if (high - low) / s <= 7)
    return [float(step * k) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round values inside the range, at most eight."""
    steps = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in (1, 1.5, 2, 3, 5, 7)]
    return [s for s in steps if low <= math.log10(s) <= high]
