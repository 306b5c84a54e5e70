"""Real photographs that a dependency ships: scikit-image's, read from its folder, nothing downloaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from f2i_runtime.errors import MissingPackageError, UsageError

SAMPLES = (
    "astronaut.png",
    "coffee.png",
    "chelsea.png",
    "motorcycle_left.png",
    "rocket.jpg",
    "retina.jpg",
    "ihc.png",
    "hubble_deep_field.jpg",
)
"""The photos, which go from portraits and still life to texture, dark sky and fine structure."""


def sample_photo(name: str = "coffee.png") -> Path:
    """Path of a photograph inside the installed scikit-image."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError("scikit-image", "the sample photos", "dev")
    path = Path(spec.submodule_search_locations[0]) / "data" / name
    if not path.is_file():
        raise UsageError(f"{path}: missing from the installed scikit-image; pass photos of your own with --images")
    return path


def load_rgb(path: Path) -> np.ndarray:
    """A small photo as float32 (h, w, 3) in [0, 1], for tiles and tests; whole photos go through :mod:`f2i_runtime.photo.reader`."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float32) / 255


def cut_tiles(photo: np.ndarray, tile: int, count: int, seed: int) -> list[np.ndarray]:
    """Returns ``count`` tiles (1, 3, tile, tile) from seeded places of a photo (h, w, 3). A photo smaller than a tile is filled by reflection."""
    h, w = photo.shape[:2]
    if h < tile or w < tile:
        pad = [(0, max(0, tile - h)), (0, max(0, tile - w)), (0, 0)]
        photo = np.pad(photo, pad, mode="symmetric")
        h, w = photo.shape[:2]
    places = np.random.default_rng(seed)
    tiles = []
    for _ in range(count):
        y, x = int(places.integers(0, h - tile + 1)), int(places.integers(0, w - tile + 1))
        tiles.append(np.ascontiguousarray(photo[y : y + tile, x : x + tile].transpose(2, 0, 1)[None]))
    return tiles


def sample_tiles(tile: int, count: int, seed: int = 0) -> list[tuple[str, np.ndarray]]:
    """Returns ``count`` named tiles, taken from the sample photos in turn."""
    result: list[tuple[str, np.ndarray]] = []
    for k in range(count):
        name = SAMPLES[k % len(SAMPLES)]
        [cut] = cut_tiles(load_rgb(sample_photo(name)), tile, 1, seed + k)
        result.append((name, cut))
    return result
