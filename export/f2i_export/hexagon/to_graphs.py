"""What an ``.onnx`` file says of itself: shapes of inputs, files of weights, the number of axes. Needs no torch, and loads no weights."""

from __future__ import annotations

from pathlib import Path

import onnx
from f2i_runtime.errors import UsageError
from google.protobuf.message import DecodeError

SUFFIX = ".onnx"
"""The suffix of the graphs that the compiler takes."""


def input_shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """The shape of a graph's input. Raises UsageError unless it is fixed and float32."""
    tensor = value.type.tensor_type
    shape = tuple(d.dim_value for d in tensor.shape.dim)
    if not all(shape) or tensor.elem_type != onnx.TensorProto.FLOAT:
        kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
        raise UsageError(
            f"input {value.name!r} has shape {shape} and type {kind}; the NPU needs fixed shapes, and float32 here: export the graph so"
        )
    return shape


def graph_inputs(path: Path) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each input of an ``.onnx`` file. Raises UsageError where one is not fixed, or float32."""
    graph = _read(path).graph
    stored = {initializer.name for initializer in graph.initializer}
    return {value.name: input_shape(value) for value in graph.input if value.name not in stored}


def external_files(path: Path) -> list[Path]:
    """Returns the files beside an ``.onnx`` file that hold its weights, where it keeps them outside."""
    tensors = _read(path).graph.initializer
    entries = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return [path.parent / name for name in sorted(entries)]


def _read(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path, load_external_data=False)
    except (OSError, DecodeError) as e:
        raise UsageError(f"{path}: cannot be read as an ONNX graph: {e}; export it again") from e


def highest_rank(path: Path) -> int:
    """Returns the largest number of axes that any tensor of an ``.onnx`` graph has; the NPU is fast up to four."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True, data_prop=True).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    return max(len(value.type.tensor_type.shape.dim) for value in values)
