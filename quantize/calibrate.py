"""``f2i quantize``: a float checkpoint and photos become a calibrated checkpoint, one component after another, resumable after a kill."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from quantize import checkpoint, qdq
from quantize.calibration_tiles import CalibrationSet, calibration_set
from quantize.models.model import ComponentGraph, build_components
from quantize.observe import ActivationObserver, weight_integers, weight_scale
from quantize.quantized import FLOAT, Quantized, apply_weights, available, layer_tensors, simulated, write
from quantize.recipe import Layer, Recipe, Rule
from quantize.rewrites import EVERYWHERE, apply
from quantize.smooth import smooth
from runtime_py.errors import UsageError
from runtime_py.files import atomic_directory, write_json
from runtime_py.metrics import ErrorSums

CHECK_TILES = 4
"""Tiles on which the simulated graph is compared with the float one for the report."""


@dataclass(frozen=True)
class QuantizeOptions:
    """What to quantize, how, and with what. ``photos`` None takes those scikit-image ships; ``tile`` 0 the checkpoint's own."""

    checkpoint: str
    recipe: Recipe
    out: Path
    photos: Path | None = None
    tile: int = 0


Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ComponentInputs:
    """A rewritten component and what it is called with on every calibration tile."""

    name: str
    module: nn.Module
    inputs: tuple[tuple[Tensor, ...], ...]


