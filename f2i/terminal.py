"""What all commands share: where they print, the options they have in common, and how a list of gates ends."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from f2i_runtime.errors import GateError
from rich.console import Console

from f2i.tables import figure

if TYPE_CHECKING:
    from f2i_runtime.validation.validate import Report

WIDE = None if sys.stdout.isatty() else 140  # a pipe has no width of its own; tables must not fold in it
out, err = Console(width=WIDE), Console(stderr=True)

Targets = Annotated[str, typer.Option("--target", help="Comma-separated: coreml, executorch, tflite, onnx.")]
Precisions = Annotated[str, typer.Option("--precision", help="Comma-separated: fp32, fp16, w8a8, …")]
BundleArgument = Annotated[Path, typer.Argument(help="A bundle, as `f2i export` writes it.", show_default=False)]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Threads = Annotated[int, typer.Option(min=0, max=256, help="Engine threads; 0 takes the engine's default.")]


def command_line() -> list[str]:
    """The command line as a reader repeats it."""
    return ["f2i", *sys.argv[1:]]


def end(report: Report) -> None:
    """Prints the gates that fell, or that all hold. Raises GateError when one fell."""
    fallen = [g for g in report.gates if not g["passed"]]
    for gate in fallen:
        err.print(f"gate fell: {gate['name']} is {figure(gate['value'], 3)}, limit {gate['limit']}", style="red", soft_wrap=True)
    if fallen:
        raise GateError(f"{len(fallen)} of {len(report.gates)} gates fell")
    out.print(f"all {len(report.gates)} gates hold")
