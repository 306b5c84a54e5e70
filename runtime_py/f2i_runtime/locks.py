"""Locks that the system takes back when their holder dies, and names beside a destination that only their maker uses.

A process number says nothing about who is alive: containers that share a folder see each other's as dead, and numbers are used again. A lock does. It
is ``flock`` on Linux and macOS and ``LockFileEx`` on Windows, by way of the package filelock; a disk may have neither.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import lock_descriptor

from f2i_runtime.errors import UsageError, system_message

STAGING_PREFIX = ".f2i-staging-"
LOCK_PREFIX = ".f2i-lock-"
_NAME_LENGTH = 40
"""So much of the destination's name is in the name of what is staged for it: a name may have 255 bytes in all."""


@contextlib.contextmanager
def exclusive_lock(path: Path, *, busy: str, wait: bool = False) -> Iterator[None]:
    """Holds a lock on ``path``, a file made for it and removed afterwards.

    When another process holds it: waits if ``wait``, else raises UsageError with ``busy``. Raises UsageError, too, where the disk has no locks or the file
    cannot be made, with what the system said.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _take(path, wait=wait)
    except OSError as e:
        raise UsageError(f"{path}: cannot be locked: {system_message(e)}; choose a folder on a disk that can be locked") from e
    if descriptor is None:
        raise UsageError(busy)
    try:
        yield
    finally:
        _let_go(path, descriptor)


@dataclass(frozen=True)
class Claim:
    """A path beside a destination that no other process touches until it is released. Nothing is there at first."""

    path: Path
    lock: Path
    descriptor: int | None
    """The lock's; None where the disk has no locks: then nobody sweeps, either."""

    def release(self) -> None:
        """Removes what is still at the path, and lets go of it."""
        try:
            remove_tree(self.path)
        finally:
            if self.descriptor is not None:
                _let_go(self.lock, self.descriptor)


def claim(destination: Path, suffix: str = "") -> Claim:
    """Returns a new path beside ``destination``, that ends in ``suffix``; nothing is there yet. The folder must exist."""
    key = f"{destination.name[:_NAME_LENGTH]}-{secrets.token_hex(8)}{suffix}"
    path, lock = destination.with_name(STAGING_PREFIX + key), destination.with_name(LOCK_PREFIX + key)
    descriptor = None
    # A disk without locks, or a folder that cannot be written: whoever then makes the file or folder itself hears the reason.
    with contextlib.suppress(OSError):
        descriptor = _take(lock, wait=True)
    return Claim(path, lock, descriptor)


def is_held(claimed: Path) -> bool:
    """Returns whether the maker of a claim, whose path this is, still holds it; also where that cannot be found out. The lock of a dead one is removed."""
    lock = claimed.with_name(LOCK_PREFIX + claimed.name.removeprefix(STAGING_PREFIX))
    if not lock.exists():
        return False
    try:
        descriptor = _take(lock, wait=False)
    except OSError:
        return True
    if descriptor is None:
        return True
    _let_go(lock, descriptor)
    return False


def sweep(folder: Path, name: str | None = None) -> None:
    """Removes what processes that died left staged in ``folder``: for the destination ``name``, or for any. What is in use or in doubt stays."""
    with contextlib.suppress(OSError):
        entries = os.listdir(folder)
        keys = {e.removeprefix(p) for e in entries for p in (STAGING_PREFIX, LOCK_PREFIX) if e.startswith(p)}
        for key in keys:
            if name is None or key.rpartition("-")[0] == name[:_NAME_LENGTH]:
                _sweep_one(folder, key)


def _sweep_one(folder: Path, key: str) -> None:
    lock = folder / (LOCK_PREFIX + key)
    # Another user's, or on a disk without locks.
    with contextlib.suppress(OSError):
        descriptor = _take(lock, wait=False)
        if descriptor is not None:
            try:
                remove_tree(folder / (STAGING_PREFIX + key))
            finally:
                _let_go(lock, descriptor)


def remove_tree(path: Path) -> None:
    """Removes a file, or a folder as far as the system lets it; a link is removed, not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _take(path: Path, *, wait: bool) -> int | None:
    """Returns a descriptor of the file at ``path``, made if need be, that holds its lock; None when another process holds it. Raises OSError."""
    while True:
        made = False
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            made = True
        except FileExistsError:
            try:
                descriptor = os.open(path, os.O_RDWR)
            except FileNotFoundError:
                continue
        try:
            held = lock_descriptor(descriptor, blocking=wait)
            # The holder before may have removed the file between our opening and locking it: then it guards nothing.
            if held and _same_file(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            if made:
                path.unlink(missing_ok=True)
            raise
        os.close(descriptor)
        if not held:
            return None


def _let_go(path: Path, descriptor: int) -> None:
    """Removes a lock's file before letting go of it, so that whoever waits for it takes a new one. Windows removes no open file, so there it comes after."""
    if os.name == "nt":
        os.close(descriptor)
        with contextlib.suppress(OSError):
            path.unlink()
        return
    try:
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
