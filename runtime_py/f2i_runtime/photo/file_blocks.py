"""What a photo file holds beside its picture, found by its own structure: the keys are those of :mod:`f2i_runtime.photo.metadata`."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from f2i_runtime.photo.declared_color import ADOBE_RGB, DeclaredColor, Points, from_code_points
from f2i_runtime.photo.exif_block import COLOR_SPACE, parse_exif
from f2i_runtime.photo.heif_boxes import read_heif_facts

_MOST_SEGMENTS = 10_000
_GAIN_MARKS = (b"hdrgm:", b"ns.adobe.com/hdr-gain-map", b"urn:iso:std:iso:ts:21496", b"HDRGainMap:")
_MOTION_MARKS = (b"MotionPhoto", b"MicroVideo")
_DEPTH_MARKS = (b"ns.google.com/photos/1.0/depthmap/", b"ns.google.com/photos/dd/1.0/")


@dataclass(frozen=True)
class FileBlocks:
    """Keys of the blocks that were found besides EXIF, XMP, IPTC and ICC; and the colour that is declared without a profile, or over one."""

    keys: frozenset[str] = frozenset()
    color: DeclaredColor | None = None
    premultiplied: bool = False


def find_blocks(path: Path, kind: str, xmp: bytes, exif: bytes, *, has_icc: bool) -> FileBlocks:
    """Returns what is in the file ``path`` of format ``kind``; damage ends the search, and the decoder will say so. Raises OSError."""
    keys = {
        key
        for key, marks in (("gain-map", _GAIN_MARKS), ("motion", _MOTION_MARKS), ("depth", _DEPTH_MARKS))
        if any(m in xmp for m in marks)
    }
    color, premultiplied = None, False
    with path.open("rb") as file:
        if kind == "jpeg":
            keys |= _jpeg_keys(file)
        elif kind == "png":
            more, color = _png_blocks(file)
            keys |= more
            if has_icc and "cicp" not in keys:
                color = None
    if kind in ("heic", "avif"):
        facts = read_heif_facts(path)
        keys |= _heif_keys(facts.auxiliary, facts.items)
        premultiplied = facts.premultiplied
        if facts.code_points is not None and not facts.has_profile:
            keys.add("nclx")
            color = from_code_points(*facts.code_points)
            if color is None:
                keys.add("unknown-color")
    if color is None and not has_icc and _is_adobe_rgb(exif):
        color = DeclaredColor(ADOBE_RGB, 2.19921875, "Adobe RGB (1998)")
    return FileBlocks(frozenset(keys), color, premultiplied)


def _is_adobe_rgb(exif: bytes) -> bool:
    """Whether EXIF says what cameras write for Adobe RGB: DCF's option file (JEITA CP-3461B), or the 2 that some write instead."""
    try:
        block = parse_exif(exif)
    except ValueError:
        return False
    index = block.interop.get(1)
    return block.number(block.photo, COLOR_SPACE) == 2 or (index is not None and index.data[:3] == b"R03")


def _jpeg_keys(file: IO[bytes]) -> set[str]:
    """Returns the keys of the segments before the first scan."""
    keys, at = set(), 2
    for _ in range(_MOST_SEGMENTS):
        file.seek(at)
        head = file.read(4 + 36)
        if len(head) < 4 or head[0] != 0xFF or head[1] in (0xDA, 0xD9):
            break
        if head[1] == 0xFF:
            at += 1
            continue
        (length,) = struct.unpack(">H", head[2:4])
        content = head[4:]
        if head[1] == 0xE1 and content.startswith(b"http://ns.adobe.com/xmp/extension/"):
            keys.add("extended-xmp")
        elif head[1] == 0xE2 and content.startswith(b"MPF\0"):
            keys.add("mpf")
        elif head[1] == 0xE2 and content.startswith(b"urn:iso:std:iso:ts:21496:-1"):
            keys.add("gain-map")
        elif head[1] == 0xEB and content.startswith(b"JP"):
            keys.add("credentials")
        elif head[1] == 0xFE:
            keys.add("text")
        at += 2 + length
    return keys


def _png_blocks(file: IO[bytes]) -> tuple[set[str], DeclaredColor | None]:
    """Returns the keys of the chunks, and the colour they declare by the precedence of PNG 3, without profiles: cICP, sRGB, then gAMA and cHRM."""
    keys: set[str] = set()
    points: Points | None = None
    gamma: float | None = None
    coded: DeclaredColor | None = None
    at = 8
    for _ in range(_MOST_SEGMENTS):
        file.seek(at)
        head = file.read(8)
        if len(head) < 8:
            break
        length, name = struct.unpack(">I4s", head)
        content = file.read(min(length, 40))
        if name == b"IEND":
            break
        if name == b"cICP" and len(content) >= 2:
            keys.add("cicp")
            coded = from_code_points(content[0], content[1])
            if coded is None:
                keys.add("unknown-color")
        elif name == b"sRGB":
            keys.add("srgb")
        elif name == b"gAMA" and len(content) >= 4:
            gamma = struct.unpack(">I", content[:4])[0] / 100_000
        elif name == b"cHRM" and len(content) >= 32:
            x = [v / 100_000 for v in struct.unpack(">8I", content[:32])]
            points = (*x[2:], *x[:2])
        elif name in (b"tEXt", b"zTXt") or (name == b"iTXt" and not content.startswith(b"XML:com.adobe.xmp")):
            keys.add("text")
        elif name == b"caBX":
            keys.add("credentials")
        at += 12 + length
    if "cicp" in keys:
        return keys, coded
    if "srgb" in keys or (points is None and gamma is None):
        return keys, None
    keys.add("gamma")
    return keys, _from_numbers(points, gamma)


def _from_numbers(points: Points | None, gamma: float | None) -> DeclaredColor | None:
    """PNG's gAMA is the exponent that encodes; 1 / 2.2 with sRGB's primaries means sRGB."""
    if points is not None and (min(points) < 0 or max(points) > 1 or min(points[1::2]) <= 0.001):
        return None
    if gamma is not None and not 0.1 <= gamma <= 10:
        return None
    decoding = 2.2 if gamma is None else 1 / gamma
    return DeclaredColor(points or (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, 0.3127, 0.3290), decoding, "colours of PNG's gAMA and cHRM")


def _heif_keys(auxiliary: tuple[str, ...], items: tuple[str, ...]) -> set[str]:
    keys = set()
    if "tmap" in items or any("gainmap" in kind for kind in auxiliary):
        keys.add("gain-map")
    if any("depth" in kind or kind.endswith("auxid:2") for kind in auxiliary):
        keys.add("depth")
    if any("matte" in kind for kind in auxiliary):
        keys.add("matte")
    return keys
