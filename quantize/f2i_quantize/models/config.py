"""What an F2IDiff-shaped model is, apart from its weights: the scalars of ``model_index.json``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

UNET, ENCODER, PROJECTOR, CODEC = "unet", "feature_encoder", "projector", "codec"
PARTS = (UNET, ENCODER, PROJECTOR, CODEC)
"""Folders of a checkpoint, one module each."""


UNetNorm = Literal["group", "frozen", "none"]


class Step(BaseModel):
    """One diffusion step: ``z ← keep · z + add · unet(z, timestep, context)``.

    Every deterministic sampler's update (DDIM, flow matching, OSEDiff's single step) is such an affine combination with constant coefficients.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    timestep: float = 1.0
    keep: float = 0.0
    add: float = 1.0


class ModelConfig(BaseModel):
    """Everything about the model that is not in a part's own ``config.json``.

    Raises ``pydantic.ValidationError`` on an unknown key, so that a misspelt option never passes silently.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "custom"
    trained: bool = True
    """False for the random weights of a preset until they are distilled: a bundle of them is not held to what pictures look like."""
    scale: Literal[2] = 2
    """The factor by which each side is enlarged."""
    tile: int = Field(default=256, ge=16, le=2048)
    """Default side of the low-resolution input tile, in pixels."""
    feature_ratio: float = Field(default=0.875, gt=0, le=4)
    """Side of the feature encoder's input over the side of the tile; rounded to whole patches."""
    steps: tuple[Step, ...] = Field(default=(Step(),), min_length=1, max_length=64)
    concat_lr: bool = False
    """The UNet's input is the latent with the low-resolution latent concatenated behind it."""
    noise: bool = False
    """The latent starts as Gaussian noise (an input, drawn by the caller); otherwise as the low-resolution latent."""
    base: Literal["none", "bicubic"] = "none"
    """What the decoded output is added to: nothing, or the tile enlarged by bicubic."""
    unet_norm: UNetNorm = "group"
    """What stands where diffusers' UNet has a group norm: it, a constant affine per channel, or nothing (:mod:`f2i_quantize.models.norms`). Weights of an
    affine lie in ``unet/`` under the group norm's own names; without norms there are none.
    """
    color_fix: Literal["none", "adain"] = "none"
    """What is done with the colours of the whole upscaled photo; see :mod:`f2i_runtime.photo.color`."""
    context: Literal["all", "patches", "null"] = "all"
    """Tokens handed to cross-attention: CLS and patches, patches only, or a zero context (for ablations)."""
    token_stride: int = Field(default=1, ge=1, le=8)
    """Patch tokens are averaged over squares of this side before projection."""
    normalization_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    normalization_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """The mean and the standard deviation per channel of the feature encoder's input (ImageNet's, as DINOv2 was trained)."""

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if self.noise and not self.concat_lr:
            raise ValueError("noise = true needs concat_lr = true: a latent that starts as noise must see the photo some other way")
        return self

    def feature_size(self, tile: int, patch: int) -> int:
        """Side of the feature encoder's input for a tile of ``tile`` pixels, a multiple of ``patch``."""
        return max(1, round(tile * self.feature_ratio / patch)) * patch


class ProjectorConfig(BaseModel):
    """Configuration of :class:`f2i_quantize.models.parts.TokenProjector`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    in_features: int = Field(gt=0)
    context_features: int = Field(gt=0)


class PixelCodecConfig(BaseModel):
    """Configuration of :class:`f2i_quantize.models.parts.PixelCodec`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    factor: int = Field(default=2, ge=1, le=8)
    """Side of the block of low-resolution pixels that becomes one latent position."""


JsonDict = dict[str, Any]
