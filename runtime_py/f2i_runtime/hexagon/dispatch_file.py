"""A file of LiteRT's that its compiler plugin made for an NPU: which ops it has, and the context binary behind its one ``DISPATCH_OP``."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers

DISPATCH = "DISPATCH_OP"
"""The custom op that hands its inputs to a vendor's runtime."""


@dataclass(frozen=True)
class Dispatch:
    """The one op of a compiled file. The names of its tensors are those of the graph in the context binary, too; inputs are in the file's order."""

    graph: str
    """The name of the graph in the context binary."""
    binary: bytes
    inputs: dict[str, tuple[int, ...]]
    output: str
    output_shape: tuple[int, ...]


def op_names(path: Path) -> tuple[str, ...]:
    """Returns the names of all ops of a file of LiteRT's in the order of its graph: ``CONV_2D``, or a custom op's own. Raises ValueError for another file."""
    model = _read(path.read_bytes())
    return tuple(_op_name(model, operator) for operator in model.subgraphs[0].operators)


def read_dispatch(path: Path) -> Dispatch:
    """Returns the one op of a compiled file. Raises ValueError where there is another op, or none, or where the binary is not whole."""
    data = path.read_bytes()
    model = _read(data)
    graph = model.subgraphs[0]
    names = [_op_name(model, operator) for operator in graph.operators]
    if names != [DISPATCH]:
        raise ValueError(f"expected one {DISPATCH}, got {', '.join(names) or 'no op'}")
    operator = graph.operators[0]
    where: Any = flexbuffers.Loads(bytes(operator.customOptions))
    start, size = int(where["bytecode_offset"]), int(where["bytecode_size"])
    if size < 1 or start + size > len(data):
        raise ValueError(f"its context binary should have {size} bytes from byte {start} on, and the file has {len(data)}")
    inputs = [graph.tensors[int(index)] for index in operator.inputs]
    output = graph.tensors[int(operator.outputs[0])]
    return Dispatch(
        graph=str(where["name"]),
        binary=data[start : start + size],
        inputs={_name(tensor): _shape(tensor.shape) for tensor in inputs},
        output=_name(output),
        output_shape=_shape(output.shape),
    )


def _read(data: bytes) -> Any:
    try:
        if data[4:8] != b"TFL3":
            raise ValueError("it is no file of LiteRT's")
        return schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(data), 0))
    except (struct.error, IndexError, AttributeError, TypeError) as e:
        raise ValueError(f"it is no readable file of LiteRT's: {e}") from e


def _op_name(model: Any, operator: Any) -> str:
    code = model.operatorCodes[operator.opcodeIndex]
    if code.customCode:
        return str(code.customCode.decode())
    kind = max(code.builtinCode, code.deprecatedBuiltinCode)
    return next((name for name, value in vars(schema.BuiltinOperator).items() if value == kind), str(kind))


def _name(tensor: Any) -> str:
    return str(tensor.name.decode() if isinstance(tensor.name, bytes) else tensor.name)


def _shape(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(n) for n in shape)
