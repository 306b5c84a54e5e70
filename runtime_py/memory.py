"""What a process holds of the machine's memory."""

from __future__ import annotations

import ctypes
import functools
from typing import Any


@functools.cache
def _trim() -> Any:
    """glibc's ``malloc_trim``, or None where the C library has none (musl, macOS)."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> None:
    """Return freed memory to the system. glibc keeps it: over a large photo, tens of megabytes of holes between what threads allocate in turn."""
    trim = _trim()
    if trim is not None:
        trim(0)
