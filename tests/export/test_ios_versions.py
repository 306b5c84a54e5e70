"""The oldest system of a Core ML package: what is asked for is in the package, and what a precision needs more than is refused in one line."""

import numpy as np
import pytest
import torch
from f2i_export.export_options import ExportOptions, check_request
from f2i_export.lowering import LoweringRequest, load_converter, lower
from f2i_quantize.models.checkpoint import load
from f2i_quantize.models.whole_model import build_components
from f2i_quantize.ptq.calibrate import ComponentInputs, calibrate_component
from f2i_quantize.ptq.quantized import Quantized, qdq_graph
from f2i_quantize.ptq.recipe import Rule, load_recipe
from f2i_quantize.rewrites.passes import apply
from f2i_runtime.bundle.store import open_bundle
from f2i_runtime.errors import UsageError
from f2i_runtime.mil import load as load_package
from f2i_runtime.mil.format.package import Package
from f2i_runtime.mil.format.program import decode
from f2i_runtime.targets import find_target

from f2i.inspection import inspect_bundle


def opset(path):
    with Package(path) as package:
        return decode(package).opset


def agrees(path, inputs, expected, limit):
    expected = expected.detach()
    [value] = load_package(path)({name: tensor.numpy() for name, tensor in inputs.items()}).values()
    return np.linalg.norm(value - expected.numpy()) / np.linalg.norm(expected.numpy()) < limit


@pytest.mark.parametrize("component", ["feature_encoder", "unet"])
@pytest.mark.parametrize("ios", ["16", "17"])
def test_a_float_package_is_of_the_system_asked_for(component, ios, tmp_path):
    part = build_components(load("tiny"), 32).components[component]
    *_, (_, _, module) = apply(part.module, load_converter("coreml").rewrites)
    torch.manual_seed(0)
    inputs = {name: torch.rand(shape) for name, shape in part.inputs.items()}
    path = tmp_path / "part.mlpackage"
    lower(
        "coreml",
        LoweringRequest(component, module, part.inputs, part.output, list(inputs.values()), "fp16", {"ios": ios}, path, tmp_path),
    )
    assert opset(path) == int(ios)
    with torch.no_grad():
        assert agrees(path, inputs, part.module(*inputs.values()), 1e-2)


@pytest.mark.parametrize(("precision", "activations", "ios"), [("w8a8", "int8", "17"), ("w8", "float", "17")])
def test_a_quantized_package_is_of_the_system_asked_for(precision, activations, ios, tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 3, 3, padding=1)).eval()
    tiles, recipe = tuple((torch.rand(1, 3, 16, 16),) for _ in range(2)), load_recipe(precision)
    rules = {f"net/{name}": Rule(weights="int8", activations=activations) for name in ("0", "2")}
    quantized = Quantized(recipe, rules, {}, calibrate_component(ComponentInputs("net", net, tiles), rules, recipe, lambda *_: None))
    graph = qdq_graph(net, tiles[0], "net", quantized, fold=True)
    path = tmp_path / "net.mlpackage"
    lower("coreml", LoweringRequest("net", graph, {"x": (1, 3, 16, 16)}, "y", tiles[0], precision, {"ios": ios}, path, tmp_path))
    assert opset(path) == int(ios)
    assert agrees(path, {"x": tiles[0][0]}, graph(*tiles[0]), 1e-2)


@pytest.mark.parametrize("ios", ["16", "17"])
def test_a_package_of_palettes_is_of_the_system_asked_for(ios, tmp_path):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(32, 3, 3, padding=1)).eval()
    tile, path, bits = torch.rand(1, 3, 16, 16), tmp_path / "net.mlpackage", {"0": 4, "2": 6}
    inputs = {"x": (1, 3, 16, 16)}
    lower("coreml", LoweringRequest("net", net, inputs, "y", [tile], "p4", {"ios": ios}, path, tmp_path, palettes=bits))
    assert opset(path) == int(ios)
    assert agrees(path, {"x": tile}, net(tile), 0.2)


@pytest.mark.parametrize("precision", ["w8", "w8a8", "w8a8-mixed"])
def test_a_precision_that_needs_more_is_refused(precision, tmp_path):
    with pytest.raises(UsageError, match=rf"option ios=16: {precision} needs iOS 17 \(macOS 14\) or later; use --ios 17"):
        check_request(ExportOptions("tiny", tmp_path, ("coreml",), ("fp16", precision), options=(("ios", "16"),)))
    check_request(ExportOptions("tiny", tmp_path, ("coreml", "onnx"), ("fp16", precision), options=(("ios", "17"),)))


def test_a_system_that_is_not_known_or_has_no_package_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"option ios=15 is unknown for coreml; it takes: .*ios=16\|17\|18"):
        check_request(ExportOptions("tiny", tmp_path, ("coreml",), options=(("ios", "15"),)))
    with pytest.raises(UsageError, match="option ios=17 is for coreml, got onnx"):
        check_request(ExportOptions("tiny", tmp_path, ("onnx",), options=(("ios", "17"),)))


def test_manifest_and_inspection_say_what_an_artifact_needs(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    needs = {(a.target, a.needs) for a in bundle.manifest.artifacts}
    assert needs == {("coreml", "iOS 18 (macOS 15)"), ("executorch", ""), ("tflite", ""), ("onnx", "")}
    assert {(row.target, row.needs) for row in inspect_bundle(bundle).artifacts} == needs
    assert find_target("coreml").needs({"ios": "16"}) == "iOS 16 (macOS 13)"
    assert find_target("executorch").needs({"delegate": "coreml"}) == "iOS 18 (macOS 15)"
