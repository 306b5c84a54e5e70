"""A photo comes out as it looked: every way to say a turn, every block beside the picture, through every pair of formats."""

import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from f2i_runtime.errors import PhotoError
from f2i_runtime.photo import metadata
from f2i_runtime.photo.exif_block import build_exif, parse_exif
from f2i_runtime.photo.reader import PhotoReader
from f2i_runtime.photo.xmp_packet import Resized, correct_xmp, xmp_orientation
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from photo_blocks import exif_block, put_segments, quarters, save_blocks, save_turned, seen_corners, turned, xmp
from photo_copies import copy, read
from PIL import Image, ImageCms
from repository import ROOT

OUTPUTS = [".jpg", ".png", ".tif", ".webp", ".avif"]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def is_upright(out, stored, orientation):
    """The picture in ``out`` is the upright one, twice as large, and nothing in the file asks to turn it again."""
    wanted = turned(stored, orientation)
    with PhotoReader(out) as reader:
        pixels = reader.rows(0, reader.height) * 255
        assert reader.orientation == 1
        assert xmp_orientation(reader.metadata.get("xmp-data", b"")) == 1
        if reader.exif:
            exif = parse_exif(reader.exif)
            assert exif.number(exif.main, 0x0112) in (None, 1)
    assert pixels.shape == (2 * wanted.shape[0], 2 * wanted.shape[1], 3)
    assert np.abs(seen_corners(pixels) - seen_corners(wanted)).max() < 25


@pytest.mark.parametrize("how", ["irot", "exif", "both", "xmp"])
@pytest.mark.parametrize("kind", ["heic", "avif"])
def test_heif_is_turned_by_its_boxes_once(tmp_path, kind, how):
    stored = quarters()
    for orientation in range(1, 9):
        source = save_turned(tmp_path / f"a.{kind}", stored, kind, how, orientation)
        applied = orientation if how in ("irot", "both") else 1
        with PhotoReader(source) as reader:
            assert (reader.width, reader.height) == turned(stored, applied).shape[1::-1]
        for suffix in OUTPUTS:
            copy(source, tmp_path / f"out{suffix}", scale=2)
            is_upright(tmp_path / f"out{suffix}", stored, applied)


@pytest.mark.parametrize("how", ["exif", "xmp", "both", "exif against xmp"])
@pytest.mark.parametrize("kind", ["jpeg", "png", "tiff", "webp"])
def test_exif_turns_other_formats_and_xmp_where_exif_does_not(tmp_path, kind, how):
    stored = quarters()
    for orientation in range(1, 9):
        exif = exif_block(orientation if how != "xmp" else 1) if how != "xmp" else b""
        packet = xmp(b'tiff:Orientation="%d"' % (3 if "against" in how else orientation)) if how != "exif" else b""
        source = save_blocks(tmp_path / f"a.{kind}", stored, kind, exif, packet)
        for suffix in OUTPUTS:
            copy(source, tmp_path / f"out{suffix}", scale=2)
            # TIFF has a tag of its own for it, which is 1 where it is not written.
            is_upright(tmp_path / f"out{suffix}", stored, 1 if (kind, how) == ("tiff", "xmp") else orientation)


@pytest.mark.parametrize("suffix", OUTPUTS)
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "avif", "heic"])
def test_exif_is_true_of_the_new_picture(tmp_path, kind, suffix):
    block = exif_block(1, thumbnail=True, maker_notes=True, size=(56, 40))
    source = save_blocks(tmp_path / f"a.{kind}", quarters(), kind, block)
    warnings = copy(source, tmp_path / f"b{suffix}", scale=2)
    with PhotoReader(tmp_path / f"b{suffix}") as reader:
        block = reader.exif
    if suffix == ".tif":
        assert block is None and any("without EXIF" in w for w in warnings)
        return
    assert "left out: EXIF's thumbnail, maker notes" in warnings
    exif = parse_exif(block)
    assert not exif.thumbnail and 0x927C not in exif.photo and b"MakerNote" not in (tmp_path / f"b{suffix}").read_bytes()
    assert (exif.number(exif.photo, 0xA002), exif.number(exif.photo, 0xA003)) == (112, 80)
    assert (exif.number(exif.main, 0x0100), exif.number(exif.main, 0x0101)) == (112, 80)
    assert exif.main[0x010F].data == b"camera\0" and exif.gps[1].data[:1] == b"N"


