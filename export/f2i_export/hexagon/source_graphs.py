"""The graph of a component for the NPU's compiler, written once and shared by the chips that it is compiled for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from f2i_export.hexagon.to_graphs import SUFFIX
from f2i_export.lowering import LoweringRequest
from f2i_export.to_onnx import lower

NAME = "graph"
"""The compiler puts the path that it is given into what it writes, so that it is always the same one."""


def source_graph(request: LoweringRequest, prepare: Callable[[Path], None] = lambda _: None) -> Path:
    """Returns the path of the graph of ``request``'s module in float32, or of its QDQ graph, below ``request.scratch``; writes it unless it is there.

    ``prepare`` changes the file before it is there for others. The compiler makes float16 of float32, which is what the ops between integers are computed in, too.
    """
    folder = request.scratch / f"npu-{request.component}-{request.precision}"
    path = folder / f"{NAME}{SUFFIX}"
    if not path.is_file():
        staging = folder.with_name(f"{folder.name}-part")
        staging.mkdir()
        lower(replace(request, precision="fp32" if request.precision == "fp16" else request.precision, path=staging / path.name))
        prepare(staging / path.name)
        staging.rename(folder)
    return path
