"""Saved packages: numbers against torch, compressed weights, attributes that were changed, and everything that can be wrong with a file."""

import json
import os
import shutil
import struct

import coremltools as ct
import coremltools.optimize.coreml as cto
import numpy as np
import pytest
import torch
from coremltools.proto import Model_pb2
from f2i_runtime.engines.session import open_session
from f2i_runtime.errors import MilError, ToolchainError
from f2i_runtime.mil import load
from f2i_runtime.mil.predict import install
from f2i_runtime.targets import Variant
from hypothesis import given, settings
from hypothesis import strategies as st
from mil_programs import convert, only, relative, sample

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The network, its converted model and the package it was saved to."""
    net, model = convert()
    path = tmp_path_factory.mktemp("saved") / "net.mlpackage"
    model.save(str(path))
    return net, model, path


@pytest.fixture
def copy(saved, tmp_path):
    path = tmp_path / "copy.mlpackage"
    shutil.copytree(saved[2], path)
    return path


def edit(path, change):
    """Rewrites the model file after ``change(operations, model)``."""
    file = path / MODEL
    model = Model_pb2.Model()
    model.ParseFromString(file.read_bytes())
    (function,) = model.mlProgram.functions.values()
    change(function.block_specializations[function.opset].operations, model)
    file.write_bytes(model.SerializeToString())


def run(path, mode="declared", seed=0):
    evaluator = load(path, mode=mode)
    (name,) = evaluator.inputs
    return only(evaluator({name: sample(seed)}))


def reference(net, seed=0):
    with torch.no_grad():
        return net(torch.tensor(sample(seed))).numpy()


def test_float32_equals_torch(saved):
    net, _, path = saved
    assert relative(run(path), reference(net)) < 3e-6


@pytest.mark.parametrize("target", [ct.target.iOS15, ct.target.iOS17])
def test_float16_costs_what_float16_costs(target, tmp_path):
    net, model = convert(target, ct.precision.FLOAT16)
    path = tmp_path / "half.mlpackage"
    model.save(str(path))
    want = reference(net)
    ideal, declared, pessimistic = (relative(run(path, mode), want) for mode in ("fp32", "declared", "fp16-accumulate"))
    assert ideal < declared < pessimistic < 1e-2
    assert declared > 1e-5


def test_session_is_the_engines_interface(saved):
    net, _, path = saved
    evaluator = load(path)
    shapes = {name: item.shape for name, item in evaluator.inputs.items()}
    session = open_session(Variant("coreml", "fp32"), path, component="net", inputs=shapes, threads=1)
    (name,) = shapes
    got = session.run({name: sample()})
    assert got.dtype == np.float32
    assert "evaluator" in session.engine
    assert relative(got, reference(net)) < 3e-6
    session.close()
    with pytest.raises(ToolchainError, match="expected"):
        open_session(Variant("coreml", "fp32"), path, component="net", inputs={name: (1, 3, 9, 9)})


def test_predict_is_coremltools_own(saved):
    net, _, path = saved
    undo = install()
    try:
        model = ct.models.MLModel(str(path))
        (name,) = (item.name for item in model.get_spec().description.input)
        assert relative(only(model.predict({name: sample()})), reference(net)) < 3e-6
    finally:
        undo()


def quantized(model, **options):
    return cto.linear_quantize_weights(model, cto.OptimizationConfig(cto.OpLinearQuantizerConfig(weight_threshold=10, **options)))


def palettized(model, **options):
    return cto.palettize_weights(model, cto.OptimizationConfig(cto.OpPalettizerConfig(mode="uniform", weight_threshold=10, **options)))


def pruned(model):
    return cto.prune_weights(model, cto.OptimizationConfig(cto.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=10)))


COMPRESSIONS = {
    "int8": (ct.target.iOS16, quantized),
    "int8 asymmetric": (ct.target.iOS16, lambda model: quantized(model, mode="linear")),
    "6 bit": (ct.target.iOS16, lambda model: palettized(model, nbits=6)),
    "sparse": (ct.target.iOS16, pruned),
    "int4 blocks": (ct.target.iOS18, lambda model: quantized(model, dtype="int4", granularity="per_block", block_size=8)),
    "4 bit groups": (ct.target.iOS18, lambda model: palettized(model, nbits=4, granularity="per_grouped_channel", group_size=4)),
    "3 bit": (ct.target.iOS18, lambda model: palettized(model, nbits=3)),
    "sparse iOS 18": (ct.target.iOS18, pruned),
}


@pytest.fixture(scope="module")
def models():
    return {target: convert(target) for target in (ct.target.iOS16, ct.target.iOS18)}


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_compressed_weights_are_what_coremltools_decompresses(name, models, tmp_path):
    target, compress = COMPRESSIONS[name]
    net, model = models[target]
    small = compress(model)
    whole = cto.decompress_weights(small)
    for kind, item in (("small", small), ("whole", whole)):
        item.save(str(tmp_path / f"{kind}.mlpackage"))
    spec = small.get_spec().SerializeToString()
    assert b"constexpr_" in spec
    got, want = run(tmp_path / "small.mlpackage"), run(tmp_path / "whole.mlpackage")
    assert relative(got, want) < 1e-5
    assert 1e-4 < relative(got, reference(net)) < 0.9


def value_of(operations, name):
    return next(item for item in operations if item.outputs[0].name == name).attributes["val"].immediateValue.tensor


def attribute(operations, kind, name):
    """The literal of an operation's attribute, wherever the file keeps it."""
    operation = next(item for item in operations if item.type == kind)
    argument = operation.inputs[name].arguments[0]
    return argument.value.immediateValue.tensor if argument.WhichOneof("binding") == "value" else value_of(operations, argument.name)


