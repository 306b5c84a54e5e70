"""Our components beside diffusers' and transformers' own classes, called as their documentation calls them, for every key of every configuration."""

import dataclasses
import inspect
import json

import diffusers
import pytest
import torch
import transformers
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from f2i_quantize.models import checkpoint
from f2i_quantize.models.checkpoint_files import BUNDLED
from f2i_quantize.models.description import describe
from f2i_quantize.models.part_keys import PART_KEYS
from f2i_quantize.models.whole_model import build_components
from f2i_quantize.rewrites.capture import relative_l2
from f2i_runtime.errors import CheckpointError
from f2i_runtime.photo.samples import sample_tiles
from model_zoo import latent_model, small_kl, small_tiny
from transformers import Dinov2Model, Dinov2WithRegistersModel

SIMPLE = {
    "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
}
UNET = [
    {"center_input_sample": True},
    {"flip_sin_to_cos": False},
    {"freq_shift": 1},
    {"only_cross_attention": True},
    {"downsample_padding": 0},
    {"mid_block_scale_factor": 2.0},
    {"act_fn": "mish"},
    {"norm_num_groups": 2},
    {"norm_eps": 1e-2},
    {"block_out_channels": [8, 12]},
    {"layers_per_block": [2, 1]},
    {"transformer_layers_per_block": [1, 2]},
    {"transformer_layers_per_block": [1, [2]], "reverse_transformer_layers_per_block": [[1, 2], 1]},
    {"attention_head_dim": [2, 4]},
    {"dual_cross_attention": True},
    {"use_linear_projection": False},
    {"upcast_attention": True},
    {"resnet_time_scale_shift": "scale_shift"},
    {"time_embedding_type": "fourier"},
    {"time_embedding_dim": 24},
    {"time_embedding_act_fn": "silu"},
    {"timestep_post_act": "silu"},
    {"conv_in_kernel": 1},
    {"conv_out_kernel": 5},
    {"mid_block_only_cross_attention": True, **SIMPLE},
    {"mid_block_type": None},
    {"mid_block_type": "UNetMidBlock2D"},
    {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "AttnUpBlock2D"]},
    SIMPLE,
    {"cross_attention_norm": "layer_norm", **SIMPLE},
    {"resnet_skip_time_act": True, **SIMPLE},
    {"resnet_out_scale_factor": 2.0, **SIMPLE},
    {
        "sample_size": 8,
        "dropout": 0.5,
        "addition_time_embed_dim": 8,
        "class_embeddings_concat": True,
        "projection_class_embeddings_input_dim": 4,
    },
]
DINO = [
    {},
    {"hidden_act": "relu"},
    {"layer_norm_eps": 1e-2},
    {"image_size": 56},
    {"patch_size": 7},
    {"mlp_ratio": 3},
    {"qkv_bias": False},
    {"use_swiglu_ffn": True},
    {"num_attention_heads": 4},
    {"num_hidden_layers": 2},
    {
        "hidden_dropout_prob": 0.5,
        "attention_probs_dropout_prob": 0.5,
        "drop_path_rate": 0.5,
        "apply_layernorm": False,
        "output_hidden_states": True,
    },
]
KL = [
    {"shift_factor": 0.3},
    {"scaling_factor": 0.5},
    {"use_quant_conv": False},
    {"use_post_quant_conv": False},
    {"mid_block_add_attention": False},
    {"norm_num_groups": 2},
    {"layers_per_block": 2},
    {"act_fn": "relu"},
    {"block_out_channels": [8, 8, 8], "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3},
    {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"], "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]},
    {"sample_size": 8, "force_upcast": False},
]
FOUR = {"encoder_block_out_channels": [8] * 3, "decoder_block_out_channels": [8] * 3}
TINY = [
    {},
    {"act_fn": "silu"},
    {"upsample_fn": "bilinear"},
    {"scaling_factor": 0.5},
    {"shift_factor": 0.2},
    {"num_encoder_blocks": [1, 1]},
    {"num_encoder_blocks": [1, 1, 2], "num_decoder_blocks": [2, 2, 1], **FOUR},
    {"latent_magnitude": 5, "latent_shift": 0.1, "force_upcast": True},
]
CASES = (
    [("unet", UNet2DConditionModel, c) for c in UNET]
    + [("feature_encoder", kind, c) for kind in (Dinov2Model, Dinov2WithRegistersModel) for c in DINO]
    + [("feature_encoder", Dinov2WithRegistersModel, {"num_register_tokens": 2}), ("feature_encoder", Dinov2Model, {"use_mask_token": False})]
    + [("codec", AutoencoderKL, c) for c in KL]
    + [("codec", AutoencoderTiny, c) for c in TINY]
)  # fmt: skip
REFUSED = [
    ("unet", UNet2DConditionModel, c)
    for c in (
        {"num_class_embeds": 3},
        {"class_embed_type": "timestep"},
        {"class_embed_type": "identity"},
        {"time_cond_proj_dim": 8},
        {"addition_embed_type": "text"},
        {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64},
        {"encoder_hid_dim": 24},
        {"encoder_hid_dim_type": "text_proj", "encoder_hid_dim": 24},
        {"attention_type": "gated"},
        {"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]},
        {"up_block_types": ["UpBlock2D", "KUpBlock2D"]},
        {"mid_block_type": "UNetMidBlock3D"},
        {"center_input": True},
    )
] + [
    ("feature_encoder", Dinov2Model, {"num_channels": 4}),
    ("feature_encoder", Dinov2Model, {"return_dict": False}),
    ("feature_encoder", Dinov2Model, {"model_type": "dinov2_with_registers"}),
    ("feature_encoder", Dinov2Model, {"pruned_heads": {"0": [1]}}),
    ("feature_encoder", Dinov2Model, {"use_bfloat": True}),
    ("codec", AutoencoderKL, {"latents_mean": [0.1] * 4}),
    ("codec", AutoencoderKL, {"latents_std": [2.0] * 4}),
    ("codec", AutoencoderKL, {"in_channels": 4}),
    ("codec", AutoencoderKL, {"block_out_channels": [8, 8, 8]}),
    ("codec", AutoencoderKL, {"scaling": 1}),
    ("codec", AutoencoderTiny, {"upsampling_scaling_factor": 4}),
    ("codec", AutoencoderTiny, {"num_encoder_blocks": [1, 1, 1]}),
    ("codec", AutoencoderTiny, {"_class_name": "AsymmetricAutoencoderKL"}),
]


def label(case):
    return f"{case[1].__name__}-{'-'.join(map(str, case[2])) or 'plain'}" if isinstance(case, tuple) else None


def base_model(kind):
    return latent_model(small_tiny() if kind is AutoencoderTiny else small_kl(), registers=kind is Dinov2WithRegistersModel, steps=2)


def changed(case):
    """A model of two steps with one part that has the changed configuration, random weights in it."""
    part, kind, changes = case
    model = base_model(kind)
    if part == "feature_encoder":
        built = kind(type(model.feature_encoder.config)(**{**model.feature_encoder.config.to_dict(), **changes}))
    else:
        built = kind.from_config({**getattr(model, part).config, **changes})
    torch.manual_seed(7)
    for p in built.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return dataclasses.replace(model, **{part: built.eval().requires_grad_(False)})


@torch.no_grad()
def documented(folder, model, lr):
    """The output for a tile, from the folder's parts as the libraries load them and as their documentation calls them."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    codec = type(model.codec).from_pretrained(folder / "codec").eval()
    encoder = type(model.feature_encoder).from_pretrained(folder / "feature_encoder").eval()
    features = build_components(model, 32).components["feature_encoder"].module
    hidden = encoder(pixel_values=features.resize(lr) * features.gain + features.offset).last_hidden_state
    skipped = getattr(encoder.config, "num_register_tokens", 0)
    context = model.projector(torch.cat([hidden[:, :1], hidden[:, 1 + skipped :]], 1))
    encoded = codec.encode(build_components(model, 32).components["codec_encoder"].module.enlarge(lr) * 2 - 1)
    latent = encoded.latents if isinstance(codec, AutoencoderTiny) else encoded.latent_dist.mode()
    shift, scale = codec.config.shift_factor or 0.0, codec.config.scaling_factor
    latent = (latent - shift) * scale
    for step in model.config.steps:
        latent = step.keep * latent + step.add * unet(latent, torch.tensor([step.timestep]), encoder_hidden_states=context).sample
    return codec.decode(latent / scale + shift).sample / 2 + 0.5


@pytest.mark.parametrize("case", CASES, ids=label)
def test_a_configuration_is_computed_as_its_library_computes_it(case, tmp_path):
    checkpoint.save(changed(case), tmp_path / "m")
    loaded = checkpoint.load(tmp_path / "m")
    assert list(describe(tmp_path / "m").parameters) == ["feature_encoder", "codec_encoder", "unet", "codec_decoder"]
    [(_, tile)] = sample_tiles(32, 1, seed=2)
    for steps in (1, 2):
        model = dataclasses.replace(loaded, config=loaded.config.model_copy(update={"steps": loaded.config.steps[:steps]}))
        expected = documented(tmp_path / "m", model, torch.from_numpy(tile))
        assert expected.shape == (1, 3, 64, 64) and torch.isfinite(expected).all()
        assert relative_l2(expected, build_components(model, 32).run(torch.from_numpy(tile))["sr"]) < 1e-5, steps


@pytest.mark.parametrize("case", REFUSED, ids=label)
def test_a_key_that_would_not_be_computed_with_is_refused_by_name(case, tmp_path):
    part, kind, changes = case
    checkpoint.save(base_model(kind), tmp_path / "m")
    path = tmp_path / "m" / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    for read in (checkpoint.load, describe):
        with pytest.raises(CheckpointError) as caught:
            read(tmp_path / "m")
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
        assert any(str(word) in str(caught.value) for word in (*changes, *changes.values()))


@pytest.mark.parametrize("name", PART_KEYS)
def test_every_key_of_the_library_is_in_the_table_and_changed_by_a_case(name):
    table = PART_KEYS[name]
    if name.startswith("Dino"):
        keys = set(getattr(transformers, name.replace("Model", "Config"))().to_dict())
    else:
        keys = set(inspect.signature(getattr(diffusers, name).__init__).parameters) - {"self"}
    assert {key for key in keys if not key.startswith("_")} <= table.known()
    assert len(table.known()) == len(table.used) + len(table.harmless) + len(table.fixed)
    tried = {key for _, kind, changes in [*CASES, *REFUSED] if kind.__name__ == name for key in changes}
    given = {"in_channels", "out_channels", "cross_attention_dim", "hidden_size", "latent_channels", "num_attention_heads", "return_dict"}
    same = set() if name == "Dinov2Model" else set(_dino_keys())
    assert set(table.used) <= tried | given | same


def _dino_keys():
    return PART_KEYS["Dinov2Model"].known()


@pytest.mark.parametrize("name", sorted(p.name for p in BUNDLED.glob("*") if p.is_dir()))
def test_the_bundled_models_have_no_key_that_is_refused(name):
    assert checkpoint.load(name, only=()).config == describe(name).config
