"""An ``.mlpackage`` on disk: its manifest, its protobuf and its weight files, opened without trusting any of them.

A package is a folder: ``Manifest.json`` names the root model file below ``Data/``; the model names its weight files as
``@model_path/weights/weight.bin``. Both names come from the file and are confined to the package: absolute paths, ``..`` and links that
lead outside are refused.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Any

from f2i_runtime.errors import MilError, MissingPackageError, UsageError
from f2i_runtime.hub_layout import stays_inside
from f2i_runtime.mil.format.blob import WeightFile
from f2i_runtime.mil.format.coremltools_import import import_coremltools
from f2i_runtime.text_files import decode_text

MAX_MANIFEST_BYTES = 1 << 20
MAX_MODEL_BYTES = 1 << 29
_MODEL_PATH = "@model_path/"


class Package:
    """An opened package: ``spec`` (coremltools' ``Model`` message), ``path``, and its weight files. Close it after loading weights."""

    def __init__(self, path: Path) -> None:
        """Opens the package folder ``path``; raises :class:`MilError` when it is not a readable ML Program package."""
        self.path = path
        self.model_path = _root_model(path)
        self.spec = read_spec(self.model_path)
        self._model_bytes = self.model_path.stat().st_size
        self._files: dict[str, WeightFile] = {}

    def weights(self, name: str, where: str) -> WeightFile:
        """The weight file that the program calls ``name`` (``@model_path/weights/weight.bin``); opened once."""
        if name not in self._files:
            if not name.startswith(_MODEL_PATH):
                raise MilError(f"{where}: got weight file name {name!r}, expected one that starts with {_MODEL_PATH}")
            path = confine(self.model_path.parent, name[len(_MODEL_PATH) :], where)
            self._files[name] = WeightFile(path)
        return self._files[name]

    @property
    def bytes(self) -> int:
        """Size of the model file and of the weight files opened so far."""
        return self._model_bytes + sum(file.size for file in self._files.values())

    def close(self) -> None:
        """Closes the weight files."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def __enter__(self) -> Package:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def confine(root: Path, name: str, where: str) -> Path:
    """``root / name`` where ``name`` is a relative path that stays inside ``root``, links resolved; raises :class:`MilError` otherwise."""
    relative = PurePosixPath(name)
    if not name or "\\" in name or "\0" in name or relative.is_absolute() or ".." in relative.parts:
        raise MilError(f"{where}: got path {name!r}, expected a relative path inside the package")
    path = root / relative
    if not stays_inside(root, path):
        raise MilError(f"{where}: path {name!r} leads outside the package")
    return path


def read_spec(path: Path) -> Any:
    """The ``Model`` message in the file ``path``; raises :class:`MilError` when it is not one, or not an ML Program."""
    try:
        import_coremltools()
        from coremltools.proto import Model_pb2
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # protobuf ships no types
    except ImportError as error:
        raise MissingPackageError("coremltools", "reading a Core ML package", "run-coreml") from error
    data = _read(path, MAX_MODEL_BYTES)
    spec: Any = Model_pb2.Model()
    try:
        spec.ParseFromString(data)
    except DecodeError as error:
        raise MilError(f"{path.name} is not a Core ML model ({error}); export the package again") from error
    kind = spec.WhichOneof("Type")
    if kind != "mlProgram":
        raise MilError(f"{path.name}: got a model of type {kind or 'none'}, expected mlProgram")
    return spec


def _root_model(path: Path) -> Path:
    if not path.is_dir():
        raise MilError(f"{path} is not a folder; expected an .mlpackage")
    manifest = _read(path / "Manifest.json", MAX_MANIFEST_BYTES)
    try:
        entries = json.loads(decode_text(manifest, f"{path.name}/Manifest.json"))
        root = entries["itemInfoEntries"][entries["rootModelIdentifier"]]["path"]
    except (UsageError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise MilError(
            f"{path.name}/Manifest.json does not name a root model ({type(error).__name__}); export the package again"
        ) from error
    if not isinstance(root, str):
        raise MilError(f"{path.name}/Manifest.json: got root path {root!r}, expected text")
    return confine(path / "Data", root, f"{path.name}/Manifest.json")


def _read(path: Path, limit: int) -> bytes:
    try:
        if not path.is_file():
            raise MilError(f"{path} is missing or not a file; the package is incomplete, export it again")
        size = path.stat().st_size
        if size > limit:
            raise MilError(f"{path.name} holds {size} bytes, expected at most {limit}")
        return path.read_bytes()
    except OSError as error:
        raise MilError(f"{path} cannot be read ({error.strerror}); the package is incomplete, export it again") from error
