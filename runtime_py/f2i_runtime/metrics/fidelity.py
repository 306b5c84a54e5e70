"""Figures of fidelity, each a pure function of two arrays, accumulated in float64.

Images are (H, W, 3), RGB in [0, 1]. What every function does with odd input is the same:
arrays of different shape raise ``UsageError``; a NaN on either side gives NaN; identical arrays give the best value there is (``inf`` dB,
1 or 0).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from f2i_runtime.errors import UsageError
from f2i_runtime.metrics.pair_shapes import same_shape
from f2i_runtime.metrics.perceptual import ssim_plane

Array = NDArray[Any]

# BT.601 studio-range luma of RGB in [0, 1], in code values 16..235, as MATLAB rgb2ycbcr.
_LUMA_601 = np.array([65.481, 128.553, 24.966])


def _ratio_db(signal: float, noise: float) -> float:
    if math.isnan(signal) or math.isnan(noise):
        return math.nan
    if noise == 0.0:
        return math.inf
    if signal == 0.0 or math.isinf(noise):
        return -math.inf
    return 10.0 * (math.log10(signal) - math.log10(noise))


class ErrorSums:
    """Running sums over pieces of two equal-shaped arrays, so that figures of a 48-megapixel photo need the memory of one piece.

    The order and size of the pieces change the figures by float64 rounding only.
    """

    def __init__(self) -> None:
        self.count = 0
        self.reference_square = 0.0
        self.test_square = 0.0
        self.product = 0.0
        self.error_square = 0.0
        self.error_max = 0.0

    def update(self, reference: Array, test: Array) -> None:
        """Add one pair of pieces of the same shape, any numeric dtype. Raises ``UsageError`` on different shapes."""
        same_shape(reference, test)
        r = np.asarray(reference, dtype=np.float64).ravel()
        t = np.asarray(test, dtype=np.float64).ravel()
        e = r - t
        self.count += r.size
        self.reference_square += float(r @ r)
        self.test_square += float(t @ t)
        self.product += float(r @ t)
        self.error_square += float(e @ e)
        # np.max keeps a NaN, Python's max would drop it.
        self.error_max = float(np.max([self.error_max, np.max(np.abs(e))]))

    def _filled(self) -> None:
        if self.count == 0:
            raise UsageError("no data to compare: nothing was added; expected at least one piece")

    def sqnr_db(self) -> float:
        """10 log10(sum r^2 / sum (r - t)^2); ``inf`` if identical, ``-inf`` for a zero reference with error."""
        self._filled()
        return _ratio_db(self.reference_square, self.error_square)

    def relative_l2(self) -> float:
        """||r - t|| / ||r||; 0 if identical, ``inf`` for a zero reference with error."""
        self._filled()
        if self.reference_square == 0.0 and not math.isnan(self.error_square):
            return 0.0 if self.error_square == 0.0 else math.inf
        return math.sqrt(self.error_square / self.reference_square)

    def max_abs(self) -> float:
        """Largest |r - t|."""
        self._filled()
        return self.error_max

    def cosine(self) -> float:
        """<r, t> / (||r|| ||t||), in [-1, 1]; 1 if identical (two zero arrays too), 0 if only one of them is zero."""
        self._filled()
        if self.error_square == 0.0:
            return 1.0
        norm = math.sqrt(self.reference_square) * math.sqrt(self.test_square)
        if norm == 0.0:
            return 0.0
        return math.nan if math.isnan(norm) else max(-1.0, min(1.0, self.product / norm))

    def psnr_db(self, data_range: float = 1.0) -> float:
        """10 log10(data_range^2 / mean (r - t)^2); ``inf`` if identical."""
        self._filled()
        return _ratio_db(data_range**2, self.error_square / self.count)


def _sums(reference: Array, test: Array) -> ErrorSums:
    sums = ErrorSums()
    sums.update(reference, test)
    return sums


def sqnr_db(reference: Array, test: Array) -> float:
    """Signal to quantization noise: 10 log10(sum r^2 / sum (r - t)^2) in dB, over arrays of any one shape."""
    return _sums(reference, test).sqnr_db()


def relative_l2(reference: Array, test: Array) -> float:
    """||r - t|| / ||r||; SQNR is -20 log10 of it."""
    return _sums(reference, test).relative_l2()


def max_abs(reference: Array, test: Array) -> float:
    """Largest absolute difference, in the arrays' own units."""
    return _sums(reference, test).max_abs()


