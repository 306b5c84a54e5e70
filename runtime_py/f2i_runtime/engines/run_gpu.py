"""A ``.tflite`` file on LiteRT's GPU delegate, and on nothing else: every op on the GPU, or an error that lists what the delegate refuses."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from f2i_runtime.bundle.manifest import Delegation, Fallback
from f2i_runtime.errors import ToolchainError
from f2i_runtime.gpu.drivers import find_driver
from f2i_runtime.gpu.gpu_child import GpuChild, GpuFile
from f2i_runtime.targets import GPU_HALF

HIGHEST_RANK = 4


class GpuSession:
    """A file that is compiled for the GPU."""

    def __init__(self, path: Path, component: str, inputs: Mapping[str, tuple[int, ...]], accelerator: str) -> None:
        half = accelerator == GPU_HALF
        self.child = GpuChild(GpuFile(path, component, "tflite", inputs), half, find_driver(half))
        self.child.start()
        arithmetic = "half precision" if half else "float32"
        software = ", software (numerics only)" if self.child.is_software else ""
        self.engine = f"LiteRT {version('ai-edge-litert')} GPU delegate on {self.child.adapter}, {arithmetic}{software}"

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Runs the component on inputs by name and returns the output, float32."""
        return self.child.run(inputs)

    def close(self) -> None:
        """Ends the child."""
        self.child.close()


def open_session(path: Path, *, component: str, inputs: Mapping[str, tuple[int, ...]], accelerator: str, threads: int = 0) -> GpuSession:
    """See :func:`f2i_runtime.engines.session.open_session`. Threads are the driver's own."""
    return GpuSession(path, component, inputs, accelerator)


def delegation(path: Path, *, component: str, inputs: Mapping[str, tuple[int, ...]], accelerator: str) -> Delegation:
    """Returns how much of a file the delegate takes, and what it refuses: its words and the place in the model. Raises ToolchainError for any other failure."""
    half, ops = accelerator == GPU_HALF, _operations(path)
    child = GpuChild(GpuFile(path, component, "tflite", inputs), half, find_driver(half))
    try:
        child.start()
    except ToolchainError:
        found = child.refused
        if found is None:
            raise
        fallbacks = tuple(Fallback(op=r.op, reason=f"{r.words} [{r.place or _place(ops, r.op)}]") for r in found.refusals)
        return Delegation(ops=found.taken + found.left, delegated_share=found.taken / (found.taken + found.left), fallbacks=fallbacks)
    child.close()
    return Delegation(ops=len(ops), delegated_share=1.0, partitions=1)


def _operations(path: Path) -> list[tuple[str, str, int]]:
    """Returns kind, output's name and highest rank of every op of a file, in order."""
    from ai_edge_litert import schema_py_generated as schema

    model: Any = schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(path.read_bytes()), 0))
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    graph = model.subgraphs[0]
    found = []
    for operation in graph.operators:
        code = model.operatorCodes[operation.opcodeIndex]
        touched = [graph.tensors[int(k)] for k in (*operation.inputs, *operation.outputs) if k >= 0]
        rank = max((0 if t.shape is None else len(t.shape) for t in touched), default=0)
        last = graph.tensors[int(operation.outputs[0])].name
        found.append((names[max(code.builtinCode, code.deprecatedBuiltinCode)], (last or b"").decode(errors="replace"), rank))
    return found


def _place(operations: list[tuple[str, str, int]], kind: str) -> str:
    """Returns where the delegate, which does not say it, probably means: the ops of that kind of more than four axes, else all of that kind."""
    same = [(k, name, rank) for k, (op, name, rank) in enumerate(operations) if op == kind]
    places = [item for item in same if item[2] > HIGHEST_RANK] or same
    if not places:
        return "no such op in the file"
    k, name, _ = places[0]
    others = f", and {len(places) - 1} more" if len(places) > 1 else ""
    return f"op {k}, {name}{others}"
