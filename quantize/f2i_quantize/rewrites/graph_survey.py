"""What accelerators ask of a graph: values that stay inside half precision, and tensors of four axes at most. Found on real tiles, place by place."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from f2i_runtime.bundle.graph_record import HALF_LARGEST, MARGIN, GraphPlace, GraphRecord
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from f2i_quantize.rewrites.capture import Tiles
from f2i_quantize.rewrites.passes import Rewrite
from f2i_quantize.rewrites.phone_modules import ChannelGroupNorm

MOST = 1e30
"""What stands for an infinite or undefined value, which JSON cannot hold."""
_NOTHING = GraphPlace(op="", where="", value=0.0)


class _Watcher(TorchDispatchMode):
    """Sees the result of every op, and keeps the place of the largest magnitude and of the most axes."""

    def __init__(self) -> None:
        super().__init__()
        self.modules: list[str] = []
        self.largest = self.deepest = _NOTHING

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor) and value.numel():
                self._see(str(func).removesuffix(".default"), value)
        return result

    def _see(self, op: str, value: Tensor) -> None:
        where = next((name for name in reversed(self.modules) if name), "the component itself")
        if value.dim() > self.deepest.value:
            self.deepest = GraphPlace(op=op, where=where, value=value.dim())
        if not value.is_floating_point():
            return
        low, high = (float(found) for found in torch.aminmax(value))
        magnitude = max(-low, high)
        magnitude = magnitude if math.isfinite(magnitude) else MOST
        if magnitude > self.largest.value:
            self.largest = GraphPlace(op=op, where=where, value=magnitude)


@torch.no_grad()
def survey(module: nn.Module, tiles: Tiles) -> GraphRecord:
    """Returns the largest magnitude of any intermediate value of a module on ``tiles``, and the most axes of any tensor, with the first place of each.

    What an op computes inside itself is not seen: a native normalisation or softmax is the engine's own.
    """
    watcher = _Watcher()
    with _named(module, watcher.modules), watcher:
        for tile in tiles:
            module(*tile)
    return GraphRecord(largest=watcher.largest, deepest=watcher.deepest)


def spare_idle_shrinking(tiles: Tiles) -> Rewrite:
    """Returns the rewrite that spares the group norms whose squares fit half precision on ``tiles``, with the margin, to make their values smaller first.

    That product is as large as the image, and costs a CPU some percent of the whole.
    """

    def spare_idle_shrinking(module: nn.Module) -> int:
        norms = [m for m in module.modules() if isinstance(m, ChannelGroupNorm) and m.shrinks]
        spreads: dict[nn.Module, float] = dict.fromkeys(norms, 0.0)

        def see(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
            # Whatever a mean is taken of lies between the extremes, and no difference of two values is larger than that of the extremes.
            low, high = torch.aminmax(given[0])
            spreads[norm] = max(spreads[norm], float(high - low))

        with contextlib.ExitStack() as hooks:
            for norm in norms:
                hooks.callback(norm.register_forward_pre_hook(see).remove)
            for tile in tiles if norms else ():
                module(*tile)
        idle = [norm for norm in norms if spreads[norm] ** 2 * MARGIN <= HALF_LARGEST]
        for norm in idle:
            norm.without_shrinking()
        return len(idle)

    return spare_idle_shrinking


@contextlib.contextmanager
def _named(module: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keeps the names of the modules that are running in ``stack``, the innermost last."""

    def entering(name: str) -> Callable[..., None]:
        return lambda *_: stack.append(name)

    def leaving(*_: object) -> None:
        stack.pop()

    with contextlib.ExitStack() as hooks:
        for name, child in module.named_modules():
            hooks.callback(child.register_forward_pre_hook(entering(name)).remove)
            hooks.callback(child.register_forward_hook(leaving).remove)
        yield
