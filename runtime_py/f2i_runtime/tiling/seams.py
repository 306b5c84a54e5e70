"""Compares the error where tiles meet with the error elsewhere, to see whether seams show."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from f2i_runtime.errors import UsageError
from f2i_runtime.tiling.tile_plan import TilePlan

Mask = NDArray[np.bool_]


def seam_bands(plan: TilePlan) -> tuple[Mask, Mask]:
    """Where tiles meet, as two output-pixel masks: rows bool (height * scale,) and columns bool (width * scale,).

    A pixel (y, x) lies in a band if ``rows[y] or columns[x]``: tiles are cross-faded there, or it lies within one LR pixel of such
    a place, so that an overlap of 0 has bands too. Kept apart, they need no mask of the photo's size.
    """
    height, width = plan.output_shape
    return _axis_band(plan.row_fades, height, plan.scale), _axis_band(plan.column_fades, width, plan.scale)


def _axis_band(fades: tuple[tuple[int, int], ...], length: int, scale: int) -> Mask:
    band = np.zeros(length, dtype=bool)
    for start, stop in fades:
        band[start - scale : stop + scale] = True
    return band


class SeamSums:
    """Running sums of squared errors, and of squared error steps between neighbours, in and outside the bands; rows come top to bottom."""

    def __init__(self, plan: TilePlan) -> None:
        self._rows, self._columns = seam_bands(plan)
        self._next = 0
        self._previous: NDArray[np.float64] | None = None
        # [inside the tiles, in the bands] each: sum of squares, count
        self._error = np.zeros((2, 2))
        self._step = np.zeros((2, 2))

    def update(self, error: NDArray[Any]) -> None:
        """Add the next rows of (test - reference), signed: (n, width) or (n, width, C), float. Raises ``UsageError`` on other shapes."""
        n = error.shape[0]
        if error.ndim not in (2, 3) or error.shape[1] != len(self._columns) or self._next + n > len(self._rows):
            raise UsageError(
                f"error rows {error.shape} from row {self._next} do not fit the plan; expected width {len(self._columns)}, "
                f"{len(self._rows)} rows in all"
            )
        e = np.asarray(error, dtype=np.float64).reshape(n, error.shape[1], -1)
        band = self._rows[self._next : self._next + n, None] | self._columns
        _add(self._error, np.mean(e**2, axis=2), band)
        _add(self._step, np.mean(np.diff(e, axis=1) ** 2, axis=2), band[:, 1:])
        above = e if self._previous is None else np.concatenate([self._previous, e])
        below = band[1:] if self._previous is None else band
        _add(self._step, np.mean(np.diff(above, axis=0) ** 2, axis=2), below)
        self._previous = e[-1:].copy()
        self._next += n

    def ratio(self) -> float:
        """RMS error in the bands over RMS error elsewhere; see ``seam_ratio``."""
        return _rms_ratio(self._error)

    def gradient_ratio(self) -> float:
        """RMS step of the error between neighbouring pixels in the bands over that elsewhere: sees a thin line that ``ratio`` dilutes."""
        return _rms_ratio(self._step)


def _add(sums: NDArray[np.float64], squares: NDArray[np.float64], band: Mask) -> None:
    for which, mask in enumerate((~band, band)):
        sums[which] += float(np.sum(squares, where=mask)), float(np.count_nonzero(mask))


def _rms_ratio(sums: NDArray[np.float64]) -> float:
    (rest, rest_count), (seam, seam_count) = sums.tolist()
    if rest_count == 0 or seam_count == 0 or math.isnan(rest + seam):
        return math.nan
    rest, seam = rest / rest_count, seam / seam_count
    if rest == 0.0:
        return 1.0 if seam == 0.0 else math.inf
    return math.sqrt(seam / rest)


def seam_ratio(error_map: NDArray[Any], plan: TilePlan) -> float:
    """RMS of ``error_map`` (height * scale, width * scale[, C]) in the bands where tiles meet, over its RMS elsewhere.

    1 means that seams are no worse than the rest; no error at all counts as 1, error in the bands alone as ``inf``. NaN if the plan
    has no seam, if bands cover everything, or if the error holds a NaN.
    """
    return seam_figures(error_map, plan)[0]


def seam_figures(error_map: NDArray[Any], plan: TilePlan) -> tuple[float, float]:
    """Returns ``seam_ratio`` and the same ratio for the steps of the error between neighbouring pixels (the gradient excess)."""
    sums = SeamSums(plan)
    for y in range(0, error_map.shape[0], 256):
        sums.update(error_map[y : y + 256])
    return sums.ratio(), sums.gradient_ratio()
