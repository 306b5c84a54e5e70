"""The converter of a target that only the tests have: the rewritten module as a ``torch.export`` program."""

import torch
from f2i_export.lowering import Converter, LoweringRequest
from f2i_quantize.rewrites.capture import capture
from f2i_quantize.rewrites.passes import EVERYWHERE
from f2i_runtime.bundle.manifest import Delegation


def lower(request: LoweringRequest) -> Delegation:
    program = capture(request.module, request.example)
    with request.path.open("wb") as file:
        torch.export.save(program, file)
    return Delegation(ops=sum(node.op == "call_function" for node in program.graph.nodes))


CONVERTER = Converter(lower, EVERYWHERE)
