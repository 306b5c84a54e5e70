"""Small random models of every shape that a checkpoint may have, beside the presets."""

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from f2i_quantize.models.config import ModelConfig, ProjectorConfig, Step
from f2i_quantize.models.parts import TokenProjector
from f2i_quantize.models.whole_model import F2IModel
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel


def small_kl():
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )


def small_tiny():
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 2),
        num_decoder_blocks=(2, 1),
        latent_channels=4,
    )


def latent_model(codec, *, registers=False, steps=1, noise=False):
    """A model that works on the latents of ``codec``."""
    torch.manual_seed(5)
    config = ModelConfig(
        name="latent",
        trained=False,
        tile=32,
        concat_lr=noise,
        noise=noise,
        steps=tuple(Step(timestep=900.0 - 300 * k, keep=0.6, add=-0.5) for k in range(steps)),
    )
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=8 if noise else 4,
        out_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=16,
        use_linear_projection=True,
    )
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2, "image_size": 28, "patch_size": 14}
    encoder = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**shape)) if registers else Dinov2Model(Dinov2Config(**shape))
    projector = TokenProjector(ProjectorConfig(in_features=16, context_features=16))
    for part in (unet, encoder, projector, codec):
        part.eval().requires_grad_(False)
    return F2IModel(config, unet, encoder, projector, codec)
