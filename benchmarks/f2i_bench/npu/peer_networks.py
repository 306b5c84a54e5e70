"""Other people's super-resolution networks, built from their papers' descriptions with random weights: their cost is known, and what they cost is compared.

No weights and no code of theirs is here. An NPU's time does not depend on the numbers in a weight.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class QuickSRNet(nn.Module):
    """Plain 3×3 convolutions with clipped ReLU, one pixel shuffle at the end. Source: Berger et al., arXiv 2303.04336, sec. 3 and table 1.

    ``skip``: the low-resolution image is added before the shuffle, repeated for each of its places (the large model).
    RGB (1, 3, h, w) in [0, 1] → (1, 3, scale·h, scale·w).
    """

    def __init__(self, channels: int, layers: int, scale: int, skip: bool) -> None:
        super().__init__()
        self.scale = scale
        self.first = _conv(3, channels)
        self.body = nn.ModuleList(_conv(channels, channels) for _ in range(layers))
        self.last = _conv(channels, 3 * scale**2)
        self.anchor = nn.Conv2d(3, 3 * scale**2, 1) if skip else None

    def forward(self, image: Tensor) -> Tensor:
        x = self.first(image).clamp(0.0, 1.0)
        for conv in self.body:
            x = conv(x).clamp(0.0, 1.0)
        x = self.last(x)
        if self.anchor is not None:
            x = x + self.anchor(image)
        return functional.pixel_shuffle(x.clamp(0.0, 1.0), self.scale)


class CompactVgg(nn.Module):
    """Real-ESRGAN's "general" network: 64 channels, 32 inner convolutions with PReLU, a pixel shuffle, the nearest enlargement added.

    Source: Wang et al., arXiv 2107.10833, and its authors' published description of the compact model (SRVGGNet).
    """

    def __init__(self, channels: int = 64, layers: int = 32, scale: int = 4) -> None:
        super().__init__()
        self.scale = scale
        widths = [3] + [channels] * (layers + 1)
        self.convs = nn.ModuleList(_conv(a, b) for a, b in itertools.pairwise(widths))
        self.activations = nn.ModuleList(nn.PReLU(channels) for _ in self.convs)
        self.last = _conv(channels, 3 * scale**2)

    def forward(self, image: Tensor) -> Tensor:
        x = image
        for conv, activation in zip(self.convs, self.activations, strict=True):
            x = activation(conv(x))
        x = functional.pixel_shuffle(self.last(x), self.scale)
        return x + functional.interpolate(image, scale_factor=float(self.scale), mode="nearest")


class _DenseBlock(nn.Module):
    """Five convolutions, each of which sees all before it; the last is added at a fifth. Source: Wang et al. (ESRGAN), arXiv 1809.00219, fig. 4."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        widths = [growth] * 4 + [channels]
        self.convs = nn.ModuleList(_conv(channels + k * growth, width) for k, width in enumerate(widths))

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for conv in list(self.convs)[:-1]:
            seen.append(functional.leaky_relu(conv(torch.cat(seen, 1)), 0.2))
        return x + self.convs[-1](torch.cat(seen, 1)) * 0.2


class RrdbNet(nn.Module):
    """Real-ESRGAN ×4plus: 23 residual blocks of three dense blocks, then two enlargements by two. Source: Wang et al., arXiv 1809.00219, sec. 3.1."""

    def __init__(self, channels: int = 64, blocks: int = 23, growth: int = 32) -> None:
        super().__init__()
        self.first = _conv(3, channels)
        self.blocks = nn.ModuleList(nn.Sequential(*(_DenseBlock(channels, growth) for _ in range(3))) for _ in range(blocks))
        self.trunk = _conv(channels, channels)
        self.ups = nn.ModuleList(_conv(channels, channels) for _ in range(2))
        self.high, self.last = _conv(channels, channels), _conv(channels, 3)

    def forward(self, image: Tensor) -> Tensor:
        first = x = self.first(image)
        for block in self.blocks:
            x = x + block(x) * 0.2
        x = first + self.trunk(x)
        for up in self.ups:
            x = functional.leaky_relu(up(functional.interpolate(x, scale_factor=2.0, mode="nearest")), 0.2)
        return self.last(functional.leaky_relu(self.high(x), 0.2))


class EdsrBaseline(nn.Module):
    """EDSR's baseline for ×2: 16 residual blocks of 64 channels without norms. Source: Lim et al., arXiv 1707.02921, table 1."""

    def __init__(self, channels: int = 64, blocks: int = 16) -> None:
        super().__init__()
        self.first = _conv(3, channels)
        pairs = (nn.Sequential(_conv(channels, channels), nn.ReLU(), _conv(channels, channels)) for _ in range(blocks))
        self.blocks = nn.ModuleList(pairs)
        self.trunk, self.up, self.last = _conv(channels, channels), _conv(channels, 4 * channels), _conv(channels, 3)

    def forward(self, image: Tensor) -> Tensor:
        first = x = self.first(image)
        for block in self.blocks:
            x = x + block(x)
        return self.last(functional.pixel_shuffle(self.up(first + self.trunk(x)), 2))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "QuickSRNet-S": lambda: QuickSRNet(32, 2, 4, skip=False),
    "QuickSRNet-L": lambda: QuickSRNet(64, 11, 4, skip=True),
    "Real-ESRGAN general": CompactVgg,
    "Real-ESRGAN x4plus": RrdbNet,
    "EDSR-baseline": EdsrBaseline,
}
"""By the names that they have in tables."""


def build_network(name: str) -> nn.Module:
    """Returns a network of :data:`NETWORKS` with random weights from a fixed seed, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NETWORKS[name]().eval().requires_grad_(False)
