"""Runs one compilation in a child process: with a limit of time and of memory, a log, and one line for whatever goes wrong."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from f2i_runtime.child_process import python_child
from f2i_runtime.errors import ToolchainError
from f2i_runtime.hexagon.chips import Chip
from f2i_runtime.hexagon.qnn_provider import find_wheel, provider_options

from f2i_export.hexagon.compiler_profile import CompilerEstimate, read_profile
from f2i_export.hexagon.watched_child import Limits, watch, working_folder

LABEL = "hexagon"


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
    integer_layers: int
    """Convolutions and products whose stored weight is in integers."""
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
        return CompiledContext(int(result["ops"]), int(result["partitions"]), int(result["integer_layers"]), files)


@contextlib.contextmanager
def _compiled(request: CompileRequest, context: bool) -> Iterator[tuple[dict[str, Any], Path, Path]]:
    """Runs a child; gives its result, its log, and the folder that it wrote to, which is removed afterwards. The log is kept where the block fails."""
    wheel = find_wheel()
    with working_folder(f"{request.label}-{request.precision}") as (folder, log):
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
        result = _run(request, folder, log)
        if "error" in result:
            raise _failure(request, result["error"], log)
        yield result, log, folder


def _run(request: CompileRequest, folder: Path, log: Path) -> dict[str, Any]:
    """Starts the child and watches it until it ends. Returns its result.

    It works in the model's own folder: the compiler puts the path that it was given into its output, so the path must not say where this machine keeps it.
    """
    command = [*python_child("f2i_export.hexagon.compile_worker"), str(folder / "request.json"), str(folder / "result.json")]
    wrong = watch(command, request.model.absolute().parent, log, request.limits)
    if wrong:
        raise _failure(request, wrong, log)
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


def _failure(request: CompileRequest, reason: str, log: Path) -> ToolchainError:
    return ToolchainError(component=request.label, target=LABEL, stage=f"compiling in {request.precision}", reason=reason, log=log)
