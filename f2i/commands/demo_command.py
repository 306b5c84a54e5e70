"""``f2i demo``: the whole path on the bundled model and one photo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from f2i_runtime.files import make_folder

from f2i.progress import Steps
from f2i.tables import parity_table
from f2i.terminal import Precisions, Targets, command_line, end, err, names, out, print_table, target_names


def demo(
    out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write to.")] = Path("demo-out"),
    checkpoint: Annotated[str, typer.Option(help="A checkpoint folder, or the name of a bundled model.")] = "nano",
    target: Targets = None,
    precision: Precisions = "fp16,w8a8",
    photo: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A photo of your own. Default: a photo that scikit-image ships.")
    ] = None,
) -> None:
    """Export the bundled model to every target, upscale a photo with each engine, and validate the results.

    Example: `f2i demo --out demo-out`
    """
    from f2i.demo import DemoOptions, run_demo

    make_folder(out_dir)
    with Steps(err) as steps:
        options = DemoOptions(out_dir, checkpoint, target_names(target), names(precision), photo, command_line())
        bundle, report = run_demo(options, steps)
    print_table(parity_table(bundle, report))
    out.print(f"Photos, bundle and reports are in {out_dir}; look at report.html and before_after.png")
    end(report)
