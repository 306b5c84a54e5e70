"""The commands that judge a bundle: ``validate``, ``summary`` and ``bench``. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from f2i_runtime.files import write_json

from f2i.progress import Steps
from f2i.tables import parity_table
from f2i.terminal import BundleArgument, Threads, command_line, end, err, out

commands = typer.Typer(rich_markup_mode="markdown")


@commands.command()
def validate(
    bundle: BundleArgument,
    images: Annotated[Path | None, typer.Option(help="Photos to cut tiles from; default: those scikit-image ships.")] = None,
    hr: Annotated[Path | None, typer.Option(help="High-resolution truth, same names as --images.")] = None,
    against: Annotated[Path | None, typer.Option(help="Compare with this bundle's reference instead.")] = None,
    target: Annotated[str | None, typer.Option(help="Only this target.")] = None,
    precision: Annotated[str | None, typer.Option(help="Only this precision.")] = None,
    tiles: Annotated[int, typer.Option(min=1, help="Tiles per component.")] = 16,
    photos: Annotated[int, typer.Option(min=1, help="Photos to stitch.")] = 2,
    threads: Threads = 0,
    locate: Annotated[bool, typer.Option("--locate", help="Core ML: name the first op out of band, and the ops to keep in fp32.")] = False,
    ray: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Judge variants on a Ray cluster; `local` starts one here.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the report as JSON.")] = None,
    junit: Annotated[Path | None, typer.Option(help="Write the gates as JUnit XML.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a report to look at: one offline page.")] = None,
    bench_file: Annotated[Path | None, typer.Option("--bench", help="With --html: show what `f2i bench --json` wrote beside it.")] = None,
) -> None:
    """Every artifact against the full-precision reference, on real photo tiles. Exit code 1 when a gate falls.

    Example: `f2i validate bundle --images photos --json parity.json --html report.html`
    """
    from f2i_runtime.bundle.store import open_bundle
    from f2i_runtime.validation.coreml_findings import describe
    from f2i_runtime.validation.validate import ValidateOptions

    from f2i.commands.validation_run import ValidationOutputs, run_validation

    opened = open_bundle(bundle)
    other = open_bundle(against) if against else None
    options = ValidateOptions(images, hr, other, target, precision, tiles, photos, threads=threads, locate=locate)
    with Steps(err) as steps:
        report = run_validation(opened, options, ValidationOutputs(json_file, junit, html, bench_file), ray, command_line(), steps.count)
    for row in report.located or []:
        out.print("\n".join(describe(row)), soft_wrap=True, markup=False)
    out.print(parity_table(opened, report))
    end(report)


@commands.command()
def summary(
    report: Annotated[Path, typer.Argument(help="What `f2i validate --json` wrote.", show_default=False)],
    before: Annotated[Path | None, typer.Option(help="The same of the last release: changes are shown.")] = None,
) -> None:
    """A validation as a Markdown table, for a pull request.

    Example: `f2i summary parity.json --before release-parity.json`
    """
    from f2i.ci_summary import read_report
    from f2i.ci_summary import summary as summarize

    sys.stdout.write(summarize(read_report(report), read_report(before) if before else None))


@commands.command()
def bench(
    bundle: BundleArgument,
    device: Annotated[str, typer.Option(help="host, arm64, adb, adb:SERIAL or apple.")] = "host",
    target: Annotated[str | None, typer.Option(help="Only this target.")] = None,
    precision: Annotated[str | None, typer.Option(help="Only this precision.")] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Runs before any is timed.")] = 10,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs, in ten rounds that take turns with the other variants.")] = 50,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.1, help="The longest that one row may take. Default: 6, less where many rows share 80.", show_default=False),
    ] = None,
    threads: Annotated[str, typer.Option(help="Comma-separated numbers of threads.")] = "2,1",
    sustained: Annotated[float, typer.Option(min=0, help="Minutes of tiles without a pause, with temperature and clocks.")] = 0.0,
    gate: Annotated[float | None, typer.Option(help="Degrees Celsius below which a round may begin.")] = None,
    photo: Annotated[str, typer.Option(help="Megapixels to predict whole photos for, comma-separated.")] = "12,50,200",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything as JSON.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="An earlier --json of the same device: faster, slower or inconclusive.")] = None,
    runner: Annotated[
        list[Path] | None,
        typer.Option(help="adb: executor_runner, benchmark_model, onnxruntime_perf_test, a package that holds one, or yours."),
    ] = None,
) -> None:
    """Latency with its interval, load time, memory and share of the machine's limit, for every variant and component.

    Example: `f2i bench bundle --json bench.json --baseline last-release.json`
    """
    from f2i_bench.bench import BenchOptions, end_bench, json_path, run_bench
    from f2i_bench.core.protocol import bench_json, read_bench, with_baseline
    from f2i_runtime.bundle.store import open_bundle

    from f2i.bench_tables import bench_notes, bench_table, compared_table

    options = BenchOptions(device, target, precision, warmup, runs, seconds, threads, sustained, gate, photo, tuple(runner or ()))
    before = read_bench(baseline) if baseline else None
    with Steps(err) as steps:
        reports = run_bench(open_bundle(bundle), options, steps.count)
    for report in reports:
        if before:
            report = with_baseline(report, before, str(baseline))
        if json_file:
            write_json(json_path(json_file, report, len(reports)), bench_json(report))
        out.print(bench_table(report))
        for note in bench_notes(report):
            out.print(note, soft_wrap=True)
        if report.compared:
            out.print(compared_table(report))
    end_bench(reports)
