"""Benchmarks: verdicts that hold what they promise on known distributions, and the host's protocol on real engines."""

import json
import subprocess
import sys

import numpy as np
import pytest
from f2i_bench.bench import BenchOptions, run_bench
from f2i_bench.core.protocol import BenchReport, Device, Row, Settings, read_bench, with_baseline
from f2i_bench.core.sensors import Sensors, TemperatureGate
from f2i_bench.core.verdict import compare, summarize
from f2i_bench.host.host_bench import bench_host
from f2i_runtime.bundle.store import open_bundle
from f2i_runtime.errors import UsageError
from f2i_runtime.files import write_json
from f2i_runtime.targets import Selection
from published_schema import assert_fits
from repository import F2I

QUICK = Settings(warmup=2, runs=12, rounds=4, seconds=1.0, threads=(1,), gate_seconds=0)


def rounds_of(draw, scale=1.0, rounds=10, runs=5, drift=0.05, noise=0.08, spikes=0.05):
    """Latencies as machines give them: a level per round that drifts, skewed noise on each run, and now and then a run three times as long."""
    levels = np.exp(draw.normal(0, drift, rounds))
    runs_ = 1e7 * scale * levels[:, None] * np.exp(np.abs(draw.normal(0, noise, (rounds, runs))))
    return np.where(draw.random((rounds, runs)) < spikes, 3 * runs_, runs_).astype(np.int64).tolist()


@pytest.mark.parametrize("drift", [0.0, 0.05, 0.15])
def test_equal_distributions_are_rarely_called_different(drift):
    draw = np.random.default_rng(1)
    verdicts = [compare(rounds_of(draw, drift=drift), rounds_of(draw, drift=drift)).verdict for _ in range(400)]
    assert sum(v != "inconclusive" for v in verdicts) <= 0.03 * 400


def test_interval_covers_the_true_ratio_as_often_as_it_says():
    draw = np.random.default_rng(2)
    covered = [(c := compare(rounds_of(draw), rounds_of(draw, 1.1))).low <= 1.1 <= c.high for _ in range(400)]
    assert np.mean(covered) >= 0.96


@pytest.mark.parametrize(("scale", "verdict"), [(1.2, "slower"), (1 / 1.2, "faster")])
def test_a_fifth_is_found(scale, verdict):
    draw = np.random.default_rng(3)
    found = [compare(rounds_of(draw), rounds_of(draw, scale)).verdict for _ in range(200)]
    assert found.count(verdict) >= 190


def test_a_difference_nobody_would_act_on_is_inconclusive_however_sure():
    draw = np.random.default_rng(4)
    a, b = (rounds_of(draw, scale, rounds=200, drift=0.01) for scale in (1.0, 1.03))
    result = compare(a, b)
    assert result.low > 1 and result.verdict == "inconclusive"


def test_two_rounds_conclude_nothing():
    assert compare([[10], [10]], [[30], [30]]).verdict == "inconclusive"


@pytest.mark.parametrize(("now", "verdict"), [(1000, "inconclusive"), (1005, "inconclusive"), (1012, "slower"), (985, "faster")])
def test_counted_instructions_are_compared_by_a_hundredth(now, verdict):
    base = {"target": "onnx", "precision": "fp32", "component": "unet", "threads": 1, "status": "ok", "cpu_level": "cortex-a53"}
    device = Device(kind="arm64", name="qemu", os="Linux", machine="aarch64", cpu="cortex-a53", cores=1, memory_bytes=1, emulated=True)
    common = {"created": "now", "device": device, "versions": {}, "bundle": "b", "manifest_sha256": "0", "settings": Settings()}
    before, after = (BenchReport(**common, rows=(Row(**base, instructions=n * 10**6),)) for n in (1000, now))
    [found] = with_baseline(after, before, "before").compared
    assert (found.measure, found.verdict, found.cpu_level) == ("instructions", verdict, "cortex-a53")
    assert found.low < found.ratio < found.high


def test_bootstrap_interval_covers_the_median():
    draw = np.random.default_rng(5)
    truth = 1e7 * np.exp(0.08 * 0.6744897501960817)  # the median of |N(0, 0.08)|, level 1
    covered = []
    for _ in range(30):
        s = summarize(rounds_of(draw, rounds=12, drift=0.03, spikes=0))
        covered.append(s.low <= truth <= s.high)
        assert s.low <= s.median <= s.high <= s.p90 * 1.5
    assert np.mean(covered) >= 0.85


def sysfs(folder, celsius):
    zone = folder / "class" / "thermal" / "thermal_zone0"
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "temp").write_text(str(int(celsius * 1000)))
    return Sensors(folder)


