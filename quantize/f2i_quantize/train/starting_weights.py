"""The weights that a model starts training from, where those that the libraries draw are not good ones.

diffusers draws weights for a UNet with group norms, which bring every activation back to unit variance. Without them the variance of what the residual
branches add grows with depth, or dies, and the first steps diverge. What is done here:

- convolutions keep the variance of what they are given: 2/fan-in behind the activation (He et al., arXiv 1502.01852, eq. 10), 1/fan-in elsewhere;
- the last layer of each of the L residual branches is scaled by 1/√L, so that the variance at the end is at most e times that at the start
  (Hayou et al., arXiv 2010.12859, sec. 2; the same end as Fixup, Zhang et al., arXiv 1901.09321, and SkipInit, De and Smith, arXiv 2002.10444);
- the timestep, which is the same for every tile of a one-step model, starts without effect.
"""

from __future__ import annotations

import math

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from f2i_quantize.models.parts import PixelCodec
from f2i_quantize.models.whole_model import F2IModel


@torch.no_grad()
def set_starting_weights(model: F2IModel, seed: int) -> None:
    """Sets the weights of a model with random ones to those that training starts from, drawn from ``seed``. Models with group norms keep their own.

    A pixel model's first output is exactly its base (bicubic), from which every step is an improvement.
    """
    if model.config.unet_norm != "group":
        _preserve_variance(model.unet, torch.Generator().manual_seed(seed))
        _quiet_branches(model.unet)
    if isinstance(model.codec, PixelCodec):
        nn.init.zeros_(model.unet.conv_out.weight)
        nn.init.zeros_(model.unet.conv_out.bias)


def _preserve_variance(unet: nn.Module, generator: torch.Generator) -> None:
    behind = {id(conv) for block in unet.modules() if isinstance(block, ResnetBlock2D) for conv in (block.conv1, block.conv2)}
    for conv in (m for m in unet.modules() if isinstance(m, nn.Conv2d)):
        gain = math.sqrt(2) if id(conv) in behind else 1.0
        conv.weight.normal_(0, gain / math.sqrt(conv.weight[0].numel()), generator=generator)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)


def _quiet_branches(unet: nn.Module) -> None:
    last: list[nn.Module] = []
    for block in unet.modules():
        if isinstance(block, ResnetBlock2D):
            last.append(block.conv2)
            if block.time_emb_proj is not None:
                nn.init.zeros_(block.time_emb_proj.weight)
                nn.init.zeros_(block.time_emb_proj.bias)
        elif isinstance(block, Transformer2DModel):
            last.append(block.proj_out)
        elif isinstance(block, Attention) and block.residual_connection:
            last.append(block.to_out[0])
    for layer in last:
        layer.weight.mul_(1 / math.sqrt(len(last)))  # type: ignore[union-attr, operator]
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
