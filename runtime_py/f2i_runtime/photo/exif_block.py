"""EXIF blocks: taken apart entry by entry and put together again, with no value that is not understood touched.

Format: Exif 3.0 (CIPA DC-008-2023), which is TIFF 6.0 with directories of its own.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

ORIENTATION, COLOR_SPACE, MAKER_NOTE = 0x0112, 0xA001, 0x927C
_EXIF, _GPS, _INTEROP = 0x8769, 0x8825, 0xA005
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_MOST_ENTRIES = 2000
_FILE_TAGS = frozenset(
    {0x00FE, 0x0111, 0x0117, 0x0144, 0x0145, 0x014A, 0x0201, 0x0202, 0x02BC, 0x83BB, 0x8649, 0x8773, 0xC4A5, 0xEA1C, 0xC612, 0xC634}
)
"""What describes the file that the block came from: where its samples, other pictures and other blocks lie."""


@dataclass(frozen=True)
class Entry:
    """One value: its TIFF type, the number of elements, and their bytes in the block's order."""

    kind: int
    count: int
    data: bytes


Directory = dict[int, Entry]


@dataclass
class Exif:
    """A block's directories. ``thumbnail`` says whether there was a second picture, which is not kept."""

    order: str
    """``<`` or ``>``, as for ``struct``."""
    main: Directory = field(default_factory=dict)
    photo: Directory = field(default_factory=dict)
    gps: Directory = field(default_factory=dict)
    interop: Directory = field(default_factory=dict)
    thumbnail: bool = False

    def number(self, directory: Directory, tag: int) -> int | None:
        """Returns a SHORT or LONG, None where there is none."""
        entry = directory.get(tag)
        if entry is None or entry.kind not in (3, 4) or entry.count < 1:
            return None
        return int(struct.unpack_from(f"{self.order}{'H' if entry.kind == 3 else 'I'}", entry.data)[0])

    def set_number(self, directory: Directory, tag: int, value: int) -> None:
        """Put a LONG, or a SHORT where there was one and the value fits."""
        old = directory.get(tag)
        short = value < 1 << 16 and (old is None or old.kind == 3)
        directory[tag] = Entry(3 if short else 4, 1, struct.pack(f"{self.order}{'H' if short else 'I'}", value))


def parse_exif(block: bytes) -> Exif:
    """Returns the directories of a block, with or without the mark that begins it in a JPEG. Raises ValueError when it is none."""
    start = next((at for at in (0, 6, 4, 10) if block[at : at + 4] in (b"II*\0", b"MM\0*")), None)
    if start is None:
        raise ValueError("no TIFF header")
    block = block[start:]
    exif = Exif("<" if block[:2] == b"II" else ">")
    try:
        (first,) = struct.unpack_from(f"{exif.order}I", block, 4)
        exif.main, after = _directory(block, first, exif.order)
        exif.thumbnail = bool(after)
        for holder, tag, into in ((exif.main, _EXIF, exif.photo), (exif.main, _GPS, exif.gps), (exif.photo, _INTEROP, exif.interop)):
            at = exif.number(holder, tag)
            holder.pop(tag, None)
            if at:
                into |= _directory(block, at, exif.order)[0]
    except struct.error as e:
        raise ValueError("directories that run past the end") from e
    for tag in _FILE_TAGS:
        exif.main.pop(tag, None)
    exif.photo.pop(0xEA1C, None)
    return exif


def build_exif(exif: Exif) -> bytes:
    """Returns the block: no second picture, every directory where readers expect it."""
    out = bytearray(struct.pack(f"{exif.order}2sHI", b"II" if exif.order == "<" else b"MM", 42, 8))
    photo = dict(exif.photo)
    main = dict(exif.main)
    pointer = Entry(4, 1, bytes(4))
    if exif.interop:
        photo[_INTEROP] = pointer
    if photo:
        main[_EXIF] = pointer
    if exif.gps:
        main[_GPS] = pointer
    places = _append(out, main, exif.order)
    if photo:
        struct.pack_into(f"{exif.order}I", out, places[_EXIF], len(out))
        inner = _append(out, photo, exif.order)
        if exif.interop:
            struct.pack_into(f"{exif.order}I", out, inner[_INTEROP], len(out))
            _append(out, exif.interop, exif.order)
    if exif.gps:
        struct.pack_into(f"{exif.order}I", out, places[_GPS], len(out))
        _append(out, exif.gps, exif.order)
    return bytes(out)


def _directory(block: bytes, at: int, order: str) -> tuple[Directory, int]:
    """Entries at ``at`` and where the next directory is; an entry of an unknown type or past the end is left out."""
    (count,) = struct.unpack_from(f"{order}H", block, at)
    if count > _MOST_ENTRIES:
        raise ValueError(f"a directory of {count} entries")
    entries: Directory = {}
    for k in range(count):
        tag, kind, length, value = struct.unpack_from(f"{order}HHI4s", block, at + 2 + 12 * k)
        size = _SIZES.get(kind, 0) * length
        place = at + 2 + 12 * k + 8 if size <= 4 else int(struct.unpack(f"{order}I", value)[0])
        if 0 < size <= len(block) - place:
            entries[tag] = Entry(kind, length, block[place : place + size])
    end = at + 2 + 12 * count
    after = struct.unpack_from(f"{order}I", block, end)[0] if end + 4 <= len(block) else 0
    return entries, int(after)


def _append(out: bytearray, entries: Directory, order: str) -> dict[int, int]:
    """Add a directory and its values; returns where each entry's value or pointer lies."""
    at = len(out)
    out += struct.pack(f"{order}H", len(entries)) + bytes(12 * len(entries) + 4)
    places = {}
    for k, (tag, entry) in enumerate(sorted(entries.items())):
        place = at + 2 + 12 * k
        value = entry.data.ljust(4, b"\0")
        if len(entry.data) > 4:
            out += bytes(len(out) % 2)
            value = struct.pack(f"{order}I", len(out))
            out += entry.data
        struct.pack_into(f"{order}HHI4s", out, place, tag, entry.kind, entry.count, value)
        places[tag] = place + 8
    out += bytes(len(out) % 2)
    return places
