"""Reading an operation's attributes, which arrive as tensors (from the file) or as plain Python (an operation's own default)."""

from __future__ import annotations

import math
from typing import Any

from f2i_runtime.errors import MilError
from f2i_runtime.mil.format.program import MAX_ELEMENTS


def ints(value: Any) -> list[int]:
    """The elements of an integer tensor, list or scalar."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [int(item) for row in value for item in (row if isinstance(row, (list, tuple)) else (row,))]
    return [int(value)]


def flags(value: Any, count: int) -> list[bool]:
    """The elements of a boolean vector, or ``count`` times False for None."""
    return [False] * count if value is None else [bool(item) for item in ints(value)]


def integer(value: Any) -> int:
    """A scalar integer; a vector of one element is accepted."""
    return ints(value)[0]


def number(value: Any) -> float:
    """A scalar float."""
    return float(value.reshape(-1)[0]) if hasattr(value, "reshape") else float(value)


def axes_of(value: Any, rank: int) -> list[int]:
    """Axes in ``[0, rank)``; None or an empty list means all of them."""
    axes = list(range(rank)) if value is None else [axis % rank if rank else 0 for axis in ints(value)]
    return axes or list(range(rank))


def check_size(shape: Any) -> list[int]:
    """``shape`` as integers; raises :class:`MilError` before an operation would allocate more than memory holds."""
    sizes = [int(size) for size in shape]
    if math.prod(sizes) > MAX_ELEMENTS or any(size < 0 for size in sizes):
        raise MilError(f"the result would have the shape {sizes}; at most {MAX_ELEMENTS} elements are accepted")
    return sizes


def choice(value: Any, known: tuple[str, ...], parameter: str) -> str:
    """``value`` if it is one of ``known``; raises :class:`MilError` naming ``parameter`` otherwise."""
    if value not in known:
        raise MilError(f"{parameter} is {value!r}; known: {', '.join(known)}")
    return str(value)
