"""From a component's module to the ``torch.export`` program that is lowered: half precision with float32 edges, capture, rewrite with proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from quantize import rewrites
from runtime_py.errors import ToolchainError
from runtime_py.manifest import RewriteRecord

REWRITE_LIMIT = 1e-5
"""Largest relative L2 of a rewritten component to the original, on real tiles in float32."""


class HalfInside(nn.Module):
    """Float16 inside, float32 at the edges: what an app passes and gets stays float32."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = rewrites.half_copy(module)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.module(*(x.half() for x in inputs)).float()


HALF_REWRITE_LIMIT = 2e-4
"""The same for rewrites made only for half precision, whose own rounding is 5e-4."""


@dataclass(frozen=True)
class Rewritten:
    """A rewritten module and what was done to it."""

    module: nn.Module
    records: tuple[RewriteRecord, ...]


def capture(module: nn.Module, example: Sequence[Tensor]) -> ExportedProgram:
    """The module as a ``torch.export`` program of functional ATen ops, at the example's shapes."""
    if not isinstance(module, GraphModule):  # a QDQ graph is in eval mode for good, and says so when it is asked
        module = module.eval()
    with torch.no_grad():
        return torch.export.export(module, tuple(example), strict=False).run_decompositions({})


def relative_l2(reference: Tensor, test: Tensor) -> float:
    """‖test − reference‖ / ‖reference‖ in float64."""
    reference = reference.double()
    return float((test.double() - reference).norm() / reference.norm().clamp_min(1e-30))


@torch.no_grad()
def rewrite(module: nn.Module, target: str, component: str, tiles: Sequence[Sequence[Tensor]]) -> Rewritten:
    """Apply the target's rewrites one after another, each checked on real ``tiles`` against the module as it was given.

    ``tiles``: one list of input tensors per tile. Raises ToolchainError naming the rewrite that changed the numbers by more than
    :data:`REWRITE_LIMIT`.
    """
    return _prove(Rewritten(module, ()), rewrites.REWRITES[target], REWRITE_LIMIT, f"{component}/{target}", module, tiles)


@torch.no_grad()
def rewrite_for_half(
    rewritten: Rewritten, original: nn.Module, target: str, component: str, tiles: Sequence[Sequence[Tensor]]
) -> Rewritten:
    """The rewrites that a target needs only when it computes in half precision, on top of :func:`rewrite`'s; limit :data:`HALF_REWRITE_LIMIT`."""
    return _prove(rewritten, rewrites.HALF_REWRITES.get(target, ()), HALF_REWRITE_LIMIT, f"{component}/{target}", original, tiles)


def _prove(
    start: Rewritten, steps: tuple[rewrites.Rewrite, ...], limit: float, label: str, original: nn.Module, tiles: Sequence[Sequence[Tensor]]
) -> Rewritten:
    if not steps:
        return start
    references = [original(*tile) for tile in tiles]
    records, current = list(start.records), start.module
    for name, count, module in rewrites.apply(start.module, steps):
        error = max(relative_l2(reference, module(*tile)) for reference, tile in zip(references, tiles, strict=True))
        if not error <= limit:
            component, target = label.split("/")
            reason = f"relative L2 {error:.1e} to the original, expected at most {limit:.0e}"
            raise ToolchainError(component=component, target=target, stage=f"rewrite {name}", reason=reason)
        records.append(RewriteRecord(name=name, count=count, relative_l2=error))
        current = module
    return Rewritten(current, tuple(records))
