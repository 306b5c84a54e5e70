"""XMP packets: what they say about the size, the turn and the other pictures of the photo that they came from, corrected or taken out.

Format: XMP specification part 1 (ISO 16684-1): a property is an attribute or an element of an ``rdf:Description``, named by its namespace.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal
from xml.dom import minidom
from xml.parsers.expat import ExpatError

TIFF, EXIF = "http://ns.adobe.com/tiff/1.0/", "http://ns.adobe.com/exif/1.0/"
_PANORAMA = "http://ns.google.com/photos/1.0/panorama/"
_NOTE, _XMP = "http://ns.adobe.com/xmp/note/", "http://ns.adobe.com/xap/1.0/"
_REGIONS, _PEOPLE = "http://www.metadataworkinggroup.com/schemas/regions/", "http://ns.microsoft.com/photo/1.2/"
_DIMENSIONS = "http://ns.adobe.com/xap/1.0/sType/Dimensions#"

Change = Literal["upright", "width", "height", "scaled", "turned away", "left out"]
_CHANGES: dict[tuple[str, str], Change] = {
    (TIFF, "Orientation"): "upright",
    (TIFF, "ImageWidth"): "width",
    (TIFF, "ImageLength"): "height",
    (EXIF, "PixelXDimension"): "width",
    (EXIF, "PixelYDimension"): "height",
    **{
        (_PANORAMA, name): "scaled"
        for name in (
            *("FullPanoWidthPixels", "FullPanoHeightPixels", "CroppedAreaImageWidthPixels", "CroppedAreaImageHeightPixels"),
            *("CroppedAreaLeftPixels", "CroppedAreaTopPixels", "LargestValidInteriorRectLeft", "LargestValidInteriorRectTop"),
            *("LargestValidInteriorRectWidth", "LargestValidInteriorRectHeight"),
        )
    },
    (EXIF, "SubjectArea"): "left out",
    (EXIF, "SubjectLocation"): "left out",
    (_XMP, "Thumbnails"): "left out",
    (_NOTE, "HasExtendedXMP"): "left out",
    # Rectangles in the stored picture's own directions: right as long as it was not turned.
    (_REGIONS, "Regions"): "turned away",
    (_PEOPLE, "RegionInfo"): "turned away",
}
_LEFT_OUT = (
    "http://ns.adobe.com/hdr-gain-map/",
    "http://ns.apple.com/HDRGainMap/",
    "http://ns.apple.com/pixeldatainfo/",
    "http://ns.google.com/photos/1.0/container/",
    "http://ns.google.com/photos/1.0/image/",
    "http://ns.google.com/photos/1.0/depthmap/",
    "http://ns.google.com/photos/1.0/focus/",
    "http://ns.google.com/photos/1.0/audio/",
    "http://ns.google.com/photos/1.0/camera/",
    "http://ns.google.com/photos/dd/1.0/",
)
"""Namespaces, by how they begin, of what belongs to other pictures, sounds and videos in the file, which the output has not."""


@dataclass(frozen=True)
class Resized:
    """What became of the picture: old size upright and new size, px, and the orientation 1 to 8 that was applied."""

    old: tuple[int, int]
    new: tuple[int, int]
    orientation: int = 1


def xmp_orientation(packet: bytes) -> int:
    """Returns ``tiff:Orientation`` of a packet, 1 to 8; 1 where it has none or cannot be read."""
    try:
        document = _parse(packet)
    except ValueError:
        return 1
    for node in _properties(document):
        if (node.namespaceURI, node.localName) == (TIFF, "Orientation"):
            text = _text(node).strip()
            return int(text) if text in ("1", "2", "3", "4", "5", "6", "7", "8") else 1
    return 1


def correct_xmp(packet: bytes, resized: Resized) -> tuple[bytes, list[str]]:
    """Returns the packet as it is true of the enlarged, upright picture, and the names of the properties that were taken out. Raises ValueError."""
    document = _parse(packet)
    gone = []
    for node in list(_properties(document)):
        namespace, name = node.namespaceURI or "", node.localName or ""
        change: Change | None = "left out" if namespace.startswith(_LEFT_OUT) else _CHANGES.get((namespace, name))
        if (namespace, name) == (_PANORAMA, name) and resized.orientation != 1:
            change = "turned away"
        if change == "left out" or (change == "turned away" and resized.orientation != 1):
            gone.append(f"{node.prefix}:{name}" if node.prefix else name)
            _remove(node)
        elif change is not None and change != "turned away":
            _set_text(node, _value(change, _text(node), resized))
        elif namespace == _DIMENSIONS and name in ("w", "h"):
            _set_text(node, str(resized.new[name == "h"]))
    return document.toxml(encoding="utf-8").removeprefix(b'<?xml version="1.0" encoding="utf-8"?>'), sorted(set(gone))


def _value(change: Change, text: str, resized: Resized) -> str:
    if change == "upright":
        return "1"
    if change in ("width", "height"):
        return str(resized.new[change == "height"])
    try:
        return str(round(float(text) * resized.new[0] / resized.old[0]))
    except (ValueError, OverflowError):
        return text


def _parse(packet: bytes) -> minidom.Document:
    # A document type could name files, and entities that grow without end.
    if b"<!" in packet.replace(b"<!--", b""):
        raise ValueError("declarations, which XMP has not")
    try:
        return minidom.parseString(packet.strip(b"\0 \t\r\n\xef\xbb\xbf"))
    except (ExpatError, ValueError, LookupError) as e:
        raise ValueError(f"no XML: {e}") from e


def _properties(document: minidom.Document) -> Iterator[minidom.Element | minidom.Attr]:
    """Every element and attribute."""
    stack: list[Any] = [document]
    while stack:
        current = stack.pop()
        if isinstance(current, minidom.Element):
            yield current
            yield from current.attributes.values()
        stack += reversed(current.childNodes)


def _text(node: minidom.Element | minidom.Attr) -> str:
    if isinstance(node, minidom.Attr):
        return str(node.value)
    return "".join(child.data for child in node.childNodes if isinstance(child, minidom.Text))


def _set_text(node: minidom.Element | minidom.Attr, text: str) -> None:
    if isinstance(node, minidom.Attr):
        node.value = text
        return
    while node.firstChild is not None:
        node.removeChild(node.firstChild)
    document = node.ownerDocument
    if document is not None:
        node.appendChild(document.createTextNode(text))


def _remove(node: minidom.Element | minidom.Attr) -> None:
    if isinstance(node, minidom.Attr):
        if node.ownerElement is not None:
            node.ownerElement.removeAttributeNode(node)
    elif node.parentNode is not None:
        node.parentNode.removeChild(node)
