"""LiteRT's GPU delegate: the CPU's own files on the GPU alone, in float32 and in half precision, and one line for what it refuses."""

import json
import subprocess
import sys

import numpy as np
import pytest
from f2i_export.export_options import ExportOptions, check_request
from f2i_export.write_bundle import export_bundle
from f2i_runtime.bundle.store import open_bundle
from f2i_runtime.engines.run_gpu import delegation, open_session
from f2i_runtime.errors import BundleError, ToolchainError, UsageError
from f2i_runtime.gpu.drivers import Driver, has_gpu
from f2i_runtime.gpu.gpu_child import GpuChild, GpuFile, Refusal, read_refusals, seconds
from f2i_runtime.pipeline import choose_variant
from f2i_runtime.targets import Selection, Variant, opened_as, stored_as, target_of
from f2i_runtime.validation.validate import validate
from f2i_runtime.validation.validate_options import ValidateOptions
from gpu_files import FiveAxes, Squares, convert, needs_driver
from typer.testing import CliRunner

from f2i.cli import app

SHAPES = {"x": (1, 4, 8, 8)}
LOG = """INFO: [delegate.cc:1] hello
ERROR: Following operations are not supported by GPU delegate:
RESHAPE: Tensor dimensions must be less than 5. unet/up_0;13
TRANSPOSE: Permutation for transpose is invalid.
673 operations will run on the GPU, and the remaining 122 operations will run on the CPU.
I0000 kernel.cc:984] Initializing.
"""


@pytest.fixture
def software(monkeypatch, tmp_path):
    """The pinned drivers, whatever the machine has, and a place for logs."""
    monkeypatch.setenv("F2I_GPU", "software")
    monkeypatch.setenv("F2I_CACHE", str(tmp_path / "cache"))


def test_a_gpu_opens_the_cpu_s_artifacts():
    cpu, single, half = (Variant("tflite", "fp32", a) for a in ("cpu", "gpu_fp32", "gpu_fp16"))
    assert opened_as(cpu) == (single, half) and stored_as(half) == cpu == stored_as(cpu)
    assert opened_as(Variant("onnx", "fp32")) == () and opened_as(single) == ()
    assert Selection(accelerator="gpu").takes(half) and not Selection(accelerator="gpu_fp32").takes(half)
    assert str(half) == "tflite/fp32/gpu_fp16" and target_of(half).computes_half and not target_of(single).computes_half


