"""Photos: every kind that is read and written, and what must be left behind when something goes wrong (nothing)."""

import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import pyvips
import skimage.data
from PIL import Image, ImageCms

from runtime_py.errors import MissingPackageError, PhotoError, UsageError
from runtime_py.photo import PhotoReader, PhotoWriter
from runtime_py.photo_files import MAX_HELD_BYTES, MAX_PIXELS
from runtime_py.photo_turn import TURNS

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def chelsea():
    return skimage.data.chelsea()  # uint8 (300, 451, 3)


def save(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


def read(path, step=50):
    with PhotoReader(path) as reader:
        return np.concatenate([reader.rows(y, min(y + step, reader.height)) for y in range(0, reader.height, step)])


def copy(source, out, scale=1, **options):
    """Nearest enlargement through reader and writer; returns the warnings of both."""
    with PhotoReader(source) as reader:
        with PhotoWriter(out, reader.width * scale, reader.height * scale, like=reader, **options) as writer:
            for y in range(reader.height):
                writer.write(reader.rows(y, y + 1).repeat(scale, 0).repeat(scale, 1))
        return reader.warnings + writer.warnings


@pytest.fixture
def lone(tmp_path):
    """A folder for outputs that must stay empty."""
    folder = tmp_path / "out"
    folder.mkdir()
    yield folder
    assert os.listdir(folder) == []


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
    with PhotoWriter(tmp_path / "a.png", 7, 1, bit_depth=bit_depth) as writer:
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


def with_alpha(chelsea):
    alpha = np.zeros(chelsea.shape[:2], np.uint8)
    alpha[:, 200:] = 255
    return np.dstack([chelsea, alpha])


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


# What is refused


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
from runtime_py.errors import PhotoError
from runtime_py.photo import PhotoReader
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
    run = subprocess.run(
        [sys.executable, "-c", CUT_SHORT, str(tmp_path / "a.jpg")], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert run.returncode == 0 and "was changed or removed" in run.stdout, (run.returncode, run.stderr)


# Outputs that cannot be, and writing that is interrupted


@pytest.mark.parametrize(
    "name, size, words",
    [
        ("a.heic", (8, 8), "write .avif or .jpg"),
        ("a.gif", (8, 8), "unknown format .gif"),
        ("a", (8, 8), "without suffix"),
        ("a.webp", (20_000, 8), "16383"),
        ("a.jpg", (70_000, 8), "65500"),
        ("no/such/folder/a.jpg", (8, 8), "create it first"),
    ],
)
def test_outputs_that_cannot_be(lone, name, size, words):
    with pytest.raises(PhotoError, match=words):
        PhotoWriter(lone / name, *size)


def test_options_that_cannot_be(lone):
    with pytest.raises(UsageError, match="JPEG cannot hold 16 bits"):
        PhotoWriter(lone / "a.jpg", 8, 8, bit_depth=16)
    with pytest.raises(UsageError, match="quality 0"):
        PhotoWriter(lone / "a.jpg", 8, 8, quality=0)


def test_the_photo_itself_is_no_output(tmp_path, chelsea):
    source = save(tmp_path / "a.png", chelsea)
    with PhotoReader(source) as reader, pytest.raises(PhotoError, match="is the photo being read"):
        PhotoWriter(source, 451, 300, like=reader)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing(lone, error):
    def fail():
        with PhotoWriter(lone / "a.jpg", 8, 8) as writer:
            writer.write(np.zeros((4, 8, 3), np.float32))
            raise error

    with pytest.raises(error):
        fail()


def test_missing_rows_and_nan_leave_nothing(lone):
    def write(*pieces):
        with PhotoWriter(lone / "a.jpg", 8, 8) as writer:
            for piece in pieces:
                writer.write(piece)

    half = np.zeros((4, 8, 3), np.float32)
    with pytest.raises(PhotoError, match="only 4 of its 8 rows"):
        write(half)
    with pytest.raises(PhotoError, match=r"rows 4 to 8 .* NaN"):
        write(half, np.where(np.eye(4, 8)[..., None] > 0, np.nan, half).astype(np.float32))
    with pytest.raises(UsageError, match=r"do(es)? not fit"):
        write(half, half, half)
    with pytest.raises(UsageError, match=r"do(es)? not fit"):
        write(half[:, :5])


KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from runtime_py.photo import PhotoWriter
with PhotoWriter(Path(sys.argv[1]), 64, 64) as writer:
    writer.write(np.zeros((32, 64, 3), np.float32))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_goes_with_the_next_photo(tmp_path):
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a.png")], cwd=root).returncode == -9
    [left] = os.listdir(tmp_path)
    assert left.startswith(".f2i-") and left.endswith(".spool")
    with PhotoWriter(tmp_path / "b.png", 4, 4) as living:
        assert left not in os.listdir(tmp_path)
        with PhotoWriter(tmp_path / "c.png", 4, 4) as other:
            other.write(np.zeros((4, 4, 3), np.float32))
        living.write(np.zeros((4, 4, 3), np.float32))
    assert sorted(os.listdir(tmp_path)) == ["b.png", "c.png"]


def test_an_older_output_survives_a_failure(tmp_path):
    out = tmp_path / "a.png"
    out.write_bytes(b"older")
    with pytest.raises(PhotoError, match="rows came"), PhotoWriter(out, 8, 8):
        pass
    assert out.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["a.png"]


FULL_DISK = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from runtime_py.errors import PhotoError
from runtime_py.photo import PhotoWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit, out = int(sys.argv[1]), Path(sys.argv[2])
try:
    with PhotoWriter(out, 512, 512) as writer:
        for piece in np.random.default_rng(0).random((8, 64, 512, 3), dtype=np.float32):
            writer.write(piece)
        # The spool fits; what is encoded from it does not.
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
except PhotoError as error:
    sys.exit(str(error))
"""


def test_no_room_for_the_encoded_file(lone):
    """A file-size limit stands in for a full disk: both fail in the middle of libvips' writing."""
    root = Path(__file__).parents[1]
    run = subprocess.run([sys.executable, "-c", FULL_DISK, "20000", str(lone / "a.png")], cwd=root, capture_output=True, text=True)
    assert run.returncode == 1
    assert "a.png" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_no_room_for_the_rows(lone, monkeypatch):
    def full(descriptor, offset, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(PhotoError, match=r"no room to write .* needs up to 2 MB"), PhotoWriter(lone / "a.jpg", 512, 512):
        pass


def test_a_folder_without_permission(lone, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(PhotoError, match="permission denied"), PhotoWriter(lone / "a.jpg", 8, 8):
        pass
    monkeypatch.undo()


def test_blocks_make_the_same_file(tmp_path, chelsea):
    source = save(tmp_path / "a.png", with_alpha(chelsea))
    copy(source, tmp_path / "rows.png")
    with PhotoReader(source) as reader, PhotoWriter(tmp_path / "blocks.png", 451, 300, like=reader) as writer:
        for y, bottom in ((0, 128), (128, 130), (130, 300)):
            band = reader.rows(y, bottom)
            for x, right in ((0, 200), (200, 201), (201, 451)):
                writer.write_block(y, x, band[:, x:right])
        with pytest.raises(UsageError, match="written as far as row 300, column 0"):
            writer.write_block(0, 0, band)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "blocks.png")), np.asarray(Image.open(tmp_path / "rows.png")))


@pytest.mark.parametrize("second", [(0, 0, (4, 4, 3)), (0, 4, (3, 4, 3)), (4, 4, (4, 4, 3)), (0, 4, (4, 5, 3)), (0, 4, (4, 4, 4))])
def test_blocks_that_do_not_follow(lone, second):
    y, x, shape = second
    with pytest.raises(UsageError, match="row 0, column 4"), PhotoWriter(lone / "a.png", 8, 8) as writer:
        writer.write_block(0, 0, np.zeros((4, 4, 3), np.float32))
        writer.write_block(y, x, np.zeros(shape, np.float32))


def test_large_spool_header_is_read_back(tmp_path):
    """Heights around the strip size, and one strip, whose offset is stored another way."""
    for height in (1, 63, 64, 65, 200):
        pixels = np.random.default_rng(height).random((height, 5, 3), dtype=np.float32)
        with PhotoWriter(tmp_path / "a.tif", 5, height, bit_depth=16) as writer:
            writer.write(pixels)
        assert np.abs(read(tmp_path / "a.tif") - pixels).max() < 1e-5
