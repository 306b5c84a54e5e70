"""The presets: five sizes of one architecture, as literal tables.

The paper has published neither weights nor channel counts; ``paper`` is our reading of its scale (an SD2.1-shaped UNet halved), never its figures.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from f2i_quantize.models.config import CODEC, ENCODER, PROJECTOR, UNET, ModelConfig, PixelCodecConfig, ProjectorConfig, Step
from f2i_quantize.models.geometry import codec_channels

if TYPE_CHECKING:
    from f2i_quantize.models.whole_model import F2IModel


@dataclass(frozen=True)
class Preset:
    """Arguments of the four parts."""

    config: ModelConfig
    unet: dict[str, Any]
    encoder: dict[str, Any]
    codec: PixelCodecConfig | dict[str, Any]


PIXEL_1X, PIXEL_2X = PixelCodecConfig(factor=1), PixelCodecConfig(factor=2)

PRESETS: dict[str, Preset] = {
    "tiny": Preset(
        ModelConfig(name="tiny", tile=32, base="bicubic"),
        {
            # As few of each kind of block as there can be: every operation costs time in every test that exports.
            "block_out_channels": (8, 16),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "attention_head_dim": 2,
            "cross_attention_dim": 16,
        },
        {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 28, "patch_size": 14},
        PIXEL_2X,
    ),
    "nano": Preset(
        ModelConfig(name="nano", tile=256, base="bicubic"),
        {
            # The first level works on every pixel: at half the size and twice the channels, training for as long gave 1.5 dB less.
            "block_out_channels": (32, 64, 96, 128),
            "down_block_types": ("DownBlock2D", "DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "attention_head_dim": 4,
            "cross_attention_dim": 192,
        },
        {"hidden_size": 144, "num_hidden_layers": 4, "num_attention_heads": 3, "mlp_ratio": 3, "image_size": 224, "patch_size": 14},
        PIXEL_1X,
    ),
    "pico": Preset(
        ModelConfig(name="pico", tile=256, base="bicubic"),
        {
            # nano at half the width: a quarter of its parameters and operations, and groups and heads that its pruned weights fit.
            "block_out_channels": (16, 16, 48, 64),
            "down_block_types": ("DownBlock2D", "DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "norm_num_groups": 8,
            "attention_head_dim": 4,
            "cross_attention_dim": 96,
        },
        {"hidden_size": 72, "num_hidden_layers": 3, "num_attention_heads": 3, "mlp_ratio": 3, "image_size": 224, "patch_size": 14},
        PIXEL_1X,
    ),
    "mobile": Preset(
        ModelConfig(name="mobile", tile=256, base="bicubic"),
        {
            "block_out_channels": (64, 96, 192, 320),
            "down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "norm_num_groups": 16,
            "attention_head_dim": 8,
            "cross_attention_dim": 384,
        },
        {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "mlp_ratio": 4, "image_size": 224, "patch_size": 14},
        PIXEL_2X,
    ),
    "paper": Preset(
        ModelConfig(name="paper", tile=256, feature_ratio=1.75, steps=(Step(timestep=999.0, keep=1.0, add=-1.0),)),
        {
            "block_out_channels": (224, 448, 896, 896),
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "attention_head_dim": (4, 8, 16, 16),
            "cross_attention_dim": 1024,
        },
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "mlp_ratio": 4, "image_size": 518, "patch_size": 14},
        {
            "block_out_channels": (128, 256, 512, 512),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 2,
            "latent_channels": 4,
            "sample_size": 512,
        },
    ),
}

PARAMETERS: dict[str, dict[str, int]] = {
    "tiny": {"feature_encoder": 12_128, "unet": 56_648},
    "nano": {"feature_encoder": 988_032, "unet": 4_937_548},
    "pico": {"feature_encoder": 226_896, "unet": 1_156_540},
    "mobile": {"feature_encoder": 21_777_792, "unet": 29_016_752},
    "paper": {"feature_encoder": 87_369_472, "codec_encoder": 34_163_664, "unet": 429_761_700, "codec_decoder": 49_490_199},
}
"""Parameters of every preset by component, so that an export of one can be planned without building it."""

PresetName = Literal["tiny", "pico", "nano", "mobile", "paper"]


def part_settings(preset: Preset) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Returns the class name and the configuration of each part of a preset."""
    if isinstance(preset.codec, PixelCodecConfig):
        codec = ("PixelCodec", preset.codec.model_dump())
        latent_in, latent_out = codec_channels(codec[0], preset.codec)
    else:
        codec = ("AutoencoderKL", preset.codec)
        latent_in = latent_out = preset.codec["latent_channels"]
    unet = {
        "sample_size": 64,
        "in_channels": latent_in * (1 + preset.config.concat_lr),
        "out_channels": latent_out,
        "use_linear_projection": True,
        **preset.unet,
    }
    projector = {"in_features": preset.encoder["hidden_size"], "context_features": preset.unet["cross_attention_dim"]}
    # JSON makes tuples lists, as a checkpoint read back from disk has them.
    encoder = {**json.loads(json.dumps(preset.encoder)), "use_mask_token": True}
    return (
        {UNET: "UNet2DConditionModel", ENCODER: "Dinov2Model", PROJECTOR: "TokenProjector", CODEC: codec[0]},
        {UNET: unet, ENCODER: encoder, PROJECTOR: projector, CODEC: codec[1]},
    )


def build(name: PresetName | str, seed: int = 0, *, weights: bool = True) -> F2IModel:
    """A preset with random weights drawn from ``seed``, in float32 and eval mode. Weights that diffusers starts at zero stay so.

    ``weights`` False gives its shapes alone, on the meta device. Raises KeyError for an unknown name (the command checks names before it comes here).
    """
    import torch

    if weights:
        return build_preset(PRESETS[name], seed)
    with torch.device("meta"):
        return _build(PRESETS[name])


def build_preset(preset: Preset, seed: int = 0) -> F2IModel:
    """Returns what :func:`build` does for a preset of that name, for a shape that has none."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _build(preset)


def _build(preset: Preset) -> F2IModel:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import Dinov2Config, Dinov2Model

    from f2i_quantize.models.norms import set_norms
    from f2i_quantize.models.parts import PixelCodec, TokenProjector
    from f2i_quantize.models.whole_model import F2IModel

    _, settings = part_settings(preset)
    codec = PixelCodec(preset.codec) if isinstance(preset.codec, PixelCodecConfig) else AutoencoderKL(**preset.codec)
    unet = UNet2DConditionModel(**settings[UNET])
    set_norms(unet, preset.config.unet_norm)
    encoder = Dinov2Model(Dinov2Config(**settings[ENCODER]))
    projector = TokenProjector(ProjectorConfig(**settings[PROJECTOR]))
    for part in (unet, encoder, projector, codec):
        part.eval().requires_grad_(False)
    return F2IModel(preset.config.model_copy(update={"trained": False}), unet, encoder, projector, codec)