@pytest.mark.parametrize("suffix", OUTPUTS)
def test_panorama_sizes_grow_with_the_picture(tmp_path, suffix):
    attributes = b'GPano:FullPanoWidthPixels="112" GPano:CroppedAreaLeftPixels="7" GPano:ProjectionType="equirectangular" xmpNote:HasExtendedXMP="AB"'
    elements = b"<tiff:ImageWidth>56</tiff:ImageWidth><exif:PixelYDimension>40</exif:PixelYDimension><dc:title>kept</dc:title>"
    source = save_blocks(tmp_path / "a.jpg", quarters(), "jpeg", packet=xmp(attributes, elements))
    copy(source, tmp_path / f"b{suffix}", scale=2)
    with PhotoReader(tmp_path / f"b{suffix}") as reader:
        packet = reader.metadata["xmp-data"]
    for words in (
        b'FullPanoWidthPixels="224"',
        b'CroppedAreaLeftPixels="14"',
        b"ImageWidth>112<",
        b"PixelYDimension>80<",
        b"<dc:title>kept<",
        b"equirect",
    ):
        assert words in packet
    assert b"HasExtendedXMP" not in packet


def test_regions_of_a_turned_photo_are_left_out(tmp_path):
    packet = xmp(b'GPano:FullPanoWidthPixels="112"', b"<dc:title>kept</dc:title>")
    source = save_blocks(tmp_path / "a.jpg", quarters(), "jpeg", exif_block(6), packet)
    warnings = copy(source, tmp_path / "b.jpg", scale=2)
    assert any("panorama sizes of a turned photo" in w for w in warnings)
    with PhotoReader(tmp_path / "b.jpg") as reader:
        assert b"GPano:Full" not in reader.metadata["xmp-data"] and b"kept" in reader.metadata["xmp-data"]


IPTC = b"".join(
    b"\x1c" + bytes(key) + len(value).to_bytes(2, "big") + value
    for key, value in (((1, 90), b"\x1b%G"), ((2, 5), b"title"), ((2, 131), b"L"), ((2, 202), b"preview"), ((3, 20), b"\0\x38"))
)
PHOTOSHOP = (
    b"Photoshop 3.0\0"
    + b"8BIM\x04\x0c\0\0"
    + struct.pack(">I", 8)
    + b"thumbnai"
    + b"8BIM\x04\x04\0\0"
    + struct.pack(">I", len(IPTC))
    + IPTC
)


@pytest.mark.parametrize("suffix", OUTPUTS)
def test_iptc_is_kept_where_there_is_a_place_for_it(tmp_path, suffix):
    source = save_blocks(tmp_path / "a.jpg", quarters(), "jpeg", iptc=PHOTOSHOP)
    warnings = copy(source, tmp_path / f"b{suffix}", scale=2)
    data = (tmp_path / f"b{suffix}").read_bytes()
    assert (b"title" in data) == (suffix == ".jpg") == ("left out: IPTC" not in warnings)
    assert b"thumbnai" not in data and b"preview" not in data and b"\x1c\x03\x14" not in data


@pytest.mark.parametrize(
    "mark, content, words",
    [
        (0xE2, b"MPF\0II*\0", "further pictures (MPF)"),
        (0xE2, b"urn:iso:std:iso:ts:21496:-1\0\0\0", "HDR gain map"),
        (0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 60, "left out: extended XMP"),
        (0xEB, b"JP\0\1\0\0\0\1", "left out: content credentials"),
        (0xFE, b"a note", "left out: comments and text notes"),
    ],
)
def test_what_else_a_jpeg_holds_is_said(tmp_path, mark, content, words):
    source = save_blocks(tmp_path / "a.jpg", quarters(), "jpeg")
    put_segments(source, mark, content)
    warnings = copy(source, tmp_path / "b.jpg", scale=2)
    assert sum(words in w for w in warnings) == 1
    assert content[:20] not in (tmp_path / "b.jpg").read_bytes()


@pytest.mark.parametrize("name", ["depthmap/", "container/", "camera/"])
def test_xmp_of_other_pictures_is_taken_out(tmp_path, name):
    more = f'xmlns:Other="http://ns.google.com/photos/1.0/{name}" Other:MotionPhoto="1"'.encode()
    source = save_blocks(tmp_path / "a.jpg", quarters(), "jpeg", packet=xmp(more, b"<dc:title>kept</dc:title>"))
    assert copy(source, tmp_path / "b.jpg", scale=2)
    with PhotoReader(tmp_path / "b.jpg") as reader:
        assert b"Other:Motion" not in reader.metadata["xmp-data"] and b"kept" in reader.metadata["xmp-data"]


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_blocks_over_64_kilobytes(tmp_path, kind):
    packet = xmp(b"", b"<dc:title>" + b"x" * 70_000 + b"</dc:title>")
    block = exif_block(more={0x010E: "d" * 40_000, 0x8298: "c" * 30_000})
    source = save_blocks(tmp_path / f"a.{kind}", quarters(), kind, block, packet)
    for suffix in (".png", ".webp", ".avif"):
        assert copy(source, tmp_path / f"b{suffix}") == ["left out: EXIF values of more than 8 KB"]
        with PhotoReader(tmp_path / f"b{suffix}") as reader:
            assert b"camera" in reader.exif and len(reader.metadata["xmp-data"]) > 70_000
    warnings = copy(source, tmp_path / "b.jpg")
    assert any("of XMP, which no JPEG can" in w for w in warnings) and "left out: EXIF values of more than 8 KB" in warnings
    assert read(tmp_path / "b.jpg").shape == (40, 56, 3)


