"""Models without group norms, and with affines in their place: loaded, quantized and exported as their definition says, by code of the test's own."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from f2i_export.lowering import load_converter
from f2i_export.write_bundle import ExportOptions, export_bundle
from f2i_quantize.models import checkpoint, presets
from f2i_quantize.models.config import ModelConfig
from f2i_quantize.models.description import describe
from f2i_quantize.models.norms import set_norms
from f2i_quantize.models.presets import PIXEL_1X, PRESETS, Preset
from f2i_quantize.models.whole_model import build_components
from f2i_quantize.ptq import quantized
from f2i_quantize.ptq.quantize_job import QuantizeOptions, quantize_checkpoint
from f2i_quantize.ptq.recipe import load_recipe
from f2i_quantize.rewrites.capture import relative_l2, rewrite
from f2i_quantize.rewrites.hexagon_rewrites import HEXAGON
from f2i_quantize.rewrites.passes import rewritten, with_split_skips
from f2i_runtime.errors import CheckpointError
from f2i_runtime.photo.samples import sample_tiles
from f2i_runtime.pipeline import open_pipeline
from f2i_runtime.targets import REFERENCE, TARGETS
from safetensors.torch import load_file
from torch import nn

MID_ONLY = {
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
}
SIMPLE = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
}
SELF = {"down_block_types": ("AttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "AttnUpBlock2D")}
SHAPES = {
    "attention in the mid block only": {"act_fn": "relu", **MID_ONLY},
    "layers by level": {"act_fn": "gelu", "layers_per_block": (2, 1), **MID_ONLY},
    "attention at the coarsest level": {"act_fn": "mish"},
    "timestep as scale and shift": {"resnet_time_scale_shift": "scale_shift"},
    "self attention": SELF,
    "added keys": SIMPLE,
}


def shaped(norm, changes=None, codec=None):
    """A model like ``tiny`` with other norms and the changed UNet, random weights in every layer."""
    tiny = PRESETS["tiny"]
    config = ModelConfig(name="shaped", trained=False, tile=32, base="bicubic", unet_norm=norm)
    model = presets.build_preset(Preset(config, {**tiny.unet, **(changes or MID_ONLY)}, tiny.encoder, codec or tiny.codec))
    torch.manual_seed(7)
    for name, p in model.unet.named_parameters():
        torch.nn.init.normal_(p, mean=float("norm" in name and name.endswith("weight")), std=0.1)
    return model


class Affine(nn.Module):
    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x):
        return torch.einsum("nc...,c->nc...", x, self.weight) + torch.einsum("nc...,c->nc...", torch.ones_like(x), self.bias)


def independent(folder, norm):
    """diffusers' own class from the folder's files, its group norms found by name in the file of weights and replaced here."""
    unet = UNet2DConditionModel.from_config(json.loads((folder / "unet/config.json").read_text()))
    stored = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    groups = [name for name, m in unet.named_modules() if type(m).__name__ == "GroupNorm"]
    for name in groups:
        owner = unet.get_submodule(name.rpartition(".")[0]) if "." in name else unet
        new = nn.Identity() if norm == "none" else Affine(stored.pop(f"{name}.weight"), stored.pop(f"{name}.bias"))
        setattr(owner, name.rpartition(".")[2], new)
    assert groups and not any("GroupNorm" in type(m).__name__ for m in unet.modules())
    missing, unexpected = unet.load_state_dict(stored, strict=False)
    assert not missing and not unexpected
    return unet.eval()


@torch.no_grad()
@pytest.mark.parametrize("norm", ["frozen", "none"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_unet_is_computed_as_diffusers_computes_it_but_for_its_norms(shape, norm, tmp_path):
    model = shaped(norm, SHAPES[shape])
    checkpoint.save(model, tmp_path / "m")
    loaded = checkpoint.load(tmp_path / "m")
    assert loaded.config.unet_norm == norm
    assert describe(tmp_path / "m").parameters["unet"] == sum(p.numel() for p in model.unet.parameters())
    unet = independent(tmp_path / "m", norm)
    sample, context = torch.randn(1, 12, 16, 16), torch.randn(1, 5, 16)
    expected = unet(sample, torch.tensor([1.0]), encoder_hidden_states=context).sample
    assert relative_l2(expected, loaded.unet(sample, torch.tensor([1.0]), context).sample) < 1e-6
    with pytest.raises(AssertionError):
        torch.testing.assert_close(UNet2DConditionModel.from_config(unet.config)(sample, 1, context).sample, expected)


def inputs_of(model, count=2):
    graph = build_components(model, 32)
    tiles = []
    for _, tile in sample_tiles(32, count):
        tensors = graph.run(torch.from_numpy(tile))
        tiles.append([tensors["lr"], tensors["context"]])
    return graph.components["unet"].module, tiles


@pytest.mark.parametrize("norm", ["frozen", "none"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_rewrites_of_every_target_and_of_the_npu_are_exact(shape, norm):
    module, tiles = inputs_of(shaped(norm, SHAPES[shape]))
    for label, steps in [(t, load_converter(t).rewrites) for t in TARGETS] + [("hexagon", HEXAGON)]:
        found = rewrite(module, steps, f"unet/{label}", tiles)
        assert found.records[-1].relative_l2 < 1e-5
        assert not any(isinstance(m, nn.GroupNorm) or "GroupNorm" in type(m).__name__ for m in found.module.modules())


@pytest.mark.parametrize("norm", ["frozen", "none"])
def test_skips_are_split_without_a_concatenation(norm):
    module, tiles = inputs_of(shaped(norm, SHAPES["layers by level"]))
    record = next(r for r in rewrite(module, with_split_skips(HEXAGON), "unet", tiles).records if r.name == "split_skip_concatenation")
    assert record.count == 5 and record.relative_l2 < 1e-5
    assert not any(block.whole for block in rewritten(module, split_skips=True).denoiser.unet.up_blocks[0].resnets)


@pytest.mark.parametrize("norm", ["frozen", "none"])
def test_int8_is_near_the_float_model_and_nothing_but_the_edges_stays_float(norm, tmp_path):
    checkpoint.save(shaped(norm, SHAPES["attention in the mid block only"], PIXEL_1X), tmp_path / "float")
    recipe = load_recipe("w8a8").model_copy(update={"tiles": 4})
    record = quantize_checkpoint(QuantizeOptions(str(tmp_path / "float"), recipe, tmp_path / "int8"))
    assert record["simulated_sqnr_db"]["unet"] > 14
    found = quantized.read(tmp_path / "int8", "w8a8")
    assert checkpoint.load(tmp_path / "int8").config.unet_norm == norm
    inside = {name for name in found.rules if "resnets" in name and "conv" in name}
    assert len([name for name in inside if re.search(r"conv[12]$", name)]) == 2 * (2 + 2 + 4)


def test_only_the_three_kinds_are_taken_and_weights_must_be_theirs(tmp_path):
    checkpoint.save(shaped("frozen"), tmp_path / "m")
    index = json.loads((tmp_path / "m/model_index.json").read_text())

    def with_norm(kind):
        (tmp_path / "m/model_index.json").write_text(json.dumps(index | {"unet_norm": kind}))
        return tmp_path / "m"

    with pytest.raises(CheckpointError, match=r"model_index\.json: unet_norm: Input should be 'group', 'frozen' or 'none'"):
        describe(with_norm("batch"))
    with pytest.raises(CheckpointError, match=r"key '.*norm.*' of shape .* is not part of the model"):
        checkpoint.load(with_norm("none"))
    assert not torch.equal(
        *(checkpoint.load(with_norm(k)).unet(torch.ones(1, 12, 8, 8), 1, torch.ones(1, 2, 16)).sample for k in ("group", "frozen"))
    )


def test_group_norms_are_left_alone():
    model = shaped("group")
    assert set_norms(model.unet, "group") is model.unet
    assert sum(isinstance(m, nn.GroupNorm) for m in model.unet.modules()) == sum(
        type(m).__name__ == "ChannelAffine" for m in dataclasses.replace(model, unet=set_norms(model.unet, "frozen")).unet.modules()
    )


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["frozen", "none"])
def test_every_target_computes_what_the_reference_computes(norm, cache, tmp_path):
    checkpoint.save(shaped(norm, SHAPES["layers by level"], PIXEL_1X), tmp_path / "float")
    recipe = load_recipe("w8a8").model_copy(update={"tiles": 4})
    quantize_checkpoint(QuantizeOptions(str(tmp_path / "float"), recipe, tmp_path / "int8"))
    bundle = export_bundle(ExportOptions(str(tmp_path / "int8"), tmp_path / "bundle", tuple(TARGETS), ("fp32", "fp16", "w8a8")))
    [(_, tile)] = sample_tiles(32, 1, seed=2)
    with open_pipeline(bundle, REFERENCE) as reference:
        expected = reference.tile(tile)
    for variant in bundle.manifest.variants():
        with open_pipeline(bundle, variant) as engine:
            error = np.linalg.norm(engine.tile(tile) - expected) / np.linalg.norm(expected)
        assert error < {"fp32": 3e-5, "fp16": 2e-2, "w8a8": 0.2}[variant.precision], variant
