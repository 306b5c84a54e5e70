"""Shapes that people have: DINOv2-S and -B with and without registers, and a UNet of 100 M parameters, quantized and exported to every target by the command's
own functions, with random weights."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from f2i_export.write_bundle import ExportOptions, export_bundle
from f2i_quantize.models import checkpoint, presets
from f2i_quantize.models.config import ModelConfig, ProjectorConfig
from f2i_quantize.models.parts import TokenProjector
from f2i_quantize.models.whole_model import F2IModel
from f2i_quantize.ptq.quantize_job import QuantizeOptions, quantize_checkpoint
from f2i_quantize.ptq.recipe import load_recipe
from f2i_runtime.targets import TARGETS
from f2i_runtime.validation.validate import validate
from f2i_runtime.validation.validate_options import ValidateOptions
from model_zoo import latent_model, small_kl
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

pytestmark = pytest.mark.slow
SIZES = {"S": (384, 12, 6), "B": (768, 12, 12)}


def with_encoder(size, registers):
    """The tiny model with a DINOv2 of real size in front."""
    hidden, layers, heads = SIZES[size]
    shape = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "image_size": 518, "patch_size": 14}
    torch.manual_seed(0)
    encoder = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**shape)) if registers else Dinov2Model(Dinov2Config(**shape))
    base = presets.build("tiny")
    projector = TokenProjector(ProjectorConfig(in_features=hidden, context_features=base.projector.config.context_features))
    for part in (encoder, projector):
        part.eval().requires_grad_(False)
    return F2IModel(base.config, base.unet, encoder, projector, base.codec)


def with_large_unet():
    """The tiny model around an SD-shaped UNet of 100 M parameters."""
    base = presets.build("tiny")
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=base.unet.config.in_channels,
        out_channels=base.unet.config.out_channels,
        block_out_channels=(128, 256, 544, 544),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        layers_per_block=1,
        attention_head_dim=8,
        cross_attention_dim=16,
        use_linear_projection=True,
    )
    unet.eval().requires_grad_(False)
    config = ModelConfig(**{**base.config.model_dump(), "name": "large", "tile": 64})
    model = F2IModel(config, unet, base.feature_encoder, base.projector, base.codec)
    assert 90e6 < sum(p.numel() for p in unet.parameters()) < 120e6
    return model


FAMILIES = {
    **{
        f"DINOv2-{size}{', registers' if r else ''}": (lambda size=size, r=r: with_encoder(size, r))
        for size in SIZES
        for r in (False, True)
    },
    "UNet of 100 M parameters": with_large_unet,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_real_shapes_are_quantized_and_exported_to_every_target(cache, tmp_path, family):
    checkpoint.save(FAMILIES[family](), tmp_path / "float")
    recipe = load_recipe("w8a8").model_copy(update={"tiles": 4})
    record = quantize_checkpoint(QuantizeOptions(str(tmp_path / "float"), recipe, tmp_path / "int8"))
    assert all(sqnr > 15 for sqnr in record["simulated_sqnr_db"].values()), record["simulated_sqnr_db"]
    bundle = export_bundle(ExportOptions(str(tmp_path / "int8"), tmp_path / "bundle", tuple(TARGETS), ("w8a8",)))
    real = "unet" if family.startswith("UNet") else "feature_encoder"
    artifacts = [artifact for artifact in bundle.manifest.artifacts if artifact.component == real]
    assert {artifact.target for artifact in artifacts} == set(TARGETS)
    # The other component is tiny's, whose random weights make of other tiles than the calibration's what they like.
    for artifact in artifacts:
        simulated = record["simulated_sqnr_db"][real]
        assert artifact.parity.sqnr_db > simulated - 3, (artifact.target, artifact.parity.sqnr_db, simulated)


def test_an_int8_latent_model_with_a_kl_codec_holds_every_gate(cache, tmp_path):
    """The bundled models' codec has no weights; this one's are int8, too, and LiteRT's converter folds the padding of its downsampler."""
    checkpoint.save(latent_model(small_kl()), tmp_path / "float")
    recipe = load_recipe("w8a8").model_copy(update={"tiles": 4})
    quantize_checkpoint(QuantizeOptions(str(tmp_path / "float"), recipe, tmp_path / "int8"))
    bundle = export_bundle(ExportOptions(str(tmp_path / "int8"), tmp_path / "bundle", tuple(TARGETS), ("w8a8",)))
    report = validate(bundle, ValidateOptions(tiles=4, photos=1))
    assert report.passed, report.failed()
    for component in ("codec_encoder", "unet", "codec_decoder", "feature_encoder"):
        gates = {(gate.target, gate.figure) for gate in report.gates if gate.component == component}
        assert {(target, "simulated_sqnr_gap_db") for target in TARGETS} | {("tflite", "layer_rel_l2")} <= gates
