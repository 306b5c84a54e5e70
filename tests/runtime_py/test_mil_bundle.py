"""Core ML in a bundle: tampering that verify cannot see is caught by validate; a model that fp16 breaks is located and mended; compression."""

import shutil

import coremltools as ct
import coremltools.optimize.coreml as cto
import numpy as np
import pytest
import torch
from f2i_export.export_plan import plan_export
from f2i_export.lowering import LoweringRequest, load_converter, lower
from f2i_export.write_bundle import ExportOptions, export_bundle
from f2i_quantize.models import checkpoint
from f2i_quantize.models.whole_model import build_components
from f2i_quantize.rewrites.capture import rewrite
from f2i_runtime.bundle.store import open_bundle, verify
from f2i_runtime.errors import BundleError, UsageError
from f2i_runtime.metrics.fidelity import relative_l2, sqnr_db
from f2i_runtime.mil import load
from f2i_runtime.mil.judge.find_bad_op import find_bad_op
from f2i_runtime.mil.judge.op_errors import Reference
from f2i_runtime.mil.judge.source_program import load_source
from f2i_runtime.mil.judge.weight_audit import own_weights_error
from f2i_runtime.photo.samples import sample_tiles
from f2i_runtime.targets import Variant
from f2i_runtime.validation import coreml_findings as diagnose
from f2i_runtime.validation.results import BadOpRow, KeptOps, OpError
from f2i_runtime.validation.validate import validate
from f2i_runtime.validation.validate_options import ValidateOptions
from mil_programs import WEIGHTS, attribute, edit, rehash
from published_schema import assert_fits

from f2i.inspection import ane_lines, inspect_bundle


@pytest.fixture(scope="module")
def bundle(cache, tmp_path_factory):
    """The tiny model for Core ML alone; its parts come from the session's export cache."""
    return export_bundle(ExportOptions("tiny", tmp_path_factory.mktemp("coreml") / "tiny", ("coreml",), ("fp32", "fp16")))


def gates(bundle, precision="fp16", **options):
    report = validate(bundle, ValidateOptions(target="coreml", precision=precision, tiles=1, photos=0, **options))
    return {gate.id for gate in report.failed()}, report


def golden(bundle, component):
    """Inputs and output of a component on the first golden tile."""
    call = next(item for item in bundle.manifest.dataflow if item.component == component)
    records = bundle.manifest.golden[0].tensors
    tensors = {name: np.load(bundle.check(record)) for name, record in records.items()}
    return {name: tensors[tensor] for name, tensor in call.inputs.items()}, tensors[call.result]


def in_weights(bundle, package, change):
    """Changes a square weight that the fp16 package stores as the reference holds it (those that absorbed a scale it does not)."""
    file = package / WEIGHTS
    data = file.read_bytes()
    state = torch.export.load(bundle.root / f"reference/{package.stem}.pt2").state_dict.values()
    square = [tensor.detach().half().numpy() for tensor in state if tensor.dim() == 2 and tensor.shape[0] == tensor.shape[1]]
    stored = next(array for array in square if data.count(array.tobytes()) == 1)
    file.write_bytes(data.replace(stored.tobytes(), change(stored.copy()).astype(np.float16).tobytes()))


def flip_a_bit(bundle, package):
    def flip(stored):
        stored.view(np.uint16).flat[5] ^= 1
        return stored

    in_weights(bundle, package, flip)


def swap_axes(bundle, package):
    in_weights(bundle, package, lambda stored: np.ascontiguousarray(stored.T))


def scale(bundle, package):
    in_weights(bundle, package, lambda stored: stored * np.float16(1.05))


def drop_an_operation(_, package):
    def drop(operations):
        gelu = next(item for item in operations if item.type == "gelu")
        for item in operations:
            for argument in item.inputs.values():
                for binding in argument.arguments:
                    if binding.name == gelu.outputs[0].name:
                        binding.name = gelu.inputs["x"].arguments[0].name

    edit(package, drop)


def first(operations, kind):
    return next(item for item in operations if item.type == kind)


def gelu_mode(_, package):
    def change(operations):
        attribute(operations, first(operations, "gelu"), "mode").strings.values[0] = "TANH_APPROXIMATION"

    edit(package, change)


