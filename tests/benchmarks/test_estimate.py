"""Estimates of whole models: figures add up, repeat, come from the cache, and the command says what they are."""

import dataclasses
import json

import pytest
import torch
from f2i_bench.npu import estimate as estimates
from f2i_bench.npu.estimate import EstimateOptions, check_options, estimate_models
from f2i_bench.npu.estimate_records import add_up, read_qualities
from f2i_bench.npu.peer_networks import NETWORKS, build_network
from f2i_bench.npu.subjects import bundled_quality, module_subject, subject
from f2i_bench.suites.estimate_truth import TILE, Truth, truths, verdict
from f2i_bench.suites.npu_peers import peers_table
from f2i_export.hexagon.to_graphs import highest_rank
from f2i_runtime.errors import UsageError
from npu_graphs import convolution, needs_compiler
from published_schema import assert_fits
from typer.testing import CliRunner

from f2i.cli import app

SOURCE = "estimated by Qualcomm's compiler for Hexagon v73, not measured"


def quiet(_what, _done, _of):
    pass


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("estimates")
        patch.setenv("F2I_CACHE", str(folder))
        yield folder


RANKS = {}
"""The largest number of axes in each graph that was written for the compiler."""


@pytest.fixture(scope="module")
def tiny(own_cache):
    """The tiny model in float16."""
    model = subject("tiny", 32)

    def write(part, folder):
        graph, sample = model.write(part, folder)
        assert sample is not None and sample.is_file()
        RANKS[part] = highest_rank(graph)
        return graph, sample

    return estimate_models([dataclasses.replace(model, write=write)], EstimateOptions(), quiet, {"tiny": 21.5})


@needs_compiler
def test_a_model_is_the_sum_of_its_components(tiny):
    assert tiny.source == SOURCE and [m.precision for m in tiny.models] == ["fp16"]
    for m in tiny.models:
        assert [c.component for c in m.components] == ["feature_encoder", "unet"]
        assert m.ms == pytest.approx(sum(c.ms for c in m.components)) and 0 < m.ms_lower <= m.ms <= m.ms_upper
        assert m.ms_per_megapixel == pytest.approx(m.ms / 32**2 * 1e6, rel=1e-3)
        assert m.quality == 21.5 and m.parameters == sum(c.parameters for c in m.components)
        assert not m.one_sample_scales and m.uncosted_ops == 0
    doubled = tiny.models[0].components[0].model_copy(update={"calls": 2})
    assert add_up([doubled]).ms == pytest.approx(2 * doubled.ms)


@needs_compiler
def test_what_was_estimated_comes_from_the_cache(tiny, monkeypatch):
    def compile_again(_):
        raise AssertionError("compiled again")

    monkeypatch.setattr(estimates, "estimate_graph", compile_again)
    again = estimate_models([subject("tiny", 32)], EstimateOptions(), quiet, {"tiny": 21.5})
    assert again == tiny


@needs_compiler
def test_no_tensor_of_the_exported_graphs_has_more_than_four_axes(tiny):
    assert set(RANKS) == {"feature_encoder", "unet"} and max(RANKS.values()) <= 4


@needs_compiler
@pytest.mark.slow
def test_integers_are_estimated_too_and_say_how_they_were_made(own_cache):
    [w8a8, w8a16] = estimate_models([subject("tiny", 32)], EstimateOptions(("w8a8", "w8a16")), quiet).models
    assert w8a8.one_sample_scales and w8a16.one_sample_scales and w8a8.ms > 0 and w8a16.ms > 0


@needs_compiler
def test_the_command_writes_json_of_its_schema_a_table_and_a_picture(tiny, tmp_path):
    graph, quality = convolution(tmp_path / "toy.onnx"), tmp_path / "quality.json"
    quality.write_text(json.dumps({"tiny": 21.5, str(graph): 20.0}))
    files = ["--json", str(tmp_path / "e.json"), "--quality", str(quality), "--picture", str(tmp_path / "e.svg")]
    done = CliRunner().invoke(app, ["estimate", "tiny", str(graph), "--tile-size", "32", *files])  # one from the cache, one compiled
    assert done.exit_code == 0, done.output
    assert SOURCE in " ".join(done.output.split())
    found = json.loads((tmp_path / "e.json").read_text())
    assert_fits("estimate", found)
    assert found["source"] == SOURCE and [m["tile"] for m in found["models"]] == [32, 32]
    assert found["models"][1]["parameters"] is None
    picture = (tmp_path / "e.svg").read_text()
    assert picture.count("<title>") == 2 and "toy.onnx fp16" in picture and "not measured" in picture


@needs_compiler
def test_options_and_files_that_cannot_be_are_one_line(tmp_path):
    with pytest.raises(UsageError, match=r"precision 'fp8'.*choose from fp16, w8a8, w8a16"):
        check_options(EstimateOptions(("fp8",)))
    with pytest.raises(UsageError, match="estimates nothing"):
        check_options(EstimateOptions(soc="sm8650"))
    with pytest.raises(UsageError, match="no such file"):
        subject(str(tmp_path / "none.onnx"), 32)
    (tmp_path / "bad.onnx").write_bytes(b"not a graph")
    with pytest.raises(UsageError, match="cannot be read as an ONNX graph"):
        subject(str(tmp_path / "bad.onnx"), 32)
    (tmp_path / "q.json").write_text('{"nano": "good"}')
    with pytest.raises(UsageError, match="expected a JSON object of models and dB"):
        read_qualities(tmp_path / "q.json")


def test_bundled_models_have_the_quality_that_was_measured():
    assert bundled_quality("nano") == 37.2153 and bundled_quality("pico") == 37.0949 and bundled_quality("tiny") is None


PUBLISHED = {
    "QuickSRNet-S": 33.3e3,
    "QuickSRNet-L": 436e3,
    "Real-ESRGAN general": 1.21e6,
    "Real-ESRGAN x4plus": 16.7e6,
    "EDSR-baseline": 1.37e6,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_the_parameters_that_their_authors_publish(name):
    network = build_network(name)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(PUBLISHED[name], rel=0.005)
    scale = 2 if name == "EDSR-baseline" else 4
    if "x4plus" not in name:
        assert network(torch.rand(1, 3, 8, 8)).shape == (1, 3, 8 * scale, 8 * scale)


@needs_compiler
@pytest.mark.slow
def test_a_network_of_others_stands_beside_its_measurement(own_cache):
    report = estimate_models([module_subject("QuickSRNet-S", build_network("QuickSRNet-S"), TILE)], EstimateOptions(), quiet)
    [row] = truths(report)
    assert row.measured_ms == 1.08 and row.ratio == pytest.approx(row.estimated_ms / 1.08) and 0.7 <= row.ratio <= 1.4
    assert peers_table(report).row_count == 1


def test_the_verdict_wants_all_within_the_wide_and_most_within_the_narrow_range():
    def row(ratio):
        return Truth("n", "fp16", 1.0, 1.0, 1.0, 1.0, ratio, 0)

    assert verdict([row(0.9), row(1.1), row(0.72)])[0]
    assert not verdict([row(0.9), row(1.1), row(1.5)])[0] and not verdict([row(0.9), row(0.72), row(1.39)])[0]
    assert verdict([row(0.9), row(None)])[1].startswith("1 of 1 ")
