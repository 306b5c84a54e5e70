"""Rewrites for phones: exact changes of the graph after which every engine takes nearly all of it.

Each rewrite takes a component's module, changes what it finds and returns how many places it changed. They work on a copy whose weights are shared
with the original (:func:`rewrite`), never on the original. What each one is for was measured; ARCHITECTURE.md has the figures.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn
from transformers.models.dinov2.modeling_dinov2 import Dinov2Attention, Dinov2Layer
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import Dinov2WithRegistersAttention, Dinov2WithRegistersLayer

from f2i_quantize.models.norms import ChannelAffine
from f2i_quantize.models.whole_model import Denoiser, FeatureEncoder, time_embeddings
from f2i_quantize.rewrites.phone_modules import (
    MIDDLE,
    BakedEmbeddings,
    Centred,
    ChannelGroupNorm,
    ChannelsLastUpsample,
    ExplicitDinoAttention,
    ExplicitGroupNorm,
    ExplicitLayerNorm,
    ExplicitSiLU,
    ExplicitUNetAttention,
    ScaledGroupNorm,
    SigmoidGELU,
    SplitGEGLU,
    SubpixelUpsample,
    TimelessUNet,
    UnscaledResnet,
    frozen,
)
from f2i_quantize.rewrites.split_skips import split_skip_concatenation


def fold_timestep(module: nn.Module) -> int:
    """A single step's time embedding becomes part of each residual block's first convolution's bias (or of its norm's affine)."""
    count = 0
    for denoiser in [m for m in module.modules() if isinstance(m, Denoiser) and len(m.steps) == 1]:
        embedding = next(time_embeddings(denoiser.unet, denoiser.steps))
        for block in [m for m in denoiser.unet.modules() if isinstance(m, ResnetBlock2D) and m.time_emb_proj is not None]:
            shift = block.time_emb_proj(embedding if block.skip_time_act else block.nonlinearity(embedding))[0]
            if block.time_embedding_norm == "scale_shift":
                scale, shift = shift.chunk(2)
                if isinstance(block.norm2, nn.Identity):
                    block.norm2 = ChannelAffine(len(scale))
                block.norm2.bias = frozen(block.norm2.bias * (1 + scale) + shift)
                block.norm2.weight = frozen(block.norm2.weight * (1 + scale))
                block.time_embedding_norm = "folded"
            else:
                block.conv1.bias = frozen(block.conv1.bias + shift)
            block.time_emb_proj = None
            count += 1
        denoiser.unet = TimelessUNet(denoiser.unet)
    return count


def drop_unit_division(module: nn.Module) -> int:
    """Residual blocks whose output scale is one lose the division (a whole pass over memory on most engines)."""
    return _replace(
        module,
        lambda m: (
            isinstance(m, ResnetBlock2D)
            and m.output_scale_factor == 1
            and m.time_emb_proj is None
            and m.upsample is None
            and m.downsample is None
            and m.time_embedding_norm in ("default", "folded")
        ),
        UnscaledResnet,
    )


def fold_channel_affine(module: nn.Module) -> int:
    """A frozen norm that nothing but a convolution or a linear stands before, or behind without padding, becomes part of it.

    That is the second norm of a residual block, into the convolution before it, and a transformer's, into its first projection. A block's first norm reads the
    sum that the shortcut reads too, and what follows its activation pads with zeros: a shift before that padding is no bias, so it stays.
    """
    count = 0
    for block in [m for m in module.modules() if isinstance(m, UnscaledResnet) and isinstance(m.norm2, ChannelAffine)]:
        gain, shift = block.norm2.weight, block.norm2.bias  # type: ignore[union-attr]
        conv: Any = block.conv1
        conv.weight, conv.bias = frozen(conv.weight * gain.reshape(-1, 1, 1, 1)), frozen(conv.bias * gain + shift)
        block.norm2 = nn.Identity()
        count += 1
    for transformer in [m for m in module.modules() if isinstance(m, Transformer2DModel) and isinstance(m.norm, ChannelAffine)]:
        gain, shift, first = transformer.norm.weight, transformer.norm.bias, transformer.proj_in
        weight = first.weight.flatten(1)
        first.bias = frozen(first.bias + weight @ shift)
        first.weight = frozen((weight * gain).reshape(first.weight.shape))
        transformer.norm = nn.Identity()
        count += 1
    return count


def bake_position_embedding(module: nn.Module) -> int:
    """DINOv2's position embedding is resized to the tile's grid once, here: no phone has the bicubic op it traces to."""
    count = 0
    for encoder in [m for m in module.modules() if isinstance(m, FeatureEncoder)]:
        encoder.backbone.embeddings = BakedEmbeddings(encoder.backbone, side=encoder.resize.weight.shape[0])
        count += 1
    return count


def fold_pixel_normalization(module: nn.Module) -> int:
    """(pixel − mean)/std becomes part of the patch convolution, which has no padding, so the fold is exact; the image keeps values around zero."""
    count = 0
    for encoder in [m for m in module.modules() if isinstance(m, FeatureEncoder)]:
        patch = encoder.backbone.embeddings.patch_embeddings.projection
        patch.bias = frozen(patch.bias + (patch.weight * (encoder.offset + encoder.gain * MIDDLE)).sum((1, 2, 3)))
        patch.weight = frozen(patch.weight * encoder.gain)
        encoder.normalize, encoder.resize = False, Centred(encoder.resize)
        count += 1
    return count


def fold_layer_scale(module: nn.Module) -> int:
    """DINOv2's layer scale becomes part of the linear before it."""
    count = 0
    for layer in [m for m in module.modules() if isinstance(m, (Dinov2Layer, Dinov2WithRegistersLayer))]:
        last = layer.mlp.down_proj if hasattr(layer.mlp, "down_proj") else layer.mlp.fc2
        for linear, scale in ((layer.attention.o_proj, "layer_scale1"), (last, "layer_scale2")):
            gain = getattr(layer, scale).lambda1
            linear.weight, linear.bias = frozen(linear.weight * gain[:, None]), frozen(linear.bias * gain)
            setattr(layer, scale, nn.Identity())
            count += 1
    return count


