"""Pairs the values of a package with the nodes of the torch program it was converted from, and measures one against the other.

coremltools names a value after the torch.export node it comes from and adds suffixes where it casts or quantizes. Names it invents for
the parts of a composite operation (``add_3`` inside a group norm) can equal the name of an unrelated node, so a pair must also agree in
shape and the pairs must follow each other in both programs: of all candidates the longest increasing run is kept.
"""

from __future__ import annotations

import bisect
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from f2i_runtime.errors import MilError
from f2i_runtime.mil.format.program import Function, Operation

_SUFFIX = re.compile(
    r"(_cast_fp16|_cast_fp32|_cast_u?int\d+|_to_fp16|_to_fp32|_quantized|_dequantized|_palettized|_sparsified|_promoted)+$"
)
_NUMBERED = re.compile(r"_\d+$")


@dataclass(frozen=True)
class Comparison:
    """One value of the package beside the reference's. ``module`` is the torch module that computes it, ``node`` its node.

    ``rel_l2`` is ‖package - reference‖ / ‖reference‖ (infinite when the package's is not finite), ``magnitude`` and
    ``reference_magnitude`` the largest absolute values, ``overflowed`` the elements that left the range though the reference's did not,
    ``underflowed`` those that became zero though the reference's are not.
    """

    value: str
    operation: str
    name: str
    where: str
    node: str
    module: str
    rel_l2: float
    magnitude: float
    reference_magnitude: float
    overflowed: int
    underflowed: int


_INVERSED = "_inversed_"
"""How coremltools begins the name of a product with the reciprocal of a number that the program divides by."""


def base_name(name: str) -> str:
    """Returns the name of a value without what casts, quantization and the reciprocal of a divisor add."""
    return _SUFFIX.sub("", name).removeprefix(_INVERSED)


QUANTIZATION = ("quantize", "dequantize")
FUSED = ("linear",)
"""Operations that a pass makes from a product and its bias. They compute the same value as the node that their output is named after."""


def pair_values(function: Function, program: Any) -> dict[str, Any]:
    """Values of ``function`` (name → torch.fx node of ``program``) that come from the same torch operation, in program order."""
    nodes = {node.name: (position, node) for position, node in enumerate(program.graph.nodes) if node.op == "call_function"}
    candidates: list[tuple[int, str, Any]] = []
    operations = [item for item in function.body.operations if item.type != "const" and not item.type.startswith("constexpr_")]
    for operation in operations:
        single = len(operation.outputs) == 1
        for output in operation.outputs:
            base = base_name(output.name)
            renamed = single and output.name not in function.body.outputs and base_name(operation.name) != base
            fused = operation.type in FUSED and base.startswith(operation.type)
            if renamed and not fused:
                continue  # a late pass made this operation and took over the name of a value it replaced
            for name in (base, _NUMBERED.sub("", base)):  # a name already taken got a further number
                position, node = nodes.get(name, (-1, None))
                value = None if node is None else node.meta.get("val")
                if isinstance(value, torch.Tensor) and output.type.dtype.is_float and output.type.shape == tuple(value.shape):
                    candidates.append((position, output.name, node))
                    break
    pairs = {candidates[index][1]: candidates[index][2] for index in _increasing([position for position, _, _ in candidates])}
    _pair_quantization(operations, pairs)
    _pair_outputs(function, program, pairs)
    return pairs


def _pair_quantization(operations: Sequence[Operation], pairs: dict[str, Any]) -> None:
    """Adds the quantize and dequantize operations to ``pairs``. The converter invents their names, so each is found by what it reads."""
    for operation in operations:
        source = operation.inputs.get("input", (None,))[0]
        if operation.type in QUANTIZATION and operation.outputs[0].name not in pairs and isinstance(source, str) and source in pairs:
            users = [node for node in pairs[source].users if f".{operation.type}_per_tensor." in f".{node.target}."]
            if users:  # several read the same grid: one of them stands for all
                pairs[operation.outputs[0].name] = users[0]


def _pair_outputs(function: Function, program: Any, pairs: dict[str, Any]) -> None:
    """Adds the outputs, which have the names that the converter was told to use."""
    returned = [node for node in program.graph.output_node().args[0] if node is not None]
    for name, node in zip(function.body.outputs, returned, strict=False):
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and function.types[name].shape == tuple(value.shape):
            pairs.setdefault(name, node)


def _increasing(values: list[int]) -> list[int]:
    """Indices of a longest non-decreasing run of ``values`` (patience sorting)."""
    tails: list[int] = []
    heads: list[int] = []
    before: list[int] = []
    for index, value in enumerate(values):
        place = bisect.bisect_right(heads, value)
        before.append(tails[place - 1] if place else -1)
        if place == len(heads):
            heads.append(value)
            tails.append(index)
        else:
            heads[place], tails[place] = value, index
    run = []
    index = tails[-1] if tails else -1
    while index >= 0:
        run.append(index)
        index = before[index]
    return run[::-1]


