"""What all commands share: where they print, the options that several of them take, and how they end."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from f2i_runtime.errors import GateError
from f2i_runtime.targets import TARGETS, targets
from rich.console import Console
from rich.table import Table

from f2i.result_views import gate_line, verdict

if TYPE_CHECKING:
    from f2i_runtime.validation.results import Report

WIDE = None if sys.stdout.isatty() else 140  # a pipe has no width of its own; tables must not fold in it


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Returns a console that prints text as it is, whoever wrote it: ``[edited]`` is no markup, ``:x:`` no picture, and no path is folded."""
    return Console(stderr=stderr, width=width, markup=False, emoji=False, soft_wrap=True)


out, err = console(width=WIDE), console(stderr=True)

BundleArgument = Annotated[Path, typer.Argument(help="A bundle, as `f2i export` writes it.", show_default=False)]
CheckpointArgument = Annotated[
    str,
    typer.Argument(
        help="A checkpoint folder in Diffusers format, or the name of a model: nano, tiny, mobile or paper.", show_default=False
    ),
]
Targets = Annotated[
    str | None,
    typer.Option("--target", metavar="NAMES", help=f"One or more of {', '.join(TARGETS)}, separated by commas. Default: every target."),
]
Precisions = Annotated[str, typer.Option("--precision", help="One or more precisions, separated by commas, for example fp16,w8a8.")]
Accelerators = Annotated[
    str,
    typer.Option(
        "--accelerator", metavar="NAMES", help="One or more accelerators that every target has, separated by commas: cpu, hexagon."
    ),
]
OneTarget = Annotated[str | None, typer.Option("--target", help="Use only this target.")]
OneAccelerator = Annotated[
    str | None,
    typer.Option(
        "--accelerator",
        help="Use only this accelerator, such as cpu, hexagon, hexagon_sm8750, or gpu: LiteRT's files for the CPU, on a GPU.",
    ),
]
OnePrecision = Annotated[str | None, typer.Option("--precision", help="Use only this precision.")]
Images = Annotated[
    Path | None, typer.Option("--images", metavar="DIR", help="A folder of photos. Default: the photos that scikit-image ships.")
]
TileSize = Annotated[
    int, typer.Option("--tile-size", min=0, metavar="PIXELS", help="The side of an input tile. 0 takes the size that the checkpoint names.")
]
Threads = Annotated[int, typer.Option("--threads", min=0, max=256, help="Threads of the engine. 0 takes the engine's own default.")]
RayAddress = Annotated[
    str | None, typer.Option("--ray", metavar="ADDRESS", help="Spread the work over this Ray cluster. `local` starts one on this machine.")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of a table.")]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the results to this file as JSON.")]


def command_line() -> list[str]:
    """Returns the command line as a reader would repeat it."""
    return ["f2i", *sys.argv[1:]]


_PLAIN = {"–": "-", "×": "x", "÷": "/", "→": "->", "…": "...", "∞": "inf", "·": "|", "°": " deg", "✅": "(passed)", "❌": "(failed)"}
_PLAIN |= {"⚠": "(!)", "\ufe0f": "", "│": "|", "─": "-"}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Returns what stands for signs that a stream cannot encode, in ASCII: a sign that means the same, or its number."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    return "".join(_PLAIN[s] if s in _PLAIN else s.encode("ascii", "backslashreplace").decode() for s in signs), error.end


def prepare_streams() -> None:
    """Makes stdout and stderr print every text: on an ASCII console, and file names that are no text in the console's encoding."""
    codecs.register_error("f2i_plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="f2i_plain")


def expanded(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments with the home folder for the tilde in ``--out=~/x``, which shells leave as it is."""
    pieces = [argument.partition("=") for argument in arguments]
    return [
        f"{name}={os.path.expanduser(value)}" if name.startswith("--") and sign else name + sign + value for name, sign, value in pieces
    ]


def print_table(table: Table) -> None:
    """Prints a table, which folds its own cells."""
    out.print(table, soft_wrap=False)


def names(value: str) -> tuple[str, ...]:
    """Returns the names in a text that separates them by commas, each once and in their order."""
    return tuple(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))


def target_names(value: str | None) -> tuple[str, ...]:
    """Returns the targets that an option names; every target that is known here without one."""
    return tuple(targets()) if value is None else names(value)


def print_json(data: dict[str, Any]) -> None:
    """Prints a record on stdout as JSON."""
    sys.stdout.write(json.dumps(data, indent=1, allow_nan=False) + "\n")


def end(report: Report) -> None:
    """Prints the gates that failed, or that all passed. Raises GateError when one failed."""
    for gate in report.failed():
        err.print(f"gate failed: {gate_line(gate)}", style="red", soft_wrap=True, markup=False)
    if not report.passed:
        raise GateError(verdict(report))
    out.print(verdict(report))
