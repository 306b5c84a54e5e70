"""Calibration of one component: what its layers are given on the tiles, and the int8 weights, scales and biases that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from f2i_runtime.errors import CheckpointError
from f2i_runtime.metrics.fidelity import ErrorSums
from torch import Tensor, nn

from f2i_quantize.models.whole_model import ComponentGraph
from f2i_quantize.ptq import gptq, qdq
from f2i_quantize.ptq.calibration_tiles import CalibrationSet
from f2i_quantize.ptq.observe import ActivationObserver, bounded_scale, weight_integers, weight_scale
from f2i_quantize.ptq.quantized import FLOAT, Quantized, apply_weights, layer_tensors, simulated
from f2i_quantize.ptq.recipe import Layer, Recipe, Rule
from f2i_quantize.ptq.smooth import smooth

NOT_FINITE = "no scale can be found from that: check the checkpoint's weights and its normalization, or calibrate on other photos"
CHECK_TILES = 4
"""Tiles on which the simulated graph is compared with the float one for the report."""


Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ComponentInputs:
    """A rewritten component and what it is called with on every calibration tile."""

    name: str
    module: nn.Module
    inputs: tuple[tuple[Tensor, ...], ...]


def drawn_noise(graph: ComponentGraph, seed: int) -> dict[str, Tensor]:
    """The tensor ``noise`` of models that start from it; nothing for the others."""
    if not any(tensor == "noise" for call in graph.calls for tensor in call.arguments.values()):
        return {}
    shape = graph.components["unet"].inputs["latent"]
    return {"noise": torch.randn(shape, generator=torch.Generator().manual_seed(seed))}


def component_inputs(
    graph: ComponentGraph, modules: dict[str, nn.Module], shots: CalibrationSet, extra: dict[str, Tensor], progress: Progress
) -> list[ComponentInputs]:
    """What every call of every component is given on the calibration tiles, in float. Raises CheckpointError where what it gives is not finite."""
    collected: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in modules}
    for k, shot in enumerate(shots.tiles):
        tensors = graph.run(torch.from_numpy(shot), extra)
        for call in graph.calls:
            names = graph.components[call.component].inputs
            collected[call.component].append(tuple(tensors[call.arguments[n]] for n in names))
            if not torch.isfinite(tensors[call.result]).all():
                raise CheckpointError(f"{call.component}: its float output is not finite on calibration tile {k + 1}; {NOT_FINITE}")
        progress("float pass", k + 1, len(shots.tiles))
    return [ComponentInputs(name, module, tuple(collected[name])) for name, module in modules.items()]


def component_layers(part: ComponentInputs) -> list[Layer]:
    """Its convolutions and linears, in the order in which they run."""
    return list(qdq.graph_layers(qdq.capture_graph(part.module, part.inputs[0]), part.name).values())


def smoothed(part: ComponentInputs, rules: dict[str, Rule], recipe: Recipe, progress: Progress) -> tuple[nn.Module, dict[str, Tensor]]:
    """The component with the recipe's smoothing, the same function with other weights, and those weights by their path."""
    mine = {name: rule for name, rule in rules.items() if name.startswith(f"{part.name}/")}
    module, changed = part.module, dict[str, Tensor]()
    for smoothing in recipe.smoothing:
        found = smooth(module, part.inputs, part.name, mine, smoothing, lambda k, n: progress(f"{part.name}: smoothing", k, n))
        changed |= found
        module = apply_weights(module, part.name, {f"{FLOAT}{part.name}/{path}": value for path, value in found.items()})
    return module, changed


