"""What a quantized checkpoint holds beside its float parts, and how it becomes a QDQ graph again, the same on every target.

    CHECKPOINT/quantization/<precision>.json          the recipe in full with its hash, every layer's rule, where the calibration came from
    CHECKPOINT/quantization/<precision>.safetensors   int8 weights, scales, zero points, corrected biases, and float weights that smoothing changed

Tensors are named ``component/module.path`` of the rewritten component, then ``.weight`` (int8), ``.weight_scale``, ``.bias``, ``.input_scale``,
``.input_zero_point``, ``.output_scale`` and ``.output_zero_point``; changed float weights are named ``float:component/parameter``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from f2i_runtime.errors import CheckpointError
from f2i_runtime.files import sha256_file
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.fx import GraphModule

from f2i_quantize.ptq import qdq
from f2i_quantize.ptq.quantization_record import FOLDER, SCHEMA, read_record, recipe_record
from f2i_quantize.ptq.recipe import Recipe, Rule
from f2i_quantize.rewrites.passes import shared_copy

FLOAT = "float:"
INT32_MAX = 2**31 - 1
AGAIN = "engines hold it as int32: quantize the checkpoint again with this version"


@dataclass(frozen=True)
class PaletteLayer:
    """A layer whose weight becomes indices of ``bits`` into a table."""

    path: str
    bits: int


@dataclass(frozen=True)
class Quantized:
    """One precision of a checkpoint."""

    recipe: Recipe
    rules: dict[str, Rule]
    """Layer name → its rule, for every layer that a rule selects."""
    calibration: dict[str, Any]
    tensors: dict[str, Tensor]

    def record(self) -> dict[str, Any]:
        """The recipe in full with its hash, as manifests carry it."""
        return recipe_record(self.recipe)


def write(folder: Path, quantized: Quantized) -> None:
    """Write both files into ``folder``/quantization, which lies in a checkpoint that is being staged."""
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    name = quantized.recipe.precision
    tensors = place / f"{name}.safetensors"
    save_file({k: v.contiguous() for k, v in sorted(quantized.tensors.items())}, tensors)
    description = {
        "schema": SCHEMA,
        "precision": name,
        "recipe": quantized.recipe.model_dump(mode="json"),
        "recipe_sha256": quantized.recipe.sha256(),
        "tensors_sha256": sha256_file(tensors),
        "layers": {k: rule.model_dump(mode="json") for k, rule in quantized.rules.items()},
        "calibration": quantized.calibration,
    }
    (place / f"{name}.json").write_text(json.dumps(description, indent=1, allow_nan=False) + "\n")


def read(checkpoint: str | Path, precision: str, *, verified: str = "") -> Quantized:
    """Read one precision back, checked.

    ``verified``: the description's hash as it was when the caller's parent checked the tensors against it: they are read once then, and not hashed again.
    Raises UsageError where the precision is absent, CheckpointError where it is damaged or another one than was verified.
    """
    record = read_record(checkpoint, precision)
    if not verified:
        record.check_tensors()
    elif record.sha256 != verified:
        raise CheckpointError(f"{checkpoint}: its quantization to {precision} changed while it was exported; run the export again")
    try:
        return Quantized(record.recipe, record.rules, record.calibration, load_file(record.tensors))
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"{record.tensors}: not a readable safetensors file: {e}") from e


def apply_weights(module: nn.Module, component: str, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a rewritten component whose quantized weights and biases lie on their grids, with smoothed float weights.

    Engines with integer kernels hold a bias as int32 in steps of input scale times weight scale; so does every graph made of this copy.
    Raises CheckpointError where a bias does not fit, or where a shape is another model's.
    """
    copy = shared_copy(module)
    for name, value in tensors.items():
        if name.startswith(f"{FLOAT}{component}/"):
            _set(copy, name.split("/", 1)[1], value)
        elif name.startswith(f"{component}/") and name.endswith(".weight"):
            scale = tensors[f"{name}_scale"].reshape(-1, *(1,) * (value.dim() - 1))
            _set(copy, name.split("/", 1)[1], value.float() * scale)
        elif name.startswith(f"{component}/") and name.endswith(".bias"):
            _set(copy, name.split("/", 1)[1], value)
    for name in (n for n in tensors if n.startswith(f"{component}/") and n.endswith(".input_scale")):
        layer = name.removesuffix(".input_scale")
        bias = getattr(copy.get_submodule(layer.split("/", 1)[1]), "bias", None)
        if bias is not None:
            step = tensors[f"{layer}.weight_scale"] * tensors[name].float()
            steps = (bias / step).round()
            if not float(steps.abs().max()) <= INT32_MAX:
                raise CheckpointError(
                    f"{layer}: its bias takes {float(steps.abs().max()):.1e} steps, expected at most {INT32_MAX}; {AGAIN}"
                )
            _set(copy, f"{layer.split('/', 1)[1]}.bias", steps * step)
    return copy


