"""Runs Core ML packages: coremltools with Core ML itself on macOS, the evaluator of :mod:`f2i_runtime.mil` everywhere else.

The two prove different things, so every session says which one it is in ``engine``. The evaluator proves the saved graph, its weights,
their compression and the declared precision; it cannot prove the Neural Engine's own accumulation, fused kernels, placement or latency.
"""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from f2i_runtime.bundle.manifest import CHUNKS
from f2i_runtime.errors import MissingPackageError, ToolchainError
from f2i_runtime.targets import CPU

if TYPE_CHECKING:
    from f2i_runtime.mil.judge.neural_engine_rules import LintFinding

TARGET = "coreml"
EVALUATOR = "f2i_runtime.mil evaluator, declared precision"
NATIVE = "coremltools MLModel (CPU_AND_NE)"


class EvaluatorSession:
    """A package run by the evaluator; see :class:`f2i_runtime.mil.execute.evaluator.Evaluator`."""

    def __init__(self, path: Path, component: str, inputs: Mapping[str, tuple[int, ...]], threads: int, mode: str = "declared") -> None:
        """Loads ``path`` and decompresses its weights; raises :class:`ToolchainError` when its inputs are not ``inputs``."""
        from f2i_runtime.mil import load

        self.engine = EVALUATOR if mode == "declared" else f"f2i_runtime.mil evaluator, {mode}"
        self._component, self._threads = component, threads
        self._parts = [load(part, mode=mode) for part in packages(path)]
        shapes = [{name: declared.shape for name, declared in part.inputs.items()} for part in self._parts]
        _check_inputs(component, path, _taken(shapes, inputs), inputs)

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """Runs the component on inputs by name and returns the output, float32."""
        import torch

        before = torch.get_num_threads()
        if self._threads:
            torch.set_num_threads(self._threads)
        try:
            return _only_output(self._component, _chain(inputs, [(part.inputs, part) for part in self._parts]))
        finally:
            torch.set_num_threads(before)

    def close(self) -> None:
        """Frees the weights."""
        del self._parts


