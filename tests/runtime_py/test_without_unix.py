"""What Windows lacks is hidden from a child process, which imports everything that reads, runs and judges bundles, and uses it.

This is not Windows: its file locking and its rules about open files are not tested here.
"""

import subprocess
import sys

import psutil
import pytest
from f2i_runtime import memory
from f2i_runtime.photo.samples import sample_photo

WINDOWS = """
import importlib.abc, os, signal, sys
import psutil  # which has a file for each system
MISSING = {"fcntl", "resource", "termios", "pwd", "grp", "tty", "pty", "syslog"}
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
for name in MISSING:
    sys.modules.pop(name, None)
for owner, names in (
    (os, "fork pread preadv pwrite pwritev posix_fallocate killpg setsid mkfifo sched_getaffinity getpgid O_NONBLOCK"),
    (signal, "SIGKILL SIGHUP SIGALRM"),
):
    for name in names.split():
        if hasattr(owner, name):
            delattr(owner, name)
"""
IMPORTS = """
import importlib, pkgutil, f2i, f2i.cli, f2i_runtime
for found in pkgutil.walk_packages(f2i_runtime.__path__, "f2i_runtime."):
    if "conformance" not in found.name and ".run_" not in found.name and not found.name.endswith(("predict", "judge.source_program")):
        importlib.import_module(found.name)
"""
PHOTO = """
from pathlib import Path
import numpy as np
from f2i_runtime.photo.writer import PhotoWriter
from f2i_runtime.photo.whole_photo import read_photo
folder = Path(sys.argv[1])
with PhotoWriter(folder / "a.png", 8, 8) as writer:
    writer.write(np.full((8, 8, 3), 0.5, np.float32))
assert read_photo(folder / "a.png").shape == (8, 8, 3)
"""


def child(script, *arguments):
    command = [sys.executable, "-W", "ignore", "-c", WINDOWS + script, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def test_everything_that_runs_a_bundle_can_be_imported():
    child(IMPORTS)


def test_a_photo_is_written_and_read(tmp_path):
    child(PHOTO, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "BUNDLE"),
        ("inspect", "BUNDLE"),
        ("run", "BUNDLE", "PHOTO", "PHOTOS", "--out", "OUT", "--target", "onnx"),
        ("validate", "BUNDLE", "--target", "onnx", "--precision", "fp32", "--num-tiles", "1", "--num-photos", "1"),
        ("validate", "BUNDLE", "--target", "coreml", "--precision", "fp32", "--num-tiles", "1", "--num-photos", "1"),
    ],
    ids=lambda arguments: " ".join(arguments[:4]),
)
def test_commands_that_use_a_bundle_run(arguments, tiny_bundle, tmp_path):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    for path in (tmp_path / "a.jpg", tmp_path / "photos" / "b.png"):
        Image.open(sample_photo("chelsea.png")).crop((0, 0, 40, 30)).save(path)
    words = {"BUNDLE": tiny_bundle, "PHOTO": tmp_path / "a.jpg", "PHOTOS": tmp_path / "photos", "OUT": tmp_path / "out"}
    given = [str(words.get(a, a)) for a in arguments]
    child(f"sys.argv = ['f2i', *{given!r}]\nimport f2i.cli\nf2i.cli.main()")
    if arguments[0] == "run":
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_x2.jpg", "b_x2.png", "f2i-done.jsonl"]


def test_memory_is_counted_without_proc_and_resource(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    with_resource = memory.peak_rss()
    monkeypatch.setitem(sys.modules, "resource", None)
    assert with_resource > 1 << 20
    assert memory.peak_rss() > psutil.Process().memory_info().rss // 2
