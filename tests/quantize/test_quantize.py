"""Quantization on the tiny model: what is on disk, what graph it rebuilds, and which photos are refused."""

import dataclasses
import hashlib
import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from f2i_quantize.models import checkpoint
from f2i_quantize.models.whole_model import build_components
from f2i_quantize.ptq import quantized
from f2i_quantize.ptq.calibrate import ComponentInputs, calibrate_component, component_inputs
from f2i_quantize.ptq.calibration_tiles import calibration_set
from f2i_quantize.ptq.observe import ActivationObserver, fake_quantize_weight, weight_integers, weight_scale
from f2i_quantize.ptq.quantize_job import QuantizeOptions, Subject, check_error
from f2i_quantize.ptq.recipe import Rule, load_recipe
from f2i_quantize.ptq.sensitivity import OutputError
from f2i_quantize.rewrites.capture import relative_l2
from f2i_quantize.rewrites.passes import rewritten
from f2i_runtime.errors import CheckpointError, UsageError
from f2i_runtime.photo.samples import sample_tiles
from PIL import Image
from safetensors.torch import load_file, save_file

RECIPE = load_recipe("w8a8").model_copy(update={"tiles": 4})


def quiet(*_):
    pass


def test_checkpoint_holds_int8_weights_and_says_where_they_came_from(tiny_int8):
    found = quantized.read(tiny_int8, "w8a8")
    described = json.loads((tiny_int8 / "quantization" / "w8a8.json").read_text())
    assert described["recipe_sha256"] == found.recipe.sha256() == RECIPE.sha256()
    calibration = found.calibration
    assert calibration["tiles"] == 4 == sum(i["tiles"] for i in calibration["images"]) and all(
        len(i["sha256"]) == 64 for i in calibration["images"]
    )
    int8 = [name for name, rule in found.rules.items() if rule.weights == "int8"]
    assert len(int8) > 40 and all(found.tensors[f"{name}.weight"].dtype == torch.int8 for name in int8)


def test_qdq_graph_is_what_was_simulated_and_holds_every_layer_of_the_recipe(tiny_int8):
    """Convolutions once stayed float without a word: what the recipe asked for is counted in the graph."""
    found = quantized.read(tiny_int8, "w8a8")
    graph = build_components(checkpoint.load(tiny_int8), 32)
    [(_, tile)] = sample_tiles(32, 1)
    tensors = graph.run(torch.from_numpy(tile))
    for name, component in graph.components.items():
        call = next(c for c in graph.calls if c.component == name)
        inputs = [tensors[call.arguments[i]] for i in component.inputs]
        module = rewritten(component.module)
        simulated = quantized.simulated(module, inputs, name, found).run(inputs)
        qdq = quantized.qdq_graph(module, inputs, name, found, fold=True)
        with torch.no_grad():
            torch.testing.assert_close(qdq(*inputs), simulated, rtol=0, atol=0)
        per_channel = sum(n.target is torch.ops.quantized_decomposed.dequantize_per_channel.default for n in qdq.graph.nodes)
        assert per_channel == sum(rule.weights == "int8" for k, rule in found.rules.items() if k.startswith(f"{name}/"))
        assert simulated.dtype == torch.float32


def test_damage_is_found(tiny_int8, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_int8, copy)
    tensors = copy / "quantization" / "w8a8.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    with pytest.raises(CheckpointError, match="not the file that"):
        quantized.read(copy, "w8a8")


def test_unquantized_checkpoint_is_refused_with_the_command():
    with pytest.raises(UsageError, match="run: f2i quantize nano --recipe w8a8"):
        quantized.read("nano", "w8a8")