def test_temperature_gate_waits_until_cool_and_gives_up_in_time(tmp_path):
    sensors, temperatures = sysfs(tmp_path, 60), iter([55, 48, 39])
    gate = TemperatureGate(sensors, 40.0, 30, sleep=lambda _: sysfs(tmp_path, next(temperatures)))
    gate.wait()
    assert (gate.waited, gate.gave_up, sensors.celsius()) == (3.0, 0, 39.0)
    sysfs(tmp_path, 90)
    stuck = TemperatureGate(sensors, 40.0, 5, sleep=lambda _: None)
    stuck.wait()
    assert (stuck.waited, stuck.gave_up) == (5.0, 1)
    assert "gave up 1" in stuck.note()


def test_absent_and_broken_sensors_are_not_read_as_temperatures(tmp_path):
    assert Sensors(tmp_path).celsius() is None and Sensors(tmp_path).megahertz() is None
    assert sysfs(tmp_path, -274).celsius() is None
    gate = TemperatureGate(Sensors(tmp_path), None, 5, sleep=lambda _: pytest.fail("waited without a sensor"))
    gate.wait()


@pytest.fixture(scope="module")
def measured(tiny_bundle):
    return bench_host(open_bundle(tiny_bundle), QUICK, only=Selection(precision="fp32"))


def test_host_measures_every_variant_and_component(measured):
    rows = {(r.target, r.component): r for r in measured.rows}
    assert len(rows) == 8
    for (target, _), row in rows.items():
        if target == "coreml" and sys.platform != "darwin":
            assert row.status == "not timed" and "macOS" in row.reason and row.median_ns is None
            continue
        assert row.status == "ok", row.reason
        assert row.low_ns <= row.median_ns <= row.high_ns and row.median_ns <= row.p90_ns and row.load_ns > 0
        assert 3 <= len(row.rounds_ns) <= 4 and row.peak_rss_bytes > 50e6 and row.flops > 1e5 and row.bytes_moved > 1e4
        assert row.limit_share > 0 and row.bound in {"arithmetic", "memory"}
    assert measured.limits[0].fp32_flops > 1e9 and measured.limits[0].bandwidth > 1e8
    profile = rows["onnx", "unet"].ops
    assert {"Conv"} <= {op.op for op in profile} and sum(op.ns for op in profile) < 20 * rows["onnx", "unet"].median_ns


def test_flops_are_the_convolutions_and_products_of_the_graph(tiny_bundle):
    """A convolution counted by hand, and the whole against torch's counter on a real run."""
    import torch
    from f2i_bench.host.graph_cost import graph_cost
    from torch.utils.flop_counter import FlopCounterMode

    bundle = open_bundle(tiny_bundle)
    for name, component in bundle.manifest.components.items():
        path = bundle.check(component.reference)
        cost = graph_cost(path)
        module, shapes = torch.export.load(path).module(), [spec.shape for spec in component.inputs.values()]
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(*(torch.rand(s) for s in shapes))
        assert cost.flops == counter.get_total_flops() == sum(cost.layers.values()), name


def test_json_round_trip_and_baseline(measured, tmp_path):
    path = tmp_path / "bench.json"
    write_json(path, measured.as_json())
    again = read_bench(path)
    assert again == measured and json.loads(path.read_text())["schema"] == 2
    assert_fits("bench", json.loads(path.read_text()))
    same = with_baseline(measured, again, "bench.json")
    assert len(same.compared) == 6 and {c.verdict for c in same.compared} == {"inconclusive"}
    weaker = tuple(m.model_copy(update={"fp32_flops": m.fp32_flops / 2}) for m in measured.limits)
    slower = tuple(r.model_copy(update={"rounds_ns": tuple(tuple(3 * n for n in s) for s in r.rounds_ns)}) for r in measured.rows)
    assert "slower" in {c.verdict for c in with_baseline(measured.model_copy(update={"rows": slower}), again, "bench.json").compared}
    disturbed = with_baseline(measured.model_copy(update={"rows": slower, "limits": weaker}), again, "bench.json")
    assert {c.verdict for c in disturbed.compared} == {"inconclusive"} and "0.50 times" in disturbed.notes[-1]
    other = again.model_copy(update={"device": again.device.model_copy(update={"cpu": "another"})})
    with pytest.raises(UsageError, match="same device"):
        with_baseline(measured, other, "bench.json")
    path.write_text('{"schema": 2}')
    with pytest.raises(UsageError, match="created"):
        read_bench(path)
    path.write_text('{"schema": 1}')
    with pytest.raises(UsageError, match="written with schema 1, and this version reads schema 2"):
        read_bench(path)


