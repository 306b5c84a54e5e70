"""Write a photo from top to bottom, in flat memory, whole or not at all.

Rows are spooled, in the output's own bit depth, to a temporary file beside the output, whose full size is claimed at the start: a disk that
is too full shows before the work and not after it. libvips encodes the spool to a second temporary file, which is renamed at the very end.
WebP and AVIF encoders hold the whole picture; the others a few rows.
"""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from f2i_runtime.errors import PhotoError, UsageError, system_message
from f2i_runtime.files import sync_file
from f2i_runtime.locks import Claim, sweep
from f2i_runtime.memory import trim_heap
from f2i_runtime.photo.color import luma
from f2i_runtime.photo.decoders import one_line, vips
from f2i_runtime.photo.formats import MAX_SIDE
from f2i_runtime.photo.metadata import Change, carry
from f2i_runtime.photo.reader import PhotoReader
from f2i_runtime.photo.resample import resize_axis, resize_taps
from f2i_runtime.photo.spool import FULL, Spool, make_beside
from f2i_runtime.photo.xmp_packet import Resized

Pixels = NDArray[np.float32]

WRITABLE = {
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".png": "png",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".webp": "webp",
    ".avif": "avif",
}
# Bits per sample each can hold, and its longest side.
_DEPTHS = {"jpeg": (8,), "png": (8, 16), "tiff": (8, 16), "webp": (8,), "avif": (8, 10, 12)}
_SIDES = {"jpeg": MAX_SIDE, "png": 1_000_000, "tiff": 1_000_000, "webp": 16_383, "avif": 16_384}
_CHUNK, _BAND = 16, 64


@dataclass(frozen=True)
class Encoding:
    """How a photo is written.

    ``quality``: 1 to 100, for JPEG, WebP and AVIF. From 90 up, JPEG keeps full colour resolution.
    ``bit_depth``: 8, or 16 for PNG and TIFF, or 10 and 12 for AVIF; None takes the depth of the photo it comes from, as far as the format holds it.
    ``recolor``: whether :meth:`PhotoWriter.recolor` will be called: rows wait in 16 bits whatever the output's depth.
    """

    quality: int = 95
    bit_depth: int | None = None
    recolor: bool = False


