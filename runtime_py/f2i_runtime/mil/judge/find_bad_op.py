"""Finds the first operation of a package that goes wrong, and the fewest to keep in float32 that make it right.

The package is compared operation by operation with the torch program it was converted from. Teacher-forced (the default), each matched
value is replaced by the reference's after it is measured, so an error belongs to the operation that made it; this is the only way to
judge static int8, where a change of one part in a million at the input moves torch's own output by a percent. Otherwise errors
accumulate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from f2i_runtime.errors import MilError
from f2i_runtime.mil.execute.evaluator import Evaluator
from f2i_runtime.mil.format.program import Function, Operation, Output
from f2i_runtime.mil.judge.op_errors import Comparison, Reference, base_name, compare_value, pair_values, relative_l2, sqnr_db

Inputs = Mapping[str, np.ndarray[Any, Any]]
SMALLEST_NORMAL = 2.0**-14
"""The smallest normal number of IEEE half precision."""
BANDS = {"fp32": 1e-4, "fp16": 1e-2}
"""The relative L2 error that one operation may add, by the type that the program declares for its result."""


@dataclass(frozen=True)
class BadOpReport:
    """What was compared: every pair in program order, the first out of band (None: all are within), the worst, and the whole component.

    ``worst`` leaves out fp16 values that are all subnormal, which no relative band can hold."""

    first: Comparison | None
    worst: Comparison | None
    comparisons: tuple[Comparison, ...]
    matched: int
    unmatched: int
    sqnr_db: float


@dataclass(frozen=True)
class KeepReport:
    """Operations to keep in float32. ``operations`` are names as in the float32 program (no cast suffix), for the converter's selector.

    ``sqnr_db`` is the component's with them kept, ``before_db`` without. ``reached`` is False when even all of them do not reach the gate.
    """

    operations: tuple[str, ...]
    before_db: float
    sqnr_db: float
    reached: bool


def load_program(program: Any) -> Any:
    """The program a package was converted from: an ExportedProgram as the converter got it, or a ``.pt2``'s path, loaded and decomposed."""
    return torch.export.load(str(program)).run_decompositions({}) if isinstance(program, (str, Path)) else program


def find_bad_op(
    package: Path, program: Any, inputs: Inputs, *, forced: bool = True, band: float | None = None, evaluator: Evaluator | None = None
) -> BadOpReport:
    """Compares ``package`` with ``program`` (the exported program it was converted from, or its path) on ``inputs``.

    ``band`` is the relative L2 an operation may add (default: :data:`BANDS` by declared type). Raises :class:`MilError` when the two have
    nothing in common.
    """
    run = evaluator or Evaluator(package)
    exported = load_program(program)
    pairs = pair_values(run.function, exported)
    half = _noise_type(run.function) == "fp16" and run.mode != "fp32"
    uses = Counter(node.name for node in pairs.values())
    chains = {node.name: _steep(node, uses) for node in pairs.values()} if forced and half else {}
    uses.update(chains[node.name][0].args[0].name for node in pairs.values() if chains.get(node.name))
    references = Reference(exported, inputs, uses)
    comparisons: list[Comparison] = []
    unmatched = 0
    first: Comparison | None = None
    worst: Comparison | None = None

    def observe(operation: Operation, output: Output, value: Any) -> Any:
        nonlocal unmatched, first, worst
        integers = operation.type == "quantize"
        node = pairs.get(output.name)
        chain = chains.get(node.name) if node is not None else None
        source = references.take(chain[0].args[0].name) if chain else None
        reference = None if node is None else references.take(node.name)
        if not isinstance(value, torch.Tensor) or not (integers or output.type.dtype.is_float):
            return None
        if node is None or reference is None:
            unmatched += 1
            return None
        expected = _of_half(chain, source) if chain and source is not None else reference
        origin = node.args[2] if integers else 0  # steps are counted from the zero point, as the values they stand for
        comparison = compare_value(operation, output.name, node, value.float() - origin, expected - origin)
        comparisons.append(comparison)
        limit = band if band is not None else BANDS["fp16" if output.type.dtype.name == "fp16" else _noise_type(run.function)]
        # Where all values are subnormal, no rounding to fp16 can hold a relative band; what such values are added to says if it matters.
        subnormal = output.type.dtype.name == "fp16" and comparison.reference_magnitude < SMALLEST_NORMAL and not comparison.overflowed
        if not subnormal:
            worst = comparison if worst is None or comparison.rel_l2 > worst.rel_l2 else worst
            first = comparison if first is None and not comparison.rel_l2 <= limit else first
        if not forced:
            return None
        if integers:
            return reference.to(value.dtype)
        return reference.half().float() if output.type.dtype.name == "fp16" and run.mode != "fp32" else reference.clone()

    outputs = run(dict(zip(run.inputs, inputs.values(), strict=True)) if set(inputs) != set(run.inputs) else inputs, observer=observe)
    if not comparisons:
        raise MilError(f"{package}: none of its values come from the given program; pass the program it was converted from")
    if forced:
        outputs = run(dict(zip(run.inputs, inputs.values(), strict=True)) if set(inputs) != set(run.inputs) else inputs)
    return BadOpReport(first, worst, tuple(comparisons), len(comparisons), unmatched, _component_db(outputs, references.outputs()))


