"""Quantization on the tiny model: what is on disk, what graph it rebuilds, and which photos are refused."""

import json

import numpy as np
import pytest
import torch
from f2i_quantize.models import checkpoint
from f2i_quantize.models.whole_model import build_components
from f2i_quantize.ptq import quantized
from f2i_quantize.ptq.calibration_tiles import calibration_set
from f2i_quantize.ptq.observe import ActivationObserver, fake_quantize_weight, weight_integers, weight_scale
from f2i_quantize.ptq.recipe import load_recipe
from f2i_quantize.rewrites.passes import rewritten
from f2i_runtime.errors import CheckpointError, UsageError
from f2i_runtime.photo.samples import sample_tiles
from PIL import Image

RECIPE = load_recipe("w8a8").model_copy(update={"tiles": 4})


def test_checkpoint_holds_int8_weights_and_says_where_they_came_from(tiny_int8):
    found = quantized.read(tiny_int8, "w8a8")
    described = json.loads((tiny_int8 / "quantization" / "w8a8.json").read_text())
    assert described["recipe_sha256"] == found.recipe.sha256() == RECIPE.sha256()
    calibration = found.calibration
    assert calibration["tiles"] == 4 == sum(i["tiles"] for i in calibration["images"]) and all(
        len(i["sha256"]) == 64 for i in calibration["images"]
    )
    int8 = [name for name, rule in found.rules.items() if rule.weights == "int8"]
    assert len(int8) > 50 and all(found.tensors[f"{name}.weight"].dtype == torch.int8 for name in int8)


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
    import shutil

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