def another_gelu(operations, _):
    attribute(operations, "gelu", "mode").strings.values[0] = "SIGMOID_APPROXIMATION"


def another_epsilon(operations, _):
    tensor = attribute(operations, "layer_norm", "epsilon")
    tensor.floats.values[0] *= 100


@pytest.mark.parametrize("change", [another_gelu, another_epsilon])
def test_a_changed_attribute_changes_the_numbers(change, saved, copy):
    edit(copy, change)
    assert relative(run(copy), run(saved[2])) > 1e-4


def test_a_changed_perm_does_not_pass(saved, copy):
    def change(operations, _):
        values = attribute(operations, "transpose", "perm").ints.values
        values[0], values[-1] = values[-1], values[0]

    edit(copy, change)
    try:
        got = run(copy)
    except MilError as error:
        assert "transpose" in str(error)
    else:
        assert relative(got, run(saved[2])) > 1e-3


def truncate(path):
    os.truncate(path / WEIGHTS, (path / WEIGHTS).stat().st_size // 2)


def no_weights(path):
    (path / WEIGHTS).unlink()


def wrong_magic(path):
    data = bytearray((path / WEIGHTS).read_bytes())
    data[64:68] = b"\0\0\0\0"
    (path / WEIGHTS).write_bytes(data)


def wrong_version(path):
    data = bytearray((path / WEIGHTS).read_bytes())
    data[4] = 9
    (path / WEIGHTS).write_bytes(data)


def offset_past_the_end(path):
    def change(operations, _):
        stored = next(item for item in operations if item.attributes["val"].HasField("blobFileValue"))
        stored.attributes["val"].blobFileValue.offset = 1 << 40

    edit(path, change)


def weights_elsewhere(path):
    def change(operations, _):
        stored = next(item for item in operations if item.attributes["val"].HasField("blobFileValue"))
        stored.attributes["val"].blobFileValue.fileName = "@model_path/../../../../etc/passwd"

    edit(path, change)


def absurd_shape(path):
    def change(operations, _):
        stored = next(item for item in operations if item.attributes["val"].HasField("blobFileValue"))
        for kind in (stored.attributes["val"].type, stored.outputs[0].type):
            kind.tensorType.dimensions[0].constant.size = 1 << 50

    edit(path, change)


def many_names_for_one_weight(path):
    """Half a megabyte that 4000 constants claim, each read by an operation of its own."""
    with open(path / WEIGHTS, "ab") as file:
        file.write(b"\0" * (-file.tell() % 64))
        place, size = file.tell(), 1 << 19
        file.write(struct.pack("<IIQQQ32x", 0xDEADBEEF, 2, size, place + 64, 0) + b"\0" * size)

    def change(operations, _):
        stored = next(item for item in operations if item.attributes["val"].HasField("blobFileValue"))
        relu = next(item for item in operations if item.type == "gelu")
        for number in range(4000):
            constant, reader = operations.add(), operations.add()
            constant.CopyFrom(stored)
            constant.attributes["val"].blobFileValue.offset = place
            for kind in (constant.attributes["val"].type, constant.outputs[0].type):
                del kind.tensorType.dimensions[1:]
                kind.tensorType.rank, kind.tensorType.dimensions[0].constant.size = 1, size // 4
            constant.outputs[0].name = f"again_{number}"
            reader.CopyFrom(relu)
            reader.type = "relu"
            for key in [key for key in reader.inputs if key != "x"]:
                del reader.inputs[key]
            reader.inputs["x"].arguments[0].name = f"again_{number}"
            reader.outputs[0].name = f"read_{number}"
            reader.outputs[0].type.CopyFrom(constant.outputs[0].type)

    edit(path, change)


def cycle(path):
    def change(operations, _):
        gelu = next(item for item in operations if item.type == "gelu")
        gelu.inputs["x"].arguments[0].name = gelu.outputs[0].name

    edit(path, change)


def missing_input(path):
    def change(operations, _):
        next(item for item in operations if item.type == "gelu").inputs["x"].arguments[0].name = "nowhere"

    edit(path, change)


def lacking_parameter(path):
    def change(operations, _):
        del next(item for item in operations if item.type == "conv").inputs["weight"]

    edit(path, change)


def unknown_operation(path):
    def change(operations, _):
        next(item for item in operations if item.type == "gelu").type = "frobnicate"

    edit(path, change)


def unknown_attribute(path):
    def change(operations, _):
        gelu = next(item for item in operations if item.type == "gelu")
        gelu.inputs["novelty"].CopyFrom(gelu.inputs["x"])

    edit(path, change)


def unknown_opset(path):
    def change(_, model):
        next(iter(model.mlProgram.functions.values())).opset = "CoreML99"

    edit(path, change)


def no_protobuf(path):
    (path / MODEL).write_bytes(b"\xff" * 100)


def zip_slip(path):
    file = path / "Manifest.json"
    manifest = json.loads(file.read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = "../../../etc/passwd"
    file.write_text(json.dumps(manifest))


def link_outside(path):
    target = path.parent / "outside.bin"
    shutil.move(path / WEIGHTS, target)
    (path / WEIGHTS).symlink_to(target)


def no_manifest(path):
    (path / "Manifest.json").write_text("[]")


FAULTS = {
    truncate: "truncated|outside", no_weights: "cannot be read", wrong_magic: "corrupted", wrong_version: "version",
    offset_past_the_end: "outside", weights_elsewhere: "inside the package", absurd_shape: "elements|needs", cycle: "gelu",
    many_names_for_one_weight: "64 times",
    missing_input: "nowhere", lacking_parameter: "weight", unknown_operation: "frobnicate.*iOS 18", unknown_attribute: "novelty",
    unknown_opset: "CoreML99", no_protobuf: "not a Core ML model", zip_slip: "inside the package", link_outside: "outside the package",
    no_manifest: "root model",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_malformed_package_is_one_clear_error(fault, copy):
    fault(copy)
    with pytest.raises(MilError, match=FAULTS[fault]) as caught:
        run(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inputs", [{}, {"other": sample()}, "shape", "text"], ids=["missing", "unknown", "misshapen", "text"])
def test_wrong_inputs_are_refused(inputs, saved):
    evaluator = load(saved[2])
    (name,) = evaluator.inputs
    given = {"shape": {name: sample()[:, :, :4]}, "text": {name: np.array("x")}}.get(inputs, inputs) if isinstance(inputs, str) else inputs
    with pytest.raises(MilError, match="input"):
        evaluator(given)


def test_unknown_mode_and_function_are_refused(saved):
    with pytest.raises(MilError, match="mode"):
        load(saved[2], mode="fp8")
    with pytest.raises(MilError, match="no function"):
        load(saved[2], function="other")


@settings(max_examples=40, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_of_the_model_file_never_escapes_as_another_error(saved, place, bit, tmp_path_factory):
    path = tmp_path_factory.mktemp("flip") / "net.mlpackage"
    shutil.copytree(saved[2], path)
    file = path / MODEL
    data = bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    file.write_bytes(data)
    try:
        run(path)
    except MilError as error:
        assert str(error)


def test_a_flipped_exponent_in_the_weights_changes_the_numbers(saved, copy):
    file = copy / WEIGHTS
    data = bytearray(file.read_bytes())
    data[128 + 3] ^= 0x40
    file.write_bytes(data)
    got = run(copy)
    assert not np.isfinite(got).all() or relative(got, run(saved[2])) > 1e-3