def calibrate_component(part: ComponentInputs, rules: dict[str, Rule], recipe: Recipe, progress: Progress) -> dict[str, Tensor]:
    """int8 weights, scales and corrected biases of one component, as :mod:`f2i_quantize.ptq.quantized` stores them."""
    mine = {name: rule for name, rule in rules.items() if name.startswith(f"{part.name}/")}
    if not any(rule.weights == "int8" for rule in mine.values()):
        return {}
    module, changed = smoothed(part, mine, recipe, progress)
    prepared = qdq.prepare(module, part.inputs[0], part.name, mine)
    observe(prepared, part.inputs, recipe, lambda k, n: progress(f"{part.name}: calibration", k, n))
    parameters = dict(module.named_parameters(remove_duplicate=False))  # an upsampling's four phases share one bias
    for layer in prepared.layers.values():
        layer.weight.scale = weight_scale(parameters[f"{layer.layer.path}.weight"], recipe.weight_observer)
        if layer.input is not None and layer.output is not None:
            bias = parameters.get(f"{layer.layer.path}.bias")
            layer.weight.scale = bounded_scale(layer.weight.scale, bias, layer.input.scale, layer.output.scale)
    integers = _rounded(part, module, prepared, recipe, progress)
    biases: dict[str, Tensor] = {}
    for name, layer in prepared.layers.items():
        weight = parameters[f"{layer.layer.path}.weight"]
        bias = parameters.get(f"{layer.layer.path}.bias")
        if recipe.bias_correction and bias is not None and layer.input is not None:
            biases[name] = corrected_bias(weight, integers[name], layer.weight.scale, bias, layer.input)
    tensors = layer_tensors(prepared, integers, biases)
    quantized_weights = {f"{layer.layer.path}.weight" for layer in prepared.layers.values()}
    kept = {path: value for path, value in changed.items() if path not in quantized_weights}
    return tensors | {f"{FLOAT}{part.name}/{path}": value for path, value in kept.items()}


def _rounded(part: ComponentInputs, module: nn.Module, prepared: qdq.Prepared, recipe: Recipe, progress: Progress) -> dict[str, Tensor]:
    """int8 weights by layer name, at the scales of ``prepared``, rounded as the recipe says."""
    names = {layer.layer.path: name for name, layer in prepared.layers.items()}
    if recipe.rounding == "gptq":
        scales = {path: prepared.layers[name].weight.scale for path, name in names.items()}
        found = gptq.round_layers(module, part.inputs, scales, recipe.seed, lambda k, n: progress(f"{part.name}: second moments", k, n))
        return {names[path]: integers for path, integers in found.items()}
    parameters = dict(module.named_parameters())
    return {name: weight_integers(parameters[f"{path}.weight"], prepared.layers[name].weight.scale) for path, name in names.items()}


def observe(prepared: qdq.Prepared, inputs: Sequence[Sequence[Tensor]], recipe: Recipe, progress: Callable[[int, int], None]) -> None:
    """Two passes over the tiles (range, then histogram inside it), then every activation's scale and zero point.

    Raises CheckpointError, which names the layer, where an activation is NaN or infinite on a tile.
    """
    observers = [o for layer in prepared.layers.values() for o in (layer.input, layer.output) if o is not None]
    if not observers:
        return
    for turn, mode in enumerate(("range", "histogram")):
        for observer in observers:
            observer.mode = mode  # type: ignore[assignment]
        for k, tile in enumerate(inputs):
            prepared.run(tile)
            progress(turn * len(inputs) + k + 1, 2 * len(inputs))
        _check_finite(prepared)
    for observer in dict.fromkeys(observers):
        observer.mode = "off"
        observer.solve(recipe.activation_observer, recipe.percentile)


def _check_finite(prepared: qdq.Prepared) -> None:
    for name, layer in prepared.layers.items():
        for side, observer in (("input", layer.input), ("output", layer.output)):
            if observer is not None and not observer.finite:
                raise CheckpointError(f"{name}: its {side} is NaN or infinite on the calibration tiles; {NOT_FINITE}")


def corrected_bias(weight: Tensor, integers: Tensor, scale: Tensor, bias: Tensor, observer: ActivationObserver) -> Tensor:
    """The bias with the mean that weight rounding takes away given back: b + (W − Ŵ)·E[x] (Nagel et al., arXiv 1906.04721, eq. 17).

    For convolutions E[x] is taken as the same at every tap, which leaves out the padding at the edge.
    """
    rounding = weight - integers.float() * scale.reshape(-1, *(1,) * (weight.dim() - 1))
    taps = rounding.reshape(*rounding.shape[:2], -1).sum(-1)
    mean = observer.channel_mean()
    groups = mean.numel() // taps.shape[1]
    if groups == 1:
        return bias + taps @ mean
    per_group = mean.reshape(groups, -1).repeat_interleave(taps.shape[0] // groups, 0)
    return bias + (taps * per_group).sum(1)


def simulated_sqnr(part: ComponentInputs, quantized: Quantized) -> float | None:
    """SQNR in dB of the simulated component to the float one, on the first tiles; None where nothing is lost."""
    prepared = simulated(part.module, part.inputs[0], part.name, quantized)
    sums = ErrorSums()
    with torch.no_grad():
        for tile in part.inputs[:CHECK_TILES]:
            sums.update(part.module(*tile).numpy(), prepared.run(tile).numpy())
    value = sums.sqnr_db()
    return value if value not in (float("inf"), float("-inf")) else None
