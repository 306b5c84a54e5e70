"""Files and folders that are complete or absent, which folders may be replaced, and hashes."""

from __future__ import annotations

import contextlib
import ctypes
import fnmatch
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from f2i_runtime.errors import UsageError, system_message
from f2i_runtime.locks import claim, remove_tree, sweep


@contextlib.contextmanager
def atomic_directory(destination: Path, *, replace: FolderKind | None = None) -> Iterator[Path]:
    """A staging folder beside ``destination`` that takes its name when the block ends well and is removed when it does not.

    With ``replace`` a folder of that kind is exchanged for the new one in one step where the kernel can (Linux, macOS), else in two renames. Where the
    destination is a link, the folder that it leads to is written. What a process that died left staged for the same destination is removed.
    Raises UsageError when the destination exists and ``replace`` is None, is not to be replaced (:func:`check_replaceable`), or cannot be written.
    """
    destination = destination.resolve()
    if replace is not None:
        check_replaceable(destination, replace)
    elif os.path.lexists(destination):
        raise UsageError(f"{destination}: it exists already; choose another folder or remove it")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        sweep(destination.parent, destination.name)
        claimed = claim(destination)
        try:
            claimed.path.mkdir()
        except BaseException:
            claimed.release()
            raise
    except OSError as e:
        raise UsageError(f"{destination}: cannot be written: {system_message(e)}") from e
    try:
        yield claimed.path
        _sync_tree(claimed.path)
        if replace is not None and destination.exists():
            check_replaceable(destination, replace)
            _exchange(claimed.path, destination)
        else:
            claimed.path.rename(destination)
    finally:
        claimed.release()


@contextlib.contextmanager
def atomic_file(destination: Path) -> Iterator[Path]:
    """A temporary path beside ``destination`` that replaces it when the block ends well and is removed when it does not.

    Where the destination is a link, the file that it leads to is replaced; a pipe or a device such as ``/dev/stdout`` is written to and stays.
    """
    given, destination = destination, destination.resolve()
    if destination.is_dir():
        raise UsageError(f"{given}: it is a folder; expected the name of a file")
    stream = given.exists() and not given.is_file()
    if stream:
        destination = Path(tempfile.gettempdir(), f"stream{given.suffix}")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        sweep(destination.parent, destination.name)
        claimed = claim(destination, destination.suffix)
        try:
            claimed.path.touch(exist_ok=False)
        except BaseException:
            claimed.release()
            raise
    except OSError as e:
        raise UsageError(f"{destination}: cannot be written: {system_message(e)}") from e
    try:
        yield claimed.path
        if stream:
            with given.open("wb") as sink:
                sink.write(claimed.path.read_bytes())
        else:
            claimed.path.replace(destination)
    finally:
        claimed.release()


@dataclass(frozen=True)
class FolderKind:
    """What a command writes to a folder, so that such a folder can be told from what the user put there."""

    name: str
    """For people: ``a bundle``."""
    files: Callable[[Path], Sequence[str] | None]
    """Patterns of the files that belong to a folder, relative and with ``/``, as :func:`fnmatch.fnmatchcase` takes them; None for one that is not of the kind."""


def check_replaceable(folder: Path, kind: FolderKind) -> None:
    """Raises UsageError unless nothing is at ``folder``, or an empty folder, or one that is of the kind and holds nothing else but the system's own litter.

    The only place that decides whether a folder may be replaced or removed.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise UsageError(f"{folder}: it exists and is not a folder; choose another folder")
    found = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if not path.is_dir() or path.is_symlink()]
    held = [name for name in found if not is_litter(name)]
    if not held:
        return
    patterns = kind.files(folder)
    if patterns is None:
        raise UsageError(f"{folder}: it exists and is not {kind.name}; choose another folder")
    foreign = next((name for name in held if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)), None)
    if foreign is not None:
        raise UsageError(f"{folder}: {foreign} in it does not belong to {kind.name}; move it away or choose another folder")


def remove_folder(folder: Path, kind: FolderKind) -> None:
    """Removes a folder of the kind, if there is one. Raises UsageError as :func:`check_replaceable`."""
    check_replaceable(folder, kind)
    if folder.is_dir():
        remove_tree(folder)


_LITTER = frozenset({".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini", ".localized", ".directory"})


def is_litter(name: str) -> bool:
    """Returns whether a file of this name or relative path is one that systems put into any folder: ``.DS_Store``, ``Thumbs.db``, ``desktop.ini``, ``._x``."""
    last = PurePosixPath(name).name
    return last.lower() in _LITTER or last.startswith("._")


def make_folder(folder: Path) -> None:
    """Make an output folder, and those above it. Raises UsageError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"{folder}: cannot be made: {system_message(e)}; choose another --out") from e


def write_text(destination: Path, text: str) -> None:
    """Replace ``destination`` by a UTF-8 file with ``text``, in one step."""
    with atomic_file(destination) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(destination: Path, data: dict[str, Any]) -> None:
    """Replaces ``destination`` by a JSON file of ``data``, indented, in one step. Raises ValueError on NaN and infinity, which JSON cannot express."""
    write_text(destination, json.dumps(data, indent=1, allow_nan=False) + "\n")


def cache_root() -> Path:
    """Returns ``$F2I_CACHE``, in which ``~`` is the user's home, or f2i below the user's cache folder. Raises UsageError where there is no home."""
    configured = os.environ.get("F2I_CACHE")
    try:
        if configured:
            return Path(configured).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "f2i"
    except RuntimeError as e:
        raise UsageError(f"the cache's folder is not known: {e}; set F2I_CACHE to a folder that can be written") from e


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's content, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync_file(path: Path) -> None:
    """Returns when a file is on the disk. Windows wants it open for writing. Raises OSError."""
    with path.open("r+b" if os.name == "nt" else "rb") as file:
        os.fsync(file.fileno())


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            sync_file(path)


def _exchange(new: Path, old: Path) -> None:
    """Swaps two folders' names; afterwards ``new`` holds what was ``old``, or nothing."""
    if not _exchanged(os.fsencode(new), os.fsencode(old)):
        aside = new.with_name(f"{new.name}-old")
        old.rename(aside)
        new.rename(old)
        remove_tree(aside)


def _exchanged(source: bytes, target: bytes) -> bool:
    """Returns whether the kernel swapped the names of two folders in one step."""
    at_cwd, exchange = (-100, 2)  # AT_FDCWD and RENAME_EXCHANGE of Linux; RENAME_SWAP of macOS is 2 as well
    if os.name == "nt":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        return not libc.renamex_np(source, target, exchange)
    return hasattr(libc, "renameat2") and not libc.renameat2(at_cwd, source, at_cwd, target, exchange)
