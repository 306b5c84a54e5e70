"""Colour that a file declares without a profile: what is shown afterwards is what was shown before."""

import io
import struct

import numpy as np
import pytest
from f2i_runtime.photo.declared_color import from_code_points, icc_profile, standard_range
from f2i_runtime.photo.reader import PhotoReader
from photo_blocks import exif_block, put_chunk, quarters, save_blocks, seen_corners
from photo_copies import copy, read
from PIL import Image, ImageCms

OUTPUTS = [".jpg", ".png", ".tif", ".webp", ".avif"]


def declared(path, kind, primaries, transfer):
    """The quarters, declared by code points."""
    pixels = quarters()
    if kind == "png":
        save_blocks(path, pixels, "png")
        put_chunk(path, b"cICP", bytes([primaries, transfer, 0, 1]))
        return path
    if kind == "heic":
        save_blocks(path, pixels, "heic")
    else:
        Image.fromarray(pixels).save(path, "AVIF", quality=95, subsampling="4:4:4")
    data = path.read_bytes()
    at = data.index(b"colrnclx") + 8
    path.write_bytes(data[:at] + struct.pack(">HH", primaries, transfer) + data[at + 4 :])
    return path


def shown(path):
    """The picture's middle-of-quarter colours on an sRGB screen, by Little CMS."""
    with Image.open(path) as image:
        rgb = image.convert("RGB")
        if profile := image.info.get("icc_profile"):
            rgb = ImageCms.profileToProfile(rgb, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"))
    pixels = np.asarray(rgb, dtype=float)
    height, width = pixels.shape[:2]
    return np.array([pixels[y, x] for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)])


@pytest.mark.parametrize("suffix", OUTPUTS)
@pytest.mark.parametrize("kind", ["heic", "avif", "png"])
def test_display_p3_becomes_a_profile(tmp_path, kind, suffix):
    source = declared(tmp_path / f"a.{kind}", kind, 12, 13)
    with PhotoReader(source) as reader:
        stored = reader.rows(0, 40)
        assert "Display P3".encode("utf-16-be") in reader.icc
    copy(source, tmp_path / f"b{suffix}")
    assert np.abs(seen_corners(read(tmp_path / f"b{suffix}")) - seen_corners(stored)).max() < 0.04, (
        "values stay, their meaning is written beside them"
    )
    with Image.open(tmp_path / f"b{suffix}") as image:
        assert image.info["icc_profile"] == icc_profile(from_code_points(12, 13))
    # Colours inside sRGB, checked by another implementation: Display P3 of (220, 40, 40) is a stronger red than sRGB's.
    assert shown(tmp_path / f"b{suffix}")[0, 0] > 232


@pytest.mark.parametrize("points", [(1, 13), (1, 1), (2, 2), (1, 6)])
@pytest.mark.parametrize("kind", ["heic", "avif", "png"])
def test_what_says_srgb_gets_no_profile(tmp_path, kind, points):
    with PhotoReader(declared(tmp_path / f"a.{kind}", kind, *points)) as reader:
        assert reader.icc is None and reader.warnings == []


@pytest.mark.parametrize("transfer, white", [(16, 0.5807), (18, 0.75)])
@pytest.mark.parametrize("kind", ["heic", "avif", "png"])
def test_hdr_becomes_standard_range_and_says_so(tmp_path, kind, transfer, white):
    source = declared(tmp_path / f"a.{kind}", kind, 9, transfer)
    with PhotoReader(source) as reader:
        converted = reader.rows(0, 40)
        assert any("converted to standard range" in w for w in reader.warnings)
        assert reader.icc == icc_profile(from_code_points(9, transfer))
    coded = quarters()[10, 10] / 255
    expected = standard_range(from_code_points(9, transfer), coded, 1.0)
    assert np.abs(converted[10, 10] - expected).max() < 0.1
    curve = standard_range(from_code_points(9, transfer), np.linspace(0, 1, 1000), 1.0)
    assert curve[0] == 0 and curve[-1] <= 1 and np.all(np.diff(curve) > 0)
    assert 0.9 < standard_range(from_code_points(9, transfer), np.array([white]), 1.0)[0] < 0.97, "diffuse white stays near white"


def test_code_points_that_are_not_known_are_said(tmp_path):
    with PhotoReader(declared(tmp_path / "a.png", "png", 200, 13)) as reader:
        assert any("not known" in w for w in reader.warnings) and reader.icc is None


def test_png_gamma_and_chromaticities(tmp_path):
    p3 = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)
    source = save_blocks(tmp_path / "a.png", quarters(), "png")
    put_chunk(source, b"cHRM", struct.pack(">8I", *(round(v * 100_000) for v in p3)))
    put_chunk(source, b"gAMA", struct.pack(">I", 45455))
    copy(source, tmp_path / "b.jpg")
    assert shown(tmp_path / "b.jpg")[0, 0] > 232
    plain = save_blocks(tmp_path / "c.png", quarters(), "png")
    put_chunk(plain, b"gAMA", struct.pack(">I", 45455))
    with PhotoReader(plain) as reader:
        assert reader.icc is None
    linear = save_blocks(tmp_path / "d.png", quarters(), "png")
    put_chunk(linear, b"gAMA", struct.pack(">I", 100_000))
    copy(linear, tmp_path / "e.png")
    assert np.abs(shown(tmp_path / "e.png")[1, 1] - 229) < 3, "linear 200 of 255 is 229 in sRGB"


@pytest.mark.parametrize("suffix", OUTPUTS)
def test_adobe_rgb_of_cameras_is_carried(tmp_path, suffix):
    exif = exif_block()
    from f2i_runtime.photo.exif_block import build_exif, parse_exif

    block = parse_exif(exif)
    block.set_number(block.photo, 0xA001, 2)
    source = save_blocks(tmp_path / "a.jpg", quarters(), "jpeg", b"Exif\0\0" + build_exif(block))
    copy(source, tmp_path / f"b{suffix}")
    with Image.open(tmp_path / f"b{suffix}") as image:
        assert "Adobe RGB (1998)".encode("utf-16-be") in image.info["icc_profile"]
    assert shown(tmp_path / f"b{suffix}")[1, 0] < 10, "its green is out of sRGB's reach"


def test_a_profile_is_before_code_points_in_heif_and_after_them_in_png(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = save_blocks(tmp_path / "a.png", quarters(), "png", icc=srgb)
    put_chunk(source, b"cICP", bytes([12, 13, 0, 1]))
    with PhotoReader(source) as reader:
        assert reader.icc == icc_profile(from_code_points(12, 13))
    heic = save_blocks(tmp_path / "a.heic", quarters(), "heic", icc=srgb)
    with PhotoReader(heic) as reader:
        assert reader.icc == srgb


@pytest.mark.parametrize("suffix", OUTPUTS)
def test_a_profile_for_other_channels_is_left_out_and_said(tmp_path, suffix):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(quarters()[..., 0]).save(tmp_path / "a.jpg", icc_profile=srgb)
    assert "left out: the ICC profile" in copy(tmp_path / "a.jpg", tmp_path / f"b{suffix}")
    assert read(tmp_path / f"b{suffix}").shape == (40, 56, 3)