def _set(module: nn.Module, path: str, value: Tensor) -> None:
    owner, _, name = path.rpartition(".")
    try:
        target = module.get_submodule(owner)
        shape = getattr(target, name).shape
    except AttributeError as e:
        raise CheckpointError(f"{path}: the model has no such weight; the quantization is of another model") from e
    if shape != value.shape:
        raise CheckpointError(f"{path}: shape {tuple(value.shape)}, expected {tuple(shape)}; the quantization is of another model")
    setattr(target, name, nn.Parameter(value, requires_grad=False))


def load_scales(prepared: qdq.Prepared, tensors: Mapping[str, Tensor]) -> None:
    """Give every observer its stored scale."""
    for name, layer in prepared.layers.items():
        layer.weight.scale = tensors[f"{name}.weight_scale"]
        for side, observer in (("input", layer.input), ("output", layer.output)):
            if observer is not None:
                observer.scale = float(tensors[f"{name}.{side}_scale"])
                observer.zero_point = int(tensors[f"{name}.{side}_zero_point"])


def stored_bytes(module: nn.Module, component: str, quantized: Quantized) -> int:
    """What a rewritten component's tensors weigh when each is stored as the recipe says: int8 weights one byte a value, everything else four."""
    int8 = {name.split("/", 1)[1] for name, rule in quantized.rules.items() if name.startswith(f"{component}/") and rule.weights == "int8"}
    tensors = dict((*module.named_parameters(), *module.named_buffers()))
    return sum(t.numel() * (1 if name.removesuffix(".weight") in int8 else 4) for name, t in tensors.items())


def palettes(quantized: Quantized, component: str) -> list[PaletteLayer]:
    """Layers of ``component`` that the recipe gives a palette."""
    chosen = {k.split("/", 1)[1]: rule.weights for k, rule in quantized.rules.items() if k.startswith(f"{component}/")}
    return [PaletteLayer(path, int(kind.removeprefix("palette"))) for path, kind in chosen.items() if kind.startswith("palette")]


def qdq_graph(module: nn.Module, example: Sequence[Tensor], component: str, quantized: Quantized, *, fold: bool) -> GraphModule:
    """The QDQ graph of a rewritten component. ``fold``: int8 weights are stored as such (see :func:`f2i_quantize.ptq.qdq.convert`)."""
    prepared = simulated(module, example, component, quantized)
    return qdq.convert(prepared, fold=fold)


def simulated(module: nn.Module, example: Sequence[Tensor], component: str, quantized: Quantized) -> qdq.Prepared:
    """The same function as :func:`qdq_graph`, with observers that round instead of quantize and dequantize ops."""
    prepared = qdq.prepare(apply_weights(module, component, quantized.tensors), example, component, quantized.rules)
    load_scales(prepared, quantized.tensors)
    prepared.switch("fake")
    return prepared


def layer_tensors(prepared: qdq.Prepared, weights: Mapping[str, Tensor], biases: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of :func:`write` for one prepared component. ``weights``: int8 by layer name; ``biases`` where they changed."""
    tensors: dict[str, Tensor] = {f"{name}.bias": bias for name, bias in biases.items()}
    for name, layer in prepared.layers.items():
        tensors[f"{name}.weight"], tensors[f"{name}.weight_scale"] = weights[name], layer.weight.scale
        for side, observer in (("input", layer.input), ("output", layer.output)):
            if observer is not None:
                tensors[f"{name}.{side}_scale"] = torch.tensor(observer.scale, dtype=torch.float64)
                tensors[f"{name}.{side}_zero_point"] = torch.tensor(observer.zero_point, dtype=torch.int32)
    return tensors
