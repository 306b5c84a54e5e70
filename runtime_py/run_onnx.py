"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from runtime_py.errors import ToolchainError


class OnnxSession:
    """An ``.onnx`` model."""

    def __init__(self, path: Path, component: str, inputs: Mapping[str, tuple[int, ...]], threads: int) -> None:
        self.component = component
        self.engine = f"ONNX Runtime {onnxruntime.__version__} (CPU)"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as e:  # onnxruntime's errors share no base but Exception
            raise ToolchainError(component=component, target="onnx", stage="load", reason=f"{path}: {e}") from e
        got = {i.name: tuple(i.shape) for i in self.session.get_inputs()}
        if got != dict(inputs):
            raise ToolchainError(
                component=component, target="onnx", stage="load", reason=f"{path}: inputs are {got}, expected {dict(inputs)}"
            )

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Inputs by name → the output, float32."""
        try:
            return np.asarray(self.session.run(None, {i.name: np.ascontiguousarray(inputs[i.name]) for i in self.session.get_inputs()})[0])
        except Exception as e:  # onnxruntime's errors share no base but Exception
            raise ToolchainError(component=self.component, target="onnx", stage="run", reason=str(e)) from e

    def close(self) -> None:
        """Release the session."""
        del self.session


def open_session(path: Path, *, component: str, inputs: Mapping[str, tuple[int, ...]], threads: int = 0) -> OnnxSession:
    """See :func:`runtime_py.engines.open_session`."""
    return OnnxSession(path, component, inputs, threads)
