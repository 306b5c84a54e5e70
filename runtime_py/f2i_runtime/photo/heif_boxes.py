"""What a HEIC or AVIF file says about its primary picture and about the pictures beside it, read from its boxes without decoding.

Format: ISO/IEC 23008-12 (HEIF) on ISO/IEC 14496-12: ``meta`` holds the items, their references, and their properties.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MOST_META = 1 << 24


@dataclass(frozen=True)
class HeifFacts:
    """What the boxes say. Of the primary picture: code points (primaries, transfer) where its colour is declared by them, and whether it has a profile; of the file: the kinds
    of its auxiliary pictures, such as ``urn:com:apple:photo:2020:aux:hdrgainmap``, and of its items.
    """

    code_points: tuple[int, int] | None = None
    has_profile: bool = False
    auxiliary: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    premultiplied: bool = False


def read_heif_facts(path: Path) -> HeifFacts:
    """Returns what the boxes say; nothing where they are damaged or where there is no ``meta`` box, which the decoder will say more about."""
    try:
        meta = _meta(path)
        return _facts(meta) if meta else HeifFacts()
    except (struct.error, IndexError, ValueError, OSError):
        return HeifFacts()


def _meta(path: Path) -> bytes:
    """The content of the ``meta`` box."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        at = 0
        while at + 8 <= size:
            file.seek(at)
            length, name = struct.unpack(">I4s", file.read(8))
            head = 8
            if length == 1:
                (length,) = struct.unpack(">Q", file.read(8))
                head = 16
            if name == b"meta" and length <= _MOST_META:
                return file.read(length - head)[4:] if length else file.read(_MOST_META)[4:]
            if length < head:
                return b""
            at += length
    return b""


def _boxes(data: bytes) -> Iterator[tuple[str, bytes]]:
    at = 0
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        head = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, at + 8)
            head = 16
        end = at + length if length else len(data)
        if end < at + head:
            raise ValueError("a box shorter than its header")
        yield name.decode("latin-1"), data[at + head : end]
        at = end


def _facts(meta: bytes) -> HeifFacts:
    boxes = dict(_boxes(meta))
    pitm = boxes.get("pitm", bytes(6))
    (primary,) = struct.unpack_from(">I" if pitm[0] else ">H", pitm, 4)
    inner = list(_boxes(boxes.get("iprp", b"")))
    properties = [box for name, content in inner if name == "ipco" for box in _boxes(content)]
    owned = {item: indices for name, content in inner if name == "ipma" for item, indices in _associations(content)}
    colors = [properties[k - 1][1] for k in owned.get(primary, ()) if 0 < k <= len(properties) and properties[k - 1][0] == "colr"]
    nclx = next((struct.unpack_from(">HH", c, 4) for c in colors if c[:4] == b"nclx" and len(c) >= 10), None)
    kinds = tuple(content[4:].split(b"\0")[0].decode("latin-1") for name, content in properties if name == "auxC")
    iref = boxes.get("iref", b"")
    return HeifFacts(
        code_points=None if nclx is None else (int(nclx[0]), int(nclx[1])),
        has_profile=any(c[:4] in (b"prof", b"rICC") for c in colors),
        auxiliary=kinds,
        items=tuple(_items(boxes.get("iinf", b""))),
        premultiplied=any(name == "prem" for name, _ in _boxes(iref[4:])),
    )


def _items(iinf: bytes) -> Iterator[str]:
    """Types of the items, such as ``hvc1``, ``grid``, ``tmap`` and ``Exif``."""
    if len(iinf) < 6:
        return
    for name, content in _boxes(iinf[8 if iinf[0] else 6 :]):
        if name == "infe" and content[:1] in (b"\2", b"\3"):
            at = 8 if content[0] == 2 else 10
            yield content[at : at + 4].decode("latin-1")


def _associations(ipma: bytes) -> Iterator[tuple[int, list[int]]]:
    """Returns the number of each item and the indices of its properties, from 1."""
    version, wide = ipma[0], ipma[3] & 1
    (count,) = struct.unpack_from(">I", ipma, 4)
    at = 8
    for _ in range(min(count, 1 << 16)):
        (item,) = struct.unpack_from(">I" if version else ">H", ipma, at)
        at += 4 if version else 2
        number = ipma[at]
        at += 1
        indices = list(struct.unpack_from(f">{number}{'H' if wide else 'B'}", ipma, at))
        # The highest bit says that the property is essential.
        indices = [index & (0x7FFF if wide else 0x7F) for index in indices]
        at += number * (2 if wide else 1)
        yield int(item), indices
