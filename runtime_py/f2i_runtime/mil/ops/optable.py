"""One literal table of every operation the evaluator knows, and the look-up that turns an unknown one into one clear error.

A family's table maps an operation to its function, or to ``{iOS version: function}`` where it came later than iOS 15 or changed since.
A function's keyword parameters are the operation's parameters under MIL's own names, so the signature is what says which exist.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from f2i_runtime.errors import MilError
from f2i_runtime.mil.ops import ops_elementwise, ops_index, ops_linear, ops_misc, ops_recurrent, ops_reduce, ops_resize, ops_shape

Implementation = Callable[..., Any]

OPERATIONS: dict[str, Any] = {
    **ops_elementwise.TABLE,
    **ops_index.TABLE,
    **ops_linear.TABLE,
    **ops_misc.TABLE,
    **ops_recurrent.TABLE,
    **ops_reduce.TABLE,
    **ops_resize.TABLE,
    **ops_shape.TABLE,
}
# Operations the executor itself carries out.
CONTROL = frozenset({"cond", "const", "read_state", "while_loop", "write_state"})
# Operations whose float results are some of their inputs' values: rounding them again changes nothing.
# fmt: off
EXACT = frozenset({
    "abs", "argsort", "band_part", "batch_to_space", "ceil", "concat", "crop", "depth_to_space", "expand_dims", "flatten2d",
    "floor", "gather", "gather_along_axis", "gather_nd", "identity", "list_gather", "list_read", "max_pool", "maximum", "minimum",
    "pad", "pixel_shuffle", "pixel_unshuffle", "reduce_max", "reduce_min", "relu", "reshape", "reshape_like",
    "resize_nearest_neighbor", "reverse", "reverse_sequence", "round", "select", "sign", "slice_by_index", "slice_by_size",
    "slice_update", "sliding_windows", "space_to_batch", "space_to_depth", "split", "squeeze", "stack", "tile", "topk", "transpose",
    "upsample_nearest_neighbor",
})
# fmt: on


def implementation(operation: str, opset: int, where: str, table: dict[str, Any] = OPERATIONS) -> Implementation:
    """The function for ``operation`` in iOS ``opset``; raises :class:`MilError` when there is none."""
    entry = table.get(operation)
    if entry is None:
        raise MilError(f"{where}: the operation {operation!r} (opset iOS {opset}) is not known to the evaluator")
    versions: dict[int, Implementation] = entry if isinstance(entry, dict) else {15: entry}
    known = [since for since in versions if since <= opset]
    if not known:
        raise MilError(f"{where}: the operation {operation!r} came with iOS {min(versions)}, the function's opset is iOS {opset}")
    return versions[max(known)]


@cache
def parameters(function: Implementation) -> tuple[frozenset[str], frozenset[str]]:
    """All parameters of an implementation, and those that have no default."""
    signature = inspect.signature(function).parameters
    return frozenset(signature), frozenset(name for name, item in signature.items() if item.default is inspect.Parameter.empty)


def check_parameters(function: Implementation, operation: str, given: frozenset[str], opset: int, where: str) -> None:
    """Raises :class:`MilError` for a parameter the operation does not have, or lacks."""
    known, required = parameters(function)
    for name in sorted(given - known):
        raise MilError(f"{where}: the operation {operation!r} (opset iOS {opset}) has no attribute {name!r} known to the evaluator")
    for name in sorted(required - given):
        raise MilError(f"{where}: the operation {operation!r} (opset iOS {opset}) lacks its input {name!r}")
