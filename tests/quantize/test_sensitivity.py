"""Sensitivity and mixed precision on the tiny model: what is measured, what is kept, and what is chosen."""

import json

import onnx
import pytest
import torch
from f2i_export.write_bundle import ExportOptions, export_bundle
from f2i_quantize.ptq import mixed, quantized, sensitivity
from f2i_quantize.ptq.calibrate import smoothed
from f2i_quantize.ptq.fake_layers import fake_component
from f2i_quantize.ptq.quantize_job import QuantizeOptions, calibrated, measure, quantize_checkpoint, workbench
from f2i_quantize.ptq.recipe import load_recipe, with_options
from f2i_quantize.ptq.sensitivity import OutputError, Unit
from f2i_quantize.rewrites.capture import relative_l2
from f2i_runtime.errors import UsageError
from f2i_runtime.photo.samples import sample_tiles
from f2i_runtime.targets import Variant
from f2i_runtime.validation.validate import validate
from f2i_runtime.validation.validate_options import ValidateOptions

from f2i.report.images import ReportImages
from f2i.report.page import render
from f2i.report.sensitivity_charts import trade_off, unit_rows, write_svg

RECIPE = load_recipe("w8a8").model_copy(update={"tiles": 4})
MIXED = load_recipe("w8a8-mixed").model_copy(update={"tiles": 4, "target_psnr": 34.0})


def quiet(*_):
    pass


@pytest.fixture(scope="module")
def subject(cache, tmp_path_factory):
    return calibrated(QuantizeOptions("tiny", RECIPE, tmp_path_factory.mktemp("out") / "x"), RECIPE, quiet)


@pytest.fixture(scope="module")
def chosen(cache, tmp_path_factory):
    """(checkpoint, record) of a mixed quantization."""
    out = tmp_path_factory.mktemp("mixed") / "tiny"
    return out, quantize_checkpoint(QuantizeOptions("tiny", MIXED, out))


def test_switchable_layers_compute_what_the_qdq_graph_computes(subject):
    for part in subject.parts:
        module, _ = smoothed(part, subject.rules, RECIPE, quiet)
        fake = fake_component(module, part.name, subject.rules, subject.tensors)
        mine = {name: rule for name, rule in subject.rules.items() if name.startswith(f"{part.name}/")}
        expected = quantized.simulated(part.module, part.inputs[0], part.name, quantized.Quantized(RECIPE, mine, {}, subject.tensors))
        with torch.no_grad():
            assert fake.switch(fake.layers)
            # A value between two steps may fall either way, which the next layers carry on; a wrong scale costs ten times this.
            assert relative_l2(expected.run(part.inputs[0]), fake.module(*part.inputs[0])) < 1e-2
            assert not fake.switch(())
            torch.testing.assert_close(fake.module(*part.inputs[0]), part.module(*part.inputs[0]), rtol=1e-4, atol=1e-5)


def test_units_are_layers_that_read_one_tensor_and_cover_the_recipe(subject):
    found, level = sensitivity.units(subject.parts, subject.rules, subject.graph)
    assert level == "tensor"
    names = [layer for unit in found for layer in unit.layers]
    assert sorted(names) == sorted(name for name, rule in subject.rules.items() if rule.weights == "int8")
    assert any(unit.name.endswith("attn1.{query,key,value}") for unit in found)
    assert any(unit.name.endswith("phases.{0,1,2,3}") for unit in found)
    conv = next(unit for unit in found if unit.name.endswith("down_blocks.0.resnets.0.conv2"))
    assert conv.macs == 16 * 16 * 8 * 8 * 9  # tile 32, of which the pixel codec makes 16 positions per side


def test_many_units_are_measured_by_block(subject, monkeypatch):
    monkeypatch.setattr(sensitivity, "MOST_UNITS", 12)
    found, level = sensitivity.units(subject.parts, subject.rules, subject.graph)
    assert level == "block" and 1 < len(found) <= 12
    assert {layer for unit in found for layer in unit.layers} == {n for n, r in subject.rules.items() if r.weights == "int8"}


def test_a_killed_measurement_goes_on_and_a_changed_scale_starts_anew(subject, cache, monkeypatch):
    tiles = [torch.from_numpy(tile) for _, tile in sample_tiles(32, 2)]
    bench = workbench(subject, tiles, quiet)
    units = sensitivity.units(subject.parts, subject.rules, subject.graph)[0][:5]
    key = sensitivity.cache_key({"test": 1}, subject.tensors, tiles)

    def stop(_what, done, _of):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sensitivity.measure_units(bench, units, key, stop)
    calls = []
    real = bench.error
    monkeypatch.setattr(bench, "error", lambda *a: calls.append(a) or real(*a))
    errors = sensitivity.measure_units(bench, units, key, quiet)
    assert len(calls) == 2 and list(errors) == [u.name for u in units]
    assert all(e.mse > 0 for e in errors.values())
    name = next(k for k in subject.tensors if k.endswith("input_scale"))
    assert sensitivity.cache_key({"test": 1}, {**subject.tensors, name: subject.tensors[name] * 2}, tiles) != key


