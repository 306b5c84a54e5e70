"""How much memory this process uses, and when freed memory goes back to the system."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@functools.cache
def _glibc(name: str) -> Any:
    """Returns a function of glibc, or None where the C library has no function of that name (musl, macOS, Windows)."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def trim_heap() -> None:
    """Returns freed memory to the system. By itself glibc keeps it: while a large photo is processed, tens of megabytes of gaps between what threads
    allocate in turn.
    """
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_LARGE, _GLIBC_LARGEST = 1 << 30, 32 << 20


@contextlib.contextmanager
def retain_heap() -> Iterator[None]:
    """Makes glibc keep freed memory of any size for the next allocation, while the context lasts.

    By itself glibc returns tensors of more than 32 MiB at once, and the next one pays for fresh pages: a tenth of the time where many large
    intermediate results follow each other. With other C libraries this does nothing.
    """
    adjust = _glibc("mallopt")
    if adjust is None:
        yield
        return
    adjust(_MMAP_THRESHOLD, _LARGE)
    adjust(_TRIM_THRESHOLD, _LARGE)
    try:
        yield
    finally:
        adjust(_MMAP_THRESHOLD, _GLIBC_LARGEST)
        adjust(_TRIM_THRESHOLD, 2 * _GLIBC_LARGEST)
        trim_heap()


def peak_rss(*, forget: bool = False) -> int:
    """Returns the largest resident memory of this process so far, in bytes. With ``forget``, the next call counts from here where Linux allows it.

    On Linux this is the program's own memory: ``ru_maxrss`` would include what the process that started it had used.
    """
    try:
        peak = next(int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM")) * 1024
        if forget:
            _RESET.write_text("5")
    except (OSError, StopIteration):
        return _peak_elsewhere()
    return peak


def _peak_elsewhere() -> int:
    """The peak where there is no ``/proc``: on macOS, and on Windows, which has no module ``resource``."""
    try:
        import resource
    except ImportError:
        import psutil

        memory = psutil.Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