def quantize_checkpoint(options: QuantizeOptions, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Write ``options.out``: the checkpoint's float parts and its quantization. Returns the calibration record.

    A checkpoint that is quantized to other precisions keeps them. A run that was killed goes on after the last finished component. Raises UsageError for a
    recipe or photos that do not fit, and when ``out`` exists.
    """
    if options.out.exists():
        raise UsageError(f"{options.out}: it exists already; choose another folder or remove it")
    recipe = options.recipe
    model = checkpoint.load(options.checkpoint)
    tile = options.tile or model.config.tile
    graph = build_components(model, tile)
    modules = {name: rewritten(component.module) for name, component in graph.components.items()}
    shots = calibration_set(options.photos, tile, recipe.tiles, recipe.seed)
    inputs = component_inputs(graph, modules, shots, recipe.seed, progress)
    rules = recipe.resolve([layer for part in inputs for layer in _layers(part)])
    work = options.out.with_name(f".{options.out.name}.f2i-quantize")
    key = _resume_key(options, tile, shots)
    tensors: dict[str, Tensor] = {}
    sqnr: dict[str, float | None] = {}
    for part in inputs:
        found, sqnr[part.name] = _resumed(work, key, part, rules, recipe, progress)
        tensors |= found
    record: dict[str, Any] = {
        "photos": "scikit-image samples" if options.photos is None else "folder",
        "images": list(shots.images),
        "tile": tile,
        "tiles": len(shots.tiles),
        "seed": recipe.seed,
        "observer": recipe.activation_observer,
        "checkpoint_sha256": checkpoint.checkpoint_sha256(options.checkpoint),
        "simulated_sqnr_db": sqnr,
    }
    _save(options, model, Quantized(recipe, rules, record, tensors))
    shutil.rmtree(work, ignore_errors=True)
    return record


def _save(options: QuantizeOptions, model: Any, quantized: Quantized) -> None:
    source = Path(options.checkpoint)
    with atomic_directory(options.out) as staging:
        inner = staging / "checkpoint"
        checkpoint.save(model, inner)
        for path in inner.iterdir():
            path.rename(staging / path.name)
        inner.rmdir()
        if available(source):
            shutil.copytree(source / "quantization", staging / "quantization")
        write(staging, quantized)


def rewritten(module: nn.Module) -> nn.Module:
    """The module with the rewrites that every target shares: what scales are found on."""
    return functools.reduce(lambda _, step: step[2], apply(module, EVERYWHERE), module)


def component_inputs(
    graph: ComponentGraph, modules: dict[str, nn.Module], shots: CalibrationSet, seed: int, progress: Progress
) -> list[ComponentInputs]:
    """What every call of every component is given on the calibration tiles, in float."""
    collected: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in modules}
    extra: dict[str, Tensor] = {}
    if any(tensor == "noise" for call in graph.calls for tensor in call.arguments.values()):
        shape = graph.components["unet"].inputs["latent"]
        extra["noise"] = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    for k, shot in enumerate(shots.tiles):
        tensors = graph.run(torch.from_numpy(shot), extra)
        for call in graph.calls:
            names = graph.components[call.component].inputs
            collected[call.component].append(tuple(tensors[call.arguments[n]] for n in names))
        progress("float pass", k + 1, len(shots.tiles))
    return [ComponentInputs(name, module, tuple(collected[name])) for name, module in modules.items()]


def _layers(part: ComponentInputs) -> list[Layer]:
    return list(qdq.graph_layers(qdq.capture_graph(part.module, part.inputs[0]), part.name).values())


def calibrate_component(part: ComponentInputs, rules: dict[str, Rule], recipe: Recipe, progress: Progress) -> dict[str, Tensor]:
    """int8 weights, scales and corrected biases of one component, as :mod:`quantize.quantized` stores them."""
    mine = {name: rule for name, rule in rules.items() if name.startswith(f"{part.name}/")}
    if not any(rule.weights == "int8" for rule in mine.values()):
        return {}
    module, changed = part.module, dict[str, Tensor]()
    for smoothing in recipe.smoothing:
        found = smooth(module, part.inputs, part.name, mine, smoothing, lambda k, n: progress(f"{part.name}: smoothing", k, n))
        changed |= found
        module = apply_weights(module, part.name, {f"{FLOAT}{part.name}/{path}": value for path, value in found.items()})
    prepared = qdq.prepare(module, part.inputs[0], part.name, mine)
    observe(prepared, part.inputs, recipe, lambda k, n: progress(f"{part.name}: calibration", k, n))
    parameters = dict(module.named_parameters())
    integers: dict[str, Tensor] = {}
    biases: dict[str, Tensor] = {}
    for name, layer in prepared.layers.items():
        weight = parameters[f"{layer.layer.path}.weight"]
        layer.weight.scale = weight_scale(weight, recipe.weight_observer)
        integers[name] = weight_integers(weight, layer.weight.scale)
        bias = parameters.get(f"{layer.layer.path}.bias")
        if recipe.bias_correction and bias is not None and layer.input is not None:
            biases[name] = corrected_bias(weight, integers[name], layer.weight.scale, bias, layer.input)
    tensors = layer_tensors(prepared, integers, biases)
    quantized_weights = {f"{layer.layer.path}.weight" for layer in prepared.layers.values()}
    kept = {path: value for path, value in changed.items() if path not in quantized_weights}
    return tensors | {f"{FLOAT}{part.name}/{path}": value for path, value in kept.items()}


def observe(prepared: qdq.Prepared, inputs: Sequence[Sequence[Tensor]], recipe: Recipe, progress: Callable[[int, int], None]) -> None:
    """Two passes over the tiles (range, then histogram inside it), then every activation's scale and zero point."""
    observers = [o for layer in prepared.layers.values() for o in (layer.input, layer.output) if o is not None]
    if not observers:
        return
    for turn, mode in enumerate(("range", "histogram")):
        for observer in observers:
            observer.mode = mode  # type: ignore[assignment]
        for k, tile in enumerate(inputs):
            prepared.run(tile)
            progress(turn * len(inputs) + k + 1, 2 * len(inputs))
    for observer in dict.fromkeys(observers):
        observer.mode = "off"
        observer.solve(recipe.activation_observer, recipe.percentile)


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


def _resume_key(options: QuantizeOptions, tile: int, shots: CalibrationSet) -> str:
    content = [checkpoint.checkpoint_sha256(options.checkpoint), options.recipe.sha256(), tile, list(shots.images)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _resumed(
    work: Path, key: str, part: ComponentInputs, rules: dict[str, Rule], recipe: Recipe, progress: Progress
) -> tuple[dict[str, Tensor], float | None]:
    """A component's tensors: from an earlier run that was killed, or calibrated now and kept for the next."""
    folder = work / key
    done, tensors = folder / f"{part.name}.json", folder / f"{part.name}.safetensors"
    if done.is_file():
        return load_file(tensors), json.loads(done.read_text())["sqnr_db"]
    found = calibrate_component(part, rules, recipe, progress)
    sqnr = simulated_sqnr(part, Quantized(recipe, rules, {}, found)) if found else None
    folder.mkdir(parents=True, exist_ok=True)
    save_file(found, tensors)
    write_json(done, {"sqnr_db": sqnr})
    return found, sqnr
