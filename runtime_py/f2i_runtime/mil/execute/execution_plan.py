"""Turns a decoded block into steps that run without looking anything up: functions bound, constants resolved, last uses known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from f2i_runtime.errors import MilError
from f2i_runtime.mil.execute import accumulate
from f2i_runtime.mil.execute.constants import Constants
from f2i_runtime.mil.format.program import TUPLE_PARAMETERS, Block, Constant, Operation
from f2i_runtime.mil.ops.optable import CONTROL, EXACT, check_parameters, implementation

_CONTROL_INPUTS = {
    "cond": frozenset({"pred"}),
    "while_loop": frozenset({"loop_vars"}),
    "read_state": frozenset({"input"}),
    "write_state": frozenset({"input", "data"}),
}
_BLOCKS = {"cond": 2, "while_loop": 2}


@dataclass
class Step:
    """One operation ready to run: ``fixed`` arguments are constants, ``moving`` ones are read from the values computed so far."""

    operation: Operation
    function: Callable[..., Any] | None
    fixed: dict[str, Any]
    moving: tuple[tuple[str, Any], ...]
    blocks: tuple[Plan, ...]
    rounds: bool
    in_place: bool
    free: tuple[str, ...] = ()


@dataclass
class Plan:
    """A block's steps, the names of its inputs and outputs, and constants among the outputs."""

    inputs: tuple[str, ...]
    steps: list[Step]
    outputs: tuple[str, ...]
    constants: dict[str, Any]


def plan_block(block: Block, constants: Constants, opset: int, mode: str) -> Plan:
    """Plans ``block``; raises :class:`MilError` for an unknown operation or attribute before anything runs."""
    steps = [
        _step(operation, constants, opset, mode)
        for operation in block.operations
        if operation.type != "const" and not operation.type.startswith("constexpr_")
    ]
    outputs = {name: constants.tensor(name) for name in block.outputs if name in constants}
    own = {value.name for value in block.inputs} | {output.name for step in steps for output in step.operation.outputs}
    _last_uses(steps, own, set(block.outputs))
    return Plan(tuple(value.name for value in block.inputs), steps, block.outputs, outputs)


def _step(operation: Operation, constants: Constants, opset: int, mode: str) -> Step:
    function = None
    if operation.type in CONTROL:
        _check_control(operation)
    else:
        function = implementation(operation.type, opset, operation.where)
        check_parameters(function, operation.type, frozenset(operation.inputs), opset, operation.where)
        if mode == "fp16-accumulate" and operation.outputs and operation.outputs[0].type.dtype.name == "fp16":
            function = accumulate.TABLE.get(operation.type, function)
    fixed: dict[str, Any] = {}
    moving: list[tuple[str, Any]] = []
    for key, operands in operation.inputs.items():
        if key == "input" and operation.type in ("read_state", "write_state"):
            continue
        resolved = [_resolve(operand, constants) for operand in operands]
        if key in TUPLE_PARAMETERS:
            if any(is_name for is_name, _ in resolved):
                moving.append((key, tuple(resolved)))
            else:
                fixed[key] = [value for _, value in resolved]
        elif len(resolved) != 1:
            raise MilError(f"{operation.where}: input {key} has {len(resolved)} values, expected 1")
        elif resolved[0][0]:
            moving.append((key, resolved[0][1]))
        else:
            fixed[key] = resolved[0][1]
    blocks = tuple(plan_block(block, constants, opset, mode) for block in operation.blocks)
    rounds = mode != "fp32" and operation.type not in EXACT
    return Step(operation, function, fixed, tuple(moving), blocks, rounds, operation.type not in ("cast", "einsum"))


def _check_control(operation: Operation) -> None:
    if frozenset(operation.inputs) != _CONTROL_INPUTS[operation.type]:
        given, wanted = ", ".join(sorted(operation.inputs)), ", ".join(sorted(_CONTROL_INPUTS[operation.type]))
        raise MilError(f"{operation.where}: got the inputs {given or 'none'}, expected {wanted}")
    if len(operation.blocks) != _BLOCKS.get(operation.type, 0):
        raise MilError(f"{operation.where}: got {len(operation.blocks)} blocks, expected {_BLOCKS.get(operation.type, 0)}")


def _resolve(operand: str | Constant, constants: Constants) -> tuple[bool, Any]:
    """(True, name) for a computed value, (False, value) for a constant."""
    if isinstance(operand, Constant):
        return False, constants.literal(operand)
    if operand in constants:
        return False, constants.tensor(operand)
    return True, operand


def _uses(operation: Operation) -> set[str]:
    names = {operand for operands in operation.inputs.values() for operand in operands if isinstance(operand, str)}
    for block in operation.blocks:
        names.update(block.outputs)
        for inner in block.operations:
            names |= _uses(inner)
    return names


def _last_uses(steps: list[Step], own: set[str], kept: set[str]) -> None:
    """Fills each step's ``free``: values of this block that nothing later reads."""
    needed = set(kept)
    for step in reversed(steps):
        seen = (_uses(step.operation) | {output.name for output in step.operation.outputs}) & own
        step.free = tuple(sorted(seen - needed))
        needed |= seen
