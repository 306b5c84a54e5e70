"""What in a package is known to leave the Neural Engine, where it is, and the rewrite that avoids it.

Apple publishes no list: placement depends on the chip, the system and the sizes. Each rule therefore names its source, and a clean report
is no promise; Xcode's performance report and coremltools' ``MLComputePlan`` on a device are the proof.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from f2i_runtime.mil.format.package import Package
from f2i_runtime.mil.format.program import Constant, Function, Operation, Output, ValueType, decode, function_names

MAX_DIMENSION = 16384
MAX_RANK = 5

_APPLE = "Apple, Deploying Transformers on the Apple Neural Engine (machinelearning.apple.com/research/neural-engine-transformers)"
_HOLLANCE = "hollance/neural-engine, docs/unsupported-layers.md"
_FP16 = "hollance/neural-engine, docs/16-bit.md: the engine computes in float16 only"


@dataclass(frozen=True)
class Rule:
    """A reason to leave the Neural Engine: what, how to avoid it, and who says so."""

    name: str
    reason: str
    rewrite: str
    source: str


@dataclass(frozen=True)
class LintFinding:
    """One place that breaks ``rule``: the function, the operation, its location in the file and what was found."""

    rule: Rule
    function: str
    operation: str
    where: str
    detail: str


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            "rank",
            f"a tensor of rank over {MAX_RANK} is computed on the CPU or GPU",
            "reshape to (batch, channels, height, width); fold window and head dimensions into the batch",
            "MIL specification: tensors of rank 0 to 5; " + _APPLE + ": the engine's own layout is 4-D, channels first",
        ),
        Rule(
            "dimension",
            f"a dimension over {MAX_DIMENSION} is refused by the engine",
            "split the dimension in two, or use smaller tiles",
            "apple/coremltools issue 1003; microsoft/onnxruntime issue 19543 (its Core ML provider refuses such inputs)",
        ),
        Rule(
            "dynamic-shape",
            "a shape known only at run time keeps the operation off the engine",
            "export one package or one function per fixed size",
            "apple/coremltools issue 1764: the same model runs on the engine with a fixed shape and on the CPU with a flexible one",
        ),
        Rule(
            "gather",
            "gathering and scattering by index run on the CPU",
            "slice with constants, or multiply by a constant one-hot matrix",
            _HOLLANCE,
        ),
        Rule(
            "recurrent",
            "recurrent layers run on the CPU",
            "use convolutions or attention instead",
            _HOLLANCE + "; apple/coremltools issue 1780",
        ),
        Rule("dilation", "dilated convolutions run on the GPU or CPU", "use a larger dense kernel, or space-to-depth before it", _HOLLANCE),
        Rule(
            "cast",
            "a cast between fp16 and fp32 inside the graph splits it between the engine and the CPU",
            "keep every operation fp16, or move the fp32 part to the edge of the graph",
            _FP16 + "; inputs and outputs of the model may stay fp32",
        ),
        Rule("fp32", "fp32 operations run on the CPU or GPU", "export this operation in fp16", _FP16),
        Rule(
            "resampling",
            "arbitrary resampling (bicubic as gathers, resample, affine, crop_resize) runs on the CPU",
            "resize by integer factors (nearest, bilinear, pixel shuffle), or bake the interpolation into a constant matrix",
            _HOLLANCE + ": only upsampling is reported to work",
        ),
        Rule(
            "control-flow",
            "branches, loops and lists run on the CPU",
            "unroll; export one function per branch",
            _HOLLANCE + ": custom control is not for the engine",
        ),
        Rule(
            "indices",
            "sorting, searching and counting run on the CPU",
            "leave them to the app, after the model",
            _HOLLANCE + ": no such layer is reported to work",
        ),
    )
}

_BY_OPERATION = {
    **dict.fromkeys(("gather", "gather_along_axis", "gather_nd", "scatter", "scatter_along_axis", "scatter_nd"), "gather"),
    **dict.fromkeys(("gru", "lstm", "rnn"), "recurrent"),
    **dict.fromkeys(("affine", "crop_resize", "resample"), "resampling"),
    **dict.fromkeys(
        ("cond", "while_loop", "make_list", "list_read", "list_write", "list_gather", "list_scatter", "list_length"), "control-flow"
    ),
    **dict.fromkeys(("argsort", "topk", "non_maximum_suppression", "non_zero", "one_hot", "range_1d", "cumsum"), "indices"),
}
# Casts here are how fp32 inputs enter and outputs leave; the rest are inside.
_FREE_OF_FP32 = frozenset({"cast", "const", "shape", "identity"})


def lint_package(path: Path) -> list[LintFinding]:
    """Findings for every function of the package at ``path``; raises :class:`f2i_runtime.errors.MilError` for a malformed package."""
    findings: list[LintFinding] = []
    with Package(path) as package:
        for name in function_names(package):
            findings += lint_function(decode(package, name))
    return findings


def lint_function(function: Function) -> list[LintFinding]:
    """Findings of one decoded function, in program order; constants are exempt, the compiler lays them out itself."""
    literals: dict[str, Constant] = {}
    edge = {value.name for value in function.inputs}
    findings: list[LintFinding] = []
    for operation in function.body.walk():
        if operation.type == "const" or operation.type.startswith("constexpr_"):
            value = operation.inputs.get("val", ())
            if value and isinstance(value[0], Constant):
                literals[operation.outputs[0].name] = value[0]
            continue
        for rule, detail in _broken(operation, function, edge, literals):
            findings.append(LintFinding(RULES[rule], function.name, operation.type, operation.where, detail))
    return findings


def _broken(operation: Operation, function: Function, edge: set[str], literals: dict[str, Constant]) -> Iterator[tuple[str, str]]:
    rule = _BY_OPERATION.get(operation.type)
    if rule is not None:
        yield rule, f"{operation.type} -> {', '.join(str(output.type) for output in operation.outputs)}"
    for output in operation.outputs:
        yield from _broken_shape(output)
    outputs = set(function.body.outputs)
    if operation.type == "cast":
        yield from _inner_cast(operation, function.types, edge, outputs)
    elif operation.type not in _FREE_OF_FP32 and rule is None:
        for output in operation.outputs:
            if output.type.dtype.name == "fp32":
                yield "fp32", f"{operation.type} -> {output.type}"
                break
    if operation.type == "conv" and "dilations" in operation.inputs:
        steps = _small_ints(operation.inputs["dilations"][0], literals)
        if any(step != 1 for step in steps):
            yield "dilation", f"dilations {steps}"


def _broken_shape(output: Output) -> Iterator[tuple[str, str]]:
    shape = output.type.shape
    if shape is None or any(size is None for size in shape):
        yield "dynamic-shape", f"{output.name} is {output.type}"
    if shape is not None and len(shape) > MAX_RANK:
        yield "rank", f"{output.name} is {output.type}"
    if shape is not None and any(size is not None and size > MAX_DIMENSION for size in shape):
        yield "dimension", f"{output.name} is {output.type}"


def _inner_cast(operation: Operation, types: dict[str, ValueType], edge: set[str], outputs: set[str]) -> Iterator[tuple[str, str]]:
    source = operation.inputs["x"][0]
    result = operation.outputs[0]
    if not isinstance(source, str) or source in edge or result.name in outputs:
        return
    before, after = types[source].dtype.name, result.type.dtype.name
    if {before, after} == {"fp16", "fp32"}:
        yield "cast", f"{source} ({before}) -> {result.name} ({after})"


def _small_ints(operand: str | Constant, literals: dict[str, Constant]) -> list[int]:
    """An integer vector written in the program itself; empty when it is computed or lies in the weight file."""
    literal = literals.get(operand) if isinstance(operand, str) else operand
    if literal is None or literal.immediate is None:
        return []
    values: Any = literal.immediate.tensor.ints.values
    return [int(value) for value in values]
