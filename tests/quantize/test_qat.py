"""Quantization-aware training and GPTQ on the tiny model and on small matrices."""

import pytest
import torch
from f2i_quantize.ptq import gptq, qat, quantized
from f2i_quantize.ptq.observe import weight_integers, weight_scale
from f2i_quantize.ptq.quantize_job import QuantizeOptions, calibrated, quantize_checkpoint
from f2i_quantize.ptq.recipe import Qat, load_recipe, parse_recipe, with_options
from f2i_runtime.errors import UsageError
from torch import nn

OPTIONS = Qat(steps=6, batch=2, crop=32, lr=1e-4)
RECIPE = load_recipe("w8a8").model_copy(update={"tiles": 4})


def quiet(*_):
    pass


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    subject = calibrated(QuantizeOptions("tiny", RECIPE, tmp_path_factory.mktemp("out") / "x"), RECIPE, quiet)
    return qat.Start(subject.model, RECIPE, subject.rules, subject.tensors, {})


@pytest.fixture(scope="module")
def photos():
    return qat.read_photos(None, OPTIONS.crop)


def test_training_starts_at_the_calibrated_integers(start):
    fakes = qat.fake_components(start, OPTIONS)
    weights = qat.trained_weights(fakes, OPTIONS)
    assert not all(
        torch.equal(p, fakes["unet"].layers[n.removesuffix(".weight")].rounded_weight())
        for n, p in weights.items()
        if n.startswith("unet") and n.endswith(".weight")
    )
    stored = qat.stored_tensors(fakes, start.tensors)
    assert stored.keys() == start.tensors.keys()
    for name, tensor in start.tensors.items():
        torch.testing.assert_close(stored[name], tensor, rtol=1e-6, atol=0, msg=name)


def test_an_interrupted_run_ends_with_the_same_tensors(start, photos, tmp_path):
    straight, record = qat.fine_tune(start, OPTIONS, photos, tmp_path / "straight", quiet)

    def stop(_what, done, _of):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qat.fine_tune(start, OPTIONS, photos, tmp_path / "stopped", stop)
    resumed, again = qat.fine_tune(start, OPTIONS, photos, tmp_path / "stopped", quiet)
    assert record == again and len(record["losses"]) == OPTIONS.steps
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    changed = [name for name in straight if not torch.equal(straight[name], start.tensors[name])]
    assert any(name.endswith(".weight") for name in changed) and any(name.endswith(".input_scale") for name in changed)
    # Two layers that read one tensor share its scale afterwards as before.
    query = next(name for name in straight if name.endswith("attn1.query.input_scale"))
    assert straight[query] == straight[query.replace("query", "key")]


def test_one_component_alone_is_trained(start, photos, tmp_path):
    only = OPTIONS.model_copy(update={"components": ("unet",), "steps": 1, "scale_lr": 0.0})
    tensors, _ = qat.fine_tune(start, only, photos, tmp_path, quiet)
    changed = {name.split("/")[0] for name in tensors if not torch.equal(tensors[name], start.tensors[name])}
    assert changed == {"unet"}
    with pytest.raises(UsageError, match="component 'unett' is unknown; the model has feature_encoder, unet"):
        qat.fine_tune(start, OPTIONS.model_copy(update={"components": ("unett",)}), photos, tmp_path, quiet)


@pytest.mark.slow
def test_training_brings_the_output_nearer_to_the_float_model(tmp_path):
    recipe = with_options(RECIPE, qat=True, qat_steps=60)
    recipe = parse_recipe(recipe.model_dump(mode="json") | {"qat": {"steps": 60, "crop": 32, "lr": 3e-4}}, "r")
    record = quantize_checkpoint(QuantizeOptions("tiny", recipe, tmp_path / "tiny"))["qat"]
    assert record["kept"] and record["psnr_db_after"] > record["psnr_db_before"] + 0.25
    found = quantized.read(tmp_path / "tiny", "w8a8")
    assert found.recipe.qat.steps == 60 and found.calibration["qat"]["losses"][-1] < found.calibration["qat"]["losses"][0]


