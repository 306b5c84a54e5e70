"""Core ML: an ML Program (``.mlpackage``) with float32 inputs and outputs, computing in fp16 or fp32."""

from __future__ import annotations

import coremltools as ct

from export.lowering import LoweringRequest
from quantize.capture import capture
from runtime_py.manifest import Delegation

MINIMUM_DEPLOYMENT_TARGET = "iOS18"


def lower(request: LoweringRequest) -> Delegation:
    """Write ``request.path`` (.mlpackage). Where each op runs is the device's decision: only a Mac or a phone can tell, so no share is given here."""
    program = capture(request.module, request.example)
    precision = ct.precision.FLOAT16 if request.precision == "fp16" else ct.precision.FLOAT32
    model = ct.convert(
        program,
        inputs=[ct.TensorType(name=name, shape=shape) for name, shape in request.inputs.items()],
        outputs=[ct.TensorType(name=request.output)],
        convert_to="mlprogram",
        compute_precision=precision,
        minimum_deployment_target=getattr(ct.target, MINIMUM_DEPLOYMENT_TARGET),
        skip_model_load=True,
    )
    model.short_description = f"F2I {request.component}, {request.precision}"
    model.save(str(request.path))
    function = model._mil_program.functions["main"]
    return Delegation(ops=sum(op.op_type not in {"const"} and not op.op_type.startswith("constexpr_") for op in function.operations))
