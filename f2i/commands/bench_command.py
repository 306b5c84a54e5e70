"""``f2i bench``: latency, memory and load time of every variant on a device."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from f2i_runtime.files import write_json

from f2i.progress import Steps
from f2i.terminal import BundleArgument, JsonFile, OneAccelerator, OnePrecision, OneTarget, err, out, print_table


def bench(
    bundle: BundleArgument,
    device: Annotated[str, typer.Option(help="host, arm64, adb, adb:SERIAL or apple.")] = "host",
    target: OneTarget = None,
    precision: OnePrecision = None,
    accelerator: OneAccelerator = None,
    warmup: Annotated[int, typer.Option(min=0, help="The number of runs before the first one that is timed.")] = 10,
    runs: Annotated[int, typer.Option(min=1, help="The number of timed runs, in ten rounds that alternate with the other variants.")] = 50,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.1, help="The most time for one row. Default: 6, or less where many rows share 80 seconds.", show_default=False),
    ] = None,
    threads: Annotated[str, typer.Option(help="Numbers of threads, separated by commas.")] = "2,1",
    sustained: Annotated[
        float, typer.Option(min=0, metavar="MINUTES", help="Run tiles without a pause for so long, and log temperature and clocks.")
    ] = 0.0,
    max_temp: Annotated[
        float | None, typer.Option(metavar="CELSIUS", help="Start a round only when the device is cooler than this.")
    ] = None,
    megapixels: Annotated[
        str, typer.Option(help="Sizes of whole photos to predict the time for, separated by commas. Empty: none.")
    ] = "12,50,200",
    json_file: JsonFile = None,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Earlier --json results of the same device. Shows what is faster, slower or inconclusive."),
    ] = None,
    runner: Annotated[
        list[Path] | None,
        typer.Option(help="adb: executor_runner, benchmark_model, onnxruntime_perf_test, a package that holds one, or one of your own."),
    ] = None,
) -> None:
    """Measure the latency and its interval, load time, memory and share of the machine's limit, for every variant and component.

    Example: `f2i bench bundle --json bench.json --baseline last-release.json`
    """
    from f2i_bench.bench import BenchOptions, end_bench, json_path, run_bench
    from f2i_bench.core.protocol import read_bench, with_baseline
    from f2i_runtime.bundle.store import open_bundle
    from f2i_runtime.targets import Selection

    from f2i.bench_tables import bench_notes, bench_table, compared_table

    only = Selection(target, precision, accelerator)
    options = BenchOptions(device, only, warmup, runs, seconds, threads, sustained, max_temp, megapixels, tuple(runner or ()))
    before = read_bench(baseline) if baseline else None
    with Steps(err) as steps:
        reports = run_bench(open_bundle(bundle), options, steps.count)
    for report in reports:
        if before:
            report = with_baseline(report, before, str(baseline))
        if json_file:
            write_json(json_path(json_file, report, len(reports)), report.as_json())
        print_table(bench_table(report))
        for note in bench_notes(report):
            out.print(note)
        if report.compared:
            print_table(compared_table(report))
    end_bench(reports)
