"""Calibration tiles: drawn from photos, seeded, and stratified by texture instead of the first that come; and others that calibration does not see.

Photos are read one at a time: once to look at the places drawn, and those that give tiles once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from f2i_runtime.errors import UsageError
from f2i_runtime.files import sha256_file
from f2i_runtime.photo.photo_listing import photo_files
from f2i_runtime.photo.reader import PhotoReader
from f2i_runtime.photo.whole_photo import read_photo
from numpy.typing import NDArray

CANDIDATES = 8
"""Places looked at for every tile taken."""
MOST_PHOTOS = 64
"""Photos read, drawn at random where a folder has more."""
LEAST_AREA = 4
"""Separate tiles that the photos together must have room for."""
UNSEEN_TILES = 4
"""The most tiles that are kept apart from calibration, to check the result on."""
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
    unseen: tuple[Tile, ...]
    """One to four tiles that share no pixel with those of calibration."""


@dataclass(frozen=True)
class _Area:
    """A rectangle, in pixels, of the photo with this number."""

    photo: int
    top: int
    left: int
    height: int
    width: int

    def room(self, tile: int) -> int:
        """Returns how many separate tiles it holds."""
        return (self.height // tile) * (self.width // tile)

    def divide(self, tile: int) -> tuple[list[_Area], _Area]:
        """Returns what is left of it, and the strip of one tile's breadth at the end of its longer side; all of it where it is too small for both."""
        if max(self.height, self.width) < 2 * tile:
            return [], self
        if self.height >= self.width:
            cut = self.height - tile
            return [replace(self, height=cut)], replace(self, top=self.top + cut, height=tile)
        cut = self.width - tile
        return [replace(self, width=cut)], replace(self, left=self.left + cut, width=tile)


def texture(tile: Tile) -> float:
    """Mean absolute difference of neighbouring pixels of a tile (1, 3, h, w)."""
    return float((np.abs(np.diff(tile, axis=2)).mean() + np.abs(np.diff(tile, axis=3)).mean()) / 2)


def calibration_set(folder: Path | None, tile: int, count: int, seed: int) -> CalibrationSet:
    """``count`` tiles from the photos of ``folder`` (None: those scikit-image ships), the same for one seed. Copies of a photo count once.

    Candidates are sorted by texture into four strata of equal size, and as many are taken from each. Raises UsageError when there are no photos, when
    they are smaller than the tile or have room for fewer than four, or when most of what they show is flat.
    """
    rng = np.random.default_rng(seed)
    paths = photo_files(folder)
    if len(paths) > MOST_PHOTOS:
        paths = [paths[k] for k in sorted(rng.choice(len(paths), MOST_PHOTOS, replace=False))]
    label = folder or "the sample photos"
    hashes = {sha256_file(path): path for path in reversed(paths)}
    hashes = dict(reversed(hashes.items()))
    found, paths = len(paths), list(hashes.values())
    areas = [area for k, path in enumerate(paths) if min((area := _whole(k, path)).height, area.width) >= tile]
    room = sum(area.room(tile) for area in areas)
    if room < LEAST_AREA:
        raise UsageError(
            f"{label}: {len(areas)} of {found} photos are at least {tile} pixels per side, with room for {room} separate tiles; expected room for "
            f"at least {LEAST_AREA}: give more or larger photos, or a smaller --tile-size"
        )
    areas, apart = _set_apart(areas, tile, rng)
    sizes = np.array([area.height * area.width for area in areas], dtype=np.float64)
    places = [_place(areas[k], tile, rng) for k in rng.choice(len(areas), CANDIDATES * count, p=sizes / sizes.sum())]
    looks = {k: (texture(cut), float(cut.std())) for k, cut in _cut(paths, places)}
    flat = sum(deviation < FLAT for _, deviation in looks.values())
    if flat * 2 > len(places):
        raise UsageError(
            f"{label}: {flat} of {len(places)} places looked at show no texture (nearly one colour); scales from them would be wrong: give photos of real scenes"
        )
    order = sorted(range(len(places)), key=lambda k: looks[k][0])
    chosen = [places[order[k]] for k in _stratified(len(places), count, rng)]
    used = {owner: sum(place.photo == owner for place in chosen) for owner in {place.photo for place in chosen}}
    digests = list(hashes)
    images = tuple({"name": paths[o].name, "sha256": digests[o], "tiles": n} for o, n in sorted(used.items()))
    cuts = dict(_cut(paths, [*chosen, *apart]))
    tiles = [cuts[k] for k in range(len(cuts))]
    return CalibrationSet(tuple(tiles[: len(chosen)]), images, tuple(tiles[len(chosen) :]))


def _whole(number: int, path: Path) -> _Area:
    with PhotoReader(path) as reader:
        return _Area(number, 0, 0, reader.height, reader.width)


def _set_apart(areas: Sequence[_Area], tile: int, rng: np.random.Generator) -> tuple[list[_Area], list[_Area]]:
    """Returns the areas that calibration draws from, and places of tiles outside them: each in the strip at the end of a drawn photo.

    A photo that is too small to be divided is set apart whole: one of them, and of many at most a quarter.
    """
    left, apart = {area.photo: [area] for area in areas}, list[_Area]()
    small = [area for area in areas if not area.divide(tile)[0]]
    drawn = [areas[int(k)] for k in rng.permutation(len(areas))]
    for area in sorted(drawn, key=lambda area: not area.divide(tile)[0]):
        if len(apart) == UNSEEN_TILES or (apart and area in small and 4 * (len(apart) + 1) > len(areas)):
            break
        left[area.photo], end = area.divide(tile)
        apart.append(_place(end, tile, rng))
    return [area for rest in left.values() for area in rest], apart


def _place(area: _Area, tile: int, rng: np.random.Generator) -> _Area:
    """Returns a drawn tile of an area."""
    top, left = (int(rng.integers(side - tile + 1)) for side in (area.height, area.width))
    return _Area(area.photo, area.top + top, area.left + left, tile, tile)


def _cut(paths: Sequence[Path], places: Sequence[_Area]) -> Iterator[tuple[int, Tile]]:
    """Returns the number and the pixels of each place, in the order of the photos, of which one is held at a time."""
    last, photo = -1, np.zeros((0, 0, 3), np.float32)
    for k in sorted(range(len(places)), key=lambda k: places[k].photo):
        place = places[k]
        if place.photo != last:
            del photo
            last, photo = place.photo, read_photo(paths[place.photo])
        pixels = photo[place.top : place.top + place.height, place.left : place.left + place.width]
        yield k, np.array(pixels.transpose(2, 0, 1)[None], dtype=np.float32, order="C")


def _stratified(total: int, count: int, rng: np.random.Generator) -> list[int]:
    """``count`` indices out of ``total`` in order, as many from each stratum as can be, in a drawn order."""
    strata = np.array_split(np.arange(total), min(STRATA, count))
    shares = [count // len(strata) + (k < count % len(strata)) for k in range(len(strata))]
    picked = [int(i) for stratum, n in zip(strata, shares, strict=True) for i in rng.choice(stratum, n, replace=False)]
    return [picked[k] for k in rng.permutation(len(picked))]
