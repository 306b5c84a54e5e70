"""What docstrings, documents and commands call by name exists: modules, functions and files of the five packages."""

import ast
import re

import pytest
from repository import ROOT

HOUSE = {"f2i_runtime": "runtime_py", "f2i_quantize": "quantize", "f2i_export": "export", "f2i_bench": "benchmarks", "f2i": "."}
DOTTED = re.compile(r"\b((?:f2i_runtime|f2i_quantize|f2i_export|f2i_bench)(?:\.[A-Za-z_]\w*)+)")
PATH = re.compile(
    r"(?<![\w/.-])((?:runtime_py/f2i_runtime|quantize/f2i_quantize|export/f2i_export|benchmarks/f2i_bench|tests)/[\w./-]*\w)(?![\w<*])"
)


FOLDERS = ("runtime_py", "quantize", "export", "benchmarks", "f2i", "tests", "docs")


def our_files(*suffixes):
    """The files at the root and in our folders, the generated ones of a training run apart."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*"))] + sorted(ROOT.iterdir())
    return [path for path in paths if path.is_file() and path.name.endswith(suffixes) and not {"bundled", "runs"} & set(path.parts)]


@pytest.fixture(scope="module")
def modules():
    """Dotted name of each module → the names in it."""
    found = {}
    for package, folder in HOUSE.items():
        for path in (ROOT / folder / package).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            text = path.read_text()
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = set(re.findall(r"\w+", text)) if ast.parse(text) else set()
    return found


def test_dotted_names_are_modules_or_names_in_them(modules):
    wrong = []
    for path in our_files(".py", ".md", ".yml", "Makefile"):
        for name in set(DOTTED.findall(path.read_text())):
            parts = name.split(".")
            home = next(".".join(parts[:k]) for k in range(len(parts), 0, -1) if ".".join(parts[:k]) in modules)
            rest = name.removeprefix(home).lstrip(".").split(".")[0]
            if rest and not rest.startswith("__") and rest not in modules[home]:
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert wrong == []


def test_paths_of_our_folders_exist():
    wrong = []
    for path in our_files(".py", ".md", ".yml", ".toml", "Makefile"):
        wrong += [f"{path.relative_to(ROOT)}: {name}" for name in sorted(set(PATH.findall(path.read_text()))) if not (ROOT / name).exists()]
    assert wrong == []
