"""Read a photo from top to bottom, upright, as float32 RGB, in memory that does not grow with its height.

Decoding and colour conversion are libvips'. Some files are held whole while they are read, because their decoders do so: HEIC, AVIF and
WebP, progressive JPEG and interlaced PNG.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from f2i_runtime.errors import PhotoError, UsageError
from f2i_runtime.photo.declared_color import icc_profile, standard_range
from f2i_runtime.photo.decoders import DECODER_WARNINGS, OpenFile, has_field, held_pixel_bytes, one_line, open_picture, vips
from f2i_runtime.photo.file_blocks import find_blocks
from f2i_runtime.photo.formats import identify, refuse_absurd, refuse_raw, refuse_truncated
from f2i_runtime.photo.metadata import said_on_reading
from f2i_runtime.photo.rotate import TURNS, TurnedRows
from f2i_runtime.photo.xmp_packet import xmp_orientation

Pixels = NDArray[np.float32]

_STRIP = 64
_KEPT = ("exif-data", "icc-profile-data", "xmp-data", "iptc-data", "xres", "yres")


class PhotoReader:
    """A photo, opened and checked; a context manager.

    Attributes:
        width, height: of the upright picture, px.
        format: ``jpeg``, ``png``, ``tiff``, ``webp``, ``avif``, ``heic`` or ``bmp``.
        bit_depth: bits per sample as stored: 8, 10, 12 or 16.
        has_alpha, is_grey: what the file holds; ``rows`` gives three equal channels for grey.
        orientation: EXIF orientation that was applied, 1 to 8.
        icc: colour profile of the values that ``rows`` gives, or None; exif: raw EXIF block, or None.
        metadata: libvips fields as the photo has them: EXIF, ICC, XMP, IPTC, resolution; the profile is one of the values that ``rows`` gives.
        blocks: what else the file holds.
        converted: whether colours were converted to sRGB.
        damaged: whether the decoder went on past damage, as far as the photo has been read.
        warnings: one line each for whatever the output will not have or that was changed on the way.
    """

    def __init__(self, path: Path, *, scratch: Path | None = None) -> None:
        """Open and check; decodes nothing yet.

        Args:
            path: the photo.
            scratch: folder for the temporary file of a photo that is stored turned; the system's own by default.

        Raises:
            PhotoError: missing, empty, truncated, no photo, too large, or of a kind that is not read.
            MissingPackageError: HEIC without pillow-heif.
        """
        self.path = Path(path)
        self.warnings: list[str] = []
        self.damaged = self.converted = False
        self.format = identify(self.path)
        refuse_truncated(self.path, self.format)
        refuse_raw(self.path, self.format)
        self._stat = self._look()
        self._scratch = scratch
        self._file: OpenFile | None = None
        with contextlib.ExitStack() as undo:
            undo.callback(self._let_go)
            try:
                stored, self._file = open_picture(self.path, self.format)
                refuse_absurd(self.path, stored.width, stored.height, held_pixel_bytes(stored, self.format))
                self._describe(stored)
                self._image = self._convert(stored)
            except vips().Error as error:
                raise self._damaged(error) from error
            except OSError as error:
                raise PhotoError(f"cannot read {self.path}: {(error.strerror or str(error)).lower()}") from error
            undo.pop_all()
        self.width, self.height = (stored.height, stored.width) if TURNS[self.orientation][0] else (stored.width, stored.height)
        self._stored_height, self._stored_width = stored.height, stored.width
        self._turned: TurnedRows | None = None
        self._held: NDArray[Any] | None = None
        self._held_from = 0

    def _look(self) -> tuple[int, int, int]:
        stat = os.stat(self.path)
        return stat.st_size, stat.st_mtime_ns, stat.st_ino

    def _damaged(self, error: Exception) -> PhotoError:
        return PhotoError(f"cannot decode {self.path} ({self.format.upper()}): {one_line(error)}; copy it again or convert it")

    def _describe(self, image: Any) -> None:
        if image.format not in ("uchar", "ushort"):
            raise PhotoError(f"{self.path} has samples of type {image.format}; expected 8 or 16 bits: convert it to a 16-bit TIFF or PNG")
        if image.bands > 5 or (image.bands == 5 and image.interpretation != "cmyk"):
            raise PhotoError(f"{self.path} has {image.bands} channels; expected grey, RGB or CMYK, with or without alpha")
        self.has_alpha = bool(image.hasalpha()) and image.interpretation != "cmyk"
        self.metadata: dict[str, Any] = {name: image.get(name) for name in _KEPT if has_field(image, name)}
        self.orientation = self._stored_orientation(image)
        self.bit_depth = 8 if image.format == "uchar" else 16
        # libheif's 10 and 12 bits come shifted up to 16, so that white is a little below 65535.
        stored_bits = image.get("bits-per-sample") if self.format in ("avif", "heic") and has_field(image, "bits-per-sample") else 0
        if self.bit_depth == 16 and stored_bits in (10, 12):
            self.bit_depth = stored_bits
        self._white = float(255 if image.format == "uchar" else ((1 << self.bit_depth) - 1) << (16 - self.bit_depth))
        pages = image.get("n-pages") if has_field(image, "n-pages") else 1
        if pages > 1:
            self.warnings.append(f"holds {pages} pictures or pages: only the first is upscaled")
        exif, xmp = (self.metadata.get(name, b"") for name in ("exif-data", "xmp-data"))
        self.blocks = find_blocks(self.path, self.format, xmp, exif, has_icc=self.icc is not None)
        self.warnings += said_on_reading(self.blocks.keys)

    def _stored_orientation(self, image: Any) -> int:
        """EXIF orientation, 1 to 8, that is still to be applied."""
        if self.format in ("heic", "avif"):
            # The decoder has applied irot and imir; EXIF and XMP there are copies for information (ISO/IEC 23008-12).
            return 1
        if not has_field(image, "orientation"):
            return xmp_orientation(self.metadata.get("xmp-data", b""))
        orientation = int(image.get("orientation"))
        if orientation not in TURNS:
            self.warnings.append(f"orientation {orientation} is none of 1 to 8: taken as upright")
            return 1
        return orientation

    def _convert(self, image: Any) -> Any:
        """To grey or RGB, with or without alpha, 8 or 16 bits."""
        if image.interpretation == "cmyk":
            if image.bands == 5:
                image = image.extract_band(0, n=4)
                self.warnings.append("CMYK with alpha: the alpha is left out")
            depth = 16 if image.format == "ushort" else 8
            image = image.icc_transform("srgb", embedded=True, input_profile="cmyk", depth=depth)
            self.metadata["icc-profile-data"] = image.get("icc-profile-data")
            self.warnings.append("CMYK: converted to sRGB, the output is RGB")
            self.converted = True
        elif image.interpretation not in ("srgb", "rgb", "rgb16", "b-w", "grey16", "multiband"):
            image = image.colourspace("rgb16" if image.format == "ushort" else "srgb")
            self.metadata.pop("icc-profile-data", None)
            self.warnings.append("colours were converted to sRGB")
            self.converted = True
        else:
            image = self._declared(image)
        self.is_grey = image.bands < 3
        self._bands = image.bands
        return image

    def _declared(self, image: Any) -> Any:
        """The picture in the colours that the file declares without a profile, which then are a profile's."""
        if self.blocks.premultiplied and self.has_alpha:
            image = image.unpremultiply(max_alpha=self._white).rint().cast(image.format).copy(interpretation=image.interpretation)
        color = self.blocks.color
        if color is None or color.is_srgb:
            return image
        if color.is_hdr:
            size = 256 if image.format == "uchar" else 65536
            curve = np.rint(standard_range(color, np.arange(size), self._white)).astype(np.uint8 if size == 256 else np.uint16)
            table = vips().Image.new_from_array(curve[None, :, None])
            colors = image.extract_band(0, n=image.bands - self.has_alpha).maplut(table)
            image = (colors.bandjoin(image.extract_band(image.bands - 1)) if self.has_alpha else colors).copy(
                interpretation=image.interpretation
            )
            self.warnings.append(f"{color.name}: converted to standard range, what is brighter than diffuse white is compressed")
        if image.bands >= 3 and not color.has_srgb_primaries_only:
            self.metadata["icc-profile-data"] = icc_profile(color)
        return image

    @property
    def icc(self) -> bytes | None:
        profile: bytes | None = self.metadata.get("icc-profile-data")
        return profile

    @property
    def exif(self) -> bytes | None:
        block: bytes | None = self.metadata.get("exif-data")
        return block

    def _decode(self, y0: int, y1: int) -> NDArray[Any]:
        """Stored rows, called in order."""
        image = self._image
        if image is None:
            raise UsageError(f"{self.path} is closed; read it inside its with statement")
        dtype = np.uint8 if image.format == "uchar" else np.uint16
        strips = []
        DECODER_WARNINGS.take()
        try:
            for y in range(y0, y1, _STRIP):
                n = min(_STRIP, y1 - y)
                # A region of its own each time: it belongs to the thread that made it.
                data = vips().Region.new(image).fetch(0, y, image.width, n)
                strips.append(np.frombuffer(data, dtype=dtype).reshape(n, image.width, self._bands))
        except vips().Error as error:
            self.check_unchanged()
            raise self._damaged(error) from error
        if y1 == self._stored_height:
            # Nothing is left to decode: let go of the decoder, which may hold the whole picture and speaks of damage only now.
            del image
            self._let_go()
        if DECODER_WARNINGS.take():
            self.damaged = True
            self.warnings.append("the decoder went on past damaged data: part of the picture may be wrong")
        return np.concatenate(strips)

    def _fetch(self) -> Callable[[int, int], NDArray[Any]]:
        if self.orientation == 1:
            return self._decode
        if self.orientation == 2:
            return lambda y0, y1: self._decode(y0, y1)[:, ::-1]
        if self._turned is None:
            try:
                self._turned = TurnedRows(self._decode, self._stored_height, self._stored_width, self.orientation, self._scratch)
            except OSError as error:
                raise PhotoError(
                    f"cannot turn {self.path} upright: {error}; free space for temporary files, or set TMPDIR to a folder that has some"
                ) from error
        return self._turned.fetch

    def _samples(self, y0: int, y1: int) -> NDArray[Any]:
        if not 0 <= y0 < y1 <= self.height:
            raise UsageError(f"rows {y0} to {y1} are not in a photo of {self.height} rows")
        if y0 < self._held_from:
            raise UsageError(f"row {y0} of {self.path} has been let go of; rows are read from top to bottom, now from {self._held_from}")
        held = self._held if self._held is not None else np.empty((0, self.width, self._bands), dtype=np.uint8)
        known = self._held_from + len(held)
        pieces = [held[y0 - self._held_from :]] if known > y0 else []
        if known < y0:
            # Skipped rows must be decoded all the same.
            for y in range(known, y0, _STRIP):
                self._fetch()(y, min(y + _STRIP, y0))
        if y1 > known:
            pieces.append(self._fetch()(max(known, y0), y1))
        self._held, self._held_from = np.concatenate(pieces) if len(pieces) > 1 else pieces[0], y0
        if y1 == self.height:
            self.check_unchanged()
        return self._held[: y1 - y0]

    def samples(self, y0: int, y1: int) -> NDArray[Any]:
        """Colours of rows y0 to y1 as stored: uint8 or uint16 (y1 - y0, width, 3), or (y1 - y0, width, 1) for grey. See ``decode``.

        ``y0`` may only grow from call to call; rows from the last ``y0`` on are kept, so calls may overlap.

        Raises:
            PhotoError: the photo is damaged, or was changed since it was opened.
            UsageError: rows out of range, or above the last call's ``y0``.
        """
        return self._samples(y0, y1)[:, :, : 1 if self.is_grey else 3]

    def decode(self, samples: NDArray[Any]) -> Pixels:
        """Stored samples to float32 in [0, 1], in any layout."""
        pixels = np.multiply(samples, np.float32(1.0 / self._white), dtype=np.float32)
        return np.minimum(pixels, np.float32(1.0), out=pixels)

    def rows(self, y0: int, y1: int) -> Pixels:
        """Rows y0 to y1: float32 (y1 - y0, width, 3) in [0, 1], RGB as stored (encoded, in the photo's own colour space). Order and errors as ``samples``."""
        pixels = self.decode(self.samples(y0, y1))
        return pixels.repeat(3, axis=2) if self.is_grey else pixels

    def alpha_rows(self, y0: int, y1: int) -> Pixels | None:
        """Opacity of rows y0 to y1: float32 (y1 - y0, width) in [0, 1], or None without alpha. Same order and errors as ``rows``."""
        if not self.has_alpha:
            return None
        alpha: Pixels = self._samples(y0, y1)[:, :, -1].astype(np.float32) / np.float32(self._white)
        return alpha

    def check_unchanged(self) -> None:
        """Raise ``PhotoError`` if the file is not the one that was opened."""
        try:
            same = self._look() == self._stat
        except OSError:
            same = False
        if not same:
            raise PhotoError(f"{self.path} was changed or removed while it was read; run again once nothing writes to it")

    def close(self) -> None:
        """Let go of the file and of all temporary data."""
        if self._turned is not None:
            self._turned.close()
        self._held = None
        self._let_go()

    def _let_go(self) -> None:
        self._image = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> PhotoReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
