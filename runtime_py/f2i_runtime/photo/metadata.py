"""The one pass over what a photo holds beside its picture: each kind of block is kept, corrected or dropped, and what is dropped is said.

:data:`BLOCKS` is the decision and the documentation: ``python -m f2i_runtime.photo.metadata`` prints it as the table of ``docs/metadata.md``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from f2i_runtime.photo.exif_block import COLOR_SPACE, MAKER_NOTE, ORIENTATION, Directory, Entry, Exif, build_exif, parse_exif
from f2i_runtime.photo.xmp_packet import Resized, correct_xmp

Fate = Literal["kept", "corrected", "dropped"]
FORMATS = ("jpeg", "png", "tiff", "webp", "avif")
"""Formats that are written."""
_SEGMENT = 65_533 - 29
"""Bytes that one block in a JPEG may have: a segment, without the longest mark that begins one (XMP's)."""


@dataclass(frozen=True)
class Block:
    """A kind of block, and what becomes of it in each output format; formats that ``fates`` does not name take ``fate``."""

    key: str
    name: str
    """For people: ``holds NAME``, ``left out: NAME``."""
    found: str
    """Where it is looked for."""
    fate: Fate
    why: str
    fates: Mapping[str, Fate] = field(default_factory=dict)
    said: str = ""
    """What is said on the way in instead of its being listed among what was left out."""

    def in_format(self, kind: str) -> Fate:
        """Returns what becomes of it in an output of format ``kind``."""
        return self.fates.get(kind, self.fate)


_NO_TIFF_EXIF: dict[str, Fate] = {"tiff": "dropped"}
_LARGE_VALUE = 1 << 13
"""Bytes of a value that an EXIF block of more than a segment does without; libvips writes no larger block in any format."""
_SRGB = "its values are taken for sRGB"
_ONLY = "only the standard picture is upscaled, the output has none"
BLOCKS = (
    Block("exif", "EXIF", "all but BMP", "corrected", "orientation 1, sizes in pixels new, everything else as it is", _NO_TIFF_EXIF),
    Block("exif-thumbnail", "EXIF's thumbnail", "EXIF", "dropped", "it is small, and turned as the stored picture was"),
    Block("maker-notes", "maker notes", "EXIF", "dropped", "they hold places in the old file, and previews"),
    Block("exif-large", "EXIF values of more than 8 KB", "EXIF over 64 KB", "dropped", "libvips writes EXIF of at most 64 KB"),
    Block("xmp", "XMP", "all but BMP", "corrected", "orientation 1, sizes in pixels and panorama sizes new; names of other pictures in the file are taken out"),
    Block("xmp-regions", "regions of faces and panorama sizes of a turned photo", "XMP", "dropped", "they have the directions of the stored picture; kept where it was not turned"),
    Block("extended-xmp", "extended XMP", "JPEG", "dropped", "it holds depth maps and pictures of the old size"),
    Block("iptc", "IPTC", "JPEG, TIFF", "dropped", "records 1 and 2 without orientation and previews; other formats have no place for it", {"jpeg": "corrected"}),
    Block("icc", "the ICC profile", "all but BMP", "kept", "of any length; dropped where it is for other channels than the output has"),
    Block("nclx", "code points of colour (nclx)", "HEIC, AVIF", "corrected", "they become an ICC profile that says the same, unless they say sRGB"),
    Block("cicp", "code points of colour (cICP)", "PNG", "corrected", "they become an ICC profile that says the same, unless they say sRGB"),
    Block("gamma", "gAMA and cHRM", "PNG", "corrected", "they become an ICC profile that says the same, unless they say sRGB"),
    Block("hdr", "PQ or HLG", "HEIC, AVIF, PNG", "corrected", "values become standard range: diffuse white stays, what is brighter is compressed"),
    Block("unknown-color", "code points of colour that are not known", "HEIC, AVIF, PNG", "dropped", _SRGB, said=f"code points of colour that are not known: {_SRGB}"),
    Block("mpf", "further pictures (MPF)", "JPEG", "dropped", _ONLY, said="further pictures (MPF): only the first is upscaled, the output has none"),
    Block("gain-map", "an HDR gain map", "JPEG, HEIC, AVIF", "dropped", _ONLY, said=f"an HDR gain map: {_ONLY}"),
    Block("depth", "a depth map", "JPEG, HEIC, AVIF", "dropped", _ONLY, said=f"a depth map: {_ONLY}"),
    Block("matte", "portrait mattes", "HEIC", "dropped", _ONLY, said=f"portrait mattes: {_ONLY}"),
    Block("motion", "a motion photo's video", "JPEG, HEIC", "dropped", "only the still picture is upscaled", said="a motion photo's video: only the still picture is upscaled"),
    Block("credentials", "content credentials (C2PA)", "JPEG, PNG", "dropped", "their signature is of the old picture"),
    Block("text", "comments and text notes", "JPEG, PNG", "dropped", "formats hold them in ways of their own"),
    Block("resolution", "dots per inch", "JPEG, PNG, TIFF, EXIF", "kept", "the picture prints twice as large", {"webp": "dropped"}),
)  # fmt: skip
_BY_KEY = {block.key: block for block in BLOCKS}


@dataclass(frozen=True)
class Change:
    """What became of the picture, as far as its blocks speak of it."""

    resized: Resized
    channels: int
    """Number of colour channels in the output: 1 or 3."""
    converted: bool = False
    """Whether colours are sRGB's now and were not before."""


def said_on_reading(keys: frozenset[str]) -> list[str]:
    """Returns one line each for what is in the file and will not be in any output."""
    return [f"holds {block.said}" for block in BLOCKS if block.key in keys and block.said]


def carry(blocks: Mapping[str, Any], keys: frozenset[str], kind: str, change: Change) -> tuple[dict[str, Any], list[str]]:
    """Decides for every block of a photo.

    Args:
        blocks: libvips fields of the photo: ``exif-data``, ``xmp-data``, ``iptc-data``, ``icc-profile-data``, ``xres``, ``yres``.
        keys: of the other blocks in its file, as :func:`f2i_runtime.photo.file_blocks.find_blocks` names them.
        kind: the output's format.
        change: what became of the picture.

    Returns:
        The libvips fields to write, and what to tell the user: one line each.
    """
    fields = {name: blocks[name] for name in ("xres", "yres") if name in blocks}
    dropped = {key for key in keys if _BY_KEY[key].in_format(kind) == "dropped" and not _BY_KEY[key].said}
    warnings: list[str] = []
    if "exif-data" in blocks:
        if _BY_KEY["exif"].in_format(kind) == "dropped":
            warnings.append(f"{kind.upper()} is written without EXIF; write .jpg, .png, .webp or .avif to keep it")
        else:
            fields |= _sized("exif-data", *_carried_exif(blocks["exif-data"], change), kind, dropped, warnings)
    if "xmp-data" in blocks:
        fields |= _sized("xmp-data", *_carried_xmp(blocks["xmp-data"], change), kind, dropped, warnings)
    if "iptc-data" in blocks:
        iptc = _carried_iptc(blocks["iptc-data"]) if _BY_KEY["iptc"].in_format(kind) != "dropped" else b""
        if iptc and len(iptc) <= _SEGMENT:
            fields["iptc-data"] = iptc
        else:
            dropped.add("iptc")
    profile = blocks.get("icc-profile-data")
    if profile and _fits_channels(profile, change.channels):
        fields["icc-profile-data"] = profile
    elif profile:
        dropped.add("icc")
    names = [block.name for block in BLOCKS if block.key in dropped]
    return fields, [*warnings, *([f"left out: {', '.join(names)}"] if names else [])]


def _sized(name: str, data: bytes, gone: set[str], kind: str, dropped: set[str], warnings: list[str]) -> dict[str, bytes]:
    """The block as a libvips field where it is whole and not too large for the format."""
    dropped |= gone
    key = name.removesuffix("-data")
    if data and len(data) > _SEGMENT and (kind == "jpeg" or key == "exif"):
        warnings.append(
            f"holds {len(data)} bytes of {key.upper()}, which no JPEG can hold: left out; write .png, .webp or .avif to keep it"
        )
        return {}
    if not data:
        warnings.append(f"holds {key.upper()} that cannot be read: left out")
        return {}
    return {name: data}


def _carried_exif(block: bytes, change: Change) -> tuple[bytes, set[str]]:
    try:
        exif = parse_exif(block)
    except ValueError:
        return b"", set()
    gone = {"exif-thumbnail"} if exif.thumbnail else set()
    if exif.photo.pop(MAKER_NOTE, None) is not None:
        gone.add("maker-notes")
    width, height = change.resized.new
    exif.set_number(exif.main, ORIENTATION, 1)
    for directory, tags in ((exif.main, (0x0100, 0x0101)), (exif.photo, (0xA002, 0xA003))):
        for tag, size in zip(tags, (width, height), strict=True):
            if tag in directory:
                exif.set_number(directory, tag, size)
    _correct_places(exif, change.resized)
    if change.converted:
        exif.set_number(exif.photo, COLOR_SPACE, 1)
        exif.interop.clear()
    if len(build_exif(exif)) > _SEGMENT:
        for directory in (exif.main, exif.photo, exif.gps, exif.interop):
            large = [tag for tag, entry in directory.items() if len(entry.data) > _LARGE_VALUE]
            for tag in large:
                del directory[tag]
            gone |= {"exif-large"} if large else set()
    return build_exif(exif), gone


def _correct_places(exif: Exif, resized: Resized) -> None:
    """Values that count in pixels: where the subject is, and pixels per unit of the sensor."""
    for tag in (0x9214, 0xA214):
        exif.photo.pop(tag, None)
    ratio = resized.new[0] / resized.old[0]
    for tag in (0xA20E, 0xA20F):
        entry = exif.photo.get(tag)
        if entry is None:
            continue
        numerator = round(int.from_bytes(entry.data[:4], "little" if exif.order == "<" else "big") * ratio)
        if entry.kind == 5 and entry.count == 1 and numerator < 1 << 32:
            exif.photo[tag] = Entry(5, 1, numerator.to_bytes(4, "little" if exif.order == "<" else "big") + entry.data[4:])
        else:
            del exif.photo[tag]
    if resized.orientation in (5, 6, 7, 8):
        _swap(exif.photo, 0xA20E, 0xA20F)


def _swap(directory: Directory, first: int, second: int) -> None:
    values = directory.pop(first, None), directory.pop(second, None)
    directory |= {tag: value for tag, value in zip((second, first), values, strict=True) if value is not None}


def _carried_xmp(packet: bytes, change: Change) -> tuple[bytes, set[str]]:
    try:
        data, gone = correct_xmp(packet, change.resized)
    except (ValueError, RecursionError):
        return b"", set()
    return data, {"xmp-regions"} if any(name.split(":")[0] in ("mwg-rs", "MP", "GPano") for name in gone) else set()


def _carried_iptc(segment: bytes) -> bytes:
    """Records 1 and 2 of a Photoshop segment (IPTC-IIM 4.2), in one of its own; empty where there are none."""
    start = segment.find(b"8BIM\x04\x04")
    if start < 0:
        return b""
    at = start + 6
    at += (1 + segment[at] + 1) // 2 * 2 if at < len(segment) else 0
    size = int.from_bytes(segment[at : at + 4], "big")
    data, kept, at = segment[at + 4 : at + 4 + size], b"", 0
    while at + 5 <= len(data) and data[at] == 0x1C:
        record, number, length = data[at + 1], data[at + 2], int.from_bytes(data[at + 3 : at + 5], "big")
        if length & 0x8000:
            break
        if record in (1, 2) and (record, number) not in {(2, 131), (2, 200), (2, 201), (2, 202)}:
            kept += data[at : at + 5 + length]
        at += 5 + length
    if not kept:
        return b""
    return b"Photoshop 3.0\x008BIM\x04\x04\0\0" + len(kept).to_bytes(4, "big") + kept + bytes(len(kept) % 2)


def _fits_channels(profile: bytes, channels: int) -> bool:
    """Whether an ICC profile is for grey (1) or RGB (3); one whose header says nothing known is left to the encoder."""
    return {b"GRAY": 1, b"RGB ": 3}.get(profile[16:20], 0) == channels


def as_markdown() -> str:
    """Returns the document of :data:`BLOCKS`."""
    names = {"jpeg": "JPEG", "png": "PNG", "tiff": "TIFF", "webp": "WebP", "avif": "AVIF"}
    lines = [
        "# Metadata",
        "",
        "What becomes of everything that a photo holds beside its picture when it is upscaled, by the format of the output. *Kept* means byte for byte,",
        "*corrected* that values which speak of the stored picture are made true of the new one, and *dropped* that it is left out and that the command says so.",
        "XMP or IPTC of more than 64 KB cannot be written to a JPEG: it is dropped there, and said. An ICC profile may have any length.",
        "",
        "In HEIC and AVIF the picture is turned by the file's own `irot` and `imir`, and EXIF's orientation is a copy for information (ISO/IEC 23008-12). In all",
        "other formats EXIF's orientation turns the picture, and XMP's where EXIF has none; TIFF has a tag of its own for it, which is 1 where it is not written.",
        "",
        f"| block | found in | {' | '.join(names.values())} | what is done |",
        f"|---|---|{'---|' * len(names)}---|",
    ]
    for block in BLOCKS:
        lines.append(f"| {block.name} | {block.found} | {' | '.join(block.in_format(kind) for kind in FORMATS)} | {block.why} |")
    lines += ["", "This page is written by `python -m f2i_runtime.photo.metadata` from the table that the code uses.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
