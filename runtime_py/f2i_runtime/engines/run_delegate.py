"""A ``.pte`` compiled for Hexagon, in ExecuTorch's own runtime, whose Qualcomm backend runs it on the x86 simulator: its numbers, never its time."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from f2i_runtime.hexagon.simulator import SimulatedFile, Simulator
from f2i_runtime.targets import HEXAGON

WORKER = "f2i_runtime.hexagon.run_delegate_worker"


def open_session(
    path: Path, *, component: str, inputs: Mapping[str, tuple[int, ...]], accelerator: str = HEXAGON, threads: int = 0
) -> Simulator:
    """See :func:`f2i_runtime.engines.session.open_session`. The simulator chooses its threads itself."""
    simulator = Simulator(SimulatedFile(path, component, "executorch", accelerator, {name: name for name in inputs}), WORKER)
    simulator.engine = f"ExecuTorch {version('executorch')} with {simulator.engine}"
    return simulator
