"""LiteRT's interpreter, with its XNNPACK delegate."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from runtime_py.errors import ToolchainError


class LiteRTSession:
    """A ``.tflite`` model."""

    def __init__(self, path: Path, component: str, inputs: Mapping[str, tuple[int, ...]], threads: int) -> None:
        self.component = component
        self.engine = f"LiteRT {version('ai-edge-litert')} (XNNPACK)"
        try:
            self.interpreter = Interpreter(model_path=str(path), num_threads=threads or os.cpu_count() or 1)
            self.interpreter.allocate_tensors()
        except (RuntimeError, ValueError, OSError) as e:
            raise ToolchainError(component=component, target="tflite", stage="load", reason=f"{path}: {e}") from e
        details = sorted(self.interpreter.get_input_details(), key=lambda d: str(d["name"]))
        # The converter names inputs args_0, args_1, … in calling order.
        self.indices = {name: int(detail["index"]) for name, detail in zip(inputs, details, strict=True)}
        for (name, shape), detail in zip(inputs.items(), details, strict=True):
            if tuple(detail["shape"]) != shape or detail["dtype"] != np.float32:
                raise ToolchainError(
                    component=component,
                    target="tflite",
                    stage="load",
                    reason=f"{path}: input {name} is {detail['dtype'].__name__} {tuple(detail['shape'])}, expected float32 {shape}",
                )
        self.output = int(self.interpreter.get_output_details()[0]["index"])

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Inputs by name → the output, float32."""
        try:
            for name, index in self.indices.items():
                self.interpreter.set_tensor(index, np.ascontiguousarray(inputs[name]))
            self.interpreter.invoke()
        except (RuntimeError, ValueError) as e:
            raise ToolchainError(component=self.component, target="tflite", stage="run", reason=str(e)) from e
        return np.asarray(self.interpreter.get_tensor(self.output))

    def close(self) -> None:
        """Release the interpreter."""
        del self.interpreter


def open_session(path: Path, *, component: str, inputs: Mapping[str, tuple[int, ...]], threads: int = 0) -> LiteRTSession:
    """See :func:`runtime_py.engines.open_session`."""
    return LiteRTSession(path, component, inputs, threads)


def input_layers(path: Path) -> list[str]:
    """Names of a model's inputs, in the interpreter's order, which need not be the calling order: that is the sorted names'."""
    return [str(d["name"]) for d in Interpreter(model_path=str(path)).get_input_details()]
