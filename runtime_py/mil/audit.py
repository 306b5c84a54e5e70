"""What numbers alone do not show: weights and attributes of a package, compared with the program it was converted from.

A low mantissa bit, one byte of a palette, exact GELU turned into its tanh form or a changed epsilon can stay inside any reasonable
error band.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from runtime_py.errors import MilError
from runtime_py.mil.compare import base_name, module_of, pair_values, relative_l2
from runtime_py.mil.constants import Constants
from runtime_py.mil.locate import load_program
from runtime_py.mil.package import Package
from runtime_py.mil.program import Constant, Function, Operation, decode

EPSILON_TOLERANCE = 0.1
"""Relative difference of an attribute that is no change: fp16 stores 1e-6 as 9.5e-7."""


@dataclass(frozen=True)
class WeightComparison:
    """A parameter of the program beside the constant of the package that holds it, decompressed."""

    parameter: str
    value: str
    storage: str
    rel_l2: float
    exact: bool
    """Whether every element is the program's, rounded to the type the package stores."""


@dataclass(frozen=True)
class WeightReport:
    """All parameters found in the package, and those that were not (folded into others, or renamed)."""

    compared: tuple[WeightComparison, ...]
    missing: tuple[str, ...]

    @property
    def worst(self) -> float:
        """Largest relative L2 difference, 0 when nothing was compared."""
        return max((item.rel_l2 for item in self.compared), default=0.0)


@dataclass(frozen=True)
class AttributeDifference:
    """An attribute of an operation that is not what the torch program says."""

    where: str
    module: str
    attribute: str
    package: Any
    reference: Any


