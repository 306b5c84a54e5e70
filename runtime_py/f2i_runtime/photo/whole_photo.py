"""A whole photo in memory, for tiles and crops; upscaling reads rows instead, see :mod:`f2i_runtime.photo.reader`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from f2i_runtime.errors import PhotoError
from f2i_runtime.photo.reader import PhotoReader


def read_photo(path: Path) -> np.ndarray:
    """Returns a whole photo, float32 (h, w, 3) in [0, 1], upright. Raises PhotoError, also where part of it is damaged: no figure is to come from that."""
    with PhotoReader(path) as reader:
        rows = reader.rows(0, reader.height)
        if reader.damaged:
            raise PhotoError(f"{path}: damaged, part of the picture is missing; copy it again from its source, or leave it out")
        return rows
