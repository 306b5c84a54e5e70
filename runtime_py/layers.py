"""Quantized layers of a QDQ program, by which the same layers are found in every artifact."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class QuantizedLayer:
    """A convolution or linear with int8 weights and int8 or int16 activations, and what it was given and gave on one tile.

    ``weight`` int8 (out, in, …) and ``input`` int8 or int16 as torch lays them out; ``output`` float32, dequantized.
    """

    name: str
    op: Literal["conv2d", "linear"]
    weight: Array
    input: Array
    output: Array


def fingerprint(weight: Array) -> str:
    """What identifies an int8 weight whatever the order of its axes: how often each value occurs."""
    counts = np.bincount(np.asarray(weight, dtype=np.int16).ravel() + 128, minlength=256)
    return hashlib.sha256(counts.astype("<i8").tobytes()).hexdigest()
