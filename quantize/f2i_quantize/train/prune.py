"""A student's first weights, cut out of its teacher's: fewer layers, and fewer channels of those that stay.

Of a dimension that shrinks from t to s, the entries ``floor(i · t / s)`` stay. One rule for every tensor, so that what a layer gives
and what the next one takes are the same channels; evenly spaced, so that normalisation groups, attention heads, GEGLU halves and the
sine and cosine halves of the timestep embedding keep their meaning.
Where the UNet's up blocks concatenate the skip, each half is thinned by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from f2i_quantize.models.whole_model import F2IModel

_LAYER = re.compile(r"(?<=\.)(resnets|attentions|layer|transformer_blocks|layers)\.(\d+)(?=\.)")


def initialise_from(student: F2IModel, teacher: F2IModel) -> tuple[str, ...]:
    """Set the student's weights from the teacher's; gives the names that found no counterpart and keep their own (blocks of another kind).

    The two may differ in width and depth of the UNet, the encoder and the projector. Weights that would grow keep their own values.
    """
    left: list[str] = []
    for name, part in student.parts().items():
        source = teacher.parts()[name]
        left += [f"{name}/{key}" for key in prune_part(part, source)]
    return tuple(left)


@torch.no_grad()
def prune_part(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Set the parameters of ``student`` from those of ``teacher`` of the same name; gives the names that found no counterpart."""
    target, source = dict(student.named_parameters()), dict(teacher.named_parameters())
    ours, theirs = _layer_counts(target), _layer_counts(source)
    segments = _concatenations(student, teacher)
    left = []
    for key, parameter in target.items():
        origin = source.get(_counterpart(key, ours, theirs))
        if origin is None or origin.dim() != parameter.dim() or any(t < s for t, s in zip(origin.shape, parameter.shape, strict=True)):
            left.append(key)
            continue
        module = key.rpartition(".")[0]
        parameter.copy_(_thin(origin, parameter.shape, segments.get(module), norm="norm" in module.rpartition(".")[2]))
    return left


def _thin(origin: Tensor, shape: torch.Size, concatenated: tuple[tuple[int, int], tuple[int, int]] | None, *, norm: bool) -> Tensor:
    """Keep ``shape`` of ``origin``. ``concatenated`` holds the (teacher, student) sizes of the two halves of the input dimension."""
    result = origin
    for dim, size in enumerate(shape):
        before = origin.shape[dim]
        takes_input = dim == (0 if norm else 1)
        if concatenated and takes_input and before == sum(t for t, _ in concatenated):
            (t0, s0), (t1, s1) = concatenated
            keep = torch.cat([kept(t0, s0), t0 + kept(t1, s1)])
        else:
            keep = kept(before, size)
        result = result.index_select(dim, keep)
    return result


def kept(before: int, after: int) -> Tensor:
    """Indices that stay of a dimension of ``before`` entries thinned to ``after``, int64 (after,)."""
    return torch.arange(after) * before // after


def _layer_counts(parameters: Mapping[str, Tensor]) -> dict[str, int]:
    """Prefix of every list of layers → how many there are."""
    counts: dict[str, int] = {}
    for key in parameters:
        for match in _LAYER.finditer(key):
            prefix = key[: match.start()] + match[1]
            counts[prefix] = max(counts.get(prefix, 0), int(match[2]) + 1)
    return counts


def _counterpart(key: str, ours: Mapping[str, int], theirs: Mapping[str, int]) -> str:
    """The teacher's name of a student's parameter: layer i of s is the teacher's layer floor(i · t / s), the last one the last."""

    def rename(match: re.Match[str]) -> str:
        prefix = key[: match.start()] + match[1]
        index, count, available = int(match[2]), ours[prefix], theirs.get(prefix, 0)
        if available > count > 1:
            index = round(index * (available - 1) / (count - 1))
        return f"{match[1]}.{index}"

    return _LAYER.sub(rename, key)


def _concatenations(student: nn.Module, teacher: nn.Module) -> dict[str, tuple[tuple[int, int], tuple[int, int]]]:
    """Modules of the up blocks that take a concatenation → (teacher, student) width of what comes up, and of the skip."""
    if not hasattr(student, "up_blocks") or len(student.up_blocks) != len(teacher.up_blocks):
        return {}
    found = {}
    widths = [_up_widths(unet) for unet in (teacher, student)]
    for name, ours in widths[1].items():
        if name in widths[0]:
            pairs = tuple(zip(widths[0][name], ours, strict=True))
            for part in ("norm1", "conv1", "conv_shortcut"):
                found[f"{name}.{part}"] = (pairs[0], pairs[1])
    return found


def _up_widths(unet: nn.Module) -> dict[str, tuple[int, int]]:
    """Resnet of an up block → (width coming up, width of the skip), as ``UNet2DConditionModel`` lays them out."""
    widths: dict[str, tuple[int, int]] = {}
    channels = list(unet.config.block_out_channels)[::-1]
    coming = channels[0]
    for i, block in enumerate(unet.up_blocks):
        for j, resnet in enumerate(block.resnets):
            widths[f"up_blocks.{i}.resnets.{j}"] = (coming, resnet.conv1.in_channels - coming)
            coming = resnet.conv1.out_channels
    return widths
