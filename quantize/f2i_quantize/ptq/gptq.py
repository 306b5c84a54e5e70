"""GPTQ: weights rounded one input after another, each making up for the error of those before, on the second moments of what a layer reads.

Source: Frantar et al., arXiv 2210.17323, algorithm 1, with columns in the order of their moments (its "act order"). Convolutions are linears over their
im2col columns. No training: one pass over the calibration tiles, then a Cholesky factor per layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from f2i_quantize.ptq.observe import WEIGHT_MAX, weight_integers

POSITIONS = 1024
"""Positions of one tile that a layer's moments are taken over: a seeded window of a large map, all of a small one."""
DAMPING = 0.01
"""The share of the mean of the diagonal that is added to the diagonal."""
BLOCK = 128
MOST_BYTES = 1 << 30
"""The most bytes of moments that are held at a time. Larger models take several passes over the tiles."""


def round_layers(
    module: nn.Module,
    inputs: Sequence[Sequence[Tensor]],
    scales: Mapping[str, Tensor],
    seed: int,
    progress: Callable[[int, int], None],
) -> dict[str, Tensor]:
    """int8 weights by path, for the layers of ``scales`` (path → scale of each output channel). Grouped convolutions are rounded to nearest.

    ``inputs``: what ``module`` is called with, one entry per tile.
    """
    layers = {path: module.get_submodule(path) for path in scales}
    chunks = list(_chunks({path: layer for path, layer in layers.items() if getattr(layer, "groups", 1) == 1}))
    rounded = {path: weight_integers(_weight(layers[path]), scale) for path, scale in scales.items()}
    total = len(chunks) * len(inputs)
    for number, chunk in enumerate(chunks):
        tell = functools.partial(_tell, progress, number * len(inputs), total)
        found = _moments(module, inputs, chunk, seed, tell)
        for path, layer in chunk.items():
            weight = _weight(layer)
            rounded[path] = round_rows(weight.flatten(1), scales[path], found.pop(path)).reshape(weight.shape)
    return rounded


def round_rows(weight: Tensor, scale: Tensor, moments: Tensor) -> Tensor:
    """int8 (rows, columns) of ``weight`` at ``scale`` (rows,), given E[x xᵀ] (columns, columns) of what it is multiplied with, up to a factor."""
    order = moments.diagonal().argsort(descending=True)
    rest, moments = weight.detach()[:, order].double(), moments[order][:, order].double()
    unseen = moments.diagonal() == 0
    moments.diagonal().add_(DAMPING * moments.diagonal().mean().clamp_min(1e-12))
    moments.diagonal()[unseen] = 1.0
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moments)), upper=True)
    step = scale.double()
    integers = torch.empty_like(rest)
    for start in range(0, rest.shape[1], BLOCK):
        stop = min(start + BLOCK, rest.shape[1])
        errors = torch.empty(rest.shape[0], stop - start, dtype=torch.float64)
        for k in range(start, stop):
            column = rest[:, k]
            integers[:, k] = (column / step).round().clamp(-WEIGHT_MAX, WEIGHT_MAX)
            errors[:, k - start] = (column - integers[:, k] * step) / factor[k, k]
            rest[:, k:stop] -= errors[:, k - start, None] * factor[k, k:stop]
        rest[:, stop:] -= errors @ factor[start:stop, stop:]
    return integers[:, order.argsort()].to(torch.int8)


def _tell(progress: Callable[[int, int], None], before: int, total: int, done: int) -> None:
    progress(before + done, total)


def _weight(layer: nn.Module) -> Tensor:
    weight: Tensor = layer.weight.detach()  # type: ignore[assignment, operator]
    return weight


def _chunks(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, nn.Module]]:
    chunk: dict[str, nn.Module] = {}
    size = 0
    for path, layer in layers.items():
        bytes_of = 4 * _weight(layer)[0].numel() ** 2
        if chunk and size + bytes_of > MOST_BYTES:
            yield chunk
            chunk, size = {}, 0
        chunk[path], size = layer, size + bytes_of
    if chunk:
        yield chunk


def _moments(
    module: nn.Module, inputs: Sequence[Sequence[Tensor]], layers: Mapping[str, nn.Module], seed: int, progress: Callable[[int], None]
) -> dict[str, Tensor]:
    """Sum of x xᵀ over what each layer reads, float32 (columns, columns)."""
    sums: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)

    def add(path: str, layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        columns = _columns(layer, arguments[0].detach(), generator)
        sums[path] = columns @ columns.T if path not in sums else sums[path].addmm_(columns, columns.T)

    hooks = [layer.register_forward_pre_hook(functools.partial(add, path)) for path, layer in layers.items()]
    try:
        with torch.no_grad():
            for k, tile in enumerate(inputs):
                module(*tile)
                progress(k + 1)
    finally:
        for hook in hooks:
            hook.remove()
    return sums


def _columns(layer: nn.Module, x: Tensor, generator: torch.Generator) -> Tensor:
    """What the layer's weight rows are multiplied with, (columns, at most about :data:`POSITIONS`)."""
    if not isinstance(layer, nn.Conv2d):
        rows = x.reshape(-1, x.shape[-1])
        if len(rows) > POSITIONS:
            rows = rows[torch.randint(len(rows), (POSITIONS,), generator=generator)]
        return rows.T.contiguous()
    padding: tuple[int, ...] = layer.padding  # type: ignore[assignment]
    side = int(POSITIONS**0.5)
    span = [(side - 1) * s + d * (k - 1) + 1 for s, d, k in zip(layer.stride, layer.dilation, layer.kernel_size, strict=True)]
    if x.shape[2] > span[0] and x.shape[3] > span[1]:
        top, left = (int(torch.randint(x.shape[2 + axis] - span[axis] + 1, (1,), generator=generator)) for axis in (0, 1))
        x, padding = x[:, :, top : top + span[0], left : left + span[1]], (0, 0)
    columns: Tensor = functional.unfold(x, layer.kernel_size, layer.dilation, padding, layer.stride)  # type: ignore[arg-type]
    return columns.transpose(0, 1).reshape(columns.shape[1], -1)
