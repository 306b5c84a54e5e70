"""``f2i summary``: a validation as a Markdown table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def summary(
    report: Annotated[Path, typer.Argument(help="What `f2i validate --json` wrote.", show_default=False)],
    before: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What it wrote for the last release. Changes since then are shown.")
    ] = None,
) -> None:
    """Print a validation as a Markdown table, for a pull request.

    Example: `f2i summary parity.json --before release-parity.json`
    """
    from f2i_runtime.validation.results import read_report

    from f2i.result_views import markdown

    sys.stdout.write(markdown(read_report(report), read_report(before) if before else None))
