"""Observers: what PT2E puts on each tensor to be quantized. They gather statistics, find scales, and simulate the rounding.

Activations are int8 (or int16), per tensor, affine; weights int8, per output channel, symmetric. Every rounding is ``clamp(round(x/s) + z) − z) · s``
with ties to even, as ``quantized_decomposed`` defines it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torchao.quantization.pt2e.observer import ObserverBase

Mode = Literal["off", "range", "histogram", "fake"]

BINS = 2048
WEIGHT_MAX = 127
"""Symmetric weights use −127 … 127: −128 has no counterpart."""
RANGES: dict[str, tuple[torch.dtype, int, int, torch.qscheme]] = {
    "int8": (torch.int8, -128, 127, torch.per_tensor_affine),
    "int16": (torch.int16, -32768, 32767, torch.per_tensor_symmetric),
}
"""Kind of activation → storage type, smallest and largest integer, scheme. Engines require a symmetric int16."""
SYMMETRIC_HEADROOM = 2.0
"""int16 steps are so fine that a photo outside the calibrated range costs far more (clipping: 41 dB became 22 on a photo that was not among
the calibration's) than one bit of resolution."""
SMALLEST_RANGE = 2.0**-12
"""The smallest range that an activation's integers span: below it steps are under 1e-6, which the epsilon of a norm hides and fp16 cannot store."""
LARGEST_BIAS = 2.0**30
"""The most int32 steps of a bias, half of what an int32 holds: the sum of products is added to it."""
SMALLEST_STEP = 2.0**-24
"""The smallest step of a layer's sums in steps of its output. Engines multiply sums by that ratio as an integer and a shift."""
_SHRINKS = torch.linspace(1.0, 0.2, 33)
"""Fractions of the full range that the mean-squared-error search tries at each end."""


class ActivationObserver(ObserverBase):
    """One activation tensor: its range, then its histogram inside that range, then its scale and zero point.

    ``channel_axis``, where set, also gathers the mean and the largest magnitude of every channel (for bias correction and SmoothQuant).
    """

    def __init__(
        self,
        dtype: torch.dtype = torch.int8,
        quant_min: int = -128,
        quant_max: int = 127,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        is_dynamic: bool = False,
    ) -> None:
        super().__init__(dtype=dtype, is_dynamic=is_dynamic)
        self.quant_min, self.quant_max, self.qscheme = quant_min, quant_max, qscheme
        self.mode: Mode = "off"
        self.low, self.high = float("inf"), float("-inf")
        self.finite = True
        self.histogram = torch.zeros(BINS, dtype=torch.float64)
        self.channel_axis: int | None = None
        self.channel_sum: Tensor | None = None
        self.channel_max: Tensor | None = None
        self.channel_count = 0
        self.scale, self.zero_point = 1.0, 0

    def forward(self, x: Tensor) -> Tensor:
        if self.mode == "fake":
            return fake_quantize(x, self.scale, self.zero_point, self.quant_min, self.quant_max)
        if self.mode == "range":
            self._measure(x.detach())
        elif self.mode == "histogram" and self.high > self.low:
            self.histogram += torch.histc(x.detach().float(), BINS, self.low, self.high).double()
        return x

    def _measure(self, x: Tensor) -> None:
        low, high = (float(value) for value in torch.aminmax(x))
        self.finite = self.finite and math.isfinite(low) and math.isfinite(high)
        self.low, self.high = min(self.low, low), max(self.high, high)
        if self.channel_axis is None:
            return
        channels = x.movedim(self.channel_axis, -1).reshape(-1, x.shape[self.channel_axis])
        largest, total = channels.abs().amax(0), channels.sum(0, dtype=torch.float64)
        self.channel_max = largest if self.channel_max is None else torch.maximum(self.channel_max, largest)
        self.channel_sum = total if self.channel_sum is None else self.channel_sum + total
        self.channel_count += channels.shape[0]

    def channel_mean(self) -> Tensor:
        """Mean of each channel over everything seen, float32."""
        if self.channel_sum is None:
            raise RuntimeError("channel statistics were not gathered: set channel_axis before the range pass")
        return (self.channel_sum / max(1, self.channel_count)).float()

    def solve(self, method: str, percentile: float) -> None:
        """Sets scale and zero point from what was seen. Zero is always representable; what was always zero gets the range from 0 to 1."""
        low, high = SOLVERS[method if self.high > self.low else "minmax"](self, percentile)
        low, high = min(low, 0.0), max(high, 0.0)
        if low == high:
            high = 1.0
        if self.qscheme == torch.per_tensor_symmetric:
            self.scale, self.zero_point = SYMMETRIC_HEADROOM * max(-low, high, SMALLEST_RANGE) / self.quant_max, 0
            return
        self.scale = max(high - low, SMALLEST_RANGE) / (self.quant_max - self.quant_min)
        self.zero_point = int(min(max(round(self.quant_min - low / self.scale), self.quant_min), self.quant_max))

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Called by ``convert_pt2e``: returns the scale and the zero point."""
        return torch.tensor(self.scale), torch.tensor(self.zero_point)


def _minmax(observer: ActivationObserver, _: float) -> tuple[float, float]:
    return observer.low, observer.high


def _percentile(observer: ActivationObserver, percentile: float) -> tuple[float, float]:
    """Returns the range without the same share of values at both ends."""
    share = observer.histogram.cumsum(0) / observer.histogram.sum().clamp_min(1)
    tail = (1 - percentile / 100) / 2
    width = (observer.high - observer.low) / BINS
    first = int((share <= tail).sum())
    last = int((share < 1 - tail).sum())
    return observer.low + first * width, observer.low + (last + 1) * width


def _mse(observer: ActivationObserver, _: float) -> tuple[float, float]:
    """The range with the least expected squared error over the histogram, both ends searched apart (Banner et al., arXiv 1810.05723)."""
    width = (observer.high - observer.low) / BINS
    centres = observer.low + (torch.arange(BINS, dtype=torch.float64) + 0.5) * width
    levels = observer.quant_max - observer.quant_min
    lows = torch.tensor(min(observer.low, 0.0), dtype=torch.float64) * _SHRINKS.double()
    highs = torch.tensor(max(observer.high, 0.0), dtype=torch.float64) * _SHRINKS.double()
    low, high = (pair.reshape(-1, 1) for pair in torch.meshgrid(lows.unique(), highs.unique(), indexing="ij"))
    scale = (high - low).clamp_min(1e-12) / levels
    quantized = (centres / scale).round().clamp((low / scale).round(), (high / scale).round()) * scale
    # Inside a bin values spread evenly, which adds nothing that depends on the range unless steps are finer than bins.
    error = ((quantized - centres) ** 2 * observer.histogram).sum(1) + observer.histogram.sum() * scale[:, 0] ** 2 / 12 * 1e-3
    best = int(error.argmin())
    return float(low[best]), float(high[best])


SOLVERS: dict[str, Callable[[ActivationObserver, float], tuple[float, float]]] = {"minmax": _minmax, "percentile": _percentile, "mse": _mse}


class PerChannelWeightObserver(ObserverBase):
    """One weight: symmetric int8 per output channel (axis 0). The scale is found by :func:`weight_scale` or loaded, never gathered.

    PT2E hands an axis only to observers whose name says PerChannel.
    """

    def __init__(
        self,
        dtype: torch.dtype = torch.int8,
        quant_min: int = -WEIGHT_MAX,
        quant_max: int = WEIGHT_MAX,
        qscheme: torch.qscheme = torch.per_channel_symmetric,
        ch_axis: int = 0,
        is_dynamic: bool = False,
    ) -> None:
        super().__init__(dtype=dtype, is_dynamic=is_dynamic)
        self.quant_min, self.quant_max, self.qscheme, self.ch_axis = quant_min, quant_max, qscheme, ch_axis
        self.mode: Mode = "off"
        self.scale = torch.ones(1)

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize_weight(x, self.scale) if self.mode == "fake" else x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Called by ``convert_pt2e``: returns the scale and the zero point."""
        return self.scale, torch.zeros_like(self.scale, dtype=torch.int64)


def fake_quantize(x: Tensor, scale: float, zero_point: int, low: int, high: int) -> Tensor:
    """Round to the grid and back, with straight-through gradients inside the range."""
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)


