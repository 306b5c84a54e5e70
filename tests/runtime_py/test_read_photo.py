"""Photos: every kind that is read and written."""

import os

import numpy as np
import pytest
import pyvips
from f2i_runtime.errors import UsageError
from f2i_runtime.photo.reader import PhotoReader
from f2i_runtime.photo.rotate import TURNS
from f2i_runtime.photo.writer import Encoding, PhotoWriter
from photo_copies import copy, read, save, with_alpha
from PIL import Image, ImageCms

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_lossless_files_read_exactly(tmp_path, chelsea, suffix):
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    pixels = read(save(tmp_path / f"a.{suffix}", chelsea, **options))
    assert pixels.dtype == np.float32
    assert np.array_equal(np.round(pixels * 255), chelsea)
    assert pixels.max() <= 1.0


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_reads_as_pillow_does(tmp_path, chelsea, progressive):
    path = save(tmp_path / "a.jpg", chelsea, quality=90, progressive=progressive)
    assert np.abs(read(path) * 255 - np.asarray(Image.open(path))).max() <= 2.5


def test_avif_reads_and_writes(tmp_path, chelsea):
    source = save(tmp_path / "a.png", chelsea)
    copy(source, tmp_path / "a.avif")
    copy(tmp_path / "a.avif", tmp_path / "b.avif", bit_depth=10)
    with PhotoReader(tmp_path / "b.avif") as reader:
        assert (reader.format, reader.bit_depth) == ("avif", 10)
        assert np.abs(reader.rows(0, 300) * 255 - chelsea).mean() < 2.5


def test_ten_bit_white_is_one(tmp_path):
    white = pyvips.Image.new_from_array(np.full((16, 16, 3), 65535, np.uint16)).copy(interpretation="rgb16")
    white.heifsave(str(tmp_path / "w.avif"), compression="av1", bitdepth=10, lossless=True)
    assert np.all(read(tmp_path / "w.avif") == 1.0)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp", ".avif"])
def test_written_files_hold_the_rows(tmp_path, chelsea, suffix):
    out = tmp_path / f"out{suffix}"
    assert copy(save(tmp_path / "a.png", chelsea), out, scale=2) == []
    assert set(os.listdir(tmp_path)) == {"a.png", out.name}
    written = read(out) * 255
    difference = np.abs(written - chelsea.repeat(2, 0).repeat(2, 1))
    assert difference.mean() < (0.01 if suffix in (".png", ".tif") else 3.0)
    assert out.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("bit_depth", [8, 16])
def test_values_are_clipped_and_rounded(tmp_path, bit_depth):
    white = 255 if bit_depth == 8 else 65535
    values = np.array([-1.0, 0.0, 0.4 / white, 0.6 / white, 0.5, 1.0, 7.0], dtype=np.float32)
    with PhotoWriter(tmp_path / "a.png", 7, 1, encoding=Encoding(bit_depth=bit_depth)) as writer:
        writer.write(np.repeat(values[None, :, None], 3, axis=2))
    written = pyvips.Image.new_from_file(str(tmp_path / "a.png")).numpy()[0, :, 0]
    assert written.tolist() == [0, 0, 0, 1, round(white / 2), white, white]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_kept(tmp_path, suffix):
    deep = np.random.default_rng(0).integers(0, 65536, (40, 30, 3)).astype(np.uint16)
    source, out = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    pyvips.Image.new_from_array(deep).copy(interpretation="rgb16").write_to_file(str(source))
    assert copy(source, out) == []
    assert np.array_equal(pyvips.Image.new_from_file(str(out)).numpy(), deep)
    assert any("holds 8 bits of the photo's 16" in w for w in copy(source, tmp_path / "c.jpg"))


def test_grey_stays_grey(tmp_path, chelsea):
    grey = chelsea[:, :, 1]
    source = save(tmp_path / "g.png", grey)
    with PhotoReader(source) as reader:
        assert reader.is_grey
        pixels = reader.rows(0, 10)
    assert np.array_equal(np.round(pixels * 255), np.repeat(grey[:10, :, None], 3, axis=2))
    copy(source, tmp_path / "out.png")
    written = Image.open(tmp_path / "out.png")
    assert written.mode == "L"
    assert np.array_equal(np.asarray(written), grey)


