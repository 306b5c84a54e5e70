"""What a photo file is, from its first bytes and its structure: format, truncation, extras that upscaling cannot carry over.

Cheap and read before anything is decoded, so that a broken file is refused before minutes of work and before any output exists.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO

from f2i_runtime.errors import PhotoError

READABLE = "JPEG, PNG, TIFF, WebP, AVIF, HEIC or BMP"

# 2^28, 268 megapixels: above every phone's sensor.
MAX_PIXELS = 1 << 28
# Of samples, where a decoder holds the whole picture: that many pixels in 8-bit RGB.
MAX_HELD_BYTES = 3 * MAX_PIXELS
MAX_SIDE = 65_500

_HEIF_BRANDS = {b"heic": "heic", b"heix": "heic", b"hevc": "heic", b"heim": "heic", b"heis": "heic", b"avif": "avif", b"avis": "avif"}
_OTHER = {
    b"GIF8": "GIF",
    b"%PDF": "PDF",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"8BPS": "Photoshop",
    b"<svg": "SVG",
    b"<?xml": "XML",
    b"FUJIFILMCCD-RAW": "a camera's raw file (RAF)",
    b"IIRO": "a camera's raw file (ORF)",
    b"IIRS": "a camera's raw file (ORF)",
    b"MMOR": "a camera's raw file (ORF)",
    b"IIU\x00": "a camera's raw file (RW2)",
    b"\x00\x00\x00\x18ftypcrx ": "a camera's raw file (CR3)",
}


def identify(path: Path) -> str:
    """Format of a photo: ``jpeg``, ``png``, ``tiff``, ``webp``, ``avif``, ``heic`` or ``bmp``.

    Raises:
        PhotoError: no such file, not a file, unreadable, empty, or none of these formats.
    """
    try:
        if not path.is_file():
            what = "is a folder" if path.is_dir() else "is not a regular file" if path.exists() else "does not exist"
            raise PhotoError(f"{path} {what}; expected a photo ({READABLE})")
        with path.open("rb") as file:
            head = file.read(4096)
    except (OSError, ValueError) as error:
        raise PhotoError(f"cannot read {path}: {_reason(error)}; check the path and its permissions") from error
    if not head:
        raise PhotoError(f"{path} is empty (0 bytes); expected a photo ({READABLE}): copy it again")
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[:4] in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"):
        return "tiff"
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return "bmp"
    if head[4:8] == b"ftyp":
        size = min(int.from_bytes(head[:4], "big"), len(head))
        brands = [head[8:12], *(head[i : i + 4] for i in range(16, size - 3, 4))]
        for brand in brands:
            if brand in _HEIF_BRANDS:
                return _HEIF_BRANDS[brand]
        if b"mif1" in brands:
            # The brand of the structure alone: the items say what they are coded in.
            return "avif" if b"av01" in head else "heic"
    known = next((name for magic, name in _OTHER.items() if head.startswith(magic)), None)
    if known is None and b"\x00" not in head:
        known = "text"
    got = f"looks like {known}" if known else "is no image format known here"
    raise PhotoError(f"{path} {got}; expected a photo ({READABLE}): convert it first")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).lower()


def refuse_truncated(path: Path, kind: str) -> None:
    """Follow the file's own structure to its end without decoding.

    Raises:
        PhotoError: the structure runs past the end of the file, or its end mark is missing. TIFF, whose parts lie in any order, is left to
            the decoder.
    """
    checks = {"jpeg": _jpeg_ends, "png": _png_ends, "webp": _webp_ends, "avif": _boxes_end, "heic": _boxes_end}
    if kind not in checks:
        return
    size = 0
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            whole = checks[kind](file, size)
    except OSError as error:
        raise PhotoError(f"cannot read {path}: {_reason(error)}; check the path and its permissions") from error
    except (struct.error, IndexError, ValueError):
        whole = False
    if not whole:
        raise PhotoError(
            f"{path} is a truncated or damaged {kind.upper()} of {size} bytes: its end is missing; copy it again from its source"
        )


def _jpeg_ends(file: IO[bytes], size: int) -> bool:
    """True if an end-of-image mark follows the first scan; segments before it are skipped by length, for they may hold thumbnails."""
    at = 2
    while True:
        file.seek(at)
        head = file.read(4)
        mark, length = struct.unpack(">HH", head)
        if mark == 0xFFFF:
            at += 1
            continue
        if mark >> 8 != 0xFF:
            # Garbage between segments, which decoders skip or report in their own words.
            return True
        at += 2 + length
        if mark == 0xFFDA:
            break
    if at >= size:
        return False
    # Read in blocks, not mapped: a mapped file that is cut short meanwhile ends the process.
    file.seek(at)
    before = b""
    while block := file.read(1 << 20):
        if b"\xff\xd9" in before + block:
            return True
        before = block[-1:]
    return False


def _png_ends(file: IO[bytes], size: int) -> bool:
    at = 8
    while at + 12 <= size:
        file.seek(at)
        length, name = struct.unpack(">I4s", file.read(8))
        at += 12 + length
        if name == b"IEND":
            return True
    return False


def _webp_ends(file: IO[bytes], size: int) -> bool:
    file.seek(4)
    (length,) = struct.unpack("<I", file.read(4))
    return int(length) + 8 <= size


def _boxes_end(file: IO[bytes], size: int) -> bool:
    """ISO base media boxes, one after another; the last may say 0 for "to the end"."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        length, _ = struct.unpack(">I4s", file.read(8))
        if length == 0:
            return True
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
        if length < 8:
            return False
        at += length
    return at == size


