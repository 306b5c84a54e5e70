"""What a student is trained on: distance to the photo, to the teacher's output, and to the teacher's features."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from f2i_quantize.models.config import ModelConfig
from f2i_quantize.models.parts import Resize
from f2i_quantize.models.whole_model import FeatureBackbone

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


class TokenDistance(nn.Module):
    """1 − mean cosine between a DINOv2's patch tokens of two batches of images, (n, 3, s, s) RGB in [0, 1] each → scalar in [0, 2].

    The encoder is frozen and kept out of the module tree. Images are resized to the nearest whole number of patches, at least one.
    """

    SIDE = 448
    """Side to which a whole photo is brought before it is compared, pixels: 32 patches."""

    def __init__(self, encoder: FeatureBackbone, config: ModelConfig) -> None:
        super().__init__()
        self._encoder = (encoder.eval().requires_grad_(False),)
        self._resizes: dict[int, Resize] = {}
        for name, value in (("mean", config.normalization_mean), ("std", config.normalization_std)):
            self.register_buffer(name, torch.tensor(value).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = self.tokens(target)
        return 1 - functional.cosine_similarity(self.tokens(output), wanted, dim=-1).mean()

    def tokens(self, image: Tensor) -> Tensor:
        """Patch tokens, CLS and registers left out: (n, 3, s, s) → (n, patches, features)."""
        [encoder] = self._encoder
        side, patch = image.shape[-1], encoder.config.patch_size
        if side not in self._resizes:
            self._resizes[side] = Resize(side, max(1, round(side / patch)) * patch).to(image.device)
        pixels = (self._resizes[side](image.float()) - self.mean) / self.std
        return patch_tokens(encoder, pixels)


def patch_tokens(encoder: FeatureBackbone, pixels: Tensor) -> Tensor:
    """Returns what a DINOv2 says about every patch: normalised pixels (n, 3, s, s) → (n, patches, features), without CLS and registers."""
    tokens: Tensor = encoder(pixels).last_hidden_state
    return tokens[:, 1 + getattr(encoder.config, "num_register_tokens", 0) :]


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
