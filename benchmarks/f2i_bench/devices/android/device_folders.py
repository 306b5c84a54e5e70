"""Folders on a device: who made one, whether its maker lives, and what broken runs left.

A device's disk can hold no lock of this computer's, and a process number says nothing to another computer, or container. So whoever makes a folder holds a
lock in its cache here, and the folder's name says which cache, and which lock. A maker is dead when its own cache's lock can be taken.
"""

from __future__ import annotations

import contextlib
import secrets
import shlex
from collections.abc import Iterator
from pathlib import Path

from f2i_runtime.errors import UsageError
from f2i_runtime.files import atomic_file, cache_root
from f2i_runtime.locks import STAGING_PREFIX, claim, exclusive_lock, is_held

from f2i_bench.devices.android.adb import DeviceError, Phone

PREFIX = "f2i-bench-"
CLAIMED = "device"
"""What the locks in the cache are claimed for."""
UNLOCKED = "unlocked"
"""Stands for a cache whose disk has no locks: nobody can tell that such a folder's maker is dead."""
OLD_SECONDS = 24 * 3600
"""A folder of another computer's is removed when nothing runs in it and it has not changed for so long."""


@contextlib.contextmanager
def remote_folder(phone: Phone, parent: str) -> Iterator[str]:
    """A new folder on the device; afterwards what ran in it is ended and the folder removed. A device that is gone by then is swept next time."""
    owner = cache_identity()
    held = claim(cache_root() / CLAIMED)
    remote = f"{parent}/{PREFIX}{owner if held.descriptor is not None else UNLOCKED}-{held.path.name.removeprefix(STAGING_PREFIX)}"
    try:
        phone.shell(f"mkdir -p {shlex.quote(remote)}")
        try:
            yield remote
        finally:
            with contextlib.suppress(DeviceError):
                _remove(phone, remote)
    finally:
        held.release()


def end_command(remote: str) -> str:
    """Returns the command that ends what runs in a folder."""
    quoted = shlex.quote(remote)
    return f"[ -f {quoted}/pid ] && {{ kill -9 -$(cat {quoted}/pid) || kill -9 $(cat {quoted}/pid); }} 2>/dev/null; true"


def sweep_device(phone: Phone, parent: str) -> None:
    """Remove what broken runs left on a device. Folders of this cache whose maker is dead go, with whatever runs in them.

    Others' stay, unless nothing runs in them and they are old: a run of another computer's may be between two of its programs.
    """
    mine = f"{PREFIX}{cache_identity()}-"
    for folder in phone.shell(f"ls -d {shlex.quote(parent)}/{PREFIX}* 2>/dev/null; true").splitlines():
        name, quoted = folder.rpartition("/")[2], shlex.quote(folder)
        if name.startswith(mine):
            if not is_held(cache_root() / f"{STAGING_PREFIX}{name.removeprefix(mine)}"):
                _remove(phone, folder)
            continue
        idle = f"{{ ! [ -f {quoted}/pid ] || ! kill -0 $(cat {quoted}/pid) 2>/dev/null; }}"
        old = f"[ $(( $(date +%s) - $(stat -c %Y {quoted}) )) -gt {OLD_SECONDS} ]"
        phone.shell(f"{idle} && {old} && rm -rf {quoted}; true")


def cache_identity() -> str:
    """Returns a name that this cache has and no other, made up when it is asked for first. Raises UsageError where the cache cannot be written."""
    path = cache_root() / "identity"
    with contextlib.suppress(OSError):
        return path.read_text(encoding="ascii")
    with exclusive_lock(_beside(path), busy="", wait=True):
        if not path.is_file():
            try:
                with atomic_file(path) as staging:
                    staging.write_text(secrets.token_hex(8), encoding="ascii")
            except OSError as e:
                raise UsageError(f"{path}: cannot be written: {e}; set F2I_CACHE to a folder that can") from e
        return path.read_text(encoding="ascii")


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.lock")


def _remove(phone: Phone, remote: str) -> None:
    phone.shell(f"{end_command(remote)}; rm -rf {shlex.quote(remote)}")
