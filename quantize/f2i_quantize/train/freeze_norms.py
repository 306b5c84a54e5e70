"""Group norms made constants: what each norm gave on photos, fitted by one affine per channel.

A group norm divides by what it measures on its tile. Over photos that measure varies little, so that a constant gain and shift per channel comes near; what
is left is learned by a fine-tune against the model as it was (``f2i distill --freeze-norms``). The fit is the least-squares one of a norm's output y on its
input x over all positions and photos: gain = Cov(x, y) / Var(x), shift = E[y] − gain · E[x].
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from f2i_runtime.errors import UsageError
from torch import Tensor, nn

from f2i_quantize.models.differentiable import Pipeline
from f2i_quantize.models.norms import ChannelAffine, set_norms
from f2i_quantize.models.whole_model import F2IModel

_LEAST_VARIANCE = 1e-12
"""A channel that varies less has no gain that could be fitted; it keeps its mean output."""


@dataclass
class _Sums:
    """Sums over positions and photos, per channel, float64 (c,)."""

    count: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor

    def affine(self) -> tuple[Tensor, Tensor]:
        """Returns gain and shift, float32 (c,)."""
        mean_x, mean_y = self.x / self.count, self.y / self.count
        variance = self.xx / self.count - mean_x.square()
        gain = (self.xy / self.count - mean_x * mean_y) / variance.clamp_min(_LEAST_VARIANCE)
        gain = torch.where(variance > _LEAST_VARIANCE, gain, torch.zeros_like(gain))
        return gain.float(), (mean_y - gain * mean_x).float()


@torch.no_grad()
def freeze_norms(model: F2IModel, tiles: Iterable[tuple[Tensor, Tensor | None]], side: int) -> F2IModel:
    """Returns a copy of the model with an affine per channel in the place of each group norm of its UNet; other parts are shared.

    ``tiles``: low-resolution photos (1, 3, side, side) in [0, 1], each with the noise it starts from, for models that do. Raises UsageError for a model
    that has no group norms, and where there is no tile.
    """
    if model.config.unet_norm != "group":
        raise UsageError(f"--freeze-norms: the norms of this model are {model.config.unet_norm!r} already; give a model with group norms")
    norms = {name: m for name, m in model.unet.named_modules() if isinstance(m, nn.GroupNorm)}
    sums: dict[str, _Sums] = {}
    hooks = [norm.register_forward_hook(_hook(sums, name)) for name, norm in norms.items()]
    try:
        pipeline = Pipeline(model, side).eval()
        for lr, noise in tiles:
            pipeline(lr, noise)
    finally:
        for hook in hooks:
            hook.remove()
    if set(sums) != set(norms):
        raise UsageError("--freeze-norms: there is no photo to measure the norms on")
    unet = set_norms(copy.deepcopy(model.unet), "frozen").eval().requires_grad_(False)
    for name, found in sums.items():
        affine = unet.get_submodule(name)
        if isinstance(affine, ChannelAffine):
            gain, shift = found.affine()
            affine.weight.copy_(gain)
            affine.bias.copy_(shift)
    return replace(model, config=model.config.model_copy(update={"unet_norm": "frozen"}), unet=unet)


def _hook(sums: dict[str, _Sums], name: str) -> object:
    def add(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x, y = (t.double().transpose(0, 1).flatten(1) for t in (inputs[0], output))
        before = sums.get(name)
        new = (x.sum(1), y.sum(1), x.square().sum(1), (x * y).sum(1))
        if before is None:
            sums[name] = _Sums(x.shape[1], *new)
        else:
            sums[name] = _Sums(before.count + x.shape[1], before.x + new[0], before.y + new[1], before.xx + new[2], before.xy + new[3])

    return add
