"""A ``.tflite`` compiled for Hexagon: its context binary on Qualcomm's x86 simulator. LiteRT itself runs such a file on a phone alone.

The library that LiteRT hands a ``DISPATCH_OP`` to, ``libLiteRtDispatch_Qualcomm.so``, comes for Android only. So the context binary, which is all that the op
holds, is taken out of the file and run as it is; what LiteRT does around it, copying tensors, is not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from f2i_runtime.errors import ToolchainError
from f2i_runtime.hexagon.dispatch_file import Dispatch, read_dispatch
from f2i_runtime.hexagon.simulator import SimulatedFile, Simulator
from f2i_runtime.targets import HEXAGON


class DispatchSession:
    """The context binary of a compiled ``.tflite`` on the simulator of the chip that it was compiled for."""

    def __init__(self, path: Path, component: str, inputs: Mapping[str, tuple[int, ...]], accelerator: str) -> None:
        try:
            found = read_dispatch(path)
        except (OSError, ValueError) as e:
            raise ToolchainError(component=component, target="tflite", stage="load", reason=f"{path}: {e}") from e
        # The converter names inputs args_0, args_1, … in calling order.
        names = dict(zip(inputs, sorted(found.inputs), strict=False))
        shapes = [found.inputs[name] for name in names.values()]
        if len(found.inputs) != len(inputs) or shapes != list(inputs.values()):
            reason = f"{path}: its inputs have the shapes {list(found.inputs.values())}, expected {list(inputs.values())}"
            raise ToolchainError(component=component, target="tflite", stage="load", reason=reason)
        self.folder = tempfile.TemporaryDirectory(prefix="f2i-dispatch-")
        graph = write_context_graph(found, Path(self.folder.name) / path.with_suffix(".onnx").name)
        self.simulator = Simulator(SimulatedFile(graph, component, "tflite", accelerator, names))
        self.engine = self.simulator.engine

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Runs the component on inputs by name and returns the output, float32. Equal inputs are computed once and kept in the cache."""
        return self.simulator.run(inputs)

    def close(self) -> None:
        """Ends the simulator and removes what was taken out of the file."""
        self.simulator.close()
        self.folder.cleanup()


def write_context_graph(found: Dispatch, path: Path) -> Path:
    """Write the context binary beside ``path``, and there a graph of one op (``EPContext``) that names it; returns ``path``."""
    binary = path.with_name(f"{path.name}.bin")
    binary.write_bytes(found.binary)
    node = helper.make_node(
        "EPContext",
        list(found.inputs),
        [found.output],
        name=found.graph,
        domain="com.microsoft",
        main_context=1,
        embed_mode=0,
        ep_cache_context=binary.name,
        partition_name=found.graph,
        source="QNN",
    )
    value, kind = helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    inputs = [value(name, kind, shape) for name, shape in found.inputs.items()]
    graph = helper.make_graph([node], "graph", inputs, [value(found.output, kind, found.output_shape)])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def open_session(
    path: Path, *, component: str, inputs: Mapping[str, tuple[int, ...]], accelerator: str = HEXAGON, threads: int = 0
) -> DispatchSession:
    """See :func:`f2i_runtime.engines.session.open_session`. The simulator chooses its threads itself."""
    return DispatchSession(path, component, inputs, accelerator)
