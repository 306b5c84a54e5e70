"""The numbers of a model's configuration that decide which tiles it takes, which components it has, and whether its parts fit one another.

The same arithmetic serves a model in memory and a checkpoint that is only described: no torch is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from f2i_runtime.errors import CheckpointError, UsageError

from f2i_quantize.models.config import CODEC, ENCODER, PROJECTOR, UNET, ModelConfig


@dataclass(frozen=True)
class Geometry:
    """A model's own scalars, and the class name and the configuration (an object with attributes) of each part."""

    config: ModelConfig
    classes: dict[str, str]
    parts: dict[str, Any]

    def is_pixel(self) -> bool:
        """Whether the codec only rearranges pixels, so that encoder and decoder are inside the UNet's graph."""
        return self.classes[CODEC] == "PixelCodec"

    def components(self) -> tuple[str, ...]:
        """Returns the names of the graphs that the model is exported as, in the order of the dataflow."""
        return ("feature_encoder", "unet") if self.is_pixel() else ("feature_encoder", "codec_encoder", "unet", "codec_decoder")

    def latent_channels(self) -> int:
        """Returns the channels of the UNet's output."""
        return int(self.parts[UNET].out_channels)

    def latent_factor(self) -> int:
        """Returns the low-resolution pixels per latent position and side. Raises CheckpointError for latents finer than the photo."""
        codec = self.parts[CODEC]
        if self.is_pixel():
            return int(codec.factor)
        kl = self.classes[CODEC] == "AutoencoderKL"
        downscale = 2 ** (len(codec.block_out_channels) - 1) if kl else 2 ** (len(codec.num_encoder_blocks) - 1)
        factor, rest = divmod(downscale, self.config.scale)
        if rest or factor < 1:
            raise CheckpointError(
                f"codec: it reduces by {downscale} per side, which is not a multiple of the scale {self.config.scale}; use a codec that does"
            )
        return factor

    def tile_multiple(self) -> int:
        """Returns what a tile's side must be a multiple of, in low-resolution pixels: latent positions × the UNet's own halvings."""
        return self.latent_factor() * 2 ** (len(self.parts[UNET].up_block_types) - 1)

    def check_tile(self, tile: int) -> None:
        """Raises UsageError unless ``tile`` is a positive multiple of :meth:`tile_multiple`."""
        multiple = self.tile_multiple()
        if tile <= 0 or tile % multiple:
            near = max(multiple, round(tile / multiple) * multiple)
            raise UsageError(f"tile {tile}: this model needs a multiple of {multiple} pixels; use --tile-size {near}")

    def tokens(self, tile: int) -> int:
        """Returns the number of context tokens for a tile.

        Raises UsageError for a tile that the model cannot take, CheckpointError for a pixel codec with what only latents can have.
        """
        self.check_tile(tile)
        patch, stride = self.parts[ENCODER].patch_size, self.config.token_stride
        side = self.config.feature_size(tile, patch) // patch
        if side % stride:
            raise UsageError(f"tile {tile}: its {side} patches per side cannot be averaged by token_stride {stride}; choose another tile")
        if self.is_pixel() and (len(self.config.steps) > 1 or self.config.concat_lr):
            raise CheckpointError("model_index.json: the pixel codec takes one step and no concat_lr; use a latent codec for several steps")
        return (side // stride) ** 2 + (self.config.context == "all")

    def check_fit(self, folder: Path) -> None:
        """Raises CheckpointError, naming the file in ``folder``, unless channels, context width and token width of the parts fit one another."""
        unet, codec, projector = self.parts[UNET], self.parts[CODEC], self.parts[PROJECTOR]
        width = self.parts[ENCODER].hidden_size
        if projector.in_features != width:
            raise CheckpointError(
                f"{folder / 'projector/config.json'}: in_features is {projector.in_features}, expected the encoder's hidden size {width}"
            )
        if projector.context_features != unet.cross_attention_dim:
            raise CheckpointError(
                f"{folder / 'projector/config.json'}: context_features is {projector.context_features}, "
                f"expected the UNet's cross_attention_dim {unet.cross_attention_dim}"
            )
        latent_in, latent_out = codec_channels(self.classes[CODEC], codec)
        latent_in *= 1 + self.config.concat_lr
        if (unet.in_channels, unet.out_channels) != (latent_in, latent_out):
            raise CheckpointError(
                f"{folder / 'unet/config.json'}: in_channels, out_channels are {unet.in_channels}, {unet.out_channels}, "
                f"expected {latent_in}, {latent_out} for this codec{' with concat_lr' if self.config.concat_lr else ''}"
            )


def codec_channels(kind: str, codec: Any) -> tuple[int, int]:
    """Returns the channels that a codec of class ``kind`` gives to the UNet and takes from it."""
    if kind == "PixelCodec":
        return 3 * codec.factor**2, 3 * (2 * codec.factor) ** 2
    return codec.latent_channels, codec.latent_channels
