"""What a component costs whoever computes it: operations counted from the full-precision reference's graph, by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch.fx.node import Node, map_arg
from torch.utils.flop_counter import FlopCounterMode

LAYER_DEPTH = 4
"""Names of modules are cut to so many parts: ``denoiser.unet.down_blocks.0``."""


@dataclass(frozen=True)
class GraphCost:
    """Floating-point operations of one call, two for each multiply-add, in all and by layer. Convolutions and matrix products only."""

    flops: int
    layers: Mapping[str, int]


def graph_cost(program: Path) -> GraphCost:
    """Count a ``.pt2`` program by torch's own formulas (``torch.utils.flop_counter``), node by node on shapes alone."""
    graph = torch.export.load(program).graph
    layers: dict[str, int] = {}
    for node in graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        flops = _node_flops(node)
        if flops:
            layer = _layer(node)
            layers[layer] = layers.get(layer, 0) + flops
    return GraphCost(sum(layers.values()), layers)


def _node_flops(node: Node) -> int:
    fakes = [v for v in (n.meta.get("val") for n in node.all_input_nodes) if isinstance(v, torch.Tensor)]
    if not fakes:
        return 0
    arguments, keywords = map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    mode = getattr(fakes[0], "fake_mode", None)
    if mode is None:
        return 0
    with mode, FlopCounterMode(display=False) as counter:
        cast("torch._ops.OpOverload", node.target)(*arguments, **keywords)
    return int(counter.get_total_flops())


def _layer(node: Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    parts = [p for p in path.replace("L__self__", "").split(".") if p]
    return ".".join(parts[:LAYER_DEPTH]) or "top"
