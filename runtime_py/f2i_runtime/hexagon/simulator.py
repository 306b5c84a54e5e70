"""Qualcomm's x86 simulator of the NPU, asked by way of a child process, and its results kept by content: it takes seconds for a tile."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from f2i_runtime.child_process import python_child
from f2i_runtime.errors import ToolchainError
from f2i_runtime.files import atomic_file, cache_root, sha256_file
from f2i_runtime.hexagon.chips import find_chip
from f2i_runtime.hexagon.qnn_provider import find_wheel, provider_options
from f2i_runtime.targets import chip_of

KEPT = "simulated"
"""The folder of the cache that holds finished results."""
WORKER = "f2i_runtime.hexagon.simulator_worker"
"""The module of the child that runs a context binary with ONNX Runtime's provider."""


class Simulator:
    """An artifact on the simulator of one chip. The child starts with the first input that has no result in the cache."""

    def __init__(self, path: Path, component: str, target: str, accelerator: str, worker: str = WORKER) -> None:
        """``worker``: the module that a child runs, which speaks as :data:`WORKER` does."""
        self.path, self.component, self.target, self.worker = path, component, target, worker
        self.chip, self.wheel = find_chip(chip_of(accelerator)), find_wheel()
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        self.process: subprocess.Popen[str] | None = None
        beside = sorted(file for file in path.parent.glob(f"{path.name}*") if file.is_file())
        content = [sha256_file(file) for file in beside]
        self.content = json.dumps([*content, self.chip.name, self.wheel.version, worker])

    @property
    def engine(self) -> str:
        """The name for people and reports, which says what a figure of it does not prove."""
        return f"QNN {self.wheel.version} for {self.chip.label}, simulator (numerics only)"

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the output for inputs by name, from the cache where it is there. Raises ToolchainError."""
        kept = cache_root() / KEPT / f"{self._key(inputs)}.npy"
        if kept.is_file():
            try:
                return np.asarray(np.load(kept))
            except (OSError, ValueError):
                pass  # not whole: it is computed again
        output = self._simulate(inputs)
        with atomic_file(kept) as staging, staging.open("wb") as file:
            np.save(file, output)
        return output

    def _key(self, inputs: Mapping[str, np.ndarray]) -> str:
        digest = hashlib.sha256(self.content.encode())
        for name in sorted(inputs):
            value = np.ascontiguousarray(inputs[name])
            digest.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
        return digest.hexdigest()

    def _simulate(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        folder = self._start()
        np.savez(folder / "tile.npz", **{name: np.ascontiguousarray(value) for name, value in inputs.items()})  # type: ignore[arg-type]
        self._ask(f"{folder / 'tile.npz'}\n", "run")
        return np.asarray(np.load(folder / "tile.npy"))

    def _start(self) -> Path:
        """Starts the child unless it runs; returns the folder that is shared with it."""
        if self.folder is not None and self.process is not None:
            return Path(self.folder.name)
        self.folder = tempfile.TemporaryDirectory(prefix="f2i-simulator-")
        folder = Path(self.folder.name)
        request = {
            "model": str(self.path.absolute()),
            "provider": str(self.wheel.provider),
            "options": provider_options(self.wheel.backend, self.chip),
        }
        (folder / "request.json").write_text(json.dumps(request))
        with (folder / "log").open("wb") as log:
            command = [*python_child(self.worker), str(folder / "request.json")]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder)
        self._ask("", "load")
        return folder

    def _ask(self, line: str, stage: str) -> dict[str, Any]:
        process = self.process
        if process is None or process.stdin is None or process.stdout is None:
            raise ToolchainError(component=self.component, target=self.target, stage=stage, reason="the simulator was closed")
        try:
            process.stdin.write(line)
            process.stdin.flush()
            said = process.stdout.readline()
        except (BrokenPipeError, OSError):
            said = ""
        answer: dict[str, Any] = json.loads(said) if said else {"error": f"the simulator's process ended with code {process.wait()}"}
        if "error" in answer:
            self.close()
            raise ToolchainError(component=self.component, target=self.target, stage=stage, reason=f"{self.path}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Ends the child and removes what it was given."""
        process, folder, self.process, self.folder = self.process, self.folder, None, None
        if process is not None:
            if process.stdin is not None:
                process.stdin.close()
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if folder is not None:
            folder.cleanup()
