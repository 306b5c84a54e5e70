"""Makes one operation of the evaluator wrong by a little, to show that tests notice."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from f2i_runtime.mil.format import constexpr
from f2i_runtime.mil.ops import optable

FACTOR = 1.01


@contextlib.contextmanager
def mutated(operation: str) -> Iterator[None]:
    """While the context lasts, ``operation`` is wrong: floats by 1 %, integers by 1 and booleans inverted in one element of a hundred."""
    table = constexpr.TABLE if operation.startswith("constexpr_") else optable.OPERATIONS
    entry = table[operation]
    versions = entry if isinstance(entry, dict) else {15: entry}
    table[operation] = {since: _wrong(function) for since, function in versions.items()}
    try:
        yield
    finally:
        table[operation] = entry


def _wrong(function: optable.Implementation) -> optable.Implementation:
    @functools.wraps(function)
    def apply(*arguments: Any, **options: Any) -> Any:
        return _spoiled(function(*arguments, **options))

    return apply


def _spoiled(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_spoiled(item) for item in value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return _spoiled(torch.from_numpy(np.array(value))).numpy().reshape(value.shape)
    if not isinstance(value, torch.Tensor):
        return value
    if value.dtype.is_floating_point:
        return value * FACTOR
    spoiled = value.clone().reshape(-1)
    some = spoiled[::100]
    spoiled[::100] = ~some if value.dtype == torch.bool else some + 1
    return spoiled.reshape(value.shape)