class PhotoWriter:
    """An output photo; a context manager. On a clean exit the file is there, complete; after any error there is nothing."""

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        *,
        like: PhotoReader | None = None,
        encoding: Encoding | None = None,
    ) -> None:
        """Check everything that can be known beforehand; touches no file.

        Args:
            path: output; its suffix chooses JPEG, PNG, TIFF, WebP or AVIF.
            width, height: of the output, px.
            like: the photo it comes from: its EXIF (upright), ICC profile, XMP, greyness, alpha (enlarged here, bicubic) and bit depth
                are kept.
            encoding: quality, bit depth and what will be done to the colours; its defaults where it is left out.

        Raises:
            PhotoError: an unknown or unsupported format, a size it cannot hold, a folder that does not exist, the photo itself as output.
            UsageError: a quality or bit depth that does not exist.
        """
        self.path = Path(path)
        self.width, self.height = width, height
        self.warnings: list[str] = []
        encoding = encoding or Encoding()
        self._like, self._quality = like, encoding.quality
        self.format = self._chosen_format()
        self.bit_depth = self._chosen_depth(encoding.bit_depth)
        if not 1 <= encoding.quality <= 100:
            raise UsageError(f"quality {encoding.quality} does not exist; expected 1 to 100")
        longest = _SIDES[self.format]
        if width < 1 or height < 1 or max(width, height) > longest:
            raise PhotoError(
                f"{self.format.upper()} cannot hold {width} x {height} px; expected 1 to {longest} px a side: write .png or .tif instead"
            )
        if not self.path.parent.is_dir():
            raise PhotoError(f"the folder {self.path.parent} does not exist; create it first")
        if self.path.is_dir():
            raise PhotoError(f"{self.path} is a folder; expected a file name such as {self.path / 'photo.jpg'}")
        if like is not None and self.path.exists() and os.path.samefile(self.path, like.path):
            raise PhotoError(f"{self.path} is the photo being read; write to another name")
        self._grey = like is not None and like.is_grey
        self._alpha = _AlphaRows(like, width, height) if like is not None and like.has_alpha else None
        self._keeps_alpha = self._alpha is not None and self.format != "jpeg"
        if self._alpha is not None and not self._keeps_alpha:
            self.warnings.append("JPEG holds no alpha: transparent parts become white; write .png to keep them")
        self._fields: dict[str, Any] = {}
        if like is not None:
            change = Change(Resized((like.width, like.height), (width, height), like.orientation), 1 if self._grey else 3, like.converted)
            self._fields, said = carry(like.metadata, like.blocks.keys, self.format, change)
            self.warnings += said
        # Rows that are spooled; height of the band of blocks below them, and how many of its columns are.
        self._next = self._band = self._filled = 0
        self._spool: Spool | None = None
        self._spool_bits = 16 if encoding.recolor or self.bit_depth > 8 else 8
        self._affine: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
        self._encoded: Claim | None = None

    def _chosen_format(self) -> str:
        suffix = self.path.suffix.lower()
        if suffix in (".heic", ".heif"):
            raise PhotoError(
                f"cannot write {self.path}: HEIC needs an HEVC encoder, which libvips is installed without; write .avif or .jpg"
            )
        if suffix not in WRITABLE:
            raise PhotoError(
                f"cannot write {self.path}: unknown format {suffix or 'without suffix'}; expected one of {', '.join(WRITABLE)}"
            )
        return WRITABLE[suffix]

    def _chosen_depth(self, asked: int | None) -> int:
        possible = _DEPTHS[self.format]
        if asked is not None:
            if asked not in possible:
                raise UsageError(f"{self.format.upper()} cannot hold {asked} bits; expected {' or '.join(map(str, possible))}")
            return asked
        stored = self._like.bit_depth if self._like is not None else 8
        depth = min((d for d in possible if d >= stored), default=possible[-1])
        if depth < stored:
            self.warnings.append(f"{self.format.upper()} holds {depth} bits of the photo's {stored}; write .png or .tif to keep them")
        return depth

    @property
    def _bands(self) -> int:
        return (1 if self._grey else 3) + self._keeps_alpha

    def __enter__(self) -> PhotoWriter:
        sweep(self.path.parent)
        try:
            self._spool = Spool(self.path, self.width, self.height, self._bands, self._spool_bits)
        except OSError as error:
            self._clean()
            raise self._failed(error) from error
        return self

    def _failed(self, error: OSError) -> PhotoError:
        if error.errno in FULL:
            size = self.width * self.height * self._bands * self._spool_bits // 8
            return PhotoError(
                f"no room to write {self.path}: its folder needs up to {2 * size / 1e6:.0f} MB free; free some or write elsewhere"
            )
        advice = "; check the folder's permissions" if isinstance(error, PermissionError) else ""
        return PhotoError(f"cannot write {self.path}: {system_message(error).lower()}{advice}")

    def write(self, rows: Pixels) -> None:
        """Add rows from top to bottom: float32 (n, width, 3), clipped to [0, 1] and rounded to the output's bit depth.

        Raises:
            PhotoError: NaN or infinity in the rows, or a full disk.
            UsageError: another shape, more rows than the photo has, or no ``with`` around it.
        """
        if rows.ndim != 3 or rows.shape[1:] != (self.width, 3):
            raise UsageError(f"rows of shape {rows.shape} do not fit a photo {self.width} px wide; expected (n, {self.width}, 3)")
        for y in range(0, len(rows), _BAND):
            self.write_block(self._next, 0, rows[y : y + _BAND])

    def write_block(self, y: int, x: int, block: Pixels) -> None:
        """Add a piece at (y, x), as ``upscale_blocks`` gives them: float32 (n, m, 3), left to right until the n rows are full, then below.

        Nothing of it is held. Errors as ``write``.
        """
        if self._spool is None:
            raise UsageError("this photo is not open for writing; use it in a with statement")
        n, m = block.shape[:2]
        fits = block.ndim == 3 and block.shape[2] == 3 and n > 0 and m > 0 and y + n <= self.height and x + m <= self.width
        if not fits or (y, x) != (self._next, self._filled) or self._band not in (0, n):
            raise UsageError(
                f"a piece of shape {block.shape} at row {y}, column {x} does not fit a photo of {self.width} x {self.height} px "
                f"that is written as far as row {self._next}, column {self._filled}"
            )
        alpha = self._alpha.rows(y, y + n)[:, x : x + m, None] if self._alpha is not None else None
        samples = np.empty((n, m, self._bands), dtype=np.uint8 if self._spool_bits == 8 else np.uint16)
        # Few rows at a time stay in the processor's cache.
        for i in range(0, n, _CHUNK):
            few = slice(i, i + _CHUNK)
            if not np.isfinite(np.sum(block[few])):
                raise PhotoError(f"rows {y} to {y + n} of the result hold NaN or infinity: the model is broken; run f2i validate")
            samples[few] = self._encoded_samples(block[few], alpha[few] if alpha is not None else None)
        try:
            self._spool.write(y, x, samples)
        except OSError as error:
            raise self._failed(error) from error
        self._band, self._filled = n, self._filled + m
        if self._filled == self.width:
            self._next, self._band, self._filled = y + n, 0, 0
            trim_heap()

    def _encoded_samples(self, pixels: Pixels, alpha: Pixels | None) -> Pixels:
        """What ``pixels`` become in the spool, still float32: cutting off the fraction rounds them."""
        values = luma(pixels) if self._grey else pixels
        values = np.clip(values, np.float32(0.0), np.float32(1.0))
        if alpha is not None:
            values = np.concatenate([values, alpha], axis=2) if self._keeps_alpha else values * alpha + (1.0 - alpha)
        values *= np.float32(255 if self._spool_bits == 8 else 65535)
        values += np.float32(0.5)
        return values  # pyright: ignore[reportReturnType]  # float32 throughout: numpy 2 keeps it beside a Python float

    def recolor(self, gain: NDArray[np.float64], offset: NDArray[np.float64]) -> None:
        """Every pixel becomes ``pixel * gain + offset`` (float64 (3,) each or (1,) for grey, of values in [0, 1]) when it is encoded. Raises ``UsageError``."""
        if self._spool_bits != 16:
            raise UsageError("a photo that is to be recoloured must be opened for writing with Encoding(recolor=True)")
        self._affine = gain, offset

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None and self._spool is not None:
                self._finish(self._spool)
        finally:
            self._clean()

    def _finish(self, spool: Spool) -> None:
        if self._next != self.height:
            raise PhotoError(f"{self.path} was not written: only {self._next} of its {self.height} rows came")
        if self._like is not None:
            self._like.check_unchanged()
        try:
            trim_heap()
            self._encoded, descriptor = make_beside(self.path, ".part")
            os.close(descriptor)
            self._encode(spool.path, self._encoded.path)
            sync_file(self._encoded.path)
            os.replace(self._encoded.path, self.path)
        except OSError as error:
            raise self._failed(error) from error
        except vips().Error as error:
            if shutil.disk_usage(self.path.parent).free < 1 << 20:
                raise self._failed(OSError(errno.ENOSPC, "no space left")) from error
            raise PhotoError(f"cannot encode {self.path} ({self.format.upper()}): {one_line(error)}; try .png or .tif") from error

    def _encode(self, spool: Path, encoded: Path) -> None:
        pyvips = vips()
        source = pyvips.Source.new_from_file(str(spool))
        image = pyvips.Operation.call("tiffload_source", source, access="sequential")
        image = self._recolored(image).copy()
        for name, value in self._fields.items():
            kind = pyvips.GValue.gdouble_type if name in ("xres", "yres") else pyvips.GValue.blob_type
            image.set_type(kind, name, value)
        # The pixels are upright by now.
        image.set_type(pyvips.GValue.gint_type, "orientation", 1)
        if self.format == "jpeg":
            image.jpegsave(encoded, Q=self._quality)
        elif self.format == "png":
            image.pngsave(encoded, compression=6)
        elif self.format == "tiff":
            large = self.width * self.height * self._bands * (2 if self.bit_depth > 8 else 1) > 3_500_000_000
            image.tiffsave(encoded, compression="deflate", predictor="horizontal", bigtiff=large)
        elif self.format == "webp":
            image.webpsave(encoded, Q=self._quality)
        else:
            image.heifsave(encoded, Q=self._quality, compression="av1", bitdepth=self.bit_depth)

    def _recolored(self, image: Any) -> Any:
        """The spooled picture in the output's own bits, recoloured."""
        if self._affine is not None:
            gain, offset = self._affine
            alpha = [1.0] if self._keeps_alpha else []
            image = image.linear([*gain, *alpha], [*(offset * 65535), *([0.0] if alpha else [])])
        if self.bit_depth == 8 and self._spool_bits == 16:
            image = image.linear(1 / 257, 0)
        if image.format == "float":
            kind = ("b-w", "srgb") if self.bit_depth == 8 else ("grey16", "rgb16")
            image = image.rint().cast("uchar" if self.bit_depth == 8 else "ushort").copy(interpretation=kind[not self._grey])
        return image

    def _clean(self) -> None:
        if self._spool is not None:
            self._spool.remove()
            self._spool = None
        if self._alpha is not None:
            self._alpha.close()
        if self._encoded is not None:
            self._encoded.release()


