"""``f2i export``: lower a checkpoint to every target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from f2i.progress import Steps
from f2i.tables import artifact_table
from f2i.terminal import Accelerators, CheckpointArgument, Precisions, Targets, TileSize, err, names, print_table, target_names

if TYPE_CHECKING:
    from f2i_runtime.bundle.store import Bundle


def export(
    checkpoint: CheckpointArgument,
    out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="The bundle to write.", show_default=False)],
    target: Targets = None,
    precision: Precisions = "fp16",
    accelerator: Accelerators = "cpu",
    soc: Annotated[
        str | None,
        typer.Option(
            metavar="CHIPS",
            help="The Snapdragon chips that hexagon is compiled for, by model or marketing name, separated by commas. Default: sm8750.",
        ),
    ] = None,
    tile_size: TileSize = 0,
    overlap: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS", help="Pixels that neighbouring tiles share, or auto. Default: a sixteenth of a tile, an eighth for w8a8."
        ),
    ] = None,
    delegate: Annotated[
        str, typer.Option(help="The delegate of ExecuTorch: xnnpack, or another that your ExecuTorch lowers to.")
    ] = "xnnpack",
    keep_fp32: Annotated[
        str | None, typer.Option(metavar="COMPONENT:OP,…", help="Core ML in fp16: the operations to keep in fp32, or auto.")
    ] = None,
    split_above_mb: Annotated[int | None, typer.Option(min=0, metavar="MB", help="Core ML: split larger packages into two.")] = None,
    ios: Annotated[
        int | None, typer.Option(min=16, max=18, help="Core ML: the oldest iOS that the packages must run on. Default: 18; int8 needs 17.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Child processes at a time. 0 takes one per core, as far as memory allows.")] = 0,
) -> None:
    """Export a checkpoint to every target: one bundle, complete or absent. An export that was killed goes on where it stopped.

    Example: `f2i export nano --precision fp16 --out bundle`
    """
    from f2i_export.write_bundle import ExportOptions, export_bundle
    from f2i_runtime.tiling.tile_plan import parse_overlap

    options: tuple[tuple[str, str], ...] = (("delegate", delegate),) if delegate != "xnnpack" else ()
    options += (("keep_fp32", keep_fp32),) if keep_fp32 is not None else ()
    options += (("split_above_mb", str(split_above_mb)),) if split_above_mb is not None else ()
    options += (("ios", str(ios)),) if ios is not None else ()
    with Steps(err) as steps:
        request = ExportOptions(
            checkpoint,
            out_dir,
            target_names(target),
            names(precision),
            tile_size,
            parse_overlap(overlap),
            jobs,
            options,
            names(accelerator),
            names(soc or ""),
        )
        bundle = export_bundle(request, steps.event)
    print_table(artifact_table(bundle))
    _tell_accelerators(bundle)


def _tell_accelerators(bundle: Bundle) -> None:
    """Prints what accelerators do not take of the graphs, what the variants for an NPU would cost there, and under whose licence its compiler was used."""
    from f2i_bench.npu.npu_costs import npu_costs, npu_notes
    from f2i_runtime.hexagon.qnn_provider import find_wheel, licence_line

    from f2i.inspection import graph_lines
    from f2i.npu_view import npu_table

    for line in graph_lines(bundle):
        err.print(line, style="yellow")

    costs = npu_costs(bundle)
    if costs:
        err.print(licence_line(find_wheel()), style="dim")
        print_table(npu_table(costs))
    for note in npu_notes(costs):
        err.print(note, style="yellow")