def test_an_engine_that_fails_costs_its_own_rows(bundle_copy):
    """A file that no engine can load, under its right hash."""
    from f2i_runtime.bundle.store import tree_records

    victim = bundle_copy / "onnx" / "fp32" / "unet.onnx"
    victim.write_bytes(b"not a model")
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    row = next(a for a in manifest["artifacts"] if a["path"] == "onnx/fp32/unet.onnx")
    row["files"] = [r.model_dump() for r in tree_records(bundle_copy, victim)]
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    quick = QUICK.model_copy(update={"runs": 3, "rounds": 3, "seconds": 0.2})
    report = bench_host(open_bundle(bundle_copy), quick, only=Selection(precision="fp32"))
    status = {(r.target, r.status) for r in report.rows}
    assert ("onnx", "failed") in status and ("tflite", "ok") in status and ("executorch", "ok") in status
    assert "unet" in next(r.reason for r in report.rows if r.status == "failed")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (BenchOptions(device="toaster"), "choose from"),
        (BenchOptions(device="host:1"), "choose from"),
        pytest.param(BenchOptions(device="apple"), "needs a Mac", marks=pytest.mark.skipif(sys.platform == "darwin", reason="this is one")),
        (BenchOptions(threads="two"), "--threads"),
        (BenchOptions(megapixels="12,big"), "--megapixels"),
        (BenchOptions(only=Selection("nope")), "it holds"),
    ],
)
def test_bad_options(tiny_bundle, options, words):
    with pytest.raises(UsageError, match=words):
        run_bench(open_bundle(tiny_bundle), options)


def test_command_writes_its_schema(tiny_bundle, tmp_path):
    command = [F2I, "bench", str(tiny_bundle), "--target", "tflite", "--precision", "fp32"]
    command += ["--threads", "1", "--runs", "4", "--seconds", "0.5", "--megapixels", "", "--json", str(tmp_path / "b.json")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert "median ms" in result.stdout and "unet" in result.stdout
    assert isinstance(read_bench(tmp_path / "b.json"), BenchReport)


def test_prediction_is_checked_against_a_photo_really_upscaled(tiny_bundle, measured):
    from f2i_bench.host.photo_predictor import photo_size, with_predictions
    from f2i_runtime.pipeline import photo_plan

    bundle = open_bundle(tiny_bundle)
    check, large = with_predictions(bundle, measured, [12.0]).predictions
    assert check.measured_seconds > 0 and check.error == pytest.approx(check.seconds / check.measured_seconds - 1)
    assert [(p.tiles, p.megapixels) for p in (check, large)] == [(photo_plan(bundle, *photo_size(m)).count, m) for m in (2, 12)]
    # What is left of both after their tiles is the same per megapixel: nothing else was added, and it is no model's.
    of_variant = [r for r in measured.rows if (r.target, r.precision, r.threads) == (check.target, check.precision, check.threads)]
    tile = sum(row.median_ns for row in of_variant) / 1e9
    rest = [(p.seconds - p.tiles * tile) / p.megapixels for p in (check, large)]
    assert rest[0] == pytest.approx(rest[1], abs=1e-9) and rest[0] >= -1e-9
    assert large.peak_rss_bytes >= check.peak_rss_bytes > 50e6


def test_a_photo_is_its_tiles_and_what_its_size_costs(tiny_bundle):
    from f2i_bench.host.photo_predictor import Overhead, photo_size, predict
    from f2i_runtime.pipeline import photo_plan

    bundle = open_bundle(tiny_bundle)
    components = [call.component for call in bundle.manifest.dataflow]
    common = {"target": "onnx", "precision": "fp32", "threads": 1, "status": "ok"}
    rows = [Row(**common, component=c, median_ns=int(2e6 * (k + 1)), peak_rss_bytes=1000 * (k + 1)) for k, c in enumerate(components)]
    found = predict(bundle, rows, Overhead(0.5, 10.0), 12.0, cores=2.0)
    tile_seconds = sum(2e-3 * (k + 1) for k in range(len(components)))
    assert found.tiles == photo_plan(bundle, *photo_size(12)).count
    assert found.seconds == pytest.approx(found.tiles * tile_seconds + 6.0)
    assert found.core_seconds == pytest.approx(2 * found.tiles * tile_seconds + 6.0)
    assert found.peak_rss_bytes == 1000 * len(components) + 10 * photo_size(12)[1]
    assert predict(bundle, rows[1:], Overhead(0.5, 10.0), 12.0, cores=2.0) is None  # a component that was not measured


@pytest.mark.slow
def test_on_this_machine_equal_builds_are_inconclusive_and_a_slowed_one_is_slower(tiny_bundle):
    bundle, settings = open_bundle(tiny_bundle), Settings(threads=(1,), seconds=3)
    first, second, slowed = (bench_host(bundle, settings, only=Selection(precision="fp32"), slowdown=s) for s in (0.0, 0.0, 0.2))
    same = [c.verdict for c in with_baseline(second, first, "first").compared]
    slower = [c.verdict for c in with_baseline(slowed, first, "first").compared]
    assert same.count("inconclusive") >= 0.95 * len(same)
    assert slower.count("slower") > len(slower) / 2 and "faster" not in slower


@pytest.mark.slow
def test_peers_are_exported_as_documented_and_run(tiny_bundle):
    from f2i_bench.suites.peers import compare_peers

    peers = compare_peers(open_bundle(tiny_bundle), threads=1, rounds=3, component="feature_encoder")
    assert [p.target for p in peers] == ["executorch", "tflite"]
    assert all(p.ours_ns > 0 and p.theirs_ns > 0 and p.low <= p.ratio <= p.high for p in peers)