def refuse_absurd(path: Path, width: int, height: int, held_pixel_bytes: int = 0) -> None:
    """Bound the work and the memory a small file can ask for.

    ``held_pixel_bytes``: bytes per pixel where the decoder holds the whole picture, else 0. Raises ``PhotoError`` above ``MAX_PIXELS`` in all, ``MAX_SIDE``
    along one side, or ``MAX_HELD_BYTES``.
    """
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise PhotoError(
            f"{path} says it is {width} x {height} px; expected at most {MAX_PIXELS / 1e6:.0f} megapixels and {MAX_SIDE} px a side: "
            "crop or shrink it first"
        )
    if width * height * held_pixel_bytes > MAX_HELD_BYTES:
        raise PhotoError(
            f"{path} has to be decoded at once, which takes {width * height * held_pixel_bytes / 1e6:.0f} MB; expected at most "
            f"{MAX_HELD_BYTES / 1e6:.0f} MB: save it as a baseline JPEG, a plain PNG or a TIFF, or shrink it"
        )


def refuse_raw(path: Path, kind: str) -> None:
    """Refuse a camera's raw file that is a TIFF by its first bytes, and a TIFF whose first picture is a preview of another.

    Raises:
        PhotoError: its tags say so (TIFF 6.0, DNG 1.7); a decoder would read the preview, a few hundred pixels large.
    """
    if kind != "tiff":
        return
    try:
        with path.open("rb") as file:
            tags, is_cr2 = _tiff_tags(file)
    except (OSError, struct.error):
        return
    raw = "DNG" if 0xC612 in tags else "CR2" if is_cr2 else "" if tags.get(0x0106) not in (32803, 34892) else "raw"
    if raw or tags.get(0x00FE, 0) & 1:
        what = f"is a camera's raw file ({raw})" if raw else "begins with a preview, as cameras' raw files do"
        raise PhotoError(f"{path} {what}; expected a finished picture ({READABLE}): develop it in a raw converter and save a 16-bit TIFF")


def _tiff_tags(file: IO[bytes]) -> tuple[dict[int, int], bool]:
    """Returns the tags of a TIFF's first directory, with their values as far as these are one number; and whether Canon's mark follows the header."""
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    version, first = struct.unpack_from(f"{order}HI", head, 2)
    if version != 42:
        return {}, False
    file.seek(first)
    (count,) = struct.unpack(f"{order}H", file.read(2))
    data, tags = file.read(12 * count), {}
    for at in range(0, len(data) - 11, 12):
        tag, kind = struct.unpack_from(f"{order}HH", data, at)
        tags[int(tag)] = int(struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", data, at + 8)[0])
    return tags, head[8:10] == b"CR"
