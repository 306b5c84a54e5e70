"""A checkpoint of any shape to start training from: what is written, from what weights, and what is refused."""

import json

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from f2i_quantize.models import checkpoint
from f2i_quantize.models.differentiable import Pipeline
from f2i_quantize.train.new_student import main
from f2i_runtime.photo.samples import sample_tiles

SHAPE = {
    "model": {"name": "candidate", "base": "bicubic", "unet_norm": "none", "tile": 64},
    "unet": {
        "block_out_channels": [16, 16, 24, 32],
        "down_block_types": ["DownBlock2D"] * 4,
        "up_block_types": ["UpBlock2D"] * 4,
        "layers_per_block": [1, 1, 1, 2],
        "act_fn": "relu",
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
    },
    "feature_encoder": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2},
}


def written(tmp_path, *arguments, **changes):
    shape = tmp_path / "shape.json"
    shape.write_text(json.dumps(SHAPE | changes))
    return main([str(shape), str(tmp_path / "out"), *arguments])


def test_the_first_output_is_the_base_and_every_layer_can_learn(tmp_path, capsys):
    assert written(tmp_path, "--seed", "3") == 0
    model = checkpoint.load(tmp_path / "out")
    assert model.config.unet_norm == "none" and not model.config.trained
    assert f"{model.parameters() / 1e6:.2f} M" in capsys.readouterr().out
    [(_, tile)] = sample_tiles(64, 1)
    lr = torch.from_numpy(tile)
    pipeline = Pipeline(model, 64)
    unet = pipeline.modules_by_name["unet"]
    torch.testing.assert_close(pipeline(lr), unet.enlarge(lr))
    model.unet.requires_grad_(True)
    torch.nn.init.normal_(model.unet.conv_out.weight, std=0.01)
    pipeline(lr).square().mean().backward()
    blocks = [m for m in model.unet.modules() if isinstance(m, ResnetBlock2D)]
    assert all(float(conv.weight.grad.norm()) > 0 for b in blocks for conv in (b.conv1, b.conv2))


def test_activations_do_not_grow_with_depth(tmp_path):
    unet = {**SHAPE["unet"], "layers_per_block": 6}
    assert written(tmp_path, unet=unet) == 0
    model, seen = checkpoint.load(tmp_path / "out"), {}
    for name, m in model.unet.named_modules():
        if isinstance(m, ResnetBlock2D):
            m.register_forward_hook(lambda _m, _i, output, name=name: seen.__setitem__(name, float(output.detach().std())))
    torch.manual_seed(0)
    model.unet(torch.randn(1, 3, 64, 64), 1, torch.randn(1, 3, 32))
    assert len(seen) == 4 * 6 + 2 + 4 * 7 and all(0 < std < 2 for std in seen.values()), seen


def test_weights_come_from_the_seed_and_the_encoder_from_another_model(tmp_path):
    for name, arguments in {"a": ("--seed", "1"), "b": ("--seed", "1"), "c": ("--seed", "2"), "d": ("--encoder", "pico")}.items():
        (tmp_path / name).mkdir()
        assert written(tmp_path / name, *arguments) == 0
    a, b, c, d = (checkpoint.load(tmp_path / name / "out") for name in "abcd")
    assert torch.equal(a.unet.conv_in.weight, b.unet.conv_in.weight) and not torch.equal(a.unet.conv_in.weight, c.unet.conv_in.weight)
    kernel = checkpoint.load("pico").feature_encoder.embeddings.patch_embeddings.projection.weight
    assert torch.equal(d.feature_encoder.embeddings.patch_embeddings.projection.weight, kernel[torch.arange(16) * 72 // 16])


REFUSED = {
    "unknown part": ({"vae": {}}, "vae: Extra inputs are not permitted; a shape has model, unet"),
    "unknown norm": ({"model": {"unet_norm": "batch"}}, "model.unet_norm: Input should be 'group', 'frozen' or 'none'"),
    "unknown key": ({"unet": {**SHAPE["unet"], "channels": 3}}, "key 'channels' is not one of UNet2DConditionModel's"),
    "missing key": ({"unet": {"act_fn": "relu"}}, "unet does not say block_out_channels, down_block_types"),
    "activation": ({"unet": {**SHAPE["unet"], "act_fn": "tanhexp"}}, "no model can be built from it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_shape_is_refused_in_one_line(case, tmp_path, capsys):
    changes, expected = REFUSED[case]
    assert written(tmp_path, **changes) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'shape.json'}: ") and expected in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_called_a_shape(tmp_path, capsys):
    assert main([str(tmp_path / "gone.json"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "no such file; a shape is a JSON object with model, unet" in error and error.count("\n") == 1
