"""Colour fix: the upscaled photo gets the mean and the spread of the photo's own colours back.

Adaptive instance normalisation (Huang and Belongie, arXiv 1703.06868, eq. 8) per channel, with the statistics of the whole photo, as StableSR
(arXiv 2305.07015) and OSEDiff (arXiv 2406.08177) apply it to a tile: (x - mean(sr)) / std(sr) * std(lr) + mean(lr). Over the whole photo it is one gain
and one offset per channel, which no seam shows. Sums are gathered while rows stream by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float32]
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_CHUNK, _MIDDLE = 1 << 16, 0.5
"""Pixels that are summed at a time, and what is taken from them first: sums of squares then are of what differs."""
_LEAST_STD = 1e-5
"""StableSR's epsilon: a channel with less spread keeps its own."""


def luma(pixels: Pixels) -> Pixels:
    """RGB (..., 3) to (..., 1), by ITU-R BT.601's weights."""
    return (pixels @ _LUMA)[..., None]


class ColorSums:
    """Sums over the photo as it is read and over the result as it is written, both in [0, 1]."""

    def __init__(self, decode: Callable[[NDArray[Any]], Pixels], *, grey: bool) -> None:
        """``decode``: what ``read_rows`` gives to float32 in [0, 1]; ``grey``: rows have one channel, and of the result its luma is kept."""
        self._decode, self._grey = decode, grey
        # [photo, result] each: count, sums, sums of squares
        self._count = [0, 0]
        self._sums = np.zeros((2, 2, 1 if grey else 3))

    def reading(self, read_rows: Callable[[int, int], NDArray[Any]]) -> Callable[[int, int], NDArray[Any]]:
        """Returns ``read_rows`` with a count of what it reads. Every row must be asked for once."""

        def read(y0: int, y1: int) -> NDArray[Any]:
            rows = read_rows(y0, y1)
            self._add(0, self._decode(rows))
            return rows

        return read

    def wrote(self, block: Pixels) -> None:
        """Count a piece (n, m, 3) of the result, not clipped."""
        self._add(1, np.clip(luma(block) if self._grey else block, 0.0, 1.0))

    def _add(self, which: int, values: Pixels) -> None:
        flat = values.reshape(-1, values.shape[2])
        self._count[which] += len(flat)
        # All in float64: in float32 a sum of millions stops growing, and a flat photo's variance is the small difference of two such sums.
        for k in range(0, len(flat), _CHUNK):
            exact = flat[k : k + _CHUNK].astype(np.float64) - _MIDDLE
            self._sums[which, 0] += exact.sum(axis=0)
            self._sums[which, 1] += np.einsum("pc,pc->c", exact, exact)

    def affine(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(gain, offset), float64 (3,) each, (1,) for grey: result * gain + offset has the photo's statistics."""
        counts = np.maximum(self._count, 1)[:, None]
        offset = self._sums[:, 0] / counts
        std = np.sqrt(np.maximum(self._sums[:, 1] / counts - offset**2, 0.0))
        gain = np.where(std[1] > _LEAST_STD, std[0] / np.maximum(std[1], _LEAST_STD), 1.0)
        mean = offset + _MIDDLE
        return gain, mean[0] - gain * mean[1]
