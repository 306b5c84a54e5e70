"""ExecuTorch's own runtime, through its Python bindings."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from executorch.extension.pybindings import portable_lib
from executorch.runtime import Runtime, Verification

from f2i_runtime.errors import ToolchainError
from f2i_runtime.targets import CPU


class ExecuTorchSession:
    """A ``.pte`` program's ``forward``."""

    def __init__(self, path: Path, component: str, inputs: Mapping[str, tuple[int, ...]], threads: int) -> None:
        self.component, self.names = component, list(inputs)
        if threads:
            # The thread pool is the process's own; the binding calls its setter unsafe because it must not run beside an inference.
            portable_lib._unsafe_reset_threadpool(threads)
        self.engine = f"ExecuTorch {version('executorch')} (XNNPACK)"
        try:
            self.method = Runtime.get().load_program(path, verification=Verification.InternalConsistency).load_method("forward")
        except (RuntimeError, ValueError, OSError) as e:
            raise ToolchainError(component=component, target="executorch", stage="load", reason=f"{path}: {e}") from e
        if self.method is None:
            raise ToolchainError(component=component, target="executorch", stage="load", reason=f"{path}: it has no method 'forward'")

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Runs the component on inputs by name and returns the output, float32."""
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self.names]
        try:
            output = self.method.execute(tensors)[0]
        except RuntimeError as e:
            raise ToolchainError(component=self.component, target="executorch", stage="run", reason=str(e)) from e
        return output.numpy().copy()  # the tensor is a view of the program's own memory plan

    def close(self) -> None:
        """Releases the program."""
        self.method = None


def open_session(
    path: Path, *, component: str, inputs: Mapping[str, tuple[int, ...]], accelerator: str = CPU, threads: int = 0
) -> ExecuTorchSession:
    """See :func:`f2i_runtime.engines.session.open_session`."""
    return ExecuTorchSession(path, component, inputs, threads)
