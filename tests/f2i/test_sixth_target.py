"""A target of an installed package, end to end: two files and a record, and every command, the report and the pytest plugin show it."""

import json
import os
import subprocess
import sys

import pytest
from f2i_runtime.photo.samples import sample_photo
from f2i_runtime.targets import ENTRY_POINTS
from PIL import Image
from repository import F2I, TESTS

SIXTH = TESTS / "helpers" / "sixth_target"


@pytest.fixture(scope="module")
def run(cache, tmp_path_factory):
    """Runs a command in an environment that has the package installed: its modules and its metadata are on the path, for every child, too."""
    site = tmp_path_factory.mktemp("site")
    metadata = site / "eager_target-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: eager-target\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\neager = eager_target:TARGET\n")
    path = os.pathsep.join([str(site), str(SIXTH), *filter(None, [os.environ.get("PYTHONPATH")])])

    def start(*command, code=0):
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, cwd=site, timeout=600)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return start


@pytest.fixture(scope="module")
def demo(run, tmp_path_factory):
    """What ``f2i demo`` writes and says for the sixth target alone, on a small photo."""
    folder = tmp_path_factory.mktemp("sixth")
    Image.open(sample_photo("chelsea.png")).crop((100, 60, 260, 190)).save(folder / "cat.png")
    options = ["--checkpoint", "tiny", "--target", "eager", "--precision", "fp32", "--photo", folder / "cat.png"]
    return folder / "out", run(F2I, "demo", *options, "--out", folder / "out").stdout


def test_the_demo_upscales_and_judges_with_it(demo):
    out, said = demo
    assert "eager" in said and "gates passed" in said
    with Image.open(out / "cat_eager_fp32.png") as picture:
        assert picture.size == (320, 260)
    assert (out / "bundle" / "eager" / "fp32" / "unet.eager").is_file()


def test_the_report_has_its_label_its_colour_and_its_mark(demo):
    page = (demo[0] / "report.html").read_text()
    assert "Eager Six" in page and "--t-eager:#0a6b7c" in page and "--t-eager:#7fe3f5" in page
    assert '<g class="point t-eager' in page and "eager engine of the tests" in page


def test_inspect_validate_and_doctor_list_it(run, demo, tmp_path):
    bundle = demo[0] / "bundle"
    rows = json.loads(run(F2I, "inspect", bundle, "--json").stdout)["artifacts"]
    assert {row["target"] for row in rows} == {"eager"} and all(row["ops"] > 5 for row in rows)
    photo = ["--images", demo[0].parent, "--num-tiles", "1", "--num-photos", "1"]
    run(F2I, "validate", bundle, *photo, "--json", tmp_path / "v.json")
    assert {row["engine"] for row in json.loads((tmp_path / "v.json").read_text())["components"]} == {"eager engine of the tests"}
    assert "eager" in run(F2I, "doctor").stdout


def test_bench_times_it(run, demo, tmp_path):
    quick = ["--warmup", "1", "--runs", "2", "--seconds", "0.2", "--threads", "1", "--megapixels", ""]
    run(F2I, "bench", demo[0] / "bundle", *quick, "--json", tmp_path / "bench.json")
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert {(row["component"], row["status"]) for row in rows if row["target"] == "eager"} == {("feature_encoder", "ok"), ("unet", "ok")}


def test_its_gates_are_tests_of_the_pytest_plugin(run, demo, tmp_path):
    # Installed, the plugin registers itself.
    options = ["--f2i-bundle", demo[0] / "bundle", "--f2i-num-tiles", "1", "--f2i-images", demo[0].parent, "-v", "-p", "no:cacheprovider"]
    said = run(sys.executable, "-m", "pytest", "--rootdir", tmp_path, *options).stdout
    assert "eager/fp32 unet sqnr_db PASSED" in said


def test_a_second_accelerator_has_a_folder_and_rows_of_its_own(run, demo, tmp_path):
    out = tmp_path / "bundle"
    run(F2I, "export", "tiny", "--target", "eager", "--precision", "fp32", "--accelerator", "cpu,twin", "--out", out)
    assert (out / "eager" / "fp32" / "unet.eager").is_file() and (out / "eager" / "fp32-twin" / "unet.eager").is_file()
    artifacts = json.loads((out / "manifest.json").read_text())["artifacts"]
    assert [(a["component"], a["accelerator"]) for a in artifacts] == [
        (component, accelerator) for accelerator in ("cpu", "twin") for component in ("feature_encoder", "unet")
    ]
    assert "fp32/twin" in run(F2I, "inspect", out).stdout
    rows = json.loads(run(F2I, "inspect", out, "--json").stdout)["artifacts"]
    assert [row["accelerator"] for row in rows] == ["cpu", "cpu", "twin", "twin"]


def test_an_accelerator_that_the_target_has_not_is_refused_with_those_it_has(run, tmp_path):
    said = run(
        F2I, "export", "tiny", "--target", "eager", "--accelerator", "gpu", "--precision", "fp32", "--out", tmp_path / "b", code=2
    ).stderr
    assert said.strip() == "f2i: accelerator 'gpu' is not available for eager; it has cpu, twin"
    assert not (tmp_path / "b").exists()
