"""The quantized layers of a QDQ program. They are used to find the same layers in every artifact."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class QuantizedLayer:
    """A convolution or linear with int8 weights and int8 or int16 activations, and what it was given and gave on one tile.

    ``weight`` int8 (out, in, …), ``input`` and ``rounded`` int8 or int16, as torch lays them out. What it gave, behind the ReLU
    that alone reads it where there is one, is ``scale`` · (``rounded`` - ``zero``).
    """

    name: str
    op: Literal["conv2d", "linear"]
    weight: Array
    input: Array
    rounded: Array
    scale: float
    zero: int

    @property
    def output(self) -> Array:
        """The layer's output, float32. It is computed anew each time, because the outputs of all layers together take four times the memory."""
        return (self.rounded.astype(np.float32) - np.float32(self.zero)) * np.float32(self.scale)


def fingerprint(weight: Array) -> str:
    """Returns what identifies an int8 weight in whatever order its axes are: how often each value occurs."""
    counts = np.bincount(np.asarray(weight, dtype=np.int16).ravel() + 128, minlength=256)
    return hashlib.sha256(counts.astype("<i8").tobytes()).hexdigest()


@dataclass(frozen=True)
class StoredLayer:
    """An int8 layer as an artifact stores it: its weight in whatever order of axes, and the scale and the zero point of its output."""

    weight: Array
    scale: float
    zero: int


def pair_layers(layers: Sequence[QuantizedLayer], stored: Sequence[StoredLayer]) -> list[QuantizedLayer | None]:
    """Returns for each of an artifact's layers, in the order in which it runs them, the layer of the QDQ program that it is; None where it is none of them.

    Layers are known by their weights. Several may have the same (two phases of an upsampling, a module that is called twice, layers that are pruned to zero):
    among those the scale and the zero point of the output decide, and then the order.
    """
    rest: dict[str, list[QuantizedLayer]] = {}
    for layer in layers:
        rest.setdefault(fingerprint(layer.weight), []).append(layer)
    marks = [fingerprint(item.weight) for item in stored]
    found: list[QuantizedLayer | None] = [None] * len(stored)
    for exact in (True, False):
        for k, (mark, item) in enumerate(zip(marks, stored, strict=True)):
            same = [layer for layer in rest.get(mark, ()) if not exact or _same_grid(layer, item)]
            if found[k] is None and same:
                found[k] = same[0]
                rest[mark] = [layer for layer in rest[mark] if layer is not same[0]]
    return found


def with_merged(layers: Sequence[QuantizedLayer], outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Returns ``outputs`` (layer's name → output) with those of layers that are the same computation on the same input as one that has an output.

    Converters keep one of such layers.
    """
    merged = dict(outputs)
    for layer in layers:
        twin = (
            None if layer.name in merged else next((other for other in layers if other.name in outputs and _same_work(layer, other)), None)
        )
        if twin is not None:
            merged[layer.name] = outputs[twin.name]
    return merged


def _same_grid(layer: QuantizedLayer, stored: StoredLayer) -> bool:
    return layer.zero == stored.zero and bool(np.isclose(layer.scale, stored.scale, rtol=1e-6, atol=0))


def _same_work(one: QuantizedLayer, other: QuantizedLayer) -> bool:
    same = (one.op, one.scale, one.zero) == (other.op, other.scale, other.zero)
    pairs = ((one.weight, other.weight), (one.input, other.input), (one.rounded, other.rounded))
    return same and all(np.array_equal(a, b) for a, b in pairs)
