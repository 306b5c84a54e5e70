"""``f2i estimate``: what a model would cost on the NPU of a phone, before it is exported or even trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from f2i_runtime.files import write_json

from f2i.progress import Steps
from f2i.terminal import JsonFile, err, names, out, print_table


def estimate(
    models: Annotated[
        list[str],
        typer.Argument(
            help="Checkpoint folders in Diffusers format, names of models (nano, pico, mobile, …; those without weights get random ones), or ONNX files.",
            metavar="MODEL…",
            show_default=False,
        ),
    ],
    tile_size: Annotated[int, typer.Option(min=1, metavar="PIXELS", help="The side of an input tile. An ONNX file has its own.")] = 128,
    precision: Annotated[str, typer.Option(help="One or more of fp16, w8a8 and w8a16, separated by commas.")] = "fp16",
    soc: Annotated[
        str, typer.Option(metavar="CHIP", help="A chip that Qualcomm's compiler has cost tables for: sa8255p or qcs9100.")
    ] = "sa8255p",
    json_file: JsonFile = None,
    quality: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help='PSNR of models as JSON, {"MODEL": dB}, for the table and the picture. The bundled models have theirs.'
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write an SVG picture: quality against estimated milliseconds, where a quality is known."),
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="The most time for the compilation of one component.")] = 1800.0,
) -> None:
    """Estimate a model's latency and memory traffic on Snapdragon's NPU, with Qualcomm's own compiler and without a phone. Nothing is measured.

    Example: `f2i estimate nano pico --precision fp16,w8a8 --json estimate.json --picture estimate.svg`
    """
    from f2i_bench.npu.estimate import EstimateOptions, check_options, estimate_models
    from f2i_bench.npu.estimate_records import read_qualities
    from f2i_bench.npu.subjects import subject
    from f2i_export.hexagon.watched_child import Limits
    from f2i_runtime.hexagon.qnn_provider import find_wheel, licence_line

    from f2i.estimate_tables import estimate_notes, estimate_table, precise_table
    from f2i.report.estimate_chart import check_picture, write_picture

    options = EstimateOptions(names(precision), soc, Limits(timeout))
    check_options(options)
    err.print(licence_line(find_wheel()), style="dim")
    qualities = read_qualities(quality) if quality else {}
    with Steps(err) as steps:
        report = estimate_models([subject(model, tile_size) for model in models], options, steps.count, qualities)
    print_table(estimate_table(report))
    print_table(precise_table(report))
    for note in estimate_notes(report):
        out.print(note)
    if json_file:
        write_json(json_file, report.as_json())
    if picture:
        check_picture(report)
        write_picture(picture, report)
