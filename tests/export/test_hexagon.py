"""Qualcomm's compiler for Hexagon: what it says of small graphs, and one line for everything that can go wrong."""

import contextlib
import os
import subprocess
import sys
import threading
import time

import psutil
import pytest
from f2i_export.hexagon.compile_child import CompileRequest, estimate_graph
from f2i_export.hexagon.compiler_profile import read_profile
from f2i_export.hexagon.watched_child import Limits
from f2i_runtime.errors import MissingPackageError, ToolchainError, UsageError
from f2i_runtime.hexagon import qnn_provider
from f2i_runtime.hexagon.chips import CHIPS, ESTIMATED, chip_with_estimate, find_chip
from f2i_runtime.hexagon.qnn_provider import check_system, find_wheel, licence_line, provider_options
from npu_graphs import convolution, determinant, needs_compiler

CHIP = CHIPS[ESTIMATED]
PROFILE = """Msg Timestamp,Message,Time,Unit of Measurement,Timing Source,Event Level,Event Identifier
0,FINALIZE,893190,US,BACKEND,ROOT,QNN (finalize) time
0,BACKEND,2943,US,BACKEND,SUB-EVENT,Simulated (Accelerator exec time us)
0,BACKEND,2645,US,BACKEND,SUB-EVENT,Simulated (Accelerator exec time us (lower estimate))
0,BACKEND,3286,US,BACKEND,SUB-EVENT,Simulated (Accelerator exec time us (upper estimate))
0,BACKEND,100,BYTES,BACKEND,SUB-EVENT,Input Fill
0,BACKEND,20,BYTES,BACKEND,SUB-EVENT,Intermediate Fill
0,BACKEND,30,BYTES,BACKEND,SUB-EVENT,Intermediate Spill
0,BACKEND,7,BYTES,BACKEND,SUB-EVENT,Output Spill
0,BACKEND,2,US,BACKEND,SUB-EVENT,Missing Ops (Number of Ops with no Costs associated)
0,BACKEND,1,US,BACKEND,SUB-EVENT,q::Transpose6d : OpId 17
"""


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("F2I_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def request(path, precision="fp16", **limits):
    return CompileRequest("toy/graph", path, precision, CHIP, limits=Limits(**limits))


def test_chips_are_found_by_model_and_marketing_name():
    assert find_chip("SM8750").htp == 79 and find_chip("snapdragon 8 elite") is find_chip("Sm8750") and find_chip("SA8775P") is CHIP
    with pytest.raises(UsageError, match=r"chip 'sm1' is unknown; choose from .*sm8650 \(Snapdragon 8 Gen 3\)"):
        find_chip("sm1")
    with pytest.raises(UsageError, match=r"SM8750 .*estimates nothing for this chip; choose from sa8255p, qcs9100"):
        chip_with_estimate("sm8750")
    options = provider_options("libQnnHtp.so", CHIP)
    assert (options["soc_model"], options["htp_arch"]) == ("52", "73")


@pytest.mark.parametrize(
    ("system", "machine", "python", "said"),
    [
        ("Darwin", "arm64", (3, 12), "needs Linux on x86-64.*this is Darwin on arm64"),
        ("Linux", "aarch64", (3, 12), "this is Linux on aarch64"),
        ("Linux", "x86_64", (3, 10), "needs Python 3.11 or later.*this is 3.10"),
    ],
)
def test_another_system_or_python_is_one_line(system, machine, python, said):
    with pytest.raises(UsageError, match=said) as caught:
        check_system(system, machine, python)
    assert "\n" not in str(caught.value)


@needs_compiler
def test_another_version_of_the_wheel_is_refused_and_its_licence_is_named(monkeypatch):
    assert find_wheel().licence.is_file() and "Qualcomm_LICENSE.pdf" in licence_line(find_wheel())
    monkeypatch.setattr(qnn_provider, "version", lambda _: "1.0.0")
    with pytest.raises(UsageError, match=r"onnxruntime-qnn 1\.0\.0 is installed, and this version works with 2\.7\.0"):
        find_wheel()
    monkeypatch.setitem(sys.modules, "onnxruntime_qnn", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'f2i-mobile\[hexagon\]'"):
        find_wheel()


@needs_compiler
def test_without_the_wheel_the_command_ends_with_one_line():
    hidden = "import sys; sys.modules['onnxruntime_qnn'] = None; sys.argv = ['f2i', 'estimate', 'tiny']; import f2i.cli; f2i.cli.main()"
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, timeout=300, env={**os.environ, "COLUMNS": "300"})
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "f2i-mobile[hexagon]" in done.stderr


def test_a_profile_is_read_and_one_without_an_estimate_is_none():
    estimate = read_profile(PROFILE.splitlines())
    assert (estimate.microseconds, estimate.lower, estimate.upper) == (2943, 2645, 3286)
    assert (estimate.read_bytes, estimate.write_bytes, estimate.fill_bytes, estimate.spill_bytes) == (120, 37, 20, 30)
    assert (estimate.uncosted, estimate.uncosted_names) == (2, ("q::Transpose6d",))
    assert read_profile(PROFILE.splitlines()[:2]) is None and read_profile([]) is None


@needs_compiler
@pytest.mark.parametrize("precision", ["fp16", "w8a8"])
def test_an_estimate_is_positive_costs_every_op_and_repeats_exactly(precision, tmp_path, own_cache):
    path = convolution(tmp_path / "toy.onnx")
    first, second = (estimate_graph(request(path, precision)) for _ in range(2))
    assert first == second
    assert 0 < first.lower <= first.microseconds <= first.upper and first.uncosted == 0 and first.read_bytes > 0
    assert list((own_cache / "logs").iterdir()) == []


@needs_compiler
def test_a_graph_that_the_npu_refuses_is_an_error_that_names_the_op(tmp_path, own_cache):
    with pytest.raises(ToolchainError, match=r"compiling in fp16 of toy/graph failed: the NPU refuses these ops: Det ×1; log: ") as caught:
        estimate_graph(request(determinant(tmp_path / "toy.onnx")))
    assert caught.value.exit_code == 3 and "Traceback" in caught.value.log.read_text()


@needs_compiler
@pytest.mark.parametrize(
    ("limits", "said"), [({"seconds": 0.05}, "it took more than 0.05 s"), ({"memory_bytes": 1 << 20}, "GiB of memory, more than")]
)
def test_a_child_that_exceeds_a_limit_is_ended(limits, said, tmp_path, own_cache):
    with pytest.raises(ToolchainError, match=said) as caught:
        estimate_graph(request(convolution(tmp_path / "toy.onnx"), **limits))
    assert caught.value.log.is_file()
    assert not children()


@needs_compiler
def test_a_child_that_is_killed_is_one_line(tmp_path, own_cache):
    def kill():
        while not (found := children()):
            time.sleep(0.01)
        found[0].kill()

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(ToolchainError, match="the compiler's process was killed") as caught:
        estimate_graph(request(convolution(tmp_path / "toy.onnx")))
    thread.join()
    assert "\n" not in str(caught.value)


def children():
    """Running children of this process that compile."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "f2i_export.hexagon.compile_worker" in child.cmdline():
                found.append(child)
    return found
