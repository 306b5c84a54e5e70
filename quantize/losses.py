"""What a student is trained on: distance to the photo, to the teacher's output, and to the teacher's features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

_EPS = 1e-6


def fft_l1(output: Tensor, target: Tensor) -> Tensor:
    """Mean modulus of the difference of the orthonormal 2-D spectra, (n, c, h, w) → scalar. Weighs fine detail more than L1 does."""
    difference = torch.fft.rfft2(output.float() - target.float(), norm="ortho")
    # The square root of a zero has no gradient.
    return (difference.real.square() + difference.imag.square() + _EPS**2).sqrt().mean()


def feature_l1(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """Mean over the blocks both have of the normalised L1 between their outputs, (n, c, h, w) each → scalar.

    Of equal width: both divided by the teacher's RMS per image. Of different width, where channels do not correspond: their attention maps,
    the mean square over channels at every position divided by its norm (Zagoruyko & Komodakis, arXiv 1612.03928, eq. 2).
    The finer of two resolutions is averaged down to the coarser.
    """
    names = [name for name in student if name in teacher]
    if not names:
        return torch.zeros(())
    return torch.stack([_block_l1(student[name].float(), teacher[name].float()) for name in names]).mean()


def _block_l1(student: Tensor, teacher: Tensor) -> Tensor:
    size = (min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3]))
    student, teacher = (functional.adaptive_avg_pool2d(f, size) if f.shape[2:] != size else f for f in (student, teacher))
    if student.shape[1] == teacher.shape[1]:
        scale = teacher.square().mean((1, 2, 3), keepdim=True).sqrt() + _EPS
        return ((student - teacher) / scale).abs().mean()
    maps = [f.square().mean(1).flatten(1) for f in (student, teacher)]
    a, b = (m / (m.square().mean(1, keepdim=True).sqrt() + _EPS) for m in maps)
    return (a - b).abs().mean()


def token_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Encoder distillation: mean of (1 − cosine) plus smooth-L1 over patch tokens, (n, tokens, features) each → scalar.

    Smooth-L1 is taken after dividing both by the teacher's RMS, so that its weight does not depend on the teacher's scale.
    """
    student, teacher = student.float(), teacher.float()
    scale = teacher.square().mean().sqrt() + _EPS
    cosine = functional.cosine_similarity(student, teacher, dim=-1).mean()
    return 1 - cosine + functional.smooth_l1_loss(student / scale, teacher / scale)


class BlockOutputs:
    """Collects what the UNet's down, mid and up blocks give, by name; empty between forward passes of its ``take``.

    Used as a context manager, so that hooks are gone when training ends.
    """

    def __init__(self, unet: nn.Module) -> None:
        self._blocks = dict(_blocks(unet))
        self._outputs: dict[str, Tensor] = {}
        self._hooks = [block.register_forward_hook(self._hook(name)) for name, block in self._blocks.items()]

    def _hook(self, name: str) -> object:
        def keep(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            self._outputs[name] = output[0] if isinstance(output, tuple) else output

        return keep

    def take(self) -> dict[str, Tensor]:
        """Outputs of the last forward pass; forgets them."""
        outputs, self._outputs = self._outputs, {}
        return outputs

    def __enter__(self) -> BlockOutputs:
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._outputs = {}


def _blocks(unet: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for kind in ("down_blocks", "up_blocks"):
        blocks = getattr(unet, kind)
        for i, block in enumerate(blocks):
            yield f"{kind}.{i}", block
    if getattr(unet, "mid_block", None) is not None:
        yield "mid_block", unet.mid_block
