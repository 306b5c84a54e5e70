"""Resizing and resampling of images, from the explicit sampling grids of the MIL documentation.

Grids as in coremltools' ``ops/defs/iOS15/image_resizing.py`` (``resize_bilinear``, Notes) and its iOS 16 and 17 versions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from f2i_runtime.errors import MilError
from f2i_runtime.mil.execute.arguments import check_size, choice, integer, ints, number

SAMPLING_MODES = ("DEFAULT", "STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "OFFSET_CORNERS", "UNALIGN_CORNERS")
_BOX_MODES = ("CORNERS_HEIGHT_FIRST", "CORNERS_WIDTH_FIRST", "CENTER_SIZE_HEIGHT_FIRST", "CENTER_SIZE_WIDTH_FIRST")


def sample_grid(size: int, target: int, mode: str) -> torch.Tensor:
    """Positions in ``[0, size - 1]`` that ``target`` output samples are read at, float64."""
    index = torch.arange(target, dtype=torch.float64)
    if mode == "ASYMMETRIC":  # upsample_bilinear with neither align_corners nor half_pixel_centers
        grid = index * (size / target)
    elif choice(mode, SAMPLING_MODES, "sampling_mode") == "UNALIGN_CORNERS":
        grid = (index + 0.5) * (size / target) - 0.5
    elif mode == "OFFSET_CORNERS":
        grid = (index + 0.5) * (max(1, size - 1) / target)
    elif mode == "DEFAULT":
        grid = index * ((size - size / target) / max(target - 1, 1))
    elif mode == "ALIGN_CORNERS" and target == 1:
        grid = torch.full((1,), (size - 1) / 2, dtype=torch.float64)
    else:
        grid = index * ((size - 1) / max(target - 1, 1))
    return grid.clamp(0, size - 1)


def _interpolate(x: torch.Tensor, axis: int, grid: torch.Tensor) -> torch.Tensor:
    low = grid.floor().long()
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    shape = [1] * x.dim()
    shape[axis] = -1
    weight = (grid - low).to(torch.float32).reshape(shape)
    return x.index_select(axis, low) * (1 - weight) + x.index_select(axis, high) * weight


def _bilinear(x: torch.Tensor, height: int, width: int, mode: str) -> torch.Tensor:
    check_size((*x.shape[:-2], height, width))
    rows = _interpolate(x, x.dim() - 2, sample_grid(x.shape[-2], height, mode))
    return _interpolate(rows, x.dim() - 1, sample_grid(x.shape[-1], width, mode))


def _nearest(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    check_size((*x.shape[:-2], height, width))
    for axis, target in ((-2, height), (-1, width)):
        size = x.shape[axis]
        index = (torch.arange(target, dtype=torch.float64) * (size / target)).floor().long().clamp(max=size - 1)
        x = x.index_select(axis, index)
    return x


def _scaled(size: int, factor: Any) -> int:
    return math.floor(number(factor) * size + 1e-6)


def _upsample_nearest(x: torch.Tensor, scale_factor_height: Any = 1, scale_factor_width: Any = 1) -> torch.Tensor:
    return _nearest(x, _scaled(x.shape[-2], scale_factor_height), _scaled(x.shape[-1], scale_factor_width))


def _resize_nearest(x: torch.Tensor, target_size_height: Any, target_size_width: Any) -> torch.Tensor:
    return _nearest(x, integer(target_size_height), integer(target_size_width))


def _upsample_bilinear(
    x: torch.Tensor, scale_factor_height: Any = 1, scale_factor_width: Any = 1, align_corners: Any = True, half_pixel_centers: Any = None
) -> torch.Tensor:
    half = not align_corners if half_pixel_centers is None else bool(half_pixel_centers)
    mode = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS" if half else "ASYMMETRIC"
    return _bilinear(x, _scaled(x.shape[-2], scale_factor_height), _scaled(x.shape[-1], scale_factor_width), mode)


def _resize_bilinear(
    x: torch.Tensor, target_size_height: Any = 1, target_size_width: Any = 1, sampling_mode: str = "DEFAULT"
) -> torch.Tensor:
    return _bilinear(x, integer(target_size_height), integer(target_size_width), choice(sampling_mode, SAMPLING_MODES, "sampling_mode"))


def _resize(
    x: torch.Tensor, shape: Any, resized_dims: Any, interpolation_mode: str = "LINEAR", sampling_mode: str = "DEFAULT"
) -> torch.Tensor:
    count = integer(resized_dims)
    targets = ints(shape)[len(ints(shape)) - count :]
    choice(interpolation_mode, ("LINEAR", "NEAREST_NEIGHBOR"), "interpolation_mode")
    first = x.dim() - count
    check_size([*x.shape[:first], *(target or x.shape[first + i] for i, target in enumerate(targets))])
    for i, target in enumerate(targets):
        axis = first + i
        grid = sample_grid(x.shape[axis], target or x.shape[axis], choice(sampling_mode, SAMPLING_MODES, "sampling_mode"))
        nearest = (grid + 0.5).floor().long().clamp(max=x.shape[axis] - 1)
        x = _interpolate(x, axis, grid) if interpolation_mode == "LINEAR" else x.index_select(axis, nearest)
    return x


def _corners(box: list[float], mode: str) -> tuple[float, float, float, float]:
    """Top, left, bottom and right of a box written in ``mode``."""
    if choice(mode, _BOX_MODES, "box_coordinate_mode").endswith("WIDTH_FIRST"):
        box = [box[1], box[0], box[3], box[2]]
    if mode.startswith("CENTER"):
        return box[0] - box[2] / 2, box[1] - box[3] / 2, box[0] + box[2] / 2, box[1] + box[3] / 2
    return box[0], box[1], box[2], box[3]


def _box_grid(first: float, last: float, size: int, target: int, mode: str) -> torch.Tensor:
    index = torch.arange(target, dtype=torch.float64)
    extent = last - first
    if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
        if target == 1:
            return torch.full((1,), first if mode.startswith("STRICT") else (first + last) / 2, dtype=torch.float64)
        return first + index * (extent / (target - 1))
    if mode == "DEFAULT":
        return first + index * ((extent + 1 - (extent + 1) / target) / max(target - 1, 1))
    if mode == "OFFSET_CORNERS":
        return first + (index + 0.5) * (extent / target)
    return first + (index + 0.5) * ((extent + 1) / target) - 0.5


def _crop_one(
    image: torch.Tensor, corners: tuple[float, float, float, float], target: tuple[int, int], mode: str, pad_value: float
) -> torch.Tensor:
    top, left, bottom, right = corners
    for axis, first, last, count in ((1, top, bottom, target[0]), (2, left, right, target[1])):
        size = image.shape[axis]
        grid = _box_grid(first, last, size, count, mode)
        if mode == "OFFSET_CORNERS":
            grid = grid.clamp(0, size - 1)
        outside = (grid < 0) | (grid > size - 1)
        image = _interpolate(image, axis, grid.clamp(0, size - 1))
        if bool(outside.any()):
            image = torch.where(outside.reshape([-1 if i == axis else 1 for i in range(3)]), torch.tensor(pad_value), image)
    return image


def _crops(
    x: torch.Tensor,
    boxes: torch.Tensor,
    indices: list[list[int]],
    target: tuple[int, int],
    normalized: Any,
    scale: Any,
    box_mode: str,
    mode: str,
    pad: Any,
) -> torch.Tensor:
    """``[boxes, images, C, h, w]``: each box cut from each image its list of ``indices`` names."""
    choice(mode, SAMPLING_MODES, "sampling_mode")
    check_size((len(indices), len(indices[0]) if indices else 0, x.shape[1], *target))
    rows = []
    for box, images in zip(boxes.float().tolist(), indices, strict=True):
        top, left, bottom, right = (edge * number(scale) for edge in _corners(box, box_mode))
        if normalized:
            top, bottom = top * (x.shape[2] - 1), bottom * (x.shape[2] - 1)
            left, right = left * (x.shape[3] - 1), right * (x.shape[3] - 1)
        rows.append(torch.stack([_crop_one(x[image], (top, left, bottom, right), target, mode, number(pad)) for image in images]))
    return torch.stack(rows)


def _crop_resize(
    x: torch.Tensor,
    roi: torch.Tensor,
    target_height: Any = 1,
    target_width: Any = 1,
    normalized_coordinates: Any = False,
    spatial_scale: Any = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: Any = 0.0,
) -> torch.Tensor:
    flat = roi.reshape(roi.shape[0], roi.shape[2])
    if flat.shape[1] not in (4, 5):
        raise MilError(f"roi has {flat.shape[1]} coordinates, expected 4 or 5")
    indices = [[int(row[0])] for row in flat] if flat.shape[1] == 5 else [list(range(x.shape[0]))] * flat.shape[0]
    target = integer(target_height), integer(target_width)
    return _crops(x, flat[:, -4:], indices, target, normalized_coordinates, spatial_scale, box_coordinate_mode, sampling_mode, pad_value)


def _crop_resize_17(
    x: torch.Tensor,
    boxes: torch.Tensor,
    box_indices: Any = None,
    target_height: Any = 1,
    target_width: Any = 1,
    normalized_coordinates: Any = False,
    spatial_scale: Any = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: Any = 0.0,
) -> torch.Tensor:
    images = list(range(boxes.shape[0])) if box_indices is None else ints(box_indices)
    target = integer(target_height), integer(target_width)
    picks = [[image] for image in images]
    crops = _crops(x, boxes, picks, target, normalized_coordinates, spatial_scale, box_coordinate_mode, sampling_mode, pad_value)
    return crops[:, 0]


def _fold(position: torch.Tensor, size: int, mode: str) -> torch.Tensor:
    """Reflects positions outside ``[0, size - 1]`` back inside, about the edge pixels' centres or (symmetric) their outer edges."""
    low, high = (0.0, size - 1.0) if mode == "reflection" else (-0.5, size - 0.5)
    span = high - low
    if span <= 0:
        return torch.zeros_like(position)
    folded = (position - low).abs().remainder(2 * span)
    return torch.minimum(folded, 2 * span - folded) + low


