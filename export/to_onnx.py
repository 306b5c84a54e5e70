"""ONNX: ``.onnx`` in fp32, or float16 inside with float32 edges; the reference runtime's own format and the way to any other engine."""

from __future__ import annotations

import onnx
import torch

from export.lowering import LoweringRequest
from quantize.capture import HalfInside, capture
from runtime_py.manifest import Delegation

OPSET = 20


def lower(request: LoweringRequest) -> Delegation:
    """Write ``request.path`` (.onnx). ONNX Runtime's CPU provider has no delegate: it runs every op, so only their number is given."""
    module = HalfInside(request.module) if request.precision == "fp16" else request.module
    program = capture(module, request.example)
    exported = torch.onnx.export(
        program,
        input_names=list(request.inputs),
        output_names=[request.output],
        opset_version=OPSET,
        dynamo=True,
        optimize=True,
        verbose=False,
    )
    model = exported.model_proto
    model.producer_name, model.doc_string = "f2i-mobile", ""
    large = model.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF
    onnx.save_model(
        model, str(request.path), save_as_external_data=large, all_tensors_to_one_file=True, location=f"{request.path.name}.data"
    )
    if not large:
        onnx.checker.check_model(model, full_check=False)
    return Delegation(ops=len(model.graph.node))
