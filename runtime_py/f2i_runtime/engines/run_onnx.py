"""ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from f2i_runtime.engines.quantized_layers import QuantizedLayer, StoredLayer, pair_layers, with_merged
from f2i_runtime.errors import ToolchainError
from f2i_runtime.targets import CPU


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
        """Runs the component on inputs by name and returns the output, float32."""
        try:
            return np.asarray(self.session.run(None, {i.name: np.ascontiguousarray(inputs[i.name]) for i in self.session.get_inputs()})[0])
        except Exception as e:  # onnxruntime's errors share no base but Exception
            raise ToolchainError(component=self.component, target="onnx", stage="run", reason=str(e)) from e

    def close(self) -> None:
        """Releases the session."""
        del self.session


def open_session(
    path: Path, *, component: str, inputs: Mapping[str, tuple[int, ...]], accelerator: str = CPU, threads: int = 0
) -> OnnxSession:
    """See :func:`f2i_runtime.engines.session.open_session`."""
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


def layer_outputs(path: Path, layers: Sequence[QuantizedLayer]) -> dict[str, np.ndarray]:
    """What the artifact's own kernels make of each layer's input: layer's name → output, dequantized, float32.

    The layers that are found, by their weights, are cut out of the graph between their quantize ops and run side by side. Layers that are not there, or
    whose input or output is not quantized, are left out. Raises ToolchainError when the engine fails.
    """
    from onnx import NodeProto, TensorProto, helper, load

    graph = load(str(path)).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    held, stored = _int8_nodes(graph, constants)
    nodes, inputs, outputs, feeds = [], [], [], {}
    for (first, weights, node, tail), layer in zip(held, pair_layers(layers, stored), strict=True):
        if layer is None:
            continue
        own = f"{layer.name}/"
        rounded = tail[-1]
        last = helper.make_node("DequantizeLinear", [rounded.output[0], *rounded.input[1:]], [f"{rounded.output[0]}/float"])
        for source in (*reversed(weights), first, node, *tail, last):
            copied = NodeProto()
            copied.CopyFrom(source)
            copied.name = own + source.name
            copied.input[:] = [name if name in constants or not name else own + name for name in source.input]
            copied.output[:] = [own + name for name in source.output]
            nodes.append(copied)
        inputs.append(
            helper.make_tensor_value_info(own + first.input[0], helper.np_dtype_to_tensor_dtype(layer.input.dtype), layer.input.shape)
        )
        outputs.append((layer.name, helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)))
        feeds[inputs[-1].name] = layer.input
    if not nodes:
        return {}
    used = {name for node in nodes for name in node.input}
    cut = helper.make_graph(nodes, "layers", inputs, [value for _, value in outputs], [t for name, t in constants.items() if name in used])
    model = helper.make_model(cut, opset_imports=load(str(path), load_external_data=False).opset_import)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results = session.run(None, feeds)
    except Exception as e:  # onnxruntime's errors share no base but Exception
        raise ToolchainError(component=path.stem, target="onnx", stage="layers", reason=str(e)) from e
    return with_merged(layers, {name: np.asarray(result) for (name, _), result in zip(outputs, results, strict=True)})


def _int8_nodes(graph: Any, constants: Mapping[str, Any]) -> tuple[list[tuple[Any, list[Any], Any, list[Any]]], list[StoredLayer]]:
    """Returns the convolutions and products with an int8 weight and a quantized input and output, in the order of the graph, and what each stores.

    Each is (the op that dequantizes its input, those between its stored weight and itself, itself, those until its output is quantized).
    """
    from onnx import TensorProto, numpy_helper

    producers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    held, stored = [], []
    for node in graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm") or node.input[1] not in producers:
            continue
        weights = [producers[node.input[1]]]
        while weights[-1].op_type != "DequantizeLinear" and weights[-1].input[0] in producers:
            weights.append(producers[weights[-1].input[0]])
        weight = constants.get(weights[-1].input[0])
        tail, first = _until_quantized(node, readers), producers.get(node.input[0])
        if weight is None or weight.data_type != TensorProto.INT8 or tail is None or first is None or first.op_type != "DequantizeLinear":
            continue
        grid = [numpy_helper.to_array(constants[name]).item() for name in tail[-1].input[1:] if name]
        held.append((first, weights, node, tail))
        stored.append(StoredLayer(numpy_helper.to_array(weight), float(grid[0]), int(grid[1]) if len(grid) > 1 else 0))
    return held, stored


def _until_quantized(node: Any, readers: Mapping[str, list[Any]]) -> list[Any] | None:
    """Returns the nodes from ``node`` back to its quantize op, with nothing but the bias and a ReLU between them; None where there is no such op."""
    following: list[Any] = []
    while True:
        after = readers.get((following[-1] if following else node).output[0], [])
        if len(after) != 1 or after[0].op_type not in ("Add", "Relu", "QuantizeLinear"):
            return None
        following.append(after[0])
        if after[0].op_type == "QuantizeLinear":
            return following
