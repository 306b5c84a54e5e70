"""The code that a cached result depends on: what the child imports, all of it and nothing else."""

import dataclasses
import subprocess
import sys

import pytest
from f2i_export.jobs import WORKER, Job, job_source
from f2i_export.source_closure import SourceReader

FILES = {
    "__init__.py": "",
    "entry.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from parcel import checked\ndef work():\n    from parcel import lazy\n",
    "lazy.py": "from . import relative\nimport json\n",
    "relative.py": "from parcel.inner.deep import name\n",
    "inner/__init__.py": "",
    "inner/deep.py": "name = 'parcel.outside'\n",
    "checked.py": "",
    "outside.py": "",
}
INSIDE = {"__init__.py", "entry.py", "lazy.py", "relative.py", "inner/__init__.py", "inner/deep.py"}


@pytest.fixture
def parcel(tmp_path, monkeypatch):
    """A package whose modules import one another in every way there is."""
    folder = tmp_path / "parcel"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_lazy_and_relative_imports_are_followed_and_nothing_else(parcel):
    found = SourceReader().closure(["parcel.entry"])
    assert {path.relative_to(parcel).as_posix() for path in found.values()} == INSIDE


@pytest.mark.parametrize("name", FILES)
def test_the_hash_changes_with_the_files_that_are_imported_only(parcel, name):
    before = SourceReader().sha256(["parcel.entry"])
    (parcel / name).write_text(FILES[name] + "# touched\n")
    assert (SourceReader().sha256(["parcel.entry"]) != before) == (name in INSIDE)


def test_an_entry_that_does_not_exist_is_an_error(parcel):
    with pytest.raises(ModuleNotFoundError, match=r"no module parcel\.nowhere"):
        SourceReader().closure(["parcel.nowhere"])


def test_a_target_s_job_depends_on_its_own_converter_only():
    reader = SourceReader()
    coreml = reader.closure([WORKER, "f2i_export.to_coreml", "f2i_runtime.engines.run_coreml"])
    assert {"f2i_export.component_lowering", "f2i_quantize.ptq.qdq", "f2i_quantize.models.whole_model"} <= coreml.keys()
    assert "f2i_runtime.mil.execute.evaluator" in coreml
    assert (
        not {"f2i_export.to_tflite", "f2i_runtime.engines.run_tflite", "f2i_export.schedule", "f2i_export.bundle_contents"} & coreml.keys()
    )
    assert len({job_source(target, reader) for target in ("", "coreml", "tflite")}) == 3


def test_what_a_child_really_imports_is_in_the_closure():
    """The child's modules are imported in a process of their own, and every module of ours that came with them is looked for."""
    modules = [WORKER, "f2i_export.component_lowering", "f2i_export.qdq_programs", "f2i_export.reference_capture", "f2i_export.to_onnx"]
    modules.append("f2i_runtime.engines.run_onnx")
    check = f"import sys, {', '.join(modules)}; print('LOADED', *(m for m in sys.modules if m.split('.')[0].startswith('f2i_')))"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.split("LOADED ")[1].split())
    assert set(modules) <= loaded <= SourceReader().closure([WORKER, "f2i_export.to_onnx", "f2i_runtime.engines.run_onnx"]).keys()


def test_a_job_s_key_changes_with_its_code():
    job = Job("lower", "tiny", "0" * 64, 32, "unet", "onnx", "fp32", source="a")
    assert job.key() == dataclasses.replace(job).key() != dataclasses.replace(job, source="b").key()