def _steep(node: Any, paired: Mapping[str, int]) -> list[Any]:
    """Returns the operations up to ``node`` that multiply an error in their input far beyond the allowed band; nothing where ``node`` is not one of
    them.

    A quantization turns one part in a thousand into a whole step, and a softmax multiplies relative errors by its largest logit. A dequantization
    stands for the quantization before it where that one is not compared itself.
    """
    name = str(node.target)
    if "dequantize_per_tensor" in name:
        before = node.args[0]
        return [before, node] if "quantize_per_tensor" in str(before.target) and before.name not in paired else []
    return [node] if "quantize_per_tensor" in name or "softmax" in name else []


def _of_half(chain: Sequence[Any], source: torch.Tensor) -> Any:
    """Returns what steep operations give for their input and their scale after both were rounded as an fp16 program stores them.

    This rounding comes from the declared type and is no operation's fault. The component's own gate says what it costs in the end.
    """
    value: Any = source.half().float()
    for node in chain:
        first, *others = node.args[1:]
        if "quantize_per_tensor" in str(node.target):
            first = float(torch.tensor(first).half())
        value = node.target(value, first, *others, **node.kwargs)
    return value.float()


def _noise_type(function: Function) -> str:
    """Returns fp16 when any value of the program is fp16, because an fp32 value that was computed from fp16 values is no more exact than they are."""
    return "fp16" if any(declared.dtype.name == "fp16" for declared in function.types.values()) else "fp32"


def _component_db(outputs: Mapping[str, Any], expected: Sequence[Any]) -> float:
    actual = torch.cat([torch.from_numpy(value).flatten() for value in outputs.values()])
    wanted = torch.cat([value.float().flatten() for value in expected])
    if actual.shape != wanted.shape:
        raise MilError(f"the package returns {actual.numel()} numbers, the reference {wanted.numel()}")
    return sqnr_db(relative_l2(actual, wanted))


def keep_fp32(package: Path, program: Any, inputs: Inputs, *, gate_db: float) -> KeepReport:
    """The fewest operations that, kept in float32, bring the component to ``gate_db`` against ``program``; none can be left out.

    Operations are ranked by the error each makes by itself (those that overflow first), the shortest prefix that passes is found by
    halving, and each member is then dropped if the rest still passes. Kept operations are simulated: their results are rounded only
    where an fp16 operation reads them; weights stay as stored in the package.
    """
    run = Evaluator(package)
    exported = load_program(program)
    report = find_bad_op(package, exported, inputs, evaluator=run)
    expected = Reference(exported, inputs).outputs()
    given = inputs if set(inputs) == set(run.inputs) else dict(zip(run.inputs, inputs.values(), strict=True))
    groups = _groups(run.function, report.comparisons)

    def quality(chosen: Sequence[tuple[str, ...]]) -> float:
        return _component_db(run(given, keep_fp32={name for group in chosen for name in group}), expected)

    before = quality([])
    if before >= gate_db:
        return KeepReport((), before, before, True)
    best = quality(groups)
    if best < gate_db:
        return KeepReport(_names(groups), before, best, False)
    low, high = 1, len(groups)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if quality(groups[:middle]) >= gate_db else (middle + 1, high)
    chosen = groups[:low]
    for group in list(reversed(chosen)):
        rest = [other for other in chosen if other is not group]
        if quality(rest) >= gate_db:
            chosen = rest
    return KeepReport(_names(chosen), before, quality(chosen), True)


def _groups(function: Function, comparisons: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """Operations between two measured values form one group, ranked by the error measured at its end, worst first."""
    measured = {comparison.value: comparison for comparison in comparisons}
    groups: list[tuple[float, tuple[str, ...]]] = []
    pending: list[str] = []
    for operation in function.body.operations:
        if operation.type == "const" or operation.type.startswith("constexpr_"):
            continue
        if any(output.type.dtype.name == "fp16" for output in operation.outputs):
            pending.append(operation.name)
        comparison = next((measured[output.name] for output in operation.outputs if output.name in measured), None)
        if comparison is not None and pending:
            groups.append((comparison.rel_l2, tuple(pending)))
            pending = []
    if pending:
        groups.append((0.0, tuple(pending)))
    return [names for _, names in sorted(groups, key=lambda group: -group[0])]


def _names(groups: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(base_name(name) for group in groups for name in group))
