"""A checkpoint's quantization for the layers that the NPU's rewrites put together: the four convolutions of an upsampling become one.

The int8 weights, their scales and the biases are the same numbers in another order, with the zeros of
:class:`f2i_quantize.rewrites.hexagon_modules.ShuffledUpsample` between them. Only a scale that the four had one each of, of their inputs and outputs, becomes
the widest of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from f2i_quantize.ptq.observe import RANGES
from f2i_quantize.ptq.quantized import Quantized
from f2i_quantize.ptq.recipe import Rule
from f2i_quantize.rewrites.hexagon_modules import corner
from f2i_runtime.errors import UsageError
from torch import Tensor

PHASES = 4
_PHASE = re.compile(r"^(?P<layer>.*)\.phases\.(?P<phase>[0-3])(?P<what>\..*)?$")


def with_shuffled_layers(quantized: Quantized) -> Quantized:
    """Returns the quantization for components that :data:`f2i_quantize.rewrites.hexagon_rewrites.HEXAGON` has rewritten.

    Raises UsageError where a recipe treats the four convolutions of one upsampling differently.
    """
    rules: dict[str, Rule] = {}
    for name, rule in quantized.rules.items():
        match = _PHASE.match(name)
        own = f"{match['layer']}.conv" if match else name
        if rules.setdefault(own, rule) != rule:
            raise UsageError(f"{own}: its four convolutions have different rules, expected one; the NPU computes them as one")
    tensors: dict[str, Tensor] = {}
    groups: dict[tuple[str, str], list[Tensor]] = {}
    for name in sorted(quantized.tensors):
        match = _PHASE.match(name)
        if match is None:
            tensors[name] = quantized.tensors[name]
        else:
            groups.setdefault((match["layer"], match["what"]), []).append(quantized.tensors[name])
    for (layer, what), values in groups.items():
        if len(values) != PHASES:
            raise UsageError(f"{layer}: {len(values)} of its four convolutions are quantized, expected all or none")
        if what in (".weight", ".weight_scale", ".bias"):
            tensors[f"{layer}.conv{what}"] = _ordered(what, values)
    for side in ("input", "output"):
        for layer, what in groups:
            if what == f".{side}_scale":
                kind = rules[f"{layer}.conv"].activations
                scale, zero = _widest(kind, groups[layer, what], groups[layer, f".{side}_zero_point"])
                tensors[f"{layer}.conv.{side}_scale"], tensors[f"{layer}.conv.{side}_zero_point"] = scale, zero
    return replace(quantized, rules=rules, tensors=tensors)


def _ordered(what: str, values: Sequence[Tensor]) -> Tensor:
    """The four in the order in which a pixel shuffle wants its channels."""
    parts = [corner(value, phase) for phase, value in enumerate(values)] if what == ".weight" else list(values)
    return torch.stack(parts, 1).flatten(0, 1)


def _widest(kind: str, scales: Sequence[Tensor], zeros: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The scale and zero point whose range holds all four ranges."""
    if all(torch.equal(scales[0], s) and torch.equal(zeros[0], z) for s, z in zip(scales, zeros, strict=True)):
        return scales[0], zeros[0]
    _, least, most, scheme = RANGES[kind]
    if scheme == torch.per_tensor_symmetric:
        return max(scales, key=float), zeros[0]
    low = min((least - int(z)) * float(s) for s, z in zip(scales, zeros, strict=True))
    high = max((most - int(z)) * float(s) for s, z in zip(scales, zeros, strict=True))
    scale = (high - low) / (most - least)
    return torch.tensor(scale, dtype=scales[0].dtype), torch.tensor(round(least - low / scale), dtype=zeros[0].dtype)
