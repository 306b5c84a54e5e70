"""The engines' own benchmark programs: their words as they print them, packages that hold one or none, and a device that runs them."""

import io
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace

import fake_phone
import numpy as np
import pytest
from f2i_bench.core.protocol import Settings
from f2i_bench.devices.android.adb import Phone
from f2i_bench.devices.android.android_bench import AdbOptions, bench_android
from f2i_bench.devices.android.native_runners import NativeItem, Repeats, open_runner, open_runners, plan_of, programs, runner_of
from f2i_bench.devices.android.run_onnxruntime_perf_test import tensor_proto
from f2i_export.export_options import ExportOptions
from f2i_export.write_bundle import export_bundle
from f2i_runtime.bundle.store import open_bundle
from f2i_runtime.errors import UsageError
from f2i_runtime.targets import Selection, Variant
from npu_graphs import needs_compiler
from repository import TESTS

STAND_IN = TESTS / "helpers" / "native_stand_in.py"
WORDS = {
    "executorch": """I 00:00:00.1 executorch:executor_runner.cpp:480] Model loaded in 3.250000 ms.
I 00:00:00.2 executorch:executor_runner.cpp:600] Iteration 1 of 4: 9.000000 ms
I 00:00:00.3 executorch:executor_runner.cpp:600] Iteration 2 of 4: 5.000000 ms
I 00:00:00.4 executorch:executor_runner.cpp:600] Iteration 3 of 4: 2.000000 ms
I 00:00:00.5 executorch:executor_runner.cpp:600] Iteration 4 of 4: 2.500000 ms
I 00:00:00.6 executorch:executor_runner.cpp:610] Model executed successfully 4 time(s) in 18.500000 ms.""",
    "tflite": """INFO: count=1 curr=1357602 p5=1357602 median=1357602 p95=1357602
INFO: count=50 first=1249964 curr=1240143 min=1238588 max=1252566 avg=1.24027e+06 std=2565 p5=1238753 median=1239807 p95=1247415
INFO: Inference timings in us: Init: 5579, First inference: 1357602, Warmup (avg): 1.3576e+06, Inference (avg): 1.24027e+06
INFO: Overall peak memory footprint (MB) via periodic monitoring: 109.5""",
    "onnx": """Setting intra_op_num_threads to 1
Session creation time cost: 0.217932 s
First inference time cost: 196 ms
Avg CPU usage:11
unet,0.0958204,271122432,11,0
unet,0.1015190,271122432,11,1
unet,9.9e-05,271122432,11,2""",
}


@pytest.mark.parametrize(
    ("target", "load", "first", "ns", "peak"),
    [
        ("executorch", 3_250_000, 9_000_000, [2_000_000, 2_500_000], None),
        ("tflite", 5_579_000, 1_357_602_000, [1_239_807_000], 114_819_072),
        ("onnx", 217_932_000, 196_000_000, [101_519_000, 99_000], 271_122_432),
    ],
)
def test_words_of_the_programs(target, load, first, ns, peak):
    said = plan_of(target).read(WORDS[target], 1)
    assert said == {"load_ns": load, "first_ns": first, "ns": ns, "peak_rss_bytes": peak}


def test_older_programs_say_less():
    assert plan_of("executorch").read("Model executed successfully 4 time(s) in 18.0 ms.", 1)["ns"] == [4_500_000]
    old = "count=50 first=249042 curr=250889 min=247067 max=254474 avg=249684 std=1442\n"
    old += "Inference timings in us: Init: 16242, First inference: 360262, Warmup (avg): 304586, Inference (avg): 249684"
    assert plan_of("tflite").read(old, 1)["ns"] == [249_684_000]


def test_words_of_the_programs_for_the_npu():
    """The lines are those of the programs' sources; nobody ran them on a phone for this."""
    runner = plan_of("executorch", "hexagon").read(
        "I 00:00:00.1 executorch:qnn_executor_runner.cpp:447] 5 inference took 15.000000 ms, avg 3.000000 ms\n"
        "I 00:00:00.2 executorch:qnn_executor_runner.cpp:496] 1 inference took 15.000000 ms, avg 15.000000 ms",
        1,
    )
    assert runner == {"load_ns": None, "first_ns": None, "ns": [3_000_000], "peak_rss_bytes": None}
    words = """INFO: [benchmark_litert_model.h:75] ========== BENCHMARK RESULTS ==========
Model initialization: 12.50 ms
Warmup (first):       4.25 ms
Warmup (avg):         4.10 ms (2 runs)
Inference (avg):      3.75 ms (50 runs)
Inference (min):      3.70 ms
Peak memory:          41.50 MB"""
    assert plan_of("tflite", "hexagon").read(words, 1) == {
        "load_ns": 12_500_000,
        "first_ns": 4_250_000,
        "ns": [3_750_000],
        "peak_rss_bytes": int(41.5 * (1 << 20)),
    }
    for target in ("executorch", "tflite", "onnx"):
        with pytest.raises(ValueError, match=r"did not say|no runs"):
            plan_of(target, "hexagon").read("Aborted", 1)


