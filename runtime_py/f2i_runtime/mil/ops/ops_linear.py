"""Linear algebra: linear, matmul, einsum, attention, convolutions.

Padding rules and layouts as in coremltools' ``ops/defs/iOS15/{conv,linear}.py`` and ``iOS18/transformers.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from f2i_runtime.errors import MilError
from f2i_runtime.mil.execute.arguments import check_size, choice, integer, ints

PAD_TYPES = ("valid", "same", "custom", "same_lower")
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    check_size((*x.shape[:-1], weight.shape[0]))
    x, weight = _alike(x, weight)
    return F.linear(x, weight, None if bias is None else bias.to(x.dtype))


def _alike(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns both operands in one type. From iOS 17 on, float and integer operands may mix."""
    common = torch.promote_types(x.dtype, y.dtype)
    return x.to(common), y.to(common)


def _matmul(x: torch.Tensor, y: torch.Tensor, transpose_x: Any = False, transpose_y: Any = False) -> torch.Tensor:
    x, y = _alike(x, y)
    if transpose_x and x.dim() > 1:
        x = x.transpose(-1, -2)
    if transpose_y and y.dim() > 1:
        y = y.transpose(-1, -2)
    if x.dim() > 1 and y.dim() > 1:
        check_size((*torch.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-1]))
    return torch.matmul(x, y)


def _einsum(values: list[torch.Tensor], equation: str) -> torch.Tensor:
    equation = equation.replace(" ", "")
    sizes = {
        label: size
        for labels, value in zip(equation.split("->")[0].split(","), values, strict=True)
        for label, size in zip(labels, value.shape, strict=True)
    }
    check_size(sizes[label] for label in equation.split("->")[-1] if label in sizes)
    return torch.einsum(equation, *values)


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None) -> torch.Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask)


def padding(
    pad_type: str, pad: Any, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[tuple[int, int]]:
    """Elements to pad before and after each spatial dimension. ``same`` gives ``ceil(size / stride)`` outputs, the odd one at the end."""
    kind = choice(pad_type, PAD_TYPES, "pad_type")
    if kind == "custom":
        values = ints(pad)
        if len(values) != 2 * len(sizes):
            raise MilError(f"pad has {len(values)} elements, expected {2 * len(sizes)}")
        return list(zip(values[::2], values[1::2], strict=True))
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    pads = []
    for size, extent, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + (extent - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if kind == "same" else (large, small))
    return pads


def pad_spatial(x: torch.Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> torch.Tensor:
    """``x`` with its last ``len(pads)`` dimensions padded by ``value``; ``x`` itself where there is nothing to pad."""
    if not any(before or after for before, after in pads):
        return x
    check_size(
        [*x.shape[: x.dim() - len(pads)], *(size + sum(pair) for size, pair in zip(x.shape[x.dim() - len(pads) :], pads, strict=True))]
    )
    return F.pad(x, [amount for pair in reversed(pads) for amount in pair], value=value)


def _conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    dilations: Any = None,
    groups: Any = 1,
) -> torch.Tensor:
    rank = x.dim() - 2
    if rank not in _CONV:
        raise MilError(f"x has rank {x.dim()}, expected 3 to 5")
    steps = ints(strides) if strides is not None else [1] * rank
    dilation = ints(dilations) if dilations is not None else [1] * rank
    pads = padding(pad_type, pad, x.shape[2:], weight.shape[2:], steps, dilation)
    if any(before != after for before, after in pads):
        x, pads = pad_spatial(x, pads), [(0, 0)] * rank
    return _CONV[rank](x, weight, bias, steps, [before for before, _ in pads], dilation, integer(groups))


def _conv_transpose(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    pad: Any = None,
    output_shape: Any = None,
    pad_type: str = "valid",
    strides: Any = None,
    dilations: Any = None,
    groups: Any = 1,
) -> torch.Tensor:
    rank = x.dim() - 2
    if rank not in _CONV_TRANSPOSE:
        raise MilError(f"x has rank {x.dim()}, expected 3 to 5")
    steps = ints(strides) if strides is not None else [1] * rank
    dilation = ints(dilations) if dilations is not None else [1] * rank
    full = [
        (size - 1) * step + (extent - 1) * gap + 1
        for size, step, extent, gap in zip(x.shape[2:], steps, weight.shape[2:], dilation, strict=True)
    ]
    check_size((x.shape[0], weight.shape[1] * integer(groups), *full))
    kind = choice(pad_type, PAD_TYPES, "pad_type")
    wanted = ints(output_shape)[2:] if output_shape is not None else None
    custom = ints(pad) if pad is not None else [0] * (2 * rank)
    y = _CONV_TRANSPOSE[rank](x, weight, None, steps, 0, 0, integer(groups), dilation)
    for i in range(rank):
        before, size = 0, full[i]
        if kind == "custom":
            before, size = custom[2 * i], full[i] - custom[2 * i] - custom[2 * i + 1]
        elif kind != "valid":
            size = x.shape[2 + i] * steps[i]
            total = full[i] - size
            before = max(total // 2 if kind == "same" else total - total // 2, 0)
        if wanted is not None:
            size = wanted[i]
        if before + size > full[i]:
            y = pad_spatial(y, [(0, 0)] * i + [(0, before + size - full[i])] + [(0, 0)] * (rank - 1 - i))
        y = y.narrow(2 + i, before, size)
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)


TABLE: dict[str, Any] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "einsum": _einsum,
    "linear": _linear,
    "matmul": _matmul,
    "scaled_dot_product_attention": {18: _attention},
}
