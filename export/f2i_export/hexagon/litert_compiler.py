"""LiteRT's own compiler for Qualcomm's NPUs, which comes with ``ai-edge-litert``: a graph of LiteRT's in, one of a single ``DISPATCH_OP`` out.

It is started as a program. ``ai_edge_litert.aot.aot_compile`` would start the same one, but keeps what it says only where it fails, and a graph of which it
leaves ops behind is no failure to it: which they are and why is in its words alone. It needs Qualcomm's libraries, which are those of the installed wheel.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ai_edge_litert.aot.core.common import construct_ld_library_path, get_resource
from ai_edge_litert.aot.vendors.qualcomm.qualcomm_backend import COMPILER_PLUGIN_LIB_PATH
from ai_edge_litert.aot.vendors.qualcomm.target import SocModel
from f2i_runtime.child_process import python_child
from f2i_runtime.errors import ToolchainError, UsageError
from f2i_runtime.hexagon.chips import CHIPS, Chip
from f2i_runtime.hexagon.dispatch_file import DISPATCH, op_names, read_dispatch
from f2i_runtime.hexagon.qnn_libraries import library_path, link_libraries
from f2i_runtime.hexagon.qnn_provider import find_wheel

from f2i_export.hexagon.compile_child import CompileRequest
from f2i_export.hexagon.watched_child import watch, working_folder

TOOL = Path("tools/apply_plugin_main")
INPUT, OUTPUT = "graph", "compiled"
"""The compiler is given names of our own, relative to its working folder: no path of this machine can get into what it writes."""
_VERSION = re.compile(r"Applying plugin with SDK version: (\S+)")
_TAKEN = re.compile(r"selected (\d+) ops, from a total of (\d+) ops. resulted in (\d+) partitions")
_REFUSED = re.compile(r"LiteRT Op #\d+ '([^']+)' \(code=\d+\) (.*)")
_ERROR = re.compile(r"(?:ERROR: |\[ ERROR \]\s+)(.*\S)")
MOST_REASONS = 4


@dataclass(frozen=True)
class CompiledDispatch:
    """The ops of the graph, all of which the NPU takes, and the version of Qualcomm's compiler."""

    ops: int
    compiler: str


def soc_name(chip: Chip) -> str:
    """Returns the name that LiteRT's compiler knows a chip by: ``SA8255`` for the SA8255P. Raises UsageError for a chip that it does not know."""
    known = {soc.value for soc in SocModel}
    name = chip.name.upper()
    name = name if name in known else name.removesuffix("P")
    if name not in known:
        names = ", ".join(c.name for c in CHIPS.values() if {c.name.upper(), c.name.upper().removesuffix("P")} & known)
        raise UsageError(f"{chip.label}: LiteRT's compiler does not know this chip; choose from {names}")
    return name


def compile_dispatch(request: CompileRequest, path: Path) -> CompiledDispatch:
    """Compiles ``request.model``, a file of LiteRT's, for the request's chip, and writes ``path`` when the result is complete: one op and no other.

    Raises UsageError for a chip that the compiler does not know; ToolchainError, with the log, where the compiler crashes, takes too long or too much memory,
    or leaves an op to the CPU, which it then names with the compiler's reason.
    """
    wheel, soc = find_wheel(), soc_name(request.chip)
    given, made_name = (f"{name}{request.model.suffix}" for name in (INPUT, OUTPUT))
    with working_folder(f"{request.label}-{request.precision}-litert") as (folder, log):
        shutil.copyfile(request.model, folder / given)
        place = link_libraries(wheel, folder / "sdk")
        plugin = get_resource(COMPILER_PLUGIN_LIB_PATH)
        command = [
            "/usr/bin/env",
            f"LD_LIBRARY_PATH={library_path(wheel, place, construct_ld_library_path().split(os.pathsep))}",
            str(get_resource(TOOL)),
            "--cmd=apply",
            f"--model={given}",
            f"--o={made_name}",
            "--soc_manufacturer=Qualcomm",
            f"--soc_model={soc}",
            f"--libs={plugin.parent}",
            "--err=--",
        ]
        wrong = watch([*python_child("f2i_export.hexagon.tool_child"), *command], folder, log, request.limits)
        said = log.read_text(encoding="utf-8", errors="replace")
        made = folder / made_name
        reason = wrong and _with_last_error(wrong, said)
        reason = reason or _incomplete(made, said)
        if reason:
            stage = f"compiling in {request.precision}"
            raise ToolchainError(component=request.label, target="LiteRT", stage=stage, reason=reason, log=log)
        taken, version = _TAKEN.findall(said), _VERSION.search(said)
        shutil.move(made, path)
    return CompiledDispatch(sum(int(ops) for ops, _, _ in taken), version[1] if version else "unknown")


def _incomplete(made: Path, said: str) -> str:
    """Returns why the compiled file is not one op of the NPU, or nothing."""
    if not made.is_file():
        return _with_last_error("the compiler wrote no file", said)
    try:
        left = Counter(name for name in op_names(made) if name != DISPATCH)
        if left:
            ops = ", ".join(f"{op} ×{count}" for op, count in sorted(left.items()))
            reasons = list(dict.fromkeys(f"{op} {why.strip()}" for op, why in _REFUSED.findall(said)))[:MOST_REASONS]
            return f"the NPU does not take these ops: {ops}" + (f" ({'; '.join(reasons)})" if reasons else "")
        read_dispatch(made)
    except ValueError as e:
        return f"the compiled file is not whole: {e}"
    return ""


def _with_last_error(reason: str, said: str) -> str:
    errors = _ERROR.findall(said)
    return f"{reason}: {errors[-1]}" if errors else reason
