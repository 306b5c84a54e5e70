"""The parts of the model that are not diffusers' or transformers' own: resize, token projector, pixel codec."""

from __future__ import annotations

import torch
from f2i_runtime.photo.resample import resize_matrix
from torch import Tensor, nn
from torch.nn import functional

from f2i_quantize.models.config import PixelCodecConfig, ProjectorConfig


class Resize(nn.Module):
    """Separable resampling as two matrix products, so that no exported graph holds a resize op.

    Phones have no bicubic op and disagree about bilinear grids; a matrix product means the same everywhere. The weights are those of
    :func:`f2i_runtime.photo.resample.resize_matrix` (MATLAB's ``imresize``, antialiased where it shrinks).

    Input (n, c, size_in, size_in), output (n, c, size_out, size_out), float.
    """

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        matrix = torch.from_numpy(resize_matrix(size_in, size_out)).float()
        self.register_buffer("weight", matrix, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        rows = functional.linear(image, self.weight).transpose(2, 3)
        return functional.linear(rows, self.weight).transpose(2, 3)


class TokenProjector(nn.Module):
    """DINOv2 tokens (n, tokens, in_features) → cross-attention context (n, tokens, context_features)."""

    def __init__(self, config: ProjectorConfig) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.in_features)
        self.linear = nn.Linear(config.in_features, config.context_features)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(self.norm(tokens))


class PixelCodec(nn.Module):
    """A codec without weights: PixelUnshuffle in, PixelShuffle out (Shi et al., arXiv 1609.05158).

    ``encode``: RGB (n, 3, t, t) in [0, 1] → (n, 3·factor², t/factor, t/factor) in [−1, 1].
    ``decode``: (n, 3·(2·factor)², t/factor, t/factor) → RGB (n, 3, 2t, 2t).
    """

    def __init__(self, config: PixelCodecConfig) -> None:
        super().__init__()
        self.config = config

    def encode(self, image: Tensor) -> Tensor:
        return functional.pixel_unshuffle(image * 2.0 - 1.0, self.config.factor)

    def decode(self, latent: Tensor) -> Tensor:
        return functional.pixel_shuffle(latent, self.config.factor * 2)


def average_tokens(patches: Tensor, stride: int) -> Tensor:
    """Mean over squares of ``stride``² patch tokens; (n, side², features) → (n, (side/stride)², features). The side must divide evenly."""
    if stride == 1:
        return patches
    n, count, features = patches.shape
    side = round(count**0.5)
    grid = patches.reshape(n, side // stride, stride, side // stride, stride, features)
    return torch.mean(grid, (2, 4)).reshape(n, -1, features)
