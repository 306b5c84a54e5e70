"""Photos that are refused: damaged, absurd, of another kind, or changed while they are read."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import pyvips
from f2i_runtime.errors import MissingPackageError, PhotoError
from f2i_runtime.photo.formats import MAX_HELD_BYTES, MAX_PIXELS
from f2i_runtime.photo.reader import PhotoReader
from f2i_runtime.photo.writer import PhotoWriter
from photo_copies import copy, read, save
from PIL import Image


def jpeg_bytes(array):
    buffer = io.BytesIO()
    # A thumbnail-like end mark inside EXIF must not pass for the end of the photo.
    Image.fromarray(array).save(buffer, "JPEG", exif=b"Exif\0\0" + b"\xff\xd9" * 8)
    return buffer.getvalue()


def encoded(array, kind):
    if kind == "JPEG":
        return jpeg_bytes(array)
    if kind == "AVIF":
        return pyvips.Image.new_from_array(array).copy(interpretation="srgb").heifsave_buffer(compression="av1")
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_truncated_files_are_refused_at_once(tmp_path, chelsea, kind, part):
    data = encoded(chelsea, kind)
    path = tmp_path / "t.img"
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(PhotoError, match=f"truncated or damaged {kind}") as caught:
        PhotoReader(path)
    assert "\n" not in str(caught.value)


def test_damage_that_a_decoder_goes_on_past_is_said(tmp_path, chelsea):
    data = bytearray(encoded(chelsea, "JPEG"))
    # Scan data missing in the middle, end mark in place.
    del data[len(data) // 2 : -2]
    (tmp_path / "a.jpg").write_bytes(bytes(data))
    assert any("past damaged data" in w for w in copy(tmp_path / "a.jpg", tmp_path / "b.jpg"))
    assert copy(save(tmp_path / "good.jpg", chelsea), tmp_path / "b.jpg") == []


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_damage_found_while_reading_leaves_nothing(tmp_path, chelsea, lone, kind):
    data = bytearray(encoded(chelsea, kind))
    if kind == "TIFF":
        data = data[: len(data) // 2]
    else:
        data[len(data) // 2 : len(data) // 2 + 5000] = bytes(5000)
    source = tmp_path / "t.img"
    source.write_bytes(bytes(data))
    with pytest.raises(PhotoError, match=kind) as caught:
        copy(source, lone / "out.png")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("zero.jpg", b"", "is empty"),
        ("text.png", b"hello, this is no photo\n" * 100, "looks like text"),
        ("gif.jpg", b"GIF89a" + bytes(100), "looks like GIF"),
        ("noise.jpg", bytes(range(256)), "no image format"),
        ("short.jpg", b"\xff\xd8\xff", "truncated or damaged JPEG"),
        ("short.png", b"\x89PNG\r\n\x1a\n", "truncated or damaged PNG"),
        ("short.webp", b"RIFF\x00\x00\x00\x00WEBP", "WEBP"),
        ("short.tif", b"II*\x00", "TIFF"),
        ("short.avif", struct.pack(">I8s4s", 16, b"ftypavif", bytes(4)), "AVIF"),
    ],
)
def test_what_is_no_photo(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(PhotoError, match=words) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(PhotoError, match="does not exist"):
        PhotoReader(tmp_path / "missing.jpg")
    with pytest.raises(PhotoError, match="is a folder"):
        PhotoReader(tmp_path)


def test_absurd_sizes_name_the_limit(tmp_path):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(PhotoError, match=f"60000 x 60000 .*{MAX_PIXELS / 1e6:.0f} megapixels"):
        PhotoReader(tmp_path / "bomb.png")


@pytest.mark.parametrize("interlaced", [False, True])
def test_what_must_be_held_whole_is_bounded_in_bytes(tmp_path, interlaced):
    """A 16-bit RGBA picture of 200 megapixels: row by row it is read, at once it would take more than a phone photo in 8 bits may."""
    black = pyvips.Image.black(8, 8, bands=4).cast("ushort").copy(interpretation="rgb16")
    data = bytearray(black.pngsave_buffer(interlace=interlaced))
    data[16:24] = struct.pack(">II", 20_000, 10_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    if not interlaced:
        assert PhotoReader(tmp_path / "a.png").width == 20_000
        return
    with pytest.raises(PhotoError, match=f"takes 1600 MB; expected at most {MAX_HELD_BYTES / 1e6:.0f} MB"):
        PhotoReader(tmp_path / "a.png")


@pytest.mark.parametrize(
    "tags, words",
    [
        ({0xC612: b"\x01\x06\0\0"}, r"camera's raw file \(DNG\)"),
        ({0xC612: b"\x01\x06\0\0", 0x00FE: 1}, r"camera's raw file \(DNG\)"),
        ({0x00FE: 1}, "begins with a preview"),
    ],
)
@pytest.mark.parametrize("order", ["II", "MM"])
def test_raw_files_in_tiff_clothing_are_refused(tmp_path, chelsea, tags, words, order):
    path = tmp_path / "raw.dng"
    Image.fromarray(chelsea[:60, :80]).save(path, "TIFF", tiffinfo=tags, big_tiff=False)
    if order == "MM":
        with Image.open(path) as image:
            from PIL import TiffImagePlugin

            info = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"MM")
            info.update(tags)
            image.convert("RGB").save(tmp_path / "mm.dng", "TIFF", tiffinfo=info)
            path = tmp_path / "mm.dng"
    with pytest.raises(PhotoError, match=words) as caught:
        PhotoReader(path)
    assert "develop it in a raw converter" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "head", [b"FUJIFILMCCD-RAW 0201", b"IIRO\x08\0\0\0", b"IIU\0\x08\0\0\0", b"\0\0\0\x18ftypcrx \0\0\0\1", b"II*\0\x10\0\0\0CR\2\0"]
)
def test_other_raw_files_are_named(tmp_path, head):
    (tmp_path / "raw.x").write_bytes(
        head + struct.pack("<H", 0).rjust(200, b"\0") if b"CR" not in head else head + struct.pack("<HI", 0, 0) + bytes(100)
    )
    with pytest.raises(PhotoError, match="camera's raw file") as caught:
        PhotoReader(tmp_path / "raw.x")
    assert "\n" not in str(caught.value)


def test_a_tiff_of_several_sizes_is_no_raw_file(tmp_path, chelsea):
    pyvips.Image.new_from_array(chelsea).tiffsave(str(tmp_path / "p.tif"), pyramid=True, subifd=True, tile=True)
    with PhotoReader(tmp_path / "p.tif") as reader:
        assert (reader.width, reader.height) == (451, 300)


def test_other_samples_are_refused(tmp_path):
    pyvips.Image.black(8, 8, bands=3).cast("float").write_to_file(str(tmp_path / "f.tif"))
    with pytest.raises(PhotoError, match="samples of type float"):
        PhotoReader(tmp_path / "f.tif")
    pyvips.Image.black(8, 8, bands=7).write_to_file(str(tmp_path / "m.tif"))
    with pytest.raises(PhotoError, match="7 channels"):
        PhotoReader(tmp_path / "m.tif")


def test_heic_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "a.heic"
    path.write_bytes(struct.pack(">I4s4sI", 16, b"ftyp", b"heic", 0))
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(MissingPackageError, match="pillow_heif"):
        PhotoReader(path)


def test_photo_that_changes_is_noticed(tmp_path, chelsea, lone):
    source = save(tmp_path / "a.png", chelsea)

    def change_half_way():
        with PhotoReader(source) as reader, PhotoWriter(lone / "out.png", 451, 300, like=reader) as writer:
            writer.write(reader.rows(0, 100))
            save(source, chelsea[::-1].copy())
            writer.write(reader.rows(100, 300))

    with pytest.raises(PhotoError, match="was changed or removed"):
        change_half_way()


CUT_SHORT = """
import os, sys
from pathlib import Path
from f2i_runtime.errors import PhotoError
from f2i_runtime.photo.reader import PhotoReader
path = Path(sys.argv[1])
with PhotoReader(path) as reader:
    reader.rows(0, 64)
    os.truncate(path, 20_000)
    try:
        for y in range(64, reader.height, 64):
            reader.rows(y, min(y + 64, reader.height))
    except PhotoError as error:
        print(error)
"""


def test_photo_that_is_cut_short_while_it_is_read_is_noticed(tmp_path):
    """In a process of its own: where a decoder has the file mapped, this ends the process."""
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", quality=95)
    run = subprocess.run([sys.executable, "-c", CUT_SHORT, str(tmp_path / "a.jpg")], capture_output=True, text=True)
    assert run.returncode == 0 and "was changed or removed" in run.stdout, (run.returncode, run.stderr)
