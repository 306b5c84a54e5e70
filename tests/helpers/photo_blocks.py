"""Photos with blocks beside their picture: turned in every way that a file can say, with thumbnails, maker notes, panoramas, IPTC and declared colours."""

import io
import struct
import zlib

import numpy as np
import pillow_heif
import pyvips
from PIL import ExifTags, Image

CORNERS = ((220, 40, 40), (40, 200, 60), (50, 60, 220), (230, 220, 60))
"""Colours of the quarters, row by row."""
HEAD = (
    b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""'
)
NAMES = (
    b' xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"'
    b' xmlns:GPano="http://ns.google.com/photos/1.0/panorama/" xmlns:xmpNote="http://ns.adobe.com/xmp/note/"'
)
TAIL = b'</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'


def quarters(width=56, height=40):
    """uint8 (height, width, 3) in four colours."""
    top = np.repeat([CORNERS[0], CORNERS[1]], (width + 1) // 2, axis=0)[:width]
    bottom = np.repeat([CORNERS[2], CORNERS[3]], (width + 1) // 2, axis=0)[:width]
    half = height // 2
    return np.concatenate([np.repeat(top[None], half, 0), np.repeat(bottom[None], height - half, 0)]).astype(np.uint8)


def turned(pixels, orientation):
    """The upright picture of stored ``pixels``, by Pillow."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(pixels)
    image.info["exif"] = exif.tobytes()
    sink = io.BytesIO()
    image.save(sink, "PNG", exif=exif)
    from PIL import ImageOps

    return np.asarray(ImageOps.exif_transpose(Image.open(sink)))


def seen_corners(pixels):
    """Mean colours of the quarters' middles."""
    height, width = pixels.shape[:2]
    spots = [(y, x) for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    return np.array([pixels[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3).mean(0) for y, x in spots])


def xmp(attributes=b"", elements=b""):
    return HEAD + NAMES + (b" " + attributes if attributes else b"") + b">" + elements + TAIL


def exif_block(orientation=1, thumbnail=False, maker_notes=False, size=None, more=None):
    """A block in little-endian order with what phones write."""
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Orientation] = "camera", orientation
    photo = exif.get_ifd(ExifTags.IFD.Exif)
    if size:
        photo[0xA002], photo[0xA003] = size
        exif[0x0100], exif[0x0101] = size
    if maker_notes:
        photo[0x927C] = b"MakerNote" * 20
    exif.get_ifd(ExifTags.IFD.GPSInfo)[1] = "N"
    for tag, value in (more or {}).items():
        exif[tag] = value
    block = exif.tobytes()[6:]
    if thumbnail:
        sink = io.BytesIO()
        Image.fromarray(quarters(16, 12)).save(sink, "JPEG")
        block = _with_thumbnail(block, sink.getvalue())
    return b"Exif\0\0" + block


def _with_thumbnail(block, picture):
    order = "<" if block[:2] == b"II" else ">"
    (first,) = struct.unpack_from(f"{order}I", block, 4)
    (count,) = struct.unpack_from(f"{order}H", block, first)
    block = bytearray(block + b"\0" * (len(block) % 2))
    struct.pack_into(f"{order}I", block, first + 2 + 12 * count, len(block))
    at = len(block) + 2 + 12 * 3 + 4
    entries = [(0x0103, 3, 1, 6), (0x0201, 4, 1, at), (0x0202, 4, 1, len(picture))]
    block += struct.pack(f"{order}H", len(entries))
    for tag, kind, length, value in entries:
        block += struct.pack(f"{order}HHI", tag, kind, length) + (
            struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value)
        )
    return bytes(block + bytes(4) + picture)


def save_blocks(path, pixels, kind, exif=b"", packet=b"", iptc=b"", icc=b""):
    """A file of format ``kind`` with these blocks as they are, through libvips for what Pillow does not write."""
    image = Image.fromarray(pixels)
    options = {"exif": exif} if exif else {}
    if icc:
        options["icc_profile"] = icc
    if kind == "jpeg":
        image.save(path, "JPEG", quality=95, subsampling=0, **options, **({"xmp": packet} if packet else {}))
        if iptc:
            put_segments(path, 0xED, iptc)
    elif kind == "png":
        image.save(path, "PNG", **options)
        if packet:
            put_chunk(path, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)
    elif kind == "webp":
        image.save(path, "WEBP", lossless=True, **options, **({"xmp": packet} if packet else {}))
    elif kind == "tiff":
        tags = {700: packet} if packet else {}
        orientation = Image.Exif()
        if exif:
            orientation.load(exif)
            if 0x0112 in orientation:
                tags[0x0112] = orientation[0x0112]
        image.save(path, "TIFF", tiffinfo=tags, **({"icc_profile": icc} if icc else {}))
    elif kind == "avif":
        picture = pyvips.Image.new_from_array(pixels).copy(interpretation="srgb")
        for name, value in (("exif-data", exif), ("xmp-data", packet), ("icc-profile-data", icc)):
            if value:
                picture.set_type(pyvips.GValue.blob_type, name, value)
        picture.heifsave(str(path), compression="av1", Q=90, subsample_mode="off")
    else:
        _save_heic(path, pixels, exif, packet, icc)
    return path


def _save_heic(path, pixels, exif, packet, icc, **options):
    heif = pillow_heif.from_pillow(Image.fromarray(pixels))
    for name, value in (("exif", exif), ("xmp", packet), ("icc_profile", icc)):
        if value:
            heif[0].info[name] = value
    heif.save(path, quality=95, chroma=444, **options)


def put_segments(path, mark, *contents):
    """Add JPEG segments after the first marker."""
    data = path.read_bytes()
    more = b"".join(struct.pack(">BBH", 0xFF, mark, len(c) + 2) + c for c in contents)
    path.write_bytes(data[:2] + more + data[2:])


def put_chunk(path, name, content):
    """Add a PNG chunk after the header."""
    data = path.read_bytes()
    chunk = struct.pack(">I4s", len(content), name) + content + struct.pack(">I", zlib.crc32(name + content))
    path.write_bytes(data[:33] + chunk + data[33:])


def swap(path, old, new):
    """Change bytes of one length for others of the same; the old ones must be there."""
    data = path.read_bytes()
    assert len(old) == len(new) and old in data, f"{old!r} is not in {path}"
    path.write_bytes(data.replace(old, new))


def _short(tag, value):
    return (struct.pack("<HHIHH", tag, 3, 1, value, 0), struct.pack(">HHIHH", tag, 3, 1, value, 0))


def save_turned(path, pixels, kind, how, orientation):
    """A HEIC or AVIF whose turn is said by ``irot`` (and ``imir``), ``exif``, ``both``, or ``xmp``."""
    box = orientation if how in ("irot", "both") else 1
    packet = xmp(b'tiff:Orientation="%d"' % (orientation if kind == "avif" else 1)) if how == "xmp" else b""
    if kind == "heic":
        # The encoder makes irot of EXIF's orientation; what EXIF says is then put right.
        _save_heic(path, pixels, exif_block(box), packet, b"")
        wanted = orientation if how in ("exif", "both") else 1
        if box != wanted:
            swap(path, *_found(path, _short(0x0112, box), _short(0x0112, wanted)))
        if packet and orientation != 1:
            swap(path, b'tiff:Orientation="1"', b'tiff:Orientation="%d"' % orientation)
        return path
    exif = Image.Exif()
    exif[0x0112], exif[0x0113], exif[0x010F] = box, orientation if how in ("exif", "both") else 1, "camera"
    Image.fromarray(pixels).save(path, "AVIF", quality=95, subsampling="4:4:4", exif=exif, **({"xmp": packet} if packet else {}))
    swap(path, *_found(path, _short(0x0113, exif[0x0113]), _short(0x0112, exif[0x0113])))
    return path


def _found(path, olds, news):
    data = path.read_bytes()
    return next((old, new) for old, new in zip(olds, news, strict=True) if old in data)
