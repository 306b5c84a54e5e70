"""A whole photo's time, memory and processor time, predicted from a bench's per-tile figures, and checked against a photo really upscaled.

    seconds = tiles x (sum of the components' medians) + megapixels x (reading, blending and writing of a megapixel)
    memory  = peak of the process that ran the tiles + bytes per pixel of width x width

The second terms are measured on photos whose tiles are enlarged by repetition instead of a model.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from f2i_runtime.bundle.store import Bundle
from f2i_runtime.photo.samples import sample_photo
from f2i_runtime.pipeline import Pipeline, photo_plan, upscale_photo
from f2i_runtime.targets import Variant
from PIL import Image

from f2i_bench.core.protocol import BenchReport, Prediction, Row
from f2i_bench.host.workers import worker

ASPECT = 4 / 3
CHECK_MEGAPIXELS = 2.0
"""The megapixels of the photo that is upscaled to check the prediction."""
CALIBRATION_MEGAPIXELS = (1.0, 6.0)
"""The megapixels of the photos that are processed without a model. The memory of a process only ever grows, so the smaller photo comes first."""


class RepeatPipeline(Pipeline):
    """A stand-in for the model that enlarges tiles by repetition, so that the rest of the work can be measured."""

    def tile(self, lr: np.ndarray, position: tuple[int, int] = (0, 0)) -> np.ndarray:
        """Returns the tile (1, 3, t, t), enlarged to (1, 3, s t, s t), float32."""
        scale = self.bundle.manifest.tile.scale
        return lr.repeat(scale, axis=2).repeat(scale, axis=3)


@dataclass(frozen=True)
class Overhead:
    """What a photo costs besides its tiles: seconds per megapixel, and bytes per pixel of width."""

    seconds_per_megapixel: float
    bytes_per_column: float


def photo_size(megapixels: float) -> tuple[int, int]:
    """Returns the (height, width) of a 4:3 photo."""
    width = round(math.sqrt(megapixels * 1e6 * ASPECT))
    return round(width / ASPECT), width


def time_photo(pipeline: Pipeline, megapixels: float) -> dict[str, Any]:
    """Upscale a photo from file to file: ``{"seconds", "cpu_seconds", "tiles"}``."""
    height, width = photo_size(megapixels)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "photo.jpg"
        with Image.open(sample_photo()) as photo:
            photo.convert("RGB").resize((width, height)).save(source, quality=92)
        began, cpu = time.perf_counter(), time.process_time()
        upscale_photo(pipeline, source, Path(folder) / "photo_x2.jpg")
        spent, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {"seconds": spent, "cpu_seconds": cpu, "tiles": photo_plan(pipeline.bundle, height, width).count}


def measure_overhead(bundle: Bundle) -> Overhead:
    """What reading, tiling, blending and writing cost on this machine, in a process of its own."""
    with worker("photo without a model") as one:
        small, large = (one.ask({"do": "overhead", "bundle": str(bundle.root.resolve()), "megapixels": m}) for m in CALIBRATION_MEGAPIXELS)
    (low, high), widths = CALIBRATION_MEGAPIXELS, [photo_size(m)[1] for m in CALIBRATION_MEGAPIXELS]
    per_megapixel = max(0.0, (large["seconds"] - small["seconds"]) / (high - low))
    per_column = max(0.0, (large["peak_rss_bytes"] - small["peak_rss_bytes"]) / (widths[1] - widths[0]))
    return Overhead(per_megapixel, per_column)


def predict(bundle: Bundle, rows: Sequence[Row], overhead: Overhead, megapixels: float, cores: float) -> Prediction | None:
    """One photo on one variant at one number of threads: ``rows`` are that variant's components. None unless every component was measured.

    ``cores``: how many processors a tile keeps busy, for the processor time.
    """
    medians = {r.component: r.median_ns for r in rows if r.median_ns is not None}
    calls = [call.component for call in bundle.manifest.dataflow]
    if not rows or set(calls) - set(medians):
        return None
    tile_seconds = sum(medians[c] for c in calls) / 1e9
    height, width = photo_size(megapixels)
    tiles = photo_plan(bundle, height, width).count
    memory = max((r.peak_rss_bytes or 0) for r in rows) + overhead.bytes_per_column * width
    return Prediction(
        **rows[0].variant._asdict(),
        threads=rows[0].threads,
        megapixels=megapixels,
        tiles=tiles,
        seconds=tiles * tile_seconds + megapixels * overhead.seconds_per_megapixel,
        peak_rss_bytes=int(memory),
        core_seconds=tiles * tile_seconds * cores + megapixels * overhead.seconds_per_megapixel,
    )


def with_predictions(bundle: Bundle, report: BenchReport, megapixels: Sequence[float]) -> BenchReport:
    """The report with predictions for its fastest variant, the first of them checked on a photo of :data:`CHECK_MEGAPIXELS` upscaled here and now.

    Raises ToolchainError when the engine fails.
    """
    threads = report.settings.threads[0]
    groups: dict[Variant, list[Row]] = {}
    for row in report.rows:
        if row.status == "ok" and row.threads == threads:
            groups.setdefault(row.variant, []).append(row)
    if not groups or not megapixels:
        return report
    fastest = min(groups.values(), key=lambda rows: sum(r.median_ns or 0 for r in rows))
    overhead = measure_overhead(bundle)
    with worker("photo with the model") as one:
        request = {"do": "open", "bundle": str(bundle.root.resolve()), **fastest[0].variant._asdict()}
        one.ask(request | {"threads": threads, "slowdown": 0.0})
        measured = one.ask({"do": "photo", "megapixels": CHECK_MEGAPIXELS})
    cores = measured["cpu_seconds"] / measured["seconds"]
    check = predict(bundle, fastest, overhead, CHECK_MEGAPIXELS, cores)
    if check is None:
        return report
    error = (check.seconds - measured["seconds"]) / measured["seconds"]
    found = {"measured_seconds": measured["seconds"], "measured_peak_rss_bytes": measured["peak_rss_bytes"], "error": error}
    others = [predict(bundle, fastest, overhead, m, cores) for m in megapixels]
    predictions = (check.model_copy(update=found), *(p for p in others if p))
    return report.model_copy(update={"predictions": predictions})
