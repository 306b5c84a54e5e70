"""Every key of a part's ``config.json``: whether it shapes the module, changes nothing, or may have one value only. No torch.

A checkpoint is computed as diffusers and transformers compute it, or refused by name: a key of these libraries that is not in the table is refused too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from f2i_runtime.errors import CheckpointError


@dataclass(frozen=True)
class Fixed:
    """A key whose other values are refused. ``values``: those that are taken; a list is taken where each of its items is one of them."""

    values: tuple[Any, ...]
    reason: str


@dataclass(frozen=True)
class PartKeys:
    """What is done with each key of one class. ``used``: it shapes the module, which is the library's own. ``harmless``: key → why it changes nothing."""

    used: tuple[str, ...]
    harmless: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Fixed] = field(default_factory=dict)
    same_length: tuple[str, ...] = ()
    """Keys whose lists must be equally long. The library takes others, and computes another size than its documentation says."""

    def known(self) -> set[str]:
        """Returns all keys."""
        return {*self.used, *self.harmless, *self.fixed}


NO_CLASS = "an F2IDiff model has no class label"
NO_ADDITION = "an F2IDiff model has no input for an added embedding"
NO_DROPOUT = "nothing is dropped outside training"
START = "the weights of a checkpoint replace what it starts from"
RGB = "photos have three channels"
OUTPUTS = "only the last hidden state is read"
LABELS = "the class has no classifier"
BACKBONE = "the class that is loaded does not read it"

_DOWN = ("DownBlock2D", "CrossAttnDownBlock2D", "ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D", "AttnDownBlock2D")
_UP = ("UpBlock2D", "CrossAttnUpBlock2D", "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D", "AttnUpBlock2D")
_NO_BLOCK = "UNet2DConditionModel does not call other blocks as they want to be called"
_DINO = PartKeys(
    used=(
        "hidden_size", "num_hidden_layers", "num_attention_heads", "mlp_ratio", "hidden_act", "layer_norm_eps", "image_size", "patch_size",
        "qkv_bias", "use_swiglu_ffn",
    ),
    harmless={
        "hidden_dropout_prob": NO_DROPOUT, "attention_probs_dropout_prob": NO_DROPOUT, "drop_path_rate": NO_DROPOUT,
        "initializer_range": START, "layerscale_value": START,
        "apply_layernorm": BACKBONE, "reshape_hidden_states": BACKBONE, "stage_names": BACKBONE, "out_features": BACKBONE, "out_indices": BACKBONE,
        "output_hidden_states": OUTPUTS, "output_attentions": OUTPUTS,
        "id2label": LABELS, "label2id": LABELS, "problem_type": LABELS,
        "dtype": "weights are computed with in float32", "torch_dtype": "weights are computed with in float32",
        "chunk_size_feed_forward": BACKBONE, "is_encoder_decoder": BACKBONE,
        "architectures": "model_index.json names the class", "transformers_version": "the version that wrote the file",
    },
    fixed={
        "num_channels": Fixed((3,), RGB),
        "return_dict": Fixed((True,), "outputs are read by name"),
        "pruned_heads": Fixed(({}, None), "heads that were pruned are not left out of the module"),
        "quantization_config": Fixed((None,), "weights must be floats; quantize with: f2i quantize"),
    },
)  # fmt: skip

