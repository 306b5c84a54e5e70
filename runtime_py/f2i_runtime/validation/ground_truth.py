"""The high-resolution photos that a validation is given: one for every photo, found by its name, and the part of it that a crop shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from f2i_runtime.errors import UsageError
from f2i_runtime.photo.photo_listing import photo_files
from f2i_runtime.photo.whole_photo import read_photo
from f2i_runtime.validation.validate_options import ValidateOptions

Array = np.ndarray[Any, Any]


def check_truths(options: ValidateOptions, scale: int) -> None:
    """Raises UsageError unless each photo that will be stitched has a truth ``scale`` times as large: it is said before anything is computed."""
    if options.ground_truth is None:
        return
    for path in photo_files(options.images)[: options.photos]:
        height, width = read_photo(path).shape[:2]
        _read(path, (height, width), scale, options.ground_truth)


def truth_crop(path: Path, photo_size: tuple[int, int], box: tuple[int, int, int, int], scale: int, folder: Path) -> Array:
    """Returns the part of a photo's truth that lies at ``scale`` times ``box`` (top, left, height, width), float32 (h, w, 3) in [0, 1].

    Its last rows or columns may be missing where the truth has an odd side. Raises UsageError where the folder has no truth of the right size.
    """
    truth = _read(path, photo_size, scale, folder)
    y, x, height, width = (scale * side for side in box)
    return truth[y : y + height, x : x + width]


def _read(path: Path, photo_size: tuple[int, int], scale: int, folder: Path) -> Array:
    matches = [p for p in photo_files(folder) if p.stem == path.stem]
    if not matches:
        raise UsageError(f"{folder}: no high-resolution photo named {path.stem}.*; --ground-truth needs one for every photo of --images")
    truth, (height, width) = read_photo(matches[0]), photo_size
    if any(abs(have - scale * low) >= scale for have, low in zip(truth.shape[:2], photo_size, strict=True)):
        raise UsageError(
            f"{matches[0]}: {truth.shape[1]}x{truth.shape[0]}, expected {scale} times {path.name}, which is {width}x{height}: "
            f"{scale * width}x{scale * height}"
        )
    return truth