def split_geglu(module: nn.Module) -> int:
    """GEGLU's one projection, cut in two afterwards, becomes two projections."""
    return _replace(module, lambda m: isinstance(m, GEGLU), SplitGEGLU)


def subpixel_upsample(module: nn.Module) -> int:
    """Nearest ×2 and a 3×3 convolution become four 2×2 convolutions and a pixel shuffle."""

    def fits(m: nn.Module) -> bool:
        conv = getattr(m, "conv", None)
        return (
            isinstance(m, Upsample2D)
            and m.interpolate
            and m.norm is None
            and isinstance(conv, nn.Conv2d)
            and conv.kernel_size == (3, 3)
            and conv.padding == (1, 1)
            and conv.groups == 1
        )

    return _replace(module, fits, lambda m: SubpixelUpsample(m.conv))


def channels_last_upsample(module: nn.Module) -> int:
    """The pixel shuffle becomes concatenations (LiteRT and XNNPACK, which hold channels last)."""
    return _replace(module, lambda m: type(m) is SubpixelUpsample, ChannelsLastUpsample)


def explicit_attention(module: nn.Module) -> int:
    """Attention becomes two batched products around a softmax, with the scale folded into the query."""

    def plain(m: nn.Module) -> bool:
        return (
            isinstance(m, Attention) and m.group_norm is None and m.spatial_norm is None and m.norm_q is None and not m.residual_connection
        )

    count = _replace(
        module, plain, lambda m: ExplicitUNetAttention(m.to_q, m.to_k, m.to_v, m.to_out[0], m.heads, m.scale if m.scale_qk else 1.0)
    )
    dino = (Dinov2Attention, Dinov2WithRegistersAttention)
    return count + _replace(
        module,
        lambda m: isinstance(m, dino),
        lambda m: ExplicitDinoAttention(m.q_proj, m.k_proj, m.v_proj, m.o_proj, m.num_attention_heads, m.scaling),
    )


