"""Pictures of a report: crops for the slider, error heat maps, and the lines where tiles meet, each small enough to travel inside the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from f2i_runtime.metrics.fidelity import psnr_db
from f2i_runtime.photo.resample import resize
from f2i_runtime.targets import Variant
from f2i_runtime.tiling.tile_plan import TilePlan
from f2i_runtime.validation.judging import StitchedPhoto
from f2i_runtime.validation.results import finite
from PIL import Image

SLIDER_SIDE = 768
"""Output pixels of the crop in the slider: the middle of what was stitched."""
HEAT_SIDE = 512
HEAT_DECADES = (-8.0, -1.0)
"""Decimal logarithms of the smallest and largest error shown, of values in [0, 1]; one scale for all maps, so that they compare."""
INFERNO = (
    (0, 0, 4),
    (22, 11, 57),
    (66, 10, 104),
    (106, 23, 110),
    (147, 38, 103),
    (188, 55, 84),
    (221, 81, 58),
    (243, 120, 25),
    (252, 165, 10),
    (246, 215, 70),
    (252, 255, 164),
)
"""Eleven even samples of matplotlib's inferno (CC0), dark for small errors."""
QUALITIES = (90, 80, 70, 60, 45, 30, 15)


@dataclass
class ReportImages:
    """Collects what :func:`f2i_runtime.validation.validate.validate` shows, as encoded pictures only. Pass ``collect`` as its ``show``.

    ``budget`` is the most bytes that one picture may take once it is base64; WebP's quality falls until it fits.
    """

    budget: int = 80_000
    photos: dict[str, dict[str, Any]] = field(default_factory=dict)
    component_seconds: dict[Variant, dict[str, float]] = field(default_factory=dict)

    def collect(self, photo: StitchedPhoto) -> None:
        """Encode one crop of one variant."""
        entry = self.photos.setdefault(photo.image, {})
        middle = _middle(photo.reference.shape[0], photo.reference.shape[1], SLIDER_SIDE)
        if not entry:
            scale = photo.plan.scale
            enlarged = resize(photo.lr, photo.lr.shape[0] * scale, photo.lr.shape[1] * scale)
            entry["bicubic"] = self._webp(enlarged[middle])
            entry["reference"] = self._webp(photo.reference[middle])
            entry["height"], entry["width"] = photo.reference[middle].shape[:2]
            entry["whole_height"], entry["whole_width"] = photo.reference.shape[:2]
            entry["seams"] = seam_lines(photo.plan)
            entry["variants"] = {}
        error = np.abs(photo.result - photo.reference).mean(axis=2)
        entry["variants"][str(photo.variant)] = {
            "sr": self._webp(photo.result[middle]),
            "heat": self._webp(heat_map(error)),
            "psnr_db": finite(psnr_db(np.clip(photo.reference, 0, 1), np.clip(photo.result, 0, 1))),
            "largest": float(np.abs(photo.result - photo.reference).max()),
        }
        self.component_seconds[photo.variant] = dict(photo.component_seconds)

    def _webp(self, image: np.ndarray) -> str:
        """Data URI of a picture: float32 in [0, 1] or uint8, (h, w, 3)."""
        pixels = image if image.dtype == np.uint8 else np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
        content = b""
        for quality in QUALITIES:
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "WEBP", quality=quality, method=4)
            content = buffer.getvalue()
            if len(content) * 4 / 3 <= self.budget:
                break
        return "data:image/webp;base64," + base64.b64encode(content).decode()


def heat_map(error: np.ndarray) -> np.ndarray:
    """Mean absolute error (h, w) → uint8 (h', w', 3), sides at most ``HEAT_SIDE``: each pixel is the largest error it covers, on a logarithmic scale."""
    step = -(-max(error.shape) // HEAT_SIDE)
    height, width = (-(-side // step) for side in error.shape)
    padded = np.zeros((height * step, width * step), np.float32)
    padded[: error.shape[0], : error.shape[1]] = error
    pooled = padded.reshape(height, step, width, step).max(axis=(1, 3))
    low, high = HEAT_DECADES
    place = np.clip((np.log10(np.maximum(pooled, 1e-12)) - low) / (high - low), 0, 1)
    anchors = np.linspace(0, 1, len(INFERNO))
    table = np.array(INFERNO, np.float32)
    return np.stack([np.interp(place, anchors, table[:, channel]) for channel in range(3)], axis=2).round().astype(np.uint8)


def seam_lines(plan: TilePlan) -> dict[str, list[tuple[int, int]]]:
    """Cross-fades between tiles in output pixels: ``rows`` (top, height) and ``columns`` (left, width)."""
    return {"rows": [(a, b - a) for a, b in plan.row_fades], "columns": [(a, b - a) for a, b in plan.column_fades]}


def _middle(height: int, width: int, side: int) -> tuple[slice, slice]:
    y, x = max(0, (height - side) // 2), max(0, (width - side) // 2)
    return slice(y, y + side), slice(x, x + side)
