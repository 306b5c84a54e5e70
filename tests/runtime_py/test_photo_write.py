"""Outputs that cannot be, and writing that is interrupted: what must be left behind then is nothing."""

import os
import subprocess
import sys

import numpy as np
import pytest
from f2i_runtime.errors import PhotoError, UsageError
from f2i_runtime.photo.reader import PhotoReader
from f2i_runtime.photo.writer import Encoding, PhotoWriter
from photo_copies import copy, read, save, with_alpha
from PIL import Image


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
        PhotoWriter(lone / "a.jpg", 8, 8, encoding=Encoding(bit_depth=16))
    with pytest.raises(UsageError, match="quality 0"):
        PhotoWriter(lone / "a.jpg", 8, 8, encoding=Encoding(quality=0))


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
from f2i_runtime.photo.writer import PhotoWriter
with PhotoWriter(Path(sys.argv[1]), 64, 64) as writer:
    writer.write(np.zeros((32, 64, 3), np.float32))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_goes_with_the_next_photo(tmp_path):
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a.png")]).returncode == -9
    left = os.listdir(tmp_path)
    assert left and all(name.startswith(".f2i-") and name.endswith(".spool") for name in left)
    with PhotoWriter(tmp_path / "b.png", 4, 4) as living:
        assert not set(left) & set(os.listdir(tmp_path))
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
from f2i_runtime.errors import PhotoError
from f2i_runtime.photo.writer import PhotoWriter
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
    run = subprocess.run([sys.executable, "-c", FULL_DISK, "20000", str(lone / "a.png")], capture_output=True, text=True)
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
        with PhotoWriter(tmp_path / "a.tif", 5, height, encoding=Encoding(bit_depth=16)) as writer:
            writer.write(pixels)
        assert np.abs(read(tmp_path / "a.tif") - pixels).max() < 1e-5
