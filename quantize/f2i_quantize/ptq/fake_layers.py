"""Layers that round or do not, as they are told: the quantized model in eager torch, for measuring one layer at a time and for training.

They compute what the QDQ graph computes (:func:`f2i_quantize.ptq.quantized.simulated`), with every rounding private to its layer, so that any set of layers can
be quantized without capturing a graph for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from f2i_quantize.ptq.observe import RANGES, WEIGHT_MAX, fake_quantize, fake_quantize_weight
from f2i_quantize.ptq.recipe import Rule
from f2i_quantize.rewrites.passes import shared_copy


class ActivationRounding(nn.Module):
    """Rounding of one activation tensor. Its scale is ``base`` · ``factor``, of which the factor is trained where it requires a gradient."""

    base: Tensor
    zero: Tensor

    def __init__(self, scale: float, zero_point: int, kind: str) -> None:
        super().__init__()
        self.register_buffer("base", torch.tensor([scale], dtype=torch.float32), persistent=False)
        self.register_buffer("zero", torch.tensor([float(zero_point)]), persistent=False)
        self.factor = nn.Parameter(torch.ones(1), requires_grad=False)
        self.zero_point = zero_point
        _, self.low, self.high, _ = RANGES[kind]

    def forward(self, x: Tensor) -> Tensor:
        if not self.factor.requires_grad:
            return fake_quantize(x, float(self.scale()), self.zero_point, self.low, self.high)
        result: Tensor = torch._fake_quantize_learnable_per_tensor_affine(x, self.scale(), self.zero, self.low, self.high, 1.0)
        return result

    def scale(self) -> Tensor:
        """The scale, (1,), float32."""
        return self.base * self.factor


class FakeQuantLayer(nn.Module):
    """A convolution or linear that rounds its input, weight and output while ``on``, and is the float layer while it is not.

    Its weight is kept as integers until :meth:`start_training` makes a parameter of it.
    """

    integers: Tensor
    base: Tensor
    zero: Tensor

    def __init__(
        self,
        layer: nn.Module,
        integers: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        before: ActivationRounding | None,
        after: ActivationRounding | None,
    ) -> None:
        super().__init__()
        self.float_layer = layer
        self.register_buffer("integers", integers, persistent=False)
        self.register_buffer("base", scale, persistent=False)
        self.register_buffer("zero", torch.zeros_like(scale), persistent=False)
        self.weight: nn.Parameter | None = None
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.factor = nn.Parameter(torch.ones_like(scale), requires_grad=False)
        self.before, self.after = before, after
        self.on = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            result: Tensor = self.float_layer(x)
            return result
        weights = {"weight": self.rounded_weight()}
        if self.bias is not None:
            weights["bias"] = self.rounded_bias(self.bias)
        if self.before is not None:
            x = self.before(x)
        result = functional_call(self.float_layer, weights, (x,))
        return result if self.after is None else self.after(result)

    def scale(self) -> Tensor:
        """The scale of each output channel, (channels,), float32."""
        return self.base * self.factor

    def rounded_weight(self) -> Tensor:
        """The weight on its grid, with gradients straight through once it is a parameter."""
        if self.weight is None:
            return self.integers * self._column()
        if not self.factor.requires_grad:
            return fake_quantize_weight(self.weight, self.scale())
        result: Tensor = torch._fake_quantize_learnable_per_channel_affine(
            self.weight, self.scale(), self.zero, 0, -WEIGHT_MAX, WEIGHT_MAX, 1.0
        )
        return result

    def rounded_bias(self, bias: Tensor) -> Tensor:
        """The bias in int32 steps of input scale times weight scale, as engines hold it, with gradients straight through."""
        if self.before is None:
            return bias
        step = (self.scale() * self.before.scale()).detach()
        return bias + ((bias / step).round() * step - bias).detach()

    def start_training(self, room: float) -> nn.Parameter:
        """Make the weight a parameter: the float one it came from, kept within ``room`` steps of its integers, so that rounding gives those."""
        exact, column = self.integers * self._column(), self._column()
        source: Tensor = self.float_layer.weight.detach()  # type: ignore[assignment, operator]
        self.weight = nn.Parameter(source.clamp(exact - room * column, exact + room * column))
        return self.weight

    def _column(self) -> Tensor:
        return self.scale().reshape(-1, *(1,) * (self.integers.dim() - 1)).detach()


@dataclass(frozen=True)
class FakeComponent:
    """A copy of a component's rewritten module with its quantized layers exchanged, by layer name."""

    module: nn.Module
    layers: dict[str, FakeQuantLayer]

    def switch(self, on: Collection[str]) -> bool:
        """Quantize exactly the layers of ``on`` that are this component's; returns whether there are any."""
        for name, layer in self.layers.items():
            layer.on = name in on
        return any(layer.on for layer in self.layers.values())


def fake_component(module: nn.Module, component: str, rules: Mapping[str, Rule], tensors: Mapping[str, Tensor]) -> FakeComponent:
    """``module`` (rewritten, float, smoothed where the recipe smooths) with the int8 layers of ``rules`` exchanged, all off.

    ``tensors`` as :mod:`f2i_quantize.ptq.quantized` stores them. Tensors that share a scale there share one :class:`ActivationRounding`.
    """
    copy = shared_copy(module)
    roundings: dict[tuple[float, int, str], ActivationRounding] = {}
    layers: dict[str, FakeQuantLayer] = {}
    for name, rule in rules.items():
        if rule.weights != "int8" or not name.startswith(f"{component}/"):
            continue
        path = name.split("/", 1)[1]
        owner = copy.get_submodule(path)
        around: list[ActivationRounding | None] = [None, None]
        if rule.activations != "float":
            for k, side in enumerate(("input", "output")):
                key = (float(tensors[f"{name}.{side}_scale"]), int(tensors[f"{name}.{side}_zero_point"]), rule.activations)
                around[k] = roundings.setdefault(key, ActivationRounding(*key))
        scale, bias = tensors[f"{name}.weight_scale"], tensors.get(f"{name}.bias", owner.bias)
        layers[name] = FakeQuantLayer(owner, tensors[f"{name}.weight"], scale, bias, *around)
        parent, _, attribute = path.rpartition(".")
        setattr(copy.get_submodule(parent), attribute, layers[name])
    return FakeComponent(copy, layers)
