"""The weights that a model starts training from, where those that the libraries draw are not good ones.

diffusers draws weights for a UNet with group norms, which bring every activation back to unit variance. Without them what the residual branches add grows
with depth, and the first steps diverge. What is done here:

- the last layer of each of the L residual branches is scaled by 1/√L, so that the branches together add no more than one of them would (Hayou et al.,
  arXiv 2010.12859, sec. 2; to the same end as Fixup, Zhang et al., arXiv 1901.09321, and SkipInit, De and Smith, arXiv 2002.10444), and its bias is zero;
- the timestep, which is the same for every tile of a one-step model, starts without effect.

Other weights stay as the libraries draw them. Convolutions that keep the variance of their input (He et al., arXiv 1502.01852) were tried beside it: the
validation PSNR of a four-level UNet was 0.95 dB lower after 300 steps (33.98 beside 34.93 dB).
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
def set_starting_weights(model: F2IModel) -> None:
    """Turns the random weights of a model into those that training starts from. Models with group norms keep their own.

    A pixel model's first output is exactly its base (bicubic), from which every step is an improvement.
    """
    if model.config.unet_norm != "group":
        _quiet_branches(model.unet)
    if isinstance(model.codec, PixelCodec):
        nn.init.zeros_(model.unet.conv_out.weight)
        nn.init.zeros_(model.unet.conv_out.bias)


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
