"""``f2i quantize``: a float checkpoint and photos become a calibrated checkpoint, one component after another, resumable after a kill."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from f2i_runtime.errors import CheckpointError, UsageError
from f2i_runtime.files import atomic_directory, write_json
from safetensors.torch import load_file, save_file
from torch import Tensor

from f2i_quantize.models import checkpoint, checkpoint_files
from f2i_quantize.models.whole_model import ComponentGraph, F2IModel, build_components
from f2i_quantize.ptq import mixed, qat, sensitivity
from f2i_quantize.ptq.calibrate import (
    ComponentInputs,
    Progress,
    calibrate_component,
    component_inputs,
    component_layers,
    drawn_noise,
    simulated_sqnr,
    smoothed,
)
from f2i_quantize.ptq.calibration_tiles import CalibrationSet, calibration_set
from f2i_quantize.ptq.fake_layers import fake_component
from f2i_quantize.ptq.quantization_record import available
from f2i_quantize.ptq.quantized import Quantized, write
from f2i_quantize.ptq.recipe import Qat, Recipe, Rule
from f2i_quantize.rewrites.passes import rewritten
from f2i_quantize.rewrites.split_skips import SplitSkipResnet

LEAST_SQNR_DB = 12.0
"""The SQNR that the output of trained weights must keep on tiles that calibration did not see. Less is no approximation: a quarter of the signal is error."""


@dataclass(frozen=True)
class QuantizeOptions:
    """What to quantize, how, and with what. ``photos`` None takes those scikit-image ships; ``tile`` 0 the checkpoint's own."""

    checkpoint: str
    recipe: Recipe
    out: Path
    photos: Path | None = None
    tile: int = 0


@dataclass(frozen=True)
class Subject:
    """A model while it is being quantized: loaded, run on the calibration tiles, and calibrated by ``recipe``."""

    options: QuantizeOptions
    recipe: Recipe
    model: F2IModel
    tile: int
    graph: ComponentGraph
    parts: list[ComponentInputs]
    shots: CalibrationSet
    extra: dict[str, Tensor]
    rules: dict[str, Rule]
    tensors: dict[str, Tensor]
    sqnr: dict[str, float | None]
    """The SQNR of each component in simulation, in dB."""

    def integers(self) -> list[str]:
        """Names of the int8 layers."""
        return [name for name, rule in self.rules.items() if rule.weights == "int8"]

    def total_macs(self) -> int:
        """Multiply-adds per output tile of all convolutions and linears."""
        every = {layer.name: Rule(weights="int8") for part in self.parts for layer in component_layers(part)}
        return sum(unit.macs for unit in sensitivity.units(self.parts, every, self.graph)[0])


def calibrated(options: QuantizeOptions, recipe: Recipe, progress: Progress) -> Subject:
    """Load the checkpoint and calibrate its components; those that an earlier run finished are read back."""
    model = checkpoint.load(options.checkpoint)
    tile = options.tile or model.config.tile
    graph = build_components(model, tile)
    modules = {name: rewritten(component.module, split_skips=recipe.split_skips) for name, component in graph.components.items()}
    if recipe.split_skips and not any(isinstance(m, SplitSkipResnet) for m in modules["unet"].modules()):
        raise UsageError(
            f"recipe {recipe.name}: split_skips, but {options.checkpoint} has no skip concatenation that can be split (models of several steps have none)"
        )
    shots = calibration_set(options.photos, tile, recipe.tiles, recipe.seed)
    extra = drawn_noise(graph, recipe.seed)
    parts = component_inputs(graph, modules, shots, extra, progress)
    rules = recipe.resolve([layer for part in parts for layer in component_layers(part)])
    subject = Subject(options, recipe, model, tile, graph, parts, shots, extra, rules, {}, {})
    return _calibrate(subject, recipe, rules, progress)


def _calibrate(subject: Subject, recipe: Recipe, rules: dict[str, Rule], progress: Progress) -> Subject:
    key = _resume_key(subject.options, recipe, subject.tile, subject.shots)
    tensors: dict[str, Tensor] = {}
    sqnr: dict[str, float | None] = {}
    for part in subject.parts:
        found, sqnr[part.name] = _resumed(_work(subject.options) / key, part, rules, recipe, progress)
        tensors |= found
    return replace(subject, recipe=recipe, rules=rules, tensors=tensors, sqnr=sqnr)


