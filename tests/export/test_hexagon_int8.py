"""Integers on the NPU by all three routes: the same scales give the same error, and no op is left behind."""

import pytest
from f2i_export.export_options import ExportOptions
from f2i_export.write_bundle import export_bundle
from f2i_quantize.ptq.quantize_job import QuantizeOptions, quantize_checkpoint
from f2i_quantize.ptq.recipe import load_recipe
from npu_graphs import needs_compiler

pytestmark = [pytest.mark.slow, needs_compiler]
TARGETS = ("onnx", "tflite", "executorch")


@pytest.mark.parametrize("precision", ["w8a8", "w8a16"])
def test_three_routes_are_within_a_decibel_of_each_other(precision, cache, tmp_path):
    checkpoint = tmp_path / "tiny"
    quantize_checkpoint(QuantizeOptions("tiny", load_recipe(precision).model_copy(update={"tiles": 4}), checkpoint))
    made = ExportOptions(str(checkpoint), tmp_path / "bundle", TARGETS, (precision,), accelerators=("hexagon",), socs=("sm8750",))
    artifacts = export_bundle(made).manifest.artifacts
    assert len(artifacts) == 6
    for artifact in artifacts:
        assert (artifact.delegation.delegated_share, artifact.delegation.partitions, artifact.delegation.fallbacks) == (1.0, 1, ())
    for component in ("feature_encoder", "unet"):
        found = {a.target: a.parity.sqnr_db for a in artifacts if a.component == component}
        assert found["executorch"] == pytest.approx(found["onnx"], abs=1e-3)  # the same binary, in another engine
        assert found["tflite"] == pytest.approx(found["onnx"], abs=1.0), found
        assert min(found.values()) > 20
