"""Perceptual figures of two images: SSIM, MS-SSIM, GMSD, HaarPSI.

SSIM is scikit-image's; the other three are short, so they are written out here from their papers rather than bringing a library in.
All take (H, W, 3) RGB in [0, 1], work in float64, return NaN if a NaN is met, and raise ``UsageError`` on shapes that differ or are
too small.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from f2i_runtime.errors import UsageError
from f2i_runtime.metrics.pair_shapes import same_shape

Array = NDArray[Any]
Plane = NDArray[np.float64]

_WINDOW = 11
# MS-SSIM's exponents per scale, finest first (Wang, Simoncelli, Bovik, 2003, section 3.2).
_MS_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def _at_least(image: Array, side: int, figure: str) -> None:
    if min(image.shape[:2]) < side:
        raise UsageError(f"{figure} needs images of at least {side} x {side} px; got {image.shape[1]} x {image.shape[0]}")


def _rgb_pair(reference: Array, test: Array, side: int, figure: str) -> bool:
    """Checks both images. Returns True if a NaN in one of them makes the figure NaN."""
    same_shape(reference, test)
    if reference.ndim != 3 or reference.shape[2] != 3:
        raise UsageError(f"{figure} needs RGB images (H, W, 3); got shape {reference.shape}")
    _at_least(reference, side, figure)
    return bool(np.isnan(reference).any() or np.isnan(test).any())


def ssim_plane(reference: Array, test: Array, data_range: float) -> float:
    """Mean SSIM of two planes (H, W): Gaussian 11 x 11 window, sigma 1.5, K = (0.01, 0.03), population covariance (Wang et al., 2004)."""
    from skimage.metrics import structural_similarity

    same_shape(reference, test)
    _at_least(reference, _WINDOW, "SSIM")
    r, t = np.asarray(reference, dtype=np.float64), np.asarray(test, dtype=np.float64)
    if np.isnan(r).any() or np.isnan(t).any():
        return math.nan
    mean: Any = structural_similarity(r, t, data_range=data_range, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
    return float(mean)


def _valid_blur(plane: Plane) -> Plane:
    from scipy.ndimage import correlate1d

    x = np.arange(_WINDOW) - _WINDOW // 2
    kernel = np.exp(-(x**2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    edge = _WINDOW // 2
    blurred: Plane = correlate1d(correlate1d(plane, kernel, axis=0), kernel, axis=1)[edge:-edge, edge:-edge]
    return blurred


def _ssim_terms(r: Plane, t: Plane) -> tuple[float, float]:
    """Returns the means of SSIM and of its contrast-structure factor, for a range of 1."""
    c1, c2 = 0.01**2, 0.03**2
    mr, mt = _valid_blur(r), _valid_blur(t)
    vr, vt, cov = _valid_blur(r * r) - mr * mr, _valid_blur(t * t) - mt * mt, _valid_blur(r * t) - mr * mt
    contrast = (2 * cov + c2) / (vr + vt + c2)
    luminance = (2 * mr * mt + c1) / (mr * mr + mt * mt + c1)
    return float(np.mean(luminance * contrast)), float(np.mean(contrast))


def _halve(plane: Plane) -> Plane:
    """Returns the means of 2 x 2 squares; an odd last row or column is left out."""
    h, w = plane.shape[0] // 2 * 2, plane.shape[1] // 2 * 2
    p = plane[:h, :w]
    return (p[0::2, 0::2] + p[1::2, 0::2] + p[0::2, 1::2] + p[1::2, 1::2]) / 4.0


def ms_ssim(reference: Array, test: Array) -> float:
    """Multi-scale SSIM over five scales, mean over channels, in [0, 1]; at least 176 px each way.

    Source: Wang, Simoncelli, Bovik, "Multi-scale structural similarity for image quality assessment", 2003. Negative factors count as 0.
    """
    side = _WINDOW * 2 ** (len(_MS_WEIGHTS) - 1)
    if _rgb_pair(reference, test, side, "MS-SSIM"):
        return math.nan
    values = []
    for channel in range(3):
        r, t = (np.asarray(image[..., channel], dtype=np.float64) for image in (reference, test))
        value = 1.0
        for scale, weight in enumerate(_MS_WEIGHTS):
            full, contrast = _ssim_terms(r, t)
            last = scale == len(_MS_WEIGHTS) - 1
            value *= max(full if last else contrast, 0.0) ** weight
            r, t = _halve(r), _halve(t)
        values.append(value)
    return float(np.mean(values))


def gmsd(reference: Array, test: Array) -> float:
    """Gradient magnitude similarity deviation of the luma; 0 is identical, larger is worse.

    Source: Xue, Zhang, Mou, Bovik, "Gradient magnitude similarity deviation", 2014, and its MATLAB code: halved by 2 x 2 means,
    Prewitt / 3, T = 170.
    """
    from scipy.ndimage import correlate1d

    if _rgb_pair(reference, test, 6, "GMSD"):
        return math.nan

    def magnitude(image: Array) -> Plane:
        plane = _halve(np.asarray(image, dtype=np.float64) @ np.array([0.299, 0.587, 0.114]) * 255.0)
        difference, mean = np.array([1.0, 0.0, -1.0]), np.ones(3) / 3.0
        gy = correlate1d(correlate1d(plane, difference, axis=0, mode="constant"), mean, axis=1, mode="constant")
        gx = correlate1d(correlate1d(plane, mean, axis=0, mode="constant"), difference, axis=1, mode="constant")
        return np.asarray(np.hypot(gx, gy), dtype=np.float64)

    r, t = magnitude(reference), magnitude(test)
    return float(np.std((2 * r * t + 170.0) / (r * r + t * t + 170.0)))


def haarpsi(reference: Array, test: Array) -> float:
    """Haar wavelet-based perceptual similarity index, in [0, 1]; 1 is identical. At least 16 px each way.

    Source: Reisenhofer, Bosse, Kutyniok, Wiegand, "A Haar wavelet-based perceptual similarity index for image quality assessment", 2018,
    and its MATLAB code: YIQ, halved by 2 x 2 means, three Haar scales, C = 30, alpha = 4.2.
    """
    if _rgb_pair(reference, test, 16, "HaarPSI"):
        return math.nan
    c, alpha = 30.0, 4.2
    yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    planes = []
    for image in (reference, test):
        converted = np.asarray(image, dtype=np.float64) @ yiq.T * 255.0
        planes.append([_halve(converted[..., k]) for k in range(3)])
    (yr, *chroma_r), (yt, *chroma_t) = planes

    def similar(a: Plane, b: Plane) -> Plane:
        return (2 * a * b + c) / (a * a + b * b + c)

    numerator = denominator = 0.0
    for axis in (0, 1):
        magnitudes = [(np.abs(_haar(yr, scale, axis)), np.abs(_haar(yt, scale, axis))) for scale in (1, 2, 3)]
        local = (similar(*magnitudes[0]) + similar(*magnitudes[1])) / 2.0
        weight = np.maximum(*magnitudes[2])
        numerator += float(np.sum(_sigmoid(local, alpha) * weight))
        denominator += float(np.sum(weight))
    chroma = sum(similar(np.abs(_mean2(a)), np.abs(_mean2(b))) for a, b in zip(chroma_r, chroma_t, strict=True)) / 2.0
    weight = (
        np.maximum(np.abs(_haar(yr, 3, 0)), np.abs(_haar(yt, 3, 0))) + np.maximum(np.abs(_haar(yr, 3, 1)), np.abs(_haar(yt, 3, 1)))
    ) / 2.0
    numerator += float(np.sum(_sigmoid(chroma, alpha) * weight))
    denominator += float(np.sum(weight))
    if denominator == 0.0:
        # Two constant images: only colour is left to compare.
        return 1.0 if np.array_equal(reference, test) else float(np.mean(chroma))
    mean = min(max(numerator / denominator, 1e-12), 1.0 / (1.0 + math.exp(-alpha)))
    return (math.log(mean / (1.0 - mean)) / alpha) ** 2


def _sigmoid(value: Any, alpha: float) -> Plane:
    return np.asarray(1.0 / (1.0 + np.exp(-alpha * value)), dtype=np.float64)


def _same(plane: Plane, kernel: Plane, axis: int) -> Plane:
    """MATLAB ``conv2(..., 'same')`` along one axis: zeros outside, an even kernel's centre right of its middle."""
    n, k = plane.shape[axis], len(kernel)
    pad = [(0, 0), (0, 0)]
    pad[axis] = (k - 1 - k // 2, k // 2)
    padded = np.pad(plane, pad)
    total = np.zeros_like(plane)
    for tap in range(k):
        window = [slice(None), slice(None)]
        window[axis] = slice(tap, tap + n)
        total += kernel[k - 1 - tap] * padded[tuple(window)]
    return total


def _haar(plane: Plane, scale: int, axis: int) -> Plane:
    """Haar detail at ``scale``: difference of halves along ``axis``, sum along the other, times 2^-scale."""
    size = 2**scale
    step = np.ones(size)
    step[: size // 2] = -1.0
    return _same(_same(plane, step / size, axis), np.ones(size), 1 - axis)


def _mean2(plane: Plane) -> Plane:
    return _same(_same(plane, np.ones(2) / 2.0, 0), np.ones(2) / 2.0, 1)
