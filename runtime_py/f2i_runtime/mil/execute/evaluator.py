"""The evaluator: runs a function of a saved package with torch's CPU kernels.

Numerics. Every float is computed in float32. In mode ``declared`` (the default) each operation's result is then rounded to the type the
program declares for it, so an fp16 program loses what fp16 storage loses, overflow included, at a fraction of the cost of torch's own fp16
kernels. ``fp32`` does not round: the graph's ideal. ``fp16-accumulate`` rounds fp16 sums of products after every 32 terms as well: a
pessimistic bound.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from f2i_runtime.errors import MilError
from f2i_runtime.memory import retain_heap
from f2i_runtime.mil.execute.constants import Constants, to_tensor
from f2i_runtime.mil.execute.execution_plan import Plan, Step, plan_block
from f2i_runtime.mil.format.package import Package
from f2i_runtime.mil.format.program import Function, Operation, Output, ValueType, decode, static_shape

MODES = ("declared", "fp32", "fp16-accumulate")
MAX_ITERATIONS = 100_000
ROUNDED_AT_ONCE = 1 << 17
Observer = Callable[[Operation, Output, Any], Any]
State = dict[str, Any]


class Evaluator:
    """A function of a package, ready to run. Holds its weights as float32; intermediates are freed after their last use."""

    def __init__(self, path: Path, *, function: str | None = None, mode: str = "declared") -> None:
        """Reads the package at ``path`` and decompresses the weights of ``function`` (default: the package's own default).

        Raises :class:`MilError` for a malformed package, an unknown operation, attribute, opset, function or ``mode`` (see ``MODES``).
        """
        if mode not in MODES:
            raise MilError(f"got the mode {mode!r}, expected one of {', '.join(MODES)}")
        self.mode = mode
        self.path = path
        with Package(path) as package:
            self.function: Function = decode(package, function)
            self._defaults = _optional_inputs(package, self.function)
            self._plan = plan_block(self.function.body, Constants(package, self.function), self.function.opset, mode)
        self._declared = {value.name: value.type for value in self.function.inputs}

    @property
    def inputs(self) -> dict[str, ValueType]:
        """Inputs to pass to a call (states excluded): name to declared type."""
        return {name: declared for name, declared in self._declared.items() if declared.kind != "state"}

    def new_state(self) -> State:
        """Zeroed states, to be passed to each call of a sequence; calls update them."""
        return {
            name: to_tensor(np.zeros(static_shape(declared, name), declared.dtype.numpy), declared.dtype)
            for name, declared in self._declared.items()
            if declared.kind == "state"
        }

    def __call__(
        self,
        inputs: Mapping[str, Any],
        *,
        state: State | None = None,
        observer: Observer | None = None,
        keep_fp32: Collection[str] = (),
    ) -> dict[str, Any]:
        """Runs the function on ``inputs`` (arrays in the declared shapes) and returns its outputs as numpy, fp16 as float32.

        ``state`` comes from :meth:`new_state`; without it the call starts from zeros. ``observer`` sees each operation's results and may
        replace one by returning another tensor. ``keep_fp32`` names operations to run as if they had been left in float32: their results
        are not rounded until an operation outside the set reads them. Raises :class:`MilError` for missing, unknown or misshapen inputs,
        and when an operation fails.
        """
        with torch.inference_mode(), retain_heap():
            values = self._bind(inputs)
            run = _Run(self.new_state() if state is None else state, observer, frozenset(keep_fp32))
            results = run.block(self._plan, values)
        return {
            name: value.numpy() if isinstance(value, torch.Tensor) else value
            for name, value in zip(self._plan.outputs, results, strict=True)
        }

    def _bind(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        wanted = self.inputs
        unknown = sorted(set(inputs) - set(wanted))
        missing = sorted(set(wanted) - set(inputs) - set(self._defaults))
        if unknown or missing:
            raise MilError(f"{self.function.name}: unknown inputs {unknown}, missing inputs {missing}; expected {sorted(wanted)}")
        values = {}
        for name, declared in wanted.items():
            array = np.asarray(inputs[name]) if name in inputs else self._defaults[name]
            where = f"{self.function.name} input {name!r}"
            if array.dtype.kind not in "fiub":
                raise MilError(f"{where}: got an array of {array.dtype}, expected numbers")
            _check_shape(declared, array.shape, where)
            tensor = to_tensor(array, declared.dtype)
            if self.mode != "fp32" and declared.dtype.name == "fp16":
                tensor = tensor.half().float()
            values[name] = tensor
        return values


class _Run:
    """One call of a function: its state, its observer, and the operations that keep float32."""

    def __init__(self, state: State, observer: Observer | None, kept: frozenset[str]) -> None:
        self.state, self.observer, self.kept = state, observer, kept
        self.unrounded: set[str] = set()

    def block(self, plan: Plan, values: dict[str, Any]) -> list[Any]:
        for step in plan.steps:
            try:
                results = self.step(step, values)
            except MilError as error:
                raise error if str(error).startswith(step.operation.where) else MilError(f"{step.operation.where}: {error}") from error
            except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError, OverflowError, MemoryError) as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise MilError(f"{step.operation.where}: failed: {reason}") from error
            for output, result in zip(step.operation.outputs, results, strict=True):
                values[output.name] = self.settle(step, output, result)
            for name in step.free:
                values.pop(name, None)
        return [plan.constants[name] if name in plan.constants else values[name] for name in plan.outputs]

    def step(self, step: Step, values: dict[str, Any]) -> Any:
        arguments = dict(step.fixed)
        for key, source in step.moving:
            if isinstance(source, str):
                arguments[key] = values[source]
            else:
                arguments[key] = [values[value] if is_name else value for is_name, value in source]
        if self.unrounded and step.operation.name not in self.kept:
            self.round_arguments(step, arguments)
        if step.function is not None:
            result = step.function(**arguments)
            return result if isinstance(result, tuple) else (result,)
        operation = step.operation
        if operation.type == "cond":
            return self.block(step.blocks[0 if bool(arguments["pred"]) else 1], values)
        if operation.type == "while_loop":
            return self.loop(step, arguments["loop_vars"], values)
        name = operation.inputs["input"][0]
        if not isinstance(name, str) or name not in self.state:
            raise MilError(f"{operation.where}: {name!r} is no state of the function")
        if operation.type == "write_state":
            self.state[name] = arguments["data"]
            return ()
        return (self.state[name],)

    def round_arguments(self, step: Step, arguments: dict[str, Any]) -> None:
        """Returns the value after the cast that the converter inserts where an fp16 operation reads a float32 one."""
        for key, source in step.moving:
            if isinstance(source, str) and source in self.unrounded:
                arguments[key] = arguments[key].half().float()
            elif not isinstance(source, str):
                arguments[key] = [
                    item.half().float() if is_name and name in self.unrounded else item
                    for item, (is_name, name) in zip(arguments[key], source, strict=True)
                ]

    def loop(self, step: Step, carried: list[Any], values: dict[str, Any]) -> list[Any]:
        condition, body = step.blocks
        for _ in range(MAX_ITERATIONS):
            values.update(zip(condition.inputs, carried, strict=True))
            if not bool(self.block(condition, values)[0]):
                return carried
            values.update(zip(body.inputs, carried, strict=True))
            carried = self.block(body, values)
        raise MilError(f"{step.operation.where}: the loop did not end within {MAX_ITERATIONS} iterations")

    def settle(self, step: Step, output: Output, value: Any) -> Any:
        """Returns the result in its declared type, rounded where the mode asks for it. Checks the shape."""
        declared = output.type
        if not isinstance(value, torch.Tensor):
            return value
        dtype = declared.dtype
        if dtype.is_float:
            if value.dtype != torch.float32:
                value = value.float()
            if self.kept and dtype.bits == 16 and step.operation.name in self.kept:
                self.unrounded.add(output.name)
            elif step.rounds and dtype.bits == 16:
                value = round_in_place(value) if step.in_place else value.half().float()
        elif declared.kind == "tensor" and str(value.dtype)[6:] != dtype.torch:
            value = value.to(getattr(torch, dtype.torch))
        if declared.kind == "tensor":
            _check_shape(declared, value.shape, step.operation.where)
        if self.observer is not None:
            replaced = self.observer(step.operation, output, value)
            value = value if replaced is None else replaced
        return value


def round_in_place(value: torch.Tensor) -> torch.Tensor:
    """Rounds float32 values to those of fp16, in place. A large tensor is rounded in pieces that stay in the cache, which is twice as fast."""
    if value.numel() <= ROUNDED_AT_ONCE or not value.is_contiguous():
        return value.copy_(value.half())
    for piece in value.view(-1).split(ROUNDED_AT_ONCE):
        piece.copy_(piece.half())
    return value


def _check_shape(declared: ValueType, shape: Any, where: str) -> None:
    if declared.shape is None:
        return
    if len(declared.shape) != len(shape) or any(want is not None and want != got for want, got in zip(declared.shape, shape, strict=True)):
        raise MilError(f"{where}: got the shape {list(shape)}, the program declares {declared}")


def _optional_inputs(package: Package, function: Function) -> dict[str, np.ndarray[Any, Any]]:
    """Returns the default values of the inputs that the model's description marks as optional."""
    description = package.spec.description
    features = list(description.input)
    for item in description.functions:
        if item.name == function.name:
            features = list(item.input)
    declared = {value.name: value.type for value in function.inputs}
    defaults: dict[str, np.ndarray[Any, Any]] = {}
    for feature in features:
        if feature.type.isOptional and feature.name in declared and feature.type.WhichOneof("Type") == "multiArrayType":
            kind = feature.type.multiArrayType.WhichOneof("defaultOptionalValue")
            value = getattr(feature.type.multiArrayType, kind) if kind else 0
            sides = declared[feature.name].shape
            shape = [side for side in sides or () if side is not None]
            if sides is not None and len(shape) == len(sides):
                defaults[feature.name] = np.full(shape, value, declared[feature.name].dtype.numpy)
    return defaults