def test_an_npu_is_asked_of_each_program_in_its_own_words(tmp_path):
    item = NativeItem("unet", "unet.x", ("lr",), ((1, 3, 8, 8),), ("unet-0.bin",), "unet-out/output_0_0.raw")
    repeats = Repeats(threads=2, warmup=2, runs=6, rounds=3)
    said = {target: plan_of(target, "hexagon").commands(item, repeats) for target in ("executorch", "tflite", "onnx")}
    assert [len(commands) for commands in said.values()] == [3, 3, 1]
    assert "-e qnn" in said["onnx"][0] and "backend_path|libQnnHtp.so" in said["onnx"][0] and "-r 8" in said["onnx"][0]
    assert "--use_npu=true --use_cpu=false" in said["tflite"][0] and "--require_full_delegation=true" in said["tflite"][0]
    assert "--input_list_path=unet-list.txt --output_folder_path=unet-out --warm_up=1 --iteration=2" in said["executorch"][0]


def test_a_program_for_the_npu_is_told_from_the_one_for_the_cpu(tmp_path):
    paths = [tmp_path / name for name in ("executor_runner", "qnn_executor_runner", "android_onnxruntime_perf_test")]
    for path in paths:
        path.touch()
    runners = open_runners(paths, tmp_path / "run")
    cpu, npu = Variant("executorch", "fp16"), Variant("executorch", "fp16", "hexagon_sm8750")
    assert [runner_of(runners, v).path.name for v in (cpu, npu)] == ["executor_runner", "qnn_executor_runner"]
    assert runner_of(runners, Variant("onnx", "fp16", "hexagon_sm8750")) is runner_of(runners, Variant("onnx", "fp32")) is runners[2]
    assert runner_of(runners, Variant("tflite", "fp16", "hexagon_sm8750")) is None


@pytest.mark.parametrize("target", WORDS)
def test_other_words_are_said_to_be_so(target):
    with pytest.raises(ValueError, match=r"did not say|no runs"):
        plan_of(target).read("Segmentation fault", 1)


def test_tensors_are_what_onnx_reads():
    import onnx

    array = np.arange(300, dtype=np.float32).reshape(2, 150)
    read = onnx.TensorProto.FromString(tensor_proto("lr", array))
    assert read.name == "lr" and np.array_equal(onnx.numpy_helper.to_array(read), array)


def package(path, members):
    if path.suffix == ".tgz":
        with tarfile.open(path, "w:gz") as archive:
            for name in members:
                info = tarfile.TarInfo(name)
                info.size = len(name)
                archive.addfile(info, io.BytesIO(name.encode()))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name in members:
                archive.writestr(name, name)
    return path


@pytest.mark.parametrize("kind", [".tgz", ".aar"])
def test_a_program_is_found_in_a_package(tmp_path, kind):
    members = ["bin/x86_64/benchmark_model", "bin/arm64-v8a/benchmark_model", "bin/arm64-v8a/liba.so", "bin/x86_64/libb.so"]
    inside = tmp_path / "inside"
    inside.mkdir()
    runner = open_runner(package(tmp_path / f"p{kind}", members), inside)
    assert runner.target == "tflite" and runner.path.read_text() == members[1]
    assert {p.name for p in inside.iterdir()} == {"benchmark_model", "liba.so"}