def test_a_bundle_s_variants_on_a_gpu_are_there_when_they_are_asked_for(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    asked = bundle.manifest.variants(Selection(accelerator="gpu"))
    assert [str(v) for v in asked] == [f"tflite/{p}/gpu_{a}" for p in ("fp32", "fp16") for a in ("fp32", "fp16")]
    assert not any(v.accelerator.startswith("gpu") for v in bundle.manifest.variants())
    assert bundle.manifest.artifact("unet", asked[0]).variant == Variant("tflite", "fp32")
    assert bundle.manifest.artifacts_of(asked[0]) == bundle.manifest.artifacts_of(Variant("tflite", "fp32"))
    assert choose_variant(bundle, Selection(accelerator="gpu_fp16")).accelerator == "gpu_fp16"
    with pytest.raises(BundleError, match="no onnx/any precision/gpu in it"):
        choose_variant(bundle, Selection("onnx", accelerator="gpu"))
    assert [target_of(v).judged_as(v.precision) for v in asked] == ["fp32", "fp16", "fp16", "fp16"]
    assert bundle.manifest.gates.sqnr_gap_db(asked[0]) == 1.0


def test_nothing_is_exported_for_a_gpu(tmp_path):
    with pytest.raises(UsageError, match="'gpu' opens tflite's artifacts for cpu, so there is nothing to export for it"):
        check_request(ExportOptions("tiny", tmp_path / "out", ("tflite",), accelerators=("gpu",)))
    with pytest.raises(UsageError, match="accelerator 'gpu' is not available for onnx"):
        check_request(ExportOptions("tiny", tmp_path / "out", ("onnx",), accelerators=("gpu",)))


def test_what_the_delegate_refuses_is_read_from_its_log():
    found = read_refusals(LOG)
    assert (found.taken, found.left) == (673, 122)
    assert found.refusals == (
        Refusal("RESHAPE", "Tensor dimensions must be less than 5", "unet/up_0;13"),
        Refusal("TRANSPOSE", "Permutation for transpose is invalid", ""),
    )
    assert read_refusals("INFO: nothing\n") is None


@pytest.mark.parametrize("text", ["0", "-1", "soon", "inf", "nan"])
def test_a_limit_of_time_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv("F2I_GPU_SECONDS", text)
    with pytest.raises(UsageError, match="expected a number of seconds above 0"):
        seconds()


def test_a_gpu_that_must_not_be_used_is_none(monkeypatch):
    monkeypatch.setenv("F2I_GPU", "software")
    assert not has_gpu() and not target_of(Variant("tflite", "fp32", "gpu_fp32")).native_here


@needs_driver
def test_the_whole_model_passes_its_gates_on_the_gpu_in_float32(software, tiny_bundle):
    report = validate(open_bundle(tiny_bundle), ValidateOptions(accelerator="gpu_fp32", tiles=1, photos=1))
    assert [g.id for g in report.gates if not g.passed] == []
    floors = {"fp32": 90.0, "fp16": 45.0}
    assert {(row.precision, row.component) for row in report.components} == {(p, c) for p in floors for c in ("feature_encoder", "unet")}
    assert all(row.sqnr_db >= floors[row.precision] for row in report.components)
    assert all("SwiftShader" in row.engine and row.engine.endswith("float32, software (numerics only)") for row in report.components)


@needs_driver
@pytest.mark.slow
def test_nano_passes_its_gates_in_half_precision(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("F2I_GPU", "software")
    bundle = export_bundle(ExportOptions("nano", tmp_path / "nano", ("tflite",), ("fp32", "fp16")))
    report = validate(bundle, ValidateOptions(accelerator="gpu_fp16", tiles=1, photos=1))
    assert [g.id for g in report.gates if not g.passed] == [] and len(report.components) == 4
    assert all(row.sqnr_db >= 45 for row in report.components)
    assert all("half precision" in row.engine for row in report.components)


@needs_driver
def test_five_axes_are_refused_and_nothing_runs_on_the_cpu(software, tmp_path):
    path = convert(FiveAxes(), tmp_path / "five.tflite")
    with pytest.raises(
        ToolchainError, match=r"the GPU delegate leaves \d+ of \d+ operations, and nothing runs on the CPU instead: .*RESHAPE"
    ) as e:
        open_session(path, component="five", inputs=SHAPES, accelerator="gpu_fp32")
    assert e.value.log.is_file() and "not supported by GPU delegate" in e.value.log.read_text()
    found = delegation(path, component="five", inputs=SHAPES, accelerator="gpu_fp32")
    assert found.delegated_share < 1 and {"RESHAPE", "TRANSPOSE"} <= {f.op for f in found.fallbacks}
    assert all(f.reason.endswith("]") and "[]" not in f.reason for f in found.fallbacks)


@needs_driver
def test_squares_that_leave_half_precision_are_seen_in_half_precision_alone(software, tmp_path):
    x = np.random.default_rng(0).normal(0, 400, SHAPES["x"]).astype(np.float32)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(1, keepdims=True))

    def error(scale, accelerator):
        path = convert(Squares(scale), tmp_path / f"{scale}.tflite")
        session = open_session(path, component="squares", inputs=SHAPES, accelerator=accelerator)
        output = session.run({"x": x})
        session.close()
        return np.abs(output * scale - expected).max()

    assert error(1.0, "gpu_fp32") < 1e-4
    assert not error(1.0, "gpu_fp16") < 0.1, "the mutation: no scale, as it was shipped"
    assert error(0.125, "gpu_fp16") < 0.02


@needs_driver
def test_a_driver_that_hangs_or_is_missing_is_an_error_with_its_log(software, tmp_path, monkeypatch):
    path = convert(Squares(1.0), tmp_path / "squares.tflite")
    missing = Driver("a missing driver", is_gpu=False, environment={"VK_DRIVER_FILES": str(tmp_path / "none.json")})
    with pytest.raises(ToolchainError, match="tflite: load of squares failed: ") as e:
        GpuChild(GpuFile(path, "squares", "tflite", SHAPES), half=False, driver=missing).start()
    assert e.value.log.is_file()
    monkeypatch.setenv("F2I_GPU_SECONDS", "0.01")
    with pytest.raises(ToolchainError, match=r"did not answer within 0\.01 s; set F2I_GPU_SECONDS to wait longer") as e:
        open_session(path, component="squares", inputs=SHAPES, accelerator="gpu_fp32")
    assert e.value.log.is_file()


@needs_driver
def test_a_child_that_dies_is_an_error(software, tmp_path):
    path = convert(Squares(1.0), tmp_path / "squares.tflite")
    session = open_session(path, component="squares", inputs=SHAPES, accelerator="gpu_fp32")
    session.child.child.process.kill()
    with pytest.raises(ToolchainError, match="the GPU's process ended with code -9"):
        session.run({"x": np.zeros(SHAPES["x"], np.float32)})
    with pytest.raises(ToolchainError, match="input x is not args_0 of shape"):
        open_session(path, component="squares", inputs={"x": (1, 1, 8, 8)}, accelerator="gpu_fp32")


@needs_driver
def test_inspect_asks_the_delegate(software, tiny_bundle):
    done = CliRunner().invoke(app, ["inspect", str(tiny_bundle), "--accelerator", "gpu_fp32", "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["artifacts"]
    assert {r["accelerator"] for r in rows} == {"gpu_fp32"} and {r["target"] for r in rows} == {"tflite"}
    assert all((r["delegated_share"] == 1.0) == (not r["fallbacks"]) for r in rows)


def test_the_drivers_module_imports_no_engine():
    code = "import f2i_runtime.gpu.drivers, f2i_runtime.gpu.gpu_child, sys; assert not any(m.startswith('ai_edge') for m in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
