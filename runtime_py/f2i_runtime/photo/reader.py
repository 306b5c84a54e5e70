"""Read a photo from top to bottom, upright, as float32 RGB, in memory that does not grow with its height.

Decoding and colour conversion are libvips'. Some files are held whole while they are read, because their decoders do so: HEIC, AVIF and
WebP, progressive JPEG and interlaced PNG.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from f2i_runtime.errors import MissingPackageError, PhotoError, UsageError
from f2i_runtime.photo.formats import extras, identify, refuse_absurd, refuse_truncated
from f2i_runtime.photo.rotate import TURNS, TurnedRows

Pixels = NDArray[np.float32]

_STRIP = 64
_KEPT = ("exif-data", "icc-profile-data", "xmp-data", "iptc-data", "xres", "yres")


@functools.cache
def vips() -> Any:
    """pyvips, loaded on first use, without its cache (which keeps files open and pixels in memory) and without its own log lines."""
    import pyvips

    pyvips.cache_set_max(0)
    # Every failed libvips call is raised as an error as well; without a handler Python prints its warnings to stderr. A program that mutes logging, as the
    # command does for its toolchains, must not mute what tells a damaged photo.
    logger = logging.getLogger("pyvips")
    logger.addHandler(_DECODER_WARNINGS)
    logger.propagate = False
    logger.isEnabledFor = lambda level: level >= logging.WARNING  # type: ignore[method-assign]
    return pyvips


class _DecoderWarnings(logging.Handler):
    """Notes that a decoder went on past damage, which libvips says only in its log: in the thread that decodes, at the photo's end."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.here = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        if "read gave" in record.getMessage():
            self.here.met = True

    def take(self) -> bool:
        """True once for what this thread met since the last call."""
        met = getattr(self.here, "met", False)
        self.here.met = False
        return met


_DECODER_WARNINGS = _DecoderWarnings()


def one_line(error: Exception) -> str:
    """The last, most specific line of a libvips message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]


class PhotoReader:
    """A photo, opened and checked; a context manager.

    Attributes:
        width, height: of the upright picture, px.
        format: ``jpeg``, ``png``, ``tiff``, ``webp``, ``avif``, ``heic`` or ``bmp``.
        bit_depth: bits per sample as stored: 8, 10, 12 or 16.
        has_alpha, is_grey: what the file holds; ``rows`` gives three equal channels for grey.
        orientation: EXIF orientation that was applied, 1 to 8.
        icc: colour profile of the values that ``rows`` gives, or None; exif: raw EXIF block, or None.
        metadata: libvips fields for the output: EXIF, ICC, XMP, IPTC, resolution.
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
        self.damaged = False
        self.format = identify(self.path)
        refuse_truncated(self.path, self.format)
        self._stat = self._look()
        self._scratch = scratch
        self._file: _OpenFile | None = None
        with contextlib.ExitStack() as undo:
            undo.callback(self._let_go)
            try:
                stored, self._file = _open(self.path, self.format)
                refuse_absurd(self.path, stored.width, stored.height, _held_pixel_bytes(stored, self.format))
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
        self.orientation = image.get("orientation") if _has(image, "orientation") else 1
        if self.orientation not in TURNS:
            self.warnings.append(f"orientation {self.orientation} is none of 1 to 8: taken as upright")
            self.orientation = 1
        self.bit_depth = 8 if image.format == "uchar" else 16
        # libheif's 10 and 12 bits come shifted up to 16, so that white is a little below 65535.
        stored_bits = image.get("bits-per-sample") if self.format in ("avif", "heic") and _has(image, "bits-per-sample") else 0
        if self.bit_depth == 16 and stored_bits in (10, 12):
            self.bit_depth = stored_bits
        self._white = float(255 if image.format == "uchar" else ((1 << self.bit_depth) - 1) << (16 - self.bit_depth))
        pages = image.get("n-pages") if _has(image, "n-pages") else 1
        if pages > 1:
            self.warnings.append(f"holds {pages} pictures or pages: only the first is upscaled")
        self.metadata: dict[str, Any] = {name: image.get(name) for name in _KEPT if _has(image, name)}
        left = extras(self.path, self.format, self.metadata.get("xmp-data", b""))
        self.warnings += [f"holds {what}" for what in left]
        if left:
            # Its XMP says where to find what is no longer there, which misleads viewers.
            self.metadata.pop("xmp-data", None)

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
        elif image.interpretation not in ("srgb", "rgb", "rgb16", "b-w", "grey16", "multiband"):
            image = image.colourspace("rgb16" if image.format == "ushort" else "srgb")
            self.metadata.pop("icc-profile-data", None)
            self.warnings.append("colours were converted to sRGB")
        self.is_grey = image.bands < 3
        self._bands = image.bands
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
        _DECODER_WARNINGS.take()
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
        if _DECODER_WARNINGS.take():
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