def package_weights(package: Path, program: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Parameters of ``program`` (qualified name → float32 array) as the package holds them, decompressed; absent ones left out."""
    return {target: array for target, (array, _, _) in _held(package, program).items()}


def audit_weights(package: Path, program: Any) -> WeightReport:
    """Compares every parameter of ``program`` (an ExportedProgram or the path of one) with the package's decompressed constant."""
    exported = load_program(program)
    held = _held(package, exported)
    tensors = {**exported.state_dict, **exported.constants, **_folded(exported)}
    compared = []
    for target, (array, value, storage) in held.items():
        wanted = tensors[target].detach().float()
        difference = relative_l2(torch.from_numpy(array), wanted)
        exact = bool(np.array_equal(array, wanted.numpy()) or np.array_equal(array, wanted.half().float().numpy()))
        compared.append(WeightComparison(target, value, storage, difference, exact))
    missing = [item.target for item in _parameters(exported) if item.target not in held]
    return WeightReport(tuple(compared), tuple(missing))


def _parameters(program: Any) -> list[Any]:
    return [item for item in program.graph_signature.input_specs if item.kind.name in ("PARAMETER", "BUFFER", "CONSTANT_TENSOR")]


def _held(package: Path, program: Any) -> dict[str, tuple[np.ndarray[Any, Any], str, str]]:
    exported = load_program(program)
    tensors = {**exported.state_dict, **exported.constants}
    held: dict[str, tuple[np.ndarray[Any, Any], str, str]] = {}
    with Package(package) as opened:
        function = decode(opened)
        constants = Constants(opened, function)
        by_base: dict[str, str] = {}
        for name in constants.names():  # a later one is nearer to the operation: the decompressed, not the compressed
            by_base[base_name(name)] = name
        for item in _parameters(exported):
            value = by_base.get(item.arg.name)
            if value is None or item.target not in tensors or function.types[value].shape != tuple(tensors[item.target].shape):
                continue
            array = constants.array(value)
            if array.dtype.kind == "f":
                held[item.target] = np.array(array, np.float32), value, constants.operation(value).type
        for node, tensor in _folded(exported).items():
            value = by_base.get(node)
            if value is not None and function.types[value].shape == tuple(tensor.shape) and function.types[value].dtype.is_float:
                held[node] = np.array(constants.array(value), np.float32), value, constants.operation(value).type
    return held


def _folded(program: Any) -> dict[str, torch.Tensor]:
    """Nodes of ``program`` that depend on weights alone (a reshaped norm weight), which the converter computes: node name → value."""
    tensors = {**program.state_dict, **program.constants}
    targets = {item.arg.name: item.target for item in program.graph_signature.input_specs}
    known: dict[Any, torch.Tensor] = {}
    found: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for node in program.graph.nodes:
            if node.op == "placeholder" and targets.get(node.name) in tensors:
                known[node] = tensors[targets[node.name]].detach()
            elif node.op == "call_function" and node.all_input_nodes and all(source in known for source in node.all_input_nodes):
                value = node.target(*torch.fx.map_arg(node.args, known.get), **torch.fx.map_arg(node.kwargs, known.get))
                if isinstance(value, torch.Tensor):
                    known[node] = value
                    if value.is_floating_point():
                        found[node.name] = value.float()
    return found


def audit_attributes(package: Path, program: Any) -> list[AttributeDifference]:
    """Attributes of the package's operations that differ from those of the torch operations they come from.

    Looks at GELU's form, the epsilon of layer, batch and group norms, convolution geometry, softmax axes, permutations, clipping limits and
    scalar operands. Raises :class:`MilError` when the two have nothing in common.
    """
    exported = load_program(program)
    with Package(package) as opened:
        function = decode(opened)
        constants = Constants(opened, function)
        pairs = pair_values(function, exported)
        if not pairs:
            raise MilError(f"{package}: none of its values come from the given program; pass the program it was converted from")
        differences: list[AttributeDifference] = []
        for operation in function.body.operations:
            node = next((pairs[output.name] for output in operation.outputs if output.name in pairs), None)
            check = _CHECKS.get(operation.type)
            if node is None or check is None:
                continue
            given = {key: _value(operands, constants) for key, operands in operation.inputs.items()}
            for attribute, found, wanted in check(given, node):
                if not _same(found, wanted):
                    differences.append(AttributeDifference(operation.where, module_of(node), attribute, found, wanted))
        differences += _norm_epsilons(function, constants, exported)
    return differences


def _value(operands: Sequence[str | Constant], constants: Constants) -> Any:
    """A constant attribute as plain Python; None for a computed value or a tensor of weights."""
    operand = operands[0]
    if isinstance(operand, Constant):
        value = constants.literal(operand)
    elif operand in constants:
        source = constants.operation(operand).inputs.get("val", ())
        if not source or not isinstance(source[0], Constant) or source[0].file:
            return None
        value = constants.tensor(operand)
    else:
        return None
    return value.tolist() if hasattr(value, "tolist") else value


def _same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, (list, tuple)):
        return isinstance(found, (list, tuple)) and len(found) == len(wanted) and all(map(_same, found, wanted))
    if isinstance(wanted, (int, float)) and isinstance(found, (int, float)) and not isinstance(wanted, bool):
        return math.isclose(found, wanted, rel_tol=EPSILON_TOLERANCE if abs(wanted) < 1e-2 else 1e-3, abs_tol=1e-12)
    return bool(found == wanted)


Differing = Iterator[tuple[str, Any, Any]]


def _argument(node: Any, position: int, name: str, default: Any) -> Any:
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[position] if len(node.args) > position else default


def _is(node: Any, *names: str) -> bool:
    return str(node.target).split(".")[1 if str(node.target).startswith("aten.") else 0] in names


def _gelu(given: dict[str, Any], node: Any) -> Differing:
    if _is(node, "gelu"):
        form = {"none": "EXACT", "tanh": "TANH_APPROXIMATION"}[_argument(node, 1, "approximate", "none")]
        yield "mode", given.get("mode", "EXACT"), form


def _layer_norm(given: dict[str, Any], node: Any) -> Differing:
    if _is(node, "layer_norm", "native_layer_norm"):
        yield "epsilon", given.get("epsilon", 1e-5), _argument(node, 4, "eps", 1e-5)


