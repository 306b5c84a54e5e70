"""What numbers alone do not show: attributes of a package's operations, compared with the program it was converted from.

Exact GELU turned into its tanh form, a changed epsilon or a quantization scale a little wrong can stay inside any reasonable error band.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from f2i_runtime.errors import MilError
from f2i_runtime.mil.execute.constants import Constants
from f2i_runtime.mil.format.package import Package
from f2i_runtime.mil.format.program import Constant, Function, Operation, decode
from f2i_runtime.mil.judge.find_bad_op import load_program
from f2i_runtime.mil.judge.op_errors import module_of, pair_values

EPSILON_TOLERANCE = 0.1
"""The largest relative difference of an attribute that counts as no change. fp16 stores 1e-6 as 9.5e-7."""

SCALE_TOLERANCE = 2.0**-11
"""The same limit for a scale: half a unit in the last place of fp16."""
SMALLEST_SUBNORMAL = 2.0**-24
"""The smallest positive number of fp16."""


@dataclass(frozen=True)
class AttributeDifference:
    """An attribute of an operation that is not what the torch program says."""

    where: str
    module: str
    attribute: str
    package: Any
    reference: Any


def audit_attributes(package: Path, program: Any) -> list[AttributeDifference]:
    """Attributes of the package's operations that differ from those of the torch operations they come from.

    Looks at GELU's form, the epsilon of layer and group norms, convolution geometry, softmax axes, permutations, clipping limits, scalar
    operands, and the scales and zero points of activations. Raises :class:`MilError` when the two have nothing in common.
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
                if not (_same_scale(found, wanted) if attribute == "scale" else _same(found, wanted)):
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


def _same_scale(found: Any, wanted: float) -> bool:
    """Returns whether ``found`` is ``wanted``, rounded to fp16 or not rounded."""
    return isinstance(found, float) and abs(found - wanted) <= max(SCALE_TOLERANCE * abs(wanted), SMALLEST_SUBNORMAL / 2)


Differing = Iterator[tuple[str, Any, Any]]


def _argument(node: Any, position: int, name: str, default: Any) -> Any:
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[position] if len(node.args) > position else default


def _is(node: Any, *names: str) -> bool:
    return str(node.target).split(".")[1 if str(node.target).startswith(("aten.", "quantized_decomposed.")) else 0] in names


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
    """Yields a scalar constant of the package with the number in the torch program. See also :func:`_product`."""
    if len(node.args) < 2 or not isinstance(node.args[1], (int, float)) or isinstance(node.args[1], bool):
        return
    found = given.get("y") if given.get("y") is not None else given.get("x")
    if _is(node, "add", "sub", "rsub", "mul", "div", "pow") and isinstance(found, (int, float)):
        yield "y", found, node.args[1]


def _product(given: dict[str, Any], node: Any) -> Differing:
    """Yields the same for a product, which a division by a number may have become."""
    for attribute, found, wanted in _scalar(given, node):
        yield attribute, found, 1 / wanted if _is(node, "div") and wanted else wanted


def _scale(given: dict[str, Any], node: Any) -> Differing:
    """Yields the scale and the zero point. A package stores no zero point that is 0."""
    if _is(node, "quantize_per_tensor", "dequantize_per_tensor"):
        yield "scale", given.get("scale"), node.args[1]
        yield "zero_point", given.get("zero_point") or 0, node.args[2]


_CHECKS: dict[str, Callable[[dict[str, Any], Any], Differing]] = {
    "add": _scalar,
    "clip": _clip,
    "conv": _conv,
    "dequantize": _scale,
    "gelu": _gelu,
    "layer_norm": _layer_norm,
    "mul": _product,
    "pow": _scalar,
    "quantize": _scale,
    "real_div": _scalar,
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
