"""LiteRT's way onto the NPU: one op, its binary on the simulator, and one line for whatever the compiler does not take."""

import hashlib
import os
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from f2i_export.export_options import ExportOptions
from f2i_export.hexagon.compile_child import CompileRequest
from f2i_export.hexagon.litert_compiler import compile_dispatch, soc_name
from f2i_export.hexagon.watched_child import Limits
from f2i_export.write_bundle import export_bundle
from f2i_runtime.engines.session import open_session
from f2i_runtime.errors import ToolchainError, UsageError
from f2i_runtime.hexagon.chips import find_chip
from f2i_runtime.hexagon.dispatch_file import op_names, read_dispatch
from f2i_runtime.targets import Variant
from npu_graphs import needs_compiler
from npu_tflite import Convolutions, convolutions

CHIP = find_chip("sm8750")
VARIANT = Variant("tflite", "fp16", "hexagon_sm8750")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return convolutions(tmp_path_factory.mktemp("tflite") / "toy.tflite")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("F2I_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def request(model, **limits):
    return CompileRequest("toy/sm8750", model, "fp16", CHIP, limits=Limits(**limits), quantized=True)


def left(cache):
    """What compilations left staged in the cache."""
    return [name for name in os.listdir(cache) if "compile" in name]


def test_chips_have_the_names_that_the_compiler_knows():
    assert (soc_name(CHIP), soc_name(find_chip("sa8255p"))) == ("SM8750", "SA8255")
    with pytest.raises(UsageError, match=r"QCS9100 .*: LiteRT's compiler does not know this chip; choose from .*sm8750"):
        soc_name(find_chip("qcs9100"))


@needs_compiler
def test_the_whole_graph_is_one_op_whose_binary_computes_the_same(source, tmp_path, own_cache):
    path = tmp_path / "toy.tflite"
    compiled = compile_dispatch(request(source), path)
    assert compiled.ops > 3 and compiled.compiler.startswith("v2.")
    assert op_names(path) == ("DISPATCH_OP",) and len(op_names(source)) == compiled.ops
    tile = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    session = open_session(VARIANT, path, component="toy", inputs={"x": (1, 3, 32, 32)})
    got = session.run({"x": tile})
    session.close()
    with torch.no_grad():
        expected = Convolutions(False)(torch.from_numpy(tile)).numpy()
    assert "simulator (numerics only)" in session.engine
    assert 20 * np.log10(np.linalg.norm(expected) / np.linalg.norm(got - expected)) > 50


@needs_compiler
def test_the_same_graph_compiled_twice_has_the_same_bytes_wherever_it_lies(source, tmp_path, own_cache):
    digests = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        moved = tmp_path / name / f"{name}.tflite"
        moved.write_bytes(source.read_bytes())
        compile_dispatch(request(moved), tmp_path / name / "out.tflite")
        digests.add(hashlib.sha256((tmp_path / name / "out.tflite").read_bytes()).hexdigest())
    assert len(digests) == 1 and left(own_cache) == [] and os.listdir(own_cache / "logs") == []


@needs_compiler
def test_an_op_that_is_left_to_the_cpu_is_named_with_the_reason(tmp_path, own_cache):
    model = convolutions(tmp_path / "odd.tflite", refused=True)
    said = r"compiling in fp16 of toy/sm8750 failed: the NPU does not take these ops: ATAN2 ×1 \(Atan2 is not supported in Qualcomm Compiler\.\); log: "
    with pytest.raises(ToolchainError, match=said) as caught:
        compile_dispatch(request(model), tmp_path / "out.tflite")
    assert caught.value.exit_code == 3 and "Atan2" in caught.value.log.read_text()
    assert not (tmp_path / "out.tflite").exists() and left(own_cache) == []


@needs_compiler
@pytest.mark.parametrize(
    ("limits", "said"), [({"seconds": 0.05}, "it took more than 0.05 s"), ({"memory_bytes": 1 << 20}, "GiB of memory, more than")]
)
def test_a_compiler_that_exceeds_a_limit_is_ended_and_leaves_nothing(limits, said, source, tmp_path, own_cache):
    with pytest.raises(ToolchainError, match=said):
        compile_dispatch(request(source, **limits), tmp_path / "out.tflite")
    assert not (tmp_path / "out.tflite").exists() and left(own_cache) == [] and compilers() == []


@needs_compiler
def test_a_compiler_whose_parent_was_killed_ends_and_is_swept(source, tmp_path, own_cache):
    program = f"""
import os, threading, time
from pathlib import Path
from f2i_export.hexagon.compile_child import CompileRequest
from f2i_export.hexagon.litert_compiler import compile_dispatch
from f2i_runtime.hexagon.chips import find_chip
def die():
    while not list(Path({str(own_cache)!r}).glob('.f2i-staging-compile-*/sdk')):
        time.sleep(0.005)
    os._exit(9)
threading.Thread(target=die, daemon=True).start()
compile_dispatch(CompileRequest("toy/sm8750", Path({str(source)!r}), "fp16", find_chip("sm8750")), Path({str(tmp_path / "out.tflite")!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=120, env={**os.environ, "F2I_CACHE": str(own_cache)}, check=False)
    assert done.returncode == 9 and not (tmp_path / "out.tflite").exists()
    for _ in range(200):
        if not working_in(own_cache):
            break
        time.sleep(0.05)
    assert working_in(own_cache) == []
    compile_dispatch(request(source), tmp_path / "out.tflite")
    assert left(own_cache) == []


def test_a_file_that_is_not_whole_or_not_compiled_is_refused(source, tmp_path):
    with pytest.raises(ValueError, match=r"expected one DISPATCH_OP, got .*CONV_2D"):
        read_dispatch(source)
    (tmp_path / "text.tflite").write_text("no flatbuffer")
    with pytest.raises(ToolchainError, match=r"tflite: load of toy failed: .*text\.tflite: it is no file of LiteRT's"):
        open_session(VARIANT, tmp_path / "text.tflite", component="toy", inputs={"x": (1, 3, 32, 32)})


@needs_compiler
def test_a_cut_file_and_other_shapes_are_refused(source, tmp_path, own_cache):
    path, cut = tmp_path / "toy.tflite", tmp_path / "cut.tflite"
    compile_dispatch(request(source), path)
    cut.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ToolchainError, match=r"its context binary should have \d+ bytes"):
        open_session(VARIANT, cut, component="toy", inputs={"x": (1, 3, 32, 32)})
    with pytest.raises(ToolchainError, match=r"its inputs have the shapes .*, expected \[\(1, 3, 64, 64\)\]"):
        open_session(VARIANT, path, component="toy", inputs={"x": (1, 3, 64, 64)})


@needs_compiler
def test_a_bundle_holds_it_and_its_record(cache, tmp_path):
    bundle = export_bundle(ExportOptions("tiny", tmp_path / "tiny", ("tflite",), accelerators=("hexagon",), socs=("sm8750",)))
    assert bundle.manifest.variants() == [VARIANT]
    for artifact in bundle.manifest.artifacts:
        d = artifact.delegation
        assert (d.delegated_share, d.partitions, d.fallbacks) == (1.0, 1, ()) and d.ops > 20
        assert (d.npu.chip, d.npu.htp, d.npu.estimate) == ("sm8750", 79, None)
        assert op_names(bundle.root / artifact.path) == ("DISPATCH_OP",)
        assert artifact.parity.sqnr_db > 45 and "simulator (numerics only)" in artifact.parity.engine


def compilers():
    """Running compilers of LiteRT."""
    return [process for process in running() if process.info["name"].startswith("apply_plugin")]


def working_in(folder):
    """Running processes that work in the folder or name it: between fork and exec a compiler is as its parent."""
    return [process for process in running() if str(folder) in " ".join((process.info["cwd"] or "", *(process.info["cmdline"] or ())))]


def running():
    """Processes; one that has ended and waits to be collected does not run."""
    return [
        process for process in psutil.process_iter(["name", "cwd", "cmdline", "status"]) if process.info["status"] != psutil.STATUS_ZOMBIE
    ]
