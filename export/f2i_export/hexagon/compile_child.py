"""Runs one compilation in a child process: with a limit of time and of memory, a log, and one line for whatever goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from f2i_runtime.child_process import python_child
from f2i_runtime.errors import ToolchainError, UsageError
from f2i_runtime.files import cache_root
from f2i_runtime.hexagon.chips import Chip
from f2i_runtime.hexagon.qnn_provider import find_wheel, provider_options
from f2i_runtime.locks import claim, sweep

from f2i_export.hexagon.compiler_profile import CompilerEstimate, read_profile

GIB = 1 << 30
POLL_SECONDS = 0.05
LABEL = "hexagon"
WORKING = "compile"
"""What a child's working folder in the cache is staged for; one whose parent died is removed by the next compilation."""


@dataclass(frozen=True)
class Limits:
    """What a child may take: seconds, and bytes of resident memory. 0 bytes: nine tenths of what is free when it starts."""

    seconds: float = 1800.0
    memory_bytes: int = 0


@dataclass(frozen=True)
class CompileRequest:
    """A graph to compile: its name for errors, its file, the precision, the chip, and a sample input file (``.npz``) that scales are found on.

    ``quantized``: the graph is in its precision already, and is compiled as it is.
    """

    label: str
    model: Path
    precision: str
    chip: Chip
    sample: Path | None = None
    limits: Limits = field(default=Limits())
    quantized: bool = False


@dataclass(frozen=True)
class CompiledContext:
    """What became of a graph: the number of its ops that the NPU takes, which is all of them, the partitions that they lie in, and the files, by what
    each is: ``graph`` and ``binary``."""

    ops: int
    partitions: int
    files: dict[str, Path]


def estimate_graph(request: CompileRequest) -> CompilerEstimate:
    """Returns what the compiler expects one run of the graph to cost. Nothing of the graph is run on an NPU.

    Raises ToolchainError, with the log, where the compiler refuses the graph, crashes, takes too long or too much memory, or gives no estimate.
    """
    with _compiled(request, context=False) as (result, log, _):
        estimate = read_profile(result.get("profile", ()))
        if estimate is None:
            raise _failure(request, "the compiler gave no estimate", log)
        return estimate


def compile_context(request: CompileRequest, folder: Path) -> CompiledContext:
    """Compiles a graph for the chip into a context binary, beside a graph of one op that names it; both are moved into ``folder`` when they are complete.

    No op may stay on the CPU. Raises ToolchainError as :func:`estimate_graph` does.
    """
    with _compiled(request, context=True) as (result, log, made):
        graph, binaries = made / result["context"], [path for path in made.glob("*.bin") if path.is_file()]
        if not graph.is_file() or len(binaries) != 1:
            raise _failure(request, f"expected one graph and one context binary, got {len(binaries)} binaries", log)
        files = {"graph": folder / graph.name, "binary": folder / binaries[0].name}
        shutil.move(graph, files["graph"])
        shutil.move(binaries[0], files["binary"])
        return CompiledContext(int(result["ops"]), int(result["partitions"]), files)


@contextlib.contextmanager
def _compiled(request: CompileRequest, context: bool) -> Iterator[tuple[dict[str, Any], Path, Path]]:
    """Runs a child; gives its result, its log, and the folder that it wrote to, which is removed afterwards. The log is kept where the block fails."""
    wheel = find_wheel()
    try:
        logs = cache_root() / "logs"
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"{cache_root()}: the cache cannot be written: {e.strerror}; set F2I_CACHE to a folder that can") from e
    sweep(cache_root(), WORKING)
    working = claim(cache_root() / WORKING)
    try:
        folder = working.path
        folder.mkdir()
        content = {
            "model": request.model.name,
            "precision": request.precision,
            "quantized": request.quantized,
            "sample": str(request.sample.absolute()) if request.sample else "",
            "provider": str(wheel.provider),
            "options": provider_options(wheel.backend, request.chip),
            "context": context,
        }
        (folder / "request.json").write_text(json.dumps(content))
        handle, log_name = tempfile.mkstemp(
            prefix=f"hexagon-{request.label.replace('/', '-')}-{request.precision}-", suffix=".log", dir=logs
        )
        log = Path(log_name)
        with os.fdopen(handle, "wb") as sink:
            result = _run(request, folder, sink, log)
        if "error" in result:
            raise _failure(request, result["error"], log)
        yield result, log, folder
    finally:
        working.release()
    log.unlink(missing_ok=True)


def _run(request: CompileRequest, folder: Path, sink: Any, log: Path) -> dict[str, Any]:
    """Starts the child and watches it until it ends. Returns its result.

    It works in the model's own folder: the compiler puts the path that it was given into its output, so the path must not say where this machine keeps it.
    """
    command = [*python_child("f2i_export.hexagon.compile_worker"), str(folder / "request.json"), str(folder / "result.json")]
    limit = request.limits.memory_bytes or int(psutil.virtual_memory().available * 0.9)
    process = subprocess.Popen(
        command,
        cwd=request.model.absolute().parent,
        stdin=subprocess.DEVNULL,
        stdout=sink,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
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
