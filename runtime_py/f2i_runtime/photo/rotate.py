"""Turn a photo that can only be read from top to bottom, in flat memory, by way of an unnamed temporary file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[Any]

# EXIF orientation: (transpose, then flip vertically, then flip horizontally) from the stored to the upright picture.
TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}

_BLOCK = 256


class TurnedRows:
    """Rows of the upright picture, any of them in any order, float-free: the samples are the file's own.

    The stored picture is written once, in blocks that are transposed already; a row of the result then lies in few places, so reading
    costs no more than the rows' own size. The file has no name where the system allows it, and is gone when this object is closed.
    """

    def __init__(
        self, fetch: Callable[[int, int], Samples], height: int, width: int, orientation: int, scratch: Path | None = None
    ) -> None:
        """``fetch(y0, y1)`` gives stored rows (y1 - y0, width, C), called once from top to bottom here; ``height``, ``width`` as stored."""
        self._transpose, self._flip_rows, self._flip_columns = TURNS[orientation]
        self._file = tempfile.TemporaryFile(dir=scratch, prefix=".f2i-")  # noqa: SIM115 (closed by close)
        self._rows, self._columns = (width, height) if self._transpose else (height, width)
        # Blocks of a band lie side by side; without transposing, one block is as wide as the picture.
        self._block_columns = _BLOCK if self._transpose else width
        try:
            for y0 in range(0, height, _BLOCK):
                strip = fetch(y0, min(y0 + _BLOCK, height))
                self._dtype, self._bands = strip.dtype, strip.shape[2]
                self._store(y0, strip)
        except BaseException:
            self.close()
            raise

    def _offset(self, row: int, column: int) -> int:
        """Where row ``row`` of the block that begins at ``column`` lies."""
        band = row // _BLOCK * _BLOCK
        in_band = min(_BLOCK, self._rows - band)
        wide = min(self._block_columns, self._columns - column)
        samples = band * self._columns + in_band * column + (row - band) * wide
        return int(samples * self._bands * self._dtype.itemsize)

    def _store(self, y0: int, strip: Samples) -> None:
        if not self._transpose:
            self._file.seek(self._offset(y0, 0))
            self._file.write(np.ascontiguousarray(strip).data)
            return
        for x0 in range(0, strip.shape[1], _BLOCK):
            self._file.seek(self._offset(x0, y0))
            self._file.write(np.ascontiguousarray(strip[:, x0 : x0 + _BLOCK].transpose(1, 0, 2)).data)

    def fetch(self, y0: int, y1: int) -> Samples:
        """Rows y0 to y1 of the upright picture, (y1 - y0, width, C)."""
        first, last = (self._rows - y1, self._rows - y0) if self._flip_rows else (y0, y1)
        out = np.empty((last - first, self._columns, self._bands), dtype=self._dtype)
        row = first
        while row < last:
            stop = min(last, (row // _BLOCK + 1) * _BLOCK)
            for column in range(0, self._columns, self._block_columns):
                wide = min(self._block_columns, self._columns - column)
                block = np.empty((stop - row, wide, self._bands), dtype=self._dtype)
                self._file.seek(self._offset(row, column))
                if self._file.readinto(block.data.cast("B")) != block.nbytes:  # type: ignore[attr-defined]
                    raise OSError("the temporary file of a turned photo is shorter than what was written to it")
                out[row - first : stop - first, column : column + wide] = block
            row = stop
        if self._flip_rows:
            out = out[::-1]
        return out[:, ::-1] if self._flip_columns else out

    def close(self) -> None:
        """Remove the temporary file."""
        self._file.close()
