"""Small ONNX graphs for the NPU's compiler, written without torch."""

import platform
import sys

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

HAS_COMPILER = (platform.system(), platform.machine()) == ("Linux", "x86_64") and sys.version_info >= (3, 11)
needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="Qualcomm's compiler comes for Linux on x86-64 and Python 3.11 or later")


def save_graph(path, nodes, output, weights=(), shape=(1, 3, 32, 32)):
    """Write a graph with the input ``x`` and the output ``y``."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", onnx.TensorProto.FLOAT, shape)],
        [value("y", onnx.TensorProto.FLOAT, output)],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def convolution(path, channels=32):
    """Two convolutions with a ReLU between them."""
    rng = np.random.default_rng(0)
    weights = [("a", rng.random((channels, 3, 3, 3), np.float32)), ("b", rng.random((3, channels, 3, 3), np.float32))]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "b"], ["y"], pads=[1, 1, 1, 1]),
    ]
    return save_graph(path, nodes, (1, 3, 32, 32), weights)


def determinant(path):
    """An op that the NPU does not have, after one that it has."""
    nodes = [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Det", ["r"], ["y"])]
    return save_graph(path, nodes, (1, 3))
