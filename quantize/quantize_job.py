"""``f2i quantize``: a float checkpoint and photos become a calibrated checkpoint, one component after another, resumable after a kill."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from quantize import checkpoint
from quantize.calibrate import ComponentInputs, Progress, calibrate_component, component_inputs, component_layers, rewritten, simulated_sqnr
from quantize.calibration_tiles import CalibrationSet, calibration_set
from quantize.models.model import build_components
from quantize.quantized import Quantized, available, write
from quantize.recipe import Recipe, Rule
from runtime_py.errors import UsageError
from runtime_py.files import atomic_directory, write_json


@dataclass(frozen=True)
class QuantizeOptions:
    """What to quantize, how, and with what. ``photos`` None takes those scikit-image ships; ``tile`` 0 the checkpoint's own."""

    checkpoint: str
    recipe: Recipe
    out: Path
    photos: Path | None = None
    tile: int = 0


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
    rules = recipe.resolve([layer for part in inputs for layer in component_layers(part)])
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
