"""A child process that computes tiles, for engines that can crash or hang: its death is an error with a log and no more.

The child's side is :mod:`f2i_runtime.tile_answers`. Both share a folder: a tile goes there as ``.npz``, and its output comes back beside it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from f2i_runtime.child_process import python_child
from f2i_runtime.errors import ToolchainError
from f2i_runtime.files import cache_root


@dataclass(frozen=True)
class ChildSetup:
    """Which child is started, for what, and what errors say of it."""

    name: str
    """What errors and logs call it: ``simulator``."""
    module: str
    """What it runs; it calls :func:`f2i_runtime.tile_answers.answer_tiles`."""
    path: Path
    """The artifact."""
    component: str
    target: str
    request: Mapping[str, Any]
    """What the child needs to open the artifact, as JSON."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Beside this process's own."""
    seconds: float | None = None
    """The most that one answer may take; None: no limit."""
    late: str = ""
    """What to do where an answer comes too late, such as ``; set NAME to wait longer``."""
    explain: Callable[[str, str], str] = lambda error, _log: error
    """Makes the reason of an error from the child's words and its log."""


class TileChild:
    """The child starts with :meth:`start`, or with the first tile. One thread calls it at a time."""

    def __init__(self, setup: ChildSetup) -> None:
        self.setup = setup
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Path:
        """Starts the child unless it runs; returns the folder that is shared with it. Raises ToolchainError where it cannot open the artifact."""
        if self.folder is not None and self.process is not None:
            return Path(self.folder.name)
        self.folder = tempfile.TemporaryDirectory(prefix=f"f2i-{self.setup.name}-")
        folder = Path(self.folder.name)
        (folder / "request.json").write_text(json.dumps(dict(self.setup.request)))
        command = [*python_child(self.setup.module), str(folder / "request.json")]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                env={**os.environ, **self.setup.environment},
            )
        self._ask("", "load")
        return folder

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the output for inputs by the artifact's own names, in calling order. Raises ToolchainError."""
        folder = self.start()
        np.savez(folder / "tile.npz", **{name: np.ascontiguousarray(value) for name, value in inputs.items()})  # type: ignore[arg-type]
        self._ask(f"{folder / 'tile.npz'}\n", "run")
        return np.asarray(np.load(folder / "tile.npy"))

    def log(self) -> str:
        """Returns what the libraries have printed so far."""
        return (Path(self.folder.name) / "log").read_text(errors="replace") if self.folder else ""

    def _ask(self, line: str, stage: str) -> None:
        process = self.process
        if process is None or process.stdin is None or process.stdout is None:
            self.fail(stage, f"the {self.setup.name}'s process was closed")
            return
        try:
            process.stdin.write(line.encode())
            process.stdin.flush()
            said = _line(process, self.setup.seconds)
        except OSError:
            said = b""
        if said is None:
            self.fail(stage, f"the {self.setup.name}'s process did not answer within {self.setup.seconds:g} s{self.setup.late}")
            return
        answer = json.loads(said) if said else {"error": f"the {self.setup.name}'s process ended with code {process.wait()}"}
        if "error" in answer:
            self.fail(stage, self.setup.explain(answer["error"], self.log()))

    def fail(self, stage: str, reason: str) -> None:
        """Keeps the log, ends the child and raises ToolchainError."""
        logs = cache_root() / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        descriptor, kept = tempfile.mkstemp(prefix=f"{self.setup.name.lower()}-{self.setup.component}-", suffix=".log", dir=logs)
        os.close(descriptor)
        if self.folder is not None:
            shutil.copyfile(Path(self.folder.name) / "log", kept)
        self.close()
        raise ToolchainError(
            component=self.setup.component, target=self.setup.target, stage=stage, reason=f"{self.setup.path}: {reason}", log=Path(kept)
        )

    def close(self) -> None:
        """Ends the child and removes what it was given."""
        process, folder, self.process, self.folder = self.process, self.folder, None, None
        if process is not None:
            if process.stdin is not None:
                # What was written to a child that died is still in the pipe's buffer, and closing would write it.
                with contextlib.suppress(OSError):
                    process.stdin.close()
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if folder is not None:
            folder.cleanup()


def _line(process: subprocess.Popen[bytes], patience: float | None) -> bytes | None:
    """Returns the child's next line, empty where it has ended; None where none came in time."""
    stream = process.stdout
    if stream is None:
        return b""
    with selectors.DefaultSelector() as waiting:
        waiting.register(stream, selectors.EVENT_READ)
        return stream.readline() if waiting.select(patience) else None
