"""Constants of a function as tensors: literals, weights from the file, and what the constexpr operations decompress from them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from f2i_runtime.errors import MilError
from f2i_runtime.mil.format.constexpr import TABLE
from f2i_runtime.mil.format.dtypes import DType
from f2i_runtime.mil.format.package import Package
from f2i_runtime.mil.format.program import Constant, Function, Operation
from f2i_runtime.mil.ops.optable import check_parameters, implementation

MAX_EXPANSION = 64
"""How many bytes of constants one byte of the package may become. One bit of a palette or a mask becomes one float32; the factor allows twice that."""
ALLOWANCE = 1 << 26
"""How many bytes of constants any package may have in addition."""


def to_tensor(value: Any, dtype: DType) -> Any:
    """A numpy array as the tensor the evaluator computes with (fp16 as float32, uint16 as int32); text and lists stay as they are."""
    if not isinstance(value, np.ndarray) or value.dtype == object:
        return value
    wanted = "float32" if dtype.is_float else dtype.torch
    if value.dtype == np.float16:
        return torch.from_numpy(value if value.flags.writeable else value.copy()).float()
    array = np.ascontiguousarray(value, dtype=wanted).reshape(value.shape)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def round_half(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 rounded to float16, overflow to infinity without a warning."""
    half: np.ndarray[Any, Any] = torch.from_numpy(np.ascontiguousarray(array)).half().numpy()
    return half


class Constants:
    """The constants of ``function``, decompressed on first use and kept: :meth:`array` as stored, :meth:`tensor` as computed with."""

    def __init__(self, package: Package, function: Function) -> None:
        self._package = package
        self._opset = function.opset
        self._makers: dict[str, Operation] = {}
        self._arrays: dict[str, Any] = {}
        self._tensors: dict[str, Any] = {}
        self._types = function.types
        self._spent = 0
        for operation in function.body.walk():
            if operation.type == "const" or operation.type.startswith("constexpr_"):
                for output in operation.outputs:
                    self._makers[output.name] = operation

    def __contains__(self, name: str) -> bool:
        return name in self._makers

    def names(self) -> list[str]:
        """Names of all constants, in program order."""
        return list(self._makers)

    def operation(self, name: str) -> Operation:
        """The ``const`` or ``constexpr_*`` operation that defines ``name``."""
        return self._makers[name]

    def tensor(self, name: str) -> Any:
        """The constant ``name`` as a tensor (or text, or a list). The array it came from is dropped."""
        if name not in self._tensors:
            self._tensors[name] = to_tensor(self.array(name), self._types[name].dtype)
            self._arrays.pop(name, None)
        return self._tensors[name]

    def literal(self, constant: Constant) -> Any:
        """A literal written in an operation, as a tensor (or text, or a list)."""
        return to_tensor(constant.load(self._package), constant.type.dtype)

    def array(self, name: str) -> Any:
        """The constant ``name`` as numpy in its declared type (or text, or a list); fp16 stays float16."""
        if name not in self._arrays:
            operation = self._makers[name]
            if operation.type == "const":
                value = operation.inputs.get("val", ())
                if len(value) != 1 or not isinstance(value[0], Constant):
                    raise MilError(f"{operation.where}: a const needs one literal 'val'")
                self._arrays[name] = self._spend(value[0].load(self._package), operation)
            else:
                self._decompress(operation)
        return self._arrays[name]

    def _spend(self, value: Any, operation: Operation) -> Any:
        """Counts the memory that a constant takes, so that a thousand constants with the same weights cannot fill the memory."""
        self._spent += value.nbytes if isinstance(value, np.ndarray) else 0
        limit = MAX_EXPANSION * self._package.bytes + ALLOWANCE
        if self._spent > limit:
            raise MilError(f"{operation.where}: the constants take more than {limit} bytes, {MAX_EXPANSION} times the package's own size")
        return value

    def _decompress(self, operation: Operation) -> None:
        function = implementation(operation.type, self._opset, operation.where, TABLE)
        check_parameters(function, operation.type, frozenset(operation.inputs), self._opset, operation.where)
        arguments = {}
        for key, operands in operation.inputs.items():
            if len(operands) != 1:
                raise MilError(f"{operation.where}: input {key} has {len(operands)} values, expected 1")
            operand = operands[0]
            if isinstance(operand, str) and operand not in self._makers:
                raise MilError(f"{operation.where}: input {key} reads {operand!r}, which is no constant")
            arguments[key] = self.array(operand) if isinstance(operand, str) else operand.load(self._package)
        try:
            result = function(**arguments)
        except MilError as error:
            raise MilError(f"{operation.where}: {error}") from error
        except (ValueError, IndexError, TypeError, MemoryError) as error:
            raise MilError(f"{operation.where}: decompression failed: {error}") from error
        for output, value in zip(operation.outputs, result if isinstance(result, tuple) else (result,), strict=False):
            if output.type.shape != value.shape:
                raise MilError(f"{operation.where}: decompressed to the shape {list(value.shape)}, declared {output.type}")
            half = output.type.dtype.name == "fp16" and value.dtype != np.float16
            self._arrays[output.name] = self._spend(round_half(value) if half else value, operation)
