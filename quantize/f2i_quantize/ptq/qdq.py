"""The QDQ graph: PT2E on a component's rewritten module, driven by a recipe's rules.

The same function prepares the graph for calibration, for simulation and for export; what differs is only where the observers' scales come from. Layers
are known by the path of their weight, so that scales found on one target's rewriting serve every other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer, SharedQuantizationSpec

from f2i_quantize.ptq.observe import RANGES, WEIGHT_MAX, ActivationObserver, Mode, PerChannelWeightObserver
from f2i_quantize.ptq.recipe import Layer, Op, Rule

OPS: dict[Any, Op] = {torch.ops.aten.conv2d.default: "conv2d", torch.ops.aten.linear.default: "linear"}
SAME_VALUES = {
    torch.ops.aten.reshape.default,
    torch.ops.aten.view.default,
    torch.ops.aten.permute.default,
    torch.ops.aten.transpose.int,
    torch.ops.aten.clone.default,
    torch.ops.aten.contiguous.default,
}
"""Ops that only move values: what stands before them and after them can share one scale."""


@dataclass
class LayerObservers:
    """The observers of one quantized layer; those of activations are None where only weights are quantized."""

    layer: Layer
    node: str
    weight: PerChannelWeightObserver
    input: ActivationObserver | None = None
    output: ActivationObserver | None = None

    def all(self) -> list[PerChannelWeightObserver | ActivationObserver]:
        """Returns the observers that exist."""
        return [o for o in (self.weight, self.input, self.output) if o is not None]

    def switch(self, mode: Mode) -> None:
        """Sets the mode of all observers."""
        for observer in self.all():
            observer.mode = mode


@dataclass
class Prepared:
    """A component's graph with observers in it."""

    graph: GraphModule
    layers: dict[str, LayerObservers]

    def switch(self, mode: Mode) -> None:
        """Set the mode of every observer."""
        for layer in self.layers.values():
            layer.switch(mode)

    def run(self, inputs: Sequence[Tensor]) -> Tensor:
        """The graph's output, without gradients."""
        with torch.no_grad():
            result: Tensor = self.graph(*inputs)
        return result


def capture_graph(module: nn.Module, example: Sequence[Tensor]) -> GraphModule:
    """The module as a graph of ATen ops whose weights keep their paths."""
    with torch.no_grad():
        graph: GraphModule = torch.export.export(module.eval(), tuple(example), strict=False).module(check_guards=False)
    return graph


def graph_layers(graph: GraphModule, component: str) -> dict[Node, Layer]:
    """Convolutions and linears whose weight is a parameter, in the graph's order. Resizes, whose matrices are buffers, are not layers."""
    parameters = dict(graph.named_parameters())
    found: list[tuple[Node, str, Op]] = []
    for node in graph.graph.nodes:
        op = OPS.get(node.target) if node.op == "call_function" else None
        weight = node.args[1] if op else None
        if op and isinstance(weight, Node) and weight.op == "get_attr" and str(weight.target) in parameters:
            found.append((node, str(weight.target).removesuffix(".weight"), op))
    layers = {}
    for index, (node, path, op) in enumerate(found):
        position: Any = "first" if index == 0 else "last" if index == len(found) - 1 else "inside"
        layers[node] = Layer(component, path, op, position, tuple(parameters[f"{path}.weight"].shape))
    return layers


class RecipeQuantizer(Quantizer):
    """Annotates the layers that ``rules`` name and nothing else, and checks that every one of them was annotated.

    The input of a layer shares the scale of the quantized layer that makes it, also through ops that only move values, and layers that read
    the same tensor share one scale: neighbouring engines' kernels then hand on int8 without a round trip through float. Where nothing but a ReLU reads a
    layer, the output is what the ReLU gives: kernels do both at once, and no step of the scale is spent on what the ReLU takes away.
    """

    def __init__(self, component: str, rules: Mapping[str, Rule]) -> None:
        self.component, self.rules = component, rules
        self.annotated: dict[Node, Layer] = {}
        self.weight_spec = QuantizationSpec(
            torch.int8, PerChannelWeightObserver, -WEIGHT_MAX, WEIGHT_MAX, torch.per_channel_symmetric, ch_axis=0
        )

    def annotate(self, model: GraphModule) -> GraphModule:
        """Called by ``prepare_pt2e``."""
        layers = graph_layers(model, self.component)
        chosen = {n: layer for n, layer in layers.items() if layer.name in self.rules and self.rules[layer.name].weights == "int8"}
        for node, layer in chosen.items():
            source, weight = node.args[:2]
            if not (isinstance(source, Node) and isinstance(weight, Node)):
                raise TypeError(f"{layer.name}: its input or weight is not a tensor of the graph")
            kind, specs = self.rules[layer.name].activations, {weight: self.weight_spec}
            if kind != "float":
                specs[source] = self._input_spec(source, kind)
            node.meta["quantization_annotation"] = QuantizationAnnotation(input_qspec_map=specs, _annotated=True)
            last = rounded_node(node)
            if kind != "float":
                last.meta.setdefault("quantization_annotation", QuantizationAnnotation(_annotated=True)).output_qspec = _activation_spec(
                    kind
                )
            self.annotated[last] = layer
        return model

    def _input_spec(self, source: Node, kind: str) -> Any:
        """PT2E shares one scale among readers of one tensor and with its maker; beyond ops that only move values we say so."""
        maker = _maker(source)
        if maker is not source and maker in self.annotated and self.rules[self.annotated[maker].name].activations == kind:
            return SharedQuantizationSpec(maker)
        return _activation_spec(kind)

    def validate(self, model: GraphModule) -> None:
        """Called by ``prepare_pt2e``; what the recipe asked for is counted in :func:`prepare`."""