@pytest.mark.parametrize(
    ("sizes", "value", "message"),
    [((256, 256, 256), 0, "no texture"), ((16,), None, "room for 0 separate tiles"), ((), None, "no photos")],
)
def test_useless_calibration_photos_are_refused(tmp_path, sizes, value, message):
    rng = np.random.default_rng(0)
    for k, side in enumerate(sizes):
        pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8) if value is None else np.full((side, side, 3), value, np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    with pytest.raises(UsageError, match=message):
        calibration_set(tmp_path, 32, 8, 0)


def test_tiles_are_the_same_for_one_seed():
    first, again, other = (calibration_set(None, 32, 16, seed).tiles for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_tiles_span_the_textures(tmp_path):
    """Four photos of one size, each rougher than the last: each gives its quarter of the tiles, whichever tiles come first."""
    rng = np.random.default_rng(0)
    for k, amplitude in enumerate((8, 24, 60, 120)):
        pixels = 128 + rng.integers(-amplitude, amplitude, (128, 128, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{k}.png")
    off = []
    for seed in range(10):
        shares = {image["name"]: image["tiles"] for image in calibration_set(tmp_path, 32, 16, seed).images}
        assert len(shares) == 4
        off += [abs(count - 4) for count in shares.values()]
    assert np.mean(off) <= 0.8  # 0.6 here; tiles drawn from all candidates alike are off by 1.5


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_observers_find_a_range_that_holds_zero(method):
    observer = ActivationObserver()
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0)) + 5
    for mode in ("range", "histogram"):
        observer.mode = mode
        observer(x)
    observer.solve(method, 99.9)
    observer.mode = "fake"
    assert -128 <= observer.zero_point <= 127
    assert float((observer(x) - x).square().mean().sqrt()) < 1.2 * observer.scale


def test_weights_on_their_grid_are_integers_again():
    weight = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    for method in ("minmax", "mse"):
        scale = weight_scale(weight, method)
        integers = weight_integers(weight, scale)
        back = integers.float() * scale.reshape(-1, 1, 1, 1)
        torch.testing.assert_close(back, fake_quantize_weight(weight, scale))
        assert torch.equal(weight_integers(back, scale), integers)


def seen(calibration):
    """The bytes of all tiles that calibration sees, and those of the others."""
    return {t.tobytes() for t in calibration.tiles}, {t.tobytes() for t in calibration.unseen}


@pytest.mark.parametrize(
    ("sizes", "unseen"),
    [([(32, 32)] * 4, 1), ([(33, 40)] * 20, 4), ([(64, 64)], 1), ([(32, 128)], 1), ([(32, 32)] * 3 + [(32, 80)], 1), ([(96, 64)] * 6, 4)],
)
def test_the_check_is_on_tiles_that_calibration_did_not_see(tmp_path, sizes, unseen):
    """Also where photos are one tile large, where two drawings of places give the same tiles. Every pixel here is in one place only."""
    total = sum(h * w for h, w in sizes)
    values = np.random.default_rng(0).permutation(1 << 24)[:total]
    every = np.stack([values >> 16, values >> 8 & 255, values & 255], -1).astype(np.uint8)
    for k, (h, w) in enumerate(sizes):
        pixels, every = every[: h * w], every[h * w :]
        Image.fromarray(pixels.reshape(h, w, 3)).save(tmp_path / f"{k:02}.png")
    for seed in range(3):
        found = calibration_set(tmp_path, 32, 8, seed)
        assert (len(found.tiles), len(found.unseen)) == (8, unseen)
        colours = [
            {tuple(c) for t in tiles for c in (t[0].reshape(3, -1).T * 255).round().astype(int)} for tiles in (found.tiles, found.unseen)
        ]
        assert not colours[0] & colours[1]


def test_a_copy_of_a_photo_is_not_another_photo(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(4):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{k}.png")
        (tmp_path / f"copy of {k}.png").write_bytes((tmp_path / f"{k}.png").read_bytes())
    found = calibration_set(tmp_path, 32, 8, 0)
    assert not set.intersection(*seen(found)) and len(found.images) == 3


def test_photos_are_not_held_together(tmp_path):
    """Twelve photos of 3 MP are 430 MB of float32; one is 36."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (1500, 2000, 3), dtype=np.uint8)
    for k in range(12):
        Image.fromarray(np.roll(noise, k, 0)).save(tmp_path / f"{k}.bmp")
    tracemalloc.start()
    calibration_set(tmp_path, 32, 8, 0)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 150e6


def damaged_int8(tiny_int8, folder, change):
    """A quantized checkpoint with changed tensors whose hash fits."""
    shutil.copytree(tiny_int8, folder)
    place = folder / "quantization"
    tensors = load_file(place / "w8a8.safetensors")
    change(tensors)
    save_file(tensors, place / "w8a8.safetensors")
    description = json.loads((place / "w8a8.json").read_text())
    description["tensors_sha256"] = hashlib.sha256((place / "w8a8.safetensors").read_bytes()).hexdigest()
    (place / "w8a8.json").write_text(json.dumps(description))
    return folder


def test_a_quantization_whose_biases_do_not_fit_is_refused(tiny_int8, tmp_path):
    """As an earlier version wrote it for a pruned channel and for an activation that never leaves zero."""
    name = next(n for n, rule in quantized.read(tiny_int8, "w8a8").rules.items() if n.startswith("unet/") and rule.weights == "int8")
    folder = damaged_int8(tiny_int8, tmp_path / "c", lambda t: t.update({f"{name}.input_scale": torch.tensor(4e-15, dtype=torch.float64)}))
    component = build_components(checkpoint.load(folder), 32).components["unet"]
    inputs = [torch.zeros(shape) for shape in component.inputs.values()]
    with pytest.raises(CheckpointError, match=rf"{name}: its bias takes .* steps, expected at most 2147483647") as caught:
        quantized.simulated(rewritten(component.module), inputs, "unet", quantized.read(folder, "w8a8"))
    assert "\n" not in str(caught.value)


class Block(torch.nn.Module):
    """Two convolutions with what the cases make of them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (torch.nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return self.second(torch.nn.functional.silu(self.first(x)))


def dead_channel(net):
    net.first.weight.data[1] = 0


def faint_channel(net):
    net.first.weight.data[1] *= 1e-12


def dead_layer(net):
    net.first.weight.data.zero_()


def never_leaves_zero(net):
    net.first.weight.data.zero_()
    net.first.bias.data.zero_()


def hardly_leaves_zero(net):
    net.first.weight.data *= 1e-9
    net.first.bias.data *= 1e-9


def one_value(net):
    net.first.weight.data.zero_()
    net.first.bias.data.fill_(0.7)


def no_bias(net):
    net.first.weight.data[1] = 0
    net.first.bias = net.second.bias = None


PRUNED = (dead_channel, faint_channel, dead_layer, never_leaves_zero, hardly_leaves_zero, one_value, no_bias)


@pytest.mark.parametrize("recipe", ["w8a8", "w8a16"])
@pytest.mark.parametrize("prune", PRUNED)
def test_pruned_channels_are_quantized_to_numbers_that_engines_hold(prune, recipe):
    net = Block().eval()
    prune(net)
    tiles = tuple((torch.rand(1, 3, 16, 16),) for _ in range(3))
    recipe = load_recipe(recipe)
    kind = "int16" if recipe.precision == "w8a16" else "int8"
    rules = {f"net/{name}": Rule(weights="int8", activations=kind) for name in ("first", "second")}
    part = ComponentInputs("net", net, tiles)
    tensors = calibrate_component(part, rules, recipe, quiet)
    for name in rules:
        scales, given = tensors[f"{name}.weight_scale"], float(tensors[f"{name}.input_scale"])
        result = float(tensors[f"{name}.output_scale"])
        assert (scales > 0).all() and torch.isfinite(scales).all() and given > 2.0**-30
        assert (scales * given / result).min() >= 2.0**-24 * 0.999
        if (bias := tensors.get(f"{name}.bias")) is not None:
            assert (bias / (scales * given)).abs().max() < 2.0**31
    prepared = quantized.simulated(net, tiles[0], "net", quantized.Quantized(recipe, rules, {}, tensors))
    with torch.no_grad():
        assert relative_l2(net(*tiles[0]), prepared.run(tiles[0])) < 0.02


@pytest.mark.parametrize(("value", "tile"), [(float("nan"), 0), (float("inf"), 2), (float("-inf"), 1)])
def test_an_activation_that_is_not_finite_names_its_layer(value, tile):
    class Spoiled(Block):
        def forward(self, x):
            y = self.first(x)
            return self.second(torch.where(x[:, :1] > 2, torch.full_like(y, value), y))

    tiles = tuple((torch.rand(1, 3, 16, 16),) for _ in range(3))
    tiles[tile][0][0, 0, 3, 3] = 5
    rules = {f"net/{name}": Rule(weights="int8", activations="int8") for name in ("first", "second")}
    with pytest.raises(CheckpointError, match="net/second: its input is NaN or infinite on the calibration tiles") as caught:
        calibrate_component(ComponentInputs("net", Spoiled().eval(), tiles), rules, RECIPE, quiet)
    assert "\n" not in str(caught.value)


def test_a_component_whose_float_output_is_not_finite_is_named(tmp_path):
    model = checkpoint.load("tiny")
    model.unet.conv_out.bias.data.fill_(float("inf"))
    graph = build_components(model, 32)
    shots = calibration_set(None, 32, 2, 0)
    with pytest.raises(CheckpointError, match="unet: its float output is not finite on calibration tile 1"):
        component_inputs(graph, {n: c.module for n, c in graph.components.items()}, shots, {}, quiet)


@pytest.mark.parametrize(("mse", "trained", "fails"), [(0.2, True, True), (0.2, False, False), (float("nan"), False, True), (0.01, True, False), (0.0, True, False)])  # fmt: skip
def test_an_output_that_is_no_approximation_is_not_written(mse, trained, fails):
    model = checkpoint.load("tiny")
    model = dataclasses.replace(model, config=model.config.model_copy(update={"trained": trained}))
    options = QuantizeOptions("model", RECIPE, Path("out"))
    shots = calibration_set(None, 32, 2, 0)
    subject = Subject(options, RECIPE, model, 32, build_components(model, 32), [], shots, {}, {}, {}, {"unet": 3.0})
    if not fails:
        return check_error(subject, OutputError(mse, 1.0))
    with pytest.raises(CheckpointError, match="on 4 tiles that calibration did not see the quantized output has an SQNR of") as caught:
        check_error(subject, OutputError(mse, 1.0))
    assert "unet alone: 3.0 dB" in str(caught.value) and "\n" not in str(caught.value)
