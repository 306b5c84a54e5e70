"""Files and folders that are complete or absent, hashes, and locks."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from f2i_runtime.errors import UsageError

STAGING_PREFIX = ".f2i-staging-"


@contextlib.contextmanager
def atomic_directory(destination: Path, *, replace: bool = False) -> Iterator[Path]:
    """A staging folder beside ``destination`` that takes its name when the block ends well and is removed when it does not.

    With ``replace`` an existing folder is exchanged for the new one in one step where the kernel can (Linux, macOS), else in two renames.
    Folders left by a process that was killed are removed by the next call for the same destination.
    Raises UsageError when the destination exists and ``replace`` is false, or cannot be written.
    """
    destination = destination.absolute()
    if destination.exists() and not replace:
        raise UsageError(f"{destination}: it exists already; choose another folder or remove it")
    prefix = f"{STAGING_PREFIX}{destination.name}-"
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        for leftover in destination.parent.glob(f"{prefix}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        staging = Path(tempfile.mkdtemp(prefix=prefix, dir=destination.parent))
        staging.chmod(0o755)
    except OSError as e:
        raise UsageError(f"{destination}: cannot be written: {e.strerror}") from e
    try:
        yield staging
        _fsync_tree(staging)
        if destination.exists():
            _exchange(staging, destination)
        else:
            staging.rename(destination)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def atomic_file(destination: Path) -> Iterator[Path]:
    """A temporary path beside ``destination`` that replaces it when the block ends well and is removed when it does not."""
    destination = destination.absolute()
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"{STAGING_PREFIX}{destination.stem}-", suffix=destination.suffix, dir=destination.parent)
    except OSError as e:
        raise UsageError(f"{destination}: cannot be written: {e.strerror}") from e
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(destination)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make an output folder, and those above it. Raises UsageError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"{folder}: cannot be made: {e.strerror}; choose another --out") from e


def write_text(destination: Path, text: str) -> None:
    """Replace ``destination`` by a UTF-8 file with ``text``, in one step."""
    with atomic_file(destination) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(destination: Path, data: dict[str, Any]) -> None:
    """Replaces ``destination`` by a JSON file of ``data``, indented, in one step. Raises ValueError on NaN and infinity, which JSON cannot express."""
    write_text(destination, json.dumps(data, indent=1, allow_nan=False) + "\n")


@contextlib.contextmanager
def exclusive_lock(path: Path, *, busy: str, wait: bool = False) -> Iterator[None]:
    """Hold an advisory lock on ``path``, a file made for it and removed afterwards.

    When another process holds it: waits if ``wait``, else raises UsageError with ``busy``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError as e:
                raise UsageError(busy) from e
            # The holder before may have removed the file between our opening and locking it: then it guards nothing.
            if not _same_file(file.fileno(), path):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def cache_root() -> Path:
    """``$F2I_CACHE``, or f2i below the user's cache folder."""
    if configured := os.environ.get("F2I_CACHE"):
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "f2i"


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _fsync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders' names; afterwards ``new`` holds what was ``old``."""
    libc = ctypes.CDLL(None, use_errno=True)
    source, target = os.fsencode(new), os.fsencode(old)
    at_cwd, exchange = (-100, 2)  # AT_FDCWD and RENAME_EXCHANGE of Linux; RENAME_SWAP of macOS is 2 as well
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(source, target, exchange)
    elif hasattr(libc, "renameat2"):
        failed = libc.renameat2(at_cwd, source, at_cwd, target, exchange)
    else:
        failed, _ = -1, ctypes.set_errno(errno.ENOSYS)
    if failed:
        aside = new.with_name(f"{new.name}-old")
        old.rename(aside)
        new.rename(old)
        shutil.rmtree(aside, ignore_errors=True)
