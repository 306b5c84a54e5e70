"""Runs one compilation in a child process: with a limit of time and of memory, a log, and one line for whatever goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from f2i_runtime.child_process import python_child
from f2i_runtime.errors import ToolchainError, UsageError
from f2i_runtime.files import cache_root

from f2i_export.hexagon.chips import Chip
from f2i_export.hexagon.compiler_profile import CompilerEstimate, read_profile
from f2i_export.hexagon.qnn_provider import find_wheel, provider_options

GIB = 1 << 30
POLL_SECONDS = 0.05
LABEL = "hexagon"


@dataclass(frozen=True)
class Limits:
    """What a child may take: seconds, and bytes of resident memory. 0 bytes: nine tenths of what is free when it starts."""

    seconds: float = 1800.0
    memory_bytes: int = 0


@dataclass(frozen=True)
class CompileRequest:
    """A graph to compile: its name for errors, its file, the precision, the chip, and a sample input file (``.npz``) that scales are found on."""

    label: str
    model: Path
    precision: str
    chip: Chip
    sample: Path | None = None
    limits: Limits = field(default=Limits())


def estimate_graph(request: CompileRequest) -> CompilerEstimate:
    """Returns what the compiler expects one run of the graph to cost. Nothing of the graph is run on an NPU.

    Raises ToolchainError, with the log, where the compiler refuses the graph, crashes, takes too long or too much memory, or gives no estimate.
    """
    wheel = find_wheel()
    try:
        logs = cache_root() / "logs"
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"{cache_root()}: the cache cannot be written: {e.strerror}; set F2I_CACHE to a folder that can") from e
    with tempfile.TemporaryDirectory(prefix="f2i-hexagon-") as name:
        folder = Path(name)
        content = {
            "model": str(request.model.absolute()),
            "precision": request.precision,
            "sample": str(request.sample) if request.sample else "",
            "provider": str(wheel.provider),
            "options": provider_options(wheel.backend, request.chip),
        }
        (folder / "request.json").write_text(json.dumps(content))
        handle, log_name = tempfile.mkstemp(
            prefix=f"hexagon-{request.label.replace('/', '-')}-{request.precision}-", suffix=".log", dir=logs
        )
        log = Path(log_name)
        with os.fdopen(handle, "wb") as sink:
            result = _run(request, folder, sink, log)
        estimate = read_profile(result.get("profile", ()))
        if "error" in result or estimate is None:
            raise _failure(request, result.get("error", "the compiler gave no estimate"), log)
    log.unlink(missing_ok=True)
    return estimate


def _run(request: CompileRequest, folder: Path, sink: Any, log: Path) -> dict[str, Any]:
    """Starts the child and watches it until it ends. Returns its result."""
    command = [*python_child("f2i_export.hexagon.compile_worker"), "request.json", str(folder / "result.json")]
    limit = request.limits.memory_bytes or int(psutil.virtual_memory().available * 0.9)
    process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True)
    began = time.monotonic()
    try:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            if time.monotonic() - began > request.limits.seconds:
                raise _failure(request, f"it took more than {request.limits.seconds:g} s and was ended; try a smaller tile", log)
            if (used := _resident(process.pid)) > limit:
                reason = f"it took {used / GIB:.1f} GiB of memory, more than {limit / GIB:.1f}, and was ended; try a smaller tile"
                raise _failure(request, reason, log)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode:
        raise _failure(request, _ending(process.returncode), log)
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def _resident(pid: int) -> int:
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


def _ending(code: int) -> str:
    if code == -signal.SIGKILL:
        return "the compiler's process was killed (most likely by the system, for want of memory)"
    return f"the compiler's process was ended by signal {-code}" if code < 0 else f"the compiler's process ended with code {code}"


def _failure(request: CompileRequest, reason: str, log: Path) -> ToolchainError:
    return ToolchainError(component=request.label, target=LABEL, stage=f"compiling in {request.precision}", reason=reason, log=log)
