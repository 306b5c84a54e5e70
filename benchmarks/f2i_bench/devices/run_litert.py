"""Opens a model with LiteRT for ``device_runner.py``, beside which this file lies on a device. Nothing of this project is imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def open_model(path: str, threads: int) -> tuple[str, Callable[[list[Any]], Any]]:
    """Returns the engine's name, and a function from inputs in calling order to the output."""
    from importlib.metadata import version

    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=threads)
    interpreter.allocate_tensors()
    indices = [d["index"] for d in sorted(interpreter.get_input_details(), key=lambda d: d["name"])]
    output = interpreter.get_output_details()[0]["index"]

    def run(feeds: list[Any]) -> Any:
        for index, feed in zip(indices, feeds, strict=True):
            interpreter.set_tensor(index, feed)
        interpreter.invoke()
        return interpreter.get_tensor(output)

    return f"LiteRT {version('ai-edge-litert')}", run
