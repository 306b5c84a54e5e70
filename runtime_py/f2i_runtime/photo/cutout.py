"""Cut-outs: what lies hidden under transparent pixels must not reach the visible ones.

A network sees the colours around a pixel whatever their opacity, and editors leave black, white or anything under what is transparent. Before upscaling,
hidden colours are therefore replaced by those of the visible pixels nearby, weighted by their opacity, as premultiplied resampling weights them (Porter and
Duff, "Compositing digital images", 1984); alpha itself is enlarged apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from f2i_runtime.photo.reader import PhotoReader

RADII = (1, 2, 4, 8, 16)
"""Half sides, px, of the squares that are searched for visible pixels, one after another."""
VISIBLE = 0.02
"""Opacity below which a pixel's own colour is not trusted: eight bits hold too few steps of it there."""
_REACH = max(RADII)

Samples = NDArray[Any]


def visible_rows(photo: PhotoReader) -> Callable[[int, int], Samples]:
    """Returns what reads rows of ``photo`` as its ``samples`` does, hidden colours replaced; of a photo without alpha its ``samples``.

    Rows are asked for once, from top to bottom; the result does not depend on how many at a time.
    """
    if not photo.has_alpha:
        return photo.samples

    def read(y0: int, y1: int) -> Samples:
        top, bottom = max(0, y0 - _REACH), min(photo.height, y1 + _REACH)
        alpha = photo.alpha_rows(top, bottom)
        samples = photo.samples(top, bottom)
        if alpha is None or float(alpha.min()) >= VISIBLE:
            return samples[y0 - top : y1 - top]
        return fill_hidden(samples, alpha)[y0 - top : y1 - top]

    return read


def fill_hidden(samples: Samples, alpha: NDArray[np.float32]) -> Samples:
    """Returns ``samples`` (h, w, c), of any integer type, with those under ``alpha`` (h, w) below :data:`VISIBLE` replaced.

    Where nothing is visible within the largest square, a hidden colour becomes a middle grey.
    """
    weight = np.where(alpha >= VISIBLE, alpha, 0.0).astype(np.float64)
    hidden = weight == 0
    if not hidden.any():
        return samples
    out = samples.copy()
    open_ = hidden.copy()
    weighted = np.concatenate([samples * weight[..., None], weight[..., None]], axis=2)
    # Sums from the corner: any square's sum is then four of them. Integers of 16 bits times their opacities, summed in float64.
    corner = np.pad(weighted.cumsum(0).cumsum(1), ((1, 0), (1, 0), (0, 0)))
    height, width = hidden.shape
    for radius in RADII:
        rows, columns = np.nonzero(open_)
        if not len(rows):
            break
        top, bottom = np.maximum(rows - radius, 0), np.minimum(rows + radius + 1, height)
        left, right = np.maximum(columns - radius, 0), np.minimum(columns + radius + 1, width)
        sums = corner[bottom, right] - corner[top, right] - corner[bottom, left] + corner[top, left]
        found = sums[:, -1] > VISIBLE / 2
        colors = np.rint(sums[found, :-1] / sums[found, -1:])
        out[rows[found], columns[found]] = np.clip(colors, 0, np.iinfo(samples.dtype).max).astype(samples.dtype)
        open_[rows[found], columns[found]] = False
    out[open_] = np.iinfo(samples.dtype).max // 2
    return out
