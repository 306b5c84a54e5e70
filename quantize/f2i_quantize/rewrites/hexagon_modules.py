"""What a graph is rewritten into for the Hexagon NPU: the same functions in ops of rank four at most, each in the spelling that its compiler is fast at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from f2i_quantize.models.config import PixelCodecConfig
from f2i_quantize.models.parts import PixelCodec, Resize, TokenProjector, average_tokens
from f2i_quantize.rewrites.phone_modules import SubpixelUpsample, frozen


def corner(kernel: Tensor, phase: int) -> Tensor:
    """Returns the 2×2 kernels (out, in, 2, 2) of the phase of an upsampling in their corner of 3×3 kernels of zeros, of the same type."""
    row, column = divmod(phase, 2)
    return functional.pad(kernel, (column, 1 - column, row, 1 - row))


class ShuffledUpsample(nn.Module):
    """The four 2×2 convolutions of :class:`SubpixelUpsample` as one 3×3 convolution and a pixel shuffle.

    Each 2×2 kernel lies in its corner of a 3×3 kernel of zeros, so that all four share one padding; their outputs are in the order in which a pixel shuffle
    (Shi et al., arXiv 1609.05158, eq. 4) wants them. Input (n, c, h, w), output (n, c', 2h, 2w), float.
    """

    def __init__(self, upsample: SubpixelUpsample) -> None:
        super().__init__()
        phases: list[Any] = list(upsample.phases)
        kernels = [corner(phase.weight, k) for k, phase in enumerate(phases)]
        weight = torch.stack(kernels, 1).flatten(0, 1)
        self.conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1, bias=phases[0].bias is not None, device="meta")
        self.conv.weight = frozen(weight)
        if phases[0].bias is not None:
            self.conv.bias = frozen(torch.stack([phase.bias for phase in phases], 1).flatten())

    def forward(self, x: Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        return functional.pixel_shuffle(self.conv(x), 2)


class SidedResize(nn.Module):
    """:class:`~f2i_quantize.models.parts.Resize` as W · x · Wᵀ: one product from each side, and no transposition.

    Input (n, c, size_in, size_in), output (n, c, size_out, size_out), float.
    """

    def __init__(self, resize: Resize) -> None:
        super().__init__()
        weight: Any = resize.weight
        self.register_buffer("weight", weight.contiguous(), persistent=False)
        self.register_buffer("transposed", weight.t().contiguous(), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        return torch.matmul(torch.matmul(self.weight, image), self.transposed)


class ConvolvedPixelCodec(nn.Module):
    """A pixel codec whose unshuffle is a strided convolution with a single one in each kernel: torch's order of channels is no op's of any engine.

    By a factor of one nothing is shuffled, and nothing is left of the six axes that torch writes it in all the same.
    """

    def __init__(self, codec: PixelCodec) -> None:
        super().__init__()
        self.config: PixelCodecConfig = codec.config
        factor = codec.config.factor
        kernels = torch.eye(3 * factor**2).reshape(3 * factor**2, 3, factor, factor)
        self.register_buffer("kernels", kernels, persistent=False)

    def encode(self, image: Tensor) -> Tensor:
        """RGB (n, 3, t, t) in [0, 1] → (n, 3·factor², t/factor, t/factor) in [−1, 1]."""
        scaled = image * 2.0 - 1.0
        return scaled if self.config.factor == 1 else functional.conv2d(scaled, self.kernels, stride=self.config.factor)

    def decode(self, latent: Tensor) -> Tensor:
        """(n, 3·(2·factor)², t/factor, t/factor) → RGB (n, 3, 2t, 2t)."""
        return functional.pixel_shuffle(latent, self.config.factor * 2)


class AveragingProjector(nn.Module):
    """A projector that averages squares of patch tokens first, as one product with a constant matrix instead of a mean over six axes.

    Input (1, tokens, in_features), with the class token first where ``keep_class_token``; output (1, fewer tokens, context_features), float.
    """

    def __init__(self, projector: TokenProjector, patches: int, stride: int, keep_class_token: bool) -> None:
        super().__init__()
        self.config, self.norm, self.linear = projector.config, projector.norm, projector.linear
        average = average_tokens(torch.eye(patches)[None], stride)[0]
        matrix = torch.block_diag(torch.ones(1, 1), average) if keep_class_token else average
        self.register_buffer("average", matrix[None].contiguous(), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(self.norm(torch.matmul(self.average, tokens)))
