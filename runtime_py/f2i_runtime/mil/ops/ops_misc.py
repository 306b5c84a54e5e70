"""Activation quantization, non-maximum suppression, lists, random numbers and the classifier's last operation.

Semantics as in coremltools' ``ops/defs/iOS17/quantization_ops.py``, ``iOS15/{tensor_operation,control_flow,random,classify}.py``.
Random operations draw from torch's generator: their distribution is MIL's, their numbers are not.
"""

from __future__ import annotations

from typing import Any

import torch

from f2i_runtime.errors import MilError
from f2i_runtime.mil.execute.arguments import check_size, choice, integer, ints, number
from f2i_runtime.mil.format.dtypes import BY_NAME

_QUANTIZED = {"int8": (-128, 127, torch.int8), "uint8": (0, 255, torch.uint8)}


def _along(parameter: torch.Tensor, x: torch.Tensor, axis: Any) -> torch.Tensor:
    """Returns a scale or zero point as float32, a vector shaped to broadcast along ``axis`` of ``x``."""
    if parameter.dim() == 0:
        return parameter.float()
    shape = [1] * x.dim()
    shape[integer(axis)] = -1
    return parameter.float().reshape(shape)


def _quantize(
    input: torch.Tensor, scale: torch.Tensor, output_dtype: str, zero_point: torch.Tensor | None = None, axis: Any = None
) -> torch.Tensor:
    low, high, dtype = _QUANTIZED[choice(output_dtype, tuple(_QUANTIZED), "output_dtype")]
    steps = torch.round(input / _along(scale, input, axis))
    if zero_point is not None:
        steps = steps + _along(zero_point, input, axis)
    return steps.clamp_(low, high).to(dtype)


def _dequantize(input: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None = None, axis: Any = None) -> torch.Tensor:
    values = input.float()
    if zero_point is not None:
        values = values - _along(zero_point, input, axis)
    return values * _along(scale, input, axis)


def _overlap(boxes: torch.Tensor) -> torch.Tensor:
    """Intersection over union of every pair of boxes ``[B, 4]`` in centre-size form."""
    half = boxes[:, 2:] / 2
    low, high = boxes[:, :2] - half, boxes[:, :2] + half
    sides = (torch.minimum(high[:, None], high[None]) - torch.maximum(low[:, None], low[None])).clamp(min=0)
    shared = sides.prod(-1)
    area = boxes[:, 2] * boxes[:, 3]
    return shared / (area[:, None] + area[None] - shared).clamp(min=1e-12)


def _suppress(boxes: torch.Tensor, scores: torch.Tensor, iou: float, threshold: float, limit: int, per_class: bool) -> list[int]:
    best, label = scores.max(-1)
    overlap = _overlap(boxes)
    kept: list[int] = []
    for index in torch.sort(best, descending=True, stable=True)[1].tolist():
        if best[index] < threshold or len(kept) == limit:
            continue
        if not any(overlap[index, other] > iou and (not per_class or label[index] == label[other]) for other in kept):
            kept.append(index)
    return kept


def _nms(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    iou_threshold: Any,
    score_threshold: Any,
    max_boxes: Any,
    per_class_suppression: Any = False,
) -> tuple[torch.Tensor, ...]:
    limit = integer(max_boxes)
    check_size((boxes.shape[0], limit, max(4, scores.shape[-1])))
    out_boxes = torch.zeros(boxes.shape[0], limit, 4)
    out_scores = torch.zeros(boxes.shape[0], limit, scores.shape[-1])
    out_indices = torch.full((boxes.shape[0], limit), -1, dtype=torch.int32)
    counts = []
    for batch in range(boxes.shape[0]):
        kept = _suppress(boxes[batch], scores[batch], number(iou_threshold), number(score_threshold), limit, bool(per_class_suppression))
        count = len(kept)
        out_boxes[batch, :count], out_scores[batch, :count] = boxes[batch, kept], scores[batch, kept]
        out_indices[batch, :count] = torch.tensor(kept, dtype=torch.int32)
        counts.append(count)
    return out_boxes, out_scores, out_indices, torch.tensor(counts, dtype=torch.int32)


