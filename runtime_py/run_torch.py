"""The full-precision reference: ``torch.export`` programs run by torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from runtime_py.errors import ToolchainError


class TorchSession:
    """A ``.pt2`` program, float32, on the CPU."""

    def __init__(self, path: Path, component: str, inputs: Mapping[str, tuple[int, ...]], threads: int) -> None:
        self.component, self.names = component, list(inputs)
        self.engine = f"torch {torch.__version__} (eager, full precision)"
        self.threads = threads
        try:
            self.module = torch.export.load(path).module()
        except (RuntimeError, ValueError, OSError, KeyError, AttributeError) as e:
            raise ToolchainError(component=component, target="torch", stage="load", reason=f"{path}: {e}") from e

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Inputs by name → the output, float32."""
        if self.threads:
            torch.set_num_threads(self.threads)
        with torch.no_grad():
            return self.module(*(torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self.names)).numpy()

    def close(self) -> None:
        """Nothing is held outside this object."""


def open_session(path: Path, *, component: str, inputs: Mapping[str, tuple[int, ...]], threads: int = 0) -> TorchSession:
    """See :func:`runtime_py.engines.open_session`."""
    return TorchSession(path, component, inputs, threads)
