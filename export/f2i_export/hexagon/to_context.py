"""ONNX for Hexagon: a context binary for one chip, and beside it the ``.onnx`` graph of one op (``EPContext``) that an app opens with the QNN provider."""

from __future__ import annotations

from pathlib import Path

import onnx
from f2i_quantize.rewrites.hexagon_rewrites import HEXAGON
from f2i_runtime.bundle.manifest import Delegation
from f2i_runtime.bundle.npu_record import NpuRecord
from f2i_runtime.errors import ToolchainError
from f2i_runtime.hexagon.chips import find_chip
from f2i_runtime.targets import chip_of

from f2i_export.hexagon.compile_child import CompileRequest, compile_context
from f2i_export.hexagon.npu_estimates import estimates_of
from f2i_export.hexagon.shuffled_layers import with_shuffled_layers
from f2i_export.hexagon.source_graphs import source_graph
from f2i_export.hexagon.to_plain import integer_weights, plain_norms
from f2i_export.lowering import Converter, LoweringRequest

BINARY = "ep_cache_context"
"""The attribute of the one op that names the file of the context binary, relative to the graph."""
COMPILER = "ep_sdk_version"


def lower(request: LoweringRequest) -> Delegation:
    """Write ``request.path`` and the context binary ``<path>.bin`` beside it. Raises ToolchainError where the NPU does not take the whole graph."""
    chip = find_chip(chip_of(request.accelerator))
    graph = source_graph(request, prepare)
    made = request.path.with_name(f"{request.path.stem}-compiled")
    made.mkdir()
    wanted = CompileRequest(f"{request.component}/{chip.name}", graph, request.precision, chip, quantized=True)
    compiled = compile_context(wanted, made)
    compiler = _name_binary(compiled.files["graph"], request.path, f"{request.path.name}.bin")
    compiled.files["binary"].rename(request.path.with_name(f"{request.path.name}.bin"))
    compiled.files["graph"].unlink()
    made.rmdir()
    _check_integers(request, graph, compiled.integer_layers)
    estimate, in_fp16 = estimates_of(request, graph)
    npu = NpuRecord(chip=chip.name, htp=chip.htp, vtcm_mb=chip.vtcm_mb, compiler=compiler, estimate=estimate, estimate_fp16=in_fp16)
    return Delegation(ops=compiled.ops, delegated_share=1.0, partitions=compiled.partitions, npu=npu)


def prepare(path: Path) -> None:
    """Respell what the compiler refuses in a graph that was just written."""
    model = onnx.load(path, load_external_data=False)
    if plain_norms(model):
        onnx.save(model, path)


def _check_integers(request: LoweringRequest, graph: Path, compiled: int) -> None:
    """Raises ToolchainError where a layer that the QDQ graph stores in int8 is computed in float: nothing else shows it."""
    wanted = integer_weights(onnx.load(graph, load_external_data=False))
    if compiled < wanted:
        reason = f"the NPU computes {compiled} of {wanted} quantized layers in integers, expected all of them"
        raise ToolchainError(component=request.component, target="onnx", stage=f"compiling in {request.precision}", reason=reason)


def _name_binary(made: Path, path: Path, name: str) -> str:
    """Write the graph of one op with the binary's name of our own; returns the compiler's version. Raises ToolchainError for more than one op."""
    model = onnx.load(made, load_external_data=False)
    if [node.op_type for node in model.graph.node] != ["EPContext"]:
        reason = f"expected one EPContext op, got {len(model.graph.node)} ops: {sorted({n.op_type for n in model.graph.node})}"
        raise ToolchainError(component=path.stem, target="onnx", stage="compiling", reason=reason)
    attributes = {attribute.name: attribute for attribute in model.graph.node[0].attribute}
    attributes[BINARY].s = name.encode()
    model.producer_name = "f2i-mobile"
    onnx.save(model, path)
    return attributes[COMPILER].s.decode()


CONVERTER = Converter(lower, HEXAGON, fit_quantization=with_shuffled_layers, size_tells=False)
"""The rewrites are those of estimates, so that what is shipped is what was estimated."""