def test_order_takes_the_most_noise_per_multiply_add_first():
    units = [Unit("cheap", ("a",), 10), Unit("dear", ("b",), 1000), Unit("silent", ("c",), 10)]
    errors = {"cheap": OutputError(2e-4, 1.0), "dear": OutputError(3e-4, 1.0), "silent": OutputError(0.0, 1.0)}
    order, left = mixed.greedy_order(units, errors, 5e-4)
    assert [u.name for u in order] == ["cheap", "dear", "silent"]
    assert left == pytest.approx([5e-4, 3e-4, 0.0, 0.0], abs=1e-12)


def test_mixed_reaches_its_target_with_the_rules_it_stored(chosen):
    out, record = chosen
    choice = record["mixed"]
    assert choice["psnr_db"] >= 34.0 > choice["sensitivity"]["quantized_psnr_db"]
    assert 0 < choice["macs_share"] < 1
    found = quantized.read(out, "w8a8-mixed")
    assert found.recipe.target_psnr == 34.0 and found.calibration["mixed"]["layers"] == choice["layers"]
    assert all(found.rules[layer].weights == "float" for layer in choice["layers"])
    assert any(rule.weights == "int8" for rule in found.rules.values())
    # What was stored is measured again: the calibrated checkpoint, not the switchable one it was chosen on.
    subject = calibrated(QuantizeOptions("tiny", found.recipe, out.with_name("again")), found.recipe, quiet)
    measured, _ = measure(subject, quiet, None)
    assert measured["quantized_psnr_db"] == pytest.approx(choice["psnr_db"], abs=0.5)


def test_a_target_that_is_reached_already_leaves_nothing_float(subject):
    _, choice = measure(subject, quiet, 5.0)
    assert choice.record["layers"] == [] and choice.record["macs_share"] == 0 and choice.record["curve"][0]["psnr_db"] >= 5


def test_target_is_for_mixed_recipes_only():
    with pytest.raises(UsageError, match="--target-psnr is for recipes of precision w8a8-mixed, got w8a8"):
        with_options(RECIPE, target_psnr=40.0)
    assert with_options(MIXED, target_psnr=50.0).target_psnr == 50.0


def test_pictures_show_every_unit_and_the_choice(chosen, tmp_path):
    _, record = chosen
    choice = record["mixed"]
    rows = unit_rows(choice["sensitivity"])
    assert len(rows["rows"]) == len(choice["sensitivity"]["units"])
    longest = max(rows["rows"], key=lambda r: r["error"])
    worst = max(choice["sensitivity"]["units"], key=lambda u: u["mse"])
    assert longest["title"].startswith(worst["name"])
    write_svg(tmp_path / "s.svg", choice["sensitivity"])
    text = (tmp_path / "s.svg").read_text()
    assert text.count("<rect class=") == 2 * len(rows["rows"]) and "&lt;" not in text
    chart = trade_off(choice)
    assert chart["chosen"] and len(chart["points"]) >= 3
    assert chart["plot"]["top"] <= chart["chosen"]["y"] <= chart["target"]["y"] <= chart["plot"]["bottom"]
    json.dumps(choice, allow_nan=False)


@pytest.mark.slow
def test_bundle_carries_the_chosen_rules_and_the_report_shows_them(chosen, tmp_path):
    """Two precisions of one checkpoint, on ONNX Runtime. Where int16 was clipped to what calibration had seen, 22 dB were left."""
    source, record = chosen
    both = tmp_path / "both"
    quantize_checkpoint(QuantizeOptions(str(source), load_recipe("w8a16").model_copy(update={"tiles": 4}), both))
    bundle = export_bundle(ExportOptions(str(both), tmp_path / "bundle", ("onnx",), ("w8a8-mixed", "w8a16")))
    model = bundle.manifest.model
    assert [r["match"] for r in model.recipe["w8a8-mixed"]["rules"]][-len(record["mixed"]["layers"]) :] == record["mixed"]["layers"]
    assert len(model.recipe["w8a8-mixed"]["sha256"]) == 64 and model.calibration["w8a8-mixed"]["mixed"]["psnr_db"] >= 34
    sqnr = {(a.component, a.precision): a.parity.sqnr_db for a in bundle.manifest.artifacts}
    assert sqnr["unet", "w8a16"] > 30 and sqnr["feature_encoder", "w8a16"] > 50
    integers = onnx.load(bundle.root / bundle.manifest.artifact("unet", Variant("onnx", "w8a16")).path).graph.initializer
    assert any(i.data_type == onnx.TensorProto.INT16 for i in integers)
    images = ReportImages()
    report = validate(bundle, ValidateOptions(tiles=1, photos=1), show=images.collect)
    text = render(bundle, report, images, command=["f2i"])
    assert "Layers left in float: w8a8-mixed" in text and 'class="predicted"' in text and text.count('class="measured"') >= 3
    assert text.count('class="error"') == len(record["mixed"]["sensitivity"]["units"])
