"""What is staged goes away when its maker is dead, which a lock shows, and no sooner; and disks that have no locks."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import numpy as np
import pytest
from f2i_runtime import files, locks
from f2i_runtime.errors import PhotoError, UsageError
from f2i_runtime.files import FolderKind, atomic_directory, atomic_file, cache_root, write_text
from f2i_runtime.locks import LOCK_PREFIX, STAGING_PREFIX, claim, exclusive_lock, is_held, sweep
from f2i_runtime.photo.writer import PhotoWriter

ANY = FolderKind("any folder", lambda _: ("*",))
WRITER = """
import sys, time
from pathlib import Path
from f2i_runtime.files import atomic_directory
with atomic_directory(Path(sys.argv[1])) as staging:
    (staging / "half").write_text("x")
    print(staging, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path):
    """Starts processes that stage a folder and then wait."""
    started = []

    def start(name, *before):
        process = subprocess.Popen([*before, sys.executable, "-c", WRITER, str(tmp_path / name)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("destination", ["nano", "nano-int8", "nano-int8-2"])
def test_another_s_live_folder_stays_whatever_its_name(writer, tmp_path, destination):
    _, staging = writer("nano-int8")
    with atomic_directory(tmp_path / destination) as mine:
        (mine / "whole").write_text("x")
    sweep(tmp_path)
    assert os.path.isfile(os.path.join(staging, "half"))


def test_a_dead_one_is_swept_for_its_own_name_only(writer, tmp_path):
    process, staging = writer("nano-int8")
    process.send_signal(signal.SIGKILL)
    process.wait()
    with atomic_directory(tmp_path / "nano"):
        pass
    assert os.path.isdir(staging)
    with atomic_directory(tmp_path / "nano-int8"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["nano", "nano-int8"]


@pytest.mark.skipif(sys.platform != "linux", reason="process number spaces are Linux's")
def test_two_containers_that_share_a_folder(writer, tmp_path):
    """A writer in a process number space of its own, as in another container: its number is nobody's here."""
    probe = subprocess.run(["unshare", "--user", "--map-root-user", "--pid", "--fork", "true"], capture_output=True)
    before = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"] if probe.returncode == 0 else []
    _, staging = writer("model", *before)
    sweep(tmp_path)
    assert os.path.isfile(os.path.join(staging, "half"))


def test_names_with_signs_that_patterns_know(tmp_path):
    for name in ("a[1]", "*", "x" * 250):
        (tmp_path / f"{STAGING_PREFIX}{name[:40]}-0123456789abcdef").mkdir()
        with atomic_directory(tmp_path / name):
            pass
        assert os.listdir(tmp_path) == [name]
        (tmp_path / name).rmdir()


def test_a_claim_leaves_nothing(tmp_path):
    claimed = claim(tmp_path / "a")
    claimed.path.mkdir()
    assert sorted(os.listdir(tmp_path)) == sorted([claimed.path.name, claimed.path.name.replace(STAGING_PREFIX, LOCK_PREFIX)])
    claimed.release()
    assert os.listdir(tmp_path) == []


def test_the_export_cache_is_swept_by_locks_and_leaves_what_it_does_not_know(tmp_path, monkeypatch):
    from f2i_export.schedule import WORKING, sweep_cache

    monkeypatch.setenv("F2I_CACHE", str(tmp_path))
    (tmp_path / "working-2024-notes").mkdir()
    (tmp_path / f"{STAGING_PREFIX}{WORKING}-dead").mkdir()
    live = claim(tmp_path / WORKING)
    live.path.mkdir()
    sweep_cache()
    assert (tmp_path / "working-2024-notes").is_dir() and live.path.is_dir() and len(os.listdir(tmp_path)) == 3
    live.release()


@pytest.fixture(params=[errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def no_locks(request, monkeypatch):
    """A disk whose system refuses every lock."""

    def refuse(*_, **__):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(locks, "lock_descriptor", refuse)
    return os.strerror(request.param)


def test_a_disk_without_locks_is_written_all_the_same(no_locks, tmp_path):
    with atomic_directory(tmp_path / "folder") as staging:
        (staging / "a").write_text("x")
    write_text(tmp_path / "text", "x")
    with PhotoWriter(tmp_path / "a.png", 4, 4) as photo:
        photo.write(np.zeros((4, 4, 3), np.float32))
    with pytest.raises(PhotoError), PhotoWriter(tmp_path / "b.png", 4, 4):
        pass
    (tmp_path / f"{STAGING_PREFIX}folder-0").mkdir()
    sweep(tmp_path)  # nobody can tell whose it is
    assert sorted(os.listdir(tmp_path)) == [f"{STAGING_PREFIX}folder-0", "a.png", "folder", "text"]


def test_a_lock_that_cannot_be_is_refused_in_the_system_s_words(no_locks, tmp_path):
    with pytest.raises(UsageError, match=no_locks) as raised, exclusive_lock(tmp_path / "lock", busy="another export is writing"):
        pass
    assert "another export" not in str(raised.value) and os.listdir(tmp_path) == []


def test_an_error_while_writing_is_told_in_the_system_s_words(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(PhotoError, match=r"input/output error$"), PhotoWriter(tmp_path / "a.png", 1, 1) as photo:
        photo.write(np.zeros((1, 1, 3), np.float32))
    assert os.listdir(tmp_path) == []


def test_a_lock_is_the_kept_library_s(tmp_path):
    assert locks.lock_descriptor is filelock.lock_descriptor


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_link_is_followed_and_stays(tmp_path, kind):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "disk" / "real")
    for text in ("first", "second"):
        if kind == "file":
            write_text(link, text)
        else:
            with atomic_directory(link, replace=ANY) as staging:
                (staging / "a").write_text(text)
        read = link if kind == "file" else link / "a"
        assert link.is_symlink() and read.read_text() == text
    assert os.listdir(tmp_path / "disk") == ["real"] and sorted(os.listdir(tmp_path)) == ["disk", "link"]


def test_pipes_are_written_to_and_folders_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE, text=True)
    write_text(tmp_path / "pipe", "through")
    assert reader.communicate(timeout=20)[0] == "through" and (tmp_path / "pipe").is_fifo()
    with pytest.raises(UsageError, match="is a folder"), atomic_file(tmp_path):
        pass
    assert os.listdir(tmp_path) == ["pipe"]


def test_what_came_into_the_folder_meanwhile_stays(tmp_path):
    known = FolderKind("a folder of a", lambda _: ("a",))
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="b in it does not belong"), atomic_directory(tmp_path / "out", replace=known):
        (tmp_path / "out" / "b").write_text("mine")
    assert (tmp_path / "out" / "b").read_text() == "mine" and os.listdir(tmp_path) == ["out"]


def test_the_cache_is_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("F2I_CACHE", "~/x")
    assert cache_root() == tmp_path / "x"
    monkeypatch.delenv("F2I_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/y")
    assert cache_root() == tmp_path / "y" / "f2i"
    monkeypatch.setenv("F2I_CACHE", "~nobody-of-this-name/x")
    with pytest.raises(UsageError, match="F2I_CACHE"):
        cache_root()


def test_a_claim_is_held_until_its_maker_lets_go_or_dies(writer, tmp_path):
    own = claim(tmp_path / "mine")
    assert is_held(own.path)
    own.release()
    assert not is_held(own.path)
    process, staging = writer("nano")
    assert is_held(Path(staging))
    process.kill()
    process.wait()
    assert not is_held(Path(staging)) and not Path(staging.replace(STAGING_PREFIX, LOCK_PREFIX)).exists()
