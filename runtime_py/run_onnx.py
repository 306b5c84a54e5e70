"""ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import tempfile
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


def profile_ops(path: Path, inputs: Mapping[str, np.ndarray], *, threads: int = 0, runs: int = 5) -> list[dict[str, int | str]]:
    """ONNX Runtime's own profile of one run (the mean of ``runs`` after a first), by kind of operator, the longest first: op, calls, ns.

    Raises ToolchainError when the engine fails.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for _ in range(runs + 1):
                session.run(None, {i.name: np.ascontiguousarray(inputs[i.name]) for i in session.get_inputs()})
            events = json.loads(Path(session.end_profiling()).read_text())
        except Exception as e:  # onnxruntime's errors share no base but Exception
            raise ToolchainError(component=path.stem, target="onnx", stage="profile", reason=str(e)) from e
    kernels = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    kernels = kernels[len(kernels) // (runs + 1) :]
    ops: dict[str, list[int]] = {}
    for event in kernels:
        ops.setdefault(event["args"]["op_name"], []).append(int(event["dur"]) * 1000)
    rows: list[dict[str, int | str]] = [{"op": op, "calls": len(d) // runs, "ns": sum(d) // runs} for op, d in ops.items()]
    return sorted(rows, key=lambda r: -int(r["ns"]))