def test_steps_without_qat_are_refused():
    with pytest.raises(UsageError, match="--steps is for --qat"):
        with_options(RECIPE, qat_steps=3)
    assert with_options(RECIPE, qat=True, qat_steps=3).qat.steps == 3
    assert with_options(RECIPE, qat=True).sha256() != RECIPE.sha256()


def test_gptq_beats_nearest_on_what_a_layer_reads():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    weight = torch.randn(10, 24, generator=generator)
    scale = weight_scale(weight, "minmax") * 16  # coarse, as 4 bits are
    error = {
        name: float((x @ (integers.float() * scale[:, None] - weight).T).square().mean())
        for name, integers in (("nearest", weight_integers(weight, scale)), ("gptq", gptq.round_rows(weight, scale, x.T @ x)))
    }
    assert error["gptq"] < 0.6 * error["nearest"]


def test_gptq_rounds_to_nearest_where_inputs_are_independent():
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    scale = weight_scale(weight, "minmax")
    assert torch.equal(gptq.round_rows(weight, scale, torch.eye(7)), weight_integers(weight, scale))


@pytest.mark.parametrize("side", [9, 80])
def test_gptq_sees_convolutions_as_their_columns(side):
    """A convolution's error on its own input falls, on small maps (taken whole) and on large ones (a window)."""
    generator = torch.Generator().manual_seed(2)
    conv = nn.Conv2d(4, 6, 3, padding=1, bias=False)
    conv.weight.data = torch.randn(6, 4, 3, 3, generator=generator)
    smooth = nn.functional.avg_pool2d(torch.randn(1, 4, side + 4, side + 4, generator=generator), 5, 1)
    scale = weight_scale(conv.weight, "minmax") * 16
    module = nn.Sequential(conv)
    [rounded] = gptq.round_layers(module, [(smooth,)], {"0": scale}, 0, quiet).values()
    error = {}
    for name, integers in (("nearest", weight_integers(conv.weight, scale)), ("gptq", rounded)):
        difference = integers.float() * scale.reshape(-1, 1, 1, 1) - conv.weight.detach()
        error[name] = float(nn.functional.conv2d(smooth, difference, padding=1).square().mean())
    assert rounded.shape == conv.weight.shape and error["gptq"] < 0.7 * error["nearest"]


def test_gptq_takes_several_passes_where_moments_would_not_fit(monkeypatch):
    module = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    inputs = [(torch.randn(3, 6, generator=torch.Generator().manual_seed(k)),) for k in range(4)]
    scales = {name: weight_scale(module.get_submodule(name).weight, "minmax") for name in ("0", "1")}
    whole = gptq.round_layers(module, inputs, scales, 0, quiet)
    monkeypatch.setattr(gptq, "MOST_BYTES", 1)
    said = []
    parts = gptq.round_layers(module, inputs, scales, 0, lambda done, of: said.append((done, of)))
    assert said[-1] == (8, 8) and all(torch.equal(whole[name], parts[name]) for name in whole)


def test_recipe_with_gptq_is_another_recipe_and_other_integers(tmp_path):
    recipe = with_options(RECIPE, rounding="gptq")
    subject = calibrated(QuantizeOptions("tiny", recipe, tmp_path / "x"), recipe, quiet)
    nearest = calibrated(QuantizeOptions("tiny", RECIPE, tmp_path / "y"), RECIPE, quiet)
    assert recipe.sha256() != RECIPE.sha256() and subject.tensors.keys() == nearest.tensors.keys()
    assert any(not torch.equal(subject.tensors[k], v) for k, v in nearest.tensors.items() if k.endswith(".weight"))
    with pytest.raises(UsageError, match=r"rounding: Input should be 'nearest' or 'gptq'"):
        with_options(RECIPE, rounding="up")
