"""Operations that move elements without changing them: reshape, transpose, concatenation, splitting, block rearrangement, padding.

Semantics as in coremltools' ``ops/defs/iOS15/{tensor_transformation,tensor_operation}.py``; ``reshape`` of iOS 17 counts zeros from the
right.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from f2i_runtime.errors import MilError
from f2i_runtime.mil.execute.arguments import axes_of, check_size, choice, flags, integer, ints, number
from f2i_runtime.mil.ops.ops_linear import pad_spatial


def _reshape(x: torch.Tensor, shape: Any) -> torch.Tensor:
    """Returns the new shape by the rule of iOS 15 and 16: a zero copies the dimension at the same position."""
    sizes = ints(shape)
    if 0 in sizes and x.numel() and len(sizes) != x.dim():
        raise MilError(f"shape {sizes} has a zero, which needs an x of rank {len(sizes)}, got {x.dim()}")
    return x.reshape([x.shape[i] if size == 0 and i < x.dim() else size for i, size in enumerate(sizes)])


def _reshape_17(x: torch.Tensor, shape: Any) -> torch.Tensor:
    """Returns the new shape by the rule of iOS 17: a zero copies the dimension at the same distance from the right, or is 1 beyond the first."""
    sizes = ints(shape)
    offset = x.dim() - len(sizes)
    return x.reshape([size if size else x.shape[i + offset] if i + offset >= 0 else 1 for i, size in enumerate(sizes)])


def _reshape_like(x: torch.Tensor, ref_tensors: list[torch.Tensor], begins: Any, ends: Any, end_masks: Any) -> torch.Tensor:
    shape: list[int] = []
    for reference, begin, end, mask in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape += list(reference.shape)[integer(begin) : None if integer(mask) else integer(end)]
    return x.reshape(shape)


def _squeeze(x: torch.Tensor, axes: Any = None) -> torch.Tensor:
    dims = [i for i, size in enumerate(x.shape) if size == 1] if axes is None else axes_of(axes, x.dim())
    for axis in sorted(dims, reverse=True):
        if x.shape[axis] != 1:
            raise MilError(f"axis {axis} has {x.shape[axis]} elements, only 1 can be squeezed")
        x = x.squeeze(axis)
    return x


def _expand_dims(x: torch.Tensor, axes: Any) -> torch.Tensor:
    dims = ints(axes)
    rank = x.dim() + len(dims)
    for axis in sorted(axis % rank for axis in dims):
        x = x.unsqueeze(axis)
    return x


def _transpose(x: torch.Tensor, perm: Any) -> torch.Tensor:
    return x.permute(ints(perm))


def _concat(values: list[torch.Tensor], axis: Any, interleave: Any = False) -> torch.Tensor:
    values = [value.reshape(1) if value.dim() == 0 else value for value in values]  # MIL concatenates scalars to a vector
    position = integer(axis) % values[0].dim()
    if not interleave:
        return torch.cat(values, position)
    return torch.stack(values, position + 1).flatten(position, position + 1)


def _stack(values: list[torch.Tensor], axis: Any) -> torch.Tensor:
    return torch.stack(values, integer(axis))


def _split(x: torch.Tensor, axis: Any, num_splits: Any = None, split_sizes: Any = None) -> tuple[torch.Tensor, ...]:
    position = integer(axis)
    if split_sizes is not None:
        return tuple(torch.split(x, ints(split_sizes), position))
    count = integer(num_splits)
    if count < 1 or x.shape[position] % count:
        raise MilError(f"num_splits is {count}, expected a divisor of {x.shape[position]}")
    return tuple(torch.split(x, x.shape[position] // count, position))


def _tile(x: torch.Tensor, reps: Any) -> torch.Tensor:
    counts = ints(reps)
    check_size(size * count for size, count in zip(x.shape, counts, strict=True))
    return x.repeat(counts)


def _reverse(x: torch.Tensor, axes: Any = None) -> torch.Tensor:
    return x.flip(axes_of(axes, x.dim()))


def _reverse_sequence(x: torch.Tensor, lengths: Any, seq_axis: Any = 0, batch_axis: Any = 0) -> torch.Tensor:
    sequence, batch = integer(seq_axis) % x.dim(), integer(batch_axis) % x.dim()
    rows = []
    for row, length in zip(x.unbind(batch), ints(lengths), strict=True):
        axis = sequence - (sequence > batch)
        rows.append(torch.cat([row.narrow(axis, 0, length).flip(axis), row.narrow(axis, length, row.shape[axis] - length)], axis))
    return torch.stack(rows, batch)


def _pad(x: torch.Tensor, pad: Any, mode: str = "constant", constant_val: Any = 0.0) -> torch.Tensor:
    amounts = ints(pad)
    pairs = list(zip(amounts[::2], amounts[1::2], strict=True))
    kind = choice(mode, ("constant", "reflect", "replicate"), "mode")
    if kind == "constant":
        return pad_spatial(x, pairs, number(constant_val))
    check_size(
        [*x.shape[: x.dim() - len(pairs)], *(size + sum(pair) for size, pair in zip(x.shape[x.dim() - len(pairs) :], pairs, strict=True))]
    )
    for i, (before, after) in enumerate(pairs):
        axis = x.dim() - len(pairs) + i
        last = x.shape[axis] - 1
        if before or after:
            index = torch.arange(-before, last + 1 + after)
            index = index.clamp(0, last) if kind == "replicate" else (last - (index.abs() - last).abs()).abs()
            x = x.index_select(axis, index)
    return x


def _flatten2d(x: torch.Tensor, axis: Any = 1) -> torch.Tensor:
    position = integer(axis)
    return x.reshape(math.prod(x.shape[:position]), math.prod(x.shape[position:]))


def _shape(x: torch.Tensor) -> torch.Tensor:
    return torch.tensor(x.shape, dtype=torch.int32)


def _depth_to_space(x: torch.Tensor, block_size: Any) -> torch.Tensor:
    b = integer(block_size)
    n, c, h, w = x.shape
    return x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // (b * b), h * b, w * b)


def _space_to_depth(x: torch.Tensor, block_size: Any) -> torch.Tensor:
    b = integer(block_size)
    n, c, h, w = x.shape
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b * b, h // b, w // b)


def _pixel_shuffle(x: torch.Tensor, upscale_factor: Any) -> torch.Tensor:
    return F.pixel_shuffle(x, integer(upscale_factor))


def _pixel_unshuffle(x: torch.Tensor, downscale_factor: Any) -> torch.Tensor:
    return F.pixel_unshuffle(x, integer(downscale_factor))


def _space_to_batch(x: torch.Tensor, block_shape: Any, paddings: Any) -> torch.Tensor:
    (bh, bw), pad = ints(block_shape), ints(paddings)
    x = pad_spatial(x, [(pad[0], pad[1]), (pad[2], pad[3])])
    n, c, h, w = x.shape
    return x.reshape(n, c, h // bh, bh, w // bw, bw).permute(3, 5, 0, 1, 2, 4).reshape(n * bh * bw, c, h // bh, w // bw)


def _batch_to_space(x: torch.Tensor, block_shape: Any, crops: Any) -> torch.Tensor:
    (bh, bw), crop = ints(block_shape), ints(crops)
    n, c, h, w = x.shape
    y = x.reshape(bh, bw, n // (bh * bw), c, h, w).permute(2, 3, 4, 0, 5, 1).reshape(n // (bh * bw), c, h * bh, w * bw)
    return y[:, :, crop[0] : h * bh - crop[1], crop[2] : w * bw - crop[3]]


def _crop(x: torch.Tensor, crop_height: Any, crop_width: Any) -> torch.Tensor:
    (top, bottom), (left, right) = ints(crop_height), ints(crop_width)
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def _sliding_windows(x: torch.Tensor, axis: Any, size: Any, stride: Any = 1) -> torch.Tensor:
    position = integer(axis) % x.dim()
    return x.unfold(position, integer(size), integer(stride)).movedim(-1, position + 1)


def _slices(shape: Any, begin: Any, end: Any, stride: Any, begin_mask: Any, end_mask: Any, squeeze_mask: Any) -> list[slice]:
    rank = len(shape)
    first, last = ints(begin), ints(end)
    steps = ints(stride) if stride is not None else [1] * rank
    from_start, to_end, single = flags(begin_mask, rank), flags(end_mask, rank), flags(squeeze_mask, rank)
    out = []
    for i, size in enumerate(shape):
        if single[i]:
            index = first[i] + size if first[i] < 0 else first[i]
            out.append(slice(index, index + 1, 1))
        else:
            chosen = slice(None if from_start[i] else first[i], None if to_end[i] else last[i], steps[i])
            start, stop, step = chosen.indices(size)
            out.append(slice(start, stop, step))
    return out


def _slice_by_index(
    x: torch.Tensor, begin: Any, end: Any, stride: Any = None, begin_mask: Any = None, end_mask: Any = None, squeeze_mask: Any = None
) -> torch.Tensor:
    chosen = _slices(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    for axis, part in enumerate(chosen):
        if part.step < 0:
            x = x.index_select(axis, torch.tensor(list(range(part.start, part.stop, part.step)), dtype=torch.int64))
        elif part != slice(0, x.shape[axis], 1):
            x = x[(slice(None),) * axis + (part,)]
    single = flags(squeeze_mask, x.dim())
    return x.reshape([size for size, drop in zip(x.shape, single, strict=True) if not drop]) if any(single) else x


def _slice_update(
    x: torch.Tensor,
    update: torch.Tensor,
    begin: Any,
    end: Any,
    stride: Any = None,
    begin_mask: Any = None,
    end_mask: Any = None,
    squeeze_mask: Any = None,
) -> torch.Tensor:
    chosen = _slices(x.shape, begin, end, stride, begin_mask, end_mask, squeeze_mask)
    index = [torch.arange(part.start, part.stop, part.step) for part in chosen]
    y = x.clone()
    y[torch.meshgrid(*index, indexing="ij")] = update.reshape([len(part) for part in index])
    return y


def _slice_by_size(x: torch.Tensor, begin: Any, size: Any) -> torch.Tensor:
    starts = [start + length if start < 0 else start for start, length in zip(ints(begin), x.shape, strict=True)]
    sizes = [length - start if wanted == -1 else wanted for start, wanted, length in zip(starts, ints(size), x.shape, strict=True)]
    for axis, (start, wanted) in enumerate(zip(starts, sizes, strict=True)):
        if (start, wanted) != (0, x.shape[axis]):
            x = x.narrow(axis, start, wanted)
    return x


TABLE: dict[str, Any] = {
    "batch_to_space": _batch_to_space,
    "concat": _concat,
    "crop": _crop,
    "depth_to_space": _depth_to_space,
    "expand_dims": _expand_dims,
    "flatten2d": _flatten2d,
    "pad": _pad,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": {16: _pixel_unshuffle},
    "reshape": {15: _reshape, 17: _reshape_17},
    "reshape_like": {16: _reshape_like},
    "reverse": _reverse,
    "reverse_sequence": _reverse_sequence,
    "shape": _shape,
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "slice_update": {18: _slice_update},
    "sliding_windows": _sliding_windows,
    "space_to_batch": _space_to_batch,
    "space_to_depth": _space_to_depth,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
}
