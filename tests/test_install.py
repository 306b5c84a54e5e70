"""The wheel as a user has it: five import names and no others, found in a folder full of names like ours, with types that checkers see."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile

import pytest
from repository import ROOT

PACKAGES = {"f2i_runtime", "f2i_quantize", "f2i_export", "f2i_bench", "f2i"}
FOLDERS = ("runtime_py", "quantize", "export", "benchmarks")
"""Folders of the repository that hold our packages; their names belong to the user."""
WHERE = f"""
import importlib, importlib.util, json
print(json.dumps([{{name: importlib.import_module(name).__file__ for name in {sorted(PACKAGES)!r}}},
                  [name for name in {FOLDERS!r} if importlib.util.find_spec(name)]]))
"""


def run(*command, cwd, **environment):
    result = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
    )
    assert result.returncode == 0, f"{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result.stdout


def install(target, folder):
    """A new environment with the project's wheel (``standard`` or ``editable``) and, after it, the packages of this one."""
    run(sys.executable, "-m", "hatchling", "build", "--target", f"wheel:{target}", "--directory", folder / "dist", cwd=ROOT)
    (wheel,) = (folder / "dist").glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    # Folders that a .pth file names are searched last, and .pth files inside them are not read: this environment's editable install stays out.
    # The name sorts before the editable install's own file, which needs the package editables.
    packages = sysconfig.get_path("purelib", vars={"base": folder / "venv", "platbase": folder / "venv"})
    with open(os.path.join(packages, "0.pth"), "w") as file:
        file.writelines(f"{path}\n" for path in sys.path if path.endswith("site-packages"))
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    return wheel, python


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel and the Python of an environment that has it."""
    return install("standard", tmp_path_factory.mktemp("wheel"))


@pytest.fixture
def hostile(tmp_path):
    """A user's folder, where each name that ours could be taken for raises when it is imported."""
    files = ["runtime_py.py", "export.py", "f2i_cli.py", "worker.py", "pipeline.py", "manifest.py", "torch.py", "numpy.py"]
    for name in [*files, "benchmarks/__init__.py", "quantize/__init__.py"]:
        path = tmp_path / "project" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise RuntimeError('a file of the user was imported')\n")
    return tmp_path / "project"


def test_the_wheel_holds_five_packages_and_their_data(installed):
    with zipfile.ZipFile(installed[0]) as wheel:
        names = wheel.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == PACKAGES
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert "f2i_quantize/bundled/nano/model_index.json" in names and "f2i_quantize/ptq/recipes/w8a8.toml" in names


@pytest.mark.parametrize("kind", ["standard", "editable"])
def test_an_install_gives_the_five_names_and_no_folder_of_the_repository(kind, request, tmp_path):
    python = request.getfixturevalue("installed")[1] if kind == "standard" else install(kind, tmp_path)[1]
    files, folders = json.loads(run(python, "-c", WHERE, cwd=tmp_path))
    source = ROOT if kind == "editable" else python.parents[1]
    assert all(path.startswith(str(source)) for path in files.values()), files
    assert folders == []


def test_export_bench_and_plugin_among_names_like_ours(installed, hostile, cache):
    """Nothing that the command or its children import comes from the working folder, whatever it is called there."""
    python = installed[1]
    f2i, bundle = python.with_name("f2i"), hostile / "bundle"
    variant = ("--target", "onnx", "--precision", "fp32")
    run(f2i, "export", "tiny", *variant, "--out", bundle, cwd=hostile)
    run(
        f2i,
        "bench",
        bundle,
        *variant,
        "--runs",
        "2",
        "--seconds",
        "0.5",
        "--threads",
        "1",
        "--megapixels",
        "",
        "--json",
        "bench.json",
        cwd=hostile,
    )
    assert (hostile / "bench.json").is_file()

    # pytest itself puts the working folder first, so that here only names of ours are taken; the project's own package must be found.
    for name in ("torch.py", "numpy.py"):
        (hostile / name).unlink()
    (hostile / "benchmarks" / "__init__.py").write_text("OURS = False\n")
    (hostile / "test_project.py").write_text("def test_own_package():\n    import benchmarks\n    assert benchmarks.OURS is False\n")
    plugin = ("--f2i-bundle", bundle, "--f2i-target", "onnx", "--f2i-num-tiles", "1", "-p", "no:cacheprovider", "-q", "-rA")
    shown = run(python, "-m", "pytest", *plugin, cwd=hostile)
    assert "test_own_package" in shown and "onnx/fp32" in shown


CLIENT = '''"""What a user writes against the public interface."""

import f2i

bundle = f2i.open_bundle("bundle")
report = f2i.validate(bundle)
passed: bool = report.passed
wrong: str = report.passed{ignore}
missing = f2i.no_such_function{ignore_attribute}
'''


def test_types_reach_a_client_through_mypy_and_pyright(installed, tmp_path):
    """A wrong use is an error, so the types are there: each ignore must be needed."""
    python = installed[1]
    (tmp_path / "mypy.ini").write_text("[mypy]\nstrict = True\n[mypy-torch.*]\nfollow_imports = skip\n")
    (tmp_path / "mypy_client.py").write_text(
        CLIENT.format(ignore="  # type: ignore[assignment]", ignore_attribute="  # type: ignore[attr-defined]")
    )
    run(sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--python-executable", python, "mypy_client.py", cwd=tmp_path)

    (tmp_path / "pyrightconfig.json").write_text('{"reportUnnecessaryTypeIgnoreComment": "error", "include": ["pyright_client.py"]}')
    ignores = {"ignore": "  # pyright: ignore[reportAssignmentType]", "ignore_attribute": "  # pyright: ignore[reportAttributeAccessIssue]"}
    (tmp_path / "pyright_client.py").write_text(CLIENT.format(**ignores))
    run(sys.executable, "-m", "pyright", "--pythonpath", python, cwd=tmp_path)