class NativeSession:
    """A package run by Core ML through coremltools, on macOS."""

    def __init__(self, path: Path, component: str, inputs: Mapping[str, tuple[int, ...]]) -> None:
        """Compiles and loads ``path`` for the CPU and the Neural Engine; raises :class:`ToolchainError` when Core ML refuses it."""
        import coremltools as ct

        self.engine = NATIVE
        self._component = component
        try:
            self._models = [ct.models.MLModel(str(part), compute_units=ct.ComputeUnit.CPU_AND_NE) for part in packages(path)]
        except Exception as error:  # coremltools raises bare Exception and RuntimeError for every failure of the framework
            raise ToolchainError(component=component, target=TARGET, stage="load", reason=f"{path}: {error}") from error
        shapes = [{i.name: tuple(i.type.multiArrayType.shape) for i in model.get_spec().description.input} for model in self._models]
        self._calls = [(shape, model.predict) for shape, model in zip(shapes, self._models, strict=True)]
        _check_inputs(component, path, _taken(shapes, inputs), inputs)

    def run(self, inputs: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        """Runs the component on inputs by name and returns the output, float32."""
        try:
            outputs = _chain(inputs, self._calls)
        except Exception as error:  # as above
            raise ToolchainError(component=self._component, target=TARGET, stage="run", reason=str(error)) from error
        return _only_output(self._component, outputs)

    def close(self) -> None:
        """Frees the model."""
        del self._calls, self._models


def open_session(
    path: Path, *, component: str, inputs: Mapping[str, tuple[int, ...]], accelerator: str = CPU, threads: int = 0
) -> EvaluatorSession | NativeSession:
    """See :func:`f2i_runtime.engines.session.open_session`: native on macOS, the evaluator elsewhere (``session.engine`` says which).

    Raises :class:`MissingPackageError` without coremltools or torch, :class:`MilError` for a malformed package, :class:`ToolchainError`
    when Core ML refuses a valid one. ``threads`` (0: the library's default) applies to the evaluator; Core ML chooses its own.
    """
    _need_coremltools()
    if sys.platform == "darwin":
        return NativeSession(path, component, inputs)
    return EvaluatorSession(path, component, inputs, threads)


def packages(path: Path) -> list[Path]:
    """Returns the packages of an artifact in calling order: itself, or the parts in its folder (see :data:`f2i_runtime.bundle.manifest.CHUNKS`)."""
    return sorted(path.glob("*.mlpackage")) if path.suffix == CHUNKS else [path]


def inspect_artifact(path: Path) -> dict[str, Any]:
    """What the package at ``path`` holds, per function: operation counts (constants apart), opset, inputs, outputs, weight storage.

    ``{"functions": {name: {"opset", "operations": {type: count}, "constants": {type: count}, "inputs", "outputs"}}, "weight_bytes": int}``.
    Raises :class:`MilError` for a malformed package.
    """
    _need_coremltools()
    from f2i_runtime.mil.format.package import Package
    from f2i_runtime.mil.format.program import decode, function_names

    functions: dict[str, Any] = {}
    with Package(path) as package:
        for name in function_names(package):
            function = decode(package, name)
            operations: collections.Counter[str] = collections.Counter()
            constants: collections.Counter[str] = collections.Counter()
            for operation in function.body.walk():
                kind = constants if operation.type == "const" or operation.type.startswith("constexpr_") else operations
                kind[operation.type] += 1
            functions[name] = {
                "opset": f"iOS{function.opset}",
                "operations": dict(sorted(operations.items())),
                "constants": dict(sorted(constants.items())),
                "inputs": {value.name: str(value.type) for value in function.inputs},
                "outputs": {output: str(function.types[output]) for output in function.body.outputs},
            }
        folder = package.model_path.parent / "weights"
    weights = sum(file.stat().st_size for file in folder.iterdir()) if folder.is_dir() else 0
    return {"functions": functions, "weight_bytes": weights}


def lint(path: Path) -> list[LintFinding]:
    """Returns the operations of the package at ``path`` that are known to leave the Neural Engine; see
    :mod:`f2i_runtime.mil.judge.neural_engine_rules`.
    """
    _need_coremltools()
    from f2i_runtime.mil.judge.neural_engine_rules import lint_package

    return [finding for part in packages(path) for finding in lint_package(part)]


def _need_coremltools() -> None:
    from f2i_runtime.mil.format.coremltools_import import import_coremltools

    for package, load in (("coremltools", import_coremltools), ("torch", lambda: import_module("torch"))):
        try:
            load()
        except ImportError as error:
            raise MissingPackageError(package, "running a Core ML package", "run-coreml") from error


def _check_inputs(component: str, path: Path, got: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]) -> None:
    if dict(got) != dict(expected):
        reason = f"{path}: inputs are {dict(got)}, expected {dict(expected)}"
        raise ToolchainError(component=component, target=TARGET, stage="load", reason=reason)


def _taken(parts: Sequence[Mapping[str, Any]], inputs: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Returns the shapes of what the first part takes, and of the component's own inputs that later parts take."""
    return dict(parts[0]) | {name: shape for part in parts[1:] for name, shape in part.items() if name in inputs}


def _chain(
    inputs: Mapping[str, Any], parts: Sequence[tuple[Mapping[str, Any], Callable[[dict[str, Any]], Mapping[str, Any]]]]
) -> Mapping[str, Any]:
    """Returns the output of the last part. Each part is a pair (inputs it takes, call), called with the component's inputs and the outputs of the
    parts before it.
    """
    values, outputs = dict(inputs), dict[str, Any]()
    for takes, call in parts:
        outputs = dict(call({name: values[name] for name in takes if name in values}))
        values |= outputs
    return outputs


def _only_output(component: str, outputs: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    values = list(outputs.values())
    if len(values) != 1 or not isinstance(values[0], np.ndarray):
        reason = f"the package has the outputs {sorted(outputs)}, expected one array"
        raise ToolchainError(component=component, target=TARGET, stage="run", reason=reason)
    return values[0].astype(np.float32, copy=False)
