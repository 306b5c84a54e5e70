"""From a component's module to the ``torch.export`` program that is lowered: half precision with float32 edges, capture, rewrite with proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from f2i_runtime.bundle.manifest import RewriteRecord
from f2i_runtime.errors import ToolchainError
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from f2i_quantize.rewrites import passes as rewrites

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
"""The same limit for rewrites that are made only for half precision, whose own rounding is 5e-4."""


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


Tiles = Sequence[Sequence[Tensor]]


@torch.no_grad()
def rewrite(
    module: nn.Module, steps: tuple[rewrites.Rewrite, ...], label: str, tiles: Tiles, references: Sequence[Tensor] = ()
) -> Rewritten:
    """Apply a target's rewrites and check the result on real ``tiles`` against the module as it was given.

    ``label``: ``COMPONENT/TARGET``, for errors. ``tiles``: one list of input tensors per tile; ``references``: the module's outputs on them, where they are
    known already. Raises ToolchainError naming the first rewrite that changed the numbers by more than :data:`REWRITE_LIMIT`.
    """
    return _Proof(label, module, tiles, references, REWRITE_LIMIT).apply(Rewritten(module, ()), steps)


@torch.no_grad()
def rewrite_for_half(
    rewritten: Rewritten,
    original: nn.Module,
    steps: tuple[rewrites.Rewrite, ...],
    label: str,
    tiles: Tiles,
    references: Sequence[Tensor] = (),
) -> Rewritten:
    """The rewrites that a target needs only when it computes in half precision, on top of :func:`rewrite`'s; limit :data:`HALF_REWRITE_LIMIT`."""
    return _Proof(label, original, tiles, references, HALF_REWRITE_LIMIT).apply(rewritten, steps)


@dataclass(frozen=True)
class _Proof:
    """Checks the rewrites against their limit. They are proved together, with one pass over the tiles, because a pass of a large decoder takes a
    minute.
    """

    label: str
    original: nn.Module
    tiles: Tiles
    references: Sequence[Tensor]
    limit: float

    def apply(self, start: Rewritten, steps: tuple[rewrites.Rewrite, ...]) -> Rewritten:
        if not steps:
            return start
        made = [(name, count, module) for name, count, module in rewrites.apply(start.module, steps)]
        if not made:
            return start
        references = self.references or [self.original(*tile) for tile in self.tiles]
        error = self._error(made[-1][2], references)
        if not error <= self.limit:
            self._blame(start, steps, references, error)
        records = [RewriteRecord(name=name, count=count, relative_l2=error) for name, count, _ in made]
        return Rewritten(made[-1][2], (*start.records, *records))

    def _error(self, module: nn.Module, references: Sequence[Tensor]) -> float:
        return max(relative_l2(reference, module(*tile)) for reference, tile in zip(references, self.tiles, strict=True))

    def _blame(self, start: Rewritten, steps: tuple[rewrites.Rewrite, ...], references: Sequence[Tensor], error: float) -> NoReturn:
        """Proves the rewrites one after another, to name the one that changed the numbers."""
        culprit = "all"
        for name, _, module in rewrites.apply(start.module, steps):
            found = self._error(module, references)
            if not found <= self.limit:
                culprit, error = name, found
                break
        component, target = self.label.split("/")
        reason = f"relative L2 {error:.1e} to the original, expected at most {self.limit:.0e}"
        raise ToolchainError(component=component, target=target, stage=f"rewrite {culprit}", reason=reason)
