"""What one training step computes: the student beside the photo, and beside its teacher's output, blocks and last latent.

A teacher of several steps runs all of them, from its own noise and by its own list of steps: what the student learns is its end point (step distillation,
as in Luhman and Luhman, arXiv 2101.02388, sec. 3).
"""

from __future__ import annotations

from typing import Literal

import torch
from f2i_runtime.errors import UsageError
from torch import Tensor, nn

from f2i_quantize.models.differentiable import Pipeline, step_noise
from f2i_quantize.models.whole_model import F2IModel
from f2i_quantize.train.compiled import Tensors, check_gradients, compiled
from f2i_quantize.train.distill_options import DistillOptions
from f2i_quantize.train.encoder_distill import load_encoder
from f2i_quantize.train.losses import BlockOutputs, TokenDistance, feature_l1, fft_l1

Aim = Literal["photo", "teacher"]


class Trainee(nn.Module):
    """The student and what it is compared with; one forward pass gives all losses, so that data-parallel wrappers see every parameter."""

    def __init__(self, student: F2IModel, teacher: F2IModel | None, options: DistillOptions) -> None:
        super().__init__()
        self.student = Pipeline(student, options.crop)
        # Kept out of the module tree: a teacher is never trained, saved or synchronised.
        self._teacher = (Pipeline(teacher, options.crop).eval(),) if teacher else ()
        self.weights = options.weights
        self.aim = chosen_aim(options, student, teacher)
        # The blocks of a step say nothing about those of another.
        both = teacher is not None and len(teacher.config.steps) == len(student.config.steps)
        self.taps = BlockOutputs(student.unet) if both and options.weights.feature else None
        self.teacher_taps = BlockOutputs(teacher.unet) if both and teacher and options.weights.feature else None
        if options.compile and self.taps:
            raise UsageError(
                "option compile: the blocks of a student that is compiled cannot be compared with the teacher's; give --set weights.feature=0, or leave it out"
            )
        self.tensors: Tensors = compiled(self.student) if options.compile else self.student.tensors
        self.perceptual = TokenDistance(load_encoder(options.perceptual), student.config) if options.perceptual else None
        self.latents = teacher is not None and bool(options.weights.latent) and same_latents(student, teacher)

    def check(self, lr: Tensor, noise: Tensor | None) -> None:
        """Raises ToolchainError where the compiled student's gradients at a batch are not the student's."""
        check_gradients(self.tensors, self.student.tensors, list(self.student.parameters()), (lr, noise))

    def forward(self, lr: Tensor, hr: Tensor, noise: Tensor | None = None) -> dict[str, Tensor]:
        """Returns the losses by name, with their weighted sum as ``total``. Images (n, 3, h, w) in [0, 1]; ``noise`` for models that start from it."""
        tensors = self.tensors(lr, noise)
        output = tensors["sr"].float()
        losses: dict[str, Tensor] = {}
        if self.aim == "photo":
            losses["l1"] = (output - hr).abs().mean()
            if self.weights.fft:
                losses["fft"] = fft_l1(output, hr)
        if self._teacher:
            [teacher] = self._teacher
            with torch.no_grad():
                wanted = teacher.tensors(lr, noise)
            losses["teacher"] = (output - wanted["sr"].float()).abs().mean()
            if self.latents:
                losses["latent"] = (tensors[self.student.last_latent].float() - wanted[teacher.last_latent].float()).abs().mean()
            if self.taps and self.teacher_taps:
                losses["feature"] = feature_l1(self.taps.take(), self.teacher_taps.take())
        if self.perceptual:
            losses["perceptual"] = self.perceptual(output, hr)
        total = torch.stack([getattr(self.weights, name) * loss for name, loss in losses.items()]).sum()
        return {"total": total, **{name: loss.detach() for name, loss in losses.items()}}


def chosen_aim(options: DistillOptions, student: F2IModel, teacher: F2IModel | None) -> Aim:
    """Returns what the student is drawn to and judged by: the photo, or, where the teacher takes more steps, the teacher's output alone."""
    if options.aim != "auto":
        return options.aim
    return "teacher" if teacher and len(teacher.config.steps) > len(student.config.steps) else "photo"


def same_latents(student: F2IModel, teacher: F2IModel) -> bool:
    """Returns whether both models' latents lie in the same space: a codec of the same class and configuration that is not just pixels."""
    geometries = [model.geometry() for model in (student, teacher)]
    return not any(g.is_pixel() for g in geometries) and dict(student.codec.config) == dict(teacher.codec.config)  # type: ignore[arg-type]


def drawn_noise(student: F2IModel, teacher: F2IModel | None, options: DistillOptions, count: int, position: int) -> Tensor | None:
    """Returns the first latents of training step ``position``, which student and teacher share; None where neither starts from noise."""
    source = next((model for model in (student, teacher) if model and model.config.noise), student)
    return step_noise(source, options.crop, count, options.seed, position)
