"""What users' CI is given: the pytest plugin, the summary, the example project, and the action's own steps."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from f2i_runtime.errors import UsageError
from f2i_runtime.targets import Variant
from f2i_runtime.validation.results import ComponentRow, Environment, PhotoRow, Rows, Subject, gate, read_report, report_of
from repository import F2I, ROOT

from f2i.result_views import markdown

ENVIRONMENT = Environment(machine="x86_64", python="3.11", bundle="tiny", reference="torch", tiling_psnr_db=None, simulated_sqnr_db={})
PLUGIN = ["-p", "f2i.pytest_plugin"]


def run_pytest(folder, *arguments, **environment):
    registered = subprocess.run([sys.executable, "-m", "pytest", "--help"], capture_output=True, text=True, cwd=folder).stdout
    plugin = [] if "--f2i-bundle" in registered else PLUGIN
    return subprocess.run(
        [sys.executable, "-m", "pytest", *plugin, "-p", "no:cacheprovider", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **environment},
        timeout=300,
    )


def test_example_project_passes_with_its_gates(tiny_bundle, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(ROOT / "examples" / "ci-project", project)
    options = ["--f2i-bundle", tiny_bundle, "--f2i-target", "onnx", "--f2i-num-tiles", "1", "-v", "--junitxml", tmp_path / "j.xml"]
    result = run_pytest(project, *options, BUNDLE=str(tiny_bundle))
    assert result.returncode == 0, result.stdout + result.stderr
    assert (
        "tiny/manifest.json::onnx/fp16 unet sqnr_db PASSED" in result.stdout and "test_a_tile_equals_the_reference[fp32]" in result.stdout
    )
    written = (tmp_path / "j.xml").read_text()
    assert 'name="onnx/fp32 unet sqnr_db"' in written and '<property name="figure" value="token_cosine"' not in written
    assert '<property name="figure" value="sqnr_db"' in written and '<property name="limit" value="90.0"' in written


def test_a_gate_that_fails_is_a_failed_test_with_one_line(bundle_copy, tmp_path):
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    manifest["gates"]["component_sqnr_db"]["fp32"] = 400.0
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    options = ["--f2i-bundle", bundle_copy, "--f2i-target", "onnx", "--f2i-precision", "fp32", "--f2i-num-tiles", "1", "-k", "sqnr_db"]
    result = run_pytest(tmp_path, *options)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "2 failed" in result.stdout and "deselected" in result.stdout
    assert re.search(r"onnx/fp32 unet sqnr_db is \d+\.\d+, must be at least 400", result.stdout) and "Traceback" not in result.stdout


def test_a_bundle_that_is_none_is_bad_usage(tmp_path):
    result = run_pytest(tmp_path, "--f2i-bundle", tmp_path / "nothing")
    assert result.returncode == 4 and "no such folder" in result.stderr


def report(psnr, limit=55.0):
    variant = Variant("onnx", "fp16")
    row = variant._asdict()
    component = ComponentRow(**row, component="unet", engine="onnxruntime", tiles=1, sqnr_db=60.0, rel_l2=1e-3, max_abs=0.1, cosine=1.0)
    photo = PhotoRow(**row, image="a.png", psnr_db=psnr, ssim=0.9, seam_ratio=None, seam_gradient_ratio=None, latency_ratio=0.5)
    return report_of(Rows((component,), (), (photo,), (gate(Subject(variant, image="a.png"), "psnr_db", psnr, limit),)), ENVIRONMENT)


def test_summary_shows_changes_and_what_failed():
    text = markdown(report(60.0), report(62.0))
    assert "✅ all 1 gates passed" in text and "60.00 (-2.00) ⚠️" in text and "60.00 (+0.00) |" in text
    text = markdown(report(50.0))
    assert "❌ 1 of 1 gates failed" in text and "`onnx/fp16 a.png psnr_db` is 50, must be at least 55" in text
    assert "❌ no gate was judged" in markdown(report_of(Rows(), ENVIRONMENT))


def test_summary_refuses_what_is_no_report(tmp_path):
    path = tmp_path / "r.json"
    for content in ("", "[]", '{"schema": 2}', "{}", json.dumps(report(60.0).as_json() | {"passed": False})):
        path.write_text(content)
        with pytest.raises(UsageError, match="f2i validate --json"):
            read_report(path)
    path.write_text('{"schema": 1, "passed": true, "components": [], "photos": [], "gates": []}')
    result = subprocess.run([F2I, "summary", path], capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "it was written with schema 1, and this version reads schema 2" in result.stderr.strip().splitlines()[-1]


def test_action_calls_commands_that_exist(tiny_bundle, tmp_path):
    """The action's own shell lines, run as GitHub would, with a bundle on one target."""
    import yaml

    steps = {s["name"]: s for s in yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"] if "name" in s}
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin" / "f2i"
    # One target and few tiles, for time: the wrapper adds options, the rest is the action's.
    wrapper.write_text(f'#!/bin/sh\n[ "$1" = validate ] && set -- "$@" --target onnx --num-tiles 1 --num-photos 1\nexec {F2I} "$@"\n')
    wrapper.chmod(0o755)
    names = {"GITHUB_OUTPUT": "output", "GITHUB_STEP_SUMMARY": "summary"}
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", **{k: str(tmp_path / v) for k, v in names.items()}}
    environment |= {"BUNDLE": str(tiny_bundle), "BASELINE": str(tiny_bundle), "IMAGES": ""}
    for name in ("Validate", "Compare with the release", "Post the table"):
        done = subprocess.run(
            ["bash", "-eo", "pipefail", "-c", steps[name]["run"]], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "output").read_text() == "passed=true\n"
    assert "all" in (tmp_path / "summary").read_text() and "(+0.00)" in (tmp_path / "summary").read_text()
    assert all((tmp_path / name).stat().st_size for name in ("parity.json", "parity.xml", "report.html", "release.json"))
    assert np.isfinite(json.loads((tmp_path / "parity.json").read_text())["components"][0]["sqnr_db"])
