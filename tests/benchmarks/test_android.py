"""Android over a real adbd: push, run, pull, parity on the device, and every way that a device can let us down."""

import subprocess
import sys
import threading
import time
from dataclasses import replace

import fake_phone
import pytest
from f2i_bench.core.protocol import Settings
from f2i_bench.devices.android.adb import DeviceError, Phone, connected
from f2i_bench.devices.android.android_bench import AdbOptions, bench_android
from f2i_bench.devices.android.device_folders import PREFIX, cache_identity, remote_folder
from f2i_bench.devices.android.native_runners import Runner
from f2i_runtime.bundle.store import open_bundle
from f2i_runtime.errors import UsageError
from f2i_runtime.targets import Selection

# Slow: Debian packages, and a kernel that grants namespaces, are not on every machine that runs the other tests.
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="adbd runs on Linux")]
ONE, TWO = "127.0.0.1:5555", "127.0.0.2:5555"
WORKING = "for p in /proc/[0-9]*; do readlink $p/cwd; done; true"
QUICK = Settings(warmup=1, runs=6, rounds=3, threads=(1,), gate_seconds=0)


@pytest.fixture(scope="module")
def phone(tmp_path_factory):
    with fake_phone.start(tmp_path_factory.mktemp("phone")) as running:
        yield running


@pytest.fixture
def options(phone):
    """For one device; afterwards nothing may be left on it, nor running."""
    phone.connect(ONE, TWO)
    yield AdbOptions((ONE,), str(phone.storage), python=str(phone.python), adb=phone.adb)
    assert list(phone.storage.iterdir()) == []
    assert str(phone.storage) not in Phone(phone.adb, ONE).shell(WORKING)


def runner(tmp_path, text):
    path = tmp_path / "runner"
    path.write_text(f"#!/bin/sh\n{text}\n")
    return (Runner(path, None),)


def test_bundle_runs_on_the_device_with_parity_and_leaves_nothing(tiny_bundle, options):
    [report] = bench_android(open_bundle(tiny_bundle), QUICK, options, only=Selection(precision="fp32"))
    assert report.device.kind == "adb" and report.device.machine
    assert {(r.target, r.component, r.status) for r in report.rows} == {
        (t, c, "ok") for t in ("onnx", "tflite", "executorch") for c in ("feature_encoder", "unet")
    }, [r.reason for r in report.rows]
    for row in report.rows:
        assert row.sqnr_db > 90 and sum(map(len, row.rounds_ns)) == 6 and len(row.rounds_ns) == 3 and row.median_ns > 0


def test_sustained_run_logs_tiles_temperature_and_clock(tiny_bundle, options):
    settings = QUICK.model_copy(update={"sustained_minutes": 0.03})
    [report] = bench_android(open_bundle(tiny_bundle), settings, options, only=Selection("onnx", "fp32"))
    [run] = report.sustained
    assert len(run.samples) > 3 and run.samples[-1].at_ns > 1.5e9 and run.first_minute_ns > 0 and run.last_minute_ns > 0
    assert all(s.celsius is None or -30 <= s.celsius <= 150 for s in run.samples)
    assert any("after 0.03 minutes" in note for note in report.notes)


def test_files_survive_the_way_there_and_back(phone, options, tmp_path):
    content = bytes(range(256)) * 5000
    (tmp_path / "there").write_bytes(content)
    device = Phone(phone.adb, ONE)
    device.push(tmp_path / "there", f"{phone.storage}/file")
    device.pull(f"{phone.storage}/file", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    device.shell(f"rm {phone.storage}/file")
    with pytest.raises(DeviceError, match="code 7"):
        device.shell("exit 7")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sleep 1000", "did not end in"),
        ("kill -SEGV $$", "139"),
        ("echo out of memory >&2; exit 3", "out of memory"),
    ],
)
def test_a_runner_that_hangs_or_crashes_costs_its_own_rows(tiny_bundle, options, tmp_path, text, words):
    broken = replace(options, runners=runner(tmp_path, text), run_seconds=3)
    [report] = bench_android(open_bundle(tiny_bundle), QUICK, broken, only=Selection("onnx"))
    assert {r.status for r in report.rows} == {"failed"} and all(words in r.reason for r in report.rows), report.rows[0].reason


def test_wrong_numbers_on_the_device_fall_through_the_gate(tiny_bundle, options, tmp_path):
    """The runner does the job and then disturbs an output, as a broken kernel would."""
    spoil = "import numpy as n; a = n.load('out-sr.npy'); a[0, 0, 0, 0] += 1; n.save('out-sr.npy', a)"
    text = f'{options.python} device_runner.py "$@" && {options.python} -c "{spoil}"'
    [report] = bench_android(
        open_bundle(tiny_bundle), QUICK, replace(options, runners=runner(tmp_path, text)), only=Selection("onnx", "fp32")
    )
    status = {r.component: r.status for r in report.rows}
    assert status == {"feature_encoder": "ok", "unet": "gate failed"}
    assert "SQNR" in next(r.reason for r in report.rows if r.status == "gate failed")


