"""Quantization-aware training: from a calibrated model, a short fine-tune of its quantized layers against the float model's output.

Rounding is simulated (:mod:`f2i_quantize.ptq.fake_layers`), gradients go straight through it. Weights start where rounding gives the calibrated integers exactly, so
that step 0 is the calibrated model. Crops are drawn from the seed and the step; a run that was stopped goes on to the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from f2i_runtime.errors import UsageError
from f2i_runtime.photo.samples import SAMPLES, sample_photo
from torch import Tensor, nn

from f2i_quantize.models.differentiable import Pipeline, step_noise
from f2i_quantize.models.whole_model import F2IModel, build_components
from f2i_quantize.ptq.fake_layers import FakeComponent, fake_component
from f2i_quantize.ptq.observe import weight_integers
from f2i_quantize.ptq.quantized import FLOAT, apply_weights
from f2i_quantize.ptq.recipe import Qat, Recipe, Rule
from f2i_quantize.rewrites.passes import rewritten
from f2i_quantize.train.crops import CropDataset, Photo, PhotoSet, batches, read_folder, read_photo
from f2i_quantize.train.run_log import RunLog
from f2i_quantize.train.training_state import MovingAverage, Progress, cosine_rate, load_state, save_state

EMA = 0.98
SAVE_EVERY = 50
ROOM = 0.49
"""How far from its integer a weight may start, as a share of one step of the grid."""


@dataclass(frozen=True)
class Start:
    """What is fine-tuned: the calibrated model, as :mod:`f2i_quantize.ptq.quantized` stores it, and the float weights it came from."""

    model: F2IModel
    recipe: Recipe
    rules: Mapping[str, Rule]
    tensors: Mapping[str, Tensor]
    smoothed: Mapping[str, Tensor]
    """``component/parameter`` → float weight that smoothing changed."""


class Trainee(nn.Module):
    """The quantized and the float model; one forward pass gives the loss, so that data-parallel wrappers see every parameter."""

    def __init__(self, student: Pipeline, reference: Pipeline) -> None:
        super().__init__()
        self.student = student
        # Kept out of the module tree: it is never trained, saved or synchronised.
        self._reference = (reference,)

    def forward(self, lr: Tensor, noise: Tensor | None = None) -> Tensor:
        """lr (n, 3, c, c) → mean square of the difference of the outputs. Graphs for phones take one tile at a time."""
        losses = []
        for k in range(len(lr)):
            drawn = None if noise is None else noise[k : k + 1]
            with torch.no_grad():
                target = self._reference[0](lr[k : k + 1], drawn)
            losses.append((self.student(lr[k : k + 1], drawn) - target).square().mean())
        return torch.stack(losses).mean()


def read_photos(folder: Path | None, crop: int) -> PhotoSet:
    """Returns the photos to take crops from; None means those that scikit-image ships. Raises UsageError when none is large enough."""
    if folder is not None:
        return read_folder(folder, min_side=2 * crop)
    found = [read_photo(path, path.parent, 2 * crop, None) for path in map(sample_photo, SAMPLES)]
    photos = tuple(photo for photo in found if isinstance(photo, Photo))
    if not photos:
        raise UsageError(
            f"the sample photos: none has {2 * crop} px per side, which crop {crop} needs; use a smaller crop or photos of your own"
        )
    return PhotoSet(photos, ())


def fake_components(start: Start, qat: Qat) -> dict[str, FakeComponent]:
    """The calibrated components at the crop's size, all layers on."""
    start.model.geometry().check_tile(qat.crop)
    graph = build_components(start.model, qat.crop)
    if unknown := sorted(set(qat.components) - set(graph.components)):
        raise UsageError(f"qat: component {unknown[0]!r} is unknown; the model has {', '.join(graph.components)}")
    fakes = {}
    for name, component in graph.components.items():
        changed = {f"{FLOAT}{path}": value for path, value in start.smoothed.items() if path.startswith(f"{name}/")}
        module = apply_weights(rewritten(component.module, split_skips=start.recipe.split_skips), name, changed)
        fake = fakes[name] = fake_component(module, name, start.rules, start.tensors)
        fake.switch(fake.layers)
    return fakes


def trained_weights(fakes: Mapping[str, FakeComponent], qat: Qat) -> dict[str, nn.Parameter]:
    """Returns the parameters that are trained, by name, and switches their gradients on."""
    found: dict[str, nn.Parameter] = {}
    for component, fake in fakes.items():
        if qat.components and component not in qat.components:
            continue
        for name, layer in fake.layers.items():
            found[f"{name}.weight"] = layer.start_training(ROOM)
            if layer.bias is not None:
                found[f"{name}.bias"] = layer.bias
            if qat.scale_lr:
                found[f"{name}.weight_factor"] = layer.factor
                for side, rounding in (("input", layer.before), ("output", layer.after)):
                    if rounding is not None and not any(rounding.factor is p for p in found.values()):
                        found[f"{name}.{side}_factor"] = rounding.factor
    for p in found.values():
        p.requires_grad_(True)
    return found


