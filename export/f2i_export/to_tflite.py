"""LiteRT: ``.tflite`` in fp32, or with fp16 weights that the delegate computes with in fp16 where the processor can and in fp32 elsewhere."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import flatbuffers
import litert_torch
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import qtyping, quantizer
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from f2i_quantize.ptq.qdq import OPS, SAME_VALUES
from f2i_quantize.rewrites.passes import (
    EVERYWHERE,
    channels_last_upsample,
    explicit_group_norm,
    explicit_layer_norm,
    explicit_silu,
    pooled_group_norm,
)
from f2i_runtime.bundle.manifest import Delegation, Fallback
from f2i_runtime.targets import INT8
from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
from litert_torch.quantize.quant_config import QuantConfig

from f2i_export.lowering import Converter, LoweringRequest

NAME_BYTES = 24
WIDE = "w8a16"
"""The precision whose activations are int16; for an NPU, not for XNNPACK."""


def lower(request: LoweringRequest) -> Delegation:
    """Write ``request.path`` (.tflite) and return how much of the graph the XNNPACK delegate takes on this machine."""
    if request.precision in INT8:
        convert_static(request)
        return _delegation(request.path)
    plain = request.scratch / "float32.tflite"
    if not plain.is_file():
        convert_float(replace(request, path=plain))
    if request.precision == "fp16":
        _halve_weights(plain, request.path)
    else:
        shutil.copyfile(plain, request.path)
    return _delegation(request.path)


def convert_float(request: LoweringRequest) -> None:
    """Write ``request.path`` (.tflite) in float32."""
    litert_torch.convert(request.module.eval(), tuple(request.example)).export(str(request.path))


def convert_static(request: LoweringRequest) -> None:
    """Write ``request.path`` (.tflite) of a QDQ graph with unfolded weights.

    Without a quantizer in the configuration the converter takes no notice of it and the file stays float.
    """
    graph: Any = request.module
    _stay_float(graph)
    if request.precision == WIDE:
        _others_stay_float(graph)
    _own_dequantize(graph)
    configuration = QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True)))
    litert_torch.convert(graph, tuple(request.example), quant_config=configuration).export(str(request.path))
    _shorten_names(request.path)


class _AlignedBuilder(flatbuffers.Builder):
    """Tensors' data on multiples of 16 bytes, as the schema asks and Python's generated code forgets."""

    def StartVector(self, elem_size: int, count: int, alignment: int) -> int:  # noqa: N802  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().StartVector(elem_size, count, 16 if elem_size == 1 else alignment)


def _shorten_names(path: Path) -> None:
    """Cut the names of inner tensors, which the converter makes of whole module paths, to their ends: of a small int8 model they are 6 % of the file."""
    model: Any = schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(path.read_bytes()), 0))
    for graph in model.subgraphs:
        kept = {int(k) for k in (*graph.inputs, *graph.outputs)}
        for index, tensor in enumerate(graph.tensors):
            if index not in kept:
                tensor.name = tensor.name[-NAME_BYTES:]
    builder = _AlignedBuilder(path.stat().st_size)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def _stay_float(module: Any) -> None:
    """Multiply what a concatenation reads, and dequantized values that a pooling reads, by the float32 after one, so that these ops stay float.

    Both hand on values as they are, so the converter makes them int8 as soon as one input is dequantized, and for a concatenation forces that input's scale
    on all the others: measured, 10 dB of a small UNet's SQNR. A product with exactly one would be folded away.
    """
    module.register_buffer("_barrier", torch.nextafter(torch.ones(1), torch.full((1,), 2.0)), persistent=False)
    for node in list(module.graph.nodes):
        sources = node.args[0] if node.target is torch.ops.aten.cat.default else []
        if node.target is torch.ops.aten.avg_pool2d.default and _is_dequantize(node.args[0]):
            sources = [node.args[0]]
        if not sources:
            continue
        with module.graph.inserting_before(node):
            barrier = module.graph.get_attr("_barrier")
            inputs = [module.graph.call_function(torch.ops.aten.mul.Tensor, (source, barrier)) for source in sources]
        node.args = (inputs if node.target is torch.ops.aten.cat.default else inputs[0], *node.args[1:])
    module.recompile()


def _others_stay_float(module: Any) -> None:
    """The same for whatever else reads a dequantized value and is no layer, for activations of int16: there the converter would make ops that LiteRT lacks, such
    as a GELU of integers.
    """
    for node in list(module.graph.nodes):
        rounding = node.target is torch.ops.quantized_decomposed.quantize_per_tensor.default
        layer = rounding or node.target in OPS or node.target in SAME_VALUES
        if node.op != "call_function" or layer or any(n.target == "_barrier" for n in node.all_input_nodes):
            continue
        for source in [n for n in node.all_input_nodes if _is_dequantize(n)]:
            with module.graph.inserting_before(node):
                product = module.graph.call_function(torch.ops.aten.mul.Tensor, (source, module.graph.get_attr("_barrier")))
            node.replace_input_with(source, product)
    module.recompile()


def _is_dequantize(node: Any) -> bool:
    return bool(node.target is torch.ops.quantized_decomposed.dequantize_per_tensor.default)


def _own_dequantize(module: Any) -> None:
    """Give each reader of a quantized tensor its own dequantize op.

    litert-torch 0.10.0's layout pass puts a transpose behind a dequantize op that two ops read and forgets its shape, so that the second reader fails
    ("Attempting to convert non-NHWC compatible node to NHWC").
    """
    for node in list(module.graph.nodes):
        if not _is_dequantize(node):
            continue
        for user in list(node.users)[1:]:
            with module.graph.inserting_before(user):
                copy = module.graph.node_copy(node)
            user.replace_input_with(node, copy)
    module.recompile()


def _halve_weights(source: Path, destination: Path) -> None:
    """Every weight becomes fp16 behind a dequantize op, which delegates fuse."""
    halved = quantizer.Quantizer(str(source))
    weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    halved.update_quantization_recipe(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        op_config=qtyping.OpQuantizationConfig(weight_tensor_config=weights, compute_precision=qtyping.ComputePrecision.FLOAT),
        algorithm_key=AlgorithmName.FLOAT_CASTING,
    )
    halved.quantize().export_model(str(destination), overwrite=True)


def _delegation(path: Path) -> Delegation:
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    ops: list[dict[str, Any]] = interpreter._get_ops_details()
    partitions = [op for op in ops if op["op_name"] == "DELEGATE"]
    plain = [op for op in ops if op["op_name"] != "DELEGATE"]
    inside = {index for partition in partitions for index in _covered(partition, plain)}
    reason = "LiteRT's XNNPACK delegate does not take this op with these shapes and types"
    fallbacks = tuple(Fallback(op=op["op_name"], reason=reason) for op in plain if op["index"] not in inside)
    return Delegation(ops=len(plain), delegated_share=len(inside) / len(plain), partitions=len(partitions), fallbacks=fallbacks)


def _covered(partition: dict[str, Any], ops: list[dict[str, Any]]) -> set[int]:
    """Indices of the ops a DELEGATE stands for: all that lie between its inputs and its outputs. The interpreter keeps listing them."""
    producer = {int(tensor): op for op in ops for tensor in op["outputs"]}
    stop = {int(tensor) for tensor in partition["inputs"]}
    queue, found = [int(tensor) for tensor in partition["outputs"]], set()
    while queue:
        tensor = queue.pop()
        op = producer.get(tensor)
        if tensor in stop or op is None or op["index"] in found:
            continue
        found.add(op["index"])
        queue += [int(t) for t in op["inputs"] if t >= 0]
    return found


def export_as_documented(program: Path, destination: Path) -> None:
    """Convert a ``.pt2`` program as the converter's README shows, with nothing of ours."""
    exported = torch.export.load(program)
    inputs = exported.graph_signature.user_inputs
    arguments = tuple(torch.zeros(node.meta["val"].shape) for node in exported.graph.nodes if node.name in inputs)
    litert_torch.convert(exported.module(), arguments).export(str(destination))


CONVERTER = Converter(
    lower,
    (*EVERYWHERE, channels_last_upsample, explicit_group_norm, pooled_group_norm, explicit_layer_norm, explicit_silu),
    takes_folded_weights=False,
    as_documented=export_as_documented,
)
"""The converter folds weights itself and refuses those that are folded already."""
