"""The check of shapes that comes before every figure of two arrays."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from f2i_runtime.errors import UsageError

Array = NDArray[Any]


def same_shape(reference: Array, test: Array) -> None:
    """Raise ``UsageError`` unless both arrays have one shape with at least one element."""
    if reference.shape != test.shape:
        raise UsageError(f"cannot compare arrays of shapes {reference.shape} and {test.shape}; expected the same shape")
    if reference.size == 0:
        raise UsageError(f"cannot compare arrays of shape {reference.shape}; expected at least one element")
