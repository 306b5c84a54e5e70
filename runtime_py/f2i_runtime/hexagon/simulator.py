"""Qualcomm's x86 simulator of the NPU, asked by way of a child process, and its results kept by content: it takes seconds for a tile."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from f2i_runtime.errors import ToolchainError
from f2i_runtime.files import atomic_file, cache_root, sha256_file
from f2i_runtime.hexagon.chips import find_chip
from f2i_runtime.hexagon.qnn_provider import find_wheel, provider_options
from f2i_runtime.targets import chip_of
from f2i_runtime.tile_child import ChildSetup, TileChild

KEPT = "simulated"
"""The folder of the cache that holds finished results."""
WORKER = "f2i_runtime.hexagon.simulator_worker"
"""The module of the child that runs a context binary with ONNX Runtime's provider."""


@dataclass(frozen=True)
class SimulatedFile:
    """What is run: a file, the component that it is, its target, the accelerator that names its chip, and how the file calls each input, in calling order."""

    path: Path
    component: str
    target: str
    accelerator: str
    names: Mapping[str, str]


class Simulator:
    """A session of an artifact on the simulator of its chip. The child starts with the first input that has no result in the cache."""

    def __init__(self, subject: SimulatedFile, worker: str = WORKER) -> None:
        """``worker``: the module that the child runs. Raises ToolchainError where the file is missing."""
        path, self.names = subject.path, subject.names
        if not path.is_file():
            raise ToolchainError(component=subject.component, target=subject.target, stage="load", reason=f"{path}: no such file")
        chip, wheel = find_chip(chip_of(subject.accelerator)), find_wheel()
        self.engine = f"QNN {wheel.version} for {chip.label}, simulator (numerics only)"
        """The name for people and reports, which says what a figure of it does not prove."""
        beside = sorted(file for file in path.parent.glob(f"{path.name}*") if file.is_file())
        self.content = json.dumps([*(sha256_file(file) for file in beside), chip.name, wheel.version, worker])
        request = {"model": str(path.absolute()), "provider": str(wheel.provider), "options": provider_options(wheel.backend, chip)}
        self.child = TileChild(ChildSetup("simulator", worker, path, subject.component, subject.target, request))

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Runs the component on inputs by name and returns the output, float32. Equal inputs are computed once and kept in the cache. Raises ToolchainError."""
        own = {name: inputs[given] for given, name in self.names.items()}
        kept = cache_root() / KEPT / f"{self._key(own)}.npy"
        if kept.is_file():
            try:
                return np.asarray(np.load(kept))
            except (OSError, ValueError):
                pass  # not whole: it is computed again
        output = self.child.run(own)
        with atomic_file(kept) as staging, staging.open("wb") as file:
            np.save(file, output)
        return output

    def close(self) -> None:
        """Ends the simulator."""
        self.child.close()

    def _key(self, inputs: Mapping[str, np.ndarray]) -> str:
        digest = hashlib.sha256(self.content.encode())
        for name in sorted(inputs):
            value = np.ascontiguousarray(inputs[name])
            digest.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
        return digest.hexdigest()
