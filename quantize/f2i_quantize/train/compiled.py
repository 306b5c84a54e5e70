"""A student that torch compiles for training, and a check of the gradients that it then computes."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from diffusers.models.upsampling import Upsample2D
from f2i_runtime.errors import ToolchainError, UsageError
from torch import Tensor, nn

from f2i_quantize.models.differentiable import Pipeline

Tensors = Callable[..., dict[str, Tensor]]
NOISE = 0.02
"""Standard deviation of what is added to every weight for the check: layers that start at zero let no gradient through."""
OTHER = 0.5
"""Relative error above which a weight's gradient is another one. Those of bfloat16, compiled and not, lie within 0.05."""
ALLOWED = 0.1
"""Share of the weights whose gradient may be another one: some are nothing but rounding, such as that of the bias of a key."""


def check_compiler() -> None:
    """Raises UsageError where torch would find no C++ compiler: it looks for ``$CXX``, else for g++, on macOS for clang++."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise UsageError(f"option compile: there is no C++ compiler {compiler!r}; install one, name another in CXX, or leave compile out")


def compiled(student: Pipeline) -> Tensors:
    """Returns ``student.tensors``, compiled.

    In bfloat16 with channels last, torch 2.13 on a CPU compiles the backward pass of nearest-neighbour interpolation into one that gives zero, when a
    convolution follows: nothing below the first level of a UNet is then trained, and no loss shows it. Pixels are repeated instead, which is the same.
    """
    for module in student.modules():
        if isinstance(module, Upsample2D) and module.interpolate:
            module.interpolate = False
            module.register_forward_pre_hook(_enlarged)
    tensors: Tensors = torch.compile(student.tensors)
    return tensors


def _enlarged(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The arguments of an ``Upsample2D``, images (n, c, h, w) and perhaps the size to come to, with the images enlarged by two."""
    image, *size = given
    if size and size[0] is not None:
        return F.interpolate(image, size=size[0], mode="nearest"), *size
    return image.repeat_interleave(2, -1).repeat_interleave(2, -2), *size


def check_gradients(tensors: Tensors, expected: Tensors, weights: Sequence[Tensor], inputs: Sequence[Tensor | None]) -> None:
    """Raises ToolchainError where the gradients of ``tensors``, which was compiled, are not those of ``expected``, which was not, at ``inputs``."""
    trained = [w for w in weights if w.requires_grad]
    with _noisy(trained):
        found = _gradients(tensors, trained, inputs)
        wanted = _gradients(expected, trained, inputs)
    others = sum(float((g - w).norm()) > OTHER * float(w.norm()) for g, w in zip(found, wanted, strict=True))
    if others > ALLOWED * len(trained):
        reason = f"{others} of {len(trained)} gradients are others than those of the student that is not compiled; train with compile=false"
        raise ToolchainError(component="the student", target="torch.compile", stage="compiling", reason=reason)


@contextlib.contextmanager
@torch.no_grad()
def _noisy(weights: Sequence[Tensor]) -> Iterator[None]:
    """Every weight with noise, which is taken away again."""
    before = [w.detach().clone() for w in weights]
    generator = torch.Generator().manual_seed(0)
    try:
        for w in weights:
            w.add_(torch.randn(w.shape, generator=generator).to(w.device), alpha=NOISE)
        with torch.enable_grad():
            yield
    finally:
        for w, old in zip(weights, before, strict=True):
            w.copy_(old)


def _gradients(tensors: Tensors, weights: Sequence[Tensor], inputs: Sequence[Tensor | None]) -> list[Tensor]:
    """The gradients of a fixed mixture of the output's pixels; zero where a weight is not used."""
    output = tensors(*inputs)["sr"].float()
    mixture = torch.linspace(-1, 1, output.numel(), device=output.device).sin().reshape(output.shape)
    found = torch.autograd.grad((output * mixture).sum(), weights, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for g, w in zip(found, weights, strict=True)]
