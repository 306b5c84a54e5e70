"""The evaluator's front door, as a user of coremltools takes it; and a client of somebody else, unmodified, through it."""

import os
import subprocess
import sys
from pathlib import Path

import coremltools as ct
import numpy as np
import pytest
import skimage.data
from f2i_runtime.metrics.fidelity import psnr_y
from f2i_runtime.photo.resample import resize
from mil_programs import convert, only, relative, sample
from PIL import Image

import f2i
from f2i.coreml_on_linux import install, load

PUBLISHED = {"Set5": 37.54, "Set14": 33.16}
"""PSNR-Y in dB that PiperSR's authors publish for it, from a Mac: its description on PyPI, version 1.0.3."""
MEASURED = {"Set5": 37.56, "Set14": 33.18}
"""What this test measures on Linux."""
SETS = "F2I_SR_SETS"
"""Environment variable: a folder that holds Set5/ and Set14/, each with the photos as HR/ and their MATLAB bicubic halves as LR/."""
CLIENT = """
import sys
from f2i.coreml_on_linux import install
install()
from pipersr import upscale
for photo, destination in zip(sys.argv[1::2], sys.argv[2::2]):
    upscale(photo, destination)
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="Core ML itself predicts there")
def test_install_lets_coremltools_predict_and_load_gives_the_same(tmp_path):
    _, converted = convert()
    path = tmp_path / "net.mlpackage"
    converted.save(str(path))
    undo = install()
    try:
        model = ct.models.MLModel(str(path))
        [name] = [item.name for item in model.get_spec().description.input]
        predicted = only(model.predict({name: sample()}))
        with pytest.raises(RuntimeError, match="Unable to compute the prediction"):
            model.predict({name: sample()[:, :2]})
    finally:
        undo()
    assert relative(only(load(path)({name: sample()})), predicted) < 1e-6
    with pytest.raises(Exception, match="predict"):
        ct.models.MLModel(str(path)).predict({name: sample()})


def test_load_refuses_what_is_no_package(tmp_path):
    with pytest.raises(f2i.MilError, match="nothing"):
        load(tmp_path / "nothing.mlpackage")


def test_without_coremltools_the_install_command_is_named():
    """The package is hidden from the import system, as on a machine that never installed it."""
    hide = "import sys; sys.modules['coremltools'] = None\nfrom f2i.coreml_on_linux import install\ninstall()"
    done = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, timeout=60)
    assert "MissingPackageError" in done.stderr and "pip install 'f2i-mobile[run-coreml]'" in done.stderr


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A folder with PiperSR as the package registry has it: weights CC BY 4.0, code AGPL, in processes of its own."""
    folder = tmp_path_factory.mktemp("client")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), "pipersr==1.0.3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


def upscaled(client, photos, folder):
    """Each photo as PiperSR's own ``upscale`` gives it, uint8."""
    outputs = [folder / f"{photo.stem}_x2.png" for photo in photos]
    arguments = [str(path) for pair in zip(photos, outputs, strict=True) for path in pair]
    environment = {**os.environ, "PYTHONPATH": str(client)}
    done = subprocess.run([sys.executable, "-c", CLIENT, *arguments], capture_output=True, text=True, env=environment, timeout=3000)
    assert done.returncode == 0, done.stderr
    return [np.asarray(Image.open(output)) for output in outputs]


@pytest.mark.slow
def test_a_client_that_is_not_ours_runs_unmodified_and_beats_bicubic(client, tmp_path):
    truths = {name: np.ascontiguousarray(getattr(skimage.data, name)()[:256, :256]) for name in ("chelsea", "coffee", "astronaut")}
    for name, truth in truths.items():
        Image.fromarray(resize(truth, 128, 128)).save(tmp_path / f"{name}.png")
    results = upscaled(client, [tmp_path / f"{name}.png" for name in truths], tmp_path)
    for (name, truth), result in zip(truths.items(), results, strict=True):
        bicubic = resize(np.asarray(Image.open(tmp_path / f"{name}.png")), 256, 256)
        gain = psnr_y(truth, result, 2) - psnr_y(truth, bicubic, 2)
        assert gain > 0.5, f"{name}: {gain:.2f} dB over bicubic"


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.skipif(SETS not in os.environ, reason=f"set {SETS} to a folder with Set5/ and Set14/, each with HR/ and LR/")
def test_a_client_that_is_not_ours_reaches_its_published_figures(client, name, tmp_path):
    """``F2I_SR_SETS=FOLDER python -m pytest -m slow tests/f2i/test_coreml_on_linux.py``: the mean of PSNR-Y over the set, 2 px cropped."""
    folder = Path(os.environ[SETS]) / name
    truths = sorted((folder / "HR").iterdir())
    results = upscaled(client, [folder / "LR" / path.name for path in truths], tmp_path)
    figures = [psnr_y(np.asarray(Image.open(path).convert("RGB")), result, 2) for path, result in zip(truths, results, strict=True)]
    assert np.mean(figures) == pytest.approx(MEASURED[name], abs=0.01)
    assert np.mean(figures) >= PUBLISHED[name]
