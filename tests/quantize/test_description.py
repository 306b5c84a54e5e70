"""A checkpoint's description, made without torch, says what the loaded model says."""

import inspect
import json
import shutil
import struct
import subprocess
import sys

import diffusers
import pytest
import transformers
from f2i_quantize.models import checkpoint, checkpoint_files, presets
from f2i_quantize.models.description import CLASSES, DEFAULTS, describe
from f2i_quantize.models.whole_model import build_components
from f2i_runtime.errors import CheckpointError
from model_zoo import latent_model, small_kl, small_tiny

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def counted(model):
    """Parameters of every component, in the order of the dataflow."""
    graph = build_components(model, model.config.tile)
    return {name: sum(p.numel() for p in c.module.parameters()) for name, c in graph.components.items()}


def same(description, model):
    """Whether a description agrees with the model: components and their parameters, tiles, scalars."""
    ours, theirs = description.geometry, model.geometry()
    assert list(description.parameters) == list(ours.components())
    assert description.parameters == counted(model)
    assert description.config == model.config
    assert ours.tile_multiple() == theirs.tile_multiple() == model.geometry().latent_factor() * 2**model.unet.num_upsamplers
    assert ours.tokens(model.config.tile) == theirs.tokens(model.config.tile)
    assert ours.classes == theirs.classes


@pytest.mark.parametrize("name", presets.PRESETS)
def test_a_preset_is_described_as_it_is_built(name):
    model = presets.build(name, weights=False)
    assert presets.PARAMETERS[name] == counted(model)
    # The names of the bundled models stand for their folders.
    same(describe(name), model if checkpoint_files.is_preset(name) else checkpoint.load(name, only=()))


@pytest.mark.parametrize("codec", [small_kl, small_tiny])
@pytest.mark.parametrize("registers", [False, True])
def test_a_folder_is_described_as_it_loads(tmp_path, codec, registers):
    checkpoint.save(latent_model(codec(), registers=registers, steps=3, noise=True), tmp_path / "m")
    same(describe(tmp_path / "m"), checkpoint.load(tmp_path / "m"))


@pytest.mark.parametrize("name", DEFAULTS)
def test_keys_left_out_have_the_library_s_defaults(name):
    if name.startswith(("Auto", "UNet")):
        known = {k: p.default for k, p in inspect.signature(getattr(diffusers, name).__init__).parameters.items()}
    else:
        known = getattr(transformers, name.replace("Model", "Config"))().to_dict()
    assert {key: known[key] for key in DEFAULTS[name]} == DEFAULTS[name]


def test_every_class_that_loads_can_be_described():
    assert {part: tuple(kinds) for part, kinds in checkpoint.PART_CLASSES.items()} == CLASSES
    assert set(checkpoint_files.WEIGHTS) == {kind for kinds in CLASSES.values() for kind in kinds}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("described") / "tiny"
    checkpoint.save(presets.build("tiny", 3), folder)
    return folder


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


WRONG = {
    "cut weights": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-10]), "not a readable safetensors file: it has"),
    "cut header": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:50]), "not a readable safetensors file"),
    "no header": (lambda f: (f / WEIGHTS).write_bytes(b"abc"), "not the length of a header"),
    "huge header": (lambda f: (f / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 60)), "not the length of a header"),
    "pickle": (lambda f: (f / WEIGHTS).rename(f / "unet/diffusion_pytorch_model.bin"), "pickled weights are never read"),
    "unknown class": (
        lambda f: edit(f / "model_index.json", codec=["diffusers", "VQModel"]),
        "codec is of class 'VQModel', expected one of",
    ),
    "unknown scalar": (lambda f: edit(f / "model_index.json", scle=2), "scle: Extra inputs are not permitted"),
    "projector key": (lambda f: edit(f / "projector/config.json", strange=1), "TokenProjector cannot be built from it: strange"),
    "wrong codec": (lambda f: edit(f / "codec/config.json", factor=4), "expected 48, 192 for this codec"),
    "wrong type": (lambda f: edit(f / "unet/config.json", up_block_types=5), "key 'up_block_types' is 5, expected UpBlock2D or"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(saved, tmp_path, case):
    damage, message = WRONG[case]
    shutil.copytree(saved, tmp_path / "c")
    damage(tmp_path / "c")
    with pytest.raises(CheckpointError) as caught:
        describe(tmp_path / "c")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_export_is_planned_without_torch(tmp_path):
    check = (
        "import sys; from pathlib import Path\n"
        "from f2i_export.export_plan import plan_export\n"
        "from f2i_export.write_bundle import ExportOptions\n"
        "for name in ('nano', 'paper'):\n"
        "    plan = plan_export(ExportOptions(name, Path('out')))\n"
        "    print('JOBS', len(plan.jobs), plan.weight_bytes(plan.reference))\n"
        "print('LOADED', [m for m in ('torch', 'diffusers', 'transformers', 'safetensors') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert result.returncode == 0, result.stderr
    assert [line.split()[1] for line in result.stdout.splitlines() if line.startswith("JOBS")] == ["8", "16"]
    assert "LOADED []" in result.stdout and not list(tmp_path.iterdir())
