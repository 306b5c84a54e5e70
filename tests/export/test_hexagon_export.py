"""The accelerator hexagon: a component compiled for a chip, what its record says, and one line for what cannot be."""

import hashlib
import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from f2i_export.export_options import ExportOptions, check_request
from f2i_export.hexagon.compile_child import CompileRequest, compile_context
from f2i_export.hexagon.watched_child import Limits
from f2i_runtime.engines.session import open_session
from f2i_runtime.errors import BundleError, ToolchainError, UsageError
from f2i_runtime.hexagon import qnn_provider
from f2i_runtime.hexagon.chips import find_chip
from f2i_runtime.targets import Selection, Variant, target_of
from npu_graphs import convolution, determinant, needs_compiler

import f2i

FP16 = Variant("onnx", "fp16", "hexagon_sm8750")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("F2I_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def options(tmp_path, **changes):
    wanted = {"targets": ("onnx",), "accelerators": ("cpu", "hexagon")} | changes
    return ExportOptions("tiny", tmp_path / "out", **wanted)


def test_an_accelerator_is_asked_for_without_its_chip_and_named_with_it(tmp_path):
    wanted = options(tmp_path, socs=("sm8650", "Snapdragon 8 Elite", "SM8650"))
    assert wanted.every_accelerator == ("cpu", "hexagon_sm8650", "hexagon_sm8750")
    assert options(tmp_path).every_accelerator == ("cpu", "hexagon_sm8750")
    assert str(FP16) == "onnx/fp16/hexagon_sm8750" and FP16.folder == "onnx/fp16-hexagon_sm8750"
    assert Selection(accelerator="hexagon").takes(FP16) and Selection(accelerator="hexagon_sm8750").takes(FP16)
    assert not Selection(accelerator="hexagon_sm8650").takes(FP16) and not Selection(accelerator="cpu").takes(FP16)
    assert not target_of(FP16).native_here and target_of(FP16).engine_label == "simulator (numerics only)"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"socs": ("sm1",)}, r"chip 'sm1' is unknown; choose from .*sm8750 \(Snapdragon 8 Elite\)"),
        ({"accelerators": ("hexagon_sm1",)}, "chip 'sm1' is unknown"),
        ({"accelerators": ("cpu",), "socs": ("sm8750",)}, "--soc sm8750 is for the accelerator hexagon; add --accelerator hexagon"),
        ({"targets": ("coreml",)}, "accelerator 'hexagon_sm8750' is not available for coreml; it has cpu"),
        ({"precisions": ("fp32",)}, "precision 'fp32' is not available for onnx on hexagon_sm8750; it takes fp16, w8a8, w8a16"),
        ({"socs": ("sm8350",)}, r"SM8350 \(Hexagon v68\) has no float16.*; choose a chip of v69 or later"),
    ],
)
def test_what_cannot_be_compiled_is_one_line_before_anything_starts(changes, said, tmp_path):
    with pytest.raises(UsageError, match=said) as caught:
        check_request(options(tmp_path, **changes))
    assert "\n" not in str(caught.value)


@needs_compiler
def test_without_the_right_wheel_nothing_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(qnn_provider, "version", lambda _: "1.0.0")
    with pytest.raises(UsageError, match=r"onnxruntime-qnn 1\.0\.0 is installed, and this version works with 2\.7\.0"):
        check_request(options(tmp_path))
    with pytest.raises(UsageError, match="works with"):
        open_session(FP16, tmp_path / "unet.onnx", component="unet", inputs={})
    monkeypatch.setattr(qnn_provider.platform, "system", lambda: "Darwin")
    with pytest.raises(UsageError, match=r"needs Linux on x86-64.*this is Darwin"):
        check_request(options(tmp_path))
    check_request(options(tmp_path, accelerators=("cpu",)))


@needs_compiler
def test_the_whole_graph_is_in_one_partition_and_the_record_says_for_what(npu_bundle):
    assert npu_bundle.manifest.variants() == [FP16]
    for artifact in npu_bundle.manifest.artifacts:
        d, npu = artifact.delegation, artifact.delegation.npu
        assert (d.delegated_share, d.partitions, d.fallbacks) == (1.0, 1, ()) and d.ops > 20
        assert (npu.chip, npu.htp, npu.vtcm_mb) == ("sm8750", 79, 8) and npu.compiler.startswith("v2.")
        assert 0 < npu.estimate.ms_lower <= npu.estimate.ms <= npu.estimate.ms_upper and npu.estimate.uncosted_ops == 0
        assert npu.estimate.source == "estimated by Qualcomm's compiler for Hexagon v73, not measured"
        assert artifact.parity.sqnr_db > 45 and "simulator (numerics only)" in artifact.parity.engine
        graph = onnx.load(npu_bundle.root / artifact.path).graph
        [node] = graph.node
        names = {a.name: a.s.decode() for a in node.attribute if a.name == "ep_cache_context"}
        assert node.op_type == "EPContext" and names == {"ep_cache_context": f"{artifact.component}.onnx.bin"}
        assert {f.path.rpartition("/")[2] for f in artifact.files} == {f"{artifact.component}.onnx", f"{artifact.component}.onnx.bin"}


