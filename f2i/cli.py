"""The ``f2i`` command, assembled from the modules in ``f2i/commands``. Each command imports what is heavy when it runs."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer
from f2i_runtime.errors import F2IError
from f2i_runtime.mil.format.coremltools_import import in_our_process

from f2i.commands.bench_command import bench
from f2i.commands.demo_command import demo
from f2i.commands.distill_command import distill
from f2i.commands.doctor_command import doctor
from f2i.commands.estimate_command import estimate
from f2i.commands.export_command import export
from f2i.commands.inspect_command import inspect
from f2i.commands.quantize_command import quantize
from f2i.commands.run_command import run
from f2i.commands.summary_command import summary
from f2i.commands.validate_command import validate
from f2i.commands.verify_command import verify
from f2i.terminal import err, expanded, prepare_streams

COMMANDS: tuple[tuple[str, tuple[Callable[..., None], ...]], ...] = (
    ("Start here", (demo, doctor)),
    ("Make a model", (distill, quantize)),
    ("Make and use a bundle", (export, inspect, verify, run)),
    ("Check and measure a bundle", (validate, summary, bench)),
    ("Before a model is exported or trained", (estimate,)),
)
"""The commands in the order in which a user meets them, under the headings of ``f2i --help``."""
INTERRUPTED = 130

app = typer.Typer(name="f2i", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
for heading, functions in COMMANDS:
    for function in functions:
        app.command(rich_help_panel=heading)(function)


@app.callback()
def _setup(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the warnings of the toolchain, too.")] = False) -> None:
    """Take F2IDiff super-resolution models to phones, and prove what arrives there."""
    if not verbose:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def main() -> NoReturn:
    """Runs the command. Every error that we raise on purpose ends as one line on stderr and its exit code."""
    prepare_streams()
    in_our_process()
    try:
        if (
            app(expanded(sys.argv[1:]), standalone_mode=False) == INTERRUPTED
        ):  # Typer turns Ctrl-C into the code that a shell gives it, and returns it
            raise KeyboardInterrupt
    except F2IError as e:
        err.print(f"f2i: {e}", style="bold red", highlight=False)
        sys.exit(e.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        err.print("f2i: interrupted; finished work is kept, so run the same command again to go on", style="bold red")
        sys.exit(INTERRUPTED)
    except Exception as e:
        message = getattr(e, "format_message", None)
        if type(e).__module__.split(".")[0] in {"click", "typer"} and message is not None:
            err.print(f"f2i: {message()} (see: f2i --help)", style="bold red")
            sys.exit(2)
        raise
    sys.exit(0)


if __name__ == "__main__":
    main()