def _nms_17(
    boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: Any, max_boxes: Any, per_class_suppression: Any = False
) -> tuple[torch.Tensor, ...]:
    kept, values, indices, _ = _nms(boxes.mT, scores.mT, iou_threshold, -float("inf"), max_boxes, per_class_suppression)
    return kept.mT, values.mT, indices


def _make_list(elem_shape: Any, init_length: Any = 1, dynamic_length: Any = True, dtype: str = "fp32") -> list[torch.Tensor | None]:
    length = check_size([integer(init_length)])[0]
    if any(isinstance(size, str) for size in elem_shape):
        return [None] * length
    zeros = torch.zeros(check_size([integer(size) for size in elem_shape]), dtype=getattr(torch, BY_NAME[dtype].torch))
    return [zeros] * length


def _list_write(ls: list[Any], index: Any, value: torch.Tensor) -> list[Any]:
    position = integer(index)
    check_size([position + 1])
    grown = list(ls) + [torch.zeros_like(value)] * (position + 1 - len(ls))
    grown[position] = value
    return grown


def _list_read(ls: list[Any], index: Any) -> torch.Tensor:
    position = integer(index)
    if not 0 <= position < len(ls):
        raise MilError(f"index is {position}, the list has {len(ls)} elements")
    if ls[position] is None:
        raise MilError(f"element {position} of the list was never written")
    return ls[position]


def _list_gather(ls: list[Any], indices: Any) -> torch.Tensor:
    return torch.stack([_list_read(ls, index if index >= 0 else index + len(ls)) for index in ints(indices)])


def _list_scatter(ls: list[Any], indices: Any, value: torch.Tensor) -> list[Any]:
    for index, row in zip(ints(indices), value, strict=True):
        ls = _list_write(ls, index, row)
    return ls


def _list_length(ls: list[Any]) -> torch.Tensor:
    return torch.tensor(len(ls), dtype=torch.int32)


def _generator(seed: Any) -> torch.Generator:
    generator = torch.Generator()
    if integer(seed) == -1:
        generator.seed()
    else:
        generator.manual_seed(integer(seed))
    return generator


def _random_uniform(shape: Any, low: Any = 0.0, high: Any = 1.0, seed: Any = -1) -> torch.Tensor:
    return torch.rand(check_size(ints(shape)), generator=_generator(seed)) * (number(high) - number(low)) + number(low)


def _random_normal(shape: Any, mean: Any = 0.0, stddev: Any = 1.0, seed: Any = -1) -> torch.Tensor:
    return torch.randn(check_size(ints(shape)), generator=_generator(seed)) * number(stddev) + number(mean)


def _random_bernoulli(shape: Any, prob: Any = 0.5, seed: Any = -1) -> torch.Tensor:
    return (torch.rand(check_size(ints(shape)), generator=_generator(seed)) < number(prob)).float()


def _random_categorical(x: torch.Tensor, mode: str = "logits", size: Any = 1, seed: Any = -1) -> torch.Tensor:
    weights = torch.softmax(x, -1) if choice(mode, ("logits", "probs"), "mode") == "logits" else x
    rows = weights.reshape(-1, weights.shape[-1])
    check_size((rows.shape[0], integer(size)))
    drawn = torch.multinomial(rows, integer(size), replacement=True, generator=_generator(seed))
    return drawn.reshape(*x.shape[:-1], integer(size)).float()


def _classify(probabilities: torch.Tensor, classes: list[Any]) -> tuple[Any, dict[Any, float]]:
    labels = [label.item() if hasattr(label, "item") else label for label in classes]
    values = probabilities.flatten().tolist()
    if len(labels) != len(values):
        raise MilError(f"classes has {len(labels)} elements, probabilities {len(values)}")
    return labels[max(range(len(values)), key=values.__getitem__)], dict(zip(labels, values, strict=True))


TABLE: dict[str, Any] = {
    "classify": _classify,
    "dequantize": {17: _dequantize},
    "list_gather": _list_gather,
    "list_length": _list_length,
    "list_read": _list_read,
    "list_scatter": _list_scatter,
    "list_write": _list_write,
    "make_list": _make_list,
    "non_maximum_suppression": {15: _nms, 17: _nms_17},
    "quantize": {17: _quantize},
    "random_bernoulli": _random_bernoulli,
    "random_categorical": _random_categorical,
    "random_normal": _random_normal,
    "random_uniform": _random_uniform,
}
