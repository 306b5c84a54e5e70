"""The quantized layers of a QDQ program. They are used to find the same layers in every artifact."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class QuantizedLayer:
    """A convolution or linear with int8 weights and int8 or int16 activations, and what it was given and gave on one tile.

    ``weight`` int8 (out, in, …), ``input`` and ``rounded`` int8 or int16, as torch lays them out. What it gave is ``scale`` · (``rounded`` - ``zero``).
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
