"""The command as a user meets it: real processes, exit codes, one line of error, nothing written."""

import json
import subprocess
import sys

import numpy as np
import pytest
from f2i_runtime.photo.samples import sample_photo
from PIL import Image
from published_schema import assert_fits
from repository import F2I, ROOT
from typer.main import get_command
from typer.testing import CliRunner

from f2i.cli import app


def f2i(*arguments, timeout=240):
    return subprocess.run([F2I, *map(str, arguments)], capture_output=True, text=True, timeout=timeout)


def fails(result, code, *words):
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("f2i: ")
    assert all(word in line for word in words), line


def test_inspect_and_verify(tiny_bundle):
    data = json.loads(f2i("inspect", tiny_bundle, "--json").stdout)
    row = next(a for a in data["artifacts"] if (a["target"], a["component"], a["precision"]) == ("executorch", "unet", "fp32"))
    assert row["partitions"] == 1 and row["delegated_share"] >= 0.99 and row["bytes"] > 0 and row["ops"] > 100
    assert next(a for a in data["artifacts"] if a["target"] == "onnx")["delegated_share"] is None
    assert_fits("inspect", data)
    assert f2i("verify", tiny_bundle).returncode == 0


@pytest.mark.parametrize("target", ["executorch", "tflite", "onnx", "coreml", "torch"])
def test_run_upscales_a_photo_on_every_engine(tiny_bundle, tmp_path, target):
    photo = tmp_path / "photo.jpg"
    Image.open(sample_photo("chelsea.png")).crop((0, 0, 150, 101)).save(photo, quality=95)
    result = f2i("run", tiny_bundle, photo, "--out", tmp_path / "out.jpg", "--target", target)
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "out.jpg") as picture:
        assert picture.size == (300, 202)
    assert "INFO" not in result.stderr and ".cpp:" not in result.stderr


def test_run_takes_one_pixel_and_photos_smaller_than_a_tile(tiny_bundle, tmp_path):
    for side in (1, 9):
        Image.fromarray(np.full((side, side, 3), 128, np.uint8)).save(tmp_path / f"{side}.png")
    result = f2i("run", tiny_bundle, tmp_path / "1.png", tmp_path / "9.png", "--out", tmp_path / "big", "--target", "onnx")
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / "big" / "9_x2.png") as picture:
        assert picture.size == (18, 18)


def test_validate_holds_all_gates_and_writes_its_reports(tiny_bundle, tmp_path):
    result = f2i("validate", tiny_bundle, "--json", tmp_path / "v.json", "--junit", tmp_path / "v.xml", "--num-photos", "1")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "v.json").read_text())
    assert_fits("validate", report)
    assert (
        report["schema"] == 2
        and report["passed"]
        and len(report["components"]) == 16
        and all(c["tiles"] == 16 for c in report["components"])
    )
    assert f'tests="{len(report["gates"])}" failures="0"' in (tmp_path / "v.xml").read_text()
    assert "random weights: photos and the quality of int8 are measured, not judged" in " ".join(result.stdout.split())


def test_validate_fails_when_an_artifact_computes_something_else(bundle_copy):
    """A wrong model under a right hash: only numerics can tell."""
    from f2i_runtime.bundle.store import tree_records

    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    wrong = bundle_copy / "onnx" / "fp32" / "unet.onnx"
    import onnx

    model = onnx.load(wrong)
    convolution = next(t for t in model.graph.initializer if len(t.dims) == 4)
    convolution.raw_data = (np.frombuffer(convolution.raw_data, np.float32) * 1.05).astype(np.float32).tobytes()
    onnx.save(model, wrong)
    row = next(a for a in manifest["artifacts"] if a["path"] == "onnx/fp32/unet.onnx")
    row["files"] = [r.model_dump() for r in tree_records(bundle_copy, wrong)]
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    result = f2i("validate", bundle_copy, "--target", "onnx", "--precision", "fp32", "--num-photos", "1")
    fails(result, 1, "gates failed")
    assert "onnx/fp32 unet sqnr_db" in result.stderr


def test_bad_photos(tiny_bundle, tmp_path):
    whole = tmp_path / "whole.jpg"
    Image.open(sample_photo("coffee.png")).save(whole, quality=95)
    cases = {"truncated.jpg": whole.read_bytes()[:20000], "empty.jpg": b"", "text.png": b"not a photo\n" * 40}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        fails(f2i("run", tiny_bundle, tmp_path / name, "--out", tmp_path / "out.png", "--target", "onnx"), 2, name)
        assert not (tmp_path / "out.png").exists() and not list(tmp_path.glob(".f2i*"))


def test_bad_bundles(bundle_copy, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "p.png")
    victim = bundle_copy / "onnx" / "fp32" / "unet.onnx"
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    fails(f2i("verify", bundle_copy), 2, "unet.onnx", "SHA-256")
    fails(
        f2i("run", bundle_copy, tmp_path / "p.png", "--out", tmp_path / "o.png", "--target", "onnx", "--precision", "fp32"), 2, "unet.onnx"
    )
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest | {"surprise": 1}))
    fails(f2i("inspect", bundle_copy), 2, "surprise")
    manifest["artifacts"][0]["path"] = "../../etc/passwd"
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    fails(f2i("verify", bundle_copy), 2, "inside the bundle")


