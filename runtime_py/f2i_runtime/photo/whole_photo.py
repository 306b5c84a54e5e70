"""A whole photo in memory, for tiles and crops; upscaling reads rows instead, see :mod:`f2i_runtime.photo.reader`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from f2i_runtime.photo.reader import PhotoReader


def read_photo(path: Path) -> np.ndarray:
    """Returns a whole photo, float32 (h, w, 3) in [0, 1], upright. Raises PhotoError."""
    with PhotoReader(path) as reader:
        return reader.rows(0, reader.height)
