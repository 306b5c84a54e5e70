"""The NPU's figures wherever they are shown: who says them, that nothing was measured, and where integers are slower than float16."""

import math
import subprocess

from f2i_bench.host.host_bench import _untimed
from f2i_bench.npu.npu_costs import npu_costs, npu_notes
from f2i_runtime.bundle.store import Bundle
from f2i_runtime.validation.validate import validate
from f2i_runtime.validation.validate_options import ValidateOptions
from npu_graphs import needs_compiler
from repository import F2I

import f2i
from f2i.report.images import ReportImages
from f2i.report.page import render

SOURCE = "estimated by Qualcomm's compiler for Hexagon v73, not measured"
pytestmark = needs_compiler


def test_whole_photos_cost_their_tiles(npu_bundle):
    [cost] = npu_costs(npu_bundle, (12,))
    records = [a.delegation.npu.estimate for a in npu_bundle.manifest.artifacts]
    assert math.isclose(cost.ms, sum(record.ms for record in records)) and cost.ms_lower < cost.ms < cost.ms_upper
    [photo] = cost.photos
    assert photo.tiles > 12e6 / 32**2 and math.isclose(photo.seconds, photo.tiles * cost.ms / 1000, abs_tol=1e-3)
    assert cost.source == SOURCE and cost.chip == "SM8750 (Hexagon v79)" and npu_notes((cost,)) == []


def test_integers_that_cost_more_than_float16_are_told_with_both_figures(npu_bundle):
    def slower(artifact):
        npu = artifact.delegation.npu
        cheap = npu.estimate.model_copy(update={"ms": npu.estimate.ms / 2})
        unknown = npu.estimate.model_copy(update={"uncosted_ops": 3})
        changed = npu.model_copy(update={"estimate": unknown, "estimate_fp16": cheap})
        return artifact.model_copy(update={"delegation": artifact.delegation.model_copy(update={"npu": changed})})

    artifacts = tuple(slower(artifact) for artifact in npu_bundle.manifest.artifacts)
    bundle = Bundle(npu_bundle.root, npu_bundle.manifest.model_copy(update={"artifacts": artifacts}))
    [cost] = npu_costs(bundle)
    assert cost.slower_than_fp16
    slow, uncosted = npu_notes((cost,))
    assert f"{cost.ms:.2f} ms" in slow and f"{cost.ms_fp16:.2f} ms" in slow and SOURCE in slow
    assert "6 ops have no cost" in uncosted and SOURCE in uncosted


def test_inspect_shows_placement_estimate_and_what_it_does_not_prove(npu_bundle):
    said = " ".join(
        subprocess.run([F2I, "inspect", npu_bundle.root], capture_output=True, text=True, timeout=240, check=True).stdout.split()
    )
    assert "100.00%" in said and SOURCE in said and "12 MP s" in said and "does not prove a chip's own rounding" in said
    inspected = f2i.inspect(npu_bundle)
    assert inspected.npu[0].source == SOURCE and inspected.artifacts[0].npu.chip == "sm8750"


def test_a_validation_runs_one_golden_tile_and_the_page_shows_the_estimate(npu_bundle):
    images, seen = ReportImages(), []
    report = validate(npu_bundle, ValidateOptions(), progress=lambda *step: seen.append(step), show=images.collect)
    assert report.passed, [gate.id for gate in report.failed()]
    assert {(row.accelerator, row.tiles) for row in report.components} == {("hexagon_sm8750", 1)}
    [photo] = report.photos
    assert photo.image == f"{npu_bundle.manifest.golden[0].name}, one tile" and photo.latency_ratio is None
    assert [step for step in seen if step[0] == "onnx/fp16/hexagon_sm8750 in software"][-1][1:] == (8, 8)
    page = render(npu_bundle, report, images, command=["f2i", "validate", "bundle"])
    assert SOURCE.replace("'", "&#39;") in page and "simulator (numerics only)" in page and "data:image/svg+xml;base64," in page


def test_a_bench_does_not_time_the_simulator_and_gives_the_estimate(npu_bundle):
    [variant] = npu_bundle.manifest.variants()
    row = _untimed(npu_bundle, variant, "unet", 1)
    assert row.status == "not timed" and "simulator (numerics only)" in row.reason and SOURCE in row.reason
    assert f"{npu_bundle.manifest.artifact('unet', variant).delegation.npu.estimate.ms:.2f} ms" in row.reason
