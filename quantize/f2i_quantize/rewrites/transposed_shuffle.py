"""A pixel shuffle as a transposed convolution whose kernels hold a single one: for converters that have no op for it and would transpose the image twice.

Every output is one input times one, and zeros are added to it, so that the numbers are the same in every precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from f2i_quantize.rewrites.hexagon_modules import ConvolvedPixelCodec, ShuffledUpsample
from f2i_quantize.rewrites.passes import _replace


def shuffle_kernels(channels: int, factor: int) -> Tensor:
    """Returns the kernels (channels · factor², channels, factor, factor) of a transposed convolution of stride ``factor`` that is a pixel shuffle by it."""
    kernels = torch.zeros(channels, factor, factor, channels, factor, factor)
    index = torch.arange(channels)
    for row in range(factor):
        for column in range(factor):
            kernels[index, row, column, index, row, column] = 1.0
    return kernels.reshape(channels * factor**2, channels, factor, factor)


class TransposedUpsample(nn.Module):
    """:class:`~f2i_quantize.rewrites.hexagon_modules.ShuffledUpsample` with its shuffle as a transposed convolution."""

    def __init__(self, upsample: ShuffledUpsample) -> None:
        super().__init__()
        self.conv = upsample.conv
        self.register_buffer("ones", shuffle_kernels(upsample.conv.out_channels // 4, 2), persistent=False)

    def forward(self, x: Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        return functional.conv_transpose2d(self.conv(x), self.ones, stride=2)


class TransposedPixelCodec(nn.Module):
    """:class:`~f2i_quantize.rewrites.hexagon_modules.ConvolvedPixelCodec` with its shuffle as a transposed convolution."""

    def __init__(self, codec: ConvolvedPixelCodec) -> None:
        super().__init__()
        self.config, self.codec, self.factor = codec.config, codec, codec.config.factor * 2
        self.register_buffer("ones", shuffle_kernels(3, self.factor), persistent=False)

    def encode(self, image: Tensor) -> Tensor:
        """See :meth:`ConvolvedPixelCodec.encode`."""
        return self.codec.encode(image)

    def decode(self, latent: Tensor) -> Tensor:
        """See :meth:`ConvolvedPixelCodec.decode`."""
        return functional.conv_transpose2d(latent, self.ones, stride=self.factor)


def transposed_shuffle(module: nn.Module) -> int:
    """Pixel shuffles of upsamplings and of the codec become transposed convolutions. Comes after those that make them pixel shuffles."""
    count = _replace(module, lambda m: isinstance(m, ShuffledUpsample), TransposedUpsample)
    return count + _replace(module, lambda m: isinstance(m, ConvolvedPixelCodec), TransposedPixelCodec)
