"""Every distribution that the packages import is declared: not one that happens to come with another."""

import ast
import functools
import re
import sys
from importlib.metadata import packages_distributions

import pytest
from repository import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGES = {"f2i_runtime": "runtime_py", "f2i_quantize": "quantize", "f2i_export": "export", "f2i_bench": "benchmarks", "f2i": "."}


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def declared():
    """The normalised names of all distributions in the project's dependencies and extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    return {normal(re.match(r"[A-Za-z0-9_.-]+", line)[0]) for line in lines}


@functools.cache
def providers():
    return {module: {normal(name) for name in names} for module, names in packages_distributions().items()}


def imported(path):
    """The first names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_import_is_declared(package):
    missing = {}
    for path in sorted((ROOT / PACKAGES[package] / package).rglob("*.py")):
        for module in set(imported(path)) - set(sys.stdlib_module_names) - set(PACKAGES):
            if module not in ("tomllib", "__future__") and not providers().get(module, {normal(module)}) & declared():
                missing.setdefault(module, path.name)
    assert missing == {}