def explicit_group_norm(module: nn.Module) -> int:
    """Group norm becomes elementary ops that XNNPACK and the Neural Engine take."""
    return _replace(module, lambda m: isinstance(m, nn.GroupNorm) and m.affine, ExplicitGroupNorm)


def channel_group_norm(module: nn.Module) -> int:
    """Group norm keeps channels last (XNNPACK)."""
    return _replace(module, lambda m: isinstance(m, ExplicitGroupNorm), lambda m: ChannelGroupNorm(m, pooled=False))


def pooled_group_norm(module: nn.Module) -> int:
    """Group norm keeps channels last (LiteRT)."""
    return _replace(module, lambda m: isinstance(m, ExplicitGroupNorm), lambda m: ChannelGroupNorm(m, pooled=True))


def explicit_layer_norm(module: nn.Module) -> int:
    """Layer norm becomes elementary ops that XNNPACK takes."""
    return _replace(
        module,
        lambda m: isinstance(m, nn.LayerNorm) and m.elementwise_affine and m.bias is not None and len(m.normalized_shape) == 1,
        ExplicitLayerNorm,
    )


def explicit_silu(module: nn.Module) -> int:
    """SiLU becomes a sigmoid and a product."""
    return _replace(module, lambda m: isinstance(m, nn.SiLU), lambda m: ExplicitSiLU())


def scaled_group_norm(module: nn.Module) -> int:
    """Group norm divides by the largest magnitude before it squares (half precision only, where squares overflow)."""
    return _replace(module, lambda m: isinstance(m, ExplicitGroupNorm), ScaledGroupNorm)


def sigmoid_gelu(module: nn.Module) -> int:
    """GELU becomes a sigmoid of a polynomial (half precision only)."""
    return _replace(
        module,
        lambda m: type(m).__name__ in ("GELU", "GELUActivation") and getattr(m, "approximate", "none") == "none",
        lambda m: SigmoidGELU(),
    )


Rewrite = Callable[[nn.Module], int]

EVERYWHERE: tuple[Rewrite, ...] = (
    fold_timestep,
    drop_unit_division,
    fold_channel_affine,
    bake_position_embedding,
    fold_pixel_normalization,
    fold_layer_scale,
    split_geglu,
    subpixel_upsample,
    explicit_attention,
)


def shared_copy(module: nn.Module) -> nn.Module:
    """A copy of the module tree whose parameters and buffers are the original's own tensors: cheap at any size."""
    memo: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, memo)


def half_copy(module: nn.Module) -> nn.Module:
    """A copy of the module tree with float16 parameters and buffers; the original keeps its own."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().half(), requires_grad=False) for p in module.parameters()}
    memo |= {id(b): b.half() if b.is_floating_point() else b for b in module.buffers()}
    return copy.deepcopy(module, memo)


def apply(module: nn.Module, rewrites: tuple[Rewrite, ...]) -> Iterator[tuple[str, int, nn.Module]]:
    """Apply ``rewrites`` to a copy, one after another; yields name, places changed and the module so far, skipping those that found nothing."""
    current = shared_copy(module)
    for rewrite in rewrites:
        with torch.no_grad():
            count = rewrite(current)
        if count:
            yield rewrite.__name__, count, current


def with_split_skips(steps: tuple[Rewrite, ...]) -> tuple[Rewrite, ...]:
    """Returns a target's rewrites with the one that splits skip concatenations after those that every target shares."""
    return (*EVERYWHERE, split_skip_concatenation, *steps[len(EVERYWHERE) :])


def rewritten(module: nn.Module, *, split_skips: bool = False) -> nn.Module:
    """The module with the rewrites that every target shares: what scales are found on, and what the QDQ program is made of."""
    steps = with_split_skips(EVERYWHERE) if split_skips else EVERYWHERE
    return functools.reduce(lambda _, step: step[2], apply(module, steps), module)


def _replace(module: nn.Module, fits: Callable[[nn.Module], bool], make: Callable[[Any], nn.Module]) -> int:
    count = 0
    for name, child in list(module.named_children()):
        if fits(child):
            setattr(module, name, make(child).eval())
            count += 1
        else:
            count += _replace(child, fits, make)
    return count