@needs_compiler
def test_a_photo_is_upscaled_on_the_simulator_where_that_is_asked_for(npu_bundle, chelsea):
    with f2i.open_engine(npu_bundle, accelerator="hexagon") as engine:
        assert engine.variant == FP16 and "simulator (numerics only)" in engine.engine
        tile = chelsea[:32, :32].astype(np.float32) / 255
        result = f2i.upscale(engine, tile)
    with f2i.open_engine(npu_bundle, target="torch") as reference:
        expected = f2i.upscale(reference, tile)
    assert result.shape == (64, 64, 3) and np.abs(result - expected).max() < 0.02


@needs_compiler
def test_verify_finds_a_changed_binary_and_the_engine_an_absent_one(npu_bundle, tmp_path):
    copy = shutil.copytree(npu_bundle.root, tmp_path / "copy")
    binary = copy / FP16.folder / "unet.onnx.bin"
    data = bytearray(binary.read_bytes())
    data[len(data) // 2] ^= 0xFF
    binary.write_bytes(data)
    with pytest.raises(BundleError, match=r"unet\.onnx\.bin"):
        f2i.verify(f2i.open_bundle(copy))
    binary.unlink()
    session = open_session(FP16, copy / FP16.folder / "unet.onnx", component="unet", inputs={"lr": (1, 3, 32, 32)})
    with pytest.raises(ToolchainError, match=r"onnx: load of unet failed: .*unet\.onnx") as caught:
        session.run({"lr": np.zeros((1, 3, 32, 32), np.float32)})
    assert "\n" not in str(caught.value)


@needs_compiler
def test_the_same_graph_compiled_twice_has_the_same_bytes_wherever_it_lies(tmp_path, own_cache):
    digests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        model = convolution(tmp_path / name / "graph.onnx")
        (tmp_path / f"{name}-out").mkdir()
        wanted = CompileRequest("toy/graph", model, "fp16", find_chip("sm8750"), quantized=True)
        files = compile_context(wanted, tmp_path / f"{name}-out").files
        digests.append({what: hashlib.sha256(path.read_bytes()).hexdigest() for what, path in files.items()})
    assert digests[0] == digests[1]
    assert left(own_cache) == []


@needs_compiler
def test_a_refused_or_ended_compilation_leaves_nothing_but_its_log(tmp_path, own_cache):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ToolchainError, match="the NPU refuses these ops: Det ×1"):
        compile_context(CompileRequest("toy/graph", determinant(tmp_path / "a.onnx"), "fp16", find_chip("sm8750")), out)
    slow = CompileRequest("toy/graph", convolution(tmp_path / "b.onnx"), "fp16", find_chip("sm8750"), limits=Limits(seconds=0.05))
    with pytest.raises(ToolchainError, match="it took more than"):
        compile_context(slow, out)
    assert os.listdir(out) == [] and left(own_cache) == []


@needs_compiler
def test_a_compilation_whose_parent_was_killed_ends_and_is_swept(tmp_path, own_cache):
    model = convolution(tmp_path / "graph.onnx")
    program = f"""
import os, threading, time
from pathlib import Path
from f2i_export.hexagon import compile_child
from f2i_runtime.hexagon import qnn_provider
from f2i_runtime.hexagon.chips import find_chip
def die():
    while not list(Path({str(own_cache)!r}).glob('.f2i-staging-compile-*/request.json')):
        time.sleep(0.01)
    os._exit(9)
threading.Thread(target=die, daemon=True).start()
compile_child.compile_context(compile_child.CompileRequest("toy/graph", Path({str(model)!r}), "fp16", find_chip("sm8750")), Path({str(tmp_path)!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=120, env={**os.environ, "F2I_CACHE": str(own_cache)}, check=False)
    assert done.returncode == 9 and left(own_cache) != []
    (tmp_path / "out").mkdir()
    compile_context(CompileRequest("toy/graph", model, "fp16", find_chip("sm8750")), tmp_path / "out")
    assert left(own_cache) == []


def left(cache):
    """What compilations left staged in the cache."""
    return [name for name in os.listdir(cache) if "compile" in name]