def _resample(
    x: torch.Tensor,
    coordinates: torch.Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: Any,
    coordinates_mode: str,
    align_corners: Any,
) -> torch.Tensor:
    choice(padding_mode, ("constant", "border", "reflection", "symmetric"), "padding_mode")
    choice(coordinates_mode, ("unnormalized", "normalized_minus_one_to_one", "normalized_zero_to_one"), "coordinates_mode")
    choice(sampling_mode, ("bilinear", "nearest"), "sampling_mode")
    height, width = x.shape[-2:]
    check_size((*x.shape[:2], *coordinates.shape[1:3]))
    axes = []
    for raw, size in zip(coordinates.double().unbind(-1), (width, height), strict=True):
        position = raw
        if coordinates_mode != "unnormalized":
            unit = (raw + 1) / 2 if coordinates_mode == "normalized_minus_one_to_one" else raw
            position = unit * (size - 1) if align_corners else unit * size - 0.5
        if padding_mode == "border":
            position = position.clamp(0, size - 1)
        elif padding_mode != "constant":
            position = _fold(position, size, padding_mode).clamp(0, size - 1)
        axes.append(position)
    px, py = axes
    images = torch.arange(x.shape[0])[:, None, None]

    def pick(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        values = x[images, :, row.clamp(0, height - 1), column.clamp(0, width - 1)].movedim(-1, 1)
        return torch.where(inside[:, None], values, torch.tensor(number(padding_value)))

    if sampling_mode == "nearest":
        return pick(py.round().long(), px.round().long())
    top, left = py.floor(), px.floor()
    wy, wx = (py - top).float()[:, None], (px - left).float()[:, None]
    row, column = top.long(), left.long()
    upper = pick(row, column) * (1 - wx) + pick(row, column + 1) * wx
    lower = pick(row + 1, column) * (1 - wx) + pick(row + 1, column + 1) * wx
    return upper * (1 - wy) + lower * wy


def _affine(
    x: torch.Tensor,
    transform_matrix: torch.Tensor,
    output_height: Any,
    output_width: Any,
    sampling_mode: str,
    padding_mode: str,
    padding_value: Any,
    coordinates_mode: str,
    align_corners: Any,
) -> torch.Tensor:
    theta = transform_matrix.reshape(-1, 2, 3).expand(x.shape[0], 2, 3)
    shape = check_size((x.shape[0], x.shape[1], integer(output_height), integer(output_width)))
    grid = F.affine_grid(theta, shape, align_corners=bool(align_corners))
    return _resample(x, grid, sampling_mode, padding_mode, padding_value, coordinates_mode, align_corners)


TABLE: dict[str, Any] = {
    "affine": _affine,
    "crop_resize": {15: _crop_resize, 17: _crop_resize_17},
    "resample": _resample,
    "resize": {17: _resize},
    "resize_bilinear": _resize_bilinear,
    "resize_nearest_neighbor": _resize_nearest,
    "upsample_bilinear": _upsample_bilinear,
    "upsample_nearest_neighbor": _upsample_nearest,
}