def epsilon(_, package):
    def change(operations):
        attribute(operations, first(operations, "layer_norm"), "epsilon").bytes.values = np.float16(1e-3).tobytes()

    edit(package, change)


TAMPERING = {
    flip_a_bit: "changed_weights", swap_axes: "changed_weights", scale: "changed_weights", drop_an_operation: "sqnr_db",
    gelu_mode: "changed_attributes", epsilon: "changed_attributes",
}  # fmt: skip


@pytest.mark.parametrize("tamper", TAMPERING, ids=lambda tamper: tamper.__name__)
def test_tampering_is_caught_by_verify_and_rehashed_by_validate(tamper, bundle, tmp_path):
    shutil.copytree(bundle.root, tmp_path / "bundle")
    copy = open_bundle(tmp_path / "bundle")
    tamper(copy, copy.root / "coreml/fp16/feature_encoder.mlpackage")
    with pytest.raises(BundleError):
        verify(copy)
    rehash(copy.root)
    copy = open_bundle(copy.root)
    assert verify(copy)
    failed, _ = gates(copy)
    assert f"coreml/fp16 feature_encoder {TAMPERING[tamper]}" in failed


def test_a_sound_bundle_passes_and_every_op_is_in_its_band(bundle):
    for precision in ("fp32", "fp16"):
        failed, report = gates(bundle, precision, find_bad_op=True)
        assert not failed
        assert [row.component for row in report.bad_ops] == ["feature_encoder", "unet"]
        for row in report.bad_ops:
            assert row.first is None and row.keep_fp32 is None
            assert row.compared > 0.7 * (row.compared + row.not_compared)
            assert not row.changed_weights and not row.changed_attributes
        assert_fits("validate", report.as_json())


def test_the_source_is_complete_and_not_counted_as_shipped(bundle):
    artifact = bundle.manifest.artifact("unet", Variant("coreml", "fp16"))
    source = next(record for record in artifact.files if record.path.endswith(".source.pt2"))
    assert artifact.bytes == sum(record.bytes for record in artifact.files) - source.bytes
    assert {path.name for path in bundle.artifact_path(artifact).iterdir()} == {"Manifest.json", "Data"}
    inputs, expected = golden(bundle, "unet")
    program = load_source(bundle.artifact_path(artifact), bundle.root / "reference/unet.pt2")
    outputs = Reference(program, inputs).outputs()
    assert sqnr_db(expected, outputs[0].numpy()) > 90


def test_inspect_names_what_leaves_the_neural_engine(bundle):
    inspection = inspect_bundle(bundle)
    assert_fits("inspect", inspection.as_json())
    rows = {(row.precision, row.component): row.ane for row in inspection.artifacts}
    rules = {broken.rule: broken for broken in rows["fp32", "unet"]}
    assert rules["fp32"].places and rules["fp32"].rewrite and rules["fp32"].source
    assert "fp32" not in {broken.rule for broken in rows["fp16", "unet"]}
    assert any("coreml/fp32 unet: Neural Engine, fp32" in line for line in ane_lines(inspection))


def rescaled_model():
    """The tiny model with one convolution 3000 times as strong: the group norm behind it takes that back, but squares what fp16 cannot hold."""
    model = checkpoint.load("tiny")
    with torch.no_grad():
        convolution = model.unet.down_blocks[0].resnets[0].conv1
        convolution.weight.mul_(3000)
        convolution.bias.mul_(3000)
    return model


