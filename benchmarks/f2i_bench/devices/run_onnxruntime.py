"""Opens a model with ONNX Runtime for ``device_runner.py``, beside which this file lies on a device. Nothing of this project is imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def open_model(path: str, threads: int) -> tuple[str, Callable[[list[Any]], Any]]:
    """Returns the engine's name, and a function from inputs in calling order to the output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    return f"ONNX Runtime {onnxruntime.__version__}", lambda feeds: session.run(None, dict(zip(names, feeds, strict=True)))[0]
