"""Rows on disk between the model and the encoder: an uncompressed TIFF.

A TIFF rather than raw samples because libvips maps a raw file into memory, which then counts as the process's own, but streams a TIFF.
Format: TIFF 6.0, and BigTIFF for its 64-bit offsets (Library of Congress, fdd000328).
"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from f2i_runtime.locks import Claim, claim

_STRIP = 64
_SHORT, _LONG8 = 3, 16
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def make_beside(path: Path, suffix: str) -> tuple[Claim, int]:
    """Returns a new empty file in ``path``'s folder, which nobody sweeps until it is released, and its descriptor, open for writing. Raises OSError.

    Not by ``tempfile``, whose files are private: what is renamed to an output must have the rights that any new file gets.
    """
    claimed = claim(path, suffix)
    try:
        return claimed, os.open(claimed.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    except BaseException:
        claimed.release()
        raise


class Spool:
    """``path``: the TIFF, complete once every sample was written. ``remove`` it in any case."""

    def __init__(self, beside: Path, width: int, height: int, bands: int, bits: int) -> None:
        """Make the file and claim its whole size. ``bands``: 1 or 3, plus 1 for alpha; ``bits``: 8 or 16. Raises ``OSError``."""
        self.size = width * height * bands * bits // 8
        self._pixel, self._width = bands * bits // 8, width
        self._claim, self._descriptor = make_beside(beside, ".spool")
        self.path = self._claim.path
        try:
            header = _header(width, height, bands, bits)
            self._begin = len(header)
            _claim(self._descriptor, self._begin + self.size)
            self._write(header, 0)
        except BaseException:
            self.remove()
            raise

    def write(self, y: int, x: int, samples: NDArray[Any]) -> None:
        """Put a block (n, m, bands), uint8 or uint16, at row ``y``, column ``x``. Raises ``OSError``."""
        block = np.ascontiguousarray(samples, dtype=samples.dtype.newbyteorder("<"))
        pieces = [block] if block.shape[1] == self._width else list(block)
        for k, piece in enumerate(pieces):
            self._write(piece.data.cast("B"), self._begin + ((y + k) * self._width + x) * self._pixel)

    def _write(self, data: bytes | memoryview, offset: int) -> None:
        os.lseek(self._descriptor, offset, os.SEEK_SET)
        while data:
            data = data[os.write(self._descriptor, data) :]

    def remove(self) -> None:
        """Delete it and let go of its lock, which guards it from ``sweep`` until now; may be called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._claim.release()


def _header(width: int, height: int, bands: int, bits: int) -> bytes:
    strips = -(-height // _STRIP)
    row = width * bands * bits // 8
    tags = [
        (256, _LONG8, [width]),
        (257, _LONG8, [height]),
        (258, _SHORT, [bits] * bands),
        (259, _SHORT, [1]),  # no compression
        (262, _SHORT, [2 if bands > 2 else 1]),  # RGB, or grey with 0 as black
        (273, _LONG8, [0] * strips),  # where strips begin; filled in below
        (277, _SHORT, [bands]),
        (278, _LONG8, [_STRIP]),
        (279, _LONG8, [row * min(_STRIP, height - i * _STRIP) for i in range(strips)]),
        (284, _SHORT, [1]),  # samples of a pixel lie together
        *([(338, _SHORT, [2])] if bands in (2, 4) else []),  # the extra channel is unassociated alpha
    ]
    directory = 16 + 8 + 20 * len(tags) + 8
    samples_at = directory + 2 * 8 * strips
    tags[5] = (273, _LONG8, [samples_at + i * _STRIP * row for i in range(strips)])
    entries, after = b"", b""
    for tag, kind, values in tags:
        data = struct.pack(f"<{len(values)}{'Q' if kind == _LONG8 else 'H'}", *values)
        if len(data) > 8:
            entries += struct.pack("<HHQQ", tag, kind, len(values), directory + len(after))
            after += data
        else:
            entries += struct.pack("<HHQ", tag, kind, len(values)) + data.ljust(8, b"\0")
    head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) + struct.pack("<Q", len(tags)) + entries + struct.pack("<Q", 0) + after
    return head.ljust(samples_at, b"\0")


def _claim(descriptor: int, size: int) -> None:
    """Reserve disk space where the system can; where it cannot, a full disk shows while writing."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno in FULL:
            raise
