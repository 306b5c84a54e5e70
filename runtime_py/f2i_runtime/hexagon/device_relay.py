"""Lets ExecuTorch's Qualcomm backend, which is built for an older version of Qualcomm's interface, create a device with the installed wheel's libraries.

In version 2.47 of the SDK the union in ``QnnHtpDevice_CustomConfig_t`` moved from byte 4 to byte 8. A structure of before is read as "socModel 0", and the
device is refused (14001). Here the entry ``deviceCreate`` of the library's own table of functions, in the memory of this process, is replaced by one that lays
that structure out anew. Nothing on disk changes. It is for the simulator alone: on a phone, the runtime is built for the libraries that it ships with.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import Any

TABLE_OFFSET = 40
"""Bytes of ``QnnInterface_t`` before its first function."""
DEVICE_CREATE = 40
"""The index of ``deviceCreate`` among its functions."""
POINTER_BYTES = 8
CUSTOM_OPTION = 0
"""The kind of a device's configuration whose content is the structure in question."""
OLD_WORDS, NEW_WORDS = 3, 16
"""32-bit words of the old structure; and of what is given instead of it, which is more than the new one has."""
READ_AND_WRITE = mmap.PROT_READ | mmap.PROT_WRITE

_CREATE = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)


class DeviceRelay:
    """The replaced entry. It lives as long as this object, which holds all memory that the library was handed."""

    def __init__(self, backend: Path) -> None:
        """Loads the backend's library and replaces its entry. Raises OSError where the library cannot be loaded or its table cannot be written."""
        self.library = ctypes.CDLL(str(backend))
        self.kept: list[Any] = []
        providers, count = ctypes.POINTER(ctypes.c_void_p)(), ctypes.c_uint32()
        self.library.QnnInterface_getProviders.restype = ctypes.c_uint64
        if self.library.QnnInterface_getProviders(ctypes.byref(providers), ctypes.byref(count)) or not count.value:
            raise OSError(f"{backend}: it has no table of functions")
        slot = int(providers[0] or 0) + TABLE_OFFSET + POINTER_BYTES * DEVICE_CREATE
        self.original = _CREATE(ctypes.c_void_p.from_address(slot).value or 0)
        self.replacement = _CREATE(self._create)
        _make_writable(slot)
        ctypes.c_void_p.from_address(slot).value = ctypes.cast(self.replacement, ctypes.c_void_p).value

    def _create(self, logger: Any, configs: Any, device: Any) -> int:
        """``deviceCreate``: the configurations, a list of pointers that ends with a null, with the structure in question laid out anew."""
        pointers: list[int] = []
        while configs and configs[len(pointers)]:
            pointers.append(self._laid_out(int(configs[len(pointers)])))
        table = (ctypes.c_void_p * (len(pointers) + 1))(*pointers, None) if pointers else configs
        self.kept.append(table)
        return int(self.original(logger, ctypes.cast(table, ctypes.POINTER(ctypes.c_void_p)), device))

    def _laid_out(self, config: int) -> int:
        """Returns the address of a configuration as the library reads it."""
        option = ctypes.c_uint32.from_address(config).value
        content = ctypes.c_void_p.from_address(config + POINTER_BYTES).value
        if option != CUSTOM_OPTION or not content:
            return config
        old, new = (ctypes.c_uint32 * OLD_WORDS).from_address(content), (ctypes.c_uint32 * NEW_WORDS)()
        new[0], new[2], new[3] = old
        pair = (ctypes.c_uint64 * 2)(option, ctypes.addressof(new))
        self.kept += [new, pair]
        return ctypes.addressof(pair)


def _make_writable(address: int) -> None:
    """Make the page at an address writable, and the next one. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    page = address & ~(mmap.PAGESIZE - 1)
    if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(2 * mmap.PAGESIZE), READ_AND_WRITE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
