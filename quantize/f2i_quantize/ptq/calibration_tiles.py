"""Calibration tiles: drawn from photos, seeded, and stratified by texture instead of the first that come."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from f2i_runtime.errors import UsageError
from f2i_runtime.files import sha256_file
from f2i_runtime.photo.photo_listing import photo_files
from f2i_runtime.photo.whole_photo import read_photo
from numpy.typing import NDArray

CANDIDATES = 8
"""Places looked at for every tile taken."""
MOST_PHOTOS = 64
"""Photos read, drawn at random where a folder has more."""
LEAST_AREA = 4
"""Separate tiles that the photos together must have room for."""
FLAT = 2 / 255
"""A tile whose standard deviation is below this has no texture to calibrate on."""
STRATA = 4

Tile = NDArray[np.float32]


@dataclass(frozen=True)
class CalibrationSet:
    """Tiles (1, 3, tile, tile) float32 in [0, 1], and where each came from."""

    tiles: tuple[Tile, ...]
    images: tuple[dict[str, Any], ...]
    """Name, SHA-256 and number of tiles of every photo that gave one."""


def texture(tile: Tile) -> float:
    """Mean absolute difference of neighbouring pixels of a tile (1, 3, h, w)."""
    return float((np.abs(np.diff(tile, axis=2)).mean() + np.abs(np.diff(tile, axis=3)).mean()) / 2)


def calibration_set(folder: Path | None, tile: int, count: int, seed: int) -> CalibrationSet:
    """``count`` tiles from the photos of ``folder`` (None: those scikit-image ships), the same for one seed.

    Candidates are sorted by texture into four strata of equal size, and as many are taken from each. Raises UsageError when there are no photos, when
    they are smaller than the tile or have room for fewer than four, or when most of what they show is flat.
    """
    rng = np.random.default_rng(seed)
    paths = photo_files(folder)
    if len(paths) > MOST_PHOTOS:
        paths = [paths[k] for k in sorted(rng.choice(len(paths), MOST_PHOTOS, replace=False))]
    label = folder or "the sample photos"
    photos: list[tuple[Path, Tile]] = []
    for path in paths:
        photo = read_photo(path)
        if min(photo.shape[:2]) >= tile:
            photos.append((path, photo))
    room = sum((p.shape[0] // tile) * (p.shape[1] // tile) for _, p in photos)
    if room < LEAST_AREA:
        raise UsageError(
            f"{label}: {len(photos)} of {len(paths)} photos are at least {tile} pixels per side, with room for {room} separate tiles; expected room for "
            f"at least {LEAST_AREA}: give more or larger photos, or a smaller --tile-size"
        )
    areas = np.array([p.shape[0] * p.shape[1] for _, p in photos], dtype=np.float64)
    candidates: list[tuple[float, int, Tile]] = []
    for owner in rng.choice(len(photos), CANDIDATES * count, p=areas / areas.sum()):
        photo = photos[owner][1]
        y, x = (int(rng.integers(side - tile + 1)) for side in photo.shape[:2])
        cut = np.ascontiguousarray(photo[y : y + tile, x : x + tile].transpose(2, 0, 1)[None], dtype=np.float32)
        candidates.append((texture(cut), int(owner), cut))
    flat = sum(float(cut.std()) < FLAT for _, _, cut in candidates)
    if flat * 2 > len(candidates):
        raise UsageError(
            f"{label}: {flat} of {len(candidates)} places looked at show no texture (nearly one colour); scales from them would be wrong: give photos of real scenes"
        )
    candidates.sort(key=lambda c: c[0])
    chosen = [candidates[k] for k in _stratified(len(candidates), count, rng)]
    used = {owner: sum(c[1] == owner for c in chosen) for owner in {c[1] for c in chosen}}
    images = tuple({"name": photos[o][0].name, "sha256": sha256_file(photos[o][0]), "tiles": n} for o, n in sorted(used.items()))
    return CalibrationSet(tuple(c[2] for c in chosen), images)


def _stratified(total: int, count: int, rng: np.random.Generator) -> list[int]:
    """``count`` indices out of ``total`` in order, as many from each stratum as can be, in a drawn order."""
    strata = np.array_split(np.arange(total), min(STRATA, count))
    shares = [count // len(strata) + (k < count % len(strata)) for k in range(len(strata))]
    picked = [int(i) for stratum, n in zip(strata, shares, strict=True) for i in rng.choice(stratum, n, replace=False)]
    return [picked[k] for k in rng.permutation(len(picked))]
