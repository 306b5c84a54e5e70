"""A small DINOv2 taught by a large one: token for token, on photos.

The teacher is a Hugging Face DINOv2 folder (``config.json``, ``model.safetensors``), such as Meta's own; it is read unchanged. Both see
the same crop; a linear map, thrown away afterwards, takes the student's tokens to the teacher's width.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from f2i_runtime.errors import CheckpointError, UsageError
from f2i_runtime.files import remove_folder
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, Dinov2Model, Dinov2WithRegistersModel

from f2i_quantize.models import checkpoint
from f2i_quantize.models.config import ModelConfig
from f2i_quantize.models.parts import Resize
from f2i_quantize.models.whole_model import F2IModel, FeatureBackbone
from f2i_quantize.train.crops import CropDataset, batches, read_folder
from f2i_quantize.train.losses import patch_tokens, token_loss
from f2i_quantize.train.prune import prune_part
from f2i_quantize.train.run_folder import ENCODER, STATE_FOLDER, check_run_folder, run_folder
from f2i_quantize.train.training_state import MovingAverage, Progress, load_state, save_state


class EncoderOptions(BaseModel):
    """How the small encoder is trained. ``crop`` is in low-resolution pixels, resized as the student's ``feature_ratio`` asks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: Path
    steps: int = Field(default=2000, ge=1)
    batch: int = Field(default=8, ge=1)
    crop: int = Field(default=128, ge=14)
    lr: float = Field(default=5e-4, gt=0)
    seed: int = Field(default=0, ge=0)
    from_teacher: bool = True
    """Start from the teacher's pruned weights."""
    save_every: int = Field(default=200, ge=1)


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
    student: F2IModel,
    teacher: FeatureBackbone,
    options: EncoderOptions,
    progress: Callable[[int, float], None] | None = None,
    *,
    state: Path | None = None,
) -> list[float]:
    """Train ``student.feature_encoder`` in place on the teacher's patch tokens; gives :func:`f2i_quantize.train.losses.token_loss` of every step done now.

    With ``state`` the run is saved in that folder, also on Ctrl-C, and goes on from what lies there to the weights an unbroken run would have.
    Raises UsageError when the photos are too small, or the two encoders cut photos into different patches, CheckpointError for a state of another run.
    """
    small = student.feature_encoder
    patch = small.config.patch_size
    if patch != teacher.config.patch_size:
        raise UsageError(f"the student's patches are {patch} px, the teacher's {teacher.config.patch_size}; both must be equal")
    if options.from_teacher:
        prune_part(small, teacher)
    photos = read_folder(options.images, min_side=2 * options.crop).photos
    dataset = CropDataset(photos, options.crop, options.steps * options.batch, options.seed)
    resize = Resize(options.crop, student.config.feature_size(options.crop, patch))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        head = nn.Linear(small.config.hidden_size, teacher.config.hidden_size)
    small.train().requires_grad_(True)
    small.embeddings.mask_token.requires_grad_(False)
    weights = {f"{part}/{name}": p for part, module in (("encoder", small), ("head", head)) for name, p in module.named_parameters()}
    trained = [p for p in weights.values() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=options.lr)
    average, done = MovingAverage(weights, 0.0), Progress()
    identity = options.model_dump(mode="json", exclude={"images", "save_every"})
    if state and state.is_dir():
        done = load_state(state, average, optimizer, identity)
    losses: list[float] = []
    try:
        for lr, _hr in batches(dataset, options.batch, start=done.step):
            pixels = _normalise(resize(lr), student.config)
            with torch.no_grad():
                target = patch_tokens(teacher, pixels)
            loss = token_loss(head(patch_tokens(small, pixels)), target)
            for group in optimizer.param_groups:
                group["lr"] = options.lr * 0.5 * (1 + math.cos(math.pi * done.step / options.steps))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            done.step += 1
            losses.append(float(loss.detach()))
            if progress:
                progress(done.step, losses[-1])
            if state and done.step % options.save_every == 0:
                save_state(state, average, optimizer, done, identity)
    except KeyboardInterrupt:
        if state:
            save_state(state, average, optimizer, done, identity)
        raise
    small.eval().requires_grad_(False)
    return losses


def distill_encoder_checkpoint(
    student: str, teacher: Path, out: Path, options: EncoderOptions, *, resume: bool, progress: Callable[[int, float], None] | None = None
) -> list[float]:
    """Teach the feature encoder of the checkpoint ``student`` from the DINOv2 folder ``teacher`` and write ``out``, its other parts unchanged.

    The run's state lies in ``OUT.run`` until it ends. The projector and the UNet have not seen the new tokens: go on with :func:`f2i_quantize.train.distill.distill`.
    """
    if os.path.lexists(out):
        raise UsageError(f"{out}: it exists already; choose another folder or remove it")
    model = checkpoint.load(student)
    check_run_folder(run_folder(out))
    state = run_folder(out) / ENCODER
    if not resume:
        remove_folder(state, STATE_FOLDER)
    losses = distill_encoder(model, load_encoder(teacher), options, progress, state=state)
    checkpoint.save(model, out)
    remove_folder(state, STATE_FOLDER)
    return losses


def _normalise(pixels: Tensor, config: ModelConfig) -> Tensor:
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (config.normalization_mean, config.normalization_std))
    return (pixels - mean) / std
