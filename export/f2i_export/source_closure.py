"""Which of our own modules a piece of work can import, found in their source, and one hash of them all.

A cached result is only as good as the code that made it. Nobody keeps a list of that code: from the modules where the work begins, every import statement
is followed, also those inside functions. Libraries are not followed: their versions are a part of a job's key by themselves.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGES = ("f2i_runtime", "f2i_quantize", "f2i_export")
"""The packages whose code a job can run."""


class SourceReader:
    """Reads each module once, however many pieces of work can import it."""

    def __init__(self) -> None:
        self._read: dict[str, _Module | None] = {}

    def closure(self, entries: Iterable[str]) -> dict[str, Path]:
        """Returns the dotted name and the file of every module of ours that ``entries`` import, directly or through one another.

        Ours are the packages of this project and those of the entries. A module that is only named in a string is not followed: give it as an entry.
        Raises ModuleNotFoundError for an entry that does not exist.
        """
        queue, found = list(entries), {}
        ours = {*PACKAGES, *(name.split(".")[0] for name in queue)}
        for name in queue:
            if self._module(name) is None:
                raise ModuleNotFoundError(f"no module {name}")
        while queue:
            name = queue.pop()
            module = None if name in found else self._module(name)
            if module is not None:
                found[name] = module.path
                queue += [n for n in module.imports if n.split(".")[0] in ours]
        return found

    def sha256(self, entries: Iterable[str]) -> str:
        """Returns the hex SHA-256 of the names and sources of all modules that ``entries`` can import, themselves included."""
        digest = hashlib.sha256()
        for name in sorted(self.closure(entries)):
            module = self._module(name)
            digest.update(name.encode() + b"\0" + (module.source if module else b"") + b"\0")
        return digest.hexdigest()

    def _module(self, name: str) -> _Module | None:
        if name not in self._read:
            path = module_file(name)
            self._read[name] = _Module(name, path) if path else None
        return self._read[name]


class _Module:
    """A module's source and the names in its import statements that can be modules, its own package among them."""

    def __init__(self, name: str, path: Path) -> None:
        self.path, self.source = path, path.read_bytes()
        parent = name.rpartition(".")[0]
        package = name if path.name == "__init__.py" else parent
        found = {parent, *_imported(ast.parse(self.source), package)}
        self.imports = sorted(found - {"", name})


def module_file(name: str) -> Path | None:
    """Returns the file of a dotted module name without importing anything but its top-level package's location, or None."""
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return None
    place = Path(spec.origin)
    if rest:
        place = place.parent.joinpath(*rest, "__init__.py")
        if not place.is_file():
            place = place.parent.with_suffix(".py")
    return place if place.is_file() else None


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Every name that could be a module's: of ``from a import b`` both ``a`` and ``a.b``. What only a type checker reads is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            for other in node.orelse:
                yield from _imported(ast.Module([other], []), package)
        else:
            yield from _imported(node, package)
