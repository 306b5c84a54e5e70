"""A ``.pte`` compiled for Hexagon, in ExecuTorch's own runtime, whose Qualcomm backend runs it on the x86 simulator: its numbers, never its time."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np

from f2i_runtime.errors import ToolchainError
from f2i_runtime.hexagon.simulator import Simulator
from f2i_runtime.targets import HEXAGON

WORKER = "f2i_runtime.hexagon.run_delegated"


class DelegateSession:
    """A program of one delegate on the simulator of the chip that it was compiled for."""

    def __init__(self, path: Path, component: str, inputs: Mapping[str, tuple[int, ...]], accelerator: str) -> None:
        self.inputs = inputs
        if not path.is_file():
            raise ToolchainError(component=component, target="executorch", stage="load", reason=f"{path}: no such file")
        self.simulator = Simulator(path, component, "executorch", accelerator, WORKER)
        self.engine = f"ExecuTorch {version('executorch')} with {self.simulator.engine}"

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Runs the component on inputs by name and returns the output, float32. Equal inputs are computed once and kept in the cache."""
        return self.simulator.run({name: inputs[name] for name in self.inputs})

    def close(self) -> None:
        """Ends the simulator."""
        self.simulator.close()


def open_session(
    path: Path, *, component: str, inputs: Mapping[str, tuple[int, ...]], accelerator: str = HEXAGON, threads: int = 0
) -> DelegateSession:
    """See :func:`f2i_runtime.engines.session.open_session`. The simulator chooses its threads itself."""
    return DelegateSession(path, component, inputs, accelerator)
