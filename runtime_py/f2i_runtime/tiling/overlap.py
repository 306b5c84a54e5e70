"""How far a tile's edge reaches into its output, measured; and the least overlap of tiles whose seams are then no worse than the rest.

Two tiles half a tile apart see the same pixels, one near its edge and the other near its middle: what they disagree by is the error that the edge
causes, by distance from it. From that profile the error of any overlap follows: where tiles are cross-faded with weights w and 1 - w, at distances d and
overlap - d from their edges, it is sqrt((w E(d))^2 + ((1 - w) E(overlap - d))^2), as the errors of two edges have nothing to do with one another.

What does not fall with distance (group norm, attention and features see the whole tile) is the floor; no overlap mends it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from f2i_runtime.bundle.manifest import Gates, OverlapRecord, TileSpec
from f2i_runtime.errors import UsageError
from f2i_runtime.photo.samples import SAMPLES, load_rgb, sample_photo
from f2i_runtime.tiling.tile_plan import Pixels, ramp

PAIRS = 6
"""The number of pairs of tiles. Half of the pairs lie side by side, half one above the other."""
ROUNDING = 1 / (255 * math.sqrt(12))
"""The RMS error of rounding to 8 bits. A smaller error cannot be seen in the file."""
STEP = 2
FIELD_EXCESS = 1.1
"""A tile's edge counts as no longer felt when its error is above the floor by less than this factor."""

Upscale = Callable[[Pixels], Pixels]


def choose_overlap(upscale_tile: Upscale, tile: TileSpec, gates: Gates, pairs: Sequence[Pixels] | None = None) -> OverlapRecord:
    """The least overlap that meets the seam gate, and the tiling gate unless the floor alone is above it.

    Args:
        upscale_tile: float32 (1, 3, size, size) to (1, 3, size * scale, size * scale).
        tile: size, scale, multiple and window of the tiles.
        gates: ``seam_ratio`` and ``tiling_psnr_db`` are aimed at.
        pairs: what to measure on, from ``sample_pairs`` by default.
    """
    pairs = sample_pairs(tile) if pairs is None else pairs
    squares, floor = edge_profile(upscale_tile, tile, pairs)
    reference = max(floor, ROUNDING)
    wanted = 0.0 if gates.tiling_psnr_db is None else gates.tiling_psnr_db
    reachable = _psnr(floor) >= wanted
    largest = (tile.size - 1) // 2 // STEP * STEP
    overlap, band = 0, math.inf
    for overlap in range(0, largest + 1, STEP):
        band = band_error(squares, overlap, tile)
        if band <= gates.seam_ratio * reference and (_psnr(band) >= wanted or not reachable):
            break
    felt = [d for d, square in enumerate(squares) if math.sqrt(square) > FIELD_EXCESS * reference]
    return OverlapRecord(
        overlap=overlap,
        receptive_field=max(felt, default=-1) + 1,
        floor_db=_finite(_psnr(floor)),
        band_db=_finite(_psnr(band)),
        seam_ratio=band / reference,
        pairs=len(pairs),
    )


def edge_profile(upscale_tile: Upscale, tile: TileSpec, pairs: Sequence[Pixels]) -> tuple[NDArray[np.float64], float]:
    """Mean squared error by distance from a tile's edge in LR pixels, float64 (size // 4,), and the RMS error of a tile's middle.

    ``pairs``: photos (3, size, size + shift) or (3, size + shift, size), ``shift`` as ``half``.
    """
    shift = half(tile)
    reach = (tile.size - shift) // 2
    total = np.zeros(tile.size - shift)
    for pair in pairs:
        across = pair if pair.shape[1] == tile.size else pair.transpose(0, 2, 1)
        parts = (across[:, :, : tile.size], across[:, :, shift:])
        upright = pair.shape[1] == tile.size
        first, second = (upscale_tile(np.ascontiguousarray((p if upright else p.transpose(0, 2, 1))[None])) for p in parts)
        if not upright:
            first, second = first.transpose(0, 1, 3, 2), second.transpose(0, 1, 3, 2)
        common = first[..., shift * tile.scale :].astype(np.float64) - second[..., : (tile.size - shift) * tile.scale]
        columns = np.mean(common**2, axis=(0, 1, 2))
        total += columns.reshape(-1, tile.scale).mean(1) / len(pairs)
    # From the left it is the second tile's edge that is near, from the right the first one's.
    near = (total[:reach] + total[::-1][:reach]) / 2
    # In the middle both tiles contribute alike.
    middle = total[reach - max(1, reach // 4) : len(total) - reach + max(1, reach // 4)]
    floor = math.sqrt(float(middle.mean()) / 2)
    return np.maximum(near - floor**2, floor**2), floor


def band_error(squares: NDArray[np.float64], overlap: int, tile: TileSpec) -> float:
    """RMS error of the band where two tiles meet with ``overlap`` LR pixels in common, one pixel on either side of it included."""
    weight = np.concatenate([[0.0], ramp(overlap, tile.window), [1.0]])
    # The first pixel belongs to one tile alone, the last to the other.
    rising = squares[np.clip(np.arange(overlap + 2) - 1, 0, len(squares) - 1)]
    return math.sqrt(float(np.mean(weight**2 * rising + (1 - weight) ** 2 * rising[::-1])))


def half(tile: TileSpec) -> int:
    """Returns the distance between the two tiles of a pair: half a tile, rounded to the model's own steps."""
    shift = tile.size // 2 // tile.multiple * tile.multiple
    if shift == 0:
        raise UsageError(f"a tile of {tile.size} pixels has no half that is a multiple of {tile.multiple}: give the overlap as a number")
    return shift


def sample_pairs(tile: TileSpec) -> list[Pixels]:
    """Returns parts of the sample photos that hold two tiles, for :func:`edge_profile`. They are the same every time."""
    shift, found = half(tile), []
    for k in range(PAIRS):
        photo = load_rgb(sample_photo(SAMPLES[k % len(SAMPLES)])).transpose(2, 0, 1)
        h, w = (tile.size, tile.size + shift) if k % 2 else (tile.size + shift, tile.size)
        short = [(0, 0), (0, max(0, h - photo.shape[1])), (0, max(0, w - photo.shape[2]))]
        photo = np.pad(photo, short, mode="symmetric")
        y, x = (photo.shape[1] - h) // 2, (photo.shape[2] - w) // 2
        found.append(np.ascontiguousarray(photo[:, y : y + h, x : x + w]))
    return found


def _psnr(rms: float) -> float:
    return -20 * math.log10(rms) if rms > 0 else math.inf


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
