"""LiteRT for Hexagon: a ``.tflite`` whose whole graph is one ``DISPATCH_OP``, compiled for one chip."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import litert_torch
from f2i_quantize.rewrites.hexagon_rewrites import HEXAGON
from f2i_quantize.rewrites.transposed_shuffle import transposed_shuffle
from f2i_runtime.bundle.manifest import Delegation
from f2i_runtime.bundle.npu_record import NpuRecord
from f2i_runtime.hexagon.chips import find_chip
from f2i_runtime.targets import chip_of

from f2i_export.hexagon.compile_child import CompileRequest
from f2i_export.hexagon.litert_compiler import compile_dispatch
from f2i_export.hexagon.shuffled_layers import with_shuffled_layers
from f2i_export.lowering import Converter, LoweringRequest
from f2i_export.replaced_attribute import replaced
from f2i_export.to_tflite import convert_float, convert_static


def lower(request: LoweringRequest) -> Delegation:
    """Write ``request.path`` (.tflite). Raises ToolchainError where the NPU does not take the whole graph."""
    chip = find_chip(chip_of(request.accelerator))
    label = f"{request.component}/{chip.name}"
    compiled = compile_dispatch(CompileRequest(label, _portable(request), request.precision, chip, quantized=True), request.path)
    npu = NpuRecord(chip=chip.name, htp=chip.htp, vtcm_mb=chip.vtcm_mb, compiler=compiled.compiler)
    return Delegation(ops=compiled.ops, delegated_share=1.0, partitions=1, npu=npu)


def _portable(request: LoweringRequest) -> Path:
    """Returns the ``.tflite`` that is compiled, below ``request.scratch``; the chips share it. The compiler makes float16 of what is float32 in it."""
    path = request.scratch / f"npu-{request.component}-{request.precision}.tflite"
    if path.is_file():
        return path
    part = replace(request, path=path.with_suffix(".part"))
    # Group normalisation as an op of its own, which the NPU has: spelled out it is four times as many ops there, and less exact in float16.
    with replaced(litert_torch.config, "enable_group_norm_composite", True):
        convert_float(part) if request.precision == "fp16" else convert_static(part)
    part.path.rename(path)
    return path


CONVERTER = Converter(
    lower,
    (*HEXAGON, transposed_shuffle),
    fit_quantization=with_shuffled_layers,
    takes_folded_weights=False,
    size_tells=False,
)
"""The rewrites are those of the other routes to this NPU, and one for LiteRT's converter, which has no op for a pixel shuffle; it folds weights itself."""
