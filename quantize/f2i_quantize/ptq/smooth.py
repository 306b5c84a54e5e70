"""SmoothQuant: the outliers of a norm's output move into the weights that read it. ViT-B and larger collapse in int8 without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.fx import Node

from f2i_quantize.ptq import qdq
from f2i_quantize.ptq.observe import ActivationObserver
from f2i_quantize.ptq.recipe import Rule, Smoothing


def smooth(
    module: nn.Module,
    inputs: Sequence[Sequence[Tensor]],
    component: str,
    rules: Mapping[str, Rule],
    smoothing: Smoothing,
    progress: Callable[[int, int], None],
) -> dict[str, Tensor]:
    """New float weights by parameter path: norms divided by, and the linears that read them multiplied by, s = max|X|^α / max|W|^(1−α).

    Only norms that nothing but linears read are touched, and only where one of those linears is quantized; the function computed stays the same.
    Source: Xiao et al., arXiv 2211.10438, eq. 3 and 4.
    """
    graph = qdq.capture_graph(module, inputs[0])
    groups: dict[Node, list[Node]] = {}
    layers = qdq.graph_layers(graph, component)
    for node, layer in layers.items():
        source = node.args[0]
        named = fnmatchcase(layer.name, smoothing.match)
        if named and isinstance(source, Node) and source.target is torch.ops.aten.layer_norm.default and len(source.args) >= 4:
            groups.setdefault(source, []).append(node)
    wanted = {
        norm: readers
        for norm, readers in groups.items()
        if set(norm.users) == set(readers) and any(layers[r].name in rules and rules[layers[r].name].activations == "int8" for r in readers)
    }
    if not wanted:
        return {}
    watchers: dict[Node, ActivationObserver] = {}
    for number, norm in enumerate(wanted):
        watcher = watchers[norm] = ActivationObserver()
        watcher.mode, watcher.channel_axis = "range", -1
        graph.add_submodule(f"smooth_watch_{number}", watcher)
        with graph.graph.inserting_after(norm):
            graph.graph.call_module(f"smooth_watch_{number}", (norm,))
    graph.recompile()
    with torch.no_grad():
        for k, tile in enumerate(inputs):
            graph(*tile)
            progress(k + 1, len(inputs))
    parameters = dict(graph.named_parameters())
    changed: dict[str, Tensor] = {}
    for norm, readers in wanted.items():
        weights = [str(r.args[1].target) for r in readers]  # type: ignore[union-attr]
        largest = torch.stack([parameters[w].detach().abs().amax(0) for w in weights]).amax(0)
        seen = watchers[norm].channel_max
        if seen is None:
            raise RuntimeError("the graph did not run its watchers")
        factor = (seen.clamp_min(1e-5) ** smoothing.alpha / largest.clamp_min(1e-5) ** (1 - smoothing.alpha)).clamp(1e-3, 1e3)
        for argument in norm.args[2:4]:
            path = str(argument.target)  # type: ignore[union-attr]
            changed[path] = (parameters[path].detach() / factor).contiguous()
        for path in weights:
            changed[path] = (parameters[path].detach() * factor).contiguous()
    return changed
