"""Separable resizing with the exact weights of MATLAB's ``imresize``, the convention of the super-resolution literature.

One function serves data preparation, the bicubic baseline, alpha planes and the resize matrices baked into exported graphs, so that
they agree. Source: R. Keys, "Cubic convolution interpolation for digital image processing", 1981 (a = -0.5), and ``contributions`` in
MATLAB's ``imresize.m``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from f2i_runtime.errors import UsageError

Kernel = Literal["cubic", "linear"]


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    ax = np.abs(x)
    near = (1.5 * ax - 2.5) * ax**2 + 1.0
    far = ((-0.5 * ax + 2.5) * ax - 4.0) * ax + 2.0
    return np.where(ax <= 1.0, near, np.where(ax <= 2.0, far, 0.0))


def _linear(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(0.0, 1.0 - np.abs(x))


_KERNELS: dict[str, tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], float]] = {"cubic": (_cubic, 4.0), "linear": (_linear, 2.0)}


def resize_taps(
    n_in: int, n_out: int, *, kernel: Kernel = "cubic", antialias: bool = True
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Source indices and weights along one axis.

    Args:
        n_in, n_out: samples before and after, both at least 1.
        kernel: ``cubic`` (a = -0.5) or ``linear``.
        antialias: widen the kernel by the factor when shrinking; without effect when enlarging.

    Returns:
        ``index`` int64 (n_out, taps) in [0, n_in) and ``weight`` float64 (n_out, taps), each row summing to 1. Samples beyond an edge
        are those mirrored at it, the edge sample included (``c b a | a b c``), as MATLAB does.

    Raises:
        UsageError: an unknown kernel or a length below 1.
    """
    if kernel not in _KERNELS:
        raise UsageError(f"unknown resize kernel {kernel!r}; expected one of: {', '.join(_KERNELS)}")
    if n_in < 1 or n_out < 1:
        raise UsageError(f"cannot resize {n_in} samples to {n_out}; both must be at least 1")
    function, width = _KERNELS[kernel]
    scale = n_out / n_in
    stretch = scale if antialias and scale < 1.0 else 1.0
    width /= stretch
    # Centre of every output sample in input coordinates, pixel centres at integers.
    centre = (np.arange(n_out) + 0.5) / scale - 0.5
    left = np.floor(centre - width / 2.0).astype(np.int64)
    index = left[:, None] + np.arange(math.ceil(width) + 2)
    weight = function(((centre[:, None] - index) * stretch).astype(np.float64))
    weight /= weight.sum(axis=1, keepdims=True)
    used = np.any(weight != 0.0, axis=0)
    index, weight = index[:, used], weight[:, used]
    mirrored = np.mod(index, 2 * n_in)
    return np.where(mirrored < n_in, mirrored, 2 * n_in - 1 - mirrored), weight


def resize_matrix(n_in: int, n_out: int, *, kernel: Kernel = "cubic", antialias: bool = True) -> NDArray[np.float64]:
    """The same weights as a dense matrix, float64 (n_out, n_in): ``resized = matrix @ samples``; arguments, errors as ``resize_taps``."""
    index, weight = resize_taps(n_in, n_out, kernel=kernel, antialias=antialias)
    matrix = np.zeros((n_out, n_in))
    # Mirroring can name one sample twice, so the weights add up.
    np.add.at(matrix, (np.arange(n_out)[:, None], index), weight)
    return matrix


def resize_axis(array: NDArray[Any], index: NDArray[np.int64], weight: NDArray[np.float64], *, axis: int) -> NDArray[np.float64]:
    """Apply taps from ``resize_taps`` along ``axis``; float64, one gather per tap, so no large intermediate but the result's own size."""
    shape = [1] * array.ndim
    shape[axis] = len(index)
    total = np.take(array, index[:, 0], axis=axis).astype(np.float64)
    total *= weight[:, 0].reshape(shape)
    for tap in range(1, index.shape[1]):
        total += np.take(array, index[:, tap], axis=axis) * weight[:, tap].reshape(shape)
    return total


def resize(image: NDArray[Any], height: int, width: int, *, kernel: Kernel = "cubic", antialias: bool = True) -> NDArray[Any]:
    """Resize ``image`` (H, W) or (H, W, C) to (height, width[, C]) as MATLAB ``imresize`` does.

    A floating-point image is computed in float64 and returned in its own dtype, not clipped: cubic overshoots at edges, and what to
    do about it is the caller's business. A uint8 image is rounded and clipped to uint8 after each axis, which is what ``imresize``
    does and what the low-resolution images of the standard benchmarks were made with.

    Raises:
        UsageError: an image of other rank or dtype, a size below 1, an unknown kernel.
    """
    eight_bit = image.dtype == np.uint8
    if image.ndim not in (2, 3) or image.size == 0 or not (eight_bit or np.issubdtype(image.dtype, np.floating)):
        raise UsageError(f"cannot resize an array {image.dtype} {image.shape}; expected a float or uint8 image (H, W) or (H, W, C)")
    sizes = {0: height, 1: width}
    result = image
    # imresize takes the axis that shrinks most first.
    for axis in sorted(sizes, key=lambda a: sizes[a] / image.shape[a]):
        index, weight = resize_taps(image.shape[axis], sizes[axis], kernel=kernel, antialias=antialias)
        resized = resize_axis(result, index, weight, axis=axis)
        result = np.floor(np.clip(resized, 0.0, 255.0) + 0.5).astype(np.uint8) if eight_bit else resized
    return result.astype(image.dtype, copy=False)
