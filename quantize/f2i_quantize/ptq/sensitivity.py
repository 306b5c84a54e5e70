"""Sensitivity: the error of the tile's output when one layer alone is quantized, and what that layer costs.

Layers that read one tensor are measured together, as one *unit*: engines run them in int8 or in float alike, since they share what they read. Models
with more than :data:`MOST_UNITS` of them are measured by block. Results are kept in a file named by the hash of the weights, the scales and the tiles, one
line per unit, so that a killed run goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from f2i_runtime.files import cache_root, write_json
from torch import Tensor
from torch.fx import Node

from f2i_quantize.models.whole_model import ComponentGraph
from f2i_quantize.ptq import qdq
from f2i_quantize.ptq.calibrate import ComponentInputs, Progress
from f2i_quantize.ptq.fake_layers import FakeComponent
from f2i_quantize.ptq.recipe import Rule

MOST_UNITS = 160
"""Units measured one by one; beyond that, blocks."""
UNIT_TILES = 2
"""Tiles on which every unit is measured; sets of units are measured on all."""
MOVERS = {*qdq.SAME_VALUES, torch.ops.aten.pad.default, torch.ops.aten.constant_pad_nd.default}
SCHEMA = 1


@dataclass(frozen=True)
class Unit:
    """Layers that are quantized or left float together."""

    name: str
    layers: tuple[str, ...]
    macs: int
    """Multiply-adds per output tile, over all calls of the component."""


@dataclass(frozen=True)
class OutputError:
    """Error of the tile's output to the float model's, over tiles."""

    mse: float
    signal: float
    """Mean square of the float output."""

    def psnr_db(self) -> float | None:
        """The PSNR in dB for a range of 1; None where the outputs are equal."""
        return None if self.mse == 0 else -10 * math.log10(self.mse)

    def sqnr_db(self) -> float | None:
        """The SQNR in dB; None where the outputs are equal or the float output is zero."""
        return None if self.mse == 0 or self.signal == 0 else 10 * math.log10(self.signal / self.mse)


class Workbench:
    """The whole model with switchable layers, and its float tensors on some tiles: gives the output's error for any set of quantized layers."""

    def __init__(
        self, graph: ComponentGraph, fakes: Mapping[str, FakeComponent], tiles: Sequence[Tensor], extra: Mapping[str, Tensor]
    ) -> None:
        self.graph, self.fakes = graph, fakes
        self.tiles = [graph.run(tile, extra) for tile in tiles]

    def error(self, quantized: Collection[str], tiles: int | None = None) -> OutputError:
        """Returns the error of the output with exactly the layers ``quantized`` in int8, on the first ``tiles``."""
        active = {name for name, fake in self.fakes.items() if fake.switch(quantized)}
        used = self.tiles[:tiles]
        error = signal = 0.0
        for reference in used:
            expected = reference["sr"].double()
            error += float((self._output(reference, active) - expected).square().mean())
            signal += float(expected.square().mean())
        return OutputError(error / len(used), signal / len(used))

    @torch.no_grad()
    def _output(self, reference: Mapping[str, Tensor], active: set[str]) -> Tensor:
        """Only the calls that a quantized layer or a changed tensor reaches are computed."""
        changed: dict[str, Tensor] = {}
        for call in self.graph.calls:
            read = [call.arguments[name] for name in self.graph.components[call.component].inputs]
            if call.component in active or any(name in changed for name in read):
                changed[call.result] = self.fakes[call.component].module(*(changed.get(n, reference[n]) for n in read))
        return changed.get("sr", reference["sr"]).double()