class _AlphaRows:
    """The alpha plane of a photo, read a second time beside the colours and enlarged by bicubic in step with the output."""

    def __init__(self, photo: PhotoReader, width: int, height: int) -> None:
        self._reader = PhotoReader(photo.path)
        self._down = resize_taps(self._reader.height, height)
        self._across = resize_taps(self._reader.width, width)
        self._last: tuple[tuple[int, int], Pixels] | None = None

    def rows(self, y0: int, y1: int) -> Pixels:
        """float32 (y1 - y0, width) in [0, 1]; the last answer is kept, for blocks beside one another ask for the same rows."""
        if self._last is None or self._last[0] != (y0, y1):
            self._last = (y0, y1), self._enlarged(y0, y1)
        return self._last[1]

    def _enlarged(self, y0: int, y1: int) -> Pixels:
        index, weight = self._down[0][y0:y1], self._down[1][y0:y1]
        first = int(index.min())
        plane = self._reader.alpha_rows(first, int(index.max()) + 1)
        if plane is None:
            raise PhotoError(f"{self._reader.path} was changed while it was read; run again once nothing writes to it")
        across = resize_axis(plane, *self._across, axis=1)
        return np.clip(resize_axis(across, index - first, weight, axis=0), 0.0, 1.0).astype(np.float32)

    def close(self) -> None:
        self._reader.close()
