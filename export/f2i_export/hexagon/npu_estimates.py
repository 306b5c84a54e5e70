"""What a graph that is compiled for a phone's chip would cost on the chip that the compiler has cost tables for; kept in the cache by the graph's content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from f2i_runtime.bundle.npu_record import NpuEstimate
from f2i_runtime.errors import ToolchainError
from f2i_runtime.files import atomic_file, cache_root, sha256_file
from f2i_runtime.hexagon.chips import CHIPS, ESTIMATED
from f2i_runtime.hexagon.qnn_provider import DISTRIBUTION

from f2i_export.hexagon.compile_child import CompileRequest, estimate_graph
from f2i_export.hexagon.compiler_profile import CompilerEstimate
from f2i_export.hexagon.source_graphs import source_graph
from f2i_export.hexagon.to_graphs import external_files
from f2i_export.lowering import LoweringRequest

FLOAT16 = "fp16"
TOOLS = (DISTRIBUTION, "onnxruntime")
PER_MS = 1000
"""Microseconds in a millisecond."""


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
    key = hashlib.sha256(json.dumps([*hashes, chip.name, *(version(name) for name in TOOLS)]).encode()).hexdigest()[:32]
    path = cache_root() / "estimates" / f"graph-{key}.json"
    try:
        return NpuEstimate.model_validate_json(path.read_text())
    except (OSError, ValueError):
        pass  # never made, or not whole: it is made now
    try:
        made = estimate_graph(CompileRequest(f"{component}/estimate", graph, precision, chip, quantized=True))
    except ToolchainError as e:
        print(e)  # noqa: T201 — the log of the export's child
        return None
    record = _record(chip.name, chip.htp, made)
    with atomic_file(path) as staging:
        staging.write_text(record.model_dump_json())
    return record


def _record(chip: str, htp: int, made: CompilerEstimate) -> NpuEstimate:
    return NpuEstimate(
        chip=chip,
        htp=htp,
        ms=made.microseconds / PER_MS,
        ms_lower=made.lower / PER_MS,
        ms_upper=made.upper / PER_MS,
        ddr_read_bytes=made.read_bytes,
        ddr_write_bytes=made.write_bytes,
        vtcm_spill_bytes=made.spill_bytes,
        uncosted_ops=made.uncosted,
    )
