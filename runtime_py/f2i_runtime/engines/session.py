"""Opening an artifact with its target's engine. Only the requested engine's module, and with it its library, is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from f2i_runtime.stderr_filter import drop_engine_logs
from f2i_runtime.targets import REFERENCE, REFERENCE_ENGINE, Adapter, Variant, check_accelerator, find_target


class Session(Protocol):
    """A loaded component. One thread calls it at a time."""

    engine: str
    """The name of what computes, for people and reports, such as "ExecuTorch 1.4.1 (XNNPACK)"."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Inputs by name, float32, of the manifest's shapes → the output, float32. Raises ToolchainError when the engine fails."""
        ...

    def close(self) -> None:
        """Frees what the engine holds."""
        ...


def engine_adapter(target: str) -> Adapter:
    """Returns what executes a target, or the reference. Raises UsageError for an unknown target."""
    return REFERENCE_ENGINE if target == REFERENCE.target else find_target(target).engine


def installed(target: str) -> bool:
    """Returns whether the engine's package can be imported; does not import it."""
    return engine_adapter(target).installed()


def open_session(variant: Variant, path: Path, *, component: str, inputs: Mapping[str, tuple[int, ...]], threads: int = 0) -> Session:
    """Load one artifact.

    ``inputs``: names in calling order with their shapes. ``threads``: 0 takes the engine's default.
    Raises UsageError for an unknown target or an accelerator that it does not have, MissingPackageError with the install command, ToolchainError when the
    engine refuses the file.
    """
    check_accelerator(variant)
    with drop_engine_logs():
        module = engine_adapter(variant.target).load(f"the {variant.target} engine")
        return cast("Session", module.open_session(path, component=component, inputs=inputs, threads=threads))