def quantize_checkpoint(options: QuantizeOptions, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Write ``options.out``: the checkpoint's float parts and its quantization. Returns the calibration record.

    With ``target_psnr`` in the recipe, the layers to leave float are chosen by measuring (:mod:`f2i_quantize.ptq.mixed`) and stored as rules.
    A checkpoint that is quantized to other precisions keeps them. A run that was killed goes on after the last finished component. It ends with a check on
    tiles that calibration did not see. Raises UsageError for a recipe or photos that do not fit, and when ``out`` exists, CheckpointError for activations
    that are not finite and for an output that fails the check; then nothing is written.
    """
    if options.out.exists():
        raise UsageError(f"{options.out}: it exists already; choose another folder or remove it")
    subject = calibrated(options, options.recipe, progress)
    more: dict[str, Any] = {}
    if options.recipe.target_psnr is not None:
        measured, choice = measure(subject, progress, options.recipe.target_psnr)
        more = {"mixed": choice.record | {"sensitivity": measured}} if choice else {}
        recipe = mixed.with_float_layers(options.recipe, choice.record["layers"]) if choice else options.recipe
        subject = _calibrate(
            subject, recipe, recipe.resolve([layer for part in subject.parts for layer in component_layers(part)]), progress
        )
    if options.recipe.qat is not None:
        subject, more["qat"] = fine_tuned(subject, options.recipe.qat, progress)
    error = output_error(subject, progress) if subject.integers() else None
    check_error(subject, error)
    record: dict[str, Any] = {
        "photos": "scikit-image samples" if options.photos is None else "folder",
        "images": list(subject.shots.images),
        "tile": subject.tile,
        "tiles": len(subject.shots.tiles),
        "seed": options.recipe.seed,
        "observer": options.recipe.activation_observer,
        "checkpoint_sha256": checkpoint_files.checkpoint_sha256(options.checkpoint),
        "simulated_sqnr_db": subject.sqnr,
        "simulated_psnr_db": None if error is None else error.psnr_db(),
        "unseen_tiles": len(subject.shots.unseen),
        **more,
    }
    _save(options, subject.model, Quantized(subject.recipe, subject.rules, record, subject.tensors))
    shutil.rmtree(_work(options), ignore_errors=True)
    return record


def fine_tuned(subject: Subject, options: Qat, progress: Progress) -> tuple[Subject, dict[str, Any]]:
    """The subject after quantization-aware training, or as it was where training made the output worse; and the record of both."""
    photos = qat.read_photos(subject.options.photos, options.crop)
    changed: dict[str, Tensor] = {}
    for part in subject.parts:
        _, weights = smoothed(part, subject.rules, subject.recipe, progress)
        changed |= {f"{part.name}/{path}": value for path, value in weights.items()}
    start = qat.Start(subject.model, subject.recipe, subject.rules, subject.tensors, changed)
    folder = _work(subject.options) / _resume_key(subject.options, subject.recipe, subject.tile, subject.shots) / "qat"
    tensors, record = qat.fine_tune(start, options, photos, folder, progress)
    trained = replace(subject, tensors=tensors)
    before, after = (output_error(s, progress) for s in (subject, trained))
    kept = after.mse < before.mse
    record |= {"psnr_db_before": before.psnr_db(), "psnr_db_after": after.psnr_db(), "kept": kept}
    if not kept:
        return subject, record
    quantized = Quantized(subject.recipe, subject.rules, {}, tensors)
    return replace(trained, sqnr={part.name: simulated_sqnr(part, quantized) for part in subject.parts}), record


def measure_sensitivity(options: QuantizeOptions, progress: Progress = lambda *_: None) -> dict[str, Any]:
    """The error of the tile's output for every layer of the recipe's choice quantized alone, as JSON. Nothing is written but the cache.

    Raises UsageError for a recipe or photos that do not fit.
    """
    subject = calibrated(options, options.recipe, progress)
    record, _ = measure(subject, progress, None)
    shutil.rmtree(_work(options), ignore_errors=True)
    return {
        "checkpoint": options.checkpoint,
        "checkpoint_sha256": checkpoint_files.checkpoint_sha256(options.checkpoint),
        "recipe": options.recipe.name,
        "recipe_sha256": options.recipe.sha256(),
        "images": list(subject.shots.images),
        **record,
    }


def measure(subject: Subject, progress: Progress, target_psnr: float | None) -> tuple[dict[str, Any], mixed.Choice | None]:
    """Each unit's error, on tiles that calibration did not see, and with ``target_psnr`` the choice of layers to leave float."""
    tiles = _test_tiles(subject)
    bench = workbench(subject, tiles, progress)
    wanted, level = sensitivity.units(subject.parts, subject.rules, subject.graph)
    if not wanted:
        raise UsageError(f"recipe {subject.recipe.name}: it makes no layer int8; there is nothing to measure")
    content = {"checkpoint": checkpoint_files.checkpoint_sha256(subject.options.checkpoint), "rules": sorted(subject.rules), "level": level}
    errors = sensitivity.measure_units(bench, wanted, sensitivity.cache_key(content, subject.tensors, tiles), progress)
    total = subject.total_macs()
    together = bench.error({layer for unit in wanted for layer in unit.layers})
    record = {
        "tile": subject.tile,
        "tiles": sensitivity.UNIT_TILES,
        "level": level,
        "quantized_psnr_db": together.psnr_db(),
        "quantized_sqnr_db": together.sqnr_db(),
        "units": [sensitivity.unit_record(unit, errors[unit.name], total) for unit in wanted],
    }
    return record, None if target_psnr is None else mixed.choose(bench, wanted, errors, target_psnr, total, progress)


def output_error(subject: Subject, progress: Progress) -> sensitivity.OutputError:
    """Returns the error of a tile's output with all of the recipe's layers quantized, on tiles that calibration did not see."""
    return workbench(subject, _test_tiles(subject), progress).error(subject.integers())


def check_error(subject: Subject, error: sensitivity.OutputError | None) -> None:
    """Raises CheckpointError where the quantized output is no approximation of the float one; random weights are only asked for finite numbers."""
    if error is None:
        return
    sqnr = error.sqnr_db()
    if math.isfinite(error.mse) and (sqnr is None or sqnr >= LEAST_SQNR_DB or not subject.model.config.trained):
        return
    worst = min(((db, name) for name, db in subject.sqnr.items() if db is not None), default=None)
    where = "" if worst is None else f" ({worst[1]} alone: {worst[0]:.1f} dB on the calibration tiles)"
    raise CheckpointError(
        f"{subject.options.checkpoint}: on {len(subject.shots.unseen)} tiles that calibration did not see the quantized output has an SQNR of "
        f"{'nan' if sqnr is None else format(sqnr, '.1f')} dB to the float one{where}, expected at least {LEAST_SQNR_DB:g}; calibrate on photos like those "
        f"it will be given, or keep layers in float with --recipe w8a8-mixed"
    )


def _test_tiles(subject: Subject) -> list[Tensor]:
    return [torch.from_numpy(tile) for tile in subject.shots.unseen]


def workbench(subject: Subject, tiles: list[Tensor], progress: Progress) -> sensitivity.Workbench:
    """The calibrated model with switchable layers."""
    fakes = {}
    for part in subject.parts:
        module, _ = smoothed(part, subject.rules, subject.recipe, progress)
        fakes[part.name] = fake_component(module, part.name, subject.rules, subject.tensors)
    return sensitivity.Workbench(subject.graph, fakes, tiles, subject.extra)


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


def _work(options: QuantizeOptions) -> Path:
    """Returns the folder in which a run keeps what it has finished, beside its output."""
    return options.out.with_name(f".{options.out.name}.f2i-quantize")


def _resume_key(options: QuantizeOptions, recipe: Recipe, tile: int, shots: CalibrationSet) -> str:
    content = [checkpoint_files.checkpoint_sha256(options.checkpoint), recipe.sha256(), tile, list(shots.images)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _resumed(
    folder: Path, part: ComponentInputs, rules: dict[str, Rule], recipe: Recipe, progress: Progress
) -> tuple[dict[str, Tensor], float | None]:
    """A component's tensors: from an earlier run that was killed, or calibrated now and kept for the next."""
    done, tensors = folder / f"{part.name}.json", folder / f"{part.name}.safetensors"
    if done.is_file():
        return load_file(tensors), json.loads(done.read_text())["sqnr_db"]
    found = calibrate_component(part, rules, recipe, progress)
    sqnr = simulated_sqnr(part, Quantized(recipe, rules, {}, found)) if found else None
    folder.mkdir(parents=True, exist_ok=True)
    save_file(found, tensors)
    write_json(done, {"sqnr_db": sqnr})
    return found, sqnr
