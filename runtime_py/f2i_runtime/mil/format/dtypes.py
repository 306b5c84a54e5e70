"""MIL's element types: their number in the protobuf, width, numpy and torch storage.

Numbers are those of ``enum DataType`` in coremltools' ``MIL.proto``; names are the ones MIL itself uses in ``cast`` and ``quantize``.
Floating-point values travel through the evaluator as float32 whatever their declared type; integers as the narrowest signed type
of torch that holds them, because torch implements few kernels for uint16 and uint32.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DType:
    """One MIL element type. ``numpy`` is how it lies in memory once unpacked; ``torch`` the type the evaluator computes in."""

    name: str
    bits: int
    numpy: str
    torch: str
    is_float: bool = False

    @property
    def packed(self) -> bool:
        """True where several elements share a byte."""
        return self.bits < 8


_TYPES = (
    (1, DType("bool", 8, "bool", "bool")),
    (2, DType("string", 0, "object", "")),
    (10, DType("fp16", 16, "float16", "float32", is_float=True)),
    (11, DType("fp32", 32, "float32", "float32", is_float=True)),
    (12, DType("fp64", 64, "float64", "float32", is_float=True)),
    (21, DType("int8", 8, "int8", "int8")),
    (22, DType("int16", 16, "int16", "int16")),
    (23, DType("int32", 32, "int32", "int32")),
    (24, DType("int64", 64, "int64", "int64")),
    (25, DType("int4", 4, "int8", "int8")),
    (31, DType("uint8", 8, "uint8", "uint8")),
    (32, DType("uint16", 16, "uint16", "int32")),
    (33, DType("uint32", 32, "uint32", "int64")),
    (34, DType("uint64", 64, "uint64", "int64")),
    (35, DType("uint4", 4, "uint8", "uint8")),
    (36, DType("uint2", 2, "uint8", "uint8")),
    (37, DType("uint1", 1, "uint8", "uint8")),
    (38, DType("uint6", 6, "uint8", "uint8")),
    (39, DType("uint3", 3, "uint8", "uint8")),
)

BY_NUMBER: dict[int, DType] = dict(_TYPES)
BY_NAME: dict[str, DType] = {dtype.name: dtype for _, dtype in _TYPES} | {
    "float16": BY_NUMBER[10],
    "float32": BY_NUMBER[11],
    "float64": BY_NUMBER[12],
    "double": BY_NUMBER[12],
    "str": BY_NUMBER[2],
}
