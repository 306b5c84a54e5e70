"""Opening an artifact with its target's engine. Only the requested engine's module, and with it its library, is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from f2i_runtime.hexagon.qnn_provider import find_wheel
from f2i_runtime.stderr_filter import drop_engine_logs
from f2i_runtime.targets import HEXAGON, REFERENCE, REFERENCE_ENGINE, Adapter, Variant, check_accelerator, kind_of, target_of


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


def engine_adapter(variant: Variant) -> Adapter:
    """Returns what executes a variant, or the reference. Raises UsageError for an unknown target."""
    return REFERENCE_ENGINE if variant.target == REFERENCE.target else target_of(variant).engine


def installed(variant: Variant) -> bool:
    """Returns whether the package of the variant's engine can be imported; does not import it."""
    return engine_adapter(variant).installed()


def open_session(variant: Variant, path: Path, *, component: str, inputs: Mapping[str, tuple[int, ...]], threads: int = 0) -> Session:
    """Load one artifact. The engine's module is that of the variant's target on its accelerator, and is told which accelerator it is for.

    ``inputs``: names in calling order with their shapes. ``threads``: 0 takes the engine's default.
    Raises UsageError for an unknown target, an accelerator that it does not have or that this machine cannot simulate, MissingPackageError with the install
    command, ToolchainError when the engine refuses the file.
    """
    check_accelerator(variant)
    if kind_of(variant.accelerator) == HEXAGON:
        find_wheel()
    with drop_engine_logs():
        module = engine_adapter(variant).load(f"the {variant.target} engine")
        opened = module.open_session(path, component=component, inputs=inputs, accelerator=variant.accelerator, threads=threads)
        return cast("Session", opened)
