"""Skip concatenations cut in two: conv(cat(a, b)) = conv_a(a) + conv_b(b), so that each half is quantized with its own scale.

The halves of a UNet's skip concatenation have different ranges; one scale for both wastes most of its steps on the narrower. Source: Li et al.,
Q-Diffusion, arXiv 2302.04304, sec. 4.3. Exact in float.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from f2i_quantize.models.norms import ChannelAffine
from f2i_quantize.rewrites.phone_modules import TimelessUNet, UnscaledResnet, frozen


class SplitConv(nn.Module):
    """A convolution of a concatenation as the sum of two, ``main`` of the first ``channels`` and ``skip`` of the rest; the bias is with ``main``."""

    def __init__(self, conv: nn.Conv2d, channels: int) -> None:
        super().__init__()
        self.main = _convolution(conv, conv.weight[:, :channels], conv.bias)
        self.skip = _convolution(conv, conv.weight[:, channels:], None)

    def forward(self, hidden: Tensor, skip: Tensor) -> Tensor:
        result: Tensor = self.main(hidden) + self.skip(skip)
        return result


class SplitSkipResnet(nn.Module):
    """A residual block of the decoder that is given the two halves instead of their concatenation.

    Its first norm is cut in two as well where no group lies across the border, and then nothing is concatenated at all; elsewhere it stays whole.
    """

    def __init__(self, block: UnscaledResnet, channels: int) -> None:
        super().__init__()
        norm = block.norm1
        self.channels = channels
        self.whole = isinstance(norm, nn.GroupNorm) and channels % (norm.num_channels // norm.num_groups) != 0
        if self.whole:
            self.norm1 = norm
        else:
            self.norm1_main = _norm_of(norm, slice(0, channels))
            self.norm1_skip = _norm_of(norm, slice(channels, None))
        self.conv1 = SplitConv(block.conv1, channels)  # type: ignore[arg-type]
        self.conv_shortcut = SplitConv(block.conv_shortcut, channels)  # type: ignore[arg-type]
        self.norm2, self.conv2, self.nonlinearity = block.norm2, block.conv2, block.nonlinearity

    def forward(self, hidden: Tensor, skip: Tensor) -> Tensor:
        if self.whole:
            both = self.nonlinearity(self.norm1(torch.cat([hidden, skip], 1)))
            main, side = both[:, : self.channels], both[:, self.channels :]
        else:
            main, side = self.nonlinearity(self.norm1_main(hidden)), self.nonlinearity(self.norm1_skip(skip))
        inner = self.conv2(self.nonlinearity(self.norm2(self.conv1(main, side))))
        result: Tensor = self.conv_shortcut(hidden, skip) + inner
        return result


class SplitUpBlock(nn.Module):
    """diffusers' ``UpBlock2D`` and ``CrossAttnUpBlock2D`` with residual blocks that take the halves."""

    def __init__(self, block: nn.Module, resnets: Sequence[SplitSkipResnet]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(resnets)
        self.has_cross_attention = bool(getattr(block, "has_cross_attention", False))
        self.attentions = block.attentions if self.has_cross_attention else None
        self.upsamplers = block.upsamplers

    def forward(
        self,
        hidden_states: Tensor,
        temb: Tensor | None = None,
        res_hidden_states_tuple: tuple[Tensor, ...] = (),
        encoder_hidden_states: Tensor | None = None,
    ) -> Tensor:
        attentions: Any = self.attentions or [None] * len(self.resnets)
        for resnet, attention, skip in zip(self.resnets, attentions, reversed(res_hidden_states_tuple), strict=True):
            hidden_states = resnet(hidden_states, skip)
            if attention is not None:
                hidden_states = attention(hidden_states, encoder_hidden_states=encoder_hidden_states, return_dict=False)[0]
        for upsampler in self.upsamplers or ():
            hidden_states = upsampler(hidden_states)
        return hidden_states


def split_skip_concatenation(module: nn.Module) -> int:
    """Decoder blocks of UNets with a folded timestep take the halves of their skip concatenations apart. Counts residual blocks."""
    count = 0
    for unet in [m for m in module.modules() if isinstance(m, TimelessUNet)]:
        widths = _skip_widths(unet)
        for k, block in enumerate(unet.up_blocks):
            mine = [widths.pop() for _ in block.resnets]
            fits = all(isinstance(r, UnscaledResnet) and _can_be_split(r) for r in block.resnets)
            if fits:
                resnets = [SplitSkipResnet(r, r.conv1.in_channels - width) for r, width in zip(block.resnets, mine, strict=True)]
                unet.up_blocks[k] = SplitUpBlock(block, resnets).eval()
                count += len(resnets)
    return count


def _can_be_split(block: UnscaledResnet) -> bool:
    convolutions = (block.conv1, block.conv_shortcut)
    return isinstance(block.norm1, (nn.GroupNorm, ChannelAffine, nn.Identity)) and all(
        isinstance(c, nn.Conv2d) and c.groups == 1 for c in convolutions
    )


def _skip_widths(unet: TimelessUNet) -> list[int]:
    """Channels of what the encoder hands to the decoder, in the order in which it is made (and taken from the end)."""
    widths = [int(unet.conv_in.out_channels)]
    for block in unet.down_blocks:
        widths += [int(resnet.conv2.out_channels) for resnet in block.resnets]
        widths += [widths[-1]] * len(block.downsamplers or ())
    return widths


def _convolution(conv: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Conv2d:
    part = nn.Conv2d(
        weight.shape[1],
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        conv.dilation,  # type: ignore[arg-type]
        bias=bias is not None,
        device="meta",
    )
    part.weight = frozen(weight)
    if bias is not None:
        part.bias = bias  # type: ignore[assignment]
    return part


def _norm_of(norm: nn.Module, channels: slice) -> nn.Module:
    """The norm of some of its channels, between whose groups no border lies."""
    if isinstance(norm, nn.Identity):
        return norm
    weight, bias = norm.weight[channels], norm.bias[channels]  # type: ignore[index]
    if isinstance(norm, nn.GroupNorm):
        part: nn.Module = nn.GroupNorm(len(weight) * norm.num_groups // norm.num_channels, len(weight), norm.eps, device="meta")
    else:
        part = ChannelAffine(len(weight))
    part.weight, part.bias = frozen(weight), frozen(bias)
    return part
