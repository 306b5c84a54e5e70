"""The table of targets: what a record says, and targets that an installed package adds."""

import subprocess
import sys

import pytest
from f2i_runtime.errors import UsageError
from f2i_runtime.targets import ENTRY_POINTS, TARGETS, Selection, Variant, find_target, targets

PACKAGE = """
from dataclasses import replace
from f2i_runtime.targets import TARGETS
MINE = replace(TARGETS["onnx"], name="mine", label="Mine", rank=50)
THEIRS = replace(TARGETS["onnx"], name="onnx")
NOTHING = 3
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a package that declares one entry point; the table is read anew, and once more when the test has ended."""

    def declare(line):
        (tmp_path / "my_target.py").write_text(PACKAGE)
        folder = tmp_path / "my_target-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: my-target\nVersion: 1.0\n")
        (folder / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\n{line}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        targets.cache_clear()

    yield declare
    sys.modules.pop("my_target", None)
    targets.cache_clear()


def test_a_variant_as_text():
    assert [str(Variant("onnx", "fp16")), str(Variant("onnx", "fp16", "hexagon"))] == ["onnx/fp16", "onnx/fp16/hexagon"]


def test_a_selection_takes_what_it_does_not_name():
    assert Selection().takes(Variant("onnx", "fp16")) and Selection("onnx").takes(Variant("onnx", "fp16"))
    assert not Selection("onnx", accelerator="gpu").takes(Variant("onnx", "fp16"))


def test_every_record_is_under_its_own_name_and_has_a_cpu():
    assert all(record.name == name and "cpu" in record.accelerators for name, record in TARGETS.items())


def test_an_installed_package_adds_a_target(install, tmp_path):
    install("mine = my_target:MINE")
    assert list(targets()) == [*TARGETS, "mine"] and find_target("mine").label == "Mine"
    child = "from f2i_runtime.targets import find_target; print(find_target('mine').label)"
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)}, timeout=60)
    assert done.stdout == "Mine\n", done.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("mine = my_target:ABSENT", "cannot be loaded"),
        ("mine = absent_package:MINE", "cannot be loaded"),
        ("mine = my_target:NOTHING", "expected a Target of that name, got 3"),
        ("other = my_target:MINE", "expected a Target of that name"),
        ("onnx = my_target:THEIRS", "the name is taken"),
    ],
)
def test_an_entry_point_that_is_wrong_is_named(install, line, words):
    install(line)
    with pytest.raises(UsageError, match=words):
        targets()


def test_an_unknown_target_is_refused_with_those_there_are():
    with pytest.raises(UsageError, match="target 'nope' is unknown; choose from coreml, executorch, tflite, onnx"):
        find_target("nope")