def token_cosine(reference: Array, test: Array) -> float:
    """Mean cosine similarity of vectors along the last axis, each with its own length; a vector of zeros counts 1 beside zeros, else 0."""
    same_shape(reference, test)
    r, t = (np.asarray(a, dtype=np.float64).reshape(-1, a.shape[-1]) for a in (reference, test))
    lengths = np.linalg.norm(r, axis=1) * np.linalg.norm(t, axis=1)
    equal = (r == t).all(1)
    return float(np.where(equal, 1.0, (r * t).sum(1) / np.where(lengths > 0, lengths, 1.0)).mean())


def cosine(reference: Array, test: Array) -> float:
    """Cosine similarity of the flattened arrays, in [-1, 1]."""
    return _sums(reference, test).cosine()


def psnr_db(reference: Array, test: Array, data_range: float = 1.0) -> float:
    """Peak signal to noise, 10 log10(data_range^2 / MSE), MSE over all elements and channels."""
    return _sums(reference, test).psnr_db(data_range)


def to_uint8(image: Array) -> NDArray[np.uint8]:
    """[0, 1] to [0, 255]: clipped, rounded half up as MATLAB ``im2uint8``; integers pass through if they are uint8 already.

    Raises:
        UsageError: NaN in the image.
    """
    if image.dtype == np.uint8:
        return image
    if np.isnan(image).any():
        raise UsageError("cannot turn an image with NaN into 8 bits; expected finite values in [0, 1]")
    return np.floor(np.clip(image, 0.0, 1.0).astype(np.float64) * 255.0 + 0.5).astype(np.uint8)


def rgb_to_y(image: Array) -> NDArray[np.float64]:
    """BT.601 studio-range luma: RGB (..., 3) in [0, 1] to Y (...) in [16/255, 235/255], float64; MATLAB ``rgb2ycbcr`` without rounding."""
    if image.shape[-1:] != (3,):
        raise UsageError(f"cannot take luma of an array of shape {image.shape}; expected RGB in the last axis (..., 3)")
    luma: NDArray[np.float64] = (np.asarray(image, dtype=np.float64) @ _LUMA_601 + 16.0) / 255.0
    return luma


def _y_cropped(image: Array, border: int) -> NDArray[np.float64]:
    if image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) <= 2 * border or border < 0:
        raise UsageError(f"cannot crop {border} px off an image of shape {image.shape}; expected (H, W, 3), larger than the border")
    y = rgb_to_y(to_uint8(image) / 255.0) * 255.0
    return y[border : y.shape[0] - border, border : y.shape[1] - border]


def psnr_y(hr: Array, sr: Array, border: int) -> float:
    """PSNR on Y as super-resolution papers report it: both images to uint8, BT.601 Y, ``border`` px (= the scale) cropped on each side.

    Y itself is not rounded (BasicSR's convention, that of current papers; MATLAB scripts that round it come out 0.03 dB lower on Set5).
    ``hr`` and ``sr`` are (H, W, 3), float in [0, 1] or uint8. NaN in either gives NaN.
    """
    same_shape(hr, sr)
    if np.isnan(hr).any() or np.isnan(sr).any():
        return math.nan
    return psnr_db(_y_cropped(hr, border), _y_cropped(sr, border), 255.0)


def ssim_y(hr: Array, sr: Array, border: int) -> float:
    """SSIM on Y, prepared as ``psnr_y``; 11 x 11 Gaussian of sigma 1.5, the windows wholly inside the image, as Wang's ``ssim.m``."""
    same_shape(hr, sr)
    if np.isnan(hr).any() or np.isnan(sr).any():
        return math.nan
    return ssim_plane(_y_cropped(hr, border), _y_cropped(sr, border), 255.0)


def ssim(reference: Array, test: Array, data_range: float = 1.0) -> float:
    """Mean SSIM over windows and channels (Wang et al., 2004); images (H, W, 3) or (H, W), at least 11 px each way."""
    same_shape(reference, test)
    if reference.ndim == 2:
        return ssim_plane(reference, test, data_range)
    return float(np.mean([ssim_plane(reference[..., c], test[..., c], data_range) for c in range(reference.shape[-1])]))