def _softmax(given: dict[str, Any], node: Any) -> Differing:
    if _is(node, "softmax", "_softmax"):
        rank = len(node.meta["val"].shape)
        yield "axis", given.get("axis", -1) % rank, _argument(node, 1, "dim", -1) % rank


def _transpose(given: dict[str, Any], node: Any) -> Differing:
    if _is(node, "permute"):
        rank = len(node.meta["val"].shape)
        yield "perm", [axis % rank for axis in given["perm"]], [axis % rank for axis in node.args[1]]


def _clip(given: dict[str, Any], node: Any) -> Differing:
    if _is(node, "clamp", "hardtanh"):
        for position, name, attribute in ((1, "min", "alpha"), (2, "max", "beta")):
            limit = _argument(node, position, name, None)
            if isinstance(limit, (int, float)):
                yield attribute, given.get(attribute), limit


def _conv(given: dict[str, Any], node: Any) -> Differing:
    spatial = len(node.meta["val"].shape) - 2

    def spread(value: Any) -> list[int]:
        values = list(value) if isinstance(value, (list, tuple)) else [value]
        return values * spatial if len(values) == 1 else values

    if _is(node, "conv1d", "conv2d", "conv3d"):
        stride, pad = _argument(node, 3, "stride", 1), _argument(node, 4, "padding", 0)
        dilation, groups = _argument(node, 5, "dilation", 1), _argument(node, 6, "groups", 1)
    elif _is(node, "convolution") and not node.args[6]:
        stride, pad, dilation, groups = node.args[3], node.args[4], node.args[5], node.args[8]
    else:
        return
    yield "strides", given.get("strides", [1] * spatial), spread(stride)
    yield "dilations", given.get("dilations", [1] * spatial), spread(dilation)
    yield "groups", given.get("groups", 1), groups
    if not isinstance(pad, str) and given.get("pad_type", "valid") in ("custom", "valid"):
        found = given.get("pad", []) if given.get("pad_type") == "custom" else [0] * 2 * spatial
        yield "pad", found, [size for size in spread(pad) for _ in range(2)]


def _scalar(given: dict[str, Any], node: Any) -> Differing:
    """A number written in the torch program and a scalar constant in the package."""
    if len(node.args) < 2 or not isinstance(node.args[1], (int, float)) or isinstance(node.args[1], bool):
        return
    found = given.get("y") if given.get("y") is not None else given.get("x")
    kinds = {"real_div": ("div",), "mul": ("mul",), "add": ("add",), "sub": ("sub",), "pow": ("pow",)}
    for names in kinds.values():
        if _is(node, *names) and isinstance(found, (int, float)):
            yield "y", found, node.args[1]
            return


_CHECKS: dict[str, Callable[[dict[str, Any], Any], Differing]] = {
    "add": _scalar,
    "clip": _clip,
    "conv": _conv,
    "gelu": _gelu,
    "layer_norm": _layer_norm,
    "pow": _scalar,
    "softmax": _softmax,
    "sub": _scalar,
    "transpose": _transpose,
}


def _norm_epsilons(function: Function, constants: Constants, program: Any) -> Iterator[AttributeDifference]:
    """The epsilons of group norms, which the converter writes as a sum followed by a square root, in program order."""
    wanted = [node for node in program.graph.nodes if node.op == "call_function" and _is(node, "group_norm")]
    roots = {operand for operation in function.body.operations if operation.type in ("sqrt", "rsqrt") for operand in _reads(operation, "x")}
    found = [operation for operation in function.body.operations if operation.type == "add" and operation.outputs[0].name in roots]
    if len(wanted) != len(found):
        return
    for operation, node in zip(found, wanted, strict=True):
        epsilon = next((value for key in ("y", "x") if isinstance(value := _value(operation.inputs[key], constants), float)), None)
        reference = _argument(node, 4, "eps", 1e-5)
        if not _same(epsilon, reference):
            yield AttributeDifference(operation.where, module_of(node), "epsilon", epsilon, reference)


def _reads(operation: Operation, key: str) -> list[str]:
    return [operand for operand in operation.inputs.get(key, ()) if isinstance(operand, str)]
