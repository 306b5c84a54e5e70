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
from f2i_bench.devices.android.native_runners import open_runner, open_runners, plan_of, programs
from f2i_bench.devices.android.run_onnxruntime_perf_test import tensor_proto
from f2i_runtime.bundle.store import open_bundle
from f2i_runtime.errors import UsageError
from f2i_runtime.targets import Selection
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
