"""Decoders: a photo's file to a libvips picture, through libvips itself or, for HEIC and BMP, through Pillow and pillow-heif."""

from __future__ import annotations

import functools
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from f2i_runtime.errors import MissingPackageError, PhotoError
from f2i_runtime.photo.formats import refuse_absurd


@functools.cache
def vips() -> Any:
    """pyvips, loaded on first use, without its cache (which keeps files open and pixels in memory) and without its own log lines."""
    import pyvips

    pyvips.cache_set_max(0)
    # Every failed libvips call is raised as an error as well; without a handler Python prints its warnings to stderr. A program that mutes logging, as the
    # command does for its toolchains, must not mute what tells a damaged photo.
    logger = logging.getLogger("pyvips")
    logger.addHandler(DECODER_WARNINGS)
    logger.propagate = False
    logger.isEnabledFor = lambda level: level >= logging.WARNING  # type: ignore[method-assign]
    return pyvips


class DecoderWarnings(logging.Handler):
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


DECODER_WARNINGS = DecoderWarnings()


def one_line(error: Exception) -> str:
    """The last, most specific line of a libvips message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]


class OpenFile:
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


def open_picture(path: Path, kind: str) -> tuple[Any, OpenFile | None]:
    """The picture, and what it is read through until it is let go of."""
    if kind == "heic":
        return _open_heic(path), None
    if kind == "bmp":
        return _open_bmp(path), None
    # By its own loader, so that no other format's code is reached.
    loader = {"jpeg": "jpegload", "png": "pngload", "tiff": "tiffload", "webp": "webpload", "avif": "heifload"}[kind]
    file = OpenFile(path)
    try:
        return vips().Operation.call(f"{loader}_source", file.source, access="sequential", fail_on="error"), file
    except vips().Error:
        file.close()
        raise


def has_field(image: Any, field: str) -> bool:
    """Whether libvips read that field; asked by name, for a damaged file's other fields may have names that are no text."""
    return bool(image.get_typeof(field) != 0)


def held_pixel_bytes(image: Any, kind: str) -> int:
    """Bytes per pixel of a picture that its decoder holds whole; 0 where it comes row by row."""
    interlaced = kind in ("jpeg", "png") and has_field(image, "interlaced")
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