PART_KEYS: dict[str, PartKeys] = {
    "UNet2DConditionModel": PartKeys(
        used=(
            "in_channels", "out_channels", "center_input_sample", "flip_sin_to_cos", "freq_shift", "only_cross_attention", "block_out_channels",
            "layers_per_block", "downsample_padding", "mid_block_scale_factor", "act_fn", "norm_num_groups", "norm_eps", "cross_attention_dim",
            "transformer_layers_per_block", "reverse_transformer_layers_per_block", "attention_head_dim", "num_attention_heads",
            "dual_cross_attention", "use_linear_projection", "upcast_attention", "resnet_time_scale_shift", "resnet_skip_time_act",
            "resnet_out_scale_factor", "time_embedding_type", "time_embedding_dim", "time_embedding_act_fn", "timestep_post_act",
            "conv_in_kernel", "conv_out_kernel", "mid_block_only_cross_attention", "cross_attention_norm",
        ),
        harmless={
            "sample_size": "the tile decides the size",
            "dropout": NO_DROPOUT,
            "addition_time_embed_dim": "only addition_embed_type reads it, which is refused",
            "addition_embed_type_num_heads": "only addition_embed_type reads it, which is refused",
            "projection_class_embeddings_input_dim": "only class_embed_type and addition_embed_type read it, which are refused",
            "class_embeddings_concat": "only a class embedding reads it, which is refused",
        },
        fixed={
            "down_block_types": Fixed(_DOWN, _NO_BLOCK),
            "up_block_types": Fixed(_UP, _NO_BLOCK),
            "mid_block_type": Fixed(("UNetMidBlock2DCrossAttn", "UNetMidBlock2DSimpleCrossAttn", "UNetMidBlock2D", None), _NO_BLOCK),
            "class_embed_type": Fixed((None,), NO_CLASS),
            "num_class_embeds": Fixed((None,), NO_CLASS),
            "addition_embed_type": Fixed((None,), NO_ADDITION),
            "time_cond_proj_dim": Fixed((None,), "an F2IDiff model has no guidance scale to embed"),
            "encoder_hid_dim": Fixed((None,), "the projector already gives the context its width"),
            "encoder_hid_dim_type": Fixed((None,), "the projector already gives the context its width"),
            "attention_type": Fixed(("default",), "an F2IDiff model has no boxes to attend to"),
        },
    ),
    "AutoencoderKL": PartKeys(
        used=(
            "block_out_channels", "layers_per_block", "act_fn", "latent_channels", "norm_num_groups", "scaling_factor", "shift_factor",
            "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention",
        ),
        harmless={
            "sample_size": "only the library's own tiling reads it",
            "force_upcast": "the reference is computed in float32, and every half-precision artifact is measured against it",
        },
        fixed={
            "in_channels": Fixed((3,), RGB),
            "out_channels": Fixed((3,), RGB),
            "down_block_types": Fixed(("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), "the encoder must halve its input once per block"),
            "up_block_types": Fixed(("UpDecoderBlock2D", "AttnUpDecoderBlock2D"), "the decoder must double its input once per block"),
            "latents_mean": Fixed((None,), "latents are scaled by scaling_factor and shift_factor alone"),
            "latents_std": Fixed((None,), "latents are scaled by scaling_factor and shift_factor alone"),
        },
        same_length=("down_block_types", "up_block_types", "block_out_channels"),
    ),
    "AutoencoderTiny": PartKeys(
        used=(
            "encoder_block_out_channels", "decoder_block_out_channels", "act_fn", "upsample_fn", "latent_channels", "num_encoder_blocks",
            "num_decoder_blocks", "scaling_factor", "shift_factor",
        ),
        harmless={
            "block_out_channels": "the library notes decoder_block_out_channels under this name too",
            "latent_magnitude": "only the storage of latents as bytes reads it",
            "latent_shift": "only the storage of latents as bytes reads it",
            "force_upcast": "the reference is computed in float32, and every half-precision artifact is measured against it",
        },
        fixed={
            "in_channels": Fixed((3,), RGB),
            "out_channels": Fixed((3,), RGB),
            "upsampling_scaling_factor": Fixed((2,), "the decoder must double its input once per block"),
        },
        same_length=("num_encoder_blocks", "num_decoder_blocks", "encoder_block_out_channels", "decoder_block_out_channels"),
    ),
    "Dinov2Model": PartKeys(
        (*_DINO.used, "use_mask_token"), _DINO.harmless, {**_DINO.fixed, "model_type": Fixed(("dinov2",), "model_index.json names the class")}
    ),
    "Dinov2WithRegistersModel": PartKeys(
        (*_DINO.used, "num_register_tokens"),
        {**_DINO.harmless, "use_mask_token": BACKBONE},
        {**_DINO.fixed, "model_type": Fixed(("dinov2_with_registers",), "model_index.json names the class")},
    ),
}  # fmt: skip
"""Class of a part → what is done with each key. The parts that are our own refuse what they do not know by themselves."""


def check_keys(path: Path, kind: str, config: Mapping[str, Any]) -> None:
    """Raises CheckpointError, which names the key, unless all of a part's ``config.json`` is computed with or changes nothing.

    Keys that begin with an underscore say who wrote the file; of those ``_class_name`` must be the class that ``model_index.json`` names.
    """
    table = PART_KEYS.get(kind)
    if table is None:
        return
    if config.get("_class_name", kind) != kind:
        raise CheckpointError(f"{path}: it is of a {config['_class_name']}, but model_index.json says {kind}")
    for key, value in config.items():
        if key.startswith("_"):
            continue
        if key not in table.known():
            raise CheckpointError(f"{path}: key {key!r} is not one of {kind}'s; remove it if it changes nothing")
        fixed = table.fixed.get(key)
        if fixed is not None and not _taken(value, fixed.values):
            expected = " or ".join("null" if v is None else str(v) for v in fixed.values)
            raise CheckpointError(f"{path}: key {key!r} is {value!r}, expected {expected}: {fixed.reason}")
    lengths = {key: len(config[key]) for key in table.same_length if isinstance(config.get(key), (list, tuple))}
    if len(set(lengths.values())) > 1:
        raise CheckpointError(f"{path}: {', '.join(f'{key} has {n} entries' for key, n in lengths.items())}; expected one number of blocks")


def _taken(value: Any, values: tuple[Any, ...]) -> bool:
    if isinstance(value, (list, tuple)):
        return all(item in values for item in value)
    return any(type(value) is type(v) and value == v for v in values)