def test_a_profile_of_many_segments_is_kept(tmp_path):
    large = SRGB + bytes(150_000)
    source = save_blocks(tmp_path / "a.png", quarters(), "png", icc=(len(large)).to_bytes(4, "big") + large[4:])
    for suffix in OUTPUTS:
        copy(source, tmp_path / f"b{suffix}")
        with PhotoReader(tmp_path / f"b{suffix}") as reader:
            assert len(reader.icc) == len(large)


@pytest.mark.parametrize("block", [b"", b"Exif\0\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"II*\0\x08\0\0\0\x01\0"])
def test_exif_that_cannot_be_read_raises_one_error(block):
    with pytest.raises(ValueError):
        build_exif(parse_exif(block))


@pytest.mark.parametrize("packet", [b"", b"<a", b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", b"\xff\xfe", b"<a b:c='1'/>"])
def test_xmp_that_cannot_be_read_is_left_out_and_said(tmp_path, packet):
    assert xmp_orientation(packet) == 1
    with pytest.raises(ValueError):
        correct_xmp(packet, Resized((1, 1), (2, 2)))
    if packet:
        source = save_blocks(tmp_path / "a.jpg", quarters(), "jpeg", packet=packet)
        assert "holds XMP that cannot be read: left out" in copy(source, tmp_path / "b.jpg")


TAGS = st.dictionaries(
    st.sampled_from([0x010E, 0x010F, 0x0110, 0x0131, 0x8298, 0x9C9B, 0x4746]),
    st.text("abc é", max_size=40).map(lambda t: t or "x"),
    max_size=4,
)
PACKETS = st.one_of(
    st.just(b""),
    st.binary(min_size=1, max_size=80),
    st.builds(
        lambda turn, width, pano: xmp(
            b'tiff:Orientation="%d" GPano:FullPanoWidthPixels="%d"' % (turn, pano), b"<tiff:ImageWidth>%d</tiff:ImageWidth>" % width
        ),
        *(st.integers(0, 9), st.integers(0, 10**6), st.integers(0, 10**6)),
    ),
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["jpeg", "png", "webp", "tiff", "avif", "heic"]),
    st.sampled_from(OUTPUTS),
    st.integers(0, 9),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    TAGS,
    PACKETS,
    st.integers(0, 400),
)
def test_random_blocks_keep_the_picture_upright_and_never_lie_about_its_size(kind, suffix, turn, has, tags, packet, cut):
    thumbnail, maker_notes, damaged = has
    with tempfile.TemporaryDirectory() as name:
        folder, stored = Path(name), quarters()
        block = exif_block(turn, thumbnail, maker_notes, size=(56, 40), more=tags)
        if damaged and kind != "tiff":
            block = block[: max(14, len(block) - cut)]
        if kind in ("heic", "avif"):
            block = exif_block(1, thumbnail, maker_notes, size=(56, 40), more=tags)  # their encoders would make irot of another
        if kind in ("heic", "avif") and b"Orientation" in packet:
            packet = b""
        try:
            source = save_blocks(folder / f"a.{kind}", stored, kind, block, packet)
        except (ValueError, OSError, struct.error, SyntaxError):
            return  # the other library's writer does not take it
        with PhotoReader(source) as reader:
            applied = reader.orientation
        if not damaged and kind not in ("heic", "avif") and turn in range(1, 9):
            assert applied == turn
        out = folder / f"out{suffix}"
        if kind == "tiff" and turn not in range(1, 9):  # libtiff refuses the whole file
            with pytest.raises(PhotoError, match=r'Bad value \d for "Orientation" tag'):
                copy(source, out, scale=2)
            return
        copy(source, out, scale=2)
        is_upright(out, stored, applied)
        with PhotoReader(out) as reader:
            true = (reader.width, reader.height)
            if reader.exif:
                exif = parse_exif(reader.exif)
                assert not exif.thumbnail and 0x927C not in exif.photo
                for directory, tag, size in (
                    (exif.main, 0x0100, 0),
                    (exif.main, 0x0101, 1),
                    (exif.photo, 0xA002, 0),
                    (exif.photo, 0xA003, 1),
                ):
                    assert exif.number(directory, tag) in (None, true[size])
            if b"ImageWidth" in reader.metadata.get("xmp-data", b""):
                assert b"<tiff:ImageWidth>%d<" % true[0] in reader.metadata["xmp-data"]
        with Image.open(out) as image:
            assert image.size == true


def test_the_document_says_what_the_code_does():
    assert (ROOT / "docs" / "metadata.md").read_text(encoding="utf-8") == metadata.as_markdown()
    assert len({block.key for block in metadata.BLOCKS}) == len(metadata.BLOCKS)
