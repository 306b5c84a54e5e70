"""``f2i validate``: compare every artifact of a bundle with the full-precision reference."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from f2i.progress import Steps
from f2i.tables import parity_table
from f2i.terminal import (
    BundleArgument,
    Images,
    JsonFile,
    OneAccelerator,
    OnePrecision,
    OneTarget,
    RayAddress,
    Threads,
    command_line,
    end,
    err,
    out,
    print_table,
)

SimulatedTiles = Annotated[
    int, typer.Option("--simulated-tiles", min=1, help="The number of tiles on an NPU that is simulated, which takes seconds for each.")
]
SimulatedPhotos = Annotated[
    int,
    typer.Option("--simulated-photos", min=0, help="The number of photos that a simulated NPU upscales beside one tile, four tiles each."),
]


def validate(
    bundle: BundleArgument,
    images: Images = None,
    ground_truth: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder of high-resolution photos that have the same names as those of --images.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Compare with the reference of this bundle, instead of the bundle's own.")
    ] = None,
    target: OneTarget = None,
    precision: OnePrecision = None,
    accelerator: OneAccelerator = None,
    num_tiles: Annotated[int, typer.Option(min=1, help="The number of tiles that each component is compared on.")] = 16,
    num_photos: Annotated[int, typer.Option(min=1, help="The number of photos that are upscaled whole.")] = 2,
    simulated_tiles: SimulatedTiles = 1,
    simulated_photos: SimulatedPhotos = 0,
    threads: Threads = 0,
    find_bad_op: Annotated[
        bool, typer.Option("--find-bad-op", help="Core ML: name the first operation out of tolerance, and the operations to keep in fp32.")
    ] = False,
    ray: RayAddress = None,
    json_file: JsonFile = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the gates to this file as JUnit XML.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a report to look at: one page that works offline.")] = None,
    bench_file: Annotated[
        Path | None, typer.Option("--bench", metavar="FILE", help="With --html: show these results of `f2i bench --json`, too.")
    ] = None,
) -> None:
    """Compare every artifact with the full-precision reference, on tiles of real photos. The exit code is 1 when a gate failed.

    Example: `f2i validate bundle --images photos --json parity.json --html report.html`
    """
    from f2i_runtime.bundle.store import open_bundle
    from f2i_runtime.targets import find_target
    from f2i_runtime.validation.validate_options import ValidateOptions

    from f2i.commands.validation_run import ValidationOutputs, run_validation

    opened = open_bundle(bundle)
    options = ValidateOptions(
        images,
        ground_truth,
        open_bundle(against) if against else None,
        target,
        precision,
        num_tiles,
        num_photos,
        threads=threads,
        find_bad_op=find_bad_op,
        accelerator=accelerator,
        simulated_tiles=simulated_tiles,
        simulated_photos=simulated_photos,
    )
    with Steps(err) as steps:
        report = run_validation(opened, options, ValidationOutputs(json_file, junit, html, bench_file), ray, command_line(), steps.count)
    for row in report.bad_ops or ():
        if source := find_target(row.target).source:
            out.print("\n".join(source.load("naming a bad operation").describe(row)))
    print_table(parity_table(opened, report))
    end(report)
