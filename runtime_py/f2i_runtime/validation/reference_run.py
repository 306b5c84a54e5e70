"""What a validation compares with: photo tiles and stitched crops, and what the full-precision reference makes of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from f2i_runtime.bundle.store import Bundle
from f2i_runtime.metrics.fidelity import ErrorSums, psnr_db
from f2i_runtime.photo.photo_listing import photo_files, photo_names
from f2i_runtime.photo.samples import cut_tiles, load_rgb
from f2i_runtime.photo.whole_photo import read_photo
from f2i_runtime.pipeline import Pipeline, open_pipeline, photo_plan
from f2i_runtime.targets import REFERENCE
from f2i_runtime.tiling.blend import upscale_array
from f2i_runtime.validation.validate_options import ValidateOptions

Array = np.ndarray[Any, Any]

CONTEXT_TILES = 4
"""The number of tiles that are upscaled once more without their context."""


@dataclass(frozen=True)
class Crop:
    """The middle of one photo, and the reference's result. Images are float32 (h, w, 3), nominally in [0, 1]."""

    name: str
    """The photo's name, which no other crop of the validation has."""
    path: Path
    photo_size: tuple[int, int]
    """Height and width of the whole photo."""
    corner: tuple[int, int]
    """Where the crop begins in the photo: y, x."""
    lr: Array
    reference: Array
    seconds: float
    """The reference's seconds per tile."""


@dataclass(frozen=True)
class ReferenceRun:
    """All that the reference gave."""

    engine: str
    tiles: tuple[dict[str, Array], ...]
    """Every named tensor of the dataflow, per tile; ``lr`` is the tile itself."""
    crops: tuple[Crop, ...]
    tiling_psnr_db: float | None
    context_rel_l2: float | None
    """How far the output moves when the context is zero; see :func:`context_rel_l2`."""


def run_reference(bundle: Bundle, options: ValidateOptions, progress: Callable[[str, int, int], None]) -> ReferenceRun:
    """Returns what the bundle's reference, or that of ``options.against``, makes of the photos that the options name.

    Raises UsageError, BundleError, PhotoError, ToolchainError.
    """
    sources = photo_files(options.images)
    size = bundle.manifest.tile.size
    with open_pipeline(options.against or bundle, REFERENCE, threads=options.threads) as reference:
        tiles = []
        for tile in _tiles(sources, size, options):
            tiles.append(reference.tensors(tile))
            progress("reference tiles", len(tiles), options.tiles)
        crops: list[Crop] = []
        paths = sources[: options.photos]
        for path, name in zip(paths, photo_names(paths), strict=True):
            crops.append(_crop(reference, path, name, round(size * options.photo_side)))
            progress("reference photos", len(crops), len(paths))
        return ReferenceRun(
            reference.engine, tuple(tiles), tuple(crops), _tiling_psnr_db(reference, crops), context_rel_l2(reference, tiles)
        )


def stitch(pipeline: Pipeline, photo: Array) -> tuple[Array, float]:
    """Returns the stitched photo, float32 (scale · h, scale · w, 3), and the engine's own seconds per tile."""
    before, calls = sum(pipeline.seconds.values()), max(pipeline.calls.values(), default=0)
    plan = photo_plan(pipeline.bundle, *photo.shape[:2])
    began = time.perf_counter()
    result = upscale_array(photo, plan, pipeline.tile)
    spent = sum(pipeline.seconds.values()) - before or time.perf_counter() - began
    return result, spent / max(1, max(pipeline.calls.values()) - calls)


def _tiles(sources: Sequence[Path], size: int, options: ValidateOptions) -> Iterator[Array]:
    photos: dict[Path, Array] = {}
    for k in range(options.tiles):
        path = sources[k % len(sources)]
        if path not in photos:
            photos[path] = read_photo(path) if options.images else load_rgb(path)
        yield cut_tiles(photos[path], size, 1, options.seed + k)[0]


def _crop(reference: Pipeline, path: Path, name: str, side: int) -> Crop:
    photo = read_photo(path)
    h, w = photo.shape[:2]
    y, x = max(0, (h - side) // 2), max(0, (w - side) // 2)
    lr = np.ascontiguousarray(photo[y : y + side, x : x + side])
    return Crop(name, path, (h, w), (y, x), lr, *stitch(reference, lr))


def context_rel_l2(reference: Pipeline, tiles: Sequence[Mapping[str, Array]]) -> float | None:
    """Relative L2 of the reference's output with a context of zeros to its output, over the first tiles: 0 means that the conditioning does nothing.

    None for a bundle whose dataflow has no context.
    """
    sums = ErrorSums()
    for tensors in tiles[:CONTEXT_TILES]:
        if "context" not in tensors:
            return None
        without = reference.tensors(tensors["lr"], given={"context": np.zeros_like(tensors["context"])})
        sums.update(tensors["sr"], without["sr"])
    return sums.relative_l2() if tiles else None


def _tiling_psnr_db(reference: Pipeline, crops: Sequence[Crop]) -> float | None:
    """How much the reference's output depends on where tiles lie: the same photo on two grids half a tile apart, compared where both have it."""
    if not crops:
        return None
    tile, scale, lr = reference.bundle.manifest.tile, reference.bundle.manifest.tile.scale, crops[0].lr
    shift = min(tile.size // 2 // tile.multiple * tile.multiple, max(0, min(lr.shape[:2]) - tile.size))
    if shift == 0:
        return None
    moved, _ = stitch(reference, np.ascontiguousarray(lr[shift:, shift:]))
    margin = tile.overlap * scale
    first = crops[0].reference[shift * scale :, shift * scale :]
    return psnr_db(first[margin:, margin:], moved[margin:, margin:])
