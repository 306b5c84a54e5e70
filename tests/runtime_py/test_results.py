"""The records of a validation: gates that are not numbers, ids that stay, reports that cannot contradict themselves."""

import json
import math

import pytest
from f2i_runtime.errors import UsageError
from f2i_runtime.targets import Variant
from f2i_runtime.validation.results import FIGURES, Environment, Gate, Report, Rows, Subject, gate, joined, read_report, report_of
from pydantic import ValidationError

ENVIRONMENT = Environment(machine="arm64", python="3.11", bundle="b", reference="torch", tiling_psnr_db=None, simulated_sqnr_db={})
LITERT = Variant("tflite", "w8a8")


@pytest.mark.parametrize(
    ("figure", "value", "passed", "shown"),
    [
        ("sqnr_db", 25.0, True, 25.0),
        ("sqnr_db", 24.999, False, 24.999),
        ("sqnr_db", math.inf, True, None),
        ("sqnr_db", -math.inf, False, None),
        ("sqnr_db", math.nan, False, None),
        ("sqnr_db", None, False, None),
        ("layer_rel_l2", 25.0, True, 25.0),
        ("layer_rel_l2", 25.001, False, 25.001),
        ("layer_rel_l2", math.nan, False, None),
        ("layer_rel_l2", math.inf, False, None),
    ],
)
def test_a_gate_passes_on_its_own_side_of_the_limit_and_never_without_a_number(figure, value, passed, shown):
    found = gate(Subject(LITERT, component="unet"), figure, value, 25.0)
    assert (found.passed, found.value, found.at_least) == (passed, shown, FIGURES[figure].at_least)


def test_an_id_is_made_of_the_subject_and_not_of_what_a_run_found():
    ids = [gate(Subject(LITERT, component="unet"), "layer_rel_l2", 0.1, 0.01, worst).id for worst in ("conv_in", "conv_out")]
    assert ids == ["tflite/w8a8 unet layer_rel_l2"] * 2
    npu = gate(Subject(Variant("onnx", "w8a16", "hexagon"), image="a.png"), "psnr_db", 40.0, 38.0)
    assert npu.id == "onnx/w8a16/hexagon a.png psnr_db" and npu.variant == ("onnx", "w8a16", "hexagon")
    assert gate(Subject(LITERT, other="onnx"), "engines_psnr_db", 50.0, 45.0).id == "tflite/w8a8 engines_psnr_db to onnx"
    alone = gate(Subject(), "tiling_psnr_db", 50.0, 45.0)
    assert alone.id == "reference tiling_psnr_db" and alone.variant is None


def test_a_report_s_verdict_is_its_gates_and_none_without_any():
    good, bad = gate(Subject(LITERT), "finite_share", 1.0, 1.0), gate(Subject(LITERT), "output_std", 0.0, 1e-4)
    assert report_of(Rows(gates=(good,)), ENVIRONMENT).passed
    failing = report_of(Rows(gates=(good, bad)), ENVIRONMENT)
    assert not failing.passed and failing.failed() == [bad]
    assert not report_of(Rows(), ENVIRONMENT).passed
    with pytest.raises(ValidationError, match="passed is True"):
        Report.model_validate(failing.as_json() | {"passed": True})
    with pytest.raises(ValidationError, match="two gates have the id"):
        report_of(Rows(gates=(good, good)), ENVIRONMENT)


def test_json_is_read_back_as_the_same_report(tmp_path):
    report = report_of(Rows(gates=(gate(Subject(LITERT, component="unet"), "sqnr_db", math.inf, 25.0, "why"),)), ENVIRONMENT)
    (tmp_path / "r.json").write_text(json.dumps(report.as_json()), encoding="utf-8-sig")
    assert read_report(tmp_path / "r.json") == report
    rows = json.loads((tmp_path / "r.json").read_text(encoding="utf-8-sig"))["gates"]
    assert [(r["target"], r["precision"], r["accelerator"]) for r in rows] == [("tflite", "w8a8", "cpu")]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 1}, "written with schema 1, and this version reads schema 2; write it again with f2i validate --json"),
        ({"schema": None}, "it names no schema"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"gates": [{"id": "x"}]}, "gates.0.target: Field required"),
    ],
)
def test_another_schema_is_refused_in_one_line(change, words, tmp_path):
    report = report_of(Rows(gates=(gate(Subject(LITERT), "finite_share", 1.0, 1.0),)), ENVIRONMENT)
    (tmp_path / "r.json").write_text(json.dumps(report.as_json() | change))
    with pytest.raises(UsageError, match=r"r\.json: ") as caught:
        read_report(tmp_path / "r.json")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_are_finite_and_records_do_not_change():
    found = gate(Subject(LITERT), "finite_share", 1.0, 1.0)
    with pytest.raises(ValidationError):
        found.passed = False
    with pytest.raises(ValidationError, match="finite"):
        Gate.model_validate(found.model_dump() | {"value": math.inf})


def test_rows_are_added_in_order_and_bad_ops_are_none_where_nobody_looked():
    one, two = gate(Subject(LITERT), "finite_share", 1.0, 1.0), gate(Subject(LITERT), "output_std", 1.0, 1e-4)
    assert joined([Rows(gates=(two,)), Rows(gates=(one,))]).gates == (two, one)
    assert joined([Rows(), Rows()]).bad_ops is None and joined([Rows(), Rows(bad_ops=())]).bad_ops == ()
