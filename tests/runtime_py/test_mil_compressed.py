"""Quantized Core ML exports: static int8 op by op, compressed weights beside torch with the same weights, and scales that are a little wrong."""

import dataclasses
import shutil
import struct

import numpy as np
import pytest
import torch
from f2i_export.lowering import LoweringRequest, load_converter, lower
from f2i_export.write_bundle import ExportOptions, export_bundle
from f2i_quantize.models import checkpoint
from f2i_quantize.models.whole_model import build_components
from f2i_quantize.ptq.calibrate import ComponentInputs, calibrate_component, component_layers
from f2i_quantize.ptq.quantize_job import QuantizeOptions, quantize_checkpoint
from f2i_quantize.ptq.quantized import Quantized, palettes, qdq_graph
from f2i_quantize.ptq.recipe import load_recipe
from f2i_quantize.rewrites.capture import rewrite
from f2i_quantize.rewrites.passes import rewritten
from f2i_runtime.bundle.store import open_bundle, verify
from f2i_runtime.errors import BundleError
from f2i_runtime.mil.judge.attribute_audit import audit_attributes
from f2i_runtime.mil.judge.find_bad_op import find_bad_op
from f2i_runtime.mil.judge.source_program import load_source
from f2i_runtime.mil.judge.weight_audit import audit_weights, own_weights_error
from f2i_runtime.photo.samples import sample_tiles
from f2i_runtime.validation.validate import validate
from f2i_runtime.validation.validate_options import ValidateOptions
from mil_programs import WEIGHTS, attribute, edit, rehash

FORCED, OWN = 1e-2, 1e-3
ENCODER = "feature_encoder"


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A package, the program it was converted from, and an input."""

    path: object
    program: object
    inputs: dict


@pytest.fixture(scope="module")
def lowered(tmp_path_factory):
    """The tiny feature encoder, quantized on two tiles and lowered; by precision."""
    folder, made = tmp_path_factory.mktemp("compressed"), {}
    model = checkpoint.load("tiny")
    component = build_components(model, model.config.tile).components[ENCODER]
    tiles = [(torch.from_numpy(tile),) for _, tile in sample_tiles(model.config.tile, 2)]
    torch.export.save(torch.export.export(component.module, tiles[0]), folder / "reference.pt2")
    module = rewrite(component.module, load_converter("coreml").rewrites, f"{ENCODER}/coreml", tiles[:1]).module
    part = ComponentInputs(ENCODER, rewritten(component.module), tuple(tiles))
    for name in ("w8a8", "w8", "p4"):
        recipe = load_recipe(name)
        rules = recipe.resolve(component_layers(part))
        quantized = Quantized(recipe, rules, {}, calibrate_component(part, rules, recipe, lambda *_: None))
        tables = {item.path: item.bits for item in palettes(quantized, ENCODER)}
        graph = module if tables else qdq_graph(module, tiles[0], ENCODER, quantized, fold=True)
        path, weights = folder / f"{name}.mlpackage", component.module.state_dict()
        inputs, output = component.inputs, component.output
        lower("coreml", LoweringRequest(ENCODER, graph, inputs, output, tiles[0], name, {}, path, folder, weights, tables))
        made[name] = Lowered(path, load_source(path, folder / "reference.pt2"), {"lr": tiles[0][0].numpy()})
    return made


def test_static_int8_holds_op_by_op_and_every_quantize_is_compared(lowered):
    found = lowered["w8a8"]
    report = find_bad_op(found.path, found.program, found.inputs)
    assert report.first is None
    # Against scales that are not rounded to fp16 as the package's are, whole steps would differ: 1.1e-2 in a large model.
    assert report.worst.rel_l2 <= FORCED / 4
    kinds = [comparison.operation for comparison in report.comparisons]
    assert kinds.count("quantize") == 10 == kinds.count("dequantize")
    assert report.unmatched <= 7  # transposes, which a pass renames
    assert report.comparisons[-1].value == "context"
    assert audit_attributes(found.path, found.program) == []


def spoiled(source, tmp_path, kind, number):
    """A copy of the package ``source`` with the scale of the ``number``-th operation of a kind 5 % larger, of all that share it."""

    def change(operations):
        tensor = attribute(operations, [item for item in operations if item.type == kind][number], "scale")
        tensor.bytes.values = (np.frombuffer(tensor.bytes.values, np.float16) * np.float16(1.05)).tobytes()

    path = tmp_path / "spoiled.mlpackage"
    shutil.copytree(source, path)
    edit(path, change)
    return path


@pytest.mark.parametrize("number", [0, 3, 9])
@pytest.mark.parametrize("kind", ["quantize", "dequantize"])
def test_a_scale_wrong_by_5_percent_is_out_of_band_and_audited(kind, number, lowered, tmp_path):
    found = lowered["w8a8"]
    path = spoiled(found.path, tmp_path, kind, number)
    report = find_bad_op(path, found.program, found.inputs)
    assert report.worst.rel_l2 > 2 * FORCED
    assert report.first.operation in ("quantize", "dequantize")
    assert {item.attribute for item in audit_attributes(path, found.program)} == {"scale"}


def stored(package, operation, key):
    """Where a weight file keeps an operation's operand: first byte and number of bytes."""
    with open(package / WEIGHTS, "rb") as file:
        file.seek(operation.inputs[key].arguments[0].value.blobFileValue.offset + 8)
        size, place = struct.unpack("<QQ", file.read(16))
    return place, size


