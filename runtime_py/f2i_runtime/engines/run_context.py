"""A context binary for Hexagon, named by an ``.onnx`` graph of one op, on Qualcomm's x86 simulator: its numbers, never its time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from f2i_runtime.hexagon.simulator import SimulatedFile, Simulator
from f2i_runtime.targets import HEXAGON


def open_session(
    path: Path, *, component: str, inputs: Mapping[str, tuple[int, ...]], accelerator: str = HEXAGON, threads: int = 0
) -> Simulator:
    """See :func:`f2i_runtime.engines.session.open_session`. The simulator chooses its threads itself."""
    return Simulator(SimulatedFile(path, component, "onnx", accelerator, {name: name for name in inputs}))