def test_bad_usage(tiny_bundle, tmp_path):
    fails(f2i("export", "tiny", "--out", tmp_path / "b", "--target", "tensorrt"), 2, "tensorrt", "choose from")
    fails(f2i("export", "tiny", "--out", tmp_path / "b", "--precision", "w8a8"), 2, "not quantized to w8a8", "f2i quantize tiny")
    fails(f2i("quantize", "tiny"), 2, "give either --out FOLDER", "--sensitivity FILE.json")
    fails(f2i("export", "tiny"), 2, "--out")
    fails(f2i("run", tiny_bundle, tmp_path / "none.jpg", "--out", tmp_path / "o.jpg", "--precision", "w8a8"), 2, "w8a8", "it holds")
    fails(f2i("run", tiny_bundle, "p.jpg", "--out", tmp_path / "o", "--overlap", "wide"), 2, "--overlap 'wide'", "or auto")
    fails(f2i("run", tiny_bundle, "p.jpg", "--out", tmp_path / "o", "--color-fix", "sepia"), 2, "sepia", "none or adain")
    fails(f2i("run", tiny_bundle, "p.jpg", "--out", tmp_path / "o", "--format", "gif"), 2, "gif", "jpg, jpeg, png")
    fails(f2i("validate", tiny_bundle, "--ray", "local", "--html", tmp_path / "r.html"), 2, "--html", "leave out --ray")
    fails(f2i("nonsense"), 2, "nonsense")
    assert not (tmp_path / "b").exists()


def test_missing_engine_package_names_the_install_command(tiny_bundle, tmp_path):
    """The package is hidden from the import system, as on a machine that never installed it."""
    Image.new("RGB", (40, 40)).save(tmp_path / "p.png")
    hide = "import importlib.util as u; f=u.find_spec; u.find_spec=lambda n,*a: None if n=='onnxruntime' else f(n,*a); import f2i.cli; f2i.cli.main()"
    command = [
        sys.executable,
        "-c",
        hide,
        "run",
        str(tiny_bundle),
        str(tmp_path / "p.png"),
        "--out",
        str(tmp_path / "o.png"),
        "--target",
        "onnx",
    ]
    fails(subprocess.run(command, capture_output=True, text=True, cwd=ROOT), 2, "onnxruntime", "pip install 'f2i-mobile[run-onnx]'")


def test_inspect_names_the_place_that_no_accelerator_takes(bundle_copy):
    written = json.loads((bundle_copy / "manifest.json").read_text())
    graph = next(a for a in written["artifacts"] if (a["target"], a["precision"], a["component"]) == ("onnx", "fp32", "unet"))[
        "delegation"
    ]["graph"]
    assert graph["deepest"]["value"] <= 4 and graph["largest"]["value"] < 16376
    graph["largest"] |= {"op": "aten.mul.Tensor", "where": "mid_block.norm", "value": 20000.0}
    (bundle_copy / "manifest.json").write_text(json.dumps(written))
    lines = [line for line in f2i("inspect", bundle_copy).stdout.splitlines() if "half precision" in line]
    assert len(lines) == 1 and lines[0].startswith("onnx/fp32 unet: aten.mul.Tensor in mid_block.norm reaches 20,000 on the golden tiles")


def test_toolchain_failure_names_component_target_stage_and_log(cache, tmp_path):
    """A converter that breaks (its module cannot be imported) ends as exit code 3 with the log's path."""
    (tmp_path / "onnxscript").mkdir()
    (tmp_path / "onnxscript" / "__init__.py").write_text("raise RuntimeError('broken on purpose')")
    import os

    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [
        F2I,
        "export",
        "tiny",
        "--target",
        "onnx",
        "--precision",
        "fp32",
        "--tile-size",
        "36",
        "--out",
        str(tmp_path / "b"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    fails(result, 3, "onnx: ", "lower of", ".log")
    assert not (tmp_path / "b").exists()


def test_help_lists_the_commands_in_order_and_each_shows_an_example():
    listed = CliRunner().invoke(app, ["--help"]).stdout
    order = ["demo", "doctor", "distill", "quantize", "export", "inspect", "verify", "run", "validate", "summary", "bench"]
    places = [listed.index(f"│ {name} ") for name in order]
    assert places == sorted(places)
    for name in order:
        text = " ".join(CliRunner().invoke(app, [name, "--help"]).stdout.split())
        assert f"Example: f2i {name}" in text, name


@pytest.mark.parametrize(
    "arguments",
    [
        ("validate", "bundle", "--hr", "photos"),
        ("bench", "bundle", "--gate", "40"),
        ("export", "tiny", "--out", "b", "--chunk", "9"),
        ("quantize", "tiny", "--calib", "photos"),
        ("validate", "bundle", "--num-tiles", "0"),
        ("validate", "nowhere"),
        ("inspect",),
    ],
)
def test_bad_input_ends_with_one_line_and_code_2(tmp_path, arguments):
    result = subprocess.run([F2I, *arguments], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    fails(result, 2)
    assert len(result.stderr.strip().splitlines()) == 1 and not result.stdout
    assert not list(tmp_path.iterdir())


def test_every_option_is_explained_in_a_sentence():
    for name, command in get_command(app).commands.items():
        for parameter in command.params:
            text = getattr(parameter, "help", None) or ""
            assert text.endswith(".") and not text.startswith("Of "), f"f2i {name}, {parameter.name}: {text!r}"
