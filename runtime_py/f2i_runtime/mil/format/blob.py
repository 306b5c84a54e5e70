"""The weight file of an ML Program (``weights/weight.bin``, MIL blob storage version 2).

A 64-byte header (count, version = 2) is followed by records aligned to 64 bytes. A record is 64 bytes of metadata (sentinel 0xDEADBEEF,
element type, size in bytes, absolute offset of the data, bits of padding in the last byte) and the data. A value in the program names the
offset of its metadata. Layout as in coremltools' ``mlmodel/src/MILBlob/Blob/StorageFormat.hpp``; every field is checked before it is used.
"""

from __future__ import annotations

import os
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np

from f2i_runtime.errors import MilError
from f2i_runtime.mil.format.dtypes import DType

_HEADER = struct.Struct("<II56x")
_METADATA = struct.Struct("<IIQQQ32x")
_SENTINEL = 0xDEADBEEF
_VERSION = 2
# enum class BlobDataType in MILBlob/Blob/BlobDataType.hpp
_BLOB_TYPES = {
    1: "fp16", 2: "fp32", 3: "uint8", 4: "int8", 6: "int16", 7: "uint16", 8: "int4", 9: "uint1", 10: "uint2", 11: "uint4", 12: "uint3",
    13: "uint6", 14: "int32", 15: "uint32",
}  # fmt: skip


class WeightFile:
    """A weight file opened for reading. Reads by position: no memory map, so a file cut short while open is an error, not a signal."""

    def __init__(self, path: Path) -> None:
        """Opens ``path`` and checks its header; raises :class:`MilError` for a missing file or another format."""
        self.path = path
        self._seeking = threading.Lock()
        try:
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise MilError(f"weight file {path.name} cannot be read ({error.strerror}); export the package again") from error
        self.size = os.fstat(self._fd).st_size
        try:
            header = self._bytes(0, _HEADER.size, "header")
            count, version = _HEADER.unpack(header)
            if version != _VERSION:
                raise MilError(
                    f"weight file {path.name}: got storage version {version}, expected {_VERSION}; it is corrupted or of another format"
                )
            self.count = count
        except MilError:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file; closing twice is harmless."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, offset: int, dtype: DType, shape: tuple[int, ...], where: str) -> np.ndarray[Any, Any]:
        """The tensor whose metadata lies at ``offset``, unpacked to ``dtype.numpy`` in C order, writable.

        Raises :class:`MilError` naming ``where`` for an offset outside the file, a wrong sentinel, or a type or size other than declared.
        """
        if offset % 64 or not _HEADER.size <= offset <= self.size - _METADATA.size:
            raise MilError(f"{where}: weight offset {offset} is outside {self.path.name} ({self.size} bytes) or not aligned to 64")
        sentinel, kind, size, start, padding = _METADATA.unpack(self._bytes(offset, _METADATA.size, where))
        if sentinel != _SENTINEL:
            raise MilError(
                f"{where}: got 0x{sentinel:08X} at offset {offset} of {self.path.name}, expected 0x{_SENTINEL:08X}; the file is corrupted"
            )
        if _BLOB_TYPES.get(kind) != dtype.name:
            raise MilError(f"{where}: weight record holds {_BLOB_TYPES.get(kind, kind)}, the program declares {dtype.name}")
        count = _count(shape)
        expected = (count * dtype.bits + 7) // 8
        if size != expected or padding >= 8 or size * 8 - padding != count * dtype.bits:
            raise MilError(f"{where}: weight record holds {size} bytes, {dtype.name}{list(shape)} needs {expected}")
        if start > self.size or size > self.size - start:
            raise MilError(
                f"{where}: weight data [{start}, {start + size}) ends past {self.path.name} ({self.size} bytes); the file is truncated"
            )
        if dtype.packed:
            return unpack(np.frombuffer(self._bytes(start, size, where), np.uint8), dtype, count).reshape(shape)
        array = np.empty(shape, np.dtype(dtype.numpy).newbyteorder("<"))
        if size and self._read_into(array.reshape(-1).view(np.uint8).data, start) != size:
            raise MilError(f"{where}: {self.path.name} was cut short while it was read")
        return array

    def _bytes(self, start: int, size: int, where: str) -> bytes:
        data = bytearray(size)
        if self._read_into(memoryview(data), start) != size:
            raise MilError(f"{where}: {self.path.name} ends after {self.size} bytes, expected {start + size}; the file is truncated")
        return bytes(data)

    def _read_into(self, buffer: memoryview, start: int) -> int:
        """Fills ``buffer`` from the file's position ``start``; returns how much there was. Windows has no call that reads by position."""
        if hasattr(os, "preadv"):
            return os.preadv(self._fd, [buffer], start)
        with self._seeking:
            os.lseek(self._fd, start, os.SEEK_SET)
            data = os.read(self._fd, len(buffer))
        buffer[: len(data)] = data
        return len(data)


def unpack(packed: np.ndarray[Any, Any], dtype: DType, count: int) -> np.ndarray[Any, Any]:
    """``count`` sub-byte elements from uint8 ``packed``, a little-endian bit stream, as int8 (int4) or uint8; raises on a short stream."""
    bits = dtype.bits
    if packed.size * 8 < count * bits:
        raise MilError(f"got {packed.size} bytes of {dtype.name}, expected {(count * bits + 7) // 8}")
    groups = -(-count // 8)
    whole = np.zeros(groups * bits, np.uint8)
    whole[: min(packed.size, whole.size)] = packed.reshape(-1)[: whole.size]
    rows = whole.reshape(groups, bits)  # 8 elements of `bits` bits are `bits` bytes
    out = np.empty((groups, 8), np.uint8)
    step = 1 << 18
    for first in range(0, groups, step):
        block = rows[first : first + step]
        stream = np.zeros(block.shape[0], np.uint64)
        for byte in range(bits):
            stream |= block[:, byte].astype(np.uint64) << np.uint64(8 * byte)
        for element in range(8):
            out[first : first + step, element] = (stream >> np.uint64(bits * element)) & np.uint64((1 << bits) - 1)
    flat = out.reshape(-1)[:count]
    if dtype.name.startswith("int"):
        half = 1 << (bits - 1)
        return ((flat ^ half).astype(np.int16) - half).astype(np.int8)
    return flat


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
