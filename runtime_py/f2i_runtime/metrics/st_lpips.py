"""ST-LPIPS: a learned perceptual distance that a shift by a pixel does not change, with the weights that its authors publish on PyPI.

Source: Ghildyal and Liu, Shift-tolerant Perceptual Similarity Metric, arXiv 2207.13686, sec. 4: LPIPS (Zhang et al., arXiv 1801.03924, eq. 1) on an AlexNet
that strides by one and averages over binomial windows where it halves. The package ``stlpips-pytorch`` (BSD-2) is only read for its file of weights: what it
imports besides (torchvision, IPython) is not needed, and the network is written out here.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from f2i_runtime.errors import UsageError
from f2i_runtime.metrics.pair_shapes import same_shape

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE = "stlpips_pytorch"
_WEIGHTS = "weights/vST0.0/alex_shift_tolerant.pth"
_LAYERS = (("slice1.0", 2), ("slice2.5", 2), ("slice3.9", 1), ("slice4.11", 1), ("slice5.13", 1))
"""The name of each convolution in the file, and its padding. Features are taken behind each of them."""
LEAST_SIDE = 32
"""Pixels; smaller images leave nothing of the coarsest features."""


def weights_file() -> Path | None:
    """Returns the file of weights in the installed package; None where it is not installed."""
    spec = find_spec(PACKAGE)
    places = spec.submodule_search_locations if spec else None
    file = Path(next(iter(places))) / _WEIGHTS if places else None
    return file if file and file.is_file() else None


def st_lpips(reference: NDArray[Any], test: NDArray[Any]) -> float | None:
    """Returns the distance of two photos (H, W, 3), RGB in [0, 1]; 0 where they are equal, larger is worse. None where its weights are not installed.

    Install them with ``pip install 'f2i-mobile[perceptual]'``. A NaN in either gives NaN. Raises UsageError for shapes that differ or are below 32 pixels.
    """
    same_shape(reference, test)
    if reference.ndim != 3 or reference.shape[2] != 3 or min(reference.shape[:2]) < LEAST_SIDE:
        raise UsageError(f"ST-LPIPS needs RGB images (H, W, 3) of at least {LEAST_SIDE} px per side; got shape {reference.shape}")
    file = weights_file()
    if file is None:
        return None
    import torch

    weights: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    total = 0.0
    with torch.no_grad():
        pair = (_features(weights, _image(weights, image)) for image in (reference, test))
        for k, (one, other) in enumerate(zip(*pair, strict=True)):
            difference = (_unit(one) - _unit(other)).square()
            total += float(torch.nn.functional.conv2d(difference, weights[f"lin{k}.model.1.weight"]).mean())
    return total


def _image(weights: dict[str, Tensor], image: NDArray[Any]) -> Tensor:
    """Returns the photo as the trunk takes it: (1, 3, h, w), normalised."""
    import torch

    pixels = torch.from_numpy(np.ascontiguousarray(np.clip(image, 0, 1).transpose(2, 0, 1)[None], dtype=np.float32))
    return (pixels * 2 - 1 - weights["scaling_layer.shift"]) / weights["scaling_layer.scale"]


def _features(weights: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """Returns the trunk's activations (1, c, h, w) behind each convolution, finest first. The first one is halved before its ReLU."""
    from torch.nn import functional

    found = []
    for k, (name, padding) in enumerate(_LAYERS):
        if k in (1, 2):
            x = _halved(functional.max_pool2d(x, 3, 1))
        x = functional.conv2d(x, weights[f"net.{name}.weight"], weights[f"net.{name}.bias"], padding=padding)
        x = functional.relu(_halved(x) if k == 0 else x)
        found.append(x)
    return found


def _halved(x: Tensor) -> Tensor:
    """Returns binomial averages (1, 2, 1) ⊗ (1, 2, 1) / 16 at every second place, with two pixels reflected at each edge."""
    import torch

    row = torch.tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(row, row).expand(x.shape[1], 1, 3, 3)
    return torch.nn.functional.conv2d(torch.nn.functional.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


def _unit(x: Tensor) -> Tensor:
    """Returns the activations divided by their length over channels."""
    return x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
