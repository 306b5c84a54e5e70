"""The norms of a UNet: group normalisation as diffusers builds it, one constant affine per channel in its place, or none.

A group norm measures its whole tile: it is a pass over memory on every engine, costs an NPU more than the convolutions around it in int8, and makes the
output depend on what else the tile shows. Without one, a model must be trained from good starting weights (:mod:`f2i_quantize.train.starting_weights`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from f2i_quantize.models.config import UNetNorm


class ChannelAffine(nn.Module):
    """x · weight + bias per channel: a normalisation whose mean and variance are constants. (n, c, …) → (n, c, …), float.

    Its parameters have the names of the group norm's that it stands for, and shape (c,).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return x * self.weight.reshape(shape) + self.bias.reshape(shape)


def set_norms(unet: nn.Module, kind: UNetNorm) -> nn.Module:
    """Returns the UNet with its group norms replaced in place: by a :class:`ChannelAffine` each (``frozen``), by nothing (``none``), or not at all."""
    if kind == "group":
        return unet
    for name, child in list(unet.named_children()):
        if isinstance(child, nn.GroupNorm):
            setattr(unet, name, ChannelAffine(child.num_channels) if kind == "frozen" else nn.Identity())
        else:
            set_norms(child, kind)
    return unet