def test_a_model_that_fp16_breaks_is_located_and_mended(tmp_path):
    model = rescaled_model()
    component = build_components(model, model.config.tile).components["unet"]
    generator = torch.Generator().manual_seed(0)
    tile = torch.from_numpy(sample_tiles(model.config.tile, 1)[0][1])
    example = [tile if name == "lr" else torch.randn(shape, generator=generator) for name, shape in component.inputs.items()]
    inputs = {name: tensor.numpy() for name, tensor in zip(component.inputs, example, strict=True)}
    module = rewrite(component.module, load_converter("coreml").rewrites, "unet/coreml", [example]).module
    with torch.no_grad():
        expected = component.module(*example).numpy()

    def lowered(options):
        path = tmp_path / "unet.mlpackage"
        weights = component.module.state_dict()
        request = LoweringRequest("unet", module, component.inputs, component.output, example, "fp16", options, path, tmp_path, weights)
        delegation = lower("coreml", request)
        (output,) = load(path)(inputs).values()
        return path, delegation, sqnr_db(expected, output)

    path, _, quality = lowered({})
    assert not quality >= 45
    torch.export.save(torch.export.export(component.module, tuple(example)), tmp_path / "reference.pt2")
    program = load_source(path, tmp_path / "reference.pt2")
    first = find_bad_op(path, program, inputs).first
    assert first is not None and first.operation == "mul" and first.overflowed > 0
    assert first.module == "denoiser.unet.down_blocks.0.resnets.0.norm2 (ExplicitGroupNorm)"
    assert first.reference_magnitude > 65504

    _, delegation, mended = lowered({"keep_fp32": "auto"})
    kept = [fallback.op for fallback in delegation.fallbacks]
    assert mended >= 45 and 1 <= len(kept) <= 8 and first.node in kept
    with pytest.raises(UsageError, match=f"did you mean.*{kept[0]}"):
        lowered({"keep_fp32": f"unet:{kept[0]}x"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"options": (("keep_fp32", "conv"),)}, "COMPONENT:OP"),
        ({"options": (("keep_fp32", "auto"),), "precisions": ("fp32",)}, "applies to fp16"),
        ({"options": (("keep_fp32", "auto"),), "targets": ("onnx",)}, "is for coreml"),
    ],
)
def test_keep_fp32_that_makes_no_sense_is_refused(options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        plan_export(ExportOptions("tiny", tmp_path / "b", **options))


COMPRESSED = {
    "int8": lambda model: cto.linear_quantize_weights(
        model, cto.OptimizationConfig(cto.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=512))
    ),
    "6 bit": lambda model: cto.palettize_weights(
        model, cto.OptimizationConfig(cto.OpPalettizerConfig(mode="uniform", nbits=6, weight_threshold=512))
    ),
    "4 bit": lambda model: cto.palettize_weights(
        model, cto.OptimizationConfig(cto.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=512))
    ),
}


@pytest.mark.parametrize("kind", COMPRESSED)
def test_a_compressed_export_is_torch_with_the_decompressed_weights(kind, bundle, tmp_path):
    package = bundle.artifact_path(bundle.manifest.artifact("unet", Variant("coreml", "fp32")))
    program = load_source(package, bundle.root / "reference/unet.pt2")
    compressed = tmp_path / "unet.mlpackage"
    COMPRESSED[kind](ct.models.MLModel(str(package), skip_model_load=True)).save(str(compressed))
    inputs, expected = golden(bundle, "unet")
    (output,) = load(compressed)(inputs).values()
    assert own_weights_error(compressed, program, inputs) < 1e-3 < relative_l2(expected, output)


def test_figures_that_are_not_finite_are_told_in_words():
    """A reference that overflows has no largest value; telling it once failed on None."""
    lost = OpError(
        op="mul", name="mul_3", where="mul mul_3", node="mul_3", module="block (Block)", rel_l2=None, magnitude=None, reference_magnitude=None,
        overflowed=4, underflowed=0,
    )  # fmt: skip
    row = BadOpRow(
        target="coreml", precision="fp16", component="unet", compared=1, not_compared=0, sqnr_db=None, gate_db=None, worst=lost, first=lost,
        first_accumulated=None, keep_fp32=KeptOps(ops=(), before_db=None, sqnr_db=None, reached=False),
        changed_weights=(), changed_attributes=(),
    )  # fmt: skip
    text = "\n".join(diagnose.describe(row))
    assert "SQNR not finite dB" in text and "largest value not finite, reference not finite, 4 overflowed" in text
    assert "even with every op in fp32 SQNR is only not finite dB" in text


def test_located_rows_are_told_in_words(bundle):
    artifact = bundle.manifest.artifact("feature_encoder", Variant("coreml", "fp16"))
    inputs, _ = golden(bundle, "feature_encoder")
    text = "\n".join(diagnose.describe(diagnose.locate(bundle, artifact, inputs)))
    assert "coreml/fp16 feature_encoder" in text and "by itself: none" in text