def fake_quantize_weight(weight: Tensor, scale: Tensor) -> Tensor:
    """The same for a weight with one scale per output channel (axis 0)."""
    return torch.fake_quantize_per_channel_affine(weight, scale, torch.zeros_like(scale, dtype=torch.int32), 0, -WEIGHT_MAX, WEIGHT_MAX)


def weight_scale(weight: Tensor, method: Literal["minmax", "mse"]) -> Tensor:
    """Scale of each output channel (axis 0), float32 (channels,): the largest magnitude over 127, or the shrunken one of least squared error.

    A channel of zeros gets the largest scale of the others, 1/127 where all are zero.
    """
    rows = weight.detach().reshape(weight.shape[0], -1)
    full = rows.abs().amax(1) / WEIGHT_MAX
    full = full.where(full > 0, full.max() if full.max() > 0 else 1 / WEIGHT_MAX)
    if method == "minmax":
        return full
    best, least = full.clone(), torch.full_like(full, float("inf"))
    for shrink in torch.linspace(1.0, 0.4, 31):
        scale = full * shrink
        error = (fake_quantize_weight(rows, scale) - rows).square().sum(1)
        better = error < least
        best[better], least[better] = scale[better], error[better]
    return best


def bounded_scale(scale: Tensor, bias: Tensor | None, input_scale: float, output_scale: float) -> Tensor:
    """Returns weight scales (channels,), raised where a channel's sums would have steps too fine for engines with integer kernels.

    A step is input scale times weight scale. Its bias must fit into :data:`LARGEST_BIAS` steps, and a step must be at least :data:`SMALLEST_STEP` of the
    output's. Both bounds are met by every channel whose weights are not negligible beside its bias and its layer's output.
    """
    least = torch.full_like(scale, SMALLEST_STEP * output_scale / input_scale)
    if bias is not None:
        least = torch.maximum(least, bias.detach().abs().to(scale) / (LARGEST_BIAS * input_scale))
    return torch.maximum(scale, least)


def weight_integers(weight: Tensor, scale: Tensor) -> Tensor:
    """int8 weights at ``scale`` (channels,), rounded to nearest, ties to even."""
    column = scale.reshape(-1, *(1,) * (weight.dim() - 1))
    return (weight.detach() / column).round().clamp(-WEIGHT_MAX, WEIGHT_MAX).to(torch.int8)
