"""ExecuTorch for Hexagon: a ``.pte`` with one delegate of the Qualcomm backend, which holds a context binary for one chip.

The binary is the one that the route of ONNX Runtime makes, of the same graph with the same scales: ExecuTorch takes binaries that were compiled elsewhere. Its
own way there, node by node through its partitioner, gave the same numbers to the last digit in float16, took minutes instead of seconds for a component, and
cannot express a graph of which only some layers are integers.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import onnx
import torch
from executorch.exir import EdgeCompileConfig, to_edge
from executorch.exir._serialize._flatbuffer import _flatc_compile
from executorch.exir.backend.compile_spec_schema import CompileSpec
from executorch.exir.lowered_backend_module import LoweredBackendModule
from f2i_quantize.rewrites.hexagon_rewrites import HEXAGON
from f2i_runtime.bundle.manifest import Delegation
from f2i_runtime.bundle.npu_record import NpuRecord
from f2i_runtime.hexagon.chips import Chip, find_chip
from f2i_runtime.targets import chip_of
from torch import Tensor, nn

from f2i_export.hexagon.compile_child import CompileRequest, compile_context
from f2i_export.hexagon.npu_estimates import estimates_of
from f2i_export.hexagon.shuffled_layers import with_shuffled_layers
from f2i_export.hexagon.source_graphs import source_graph
from f2i_export.lowering import Converter, LoweringRequest

BACKEND, SPECIFICATION = "QnnBackend", "qnn_compile_spec"
"""The name that the delegate is registered by on a device, and the key of its options."""
SCHEMA = "backends/qualcomm/serialization/qc_compiler_spec.fbs"
HTP, BURST, ERRORS = 2, 2, 1
"""The numbers of the schema for the backend, for its performance mode, and for how much it says."""


@dataclass(frozen=True)
class ContextBinary:
    """A context binary, the name of its one graph, and what the graph is given and gives."""

    content: bytes
    graph: str
    inputs: Sequence[tuple[int, ...]]
    output: tuple[int, ...]


class _StandIn(nn.Module):
    """A module with the binary's inputs and output, whose program the delegate is made in the place of."""

    def __init__(self, output: tuple[int, ...]) -> None:
        super().__init__()
        self.output = output

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.zeros(self.output) + sum(value.flatten()[0] for value in inputs)


class _Delegated(nn.Module):
    def __init__(self, lowered: LoweredBackendModule) -> None:
        super().__init__()
        self.lowered = lowered

    def forward(self, *inputs: Tensor) -> Any:
        return self.lowered(*inputs)


def lower(request: LoweringRequest) -> Delegation:
    """Write ``request.path`` (.pte). Raises ToolchainError where the NPU does not take the whole graph."""
    chip = find_chip(chip_of(request.accelerator))
    graph = source_graph(request)
    wanted = CompileRequest(f"{request.component}/{chip.name}", graph, request.precision, chip, quantized=True)
    with tempfile.TemporaryDirectory(dir=request.path.parent) as made:
        compiled = compile_context(wanted, Path(made))
        named = {a.name: a.s.decode() for a in onnx.load(compiled.files["graph"], load_external_data=False).graph.node[0].attribute}
        output = tuple(request.module(*request.example).shape)
        binary = ContextBinary(compiled.files["binary"].read_bytes(), named["partition_name"], list(request.inputs.values()), output)
    request.path.write_bytes(delegated_program(binary, chip))
    estimate, in_fp16 = estimates_of(request, graph)
    npu = NpuRecord(
        chip=chip.name,
        htp=chip.htp,
        vtcm_mb=chip.vtcm_mb,
        compiler=named["ep_sdk_version"],
        method=binary.graph,
        estimate=estimate,
        estimate_fp16=in_fp16,
    )
    return Delegation(ops=compiled.ops, delegated_share=1.0, partitions=compiled.partitions, npu=npu)


def delegated_program(binary: ContextBinary, chip: Chip) -> bytes:
    """Returns a ``.pte`` that is one call of the delegate. Its one method has the name of the binary's graph, by which the delegate finds it."""
    example = tuple(torch.zeros(shape) for shape in binary.inputs)
    config = EdgeCompileConfig(_check_ir_validity=False)
    program = torch.export.export(_StandIn(binary.output), example, strict=False)
    options = [CompileSpec(SPECIFICATION, delegate_options(chip))]
    lowered = LoweredBackendModule(to_edge(program, compile_config=config).exported_program(), BACKEND, binary.content, options)
    whole = torch.export.export(_Delegated(lowered), example, strict=False)
    return bytes(to_edge({binary.graph: whole}, compile_config=config).to_executorch().buffer)


def delegate_options(chip: Chip) -> bytes:
    """Returns the delegate's options for a chip, as its schema in the installed package has them."""
    content = {
        "soc_info": {"soc_model": chip.soc_model, "htp_info": {"htp_arch": chip.htp, "vtcm_size_in_mb": chip.vtcm_mb}},
        "backend_options": {"backend_type": HTP, "htp_options": {"performance_mode": BURST}},
        "log_level": ERRORS,
        "is_from_context_binary": True,
        # What the delegate reads without asking whether it is there.
        "library_path": "",
        "saver_output_dir": "",
        "op_package_options": {"op_package_infos": []},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        schema, text = folder / "options.fbs", folder / "options.json"
        schema.write_bytes(files("executorch").joinpath(SCHEMA).read_bytes())
        text.write_text(json.dumps(content))
        _flatc_compile(name, str(schema), str(text))
        return (folder / "options.bin").read_bytes()


CONVERTER = Converter(lower, HEXAGON, fit_quantization=with_shuffled_layers, size_tells=False)
"""The graph is the one that is compiled for ONNX Runtime."""