def test_palette_and_one_bit(tmp_path, chelsea):
    Image.fromarray(chelsea).quantize(16).save(tmp_path / "p.png")
    assert np.array_equal(np.round(read(tmp_path / "p.png") * 255), np.asarray(Image.open(tmp_path / "p.png").convert("RGB")))
    Image.fromarray(chelsea).convert("1").save(tmp_path / "1.png")
    assert set(np.unique(read(tmp_path / "1.png"))) == {0.0, 1.0}


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_becomes_srgb(tmp_path, chelsea, suffix):
    Image.fromarray(chelsea).convert("CMYK").save(tmp_path / f"c.{suffix}")
    with PhotoReader(tmp_path / f"c.{suffix}") as reader:
        assert reader.rows(0, 20).shape == (20, 451, 3)
        assert any("CMYK" in w for w in reader.warnings)
        assert reader.icc
    # Without a profile the conversion is a guess, yet light stays light.
    red = np.corrcoef(read(tmp_path / f"c.{suffix}")[..., 0].ravel(), chelsea[..., 0].ravel())[0, 1]
    assert red > 0.95


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_alpha_is_enlarged_apart(tmp_path, chelsea, suffix):
    source = save(tmp_path / "a.png", with_alpha(chelsea))
    with PhotoReader(source) as reader:
        assert reader.has_alpha
        assert reader.alpha_rows(0, 5).shape == (5, 451)
        assert np.array_equal(np.round(reader.rows(0, 5) * 255), chelsea[:5])
    copy(source, tmp_path / f"b{suffix}", scale=2)
    written = np.asarray(Image.open(tmp_path / f"b{suffix}"))
    assert written.shape == (600, 902, 4)
    assert np.all(written[:, :396, 3] == 0)
    assert np.all(written[:, 404:, 3] == 255)
    if suffix == ".png":
        assert np.array_equal(written[..., :3], chelsea.repeat(2, 0).repeat(2, 1))


def test_grey_with_alpha(tmp_path, chelsea):
    Image.fromarray(with_alpha(chelsea)).convert("LA").save(tmp_path / "la.png")
    copy(tmp_path / "la.png", tmp_path / "out.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out.png")), np.asarray(Image.open(tmp_path / "la.png")))


def test_jpeg_puts_alpha_on_white(tmp_path, chelsea):
    warnings = copy(save(tmp_path / "a.png", with_alpha(chelsea)), tmp_path / "b.jpg")
    assert any("transparent parts become white" in w for w in warnings)
    assert np.all(np.asarray(Image.open(tmp_path / "b.jpg"))[:, :190] > 250)


@pytest.mark.parametrize("size", [(300, 451), (7, 300), (1, 1), (256, 512)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_reset(tmp_path, orientation, size):
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x0110] = orientation, "camera"
    source, out = save(tmp_path / "a.png", pixels, exif=exif), tmp_path / "b.png"
    transpose, flip_rows, flip_columns = TURNS[orientation]
    upright = pixels.transpose(1, 0, 2) if transpose else pixels
    upright = upright[::-1] if flip_rows else upright
    upright = upright[:, ::-1] if flip_columns else upright
    from PIL import ImageOps

    assert np.array_equal(np.asarray(ImageOps.exif_transpose(Image.open(source))), upright)
    assert np.array_equal(np.round(read(source, step=70) * 255), upright)
    copy(source, out)
    written = Image.open(out)
    assert np.array_equal(np.asarray(written), upright)
    assert (written.getexif().get(0x0112), written.getexif().get(0x0110)) == (1, "camera")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif"])
def test_profile_and_exif_are_kept(tmp_path, chelsea, suffix):
    exif = Image.Exif()
    exif[0x0110] = "camera"
    source = save(tmp_path / "a.jpg", chelsea, icc_profile=SRGB, exif=exif)
    warnings = copy(source, tmp_path / f"b{suffix}")
    with PhotoReader(tmp_path / f"b{suffix}") as reader:
        assert reader.icc == SRGB
        assert (reader.exif is None) == (suffix == ".tif")
    assert any("without EXIF" in w for w in warnings) == (suffix == ".tif")


def test_gain_map_and_pages_are_said(tmp_path, chelsea):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r hdrgm:Version="1.0"/></x:xmpmeta>'
    save(tmp_path / "hdr.jpg", chelsea, xmp=xmp)
    warnings = copy(tmp_path / "hdr.jpg", tmp_path / "out.jpg")
    assert any("gain map" in w for w in warnings)
    assert b"hdrgm" not in (tmp_path / "out.jpg").read_bytes()
    pages = [Image.fromarray(chelsea), Image.fromarray(chelsea[::-1].copy())]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    with PhotoReader(tmp_path / "pages.tif") as reader:
        assert reader.warnings == ["holds 2 pictures or pages: only the first is upscaled"]
        assert np.array_equal(np.round(reader.rows(0, 300) * 255), chelsea)


def test_one_pixel(tmp_path):
    for name in ("a.png", "a.jpg", "a.webp"):
        source = save(tmp_path / name, np.full((1, 1, 3), 128, np.uint8))
        copy(source, tmp_path / f"out-{name}", scale=2)
        assert read(tmp_path / f"out-{name}").shape == (2, 2, 3)


def test_names_that_libvips_would_take_for_options(tmp_path, chelsea):
    source = save(tmp_path / "a[page=3].png", chelsea)
    copy(source, tmp_path / "b[Q=1].png")
    assert np.array_equal(np.round(read(tmp_path / "b[Q=1].png") * 255), chelsea)


def test_rows_overlap_but_never_go_back(tmp_path, chelsea):
    with PhotoReader(save(tmp_path / "a.jpg", chelsea)) as reader:
        first, second = reader.rows(0, 64), reader.rows(32, 96)
        assert np.array_equal(first[32:], second[:32])
        skipped = reader.rows(200, 210)
        with pytest.raises(UsageError, match="has been let go of"):
            reader.rows(199, 220)
        with pytest.raises(UsageError, match="are not in a photo of 300 rows"):
            reader.rows(290, 301)
    assert np.array_equal(skipped, read(tmp_path / "a.jpg")[200:210])
