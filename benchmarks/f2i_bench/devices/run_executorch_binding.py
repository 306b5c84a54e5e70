"""Opens a model with ExecuTorch for ``device_runner.py``, beside which this file lies on a device. Nothing of this project is imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def open_model(path: str, threads: int) -> tuple[str, Callable[[list[Any]], Any]]:
    """Returns the engine's name, and a function from inputs in calling order to the output.

    Uses the binding itself, because the package's Python layer wants all dependencies of the exporter.
    """
    from importlib.metadata import version

    import torch
    from executorch.extension.pybindings import _portable_lib

    _portable_lib._unsafe_reset_threadpool(threads)
    module = _portable_lib._load_for_executorch(path)
    return f"ExecuTorch {version('executorch')}", lambda feeds: module.forward([torch.from_numpy(f) for f in feeds])[0].numpy().copy()
