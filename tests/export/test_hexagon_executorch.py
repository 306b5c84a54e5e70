"""ExecuTorch's way onto the NPU: a program of one delegate around a context binary, run by ExecuTorch's own runtime on the simulator."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
from f2i_export.export_options import ExportOptions
from f2i_export.hexagon.compile_child import CompileRequest, compile_context
from f2i_export.hexagon.to_delegate import ContextBinary, delegate_options, delegated_program
from f2i_export.write_bundle import export_bundle
from f2i_runtime.engines.session import open_session
from f2i_runtime.errors import ToolchainError
from f2i_runtime.hexagon.chips import find_chip
from f2i_runtime.targets import Variant
from npu_graphs import convolution, needs_compiler

CHIP = find_chip("sm8750")
VARIANT = Variant("executorch", "fp16", "hexagon_sm8750")


def program(folder):
    """A compiled convolution as a program; returns the program and the path of its graph."""
    import onnx

    graph = convolution(folder / "graph.onnx")
    (folder / "out").mkdir()
    made = compile_context(CompileRequest("toy/sm8750", graph, "fp16", CHIP, quantized=True), folder / "out").files
    name = next(a.s.decode() for a in onnx.load(made["graph"]).graph.node[0].attribute if a.name == "partition_name")
    shape = (1, 3, 32, 32)
    return delegated_program(ContextBinary(made["binary"].read_bytes(), name, [shape], shape), CHIP), graph


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("F2I_CACHE", str(tmp_path / "cache"))


@needs_compiler
def test_a_program_computes_what_the_graph_does_and_is_the_same_when_made_again(tmp_path, own_cache):
    digests = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        content, graph = program(tmp_path / name)
        digests.add(hashlib.sha256(content).hexdigest())
    assert len(digests) == 1
    path = tmp_path / "toy.pte"
    path.write_bytes(content)
    tile = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    session = open_session(VARIANT, path, component="toy", inputs={"x": (1, 3, 32, 32)})
    got = session.run({"x": tile})
    session.close()
    expected = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"]).run(None, {"x": tile})[0]
    assert session.engine.startswith("ExecuTorch ") and "simulator (numerics only)" in session.engine
    assert 20 * np.log10(np.linalg.norm(expected) / np.linalg.norm(got - expected)) > 50


@needs_compiler
def test_a_damaged_program_is_one_line(tmp_path, own_cache):
    (tmp_path / "bad.pte").write_bytes(b"no program" * 10)
    session = open_session(VARIANT, tmp_path / "bad.pte", component="toy", inputs={"x": (1, 3, 32, 32)})
    with pytest.raises(ToolchainError, match=r"executorch: load of toy failed: .*bad\.pte") as caught:
        session.run({"x": np.zeros((1, 3, 32, 32), np.float32)})
    assert "\n" not in str(caught.value)


@needs_compiler
def test_options_are_what_executorch_itself_would_write(tmp_path):
    theirs = """
import sys
from executorch.backends.qualcomm.serialization import qc_schema as q
from executorch.backends.qualcomm.serialization.qc_schema_serialize import flatbuffer_to_option
o = flatbuffer_to_option(open(sys.argv[1], "rb").read())
assert o.soc_info == q._soc_info_table[q.QcomChipset.SM8750], o
assert o.backend_options.backend_type == q.QnnExecuTorchBackendType.kHtpBackend
assert o.backend_options.htp_options.performance_mode == q.QnnExecuTorchHtpPerformanceMode.kHtpBurst
assert o.is_from_context_binary and not o.online_prepare and not o.saver
"""
    (tmp_path / "options").write_bytes(delegate_options(CHIP))
    environment = {**os.environ, "QNN_SDK_ROOT": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", theirs, str(tmp_path / "options")], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@needs_compiler
def test_a_bundle_holds_it_and_its_record(cache, tmp_path):
    bundle = export_bundle(ExportOptions("tiny", tmp_path / "tiny", ("executorch",), accelerators=("hexagon",), socs=("sm8750",)))
    assert bundle.manifest.variants() == [VARIANT]
    for artifact in bundle.manifest.artifacts:
        d = artifact.delegation
        assert (d.delegated_share, d.partitions, d.fallbacks) == (1.0, 1, ()) and d.ops > 20
        assert d.npu.chip == "sm8750" and d.npu.method and d.npu.estimate.uncosted_ops == 0
        assert artifact.parity.sqnr_db > 45 and artifact.parity.engine.startswith("ExecuTorch")
