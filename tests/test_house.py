"""The house rules that can be checked: dependencies point one way, and light imports stay light."""

import ast
import collections
import re
import subprocess
import sys

import pytest
from repository import ROOT

HOUSE = {
    "f2i_runtime": "runtime_py",
    "f2i_quantize": "quantize",
    "f2i_export": "export",
    "f2i_bench": "benchmarks",
    "f2i": ".",
}
"""Import packages from the ground floor up, with the folder that holds each."""
ORDER = tuple(HOUSE)
ENGINES = {
    "torch": {"run_torch.py", "run_executorch.py", "run_coreml.py"},
    "executorch": {"run_executorch.py"},
    "ai_edge_litert": {"run_tflite.py", "run_gpu.py"},
    "onnxruntime": {"run_onnx.py"},
    "coremltools": {"run_coreml.py"},
}
HEAVY = ("torch", "coremltools", "executorch", "litert_torch", "ai_edge_litert", "onnxruntime", "diffusers", "transformers")


def imported(path):
    """Top-level names of every import in a file, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def our_modules():
    """Dotted names of all modules in the five packages, each with its file."""
    modules = {}
    for package, folder in HOUSE.items():
        for path in sorted((ROOT / folder / package).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def our_imports(path, modules):
    """Modules of ours that a file imports anywhere in it, inside functions and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.relative_to(ROOT)} has a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in modules or node.module in modules:
                    yield inner if inner in modules else node.module


def test_no_two_modules_share_a_name():
    names = collections.defaultdict(list)
    for path in our_modules().values():
        if path.name not in ("__init__.py", "__main__.py"):
            names[path.name].append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in names.items() if len(paths) > 1} == {}


def test_no_import_cycles():
    """Imports inside functions count too: a lazy import is there to save time, not to hide that two modules need each other."""
    modules = our_modules()
    left = {name: set(our_imports(path, modules)) - {name} for name, path in modules.items()}
    while leaves := {name for name, needs in left.items() if not needs}:
        left = {name: needs - leaves for name, needs in left.items() if name not in leaves}
    # What only leads to a cycle is not in one.
    while roots := set(left) - set().union(*left.values()):
        left = {name: needs for name, needs in left.items() if name not in roots}
    assert left == {}


@pytest.mark.parametrize("package", ORDER)
def test_dependencies_point_one_way(package):
    later = set(ORDER[ORDER.index(package) + 1 :])
    files = sorted((ROOT / HOUSE[package] / package).rglob("*.py"))
    assert files
    for path in files:
        assert not later & set(imported(path)), f"{path.relative_to(ROOT)} imports {later & set(imported(path))}"


@pytest.mark.parametrize("library", ENGINES)
def test_an_engine_s_library_is_imported_in_its_own_file_only(library):
    for path in sorted((ROOT / "runtime_py" / "f2i_runtime" / "engines").glob("*.py")):
        if library in set(imported(path)):
            assert path.name in ENGINES[library], f"{path.name} imports {library}"


@pytest.mark.parametrize(
    "statement",
    ["import f2i_runtime", "import f2i", "import sys; sys.argv = ['f2i', '--help']; import f2i.cli; f2i.cli.app(standalone_mode=False)"],
)
def test_light_imports_load_no_toolchain(statement):
    check = f"{statement}\nimport sys\nprint('LOADED', [m for m in {HEAVY!r} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "LOADED []" in result.stdout


def docstrings(path):
    """Every docstring of a file with its line: those of modules, classes and functions, and those that follow an attribute."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for statement in node.body:
                value = statement.value if isinstance(statement, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.lineno, value.value


@pytest.mark.parametrize("package", ORDER)
def test_no_docstring_begins_with_a_bare_of(package):
    for path in sorted((ROOT / HOUSE[package] / package).rglob("*.py")):
        found = [line for line, text in docstrings(path) if text.lstrip().startswith("Of ")]
        assert not found, f"{path.relative_to(ROOT)}, lines {found}: say what it is in a full sentence"


LINES, FUNCTION_LINES, PARAMETERS = 400, 60, 6
COMMANDS = ROOT / "f2i" / "commands"
MIL_OPERATIONS = ROOT / "runtime_py" / "f2i_runtime" / "mil" / "ops"
"""A function there has the parameters of the operation that it computes, under MIL's own names."""
TOO_LARGE: set[str] = set()
"""Functions that are still to be made smaller."""


def functions(path):
    """Every function of a file with its number of lines and of parameters, ``self`` and ``cls`` not counted."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            count = sum(a.arg not in ("self", "cls") for a in every) + bool(node.args.vararg) + bool(node.args.kwarg)
            yield node.name, node.end_lineno - node.lineno + 1, count


@pytest.mark.parametrize("package", ORDER)
def test_files_and_functions_stay_small(package):
    for path in sorted((ROOT / HOUSE[package] / package).rglob("*.py")):
        name = path.relative_to(ROOT)
        assert len(path.read_text().splitlines()) <= LINES, f"{name}: split it by subject"
        for function, lines, parameters in functions(path):
            if function in TOO_LARGE:
                continue
            assert lines <= FUNCTION_LINES, f"{name}: {function} has {lines} lines"
            if path.is_relative_to(MIL_OPERATIONS) or (path.parent == COMMANDS and not function.startswith("_")):
                continue
            assert parameters <= PARAMETERS, f"{name}: {function} takes {parameters}; a record says what belongs together"


NAMES_A_TARGET = re.compile(r"\b(coreml|executorch|tflite|onnx)\b")
MAY_NAME_A_TARGET = re.compile(r"(^|/)(to_[a-z]+|run_[a-z_]+|targets|coreml_on_linux)\.py$|/mil/|^tests/|^examples/")
"""A target's own files, its record, its evaluator, and users' code."""


def test_nothing_else_names_a_target():
    """Whoever wants to know something about a target asks its record, so that a new one needs no edit anywhere else."""
    found = []
    for package in ORDER:
        for path in sorted((ROOT / HOUSE[package] / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not MAY_NAME_A_TARGET.search(name):
                found += [
                    f"{name}:{k}: {line.strip()}" for k, line in enumerate(path.read_text().splitlines(), 1) if NAMES_A_TARGET.search(line)
                ]
    assert not found, "\n".join(found)
