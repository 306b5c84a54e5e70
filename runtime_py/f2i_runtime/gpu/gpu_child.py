"""A file on LiteRT's GPU delegate, asked by way of a child process, so that a driver's crash or hang is an error with a log and no more."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from f2i_runtime.errors import UsageError
from f2i_runtime.gpu.drivers import CHOICE, Driver
from f2i_runtime.tile_child import ChildSetup, TileChild

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
        self.inputs, self.driver = subject.inputs, driver
        self.adapter = ""
        """What the driver calls its device; known after the start."""
        self.is_software = True
        self.refused: Refused | None = None
        """What the delegate did not take; known when the start has failed."""
        request = {"model": str(subject.path.absolute()), "inputs": {n: list(s) for n, s in subject.inputs.items()}, "half": half}
        self.child = TileChild(
            ChildSetup(
                name="GPU",
                module="f2i_runtime.gpu.gpu_worker",
                path=subject.path,
                component=subject.component,
                target=subject.target,
                request=request,
                environment=driver.environment,
                seconds=seconds(),
                late=f"; set {TIMEOUT} to wait longer",
                explain=self._explain,
            )
        )

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the output, float32, for inputs by name. Raises ToolchainError."""
        return self.child.run({name: inputs[name] for name in self.inputs})

    def start(self) -> None:
        """Compiles the file in a child unless one runs. Raises ToolchainError, whose reason lists what was refused."""
        self.child.start()
        said = ADAPTER.search(self.child.log())
        self.adapter = said[1] if said else self.driver.name
        self.is_software = not self.driver.is_gpu or bool(said and "Software" in (said[2] or ""))
        if self.driver.is_gpu and self.is_software:
            self.child.fail(
                "load", f"{self.adapter} computes in software, and no GPU was found; set {CHOICE}=software to use the pinned drivers"
            )

    def close(self) -> None:
        """Ends the child and removes what it was given."""
        self.child.close()

    def _explain(self, error: str, log: str) -> str:
        self.refused = read_refusals(log)
        return _reason(error, self.refused)


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
