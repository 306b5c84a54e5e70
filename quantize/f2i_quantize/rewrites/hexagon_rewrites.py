"""Rewrites for the Hexagon NPU, on top of those that every target shares: rank four at most, no transposed resize, pixel shuffles as the op they are.

Group normalisation stays the op that it is: its explicit spelling costs four times as much there in float16. What each is for was measured with
Qualcomm's estimate; docs/npu.md has the figures.
"""

from __future__ import annotations

from torch import nn

from f2i_quantize.models.parts import PixelCodec, Resize
from f2i_quantize.models.whole_model import FeatureEncoder
from f2i_quantize.rewrites.hexagon_modules import AveragingProjector, ConvolvedPixelCodec, ShuffledUpsample, SidedResize
from f2i_quantize.rewrites.passes import EVERYWHERE, Rewrite, _replace
from f2i_quantize.rewrites.phone_modules import SubpixelUpsample


def shuffled_upsample(module: nn.Module) -> int:
    """Four 2×2 convolutions and a transposition of six axes become one 3×3 convolution and a pixel shuffle."""
    return _replace(module, lambda m: isinstance(m, SubpixelUpsample), ShuffledUpsample)


def sided_resize(module: nn.Module) -> int:
    """A resize multiplies from both sides instead of transposing twice."""
    return _replace(module, lambda m: isinstance(m, Resize), SidedResize)


def convolved_unshuffle(module: nn.Module) -> int:
    """A pixel unshuffle becomes a strided convolution, and one by a factor of one nothing at all."""
    return _replace(module, lambda m: isinstance(m, PixelCodec), ConvolvedPixelCodec)


def averaging_projector(module: nn.Module) -> int:
    """The mean over squares of tokens becomes a product with a constant matrix. Comes after the position embedding is baked."""
    count = 0
    for encoder in [m for m in module.modules() if isinstance(m, FeatureEncoder) and m.token_stride > 1]:
        patches = encoder.backbone.embeddings.position.shape[1]
        encoder.projector = AveragingProjector(encoder.projector, patches, encoder.token_stride, encoder.keep_class_token)  # type: ignore[assignment]
        encoder.token_stride = 1
        count += 1
    return count


HEXAGON: tuple[Rewrite, ...] = (*EVERYWHERE, shuffled_upsample, sided_resize, convolved_unshuffle, averaging_projector)
"""What a component is rewritten with for the NPU, in order."""
