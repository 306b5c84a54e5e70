"""Layers of an artifact are found by their int8 weights, also where several have the same ones."""

import dataclasses

import numpy as np
import pytest
import torch
from f2i_export.lowering import LoweringRequest, lower
from f2i_quantize.ptq.calibrate import ComponentInputs, calibrate_component
from f2i_quantize.ptq.quantized import Quantized, qdq_graph
from f2i_quantize.ptq.recipe import Rule, load_recipe
from f2i_quantize.rewrites.capture import capture
from f2i_runtime.engines.quantized_layers import QuantizedLayer, StoredLayer, pair_layers, with_merged
from f2i_runtime.engines.run_torch import TorchSession, quantized_layers
from f2i_runtime.metrics.fidelity import relative_l2
from f2i_runtime.validation.int8_parity import layer_errors
from torch.nn.functional import silu

LAYERS = ("first", "second", "dead", "gone", "head", "tail")


class Alike(torch.nn.Module):
    """Two convolutions with equal weights, two that are pruned to zero, and a linear that has the weights of another with its rows exchanged."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.dead, self.gone = (torch.nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.head, self.tail = (torch.nn.Linear(4, 4) for _ in range(2))
        self.second.load_state_dict(self.first.state_dict())
        for layer in (self.dead, self.gone):
            layer.weight.data.zero_()
        self.tail.weight.data.copy_(self.head.weight.flip(0))

    def forward(self, x):
        y = silu(self.second(silu(self.first(x))))
        y = silu(self.gone(silu(self.dead(y)))) + y
        return self.tail(silu(self.head(y.flatten(2).transpose(1, 2))))


@pytest.fixture(scope="module")
def alike():
    """The module, its quantization, and what its layers are given and give in the QDQ program."""
    module = Alike().eval()
    tiles = tuple((torch.rand(1, 4, 8, 8),) for _ in range(3))
    recipe = load_recipe("w8a8")
    rules = {f"net/{name}": Rule(weights="int8", activations="int8") for name in LAYERS}
    tensors = calibrate_component(ComponentInputs("net", module, tiles), rules, recipe, lambda *_: None)
    return module, tiles[0], Quantized(recipe, rules, {}, tensors)


@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_layers_with_equal_weights_are_all_found(alike, target, tmp_path):
    module, example, quantized = alike
    torch.export.save(capture(qdq_graph(module, example, "net", quantized, fold=True), example), tmp_path / "net.pt2")
    layers = quantized_layers(TorchSession(tmp_path / "net.pt2", "net", {"x": (1, 4, 8, 8)}, 1), {"x": example[0].numpy()})
    assert sorted(layer.name for layer in layers) == sorted(LAYERS)
    graph = qdq_graph(module, example, "net", quantized, fold=target != "tflite")
    path = tmp_path / f"net.{target}"
    lower(target, LoweringRequest("net", graph, {"x": (1, 4, 8, 8)}, "y", example, "w8a8", {}, path, tmp_path))
    errors = layer_errors(target, path, layers)
    assert set(errors) == set(LAYERS) and max(errors.values()) < 1e-2, errors
    broken = dataclasses.replace(next(layer for layer in layers if layer.name == "second"), scale=1.2)
    errors = layer_errors(target, path, [broken if layer.name == "second" else layer for layer in layers])
    assert {name for name, error in errors.items() if error > 1e-2} == {"second"}


class Fused(torch.nn.Module):
    """Layers with a ReLU behind them, alone, beside another reader, behind a linear, and behind a sum."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.lone, self.shared, self.inner, self.added = (torch.nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.head, self.tail = torch.nn.Linear(4, 6), torch.nn.Linear(6, 4)

    def forward(self, x):
        shared = self.shared(torch.relu(self.lone(x)))
        y = torch.relu(self.added(torch.relu(self.inner(torch.relu(shared)))) + shared)
        return self.tail(torch.relu(self.head(y.flatten(2).transpose(1, 2))))


@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_a_layer_is_compared_behind_the_relu_that_kernels_compute_with_it(target, tmp_path):
    module, tiles = Fused().eval(), tuple((torch.rand(1, 4, 8, 8),) for _ in range(3))
    names = ("lone", "shared", "inner", "added", "head", "tail")
    rules = {f"net/{name}": Rule(weights="int8", activations="int8") for name in names}
    tensors = calibrate_component(ComponentInputs("net", module, tiles), rules, load_recipe("w8a8"), lambda *_: None)
    quantized, example = Quantized(load_recipe("w8a8"), rules, {}, tensors), tiles[0]
    for name in ("lone", "inner", "head"):  # nothing of the grid is spent on what the ReLU takes away
        assert int(tensors[f"net/{name}.output_zero_point"]) == -128
    assert int(tensors["net/shared.output_zero_point"]) > -128 and int(tensors["net/added.output_zero_point"]) > -128
    assert float(tensors["net/shared.input_scale"]) == float(tensors["net/lone.output_scale"])
    torch.export.save(capture(qdq_graph(module, example, "net", quantized, fold=True), example), tmp_path / "net.pt2")
    layers = quantized_layers(TorchSession(tmp_path / "net.pt2", "net", {"x": (1, 4, 8, 8)}, 1), {"x": example[0].numpy()})
    assert {layer.name for layer in layers if layer.output.min() == 0} == {"lone", "inner", "head"}
    path = tmp_path / f"net.{target}"
    graph = qdq_graph(module, example, "net", quantized, fold=target != "tflite")
    lower(target, LoweringRequest("net", graph, {"x": (1, 4, 8, 8)}, "y", example, "w8a8", {}, path, tmp_path))
    errors = layer_errors(target, path, layers)
    assert set(errors) == set(names) and max(errors.values()) < 1e-2, errors


def quantized_layer(name, weight, scale, zero=0, given=0):
    shape = np.zeros((1, 2), np.int8)
    return QuantizedLayer(name, "linear", np.int8(weight), shape + np.int8(given), shape, scale, zero)


def test_equal_weights_are_told_apart_by_the_grid_and_then_by_the_order():
    layers = [quantized_layer("a", [[1, 2]], 0.1), quantized_layer("b", [[1, 2]], 0.2), quantized_layer("c", [[2, 1]], 0.3, 5)]
    stored = [StoredLayer(np.int8([[1], [2]]), scale, zero) for scale, zero in ((0.3, 5), (0.9, 0), (0.2, 0), (0.2, 0))]
    assert [layer and layer.name for layer in pair_layers(layers, stored)] == ["c", "a", "b", None]
    assert pair_layers(layers, [StoredLayer(np.int8([[1, 3]]), 0.1, 0)]) == [None]


def test_a_layer_that_a_converter_merged_has_the_output_of_its_twin():
    layers = [quantized_layer("a", [[1, 2]], 0.1), quantized_layer("b", [[1, 2]], 0.1), quantized_layer("c", [[1, 2]], 0.1, given=3)]
    outputs = {"a": np.ones((1, 2), np.float32)}
    assert set(with_merged(layers, outputs)) == {"a", "b"}
    assert relative_l2(outputs["a"], with_merged(layers, outputs)["b"]) == 0
