"""Files and folders that are complete or absent; locks that hold."""

import itertools
import os
import subprocess
import sys

import pytest
from f2i_runtime.errors import UsageError
from f2i_runtime.files import FolderKind, atomic_directory, atomic_file, write_json
from f2i_runtime.locks import STAGING_PREFIX, exclusive_lock

ANY = FolderKind("any folder", lambda _: ("*",))


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RuntimeError), atomic_directory(out) as staging:
        (staging / "half").write_text("x")
        assert not out.exists()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_directory(out) as staging:
        (staging / "whole").write_text("x")
    assert [p.name for p in out.iterdir()] == ["whole"]
    with pytest.raises(UsageError, match="exists already"), atomic_directory(out):
        pass


def test_replacing_keeps_the_old_folder_until_the_new_one_is_whole(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("x")
    with pytest.raises(RuntimeError), atomic_directory(out, replace=ANY):
        raise RuntimeError
    assert (out / "old").exists()
    with atomic_directory(out, replace=ANY) as staging:
        (staging / "new").write_text("x")
    assert [p.name for p in out.iterdir()] == ["new"] and len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_process_left_is_swept(tmp_path):
    (tmp_path / f"{STAGING_PREFIX}out-dead").mkdir()
    with atomic_directory(tmp_path / "out"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_file_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert path.read_text() == '{\n "a": 1\n}\n' and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text().startswith("{")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot be written"), atomic_directory(tmp_path / "file" / "out"):
        pass
    with pytest.raises(UsageError, match="cannot be written"), atomic_file(tmp_path / "file" / "out"):
        pass


HOLD = """
import sys, time
from pathlib import Path
from f2i_runtime.locks import exclusive_lock

path, log, seconds = sys.argv[1:]
with exclusive_lock(Path(path), busy="", wait=True):
    began = time.monotonic()
    time.sleep(float(seconds))
    with open(log, "a") as file:
        file.write(f"{began} {time.monotonic()}\\n")
"""


def test_processes_take_turns_though_each_removes_the_lock_file(tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", HOLD, str(tmp_path / "lock"), str(log), "0.2"]
    processes = [subprocess.Popen(command) for _ in range(8)]
    assert [process.wait() for process in processes] == [0] * 8
    spans = sorted(tuple(map(float, line.split())) for line in log.read_text().splitlines())
    assert len(spans) == 8
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert not (tmp_path / "lock").exists()


def test_a_busy_lock_is_refused_at_once(tmp_path):
    with (
        exclusive_lock(tmp_path / "lock", busy=""),
        pytest.raises(UsageError, match="try later"),
        exclusive_lock(tmp_path / "lock", busy="try later"),
    ):
        pass
    assert os.listdir(tmp_path) == []
