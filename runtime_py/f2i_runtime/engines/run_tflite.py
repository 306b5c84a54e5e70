"""LiteRT's interpreter, with its XNNPACK delegate."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from f2i_runtime.engines.quantized_layers import QuantizedLayer, StoredLayer, pair_layers, with_merged
from f2i_runtime.errors import ToolchainError
from f2i_runtime.targets import CPU


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
        """Runs the component on inputs by name and returns the output, float32."""
        try:
            for name, index in self.indices.items():
                self.interpreter.set_tensor(index, np.ascontiguousarray(inputs[name]))
            self.interpreter.invoke()
        except (RuntimeError, ValueError) as e:
            raise ToolchainError(component=self.component, target="tflite", stage="run", reason=str(e)) from e
        return np.asarray(self.interpreter.get_tensor(self.output))

    def close(self) -> None:
        """Releases the interpreter."""
        del self.interpreter


def open_session(
    path: Path, *, component: str, inputs: Mapping[str, tuple[int, ...]], accelerator: str = CPU, threads: int = 0
) -> LiteRTSession:
    """See :func:`f2i_runtime.engines.session.open_session`."""
    return LiteRTSession(path, component, inputs, threads)


def input_layers(path: Path) -> list[str]:
    """Returns the names of a model's inputs in the interpreter's order. The calling order may differ: it is the order of the sorted names."""
    return [str(d["name"]) for d in Interpreter(model_path=str(path)).get_input_details()]


def layer_outputs(path: Path, layers: Sequence[QuantizedLayer]) -> dict[str, np.ndarray]:
    """What the artifact's own kernels make of each layer's input: layer's name → output, dequantized, float32, as torch lays it out.

    The layers that are found, by their weights, are cut out of the graph and run side by side. Layers that are not there, or whose input or output is not
    int8, are left out. Raises ToolchainError when the engine fails.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model: Any = schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(path.read_bytes()), 0))
    graph = model.subgraphs[0]
    tensors: list[Any] = graph.tensors
    kinds = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    producers = {int(index): operation for operation in graph.operators for index in operation.outputs}
    held, stored = _int8_operations(model)
    operations: list[Any] = []
    cuts: list[tuple[QuantizedLayer, int, int]] = []
    for operation, layer in zip(held, pair_layers(layers, stored), strict=True):
        if layer is None:
            continue
        given = tensors[int(operation.inputs[0])]
        # Zeros around an image are a convolution's own in torch and an op before it here; whichever side of it the program rounded is given.
        layer = _without_padding(layer, [int(n) for n in given.shape])
        chain = [operation]
        while np.prod(tensors[int(chain[-1].inputs[0])].shape) != layer.input.size:
            before = producers.get(int(chain[-1].inputs[0]))
            if before is None or kinds[before.opcodeIndex] not in (schema.BuiltinOperator.PAD, schema.BuiltinOperator.PADV2):
                break
            chain.append(before)
        else:
            cuts.append((layer, *_cut(tensors, operations, chain)))
    if not cuts:
        return {}
    graph.operators, graph.inputs, graph.outputs = operations, [c[1] for c in cuts], [c[2] for c in cuts]
    model.signatureDefs, model.metadata, model.metadataBuffer = [], [], []
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    try:
        interpreter = Interpreter(model_content=bytes(builder.Output()))
        interpreter.allocate_tensors()
        for (layer, *_), detail in zip(cuts, interpreter.get_input_details(), strict=True):
            given = layer.input.transpose(0, 2, 3, 1) if layer.op == "conv2d" else layer.input
            interpreter.set_tensor(detail["index"], np.ascontiguousarray(given).reshape(detail["shape"]))
        interpreter.invoke()
        outputs = {}
        for (layer, *_), detail in zip(cuts, interpreter.get_output_details(), strict=True):
            scale, zero = detail["quantization"]
            value = (interpreter.get_tensor(detail["index"]).astype(np.float32) - zero) * np.float32(scale)
            outputs[layer.name] = value.transpose(0, 3, 1, 2) if layer.op == "conv2d" else value.reshape(layer.rounded.shape)
    except (RuntimeError, ValueError) as e:
        raise ToolchainError(component=path.stem, target="tflite", stage="layers", reason=str(e)) from e
    return with_merged(layers, outputs)


def _int8_operations(model: Any) -> tuple[list[Any], list[StoredLayer]]:
    """Returns the convolutions and linears whose weight, input and output are int8, and what each stores, in the order of the graph."""
    from ai_edge_litert import schema_py_generated as schema

    graph, codes = model.subgraphs[0], schema.BuiltinOperator
    kinds = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    operations: list[Any] = []
    stored: list[StoredLayer] = []
    for operation in graph.operators:
        if kinds[operation.opcodeIndex] not in (codes.CONV_2D, codes.FULLY_CONNECTED):
            continue
        weight, given, result = (graph.tensors[int(k)] for k in (operation.inputs[1], operation.inputs[0], operation.outputs[0]))
        data = model.buffers[weight.buffer].data
        if data is None or any(t.type != schema.TensorType.INT8 for t in (weight, given, result)):
            continue
        grid = result.quantization
        operations.append(operation)
        stored.append(StoredLayer(np.asarray(data, dtype=np.uint8).view(np.int8), float(grid.scale[0]), int(grid.zeroPoint[0])))
    return operations, stored


def _without_padding(layer: QuantizedLayer, shape: Sequence[int]) -> QuantizedLayer:
    """The layer as a convolution (n, h, w, c) is given it that pads by itself, below and on the right, what the program padded before it.

    So the converter folds the padding of downsamplers that halve an even size. Other layers, and what is not one value there, are left as they are.
    """
    if layer.op != "conv2d" or len(shape) != 4 or layer.input.ndim != 4:
        return layer
    (_, height, width, _), (_, _, high, wide) = shape, layer.input.shape
    beyond = np.concatenate([layer.input[:, :, height:].ravel(), layer.input[:, :, :, width:].ravel()])
    if high < height or wide < width or beyond.size == 0 or (beyond != beyond[0]).any():
        return layer
    return replace(layer, input=layer.input[:, :, :height, :width])


def _cut(tensors: list[Any], operations: list[Any], chain: Sequence[Any]) -> tuple[int, int]:
    """Append copies of the operations of ``chain`` (last first) with tensors of their own; returns the indices of their input and output."""
    first = given = _copy_tensor(tensors, int(chain[-1].inputs[0]))
    for link in reversed(chain):
        own = copy.copy(link)
        own.inputs = [given, *(int(k) for k in link.inputs[1:])]
        given = _copy_tensor(tensors, int(link.outputs[0]))
        own.outputs = [given]
        operations.append(own)
    return first, given


def _copy_tensor(tensors: list[Any], index: int) -> int:
    """Returns the index of a new tensor like the one at ``index``, without its data."""
    tensor = copy.copy(tensors[index])
    tensor.buffer, tensor.name = 0, f"{index}_{len(tensors)}"
    tensors.append(tensor)
    return len(tensors) - 1
