"""A file on LiteRT's GPU delegate, asked by way of a child process, so that a driver's crash or hang is an error with a log and no more."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from f2i_runtime.child_process import python_child
from f2i_runtime.errors import ToolchainError, UsageError
from f2i_runtime.files import cache_root
from f2i_runtime.gpu.drivers import CHOICE, Driver

TIMEOUT = "F2I_GPU_SECONDS"
"""The environment variable with the most seconds that the driver may take for one answer."""
SECONDS = 900.0
"""The same where it is not set: a software driver translates the shaders of a large graph for minutes, the first time."""
ADAPTER = re.compile(r"Selected adapter: (.*?)(?:, arch=.*adapterType=(.*))?$", re.M)
REFUSED = "Following operations are not supported by GPU delegate:"
COUNTS = re.compile(r"^(\d+) operations will run on the GPU, and the remaining (\d+) operations", re.M)


@dataclass(frozen=True)
class Refusal:
    """An op that the delegate does not take: its kind, the delegate's words, and its place in the model, empty where the delegate does not say."""

    op: str
    words: str
    place: str


@dataclass(frozen=True)
class Refused:
    """What the delegate said of a file that it did not take whole: how many ops it would take, how many not, and why."""

    taken: int
    left: int
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True)
class GpuFile:
    """What is run: a file, the component that it is, its target, and the inputs' shapes in calling order."""

    path: Path
    component: str
    target: str
    inputs: Mapping[str, tuple[int, ...]]


class GpuChild:
    """A file on the GPU. The child starts with :meth:`start`, or with the first input."""

    def __init__(self, subject: GpuFile, half: bool, driver: Driver) -> None:
        self.path, self.component, self.target, self.inputs = subject.path, subject.component, subject.target, subject.inputs
        self.half, self.driver = half, driver
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.adapter = ""
        """What the driver calls its device; known after the start."""
        self.is_software = True
        self.refused: Refused | None = None
        """What the delegate did not take; known when the start has failed."""

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the output, float32, for inputs by name. Raises ToolchainError."""
        folder = self.start()
        np.savez(folder / "tile.npz", **{name: np.ascontiguousarray(inputs[name]) for name in self.inputs})  # type: ignore[arg-type]
        self._ask(f"{folder / 'tile.npz'}\n", "run")
        return np.asarray(np.load(folder / "tile.npy"))

    def start(self) -> Path:
        """Compiles the file in a child unless one runs; returns the folder that is shared with it. Raises ToolchainError, whose reason lists what was refused."""
        if self.folder is not None and self.process is not None:
            return Path(self.folder.name)
        self.folder = tempfile.TemporaryDirectory(prefix="f2i-gpu-")
        folder = Path(self.folder.name)
        request = {"model": str(self.path.absolute()), "inputs": {n: list(s) for n, s in self.inputs.items()}, "half": self.half}
        (folder / "request.json").write_text(json.dumps(request))
        with (folder / "log").open("wb") as log:
            command = [*python_child("f2i_runtime.gpu.gpu_worker"), str(folder / "request.json")]
            environment = os.environ | self.driver.environment
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=folder, env=environment)
        self._ask("", "load")
        said = ADAPTER.search(self.log())
        self.adapter = said[1] if said else self.driver.name
        self.is_software = not self.driver.is_gpu or bool(said and "Software" in (said[2] or ""))
        if self.driver.is_gpu and self.is_software:
            self._fail(
                "load", f"{self.adapter} computes in software, and no GPU was found; set {CHOICE}=software to use the pinned drivers"
            )
        return folder

    def log(self) -> str:
        """Returns what the libraries have printed so far."""
        return (Path(self.folder.name) / "log").read_text(errors="replace") if self.folder else ""

    def _ask(self, line: str, stage: str) -> None:
        process = self.process
        if process is None or process.stdin is None or process.stdout is None:
            raise ToolchainError(component=self.component, target=self.target, stage=stage, reason="the GPU's process was closed")
        try:
            process.stdin.write(line.encode())
            process.stdin.flush()
            said = _line(process, seconds())
        except OSError:
            said = b""
        if said is None:
            self._fail(stage, f"{self.driver.name} did not answer within {seconds():g} s; set {TIMEOUT} to wait longer")
        answer: dict[str, Any] = json.loads(said) if said else {"error": f"the GPU's process ended with code {process.wait()}"}
        if "error" in answer:
            self.refused = read_refusals(self.log())
            self._fail(stage, _reason(answer["error"], self.refused))

    def _fail(self, stage: str, reason: str) -> None:
        """Keeps the log, ends the child and raises ToolchainError."""
        logs = cache_root() / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        descriptor, kept = tempfile.mkstemp(prefix=f"gpu-{self.component}-", suffix=".log", dir=logs)
        os.close(descriptor)
        if self.folder is not None:
            shutil.copyfile(Path(self.folder.name) / "log", kept)
        self.close()
        raise ToolchainError(component=self.component, target=self.target, stage=stage, reason=f"{self.path}: {reason}", log=Path(kept))

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


def seconds() -> float:
    """Returns the most seconds that one answer may take. Raises UsageError for a setting that is no such number."""
    text = os.environ.get(TIMEOUT, str(SECONDS))
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageError(f"{TIMEOUT}={text!r}: expected a number of seconds above 0")
    return value


def read_refusals(log: str) -> Refused | None:
    """Returns what the delegate refused, from LiteRT's log; None where it took everything."""
    if REFUSED not in log:
        return None
    listed = log.split(REFUSED, 1)[1]
    counts = COUNTS.search(listed)
    lines = (listed[: counts.start()] if counts else listed).splitlines()
    found = [m for m in (re.match(r"^([A-Z][A-Z0-9_]*): (.*?)(?:\. (\S+))?$", line.strip()) for line in lines) if m]
    refusals = tuple(Refusal(m[1], m[2].rstrip("."), m[3] or "") for m in found)
    return Refused(int(counts[1]) if counts else 0, int(counts[2]) if counts else len(refusals), refusals)


def _reason(error: str, found: Refused | None) -> str:
    """Returns why a file did not compile or run: what the delegate refused where it says so, else the error."""
    if found is None:
        return error
    kinds = dict.fromkeys(f"{r.op}: {r.words}" for r in found.refusals)
    every = found.taken + found.left
    return f"the GPU delegate leaves {found.left} of {every} operations, and nothing runs on the CPU instead: {'; '.join(kinds)}"


def _line(process: subprocess.Popen[bytes], patience: float) -> bytes | None:
    """Returns the child's next line, empty where it has ended; None where none came in time."""
    stream = process.stdout
    if stream is None:
        return b""
    with selectors.DefaultSelector() as waiting:
        waiting.register(stream, selectors.EVENT_READ)
        return stream.readline() if waiting.select(patience) else None