def rounded_node(layer: Node) -> Node:
    """Returns the node whose result is a layer's output on the integer grid: the ReLU behind the layer where nothing else reads it, or the layer itself."""
    readers = list(layer.users)
    return readers[0] if len(readers) == 1 and readers[0].target is torch.ops.aten.relu.default else layer


def _activation_spec(kind: str) -> QuantizationSpec:
    dtype, low, high, scheme = RANGES[kind]
    return QuantizationSpec(dtype, ActivationObserver, low, high, scheme)


def _maker(node: Node) -> Node:
    """The node whose values these are, looking back through ops that only move them."""
    while node.op == "call_function" and node.target in SAME_VALUES:
        node = node.args[0]  # type: ignore[assignment]
    return node


def prepare(module: nn.Module, example: Sequence[Tensor], component: str, rules: Mapping[str, Rule]) -> Prepared:
    """The component's graph with an observer at every tensor that ``rules`` (layer name → rule) quantizes.

    Raises RuntimeError when a layer the rules name did not get its observers: a layer left out silently is a file that is not int8.
    """
    graph = capture_graph(module, example)
    quantizer = RecipeQuantizer(component, rules)
    graph = prepare_pt2e(graph, quantizer)
    modules = dict(graph.named_modules())
    layers: dict[str, LayerObservers] = {}
    for node, layer in graph_layers_observed(graph, component).items():
        if layer.name not in rules or rules[layer.name].weights != "int8":
            continue
        weight = modules.get(str(node.args[1].target))  # type: ignore[union-attr]
        observers = LayerObservers(layer, node.name, weight)  # type: ignore[arg-type]
        if rules[layer.name].activations != "float":
            observers.input = modules.get(str(node.args[0].target))  # type: ignore[union-attr,assignment]
            last = rounded_node(node)
            following = [modules.get(str(user.target)) for user in last.users if user.op == "call_module"]
            observers.output = following[0] if len(following) == 1 == len(last.users) else None  # type: ignore[assignment]
            if not (isinstance(observers.input, ActivationObserver) and isinstance(observers.output, ActivationObserver)):
                raise RuntimeError(f"{layer.name}: PT2E left its input or output without an observer")
            observers.input.channel_axis = 1 if layer.op == "conv2d" else -1
        if not isinstance(observers.weight, PerChannelWeightObserver):
            raise RuntimeError(f"{layer.name}: PT2E left its weight without an observer")
        layers[layer.name] = observers
    wanted = {name for name, rule in rules.items() if rule.weights == "int8" and name.startswith(f"{component}/")}
    if wanted != set(layers):
        raise RuntimeError(
            f"{component}: the recipe quantizes {len(wanted)} layers, the graph {len(layers)}; missing {sorted(wanted - set(layers))}"
        )
    return Prepared(graph, layers)


def graph_layers_observed(graph: GraphModule, component: str) -> dict[Node, Layer]:
    """:func:`graph_layers` of a prepared graph, where an observer may stand between a weight and its op."""
    parameters = dict(graph.named_parameters())
    found: dict[Node, Layer] = {}
    for node in graph.graph.nodes:
        op = OPS.get(node.target) if node.op == "call_function" else None
        weight = node.args[1] if op else None
        if isinstance(weight, Node) and weight.op == "call_module":
            weight = weight.args[0]
        if op and isinstance(weight, Node) and weight.op == "get_attr" and str(weight.target) in parameters:
            path = str(weight.target).removesuffix(".weight")
            found[node] = Layer(component, path, op, "inside", tuple(parameters[str(weight.target)].shape))
    return found


def convert(prepared: Prepared, *, fold: bool) -> GraphModule:
    """Observers become quantize and dequantize ops. With ``fold`` weights are stored as int8; LiteRT's converter wants them unfolded."""
    graph: GraphModule = convert_pt2e(prepared.graph, fold_quantize=fold)
    return graph
