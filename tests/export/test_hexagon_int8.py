"""Integers on the NPU: the checkpoint's own scales, under the names and in the ops that the NPU's graph has."""

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from f2i_export.export_options import ExportOptions
from f2i_export.hexagon.shuffled_layers import with_shuffled_layers
from f2i_export.hexagon.to_plain import integer_weights, plain_norms
from f2i_export.write_bundle import export_bundle
from f2i_quantize.ptq.quantized import Quantized
from f2i_quantize.ptq.recipe import Rule, load_recipe
from f2i_quantize.rewrites.hexagon_modules import ShuffledUpsample
from f2i_quantize.rewrites.phone_modules import SubpixelUpsample
from f2i_runtime.errors import UsageError
from f2i_runtime.validation.validate_options import ValidateOptions
from npu_graphs import needs_compiler
from onnx import helper, numpy_helper

import f2i

RULE = Rule(weights="int8", activations="int8")
UP = "unet/up.0"


def quantized(kind="int8", zeros=(0, 0, 0, 0), scales=(0.1, 0.1, 0.1, 0.1)):
    """The quantization of one upsampling with random integers, and what its phases compute with."""
    generator = torch.Generator().manual_seed(0)
    tensors, rules = {}, {"unet/other": RULE}
    for k in range(4):
        name = f"{UP}.phases.{k}"
        rules[name] = RULE.model_copy(update={"activations": kind})
        tensors[f"{name}.weight"] = torch.randint(-127, 128, (6, 4, 2, 2), generator=generator, dtype=torch.int8)
        tensors[f"{name}.weight_scale"] = torch.rand(6, generator=generator) / 100
        tensors[f"{name}.bias"] = torch.randn(6, generator=generator)
        for side in ("input", "output"):
            tensors[f"{name}.{side}_scale"] = torch.tensor(scales[k], dtype=torch.float64)
            tensors[f"{name}.{side}_zero_point"] = torch.tensor(zeros[k], dtype=torch.int32)
    tensors["unet/other.weight"] = torch.ones(1, dtype=torch.int8)
    return Quantized(load_recipe("w8a8"), rules, {}, tensors)


def test_the_integers_of_four_convolutions_are_those_of_one_in_the_shuffle_s_order():
    given = quantized()
    upsample = SubpixelUpsample(torch.nn.Conv2d(4, 6, 3, padding=1)).requires_grad_(False)
    for k, phase in enumerate(upsample.phases):
        name = f"{UP}.phases.{k}"
        phase.weight.copy_(given.tensors[f"{name}.weight"] * given.tensors[f"{name}.weight_scale"][:, None, None, None])
        phase.bias = torch.nn.Parameter(given.tensors[f"{name}.bias"], requires_grad=False)  # they share one until then
    found = with_shuffled_layers(given)
    own = ShuffledUpsample(upsample).conv
    weight = found.tensors[f"{UP}.conv.weight"]
    assert weight.dtype == torch.int8
    assert torch.equal(weight * found.tensors[f"{UP}.conv.weight_scale"][:, None, None, None], own.weight)
    assert torch.equal(found.tensors[f"{UP}.conv.bias"], own.bias)
    assert float(found.tensors[f"{UP}.conv.input_scale"]) == 0.1 and found.tensors["unet/other.weight"].shape == (1,)
    assert found.rules == {"unet/other": RULE, f"{UP}.conv": RULE}


def test_scales_that_differ_become_the_one_that_holds_all_ranges():
    found = with_shuffled_layers(quantized(scales=(0.1, 0.2, 0.1, 0.1), zeros=(-128, 0, 0, 127))).tensors
    scale, zero = float(found[f"{UP}.conv.output_scale"]), int(found[f"{UP}.conv.output_zero_point"])
    low, high = (-128 - zero) * scale, (127 - zero) * scale
    assert low <= -25.6 + scale and high >= 25.5 - scale and abs(scale - 51.1 / 255) < 1e-9
    wide = with_shuffled_layers(quantized("int16", scales=(0.1, 0.3, 0.2, 0.1))).tensors
    assert float(wide[f"{UP}.conv.input_scale"]) == 0.3 and int(wide[f"{UP}.conv.input_zero_point"]) == 0


def test_a_recipe_that_divides_the_four_is_refused():
    given = quantized()
    with pytest.raises(UsageError, match=r"unet/up\.0\.conv: its four convolutions have different rules"):
        with_shuffled_layers(replace(given, rules=given.rules | {f"{UP}.phases.2": Rule(weights="int8", activations="float")}))
    tensors = {name: tensor for name, tensor in given.tensors.items() if ".phases.3." not in name}
    with pytest.raises(UsageError, match="3 of its four convolutions are quantized"):
        with_shuffled_layers(replace(given, tensors=tensors))


def test_a_group_norm_of_opset_21_is_the_same_function_as_an_instance_norm():
    rng = np.random.default_rng(0)
    value = helper.make_tensor_value_info
    weights = [numpy_helper.from_array(rng.random(8, np.float32), name) for name in ("scale", "bias")]
    weights.append(numpy_helper.from_array(rng.integers(-9, 9, (8, 3, 3, 3), np.int8), "w"))
    weights += [numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.int8(0), "z")]
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["weight"]),
        helper.make_node("Conv", ["x", "weight"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("GroupNormalization", ["h", "scale", "bias"], ["g"], num_groups=4, epsilon=1e-5),
        helper.make_node("Sigmoid", ["g"], ["y"]),
    ]
    x, y = value("x", onnx.TensorProto.FLOAT, (1, 3, 6, 5)), value("y", onnx.TensorProto.FLOAT, (1, 8, 6, 5))
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], weights), opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    feed = {"x": rng.random((1, 3, 6, 5), np.float32)}
    before = run(model, feed)
    assert integer_weights(model) == 1 and plain_norms(model) == 1
    onnx.checker.check_model(model, full_check=True)
    assert "GroupNormalization" not in {node.op_type for node in model.graph.node}
    np.testing.assert_allclose(run(model, feed), before, rtol=0, atol=1e-6)
    assert plain_norms(model) == 0


def run(model, feed):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)[0]


@needs_compiler
@pytest.mark.slow
def test_a_quantized_model_on_the_npu_passes_its_gates_and_says_what_integers_cost(cache, tiny_int8, tmp_path):
    bundle = export_bundle(ExportOptions(str(tiny_int8), tmp_path / "b", ("onnx",), ("w8a8",), accelerators=("cpu", "hexagon")))
    for artifact in bundle.manifest.artifacts:
        if npu := artifact.delegation.npu:
            assert artifact.delegation.delegated_share == 1.0 and npu.estimate.ms > 0 and npu.estimate_fp16.ms > 0
    [cost] = f2i.inspect(bundle).npu
    assert [photo.megapixels for photo in cost.photos] == [12, 50, 200] and cost.ms_fp16 > 0
    report = f2i.validate(bundle, ValidateOptions(tiles=4, photos=1))
    assert report.passed, [gate.id for gate in report.failed()]
    gaps = {gate.accelerator: gate.limit for gate in report.gates if gate.figure == "simulated_sqnr_gap_db"}
    assert gaps["hexagon_sm8750"] >= 1.0
    assert json.dumps(report.as_json())
