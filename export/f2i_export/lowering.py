"""What a lowering gives back, and the table of targets: one line each. Only the requested target's module is imported."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from f2i_runtime.bundle.manifest import Delegation
from f2i_runtime.errors import MissingPackageError, ToolchainError, UsageError
from f2i_runtime.targets import FLOAT

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class LoweringRequest:
    """One component to lower: the rewritten module in float32 (for int8 its QDQ graph), example inputs, and where to write.

    ``reference`` holds the weights of the module as it was given, by name: those of ``module`` that are the same tensors need not be stored
    again. ``scratch`` is a folder that the precisions of one component and target share, for what they have in common.
    """

    component: str
    module: nn.Module
    inputs: dict[str, tuple[int, ...]]
    output: str
    example: Sequence[Tensor]
    precision: str
    options: dict[str, str]
    path: Path
    scratch: Path
    reference: dict[str, Tensor] = field(default_factory=dict)
    palettes: dict[str, int] = field(default_factory=dict)
    """Maps the path of a layer to the bits of its weight's palette."""


@dataclass(frozen=True)
class Target:
    """How a target is lowered. ``options``: name → values it may take, none: any text.

    ``ram_factor`` × float32 weight bytes + ``ram_base_gib`` bounds a child's peak memory (measured)."""

    module: str
    package: str
    extra: str
    suffix: str
    precisions: tuple[str, ...]
    options: dict[str, tuple[str, ...]]
    distributions: tuple[str, ...]
    ram_factor: float
    ram_base_gib: float = 1.2


SIZE_MARGIN = 1.1
GRAPH_BYTES = 500
"""The most bytes that an operation takes in a file besides its tensors: for names, shapes and scales (measured: 150 to 450)."""
INT8 = ("w8a8", "w8a8-mixed")
PALETTES = ("p8", "p6", "p4")

TARGETS: dict[str, Target] = {
    "coreml": Target(
        "f2i_export.to_coreml",
        "coremltools",
        "coreml",
        ".mlpackage",
        (*FLOAT, "w8", *INT8, *PALETTES),
        {"keep_fp32": (), "split_above_mb": ()},
        ("coremltools", "torch"),
        2.5,
    ),
    "executorch": Target(
        "f2i_export.to_executorch",
        "executorch",
        "executorch",
        ".pte",
        (*FLOAT, *INT8),
        {"delegate": ("xnnpack", "coreml", "vulkan")},
        ("executorch", "torch"),
        3.5,
    ),
    "tflite": Target(
        "f2i_export.to_tflite",
        "litert_torch",
        "tflite",
        ".tflite",
        (*FLOAT, *INT8),
        {},
        ("litert-torch", "litert-converter", "ai-edge-quantizer", "torch"),
        4.0,
    ),
    "onnx": Target("f2i_export.to_onnx", "onnx", "onnx", ".onnx", (*FLOAT, "w8", *INT8, "w8a16"), {}, ("onnx", "onnxscript", "torch"), 4.0),
}


def check_target(target: str, precisions: Sequence[str], options: dict[str, str]) -> Target:
    """The target's line, after checking that it is known, installed, and takes these precisions and options. Raises UsageError."""
    line = TARGETS.get(target)
    if line is None:
        raise UsageError(f"target {target!r} is unknown; choose from {', '.join(TARGETS)}")
    for precision in precisions:
        if precision not in line.precisions:
            raise UsageError(
                f"precision {precision!r} is not available for {target}; it takes {', '.join(line.precisions)}. Nothing was exported"
            )
    for key, value in options.items():
        if key not in line.options or (line.options[key] and value not in line.options[key]):
            known = "; ".join(f"{k}={'|'.join(v)}" for k, v in line.options.items()) or "none"
            raise UsageError(f"option {key}={value} is unknown for {target}; it takes: {known}")
    if importlib.util.find_spec(line.package) is None:
        raise MissingPackageError(line.package, f"export to {target}", line.extra)
    return line


def lower(target: str, request: LoweringRequest) -> Delegation:
    """Lower one component with the target's own module and return the figures of the lowered graph."""
    function: Callable[[LoweringRequest], Delegation] = importlib.import_module(TARGETS[target].module).lower
    return function(request)


def check_size(component: str, target: str, stored: int, written: int, ops: int) -> None:
    """Raises ToolchainError where an int8 file weighs more than its tensors may: weights that stayed float are seen nowhere else.

    ``stored``: bytes of the tensors as the recipe wants them, ``written``: of the file, whose graph of ``ops`` operations is allowed for.
    """
    most = round(SIZE_MARGIN * stored) + GRAPH_BYTES * ops
    if written > most:
        reason = (
            f"the file has {written} bytes, expected at most {most} for {stored} bytes of tensors and {ops} ops: weights stayed in float"
        )
        raise ToolchainError(component=component, target=target, stage="size", reason=reason)


JsonDict = dict[str, Any]
