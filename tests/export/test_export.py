"""Export on the real toolchains: what comes out, what survives a kill, what is refused."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from f2i_export import schedule
from f2i_export.export_plan import plan_export
from f2i_export.write_bundle import ExportOptions, export_bundle
from f2i_quantize.models import checkpoint
from f2i_quantize.models.whole_model import build_components
from f2i_runtime.bundle.store import open_bundle, verify
from f2i_runtime.errors import UsageError
from f2i_runtime.locks import exclusive_lock
from f2i_runtime.photo.samples import sample_tiles
from f2i_runtime.pipeline import open_pipeline
from f2i_runtime.targets import REFERENCE, TARGETS, Variant
from f2i_runtime.tiling.overlap import ROUNDING, band_error, edge_profile, sample_pairs
from repository import F2I


def test_every_target_and_precision_is_there_and_verified(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    assert verify(bundle) > 0
    assert set(bundle.manifest.variants()) == {Variant(t, p) for t in TARGETS for p in ("fp32", "fp16")}
    for artifact in bundle.manifest.artifacts:
        assert artifact.rewrites, f"{artifact.path}: no rewrite was recorded"
        assert all(r.relative_l2 <= (2e-4 if r.name == "sigmoid_gelu" else 1e-5) for r in artifact.rewrites)
        floor = 90 if artifact.precision == "fp32" else 45
        assert artifact.parity is not None and artifact.parity.sqnr_db is not None and artifact.parity.sqnr_db >= floor, artifact.path


def test_small_components_share_a_child_while_every_process_has_work():
    def queued(*targets):
        return [[schedule.Job("lower", "c", "", 32, component, target)] for component in ("unet", "encoder") for target in targets]

    def joined(queue, sizes, least):
        schedule.join_small(queue, lambda job: sizes[job.component], least)
        return [[f"{job.component} {job.target}" for job in group] for group in queue]

    def parts(*components):
        return [[schedule.Job("lower", "c", "", 32, component, "onnx")] for component in components]

    small = {"unet": 40 << 20, "encoder": 20 << 20}
    assert joined(parts("unet", "encoder", "codec"), small | {"codec": 20 << 20}, 1) == [["unet onnx", "encoder onnx"], ["codec onnx"]]
    whole = [["unet onnx", "encoder onnx"], ["unet tflite", "encoder tflite"]]
    assert joined(queued("onnx", "tflite"), small, 2) == whole
    assert joined(queued("onnx", "tflite"), small, 3) == [whole[0], ["unet tflite"], ["encoder tflite"]]
    assert len(joined(queued("onnx", "tflite"), small, 4)) == 4
    assert len(joined(queued("onnx", "tflite"), {"unet": 50 << 20, "encoder": 20 << 20}, 1)) == 4


def test_executorch_is_one_partition_with_every_fallback_explained(tiny_bundle):
    artifacts = [a for a in open_bundle(tiny_bundle).manifest.artifacts if a.target == "executorch"]
    for artifact in artifacts:
        assert artifact.delegation.partitions == 1
        assert all(f.reason for f in artifact.delegation.fallbacks)
    unets = [a for a in artifacts if a.component == "unet"]
    assert all(a.delegation.delegated_share >= 0.99 for a in unets)


SAVED = {"onnx": 0.95, "tflite": 0.7, "coreml": 0.5, "executorch": 0.2}
"""The least that fp16 saves of two bytes a parameter. The casts that it brings count for much where a graph is as large as its weights."""


@pytest.mark.parametrize("target", SAVED)
def test_fp16_artifacts_hold_half_the_weights(tiny_bundle, target):
    graph = build_components(checkpoint.load("tiny"), 32)
    artifacts = {a.precision: a.bytes for a in open_bundle(tiny_bundle).manifest.artifacts if (a.target, a.component) == (target, "unet")}
    two_bytes = 2 * sum(p.numel() for p in graph.components["unet"].module.parameters())
    assert artifacts["fp32"] > 2 * two_bytes
    assert SAVED[target] * two_bytes <= artifacts["fp32"] - artifacts["fp16"] <= two_bytes


def test_golden_vectors_are_what_the_reference_computes(tiny_bundle):
    bundle = open_bundle(tiny_bundle)
    with open_pipeline(bundle, REFERENCE) as reference:
        for golden in bundle.manifest.golden:
            tensors = {name: np.load(bundle.check(record)) for name, record in golden.tensors.items()}
            np.testing.assert_allclose(reference.tile(tensors["lr"]), tensors["sr"], atol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_engine_matches_the_reference_on_a_real_tile(tiny_bundle, target):
    bundle = open_bundle(tiny_bundle)
    [(_, tile)] = sample_tiles(bundle.manifest.tile.size, 1, seed=7)
    with open_pipeline(bundle, REFERENCE) as reference, open_pipeline(bundle, Variant(target, "fp32")) as engine:
        expected, got = reference.tile(tile), engine.tile(tile)
    assert got.dtype == np.float32
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 3e-5


def test_a_large_core_ml_package_is_cut_in_two_that_compute_the_same(tiny_bundle, tmp_path):
    options = ExportOptions("tiny", tmp_path / "cut", ("coreml",), ("fp16",), options=(("split_above_mb", "0"),))
    whole, cut = open_bundle(tiny_bundle), export_bundle(options)
    for artifact in cut.manifest.artifacts:
        assert artifact.path.endswith(".chunks") and artifact.parity.sqnr_db > 45
        packages = {Path(f.path).relative_to(artifact.path).parts[0] for f in artifact.files}
        assert packages == {"chunk1.mlpackage", "chunk2.mlpackage"}
        assert artifact.bytes < 1.3 * whole.manifest.artifact(artifact.component, Variant("coreml", "fp16")).bytes
    [(_, tile)] = sample_tiles(cut.manifest.tile.size, 1, seed=7)
    with open_pipeline(whole, Variant("coreml", "fp16")) as one, open_pipeline(cut, Variant("coreml", "fp16")) as two:
        np.testing.assert_allclose(two.tile(tile), one.tile(tile), atol=2e-3)


def test_every_stage_says_its_time_and_memory(tiny_bundle):
    manifest = open_bundle(tiny_bundle).manifest
    assert {"load", "golden", "capture unet"} <= {stage.name for stage in manifest.reference_stages}
    for artifact in manifest.artifacts:
        stages = {stage.name: stage for stage in artifact.stages}
        assert {"load", "rewrite", "lower", "check"} <= set(stages)
        assert all(50e6 < stage.peak_rss_bytes < 8e9 for stage in stages.values())


def test_overlap_auto_is_measured_and_recorded(cache, tmp_path):
    bundle = export_bundle(ExportOptions("tiny", tmp_path / "auto", ("onnx",), ("fp32",), overlap="auto"))
    tile, gates = bundle.manifest.tile, bundle.manifest.gates
    assert tile.measured is not None and tile.measured.overlap == tile.overlap
    # The weights are random, so that nothing but the seam gate is aimed at: the least overlap that meets it, or the largest there is.
    with open_pipeline(bundle, REFERENCE) as reference:
        squares, floor = edge_profile(reference.tile, tile, sample_pairs(tile))
    ratios = {overlap: band_error(squares, overlap, tile) / max(floor, ROUNDING) for overlap in range(0, 15, 2)}
    expected = next((overlap for overlap, ratio in ratios.items() if ratio <= gates.seam_ratio), 14)
    assert tile.measured.overlap == expected
    assert tile.measured.seam_ratio == pytest.approx(ratios[expected], rel=1e-3)


def test_second_export_takes_everything_from_the_cache(tiny_bundle, tmp_path):
    states = []
    export_bundle(ExportOptions("tiny", tmp_path / "again", precisions=("fp32", "fp16")), lambda e: states.append(e.state))
    assert states and set(states) == {"cached"}
    first, second = (json.loads((p / "manifest.json").read_text()) for p in (tiny_bundle, tmp_path / "again"))
    assert first == second


def test_killed_export_leaves_no_bundle_and_goes_on_where_it_stopped(tmp_path):
    """Real SIGKILL once a component is finished: the finished work is not done again."""
    environment = {**os.environ, "F2I_CACHE": str(tmp_path / "cache")}
    out = tmp_path / "bundle"
    command = [
        F2I,
        "export",
        "tiny",
        "--target",
        "onnx",
        "--precision",
        "fp32",
        "--jobs",
        "1",
        "--out",
        str(out),
    ]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while len(list((tmp_path / "cache" / "jobs").glob("[!.]*/result.json"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {p.parent.name for p in (tmp_path / "cache" / "jobs").glob("[!.]*/result.json")}
    assert len(finished) == 2, "the reference and the first component should be done, the second not"
    assert not out.exists()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("from the cache") == 2
    verify(open_bundle(out))
    assert not list(tmp_path.glob(".f2i-staging-*"))


def test_second_export_into_the_same_folder_is_refused(cache, tmp_path):
    with exclusive_lock(tmp_path / ".bundle.f2i-lock", busy=""), pytest.raises(UsageError, match="another export is writing"):
        export_bundle(ExportOptions("tiny", tmp_path / "bundle"))


def test_folder_that_is_no_bundle_is_never_touched(tmp_path):
    precious = tmp_path / "photos"
    precious.mkdir()
    (precious / "a.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a bundle"):
        export_bundle(ExportOptions("tiny", precious))
    assert (precious / "a.txt").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("delegate", ["coreml", "vulkan"])
def test_a_device_s_own_delegate_takes_the_whole_graph(cache, tmp_path, delegate):
    """Lowered here, run on the device: no engine on this machine computes it, so the manifest records no parity."""
    options = ExportOptions("tiny", tmp_path / "b", ("executorch",), ("fp16",), options=(("delegate", delegate),))
    for artifact in export_bundle(options).manifest.artifacts:
        assert artifact.parity is None and artifact.options == {"delegate": delegate}
        assert artifact.delegation.partitions == 1 and artifact.delegation.delegated_share >= 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": ("tensorrt",)}, "target 'tensorrt' is unknown; choose from"),
        ({"precisions": ("w8a16",)}, "precision 'w8a16' is not available for coreml; it takes fp32, fp16, w8, w8a8"),
        ({"precisions": ("w8a8",)}, "tiny: it is not quantized to w8a8 .* run: f2i quantize tiny --recipe w8a8"),
        ({"tile": 33}, "needs a multiple of 4 pixels; use --tile-size 32"),
        ({"overlap": 16}, "overlap 16 does not fit"),
        ({"options": (("delegate", "qnn"),)}, "option delegate=qnn is unknown"),
        ({"checkpoint": "nowhere"}, "no such checkpoint"),
    ],
)
def test_bad_request_is_one_line_and_writes_nothing(tmp_path, change, message):
    with pytest.raises(UsageError, match=message) as caught:
        export_bundle(ExportOptions(**{"checkpoint": "tiny", "out": tmp_path / "bundle", **change}))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_too_little_memory_is_said_before_a_job_starts(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(schedule, "needed_bytes", lambda job, weights: 1 << 50)
    plan = plan_export(ExportOptions("tiny", tmp_path / "b", tile=64))
    with pytest.raises(UsageError, match="GiB of memory"):
        schedule.run_jobs([plan.reference], weight_bytes=plan.weight_bytes, reference=None, parallel=1, on_event=lambda e: None)


def test_a_result_that_cannot_be_kept_ends_the_export_in_one_line(tmp_path, monkeypatch):
    """The last job's too: without its artifact there is no bundle. A file stands where the cache's folder of results should be."""
    monkeypatch.setenv("F2I_CACHE", str(tmp_path / "cache"))
    plan = plan_export(ExportOptions("tiny", tmp_path / "b", ("onnx",), ("fp32",)))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "jobs").write_text("")
    with pytest.raises(UsageError, match=r"the result of reference cannot be kept: .*set F2I_CACHE") as caught:
        schedule.run_jobs([plan.reference], weight_bytes=plan.weight_bytes, reference=None, parallel=1, on_event=lambda e: None)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("working-*"))