class Reference(torch.fx.Interpreter):  # type: ignore[misc]  # torch is untyped here
    """Runs the torch program in step with a package: only as far as results are asked for. A result is dropped as soon as it was taken as often as
    announced, because all results of a large decoder together are many times as large as its weights.
    """

    def __init__(
        self,
        program: Any,
        inputs: Mapping[str, np.ndarray[Any, Any]],
        uses: Mapping[str, int] | None = None,
        replaced: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """``inputs``: the program's user inputs, by name, else in order. ``uses``: names of nodes whose results will be taken, and how often.

        Nodes named in ``replaced`` have those results instead of their own. Raises MilError for other inputs.
        """
        super().__init__(program.graph_module, garbage_collect_values=True)
        self.args_iter = iter(_arguments(program, inputs))
        self._ahead = iter(program.graph_module.graph.nodes)
        self._left, self._replaced = Counter(uses or {}), replaced or {}
        self._held: dict[str, torch.Tensor] = {}
        self._returned: list[Any] = []

    def take(self, name: str) -> torch.Tensor | None:
        """The result of a node, float32; None for one that is no tensor or was taken as often as was said."""
        if self._left[name] < 1:
            return None
        while name not in self._held:
            if not self._step():
                return None
        self._left[name] -= 1
        return self._held[name] if self._left[name] else self._held.pop(name)

    def outputs(self) -> list[Any]:
        """Runs the program to its end and returns its outputs."""
        while self._step():
            pass
        return self._returned

    def _step(self) -> bool:
        """Run the next node; False when there is none."""
        node = next(self._ahead, None)
        if node is None:
            return False
        with torch.no_grad():
            computed = self.run_node(node)
        result: Any = self._replaced.get(node.name, computed)
        if node.op == "output":
            self._returned = list(result)
        self.env[node] = result
        for last in self.user_to_last_uses.get(node, []):
            del self.env[last]
        if self._left[node.name] > 0 and isinstance(result, torch.Tensor):
            self._held[node.name] = result.detach().float()
        return True


def _arguments(program: Any, inputs: Mapping[str, np.ndarray[Any, Any]]) -> list[Any]:
    names = [item.arg.name for item in program.graph_signature.input_specs if item.kind.name == "USER_INPUT"]
    if set(names) == set(inputs):
        arrays = [inputs[name] for name in names]
    elif len(names) == len(inputs):
        arrays = list(inputs.values())
    else:
        raise MilError(f"the reference takes {names}, got {sorted(inputs)}")
    lifted = {**program.state_dict, **program.constants}
    tensors = iter(torch.from_numpy(np.array(array)) for array in arrays)
    return [next(tensors) if item.kind.name == "USER_INPUT" else lifted[item.target] for item in program.graph_signature.input_specs]


def relative_l2(actual: torch.Tensor, reference: torch.Tensor) -> float:
    """‖actual - reference‖ / ‖reference‖; 0 when both are zero, infinite when ``actual`` is not finite."""
    error = float(torch.linalg.vector_norm(actual.double() - reference.double()))
    norm = float(torch.linalg.vector_norm(reference.double()))
    if not math.isfinite(error):
        return math.inf
    return error / norm if norm else (0.0 if error == 0 else math.inf)


def sqnr_db(rel_l2: float) -> float:
    """Returns the signal to quantization noise ratio in dB of a relative L2 error."""
    return math.inf if rel_l2 == 0 else -20 * math.log10(rel_l2) if math.isfinite(rel_l2) else -math.inf


def compare_value(operation: Operation, value: str, node: Any, actual: torch.Tensor, reference: torch.Tensor) -> Comparison:
    """Measures one value against the reference."""
    lost = torch.isfinite(reference) & ~torch.isfinite(actual)
    vanished = (actual == 0) & (reference != 0)
    return Comparison(
        value=value,
        operation=operation.type,
        name=operation.name,
        where=operation.where,
        node=node.name,
        module=module_of(node),
        rel_l2=relative_l2(actual, reference),
        magnitude=float(actual.abs().max()) if actual.numel() else 0.0,
        reference_magnitude=float(reference.abs().max()) if reference.numel() else 0.0,
        overflowed=int(lost.sum()),
        underflowed=int(vanished.sum()),
    )


def module_of(node: Any) -> str:
    """The innermost torch module that computes ``node``: ``path (Class)``."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return ""
    path, kind = stack[-1]
    name = kind if isinstance(kind, str) else kind.__name__
    return f"{path} ({name.rsplit('.', 1)[-1]})" if path else f"({name.rsplit('.', 1)[-1]})"
