"""Where tiles lie on a photo and how they are weighted.

The plan, chosen for quality at a fixed number of tiles:

* As few tiles as the overlap allows, spread evenly: what a shifted last tile would waste on one huge overlap, every seam shares.
* Tiles reach the photo's edge and stop there, so at its edges a model sees what it would see in the whole photo. Only a photo
  smaller than a tile (or not a multiple of ``align``) is filled by reflection, repeated as often as it takes.
* Neighbours are cross-faded over ``overlap - 2 * margin`` pixels in the middle of what they share, where both are farthest from
  their own edges. The weights sum to one by construction, so blending needs no division and photo edges no special case.

Positions are in low-resolution (LR) pixels unless a name says otherwise.
"""

from __future__ import annotations

import itertools
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from f2i_runtime.errors import UsageError

Pixels = NDArray[np.float32]
Fade = Literal["hann", "linear"]


@dataclass(frozen=True)
class TilePlan:
    """Where the tiles of one photo lie.

    Args:
        height, width: the photo, LR pixels, at least 1.
        tile: side of a tile. The model's input size.
        overlap: what neighbours share at least, below half a tile.
        scale: the model's factor.
        margin: pixels at a tile's inner edges that get no weight. With the model's receptive-field radius here the blended result
            equals the whole-image one, which is what equality tests need; otherwise 0.
        align: tile positions are multiples of this. A model that halves its input k times is shift-equivariant only over
            multiples of 2^k.
        fade: shape of the cross-fade, raised cosine or straight.

    Raises:
        UsageError: numbers that fit no plan, and which of them.
    """

    height: int
    width: int
    _: KW_ONLY
    tile: int
    overlap: int
    scale: int = 2
    margin: int = 0
    align: int = 1
    fade: Fade = "hann"

    def __post_init__(self) -> None:
        height, width, tile, overlap = self.height, self.width, self.tile, self.overlap
        scale, margin, align, fade = self.scale, self.margin, self.align, self.fade
        if height < 1 or width < 1:
            raise UsageError(f"cannot tile a photo of {width} x {height} px; expected at least 1 x 1")
        if tile < 1 or scale < 1 or align < 1:
            raise UsageError(f"tile {tile}, scale {scale} and align {align} must all be at least 1")
        if overlap < 0 or 2 * overlap >= max(tile, 2):
            raise UsageError(f"overlap {overlap} does not fit tile {tile}; expected 0 <= overlap < {(tile + 1) // 2}, below half the tile")
        if margin < 0 or (margin and 2 * margin >= overlap):
            raise UsageError(
                f"margin {margin} does not fit overlap {overlap}; expected 2 x margin < overlap: raise the overlap above {2 * margin}"
            )
        if tile % align or overlap % align:
            raise UsageError(f"tile {tile} and overlap {overlap} must be multiples of align {align}")
        if fade not in ("hann", "linear"):
            raise UsageError(f"unknown fade {fade!r}; expected hann or linear")

    @cached_property
    def rows(self) -> tuple[int, ...]:
        """The top row of each row of tiles."""
        return _origins(self.height, self.tile, self.overlap, self.align)

    @cached_property
    def columns(self) -> tuple[int, ...]:
        """The left column of each column of tiles."""
        return _origins(self.width, self.tile, self.overlap, self.align)

    @property
    def count(self) -> int:
        """The number of tiles."""
        return len(self.rows) * len(self.columns)

    @property
    def output_shape(self) -> tuple[int, int]:
        """The size (height, width) of the upscaled photo."""
        return self.height * self.scale, self.width * self.scale

    @cached_property
    def row_fades(self) -> tuple[tuple[int, int], ...]:
        """First and one past the last output row of each cross-fade from one row of tiles to the next."""
        return _fades(self.rows, self)

    @cached_property
    def column_fades(self) -> tuple[tuple[int, int], ...]:
        """First and one past the last output column of each cross-fade from one column of tiles to the next."""
        return _fades(self.columns, self)

    @cached_property
    def row_weights(self) -> Pixels:
        """float32 (rows, tile * scale): blending weights down each row of tiles; a tile's weight is row weight times column weight."""
        return _axis_weights(self.rows, self.row_fades, self)

    @cached_property
    def column_weights(self) -> Pixels:
        """float32 (columns, tile * scale): blending weights along each column of tiles."""
        return _axis_weights(self.columns, self.column_fades, self)


def parse_overlap(text: str | None) -> int | Literal["auto"] | None:
    """Returns the overlap that an option gives: a number of pixels, ``auto``, or None where the option was left out. Raises UsageError."""
    if text is None:
        return None
    if text == "auto":
        return "auto"
    if not text.isdecimal():
        raise UsageError(f"--overlap {text!r}: expected a number of pixels, or auto")
    return int(text)


def _origins(length: int, tile: int, overlap: int, align: int) -> tuple[int, ...]:
    extent = max(tile, -(-length // align) * align)
    gaps = -(-(extent - tile) // (tile - overlap))
    # Rounding down to align never widens a step beyond tile - overlap, itself a multiple of align.
    return tuple((i * (extent - tile) // (gaps * align)) * align if i else 0 for i in range(gaps + 1))


def ramp(n: int, kind: Fade) -> NDArray[np.float64]:
    """n rising weights, sampled at pixel centres: all inside (0, 1), and ramp + reversed ramp = 1."""
    x = (np.arange(n) + 0.5) / max(n, 1)
    return x if kind == "linear" else np.sin(np.pi / 2 * x) ** 2


def _fades(origins: tuple[int, ...], plan: TilePlan) -> tuple[tuple[int, int], ...]:
    length = (plan.overlap - 2 * plan.margin) * plan.scale
    starts = (((a + plan.tile + b) * plan.scale - length) // 2 for a, b in itertools.pairwise(origins))
    return tuple((start, start + length) for start in starts)


def _axis_weights(origins: tuple[int, ...], fades: tuple[tuple[int, int], ...], plan: TilePlan) -> Pixels:
    scale, side = plan.scale, plan.tile * plan.scale
    rising = ramp((plan.overlap - 2 * plan.margin) * scale, plan.fade)
    # arrival[i] says how far tile i + 1 has taken over from tile i, over the output axis: 0, the ramp, then 1. A later take-over is never
    # ahead of an earlier one, so differences of neighbours are weights >= 0 that sum to exactly 1, however many tiles share a pixel.
    padded = np.concatenate([[0.0], rising, [1.0]])
    weights = np.ones((len(origins), side))
    for i, origin in enumerate(origins):
        at = origin * scale + np.arange(side)
        if i > 0:
            weights[i] = padded[np.clip(at - fades[i - 1][0] + 1, 0, len(rising) + 1)]
        if i < len(fades):
            weights[i] -= padded[np.clip(at - fades[i][0] + 1, 0, len(rising) + 1)]
    return weights.astype(np.float32)


def window(tile: int, overlap: int, scale: int = 2, kind: Fade = "hann") -> Pixels:
    """Weights of a tile with neighbours on all sides at exactly ``overlap``: float32 (tile * scale, tile * scale), all in (0, 1].

    For apps that accumulate weighted tiles and divide by the summed weights: the smallest weight is the square of sin^2(pi / 4n), n the
    overlap in output pixels, far from float32's underflow.

    Raises:
        UsageError: as :class:`TilePlan`.
    """
    plan = TilePlan(tile, tile, tile=tile, overlap=overlap, scale=scale, fade=kind)
    rising = ramp(overlap * scale, plan.fade)
    axis = np.concatenate([rising, np.ones(tile * scale - 2 * len(rising)), rising[::-1]])
    return np.outer(axis, axis).astype(np.float32)