def spoiled_weight(found, tmp_path, kind, key, dtype, change):
    """The package with an operand of the first decompression of a kind changed in the weight file."""
    path = tmp_path / "spoiled.mlpackage"
    shutil.copytree(found.path, path)
    place = []
    edit(path, lambda operations: place.extend(stored(path, next(item for item in operations if item.type == kind), key)))
    data = bytearray((path / WEIGHTS).read_bytes())
    part = slice(place[0], place[0] + place[1])
    data[part] = change(np.frombuffer(data[part], dtype).copy()).astype(dtype).tobytes()
    (path / WEIGHTS).write_bytes(data)
    return path


def changed(path, found):
    return [item for item in audit_weights(path, found.program).compared if not item.exact]


@pytest.mark.parametrize("precision", ["w8a8", "w8"])
def test_a_weight_scale_wrong_by_5_percent_is_audited(precision, lowered, tmp_path):
    found = lowered[precision]
    assert changed(found.path, found) == []
    kind = "constexpr_blockwise_shift_scale"
    (wrong,) = changed(spoiled_weight(found, tmp_path, kind, "scale", np.float16, lambda scale: scale * np.float16(1.05)), found)
    assert wrong.rel_l2 == pytest.approx(0.05, rel=0.02)
    if precision == "w8a8":
        report = find_bad_op(
            spoiled_weight(found, tmp_path / "again", kind, "scale", np.float16, lambda scale: scale * 1.05), found.program, found.inputs
        )
        assert report.worst.rel_l2 > 2 * FORCED


@pytest.mark.parametrize("precision", ["w8", "p4"])
def test_compressed_weights_are_all_that_differs(precision, lowered):
    found = lowered[precision]
    assert own_weights_error(found.path, found.program, found.inputs) <= OWN
    assert changed(found.path, found) == []
    kinds = {item.storage for item in audit_weights(found.path, found.program).compared}
    assert {"w8": "constexpr_blockwise_shift_scale", "p4": "constexpr_lut_to_dense"}[precision] in kinds


def flip_one(indices):
    indices[0] ^= 0x3C
    return indices


@pytest.mark.parametrize(("key", "dtype", "change"), [("indices", np.uint8, flip_one), ("lut", np.float16, lambda lut: lut * 1.05)])
def test_a_changed_palette_is_audited(key, dtype, change, lowered, tmp_path):
    found = lowered["p4"]
    path = spoiled_weight(found, tmp_path, "constexpr_lut_to_dense", key, dtype, change)
    assert len(changed(path, found)) == 1


@pytest.mark.slow
def test_a_quantized_bundle_is_validated_op_by_op_and_a_wrong_scale_falls(cache, tmp_path):
    source = "tiny"
    for name in ("w8a8", "w8", "p6"):
        quantize_checkpoint(QuantizeOptions(str(source), load_recipe(name).model_copy(update={"tiles": 4}), tmp_path / name))
        source = tmp_path / name
    bundle = export_bundle(ExportOptions(str(source), tmp_path / "bundle", ("coreml",), ("w8a8", "w8", "p6")))
    report = validate(bundle, ValidateOptions(tiles=2, photos=0))
    values = {gate.id: gate for gate in report.gates}
    for name in ("coreml/w8a8 unet forced_rel_l2", "coreml/w8 unet own_weights_rel_l2", "coreml/p6 unet own_weights_rel_l2"):
        assert values[name].passed and values[name].value > 0
    assert all(gate.passed for gate in report.gates if gate.figure in ("changed_weights", "changed_attributes"))
    package = bundle.root / f"coreml/w8a8/{ENCODER}.mlpackage"
    shutil.copytree(package, tmp_path / "before.mlpackage")
    shutil.rmtree(package)
    spoiled(tmp_path / "before.mlpackage", tmp_path, "dequantize", 3).rename(package)
    with pytest.raises(BundleError):
        verify(open_bundle(bundle.root))
    rehash(bundle.root)
    bundle = open_bundle(bundle.root)
    assert verify(bundle)
    report = validate(bundle, ValidateOptions(precision="w8a8", tiles=1, photos=0))
    failed = {gate.id for gate in report.failed()}
    assert {f"coreml/w8a8 {ENCODER} forced_rel_l2", f"coreml/w8a8 {ENCODER} changed_attributes"} <= failed
