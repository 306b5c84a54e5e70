"""A small DINOv2 taught by a large one: token for token, on photos.

The teacher is a Hugging Face DINOv2 folder (``config.json``, ``model.safetensors``), such as Meta's own; it is read unchanged. Both see
the same crop; a linear map, thrown away afterwards, takes the student's tokens to the teacher's width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, Dinov2Model, Dinov2WithRegistersModel

from quantize.data import CropDataset, batches, read_folder
from quantize.losses import token_loss
from quantize.models.config import ModelConfig
from quantize.models.model import F2IModel, FeatureBackbone
from quantize.models.parts import Resize
from quantize.prune import prune_part
from runtime_py.errors import CheckpointError, UsageError


@dataclass(frozen=True)
class EncoderOptions:
    """How the small encoder is trained. ``crop`` is in low-resolution pixels, resized as the student's ``feature_ratio`` asks."""

    data: Path
    steps: int = 2000
    batch: int = 8
    crop: int = 128
    lr: float = 5e-4
    seed: int = 0
    from_teacher: bool = True
    """Start from the teacher's pruned weights."""


def load_encoder(folder: Path) -> FeatureBackbone:
    """A DINOv2 folder as Meta publishes it, in float32 and eval mode. Raises CheckpointError when it is of another kind or incomplete."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        kinds = {"dinov2": Dinov2Model, "dinov2_with_registers": Dinov2WithRegistersModel}
        if config.model_type not in kinds:
            raise CheckpointError(f"{folder}: a {config.model_type!r} model, expected one of {', '.join(kinds)}")
        model, info = kinds[config.model_type].from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, SafetensorError) as e:
        raise CheckpointError(f"{folder}: not a DINOv2 folder with config.json and model.safetensors: {str(e).splitlines()[0]}") from e
    if info["missing_keys"]:
        raise CheckpointError(f"{folder}: key {min(info['missing_keys'])!r} is missing from its weights")
    return model.eval().requires_grad_(False)


def distill_encoder(
    student: F2IModel, teacher: FeatureBackbone, options: EncoderOptions, progress: Callable[[int, float], None] | None = None
) -> list[float]:
    """Train ``student.feature_encoder`` in place on the teacher's patch tokens; gives :func:`quantize.losses.token_loss` of every step.

    Raises UsageError when the photos are too small, or the two encoders cut photos into different patches.
    """
    small = student.feature_encoder
    patch = small.config.patch_size
    if patch != teacher.config.patch_size:
        raise UsageError(f"the student's patches are {patch} px, the teacher's {teacher.config.patch_size}; both must be equal")
    if options.from_teacher:
        prune_part(small, teacher)
    dataset = CropDataset(
        read_folder(options.data, min_side=2 * options.crop).photos, options.crop, options.steps * options.batch, options.seed
    )
    resize = Resize(options.crop, student.config.feature_size(options.crop, patch))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        head = nn.Linear(small.config.hidden_size, teacher.config.hidden_size)
    small.train().requires_grad_(True)
    small.embeddings.mask_token.requires_grad_(False)
    trained = [p for module in (small, head) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    losses: list[float] = []
    for lr, _hr in batches(dataset, options.batch, start=0):
        pixels = _normalise(resize(lr), student.config)
        with torch.no_grad():
            target = _patch_tokens(teacher, pixels)
        loss = token_loss(head(_patch_tokens(small, pixels)), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if progress:
            progress(len(losses), losses[-1])
    small.eval().requires_grad_(False)
    return losses


def _normalise(pixels: Tensor, config: ModelConfig) -> Tensor:
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (config.normalization_mean, config.normalization_std))
    return (pixels - mean) / std


def _patch_tokens(encoder: FeatureBackbone, pixels: Tensor) -> Tensor:
    tokens: Tensor = encoder(pixels).last_hidden_state
    return tokens[:, 1 + getattr(encoder.config, "num_register_tokens", 0) :]
