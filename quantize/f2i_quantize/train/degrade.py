"""The mild second-order degradation of real-world super-resolution: shrink or grow, noise and JPEG, twice over.

Second order after Real-ESRGAN (Wang et al., arXiv 2107.10833); the mild ranges are those used by one-step diffusion work on photos that are
already good: resize 0.3–1.5, Gaussian noise 1–15 code values, JPEG quality 60–95.
"""

from __future__ import annotations

import io

import numpy as np
from f2i_runtime.photo.resample import Kernel, resize
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

RESIZE = (0.3, 1.5)
NOISE = (1.0, 15.0)
JPEG = (60, 95)
GREY_NOISE = 0.4
"""Share of images whose noise is the same in all channels."""
SMALLEST = 8
"""No intermediate image has a side below this."""


def degrade(hr: Pixels, size: int, rng: np.random.Generator) -> Pixels:
    """uint8 (H, W, 3) → uint8 (size, size, 3): two rounds of resize, noise and JPEG, all choices from ``rng``."""
    image = resize(hr, *(max(SMALLEST, round(side * _factor(rng))) for side in hr.shape[:2]), kernel=_kernel(rng))
    image = jpeg(noise(image, rng), rng)
    relative = _factor(rng)
    image = resize(image, *(max(SMALLEST, round(size * relative)),) * 2, kernel=_kernel(rng))
    image = noise(image, rng)
    return jpeg(resize(image, size, size, kernel=_kernel(rng)), rng)


def noise(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Gaussian noise of a standard deviation drawn from ``NOISE``, in code values."""
    sigma = rng.uniform(*NOISE)
    channels = 1 if rng.random() < GREY_NOISE else 3
    field = rng.normal(0.0, sigma, (*image.shape[:2], channels))
    noisy: Pixels = np.clip(np.rint(image + field), 0, 255).astype(np.uint8)
    return noisy


def jpeg(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Compressed and read back at a quality drawn from ``JPEG``."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=int(rng.integers(JPEG[0], JPEG[1] + 1)))
    with Image.open(buffer) as decoded:
        return np.asarray(decoded.convert("RGB"))


def _factor(rng: np.random.Generator) -> float:
    """Resize factor, as likely below 1 as above (uniform on either side)."""
    return float(rng.uniform(RESIZE[0], 1.0) if rng.random() < 0.5 else rng.uniform(1.0, RESIZE[1]))


def _kernel(rng: np.random.Generator) -> Kernel:
    return "cubic" if rng.random() < 0.5 else "linear"
