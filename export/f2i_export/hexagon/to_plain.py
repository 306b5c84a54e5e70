"""A QDQ graph as the NPU's compiler takes it, and how many of its layers are stored in integers.

ONNX Runtime makes integers of a QDQ graph itself before it hands it to the NPU: a transposed product with a sum becomes one product with an int32 bias. Only
group norms stand in the way: the op that opset 21 has for them, which int16 needs, is refused by the QNN provider.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper, shape_inference

GROUP_NORM = "GroupNormalization"


def plain_norms(model: onnx.ModelProto) -> int:
    """Writes each group norm as an instance norm over groups, which is what the exporter makes of it up to opset 20; returns how many there were."""
    shapes = _shapes(model) if any(node.op_type == GROUP_NORM for node in model.graph.node) else {}
    nodes: list[NodeProto] = []
    count = 0
    for node in model.graph.node:
        if node.op_type == GROUP_NORM:
            nodes += _instance_norm(model.graph, node, shapes[node.input[0]])
            count += 1
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return count


def integer_weights(model: onnx.ModelProto) -> int:
    """Returns the number of stored weights in int8."""
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    return sum(node.op_type == "DequantizeLinear" and node.input[0] in stored for node in model.graph.node)


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor. A group norm, whose shape is not inferred, has that of its input."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    for node in plain.graph.node:
        if node.op_type == GROUP_NORM:
            node.op_type, node.input[:] = "Identity", node.input[:1]
            del node.attribute[:]
    graph = shape_inference.infer_shapes(plain, strict_mode=True, data_prop=True).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    return {value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim) for value in values}


def _instance_norm(graph: onnx.GraphProto, node: NodeProto, shape: tuple[int, ...]) -> list[NodeProto]:
    groups, epsilon = (helper.get_node_attr_value(node, name) for name in ("num_groups", "epsilon"))
    (given, scale, bias), [out] = node.input, node.output
    constants = {tensor.name: tensor for tensor in graph.initializer}
    affine = (1, shape[1], *(1,) * (len(shape) - 2))

    def constant(name: str, value: np.ndarray[Any, Any]) -> str:
        graph.initializer.add().CopyFrom(numpy_helper.from_array(value, f"{out}_{name}"))
        return f"{out}_{name}"

    def add(kind: str, inputs: tuple[str, ...], name: str, **attributes: Any) -> NodeProto:
        return helper.make_node(kind, inputs, [name], name=f"{name}_node", **attributes)

    gain, shift = (numpy_helper.to_array(constants[name]).reshape(affine) for name in (scale, bias))
    ones, zeros = constant("ones", np.ones(groups, np.float32)), constant("zeros", np.zeros(groups, np.float32))
    return [
        add("Reshape", (given, constant("grouped", np.array([0, groups, -1], np.int64))), f"{out}_groups"),
        add("InstanceNormalization", (f"{out}_groups", ones, zeros), f"{out}_even", epsilon=epsilon),
        add("Reshape", (f"{out}_even", constant("shape", np.array(shape, np.int64))), f"{out}_norm"),
        add("Mul", (f"{out}_norm", constant("gain", gain)), f"{out}_scaled"),
        add("Add", (f"{out}_scaled", constant("shift", shift)), out),
    ]