def units(parts: Iterable[ComponentInputs], rules: Mapping[str, Rule], graph: ComponentGraph) -> tuple[list[Unit], str]:
    """The units of the layers that ``rules`` make int8, in the order in which they run, and what they are: ``tensor`` or ``block``."""
    found: list[Unit] = []
    for part in parts:
        calls = sum(call.component == part.name for call in graph.calls)
        groups: dict[tuple[Node, str, str], list[tuple[str, int]]] = {}
        for node, layer in qdq.graph_layers(qdq.capture_graph(part.module, part.inputs[0]), part.name).items():
            rule = rules.get(layer.name)
            if rule is None or rule.weights != "int8":
                continue
            positions = node.meta["val"].numel() // layer.weight_shape[0]
            macs = positions * math.prod(layer.weight_shape) * calls
            groups.setdefault((_source(node), layer.op, rule.activations), []).append((layer.name, macs))
        found += [Unit(_common([n for n, _ in group]), tuple(n for n, _ in group), sum(m for _, m in group)) for group in groups.values()]
    if len(found) <= MOST_UNITS:
        return found, "tensor"
    return _blocks(found), "block"


def _source(node: Node) -> Node:
    """The tensor a layer reads, behind ops that only move or pad it."""
    source = node.args[0]
    while isinstance(source, Node) and source.op == "call_function" and source.target in MOVERS:
        source = source.args[0]
    if not isinstance(source, Node):
        raise TypeError(f"{node}: its input is not a tensor of the graph")
    return source


def _common(names: Sequence[str]) -> str:
    """``a.b.query`` and ``a.b.key`` → ``a.b.{query,key}``."""
    if len(names) == 1:
        return names[0]
    split = [name.split(".") for name in names]
    depth = next(k for k in range(min(map(len, split)) + 1) if k == min(map(len, split)) or len({tuple(s[: k + 1]) for s in split}) > 1)
    return ".".join([*split[0][:depth], "{" + ",".join(".".join(s[depth:]) for s in split) + "}"])


def _blocks(found: Sequence[Unit]) -> list[Unit]:
    """Units merged by the longest part of their path that leaves at most :data:`MOST_UNITS`."""
    merged: dict[str, list[Unit]] = {}
    for depth in range(max(unit.name.count(".") for unit in found), 0, -1):
        merged = {}
        for unit in found:
            merged.setdefault(".".join(unit.name.split("{")[0].rstrip(".").split(".")[:depth]), []).append(unit)
        if len(merged) <= MOST_UNITS:
            break
    return [Unit(name, tuple(n for u in group for n in u.layers), sum(u.macs for u in group)) for name, group in merged.items()]


def cache_key(content: Mapping[str, Any], tensors: Mapping[str, Tensor], tiles: Sequence[Tensor]) -> str:
    """Hash of everything that shapes the figures: what ``content`` names, the scales and weights, and the tiles' pixels."""
    digest = hashlib.sha256(json.dumps([SCHEMA, UNIT_TILES, torch.__version__, content], sort_keys=True).encode())
    for name, tensor in [*sorted(tensors.items()), *((str(k), tile) for k, tile in enumerate(tiles))]:
        digest.update(name.encode() + b"\0" + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def measure_units(bench: Workbench, wanted: Sequence[Unit], key: str, progress: Progress) -> dict[str, OutputError]:
    """The output's error for every unit alone, from the cache where it was measured before."""
    path = cache_root() / "sensitivity" / f"{key}.json"
    kept: dict[str, list[float]] = json.loads(path.read_text()) if path.is_file() else {}
    for k, unit in enumerate(wanted):
        if unit.name not in kept:
            error = bench.error(unit.layers, UNIT_TILES)
            kept[unit.name] = [error.mse, error.signal]
            write_json(path, kept)
        progress("sensitivity", k + 1, len(wanted))
    return {unit.name: OutputError(*kept[unit.name]) for unit in wanted}


def unit_record(unit: Unit, error: OutputError, total_macs: int) -> dict[str, Any]:
    """Returns one unit as a record that JSON can hold."""
    return {
        "name": unit.name,
        "layers": list(unit.layers),
        "macs": unit.macs,
        "macs_share": unit.macs / max(1, total_macs),
        "mse": error.mse,
        "psnr_db": error.psnr_db(),
        "sqnr_db": error.sqnr_db(),
    }