class _OpenFile:
    """A file that libvips reads through us.

    Left to itself it maps the file: a JPEG then counts as memory of the process as it is read, and one that is cut short meanwhile ends the process.
    ``source`` must live as long as the pictures made of it.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self.source = vips().SourceCustom()
        self.source.on_read(self._read)
        self.source.on_seek(self._seek)

    def _read(self, count: int) -> bytes | None:
        # An error must not leave a callback; to the decoder it is the file's end, and whether the file changed is looked at then.
        try:
            return self._file.read(count)
        except (OSError, ValueError):
            return None

    def _seek(self, offset: int, whence: int) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):
            return -1

    def close(self) -> None:
        self._file.close()


def _open(path: Path, kind: str) -> tuple[Any, _OpenFile | None]:
    """The picture, and what it is read through until it is let go of."""
    if kind == "heic":
        return _open_heic(path), None
    if kind == "bmp":
        return _open_bmp(path), None
    # By its own loader, so that no other format's code is reached.
    loader = {"jpeg": "jpegload", "png": "pngload", "tiff": "tiffload", "webp": "webpload", "avif": "heifload"}[kind]
    file = _OpenFile(path)
    try:
        return vips().Operation.call(f"{loader}_source", file.source, access="sequential", fail_on="error"), file
    except vips().Error:
        file.close()
        raise


def _has(image: Any, field: str) -> bool:
    """Whether libvips read that field; asked by name, for a damaged file's other fields may have names that are no text."""
    return bool(image.get_typeof(field) != 0)


def _held_pixel_bytes(image: Any, kind: str) -> int:
    """Bytes per pixel of a picture that its decoder holds whole; 0 where it comes row by row."""
    interlaced = kind in ("jpeg", "png") and _has(image, "interlaced")
    size = image.bands * (2 if image.format == "ushort" else 1)
    return size if interlaced or kind in ("webp", "avif", "heic", "bmp") else 0


def _open_bmp(path: Path) -> Any:
    """BMP is not among the formats of the libvips that pip installs; Pillow reads it, whole."""
    try:
        with Image.open(path, formats=("BMP",)) as image:
            refuse_absurd(path, *image.size, 4)
            samples = np.asarray(image.convert("RGBA" if image.mode == "RGBA" else "L" if image.mode in ("1", "L") else "RGB"))
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise PhotoError(f"cannot decode {path} (BMP): {one_line(error)}; copy it again or convert it") from error
    samples = samples if samples.ndim == 3 else samples[:, :, None]
    return vips().Image.new_from_array(samples).copy(interpretation="b-w" if samples.shape[2] == 1 else "srgb")


def _open_heic(path: Path) -> Any:
    """HEVC is not in the libvips that pip installs, for its patents; pillow-heif brings a decoder."""
    try:
        import pillow_heif
    except ImportError as error:
        raise MissingPackageError("pillow_heif", f"reading {path} (HEIC)", "heic") from error
    try:
        heif = pillow_heif.open_heif(path, convert_hdr_to_8bit=False)
        width, height = heif.size
        refuse_absurd(path, width, height, (4 if heif.has_alpha else 3) * (2 if heif.info.get("bit_depth", 8) > 8 else 1))
        samples = np.asarray(heif)
    except (ValueError, RuntimeError, OSError, SyntaxError, EOFError, IndexError) as error:  # the last where a file holds no picture
        raise PhotoError(f"cannot decode {path} (HEIC): {one_line(error)}; copy it again or convert it") from error
    if samples.ndim == 2:
        samples = samples[:, :, None]
    pyvips = vips()
    image = pyvips.Image.new_from_array(samples)
    names = {("uint8", True): "b-w", ("uint8", False): "srgb", ("uint16", True): "grey16", ("uint16", False): "rgb16"}
    image = image.copy(interpretation=names[samples.dtype.name, samples.shape[2] < 3])
    blobs = {"exif-data": heif.info.get("exif"), "icc-profile-data": heif.info.get("icc_profile"), "xmp-data": heif.info.get("xmp")}
    for name, value in blobs.items():
        if value:
            image.set_type(pyvips.GValue.blob_type, name, bytes(value))
    image.set_type(pyvips.GValue.gint_type, "bits-per-sample", int(heif.info.get("bit_depth", 8)))
    image.set_type(pyvips.GValue.gint_type, "n-pages", len(heif))
    return image
