"""Pessimistic fp16 accumulation: sums of products and of elements are rounded to fp16 after every 32 terms.

A bound on what hardware that accumulates in fp16 may lose, not a model of any one chip: the Neural Engine's accumulation is undocumented.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from f2i_runtime.mil.execute.arguments import axes_of, integer
from f2i_runtime.mil.ops.optable import OPERATIONS, Implementation

CHUNK = 32


def _half(x: torch.Tensor) -> torch.Tensor:
    return x.half().float()


def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    y = _matmul(x, weight, transpose_y=True)
    return y if bias is None else _half(y + bias)


def _matmul(x: torch.Tensor, y: torch.Tensor, transpose_x: Any = False, transpose_y: Any = False) -> torch.Tensor:
    exact = OPERATIONS["matmul"]
    if x.dim() < 2 or y.dim() < 2 or not x.dtype.is_floating_point:
        return exact(x, y, transpose_x, transpose_y)
    left = x.transpose(-1, -2) if transpose_x else x
    right = y.transpose(-1, -2) if transpose_y else y
    total: Any = 0.0
    for first in range(0, left.shape[-1], CHUNK):
        total = _half(total + exact(left[..., first : first + CHUNK], right[..., first : first + CHUNK, :]))
    return total


def _conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, groups: Any = 1, **options: Any) -> torch.Tensor:
    exact = OPERATIONS["conv"]
    if integer(groups) != 1:
        return exact(x, weight, bias, groups=groups, **options)
    channels = max(1, CHUNK // math.prod(weight.shape[2:]))
    total: Any = 0.0
    for first in range(0, x.shape[1], channels):
        part = slice(first, first + channels)
        total = _half(total + exact(x[:, part], weight[:, part], None, groups=1, **options))
    return total if bias is None else _half(total + bias.reshape(-1, *[1] * (x.dim() - 2)))


def _reduce_sum(x: torch.Tensor, axes: Any = None, keep_dims: Any = False) -> torch.Tensor:
    if not x.dtype.is_floating_point or x.dim() == 0:
        return OPERATIONS["reduce_sum"](x, axes, keep_dims)
    dims = axes_of(axes, x.dim())
    kept = [i for i in range(x.dim()) if i not in dims]
    flat = x.permute(*kept, *dims).reshape(*[x.shape[i] for i in kept], -1)
    total: Any = 0.0
    for first in range(0, flat.shape[-1], CHUNK):
        total = _half(total + flat[..., first : first + CHUNK].sum(-1))
    return total.reshape([1 if i in dims else x.shape[i] for i in range(x.dim())]) if keep_dims else total


def _reduce_mean(x: torch.Tensor, axes: Any = None, keep_dims: Any = False) -> torch.Tensor:
    count = math.prod(x.shape[i] for i in axes_of(axes, x.dim()))
    return _reduce_sum(x / count, axes, keep_dims)


TABLE: dict[str, Implementation] = {
    "conv": _conv,
    "linear": _linear,
    "matmul": _matmul,
    "reduce_mean": _reduce_mean,
    "reduce_sum": _reduce_sum,
}
