"""The table of engines: one line per target. Only the requested engine's module, and with it its library, is imported."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from f2i_runtime.errors import MissingPackageError, UsageError
from f2i_runtime.stderr_filter import drop_engine_logs


class Session(Protocol):
    """A loaded component. One thread calls it at a time."""

    engine: str
    """The name of what computes, for people and reports, such as "ExecuTorch 1.4.1 (XNNPACK)"."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Inputs by name, float32, of the manifest's shapes → the output, float32. Raises ToolchainError when the engine fails."""
        ...

    def close(self) -> None:
        """Frees what the engine holds."""
        ...


@dataclass(frozen=True)
class Engine:
    """How a target is executed: the module with ``open_session``, the package it needs and the extra that installs it."""

    module: str
    package: str
    extra: str


ENGINES: dict[str, Engine] = {
    "torch": Engine("f2i_runtime.engines.run_torch", "torch", "model"),
    "executorch": Engine("f2i_runtime.engines.run_executorch", "executorch", "run-executorch"),
    "tflite": Engine("f2i_runtime.engines.run_tflite", "ai_edge_litert", "run-tflite"),
    "onnx": Engine("f2i_runtime.engines.run_onnx", "onnxruntime", "run-onnx"),
    "coreml": Engine("f2i_runtime.engines.run_coreml", "coremltools", "run-coreml"),
}


def installed(target: str) -> bool:
    """Whether the engine's package can be imported; does not import it."""
    return importlib.util.find_spec(ENGINES[target].package) is not None


def open_session(target: str, path: Path, *, component: str, inputs: Mapping[str, tuple[int, ...]], threads: int = 0) -> Session:
    """Load one artifact.

    ``inputs``: names in calling order with their shapes. ``threads``: 0 takes the engine's default.
    Raises UsageError for an unknown target, MissingPackageError with the install command, ToolchainError when the engine refuses the file.
    """
    engine = ENGINES.get(target)
    if engine is None:
        raise UsageError(f"target {target!r} is unknown; choose from {', '.join(ENGINES)}")
    if not installed(target):
        raise MissingPackageError(engine.package, f"the {target} engine", engine.extra)
    with drop_engine_logs():
        module = importlib.import_module(engine.module)
        return cast("Session", module.open_session(path, component=component, inputs=inputs, threads=threads))
