"""Every command that writes a folder, where something is that it has not written: it is refused and stays as it is."""

import json
import shutil

import pytest
from f2i_quantize.models import checkpoint, presets
from f2i_runtime.bundle.store import BUNDLE_FOLDER
from f2i_runtime.errors import UsageError
from f2i_runtime.files import check_replaceable
from f2i_runtime.photo.samples import sample_photo
from typer.testing import CliRunner

from f2i.cli import app

WEB_APP = {"name": "A web page that can be installed", "icons": [{"src": "icon.png"}]}
OTHER_PIPELINE = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
THESIS = {"chapter1.tex": "In the beginning"}


def put(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(arguments, root, *words):
    before = tree(root)
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert isinstance(result.exception, UsageError), (result.exception, result.output)
    assert all(word in str(result.exception) for word in words), result.exception
    assert tree(root) == before


@pytest.fixture
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    shutil.copy(sample_photo("chelsea.png"), folder)
    return folder


@pytest.fixture
def encoder(tmp_path):
    """A DINOv2 folder."""
    checkpoint.save(presets.build("tiny", 3), tmp_path / "teacher")
    return tmp_path / "teacher" / "feature_encoder"


DISTILL = ("distill", "--images", "PHOTOS", "--out", "OUT")
COMMANDS = {
    "distill": DISTILL,
    "distill --resume": (*DISTILL, "--resume"),
    "distill --encoder": (*DISTILL, "--student", "tiny", "--encoder", "ENCODER"),
    "distill --encoder --resume": (*DISTILL, "--student", "tiny", "--encoder", "ENCODER", "--resume"),
    "quantize": ("quantize", "tiny", "--out", "OUT"),
    "export": ("export", "tiny", "--out", "OUT"),
    "demo": ("demo", "--checkpoint", "tiny", "--out", "OUT"),
}
FOREIGN = {
    "a thesis": THESIS,
    "a web page": {"manifest.json": WEB_APP, "index.html": "<p>"},
    "another pipeline": {"model_index.json": OTHER_PIPELINE, "unet/config.json": {}},
    "a page": {"report.html": "<p>mine"},
}


@pytest.mark.parametrize("foreign", FOREIGN)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_command_did_not_write_is_refused_and_stays(command, foreign, photos, encoder, tmp_path):
    out = tmp_path / "out"
    put(out, FOREIGN[foreign])
    words = {"OUT": out, "PHOTOS": photos, "ENCODER": encoder}
    refused([words.get(a, a) for a in COMMANDS[command]], tmp_path, str(out))


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("distill")])
def test_a_folder_that_is_no_run_s_is_refused_and_stays(command, photos, encoder, tmp_path):
    put(tmp_path / "out.run", {"best/poem.txt": "x", "state/diary.txt": "y", "log.jsonl": "z"})
    words = {"OUT": tmp_path / "out", "PHOTOS": photos, "ENCODER": encoder}
    refused([words.get(a, a) for a in COMMANDS[command]], tmp_path, "out.run", "is not the folder of a training run")


def test_a_checkpoint_without_a_run_s_state_is_not_replaced(photos, tmp_path):
    checkpoint.save(presets.build("tiny", 3), tmp_path / "out")
    refused(["distill", "--images", photos, "--out", tmp_path / "out", "--resume"], tmp_path, "no run to go on with")


def test_a_file_that_the_user_added_keeps_a_checkpoint(photos, tmp_path):
    checkpoint.save(presets.build("tiny", 3), tmp_path / "out")
    put(tmp_path, {"out/notes.txt": "learning rates", "out.run/options.json": {}, "out.run/state/state.json": {}})
    refused(["distill", "--images", photos, "--out", tmp_path / "out", "--resume"], tmp_path, "notes.txt")


@pytest.mark.parametrize("place", ["checkpoint-w8a8/thesis.tex", "bundle/thesis.tex"])
def test_the_demo_s_own_folders_are_looked_into_first(place, tmp_path):
    put(tmp_path / "out", {place: "x"})
    refused(["demo", "--checkpoint", "tiny", "--out", tmp_path / "out"], tmp_path, "thesis.tex")


def test_a_bundle_is_replaced_only_while_it_holds_nothing_else(bundle_copy):
    check_replaceable(bundle_copy, BUNDLE_FOLDER)
    (bundle_copy / ".DS_Store").write_text("x")
    check_replaceable(bundle_copy, BUNDLE_FOLDER)
    (bundle_copy / "onnx" / "notes.txt").write_text("x")
    with pytest.raises(UsageError, match=r"onnx/notes.txt in it does not belong to a bundle"):
        check_replaceable(bundle_copy, BUNDLE_FOLDER)
