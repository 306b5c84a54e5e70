"""What a graph that is compiled for a phone's chip would cost on the chip that the compiler has cost tables for; kept in the cache by the graph's content."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from f2i_runtime.bundle.npu_record import NpuEstimate
from f2i_runtime.errors import ToolchainError
from f2i_runtime.files import sha256_file
from f2i_runtime.hexagon.chips import CHIPS, ESTIMATED, FLOAT16

from f2i_export.hexagon.compile_child import CompileRequest, estimate_graph
from f2i_export.hexagon.kept_estimates import kept_estimate
from f2i_export.hexagon.source_graphs import source_graph
from f2i_export.hexagon.to_graphs import external_files
from f2i_export.lowering import LoweringRequest


def estimates_of(request: LoweringRequest, graph: Path) -> tuple[NpuEstimate | None, NpuEstimate | None]:
    """Returns the estimate of ``graph``, which is ``request``'s, and for a precision of integers that of the same component in fp16 beside it.

    None where there is nothing to estimate, or where the compiler gives no estimate for its own chip; why is then in the log of the export.
    """
    own = _estimate(request.component, graph, request.precision)
    if request.precision == FLOAT16 or request.unquantized is None:
        return own, None
    in_float = source_graph(replace(request, module=request.unquantized, precision=FLOAT16))
    return own, _estimate(request.component, in_float, FLOAT16)


def _estimate(component: str, graph: Path, precision: str) -> NpuEstimate | None:
    chip = CHIPS[ESTIMATED]
    hashes = [sha256_file(file) for file in (graph, *external_files(graph))]
    request = CompileRequest(f"{component}/estimate", graph, precision, chip, quantized=True)
    try:
        made = kept_estimate(["graph", *hashes, chip.name], lambda: estimate_graph(request))
    except ToolchainError as e:
        print(e)  # noqa: T201 — the log of the export's child
        return None
    return NpuEstimate(
        **made.milliseconds,
        chip=chip.name,
        htp=chip.htp,
        ddr_read_bytes=made.read_bytes,
        ddr_write_bytes=made.write_bytes,
        vtcm_spill_bytes=made.spill_bytes,
        uncosted_ops=made.uncosted,
    )
