"""Decompression of constants: affine, blockwise shift-scale, look-up tables (scalar and vector), sparsity, and their joint forms.

Formulas as in coremltools' ``ops/defs/iOS16/constexpr_ops.py`` and ``iOS18/compression.py``. All of it is numpy on plain arrays; float
results are computed in float32 and rounded once, to the type the program declares.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from f2i_runtime.errors import MilError
from f2i_runtime.mil.format.blob import unpack
from f2i_runtime.mil.format.dtypes import BY_NAME

Array = np.ndarray[Any, Any]


def _blocks(parameter: Array, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes that let ``parameter`` (one value per block) broadcast over data of ``shape`` split into ``(blocks, block size)`` axes."""
    if parameter.ndim != len(shape):
        raise MilError(f"scale has rank {parameter.ndim}, data {len(shape)}")
    data: list[int] = []
    values: list[int] = []
    for size, count in zip(shape, parameter.shape, strict=True):
        if not count or size % count:
            raise MilError(f"scale has the shape {list(parameter.shape)}, which does not divide the data's {list(shape)}")
        data += [count, size // count]
        values += [count, 1]
    return tuple(data), tuple(values)


def _shift_scale(data: Array, scale: Array, offset: Array | None = None) -> Array:
    split, values = _blocks(scale, data.shape)
    out = data.astype(np.float32).reshape(split)
    if offset is not None:
        out -= offset.astype(np.float32).reshape(values)
    out *= scale.astype(np.float32).reshape(values)
    return out.reshape(data.shape)


def _affine(quantized_data: Array, zero_point: Array, scale: Array, axis: Array) -> Array:
    def along(parameter: Array) -> Array:
        if parameter.ndim == 0:
            return parameter.astype(np.float32)
        shape = [1] * quantized_data.ndim
        shape[int(axis)] = -1
        return parameter.astype(np.float32).reshape(shape)

    out = quantized_data.astype(np.float32)
    out -= along(zero_point)
    out *= along(scale)
    return out


def _take(lut: Array, indices: Array) -> Array:
    """Returns ``lut[indices]`` after the indices were checked. Both arrays are flat."""
    if indices.size and int(indices.max()) >= lut.shape[0]:
        raise MilError(f"an index is {int(indices.max())}, the look-up table has {lut.shape[0]} entries")
    return lut.take(indices, axis=0)


def _lut_packed(indices: Array, lut: Array, shape: Array) -> Array:
    """Decompresses the iOS 16 form: a bit stream of indices and one flat table."""
    sizes = tuple(int(size) for size in shape)
    bits = int(lut.size).bit_length() - 1
    names = {1: "uint1", 2: "uint2", 4: "uint4", 6: "uint6", 8: "uint8"}
    if bits not in names or lut.size != 1 << bits:
        raise MilError(f"the look-up table has {lut.size} entries, expected 2, 4, 16, 64 or 256")
    count = int(np.prod(sizes, dtype=np.int64))
    flat = indices.reshape(-1)
    if flat.size != (count * bits + 7) // 8:
        raise MilError(f"indices holds {flat.size} bytes, the shape {list(sizes)} needs {(count * bits + 7) // 8}")
    return _take(lut, unpack(flat, BY_NAME[names[bits]], count) if bits < 8 else flat).reshape(sizes)


def _lut(indices: Array, lut: Array, vector_axis: Array | None = None) -> Array:
    """Decompresses the iOS 18 form: one table ``[entries, vector]`` for each block of ``indices``."""
    tables = lut.reshape(-1, *lut.shape[-2:])
    rank = indices.ndim
    if lut.ndim != rank + 2:
        raise MilError(f"lut has rank {lut.ndim}, indices {rank}; expected 2 more")
    vector = lut.shape[-1]
    if tables.shape[0] == 1:
        values = _take(tables[0], indices)
    else:
        split, _ = _blocks(np.empty(lut.shape[:-2], np.bool_), indices.shape)
        blocked = indices.reshape(split).transpose(*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)).reshape(tables.shape[0], -1)
        picked = np.stack([_take(table, row) for table, row in zip(tables, blocked, strict=True)])
        order = [axis for pair in zip(range(rank), range(rank, 2 * rank), strict=True) for axis in pair]
        values = picked.reshape(*split[::2], *split[1::2], vector).transpose(*order, 2 * rank).reshape(*indices.shape, vector)
    if vector == 1:
        return values[..., 0]
    if vector_axis is None:
        raise MilError("lut holds vectors, but vector_axis is missing")
    axis = int(vector_axis) % rank
    moved = np.moveaxis(values, -1, axis + 1)
    return moved.reshape(*indices.shape[:axis], indices.shape[axis] * vector, *indices.shape[axis + 1 :])


def _scatter_mask(nonzero: Array, mask: Array) -> Array:
    if int(np.count_nonzero(mask)) != nonzero.size:
        raise MilError(f"the mask has {int(np.count_nonzero(mask))} set bits, nonzero_data {nonzero.size} elements")
    out = np.zeros(mask.shape, nonzero.dtype)
    out[mask.astype(bool)] = nonzero.reshape(-1)
    return out


def _sparse_packed(nonzero_data: Array, mask: Array, shape: Array) -> Array:
    """Decompresses the iOS 16 form, in which the mask is a bit stream."""
    sizes = tuple(int(size) for size in shape)
    count = int(np.prod(sizes, dtype=np.int64))
    if mask.size != (count + 7) // 8:
        raise MilError(f"mask holds {mask.size} bytes, the shape {list(sizes)} needs {(count + 7) // 8}")
    return _scatter_mask(nonzero_data, unpack(mask.reshape(-1), BY_NAME["uint1"], count)).reshape(sizes)


def _sparse(nonzero_data: Array, mask: Array) -> Array:
    return _scatter_mask(nonzero_data, mask)


def _lut_sparse(indices_mask: Array, indices_nonzero_data: Array, lut: Array, vector_axis: Array | None = None) -> tuple[Array, Array]:
    dense = _lut(_scatter_mask(indices_nonzero_data, indices_mask), lut, vector_axis)
    mask = indices_mask
    if lut.shape[-1] > 1 and vector_axis is not None:
        mask = np.repeat(mask, lut.shape[-1], int(vector_axis))
    return mask, dense[mask.astype(bool)]


def _sparse_shift_scale(data_mask: Array, nonzero_data: Array, scale: Array, offset: Array | None = None) -> tuple[Array, Array]:
    dense = _shift_scale(_scatter_mask(nonzero_data, data_mask), scale, offset)
    return data_mask, dense[data_mask.astype(bool)]


def _cast(source_val: Array, output_dtype: str) -> Array:
    if output_dtype not in ("fp32", "fp16"):
        raise MilError(f"output_dtype is {output_dtype!r}, expected fp32 or fp16")
    return source_val.astype(np.float32)


TABLE: dict[str, Any] = {
    "constexpr_affine_dequantize": {16: _affine},
    "constexpr_blockwise_shift_scale": {18: _shift_scale},
    "constexpr_cast": {16: _cast},
    "constexpr_lut_to_dense": {16: _lut_packed, 18: _lut},
    "constexpr_lut_to_sparse": {18: _lut_sparse},
    "constexpr_sparse_blockwise_shift_scale": {18: _sparse_shift_scale},
    "constexpr_sparse_to_dense": {16: _sparse_packed, 18: _sparse},
}
