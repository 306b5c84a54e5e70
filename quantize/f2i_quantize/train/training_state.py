"""What a training run must remember to go on exactly where it stopped: weights, their moving average, Adam's moments, and the step.

Tensors lie in one safetensors file and scalars in JSON; nothing is pickled. No generator state is kept, because every random choice
of a run is drawn from its seed and the step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from f2i_runtime.errors import CheckpointError
from f2i_runtime.files import atomic_directory
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from f2i_quantize.models.whole_model import F2IModel
from f2i_quantize.train.run_folder import STATE_FOLDER

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Progress:
    """Scalars of a run so far."""

    step: int = 0
    """Optimizer steps done."""
    best_score: float = float("-inf")
    """PSNR-Y in dB of the best evaluation so far."""
    best_step: int = 0
    seconds: float = 0.0
    """Wall time over all parts of the run."""


def named_weights(model: F2IModel) -> dict[str, nn.Parameter]:
    """All parameters by ``part/name``."""
    return {f"{part}/{name}": p for part, module in model.parts().items() for name, p in module.named_parameters()}


def cosine_rate(step: int, steps: int, *, warmup: int, highest: float, lowest: float) -> float:
    """Learning rate of optimizer step ``step`` (from 0) of ``steps``: linear warm-up, then a cosine to ``lowest``."""
    if step < warmup:
        return highest * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return lowest + (highest - lowest) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class MovingAverage:
    """Exponential moving average of weights. The decay grows as (1 + n) / (10 + n) to ``decay``: early averages forget the start."""

    def __init__(self, weights: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.weights = weights
        self.average = {name: p.detach().clone() for name, p in weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step ``step`` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.values()), [p.detach() for p in self.weights.values()], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange average and weights: call once to evaluate or save the average, once more to go on training."""
        for name, p in self.weights.items():
            p.data, self.average[name] = self.average[name], p.data


def save_state(
    folder: Path, average: MovingAverage, optimizer: torch.optim.Optimizer, progress: Progress, options: Mapping[str, Any]
) -> None:
    """Write the state folder, atomically, in place of an earlier one."""
    tensors: dict[str, Tensor] = {}
    for name, p in average.weights.items():
        tensors[f"weight/{name}"] = p.detach()
        tensors[f"average/{name}"] = average.average[name]
        tensors |= {f"{m}/{name}": optimizer.state[p][m] for m in _MOMENTS if p in optimizer.state}
    with atomic_directory(folder, replace=STATE_FOLDER) as staging:
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, staging / "state.safetensors")
        (staging / "state.json").write_text(
            json.dumps({"progress": asdict(progress), "options": dict(options)}, indent=2, default=str) + "\n"
        )


def load_state(folder: Path, average: MovingAverage, optimizer: torch.optim.Optimizer, options: Mapping[str, Any]) -> Progress:
    """Read the state folder back into weights, average and optimizer.

    Raises CheckpointError when it is incomplete, of another model, or of a run with other options, which it names.
    """
    try:
        state = json.loads((folder / "state.json").read_text())
        tensors = load_file(folder / "state.safetensors")
        progress = Progress(**state["progress"])
        before = state["options"]
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as e:
        raise CheckpointError(
            f"{folder}: not a training state that can be resumed: {str(e).splitlines()[0]}; start again without --resume"
        ) from e
    now = json.loads(json.dumps(dict(options), default=str))
    changed = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
    if changed:
        detail = ", ".join(f"{k}: {before.get(k)!r} then, {now.get(k)!r} now" for k in changed[:3])
        raise CheckpointError(f"{folder}: it is of a run with other options ({detail}); give the same options or start without --resume")
    for name, p in average.weights.items():
        if (got := tensors.get(f"weight/{name}")) is None or got.shape != p.shape:
            raise CheckpointError(
                f"{folder}: weight {name!r} is {None if got is None else tuple(got.shape)}, expected {tuple(p.shape)}; "
                "start again without --resume"
            )
        p.data.copy_(got)
        average.average[name].copy_(tensors[f"average/{name}"])
        if p.requires_grad and progress.step and f"exp_avg/{name}" in tensors:
            moments = {m: tensors[f"{m}/{name}"].to(p.device) for m in _MOMENTS}
            # A fused or capturable Adam keeps its step beside the weight, and raises for one that lies elsewhere.
            beside = p.device if optimizer.defaults.get("fused") or optimizer.defaults.get("capturable") else None
            optimizer.state[p] = {"step": torch.tensor(float(progress.step), device=beside), **moments}
    return progress