def test_a_full_device_is_told_before_anything_is_pushed(tiny_bundle, phone, options):
    [report] = bench_android(open_bundle(tiny_bundle), QUICK, replace(options, folder=str(phone.full)), only=Selection("tflite", "fp32"))
    assert {r.status for r in report.rows} == {"failed"} and "MB free" in report.rows[0].reason
    assert Phone(phone.adb, ONE).shell(f"ls {phone.full}") == ""


def test_a_device_that_disconnects_costs_no_other_device_anything(tiny_bundle, phone, options, tmp_path):
    """Two devices at once; the second goes while its runner runs. What it leaves is swept by the next run."""
    text = f'touch {tmp_path}/running; sleep 3; exec {options.python} device_runner.py "$@"'
    both = replace(options, serials=(ONE, TWO), runners=runner(tmp_path, text))

    def pull_the_plug():
        while not (tmp_path / "running").exists():
            time.sleep(0.05)
        phone.disconnect(TWO)

    plug = threading.Thread(target=pull_the_plug)
    plug.start()
    good, bad = bench_android(open_bundle(tiny_bundle), QUICK, both, only=Selection("onnx"))
    plug.join()
    assert {r.status for r in good.rows} == {"ok"}, [r.reason for r in good.rows]
    assert {r.status for r in bad.rows} == {"failed"} and len(bad.rows) == len(good.rows)
    phone.connect(TWO)
    [again] = bench_android(open_bundle(tiny_bundle), QUICK, replace(options, serials=(TWO,)), only=Selection("onnx", "fp32"))
    assert {r.status for r in again.rows} == {"ok"}


def test_what_a_killed_run_left_is_swept_whether_or_not_it_had_begun(tiny_bundle, phone, options):
    """Folders of this computer whose maker is dead, one with its runner still at work; one whose maker lives stays, and another computer's that is young."""
    device = Phone(phone.adb, ONE)
    mine = f"{PREFIX}{cache_identity()}-device-"
    never, busy, others, ancient = (f"{mine}a", f"{mine}b", f"{PREFIX}elsewhere-device-c", f"{PREFIX}elsewhere-device-d")
    device.shell(f"mkdir {' '.join(f'{options.folder}/{name}' for name in (never, busy, others, ancient))}")
    device.shell(f"touch -d 2020-01-01T00:00:00 {options.folder}/{ancient}")
    device.shell(f"cd {options.folder}/{busy} && (sleep 1000 </dev/null >/dev/null 2>&1 & echo $! > pid)")
    with remote_folder(device, options.folder) as live:
        [report] = bench_android(open_bundle(tiny_bundle), QUICK, options, only=Selection("onnx", "fp32"))
        assert {r.status for r in report.rows} == {"ok"}
        assert {p.name for p in phone.storage.iterdir()} == {others, live.rpartition("/")[2]}
    device.shell(f"rm -r {options.folder}/{others}")


def test_a_device_that_reboots_costs_its_rows_and_serves_again(tiny_bundle, phone, options, tmp_path):
    """The runner takes adbd down with it; what it leaves is swept by the next run."""
    broken = replace(options, runners=runner(tmp_path, "kill -9 $PPID"))
    [report] = bench_android(open_bundle(tiny_bundle), QUICK, broken, only=Selection("onnx", "fp32"))
    assert {r.status for r in report.rows} == {"failed"} and len(report.rows) == 2
    for _ in range(50):
        phone.connect(ONE)
        if connected(phone.adb).get(ONE) == "device":
            break
        time.sleep(0.2)
    [again] = bench_android(open_bundle(tiny_bundle), QUICK, options, only=Selection("onnx", "fp32"))
    assert {r.status for r in again.rows} == {"ok"}, [r.reason for r in again.rows]


def test_the_device_s_own_port_leads_here_and_is_taken_back(phone):
    """What ``--device web --adb`` needs: the page is then served to the device's own localhost."""
    phone.connect(ONE)
    device = Phone(phone.adb, ONE)

    def listed():
        return subprocess.run([*phone.adb, "-s", device.serial, "reverse", "--list"], check=True, capture_output=True, text=True).stdout

    device.forward_here(47123)
    assert "tcp:47123 tcp:47123" in listed()
    device.end_forward(47123)
    assert "47123" not in listed()
    device.end_forward(47123)  # what is gone is no error


def test_devices_that_are_not_there_are_bad_usage(tiny_bundle, options):
    with pytest.raises(UsageError, match="R58M is not attached"):
        bench_android(open_bundle(tiny_bundle), QUICK, replace(options, serials=("R58M",)))
