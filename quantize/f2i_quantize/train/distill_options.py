"""What a training run is asked to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from f2i_runtime.errors import UsageError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from f2i_quantize.train.crops import Degradation


class LossWeights(BaseModel):
    """Factors of the losses; 0 leaves one out. ``teacher`` and ``feature`` count only with a teacher, ``latent`` only with one whose latents are of the same
    space, ``perceptual`` only with a DINOv2.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    l1: float = Field(default=1.0, ge=0)
    fft: float = Field(default=0.05, ge=0)
    teacher: float = Field(default=1.0, ge=0)
    latent: float = Field(default=1.0, ge=0)
    feature: float = Field(default=0.02, ge=0)
    perceptual: float = Field(default=0.1, ge=0)


class DistillOptions(BaseModel):
    """Options of :func:`f2i_quantize.train.distill.distill`. An unknown key or a value out of range is a ``pydantic.ValidationError``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    images: Path
    """Folder of training photos, searched recursively."""
    out: Path
    """Checkpoint folder to write; the run's own files go to ``<out>.run``."""
    student: str = "nano"
    """A preset, or a checkpoint to go on from (fine-tuning)."""
    teacher: str | None = None
    """A checkpoint; without one the student learns from the photos alone (which is how a teacher is made)."""
    perceptual: Path | None = None
    """A DINOv2 folder. The features of the output are pulled towards those of the photo. This is a stage of its own, which starts from the checkpoint
    of a stage without it.
    """
    init: Literal["prune", "random", "checkpoint"] = "prune"
    """How the student of a preset starts: ``prune``, with the teacher's pruned weights (random without a teacher); ``random``; or ``checkpoint``, the
    bundled model.
    """
    aim: Literal["auto", "photo", "teacher"] = "auto"
    """What the student is drawn to and judged by: ``photo``, the photo (and the teacher beside it); ``teacher``, the teacher's output alone, which is
    what a student of fewer steps is for; ``auto``, the teacher where it takes more steps than the student.
    """
    freeze_norms: bool = False
    """The student is a trained model whose group norms become constants, measured on the photos; its teacher is the model as it was, or ``teacher``."""
    freeze: tuple[Literal["unet", "feature_encoder", "projector", "codec"], ...] = ()
    """Parts that are not trained."""
    resume: bool = False
    validation: Path | None = None
    """Folder of photos to evaluate on; without it ``holdout`` training photos are held out."""
    holdout: int = Field(default=8, ge=0)
    steps: int = Field(default=20_000, ge=1)
    batch: int = Field(default=8, ge=1)
    """Crops per step and process."""
    crop: int = Field(default=64, ge=16)
    """Side of a low-resolution crop, pixels."""
    candidates: int = Field(default=1, ge=1)
    """The number of crops that are looked at for each one taken, which is the one with the most detail."""
    degradation: Degradation = "bicubic"
    weights: LossWeights = LossWeights()
    lr: float = Field(default=5e-4, gt=0)
    final_lr: float = Field(default=1e-6, ge=0)
    warmup: int = Field(default=200, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0)
    """The largest gradient norm."""
    ema: float = Field(default=0.999, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
    amp: bool = True
    """Forward and backward in bfloat16 where autocast says so; weights, losses and the optimizer stay float32."""
    compile: bool = False
    """The student is compiled, which takes minutes at the start and a C++ compiler; a step then takes less time."""
    device: Literal["auto", "cpu"] = "auto"
    dtype: Literal["float16", "float32"] = "float16"
    """The data type of the weights that are written to ``out``."""
    log_every: int = Field(default=50, ge=1)
    evaluate_every: int = Field(default=1000, ge=1)
    evaluation_tile: int = Field(default=256, ge=16)
    save_every: int = Field(default=1000, ge=1)
    processes: int = Field(default=1, ge=1)
    """Processes that decode photos at the start."""
    workers: int = Field(default=0, ge=0)
    """Processes that cut crops during training; 0 cuts them in the training process. Does not change what is cut."""
    cache: Path | None = None
    """A folder for decoded photos, by hash."""
    tensorboard: bool = False

    @field_validator("freeze", "betas", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [item for item in value.split(",") if item] if isinstance(value, str) else value

    def identity(self) -> dict[str, Any]:
        """The options that decide the result; a resumed run must have the same. The others say where and how often things are written."""
        free = {
            "images",
            "out",
            "resume",
            "log_every",
            "save_every",
            "processes",
            "workers",
            "cache",
            "tensorboard",
            "validation",
            "compile",
            "device",
        }
        return self.model_dump(mode="json", exclude=free)


def parse_options(given: dict[str, Any], settings: Sequence[str]) -> DistillOptions:
    """Options from named values and ``NAME=VALUE`` texts (a dot reaches into a group: ``weights.fft=0.02``).

    Raises UsageError with one line that names the option, what was got and what was expected.
    """
    values = dict(given)
    for setting in settings:
        name, found, value = setting.partition("=")
        if not found:
            raise UsageError(f"--set {setting}: expected NAME=VALUE, such as --set weights.fft=0.02")
        group, _, rest = name.partition(".")
        if rest:
            values[group] = {**values.get(group, {}), rest: value}
        else:
            values[group] = value
    try:
        return DistillOptions(**values)
    except ValidationError as e:
        first = e.errors()[0]
        name = ".".join(map(str, first["loc"]))
        known = f"; options are {', '.join(DistillOptions.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise UsageError(f"option {name} is {first['input']!r}: {first['msg']}{known}") from e