def test_runners_that_cannot_be(tmp_path):
    with pytest.raises(UsageError, match="holds none of"):
        open_runner(package(tmp_path / "p.tgz", ["package/lib/arm64-v8a/libexecutorch.so"]), tmp_path)
    (tmp_path / "broken.aar").write_text("no archive")
    with pytest.raises(UsageError, match="no readable package"):
        open_runner(tmp_path / "broken.aar", tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        open_runner(tmp_path / "nothing", tmp_path)
    twice = [tmp_path / "executor_runner", tmp_path / "executor_runner_v2"]
    for path in twice:
        path.touch()
    with pytest.raises(UsageError, match="2 programs for executorch"):
        open_runners(twice, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="adbd runs on Linux")
def test_a_device_runs_them_with_parity_and_without_python(tiny_bundle, tmp_path):
    """Over a real adbd. One program fails on one component, which costs that row alone."""
    runners = []
    for name in programs():
        path = tmp_path / f"android_aarch64_{name}"
        path.write_text(f'#!/bin/sh\nunset LD_LIBRARY_PATH\nexec {sys.executable} {STAND_IN} {name} "$@"\n')
        runners.append(path)
    settings = Settings(warmup=2, runs=6, rounds=3, threads=(1,), gate_seconds=0)
    bundle = open_bundle(tiny_bundle)
    (tmp_path / "phone").mkdir()
    with fake_phone.start(tmp_path / "phone") as phone:
        found = open_runners(runners, tmp_path / "unpacked")
        options = AdbOptions(("127.0.0.1:5555",), str(phone.storage), python="no-python", runners=found, adb=phone.adb)
        [report] = bench_android(bundle, settings, options, only=Selection(precision="fp32"))
        assert len(report.rows) == 6
        for row in report.rows:
            assert row.status == "ok", row.reason
            assert sum(map(len, row.rounds_ns)) == (3 if row.target == "tflite" else 6) and len(row.rounds_ns) == 3
            assert row.load_ns > 0 and row.median_ns > 0
            assert (row.sqnr_db is None) == (row.target == "onnx") and (row.sqnr_db or 91) > 90
        first = runners[0]
        first.write_text(first.read_text().replace("exec ", 'case "$*" in *feature_encoder*) echo bad model >&2; exit 4;; esac; exec '))
        [report] = bench_android(bundle, settings, options, only=Selection("executorch", "fp32"))
        assert {r.component: r.status for r in report.rows} == {"feature_encoder": "failed", "unet": "ok"}
        assert "bad model" in report.rows[0].reason
        assert list(phone.storage.iterdir()) == []
        assert subprocess.run([*phone.adb, "devices"], capture_output=True, text=True, timeout=60).stdout.count("\tdevice") >= 1
        assert str(phone.storage) not in Phone(phone.adb, "127.0.0.1:5555").shell("for p in /proc/[0-9]*; do readlink $p/cwd; done; true")
        slow = replace(options, run_seconds=1.0)
        first.write_text("#!/bin/sh\nsleep 1000\n")
        [report] = bench_android(bundle, settings, slow, only=Selection("executorch", "fp32"))
        assert {r.status for r in report.rows} == {"failed"} and "did not end in" in report.rows[0].reason
        assert list(phone.storage.iterdir()) == []


@pytest.mark.slow
@needs_compiler
def test_a_device_runs_the_npu_s_programs_with_parity_where_they_write_outputs(cache, tmp_path):
    """Over a real adbd, with stand-ins that compute on the simulator. A variant without its program is a note, one for another chip a failed row."""
    made = ExportOptions(
        "tiny", tmp_path / "tiny", ("onnx", "tflite", "executorch"), ("fp16",), accelerators=("hexagon",), socs=("sm8750",)
    )
    bundle = export_bundle(made)
    runners = []
    for name in ("qnn_executor_runner", "benchmark_model", "onnxruntime_perf_test"):
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\nunset LD_LIBRARY_PATH\nexport F2I_CACHE={cache}\nexec {sys.executable} {STAND_IN} {name} "$@"\n')
        runners.append(path)
    settings = Settings(warmup=1, runs=2, rounds=1, threads=(1,), gate_seconds=0)
    (tmp_path / "phone").mkdir()
    with fake_phone.start(tmp_path / "phone") as phone:
        found = open_runners(runners, tmp_path / "unpacked")
        options = AdbOptions(("127.0.0.1:5555",), str(phone.storage), python="no-python", runners=found, adb=phone.adb)
        [report] = bench_android(bundle, settings, options)
        assert len(report.rows) == 6
        for row in report.rows:
            assert row.status == "ok" and row.accelerator == "hexagon_sm8750" and row.median_ns > 0, row.reason
            assert (row.sqnr_db is None) == (row.target != "executorch") and (row.sqnr_db or 46) > 45
        [report] = bench_android(bundle, settings, replace(options, runners=found[:1]))
        assert {row.target for row in report.rows} == {"executorch"}
        assert sum("give it with --runner" in note for note in report.notes) == 2
        with pytest.raises(UsageError, match=r"executorch/fp16/hexagon_sm8750 was not measured: only qnn_executor_runner runs it"):
            bench_android(bundle, settings, replace(options, runners=()), only=Selection("executorch"))
        assert list(phone.storage.iterdir()) == []
