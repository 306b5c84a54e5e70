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
from repository import F2I, ROOT

from f2i.ci_summary import summary

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
    assert 'name="onnx/fp32 unet sqnr_db"' in (tmp_path / "j.xml").read_text()


def test_a_gate_that_falls_is_a_failed_test_with_one_line(bundle_copy, tmp_path):
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    manifest["gates"]["component_sqnr_db"]["fp32"] = 400.0
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    options = ["--f2i-bundle", bundle_copy, "--f2i-target", "onnx", "--f2i-precision", "fp32", "--f2i-num-tiles", "1", "-k", "sqnr_db"]
    result = run_pytest(tmp_path, *options)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "2 failed" in result.stdout and "deselected" in result.stdout
    assert re.search(r"onnx/fp32 unet sqnr_db is \d+\.\d+, limit 400", result.stdout) and "Traceback" not in result.stdout


def test_a_bundle_that_is_none_is_bad_usage(tmp_path):
    result = run_pytest(tmp_path, "--f2i-bundle", tmp_path / "nothing")
    assert result.returncode == 4 and "no such folder" in result.stderr


def report(psnr, passed=True):
    component = {"target": "onnx", "precision": "fp16", "component": "unet", "sqnr_db": 60.0}
    photo = {"target": "onnx", "precision": "fp16", "image": "a.png", "psnr_db": psnr, "latency_ratio": 0.5}
    gate = {"name": "onnx/fp16 a.png psnr_db", "value": psnr, "limit": 55.0, "passed": passed}
    return {"schema": 1, "components": [component], "photos": [photo], "gates": [gate]}


def test_summary_shows_changes_and_what_fell():
    text = summary(report(60.0), report(62.0))
    assert "✅ all 1 gates passed" in text and "60.00 (-2.00) ⚠️" in text and "60.00 (+0.00) |" in text
    text = summary(report(50.0, passed=False))
    assert "❌ 1 of 1 gates failed" in text and "`onnx/fp16 a.png psnr_db` is 50.00, limit 55" in text
    assert "❌" in summary({"schema": 1, "components": [], "photos": [], "gates": []})


def test_summary_refuses_what_is_no_report(tmp_path):
    from f2i.ci_summary import read_report

    for content in ("", "[]", '{"schema": 2}', '{"schema": 1}'):
        (tmp_path / "r.json").write_text(content)
        with pytest.raises(UsageError, match="f2i validate --json"):
            read_report(tmp_path / "r.json")


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
