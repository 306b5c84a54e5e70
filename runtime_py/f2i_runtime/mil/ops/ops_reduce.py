"""Normalisations, reductions and pooling.

Formulas and defaults as in coremltools' ``ops/defs/iOS15/{normalization,reduction,pool}.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from f2i_runtime.errors import MilError
from f2i_runtime.mil.execute.arguments import axes_of, integer, ints, number
from f2i_runtime.mil.ops.ops_linear import pad_spatial, padding

Reduction = Callable[[torch.Tensor, list[int], bool], torch.Tensor]


def _layer_norm(x: torch.Tensor, axes: Any = None, gamma: Any = None, beta: Any = None, epsilon: Any = 1e-5) -> torch.Tensor:
    dims = sorted(axes_of(axes, x.dim()))
    shape = [x.shape[i] for i in dims]
    if dims == list(range(x.dim() - len(dims), x.dim())) and (gamma is None or list(gamma.shape) == shape):
        return F.layer_norm(x, shape, gamma, beta, number(epsilon))
    variance, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    y = (x - mean) * torch.rsqrt(variance + epsilon)
    broadcast = [x.shape[i] if i in dims else 1 for i in range(x.dim())]
    if gamma is not None:
        y = y * gamma.reshape(broadcast)
    return y if beta is None else y + beta.reshape(broadcast)


def _batch_norm(x: torch.Tensor, mean: Any, variance: Any, gamma: Any = None, beta: Any = None, epsilon: Any = 1e-5) -> torch.Tensor:
    return F.batch_norm(x, mean, variance, gamma, beta, training=False, eps=number(epsilon))


def _instance_norm(x: torch.Tensor, gamma: Any = None, beta: Any = None, epsilon: Any = 1e-5) -> torch.Tensor:
    return F.group_norm(x, x.shape[1], gamma, beta, number(epsilon))


def _l2_norm(x: torch.Tensor, epsilon: Any = 1e-6) -> torch.Tensor:
    return x * torch.rsqrt((x * x).sum((-3, -2, -1), keepdim=True) + epsilon)


def _local_response_norm(x: torch.Tensor, size: Any, alpha: Any = 1e-4, beta: Any = 0.75, k: Any = 1.0) -> torch.Tensor:
    return F.local_response_norm(x, integer(size), number(alpha), number(beta), number(k))


def _reduce(function: Reduction) -> Callable[..., torch.Tensor]:
    def apply(x: torch.Tensor, axes: Any = None, keep_dims: Any = False) -> torch.Tensor:
        if x.dim() == 0:
            return x
        return function(x, axes_of(axes, x.dim()), bool(keep_dims)).to(x.dtype)

    return apply


def _mean(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return x.mean(axes, keepdim=keep) if x.dtype.is_floating_point else x.double().mean(axes, keepdim=keep)


def _product(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _arg_reduce(function: Callable[[torch.Tensor, int, bool], torch.Tensor]) -> Callable[..., torch.Tensor]:
    def apply(x: torch.Tensor, axis: Any = -1, keep_dims: Any = False, output_dtype: str = "int32") -> torch.Tensor:
        return function(x, integer(axis), bool(keep_dims)).int()

    return apply


_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _pool_pads(x: torch.Tensor, kernel: list[int], steps: list[int], pad_type: str, pad: Any, ceil_mode: Any) -> list[tuple[int, int]]:
    if len(kernel) not in _AVG_POOL or x.dim() != len(kernel) + 2:
        raise MilError(f"x has rank {x.dim()} and kernel_sizes {len(kernel)} elements, expected a rank 2 higher, 3 to 5")
    pads = padding(pad_type, pad, x.shape[2:], kernel, steps, [1] * len(kernel))
    if not ceil_mode:
        return pads
    grown = []
    for size, extent, step, (before, after) in zip(x.shape[2:], kernel, steps, pads, strict=True):
        total = size + before + after
        outputs = math.ceil((total - extent) / step) + 1
        if (outputs - 1) * step >= size + before:  # as in torch: the last window must start inside the input or its left padding
            outputs -= 1
        grown.append((before, after + max((outputs - 1) * step + extent - total, 0)))
    return grown


def _pool(function: Callable[[torch.Tensor, Sequence[tuple[int, int]], list[int], list[int]], torch.Tensor]) -> Callable[..., torch.Tensor]:
    def apply(
        x: torch.Tensor, kernel_sizes: Any, strides: Any = None, pad_type: str = "valid", pad: Any = None, ceil_mode: Any = False
    ) -> torch.Tensor:
        kernel = ints(kernel_sizes)
        steps = ints(strides) if strides is not None else [1] * len(kernel)
        return function(x, _pool_pads(x, kernel, steps, pad_type, pad, ceil_mode), kernel, steps)

    return apply


def _max_pool(x: torch.Tensor, pads: Sequence[tuple[int, int]], kernel: list[int], steps: list[int]) -> torch.Tensor:
    return _MAX_POOL[len(kernel)](pad_spatial(x, pads, -math.inf), kernel, steps)


def _l2_pool(x: torch.Tensor, pads: Sequence[tuple[int, int]], kernel: list[int], steps: list[int]) -> torch.Tensor:
    return (_AVG_POOL[len(kernel)](pad_spatial(x * x, pads), kernel, steps) * math.prod(kernel)).sqrt()


def _avg_pool(
    x: torch.Tensor,
    kernel_sizes: Any,
    strides: Any = None,
    pad_type: str = "valid",
    pad: Any = None,
    exclude_padding_from_average: Any = False,
    ceil_mode: Any = False,
) -> torch.Tensor:
    kernel = ints(kernel_sizes)
    steps = ints(strides) if strides is not None else [1] * len(kernel)
    pads = _pool_pads(x, kernel, steps, pad_type, pad, ceil_mode)
    pool = _AVG_POOL[len(kernel)]
    y = pool(pad_spatial(x, pads), kernel, steps)
    if exclude_padding_from_average:
        return y / pool(pad_spatial(torch.ones_like(x), pads), kernel, steps)
    if ceil_mode:  # padding that only ceil_mode added does not count, as in torch
        declared = padding(pad_type, pad, x.shape[2:], kernel, steps, [1] * len(kernel))
        inside = pad_spatial(torch.ones_like(x), declared, 1.0)
        added = [(0, grown[1] - given[1]) for grown, given in zip(pads, declared, strict=True)]
        return y / pool(pad_spatial(inside, added), kernel, steps)
    return y


TABLE: dict[str, Any] = {
    "avg_pool": _avg_pool,
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "l2_norm": _l2_norm,
    "l2_pool": _pool(_l2_pool),
    "layer_norm": _layer_norm,
    "local_response_norm": _local_response_norm,
    "max_pool": _pool(_max_pool),
    "reduce_argmax": _arg_reduce(lambda x, axis, keep: x.argmax(axis, keep)),
    "reduce_argmin": _arg_reduce(lambda x, axis, keep: x.argmin(axis, keep)),
    "reduce_l1_norm": _reduce(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "reduce_l2_norm": _reduce(lambda x, axes, keep: x.float().square().sum(axes, keepdim=keep).sqrt()),
    "reduce_log_sum": _reduce(lambda x, axes, keep: x.float().sum(axes, keepdim=keep).log()),
    "reduce_log_sum_exp": _reduce(lambda x, axes, keep: torch.logsumexp(x.float(), axes, keep)),
    "reduce_max": _reduce(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "reduce_mean": _reduce(_mean),
    "reduce_min": _reduce(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "reduce_prod": _reduce(_product),
    "reduce_sum": _reduce(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "reduce_sum_square": _reduce(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
}
