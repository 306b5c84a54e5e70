"""ONNX: ``.onnx`` in fp32, or float16 inside with float32 edges; the reference runtime's own format and the way to any other engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from f2i_quantize.rewrites.capture import HalfInside, capture
from f2i_quantize.rewrites.passes import EVERYWHERE
from f2i_runtime.bundle.manifest import Delegation

from f2i_export.lowering import Converter, LoweringRequest

OPSET = 20
INT16_OPSET = 21
"""The first opset in which QuantizeLinear makes int16."""
EXTERNAL_ABOVE = onnx.checker.MAXIMUM_PROTOBUF - (64 << 20)
"""Bytes of weights above which they lie in a file of their own: a protobuf cannot be larger than 2 GiB, and the graph needs some of that."""


def _drop_provenance(model: onnx.ModelProto) -> None:
    """Drop the stack traces and shapes that the exporter leaves on every node: of a small int8 model they are a third of the file."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]


def lower(request: LoweringRequest) -> Delegation:
    """Write ``request.path`` (.onnx). ONNX Runtime's CPU provider has no delegate: it runs every op, so only their number is given."""
    module = HalfInside(request.module) if request.precision == "fp16" else request.module
    program = capture(module, request.example)
    exported = torch.onnx.export(
        program,
        input_names=list(request.inputs),
        output_names=[request.output],
        opset_version=INT16_OPSET if request.precision == "w8a16" else OPSET,
        dynamo=True,
        optimize=True,
        verbose=False,
    )
    return Delegation(ops=write_model(exported, request.path))


def write_model(exported: Any, path: Path, external_above: int = EXTERNAL_ABOVE) -> int:
    """Write an exporter's program to ``path`` and return the number of its ops.

    Weights of more than ``external_above`` bytes in all go to ``<path>.data``. This is decided from the weights themselves: a protobuf that is too large cannot
    even be asked for its size.
    """
    large = (
        sum(value.const_value.nbytes for value in exported.model.graph.initializers.values() if value.const_value is not None)
        > external_above
    )
    if large:
        exported.save(str(path), external_data=True)
    model = onnx.load(str(path), load_external_data=False) if large else exported.model_proto
    model.producer_name, model.doc_string = "f2i-mobile", ""
    _drop_provenance(model)
    onnx.save_model(model, str(path))
    if not large:
        onnx.checker.check_model(model, full_check=False)
    return len(model.graph.node)


CONVERTER = Converter(lower, EVERYWHERE)
"""ONNX Runtime has every op that is left, layer norm among them."""
