"""Gathering, scattering, sorting, and tensors made from indices.

Semantics as in coremltools' ``ops/defs/iOS15/{scatter_gather,tensor_operation}.py`` and their later versions.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from f2i_runtime.errors import MilError
from f2i_runtime.mil.execute.arguments import check_size, choice, integer, ints

_SCATTER = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
_MODES = ("update", "add", "sub", "mul", "div", "max", "min")


def _wrap(indices: torch.Tensor, size: int, validate: Any = False) -> torch.Tensor:
    """Indices as int64, negative ones counted from the end; ``validate`` accepts only indices in ``[0, size)``, as iOS 17 does."""
    indices = indices.long()
    if validate and indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < size:
        raise MilError(f"indices lie in [{int(indices.min())}, {int(indices.max())}], expected [0, {size})")
    return torch.where(indices < 0, indices + size, indices)


def _gather(x: torch.Tensor, indices: torch.Tensor, axis: Any = 0, batch_dims: Any = 0, validate_indices: Any = False) -> torch.Tensor:
    position, batch = integer(axis) % x.dim(), integer(batch_dims)
    index = _wrap(indices, x.shape[position], validate_indices)
    shape = [*x.shape[:position], *indices.shape[batch:], *x.shape[position + 1 :]]
    check_size(shape)
    if batch == 0:
        return x.index_select(position, index.flatten()).reshape(shape)
    lead = math.prod(x.shape[:batch])
    rows = x.reshape(lead, *x.shape[batch:])
    picks = index.reshape(lead, -1)
    gathered = [row.index_select(position - batch, pick) for row, pick in zip(rows, picks, strict=True)]
    return torch.stack(gathered).reshape(shape)


def _gather_along_axis(x: torch.Tensor, indices: torch.Tensor, axis: Any = 0, validate_indices: Any = False) -> torch.Tensor:
    position = integer(axis) % x.dim()
    return torch.gather(x, position, _wrap(indices, x.shape[position], validate_indices))


def _gather_nd(x: torch.Tensor, indices: torch.Tensor, batch_dims: Any = 0, validate_indices: Any = False) -> torch.Tensor:
    batch = integer(batch_dims)
    if batch:
        return torch.stack([_gather_nd(row, pick, batch - 1, validate_indices) for row, pick in zip(x, indices, strict=True)])
    return x[tuple(_wrap(index, x.shape[i], validate_indices) for i, index in enumerate(indices.unbind(-1)))]


def _scatter_into(data: torch.Tensor, index: torch.Tensor, updates: torch.Tensor, axis: int, mode: str, validate: Any) -> torch.Tensor:
    choice(mode, _MODES, "mode")
    index = _wrap(index, data.shape[axis], validate)
    if mode == "update":
        return data.scatter(axis, index, updates)
    if mode == "sub":
        updates, mode = -updates, "add"
    elif mode == "div":
        if not data.dtype.is_floating_point:
            return data.float().scatter_reduce(axis, index, 1 / updates.float(), "prod").to(data.dtype)
        updates, mode = 1 / updates, "mul"
    return data.scatter_reduce(axis, index, updates, _SCATTER[mode], include_self=True)


def _scatter(
    data: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor, axis: Any = 0, mode: str = "add", validate_indices: Any = False
) -> torch.Tensor:
    position = integer(axis) % data.dim()
    rank = indices.dim()
    flat = updates.flatten(position, position + rank - 1) if rank else updates.unsqueeze(position)
    shape = [1] * flat.dim()
    shape[position] = -1
    return _scatter_into(data, indices.reshape(shape).expand_as(flat), flat, position, mode, validate_indices)


def _scatter_along_axis(
    data: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor, axis: Any = 0, mode: str = "add", validate_indices: Any = False
) -> torch.Tensor:
    return _scatter_into(data, indices, updates, integer(axis) % data.dim(), mode, validate_indices)


def _scatter_nd(
    data: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor, mode: str = "add", validate_indices: Any = False
) -> torch.Tensor:
    depth = indices.shape[-1]
    lead = data.shape[:depth]
    strides = torch.tensor([math.prod(lead[i + 1 :]) for i in range(depth)])
    index = torch.stack([_wrap(part, size, validate_indices) for part, size in zip(indices.unbind(-1), lead, strict=True)], -1)
    flat = (index * strides).sum(-1).flatten()
    width = math.prod(data.shape[depth:])
    rows = data.reshape(math.prod(lead), width)
    values = updates.reshape(flat.numel(), width)
    return _scatter_into(rows, flat[:, None].expand_as(values), values, 0, mode, False).reshape(data.shape)


def _topk(
    x: torch.Tensor,
    k: Any = 1,
    axis: Any = -1,
    ascending: Any = False,
    sort: Any = True,
    return_indices: Any = True,
    output_indices_dtype: str = "int32",
) -> tuple[torch.Tensor, ...]:
    position = integer(axis)
    count = x.shape[position] if integer(k) == -1 else integer(k)
    values, indices = torch.sort(x, dim=position, descending=not ascending, stable=True)
    values, indices = values.narrow(position, 0, count), indices.narrow(position, 0, count).int()
    return (values, indices) if return_indices else (values,)


def _argsort(x: torch.Tensor, axis: Any = -1, ascending: Any = False) -> torch.Tensor:
    return torch.sort(x, dim=integer(axis), descending=not ascending, stable=True)[1].int()


def _cumsum(x: torch.Tensor, axis: Any = 0, exclusive: Any = False, reverse: Any = False) -> torch.Tensor:
    position = integer(axis)
    source = x.flip(position) if reverse else x
    total = torch.cumsum(source, position).to(x.dtype)
    if exclusive:
        zero = torch.zeros_like(total.narrow(position, 0, 1))
        total = torch.cat([zero, total.narrow(position, 0, total.shape[position] - 1)], position)
    return total.flip(position) if reverse else total


def _one_hot(indices: torch.Tensor, one_hot_vector_size: Any, axis: Any = -1, on_value: Any = 1, off_value: Any = 0) -> torch.Tensor:
    size, position = integer(one_hot_vector_size), integer(axis)
    check_size((*indices.shape, size))
    on, off = torch.as_tensor(on_value), torch.as_tensor(off_value)
    hot = torch.where(_wrap(indices, size).unsqueeze(-1) == torch.arange(size), on, off)
    return hot.movedim(-1, position if position >= 0 else hot.dim() + position)


def _band_part(x: torch.Tensor, lower: Any = -1, upper: Any = -1) -> torch.Tensor:
    below = torch.arange(x.shape[-2])[:, None] - torch.arange(x.shape[-1])[None]
    low, high = integer(lower), integer(upper)
    keep = torch.ones_like(below, dtype=torch.bool)
    if low >= 0:
        keep &= below <= low
    if high >= 0:
        keep &= -below <= high
    return torch.where(keep, x, torch.zeros((), dtype=x.dtype))


def _fill(shape: Any, value: Any = 0.0) -> torch.Tensor:
    scalar = torch.as_tensor(value)
    return torch.full(check_size(ints(shape)), scalar.item(), dtype=scalar.dtype)


def _fill_like(ref_tensor: torch.Tensor, value: Any = 0.0) -> torch.Tensor:
    return _fill(list(ref_tensor.shape), value)


def _non_zero(x: torch.Tensor) -> torch.Tensor:
    return x.nonzero().int()


def _range_1d(end: Any, start: Any, step: Any) -> torch.Tensor:
    first, last, stride = (torch.as_tensor(value) for value in (start, end, step))
    if stride.item() == 0:
        raise MilError("step is 0")
    check_size([max(math.ceil((last.item() - first.item()) / stride.item()), 0)])
    return torch.arange(first.item(), last.item(), stride.item(), dtype=torch.result_type(first, last))


TABLE: dict[str, Any] = {
    "argsort": _argsort,
    "band_part": _band_part,
    "cumsum": _cumsum,
    "fill": _fill,
    "fill_like": {16: _fill_like},
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "gather_nd": _gather_nd,
    "non_zero": _non_zero,
    "one_hot": _one_hot,
    "range_1d": _range_1d,
    "scatter": _scatter,
    "scatter_along_axis": _scatter_along_axis,
    "scatter_nd": _scatter_nd,
    "topk": _topk,
}
