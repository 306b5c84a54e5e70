"""Element-wise operations: arithmetic, comparison, activations, casts, selection.

Formulas and defaults as in coremltools' ``ops/defs/iOS15/{elementwise_unary,elementwise_binary,activation}.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from f2i_runtime.errors import MilError
from f2i_runtime.mil.execute.arguments import check_size, choice, number
from f2i_runtime.mil.format.dtypes import BY_NAME

Binary = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _binary(function: Binary) -> Binary:
    """``function(x, y)`` on operands brought to one type and checked for the size of their broadcast."""

    def apply(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if x.dtype != y.dtype:
            common = torch.promote_types(x.dtype, y.dtype)
            x, y = x.to(common), y.to(common)
        if x.shape != y.shape:
            check_size(torch.broadcast_shapes(x.shape, y.shape))
        return function(x, y)

    return apply


def _unary(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    def apply(x: torch.Tensor) -> torch.Tensor:
        return function(x)

    return apply


def _real_div(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.div(x, y) if x.dtype.is_floating_point else torch.div(x, y, rounding_mode="trunc")


def _floor_div(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.div(x, y, rounding_mode="floor")


def _channels(parameter: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A vector of per-channel values, shaped to broadcast along axis 1 of ``x``."""
    return parameter.reshape(1, -1, *[1] * (x.dim() - 2)) if parameter.dim() == 1 else parameter


def _inverse(x: torch.Tensor, epsilon: Any = 1e-4) -> torch.Tensor:
    return 1 / (x + epsilon)


def _log(x: torch.Tensor, epsilon: Any = 1e-45) -> torch.Tensor:
    return torch.log(x + epsilon)


def _rsqrt(x: torch.Tensor, epsilon: Any = 1e-12) -> torch.Tensor:
    return torch.rsqrt(x + epsilon)


def _clip(x: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    return torch.clamp(x, alpha, beta)


def _threshold(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return torch.maximum(x, alpha)


def _clamped_relu(x: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    return torch.minimum(torch.where(x >= 0, x, x * alpha), beta)


def _elu(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return F.elu(x, number(alpha))


def _leaky_relu(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu(x, number(alpha))


def _linear_activation(x: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    return x * alpha + beta


def _prelu(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return torch.where(x >= 0, x, x * _channels(alpha, x))


def _scaled_tanh(x: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    return alpha * torch.tanh(x * beta)


def _sigmoid_hard(x: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


def _softplus_parametric(x: torch.Tensor, alpha: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    z = x * _channels(beta, x)
    return _channels(alpha, x) * torch.logaddexp(z, torch.zeros_like(z))


def _thresholded_relu(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    return torch.where(x >= alpha, x, torch.zeros_like(x))


def _softmax(x: torch.Tensor, axis: Any = -1) -> torch.Tensor:
    return torch.softmax(x, int(axis))


def _gelu(x: torch.Tensor, mode: str = "EXACT") -> torch.Tensor:
    if choice(mode, ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"), "mode") == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="none" if mode == "EXACT" else "tanh")


def _cast(x: torch.Tensor, dtype: str) -> torch.Tensor:
    known = BY_NAME.get(dtype)
    if known is None or not known.torch:
        raise MilError(f"dtype is {dtype!r}, which is no MIL element type")
    if known.name == "bool":
        return x != 0
    if not known.is_float and x.dtype.is_floating_point:
        return x.to(torch.int64).to(getattr(torch, known.torch))
    return x.to(getattr(torch, known.torch))


def _select(cond: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    check_size(torch.broadcast_shapes(cond.shape, a.shape, b.shape))
    return torch.where(cond.bool(), a, b)


TABLE: dict[str, Any] = {
    "abs": _unary(torch.abs),
    "acos": _unary(torch.acos),
    "add": _binary(torch.add),
    "asin": _unary(torch.asin),
    "atan": _unary(torch.atan),
    "atanh": _unary(torch.atanh),
    "cast": _cast,
    "ceil": _unary(torch.ceil),
    "clamped_relu": _clamped_relu,
    "clip": _clip,
    "cos": _unary(torch.cos),
    "cosh": _unary(torch.cosh),
    "elu": _elu,
    "equal": _binary(torch.eq),
    "erf": _unary(torch.erf),
    "exp": _unary(torch.exp),
    "exp2": _unary(torch.exp2),
    "floor": _unary(torch.floor),
    "floor_div": _binary(_floor_div),
    "gelu": _gelu,
    "greater": _binary(torch.gt),
    "greater_equal": _binary(torch.ge),
    "identity": _unary(lambda x: x),
    "inverse": _inverse,
    "leaky_relu": _leaky_relu,
    "less": _binary(torch.lt),
    "less_equal": _binary(torch.le),
    "linear_activation": _linear_activation,
    "log": _log,
    "logical_and": _binary(torch.logical_and),
    "logical_not": _unary(torch.logical_not),
    "logical_or": _binary(torch.logical_or),
    "logical_xor": _binary(torch.logical_xor),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "mod": _binary(torch.remainder),
    "mul": _binary(torch.mul),
    "not_equal": _binary(torch.ne),
    "pow": _binary(torch.pow),
    "prelu": _prelu,
    "real_div": _binary(_real_div),
    "relu": _unary(torch.relu),
    "relu6": _unary(F.relu6),
    "round": _unary(torch.round),
    "rsqrt": _rsqrt,
    "scaled_tanh": _scaled_tanh,
    "select": _select,
    "sigmoid": _unary(torch.sigmoid),
    "sigmoid_hard": _sigmoid_hard,
    "sign": _unary(torch.sign),
    "silu": _unary(F.silu),
    "sin": _unary(torch.sin),
    "sinh": _unary(torch.sinh),
    "softmax": _softmax,
    "softplus": _unary(F.softplus),
    "softplus_parametric": _softplus_parametric,
    "softsign": _unary(F.softsign),
    "sqrt": _unary(torch.sqrt),
    "square": _unary(torch.square),
    "sub": _binary(torch.sub),
    "tan": _unary(torch.tan),
    "tanh": _unary(torch.tanh),
    "threshold": _threshold,
    "thresholded_relu": _thresholded_relu,
}
