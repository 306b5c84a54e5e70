"""Weights of a package beside those of the program it was converted from: is every element still what was stored, and is the rest of the
program sound when torch computes with the package's own weights?
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from f2i_runtime.mil.execute.constants import Constants
from f2i_runtime.mil.execute.evaluator import Evaluator
from f2i_runtime.mil.format.package import Package
from f2i_runtime.mil.format.program import decode
from f2i_runtime.mil.judge.find_bad_op import load_program
from f2i_runtime.mil.judge.op_errors import Reference, base_name, relative_l2

PALETTES = ("constexpr_lut_to_dense",)
"""Kinds of storage whose values are near the program's and not equal to them. Each value must be the nearest entry of its table."""
NEAREST_TOLERANCE = 2.0**-10
"""The tolerance, relative to the magnitudes of a weight and its entry. Tables are computed from weights in fp16 and are stored in fp16."""

SMALLEST_HALF = np.float32(2.0**-24)
"""The value that the converter writes for a number too small for fp16, so that an epsilon does not become zero."""


@dataclass(frozen=True)
class WeightComparison:
    """A parameter of the program beside the constant of the package that holds it, decompressed."""

    parameter: str
    value: str
    storage: str
    rel_l2: float
    exact: bool
    """Returns whether every element is the program's, rounded as the package stores it. In a palette, it must be the nearest entry of the table."""


@dataclass(frozen=True)
class WeightReport:
    """All parameters that were found in the package, and those that were not, because they were folded into others or renamed."""

    compared: tuple[WeightComparison, ...]
    missing: tuple[str, ...]

    @property
    def worst(self) -> float:
        """Largest relative L2 difference, 0 when nothing was compared."""
        return max((item.rel_l2 for item in self.compared), default=0.0)


@dataclass(frozen=True)
class _Held:
    """A constant of the package: decompressed, its name, and the operation that makes it."""

    array: np.ndarray[Any, Any]
    value: str
    storage: str


def package_weights(package: Path, program: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Returns the constants of the package, decompressed to float32, by the name of the ``program`` node that each stands for. Nodes without one are
    left out.
    """
    return {node: held.array for node, held in _held(package, load_program(program)).items()}


def own_weights_error(package: Path, program: Any, inputs: Mapping[str, np.ndarray[Any, Any]]) -> float:
    """Relative L2 between the package, evaluated without rounding, and ``program`` computing with the package's own weights.

    What is left of the error of a compressed package once its compression is taken out: near zero unless an operation is wrong.
    Raises :class:`MilError` for inputs that do not fit.
    """
    exported = load_program(program)
    replaced = {name: torch.from_numpy(array) for name, array in package_weights(package, exported).items()}
    expected = Reference(exported, inputs, replaced=replaced).outputs()
    run = Evaluator(package, mode="fp32")
    given = inputs if set(inputs) == set(run.inputs) else dict(zip(run.inputs, inputs.values(), strict=True))
    actual = torch.cat([torch.from_numpy(value).flatten() for value in run(given).values()])
    return relative_l2(actual, torch.cat([value.float().flatten() for value in expected]))


def audit_weights(package: Path, program: Any) -> WeightReport:
    """Compares every parameter of ``program`` (an ExportedProgram or the path of one) with the package's decompressed constant."""
    exported = load_program(program)
    held = _held(package, exported)
    full, half = _values(exported), _values(exported, halves=True)
    names = {item.arg.name: item.target for item in _parameters(exported)}
    compared = []
    for node, found in held.items():
        exact = any(_equal(found, wanted[node].numpy()) for wanted in (full, half))
        difference = relative_l2(torch.from_numpy(found.array), full[node])
        compared.append(WeightComparison(names.get(node, node), found.value, found.storage, difference, exact))
    missing = [target for name, target in names.items() if name not in held]
    return WeightReport(tuple(compared), tuple(missing))


def _equal(found: _Held, wanted: np.ndarray[Any, Any]) -> bool:
    if found.storage in PALETTES:
        return _nearest(found.array.ravel(), wanted.ravel())
    rounded = torch.from_numpy(np.ascontiguousarray(wanted)).half().float().numpy()
    lifted = np.where((rounded == 0) & (wanted != 0), np.copysign(SMALLEST_HALF, wanted), rounded)
    return bool(np.array_equal(found.array, wanted) or np.all((found.array == rounded) | (found.array == lifted)))


def _nearest(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> bool:
    """Returns whether no value in ``found`` is clearly nearer to an element of ``wanted`` than the value that stands for the element."""
    table = np.unique(found)
    place = np.searchsorted(table, wanted)
    around = (table[np.clip(place + step, 0, table.size - 1)] for step in (-1, 0))
    best = np.minimum(*(np.abs(wanted - value) for value in around))
    distance = np.abs(wanted - found)
    return bool(np.all(distance <= best + NEAREST_TOLERANCE * (np.abs(wanted) + distance)))


def _parameters(program: Any) -> list[Any]:
    return [item for item in program.graph_signature.input_specs if item.kind.name in ("PARAMETER", "BUFFER", "CONSTANT_TENSOR")]


def _held(package: Path, program: Any) -> dict[str, _Held]:
    held: dict[str, _Held] = {}
    with Package(package) as opened:
        function = decode(opened)
        constants = Constants(opened, function)
        by_base = {base_name(name): name for name in constants.names()}  # of several the last: decompressed, not compressed
        for node, tensor in _values(program).items():
            value = by_base.get(node)
            if value is not None and function.types[value].shape == tuple(tensor.shape) and function.types[value].dtype.is_float:
                held[node] = _Held(np.array(constants.array(value), np.float32), value, constants.operation(value).type)
    return held


def _values(program: Any, *, halves: bool = False) -> dict[str, torch.Tensor]:
    """Every node of ``program`` that depends on weights alone (a parameter, a reshaped norm weight, a dequantized one), by name, float32.

    ``halves`` computes them from float parameters rounded to fp16: the converter rounds before some of its folding, and after other.
    """
    tensors = {**program.state_dict, **program.constants}
    targets = {item.arg.name: item.target for item in _parameters(program)}
    known: dict[Any, torch.Tensor] = {}
    with torch.no_grad():
        for node in program.graph.nodes:
            if node.op == "placeholder" and targets.get(node.name) in tensors:
                tensor = tensors[targets[node.name]].detach()
                known[node] = tensor.half().to(tensor.dtype) if halves and tensor.is_floating_point() else tensor
            elif node.op == "call_function" and node.all_input_nodes and all(source in known for source in node.all_input_nodes):
                value = node.target(*torch.fx.map_arg(node.args, known.get), **torch.fx.map_arg(node.kwargs, known.get))
                if isinstance(value, torch.Tensor):
                    known[node] = value
    return {node.name: value.float() for node, value in known.items() if value.is_floating_point()}