def stored_tensors(fakes: Mapping[str, FakeComponent], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` with the integers, scales and biases that the trained layers now have."""
    result = dict(tensors)
    for fake in fakes.values():
        for name, layer in fake.layers.items():
            if layer.weight is None:
                continue
            scale = layer.scale().detach().clone()
            result[f"{name}.weight"], result[f"{name}.weight_scale"] = weight_integers(layer.weight, scale), scale
            if layer.bias is not None:
                result[f"{name}.bias"] = layer.bias.detach().clone()
            for side, rounding in (("input", layer.before), ("output", layer.after)):
                if rounding is not None and rounding.factor.requires_grad:
                    result[f"{name}.{side}_scale"] = rounding.scale().detach().double().reshape(())
    return result


def fine_tune(start: Start, qat: Qat, photos: PhotoSet, folder: Path, progress: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of ``start`` after training, and its record: steps, crops, photos, losses. State and log are kept in ``folder``.

    ``progress(what, done, of)`` is told of every step. On KeyboardInterrupt the state is saved and the exception goes on; the next call goes on from it.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision="no")
    device = accelerator.device
    fakes = fake_components(start, qat)
    weights = trained_weights(fakes, qat)
    if not weights:
        raise UsageError("qat: no layer of the chosen components is quantized; there is nothing to train")
    student = Pipeline(start.model, qat.crop, {name: fake.module for name, fake in fakes.items()})
    trainee = Trainee(student, Pipeline(start.model, qat.crop).to(device).eval()).to(device)
    factors = [p for name, p in weights.items() if name.endswith("_factor")]
    groups = [{"params": [p for name, p in weights.items() if not name.endswith("_factor")], "lr": qat.lr}]
    groups += [{"params": factors, "lr": qat.scale_lr}] if factors else []
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.0)
    average, state = MovingAverage(weights, EMA), Progress()
    identity = {**qat.model_dump(mode="json"), "seed": start.recipe.seed, "photos": [p.sha256 for p in photos.photos]}
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "state").is_dir():
        state = load_state(folder / "state", average, optimizer, identity)
    model: Any = accelerator.prepare_model(trainee)
    dataset = CropDataset(photos.photos, qat.crop, qat.steps * qat.batch, start.recipe.seed)
    log = RunLog(folder, state.step)
    try:
        for lr, _ in batches(dataset, qat.batch, start=state.step):
            for group, highest in zip(optimizer.param_groups, (qat.lr, qat.scale_lr), strict=False):
                group["lr"] = cosine_rate(state.step, qat.steps, warmup=max(1, qat.steps // 20), highest=highest, lowest=highest / 100)
            noise = step_noise(start.model, qat.crop, len(lr), start.recipe.seed, state.step)
            loss = model(lr.to(device), None if noise is None else noise.to(device))
            optimizer.zero_grad(set_to_none=True)
            accelerator.backward(loss)
            optimizer.step()
            state.step += 1
            average.update(state.step)
            log.write({"step": state.step, "loss": float(loss.detach())})
            if state.step % SAVE_EVERY == 0 or state.step == qat.steps:
                save_state(folder / "state", average, optimizer, state, identity)
            progress("fine-tuning", state.step, qat.steps)
    except KeyboardInterrupt:
        save_state(folder / "state", average, optimizer, state, identity)
        raise
    finally:
        log.close()
    average.swap()
    for fake in fakes.values():
        fake.module.to("cpu")
    return stored_tensors(fakes, start.tensors), qat.model_dump(mode="json") | {"photos": _hashes(photos), "losses": _losses(folder)}


def _hashes(photos: PhotoSet) -> list[dict[str, str]]:
    return [{"name": p.name, "sha256": p.sha256} for p in photos.photos]


def _losses(folder: Path, most: int = 20) -> list[float]:
    """Returns the mean loss over each twentieth of the run."""
    import json

    values = [float(json.loads(line)["loss"]) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [sum(piece) / len(piece) for piece in _pieces(values, min(most, len(values)))]


def _pieces(values: Sequence[float], count: int) -> Iterator[Sequence[float]]:
    for k in range(count):
        yield values[k * len(values) // count : (k + 1) * len(values) // count]
