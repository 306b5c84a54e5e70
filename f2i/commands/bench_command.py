"""``f2i bench``: latency, memory and load time of every variant on a device."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from f2i_runtime.files import write_json

from f2i.progress import Steps
from f2i.terminal import BundleArgument, JsonFile, OneAccelerator, OnePrecision, OneTarget, err, out, print_table

if TYPE_CHECKING:
    from f2i_bench.core.protocol import BenchReport
    from f2i_bench.devices.web.web_options import Address

Lan = Annotated[bool, typer.Option("--lan", help="web: let phones of this network open the page. Default: this computer only.")]
Https = Annotated[
    bool, typer.Option("--https", help="web: make a certificate, so that the page has threads and WebGPU. Needs f2i-mobile[web].")
]
OverCable = Annotated[bool, typer.Option("--adb", help="web: open the page on the Android devices that adb lists, over the cable.")]
Minutes = Annotated[float, typer.Option(min=0.05, help="web: how long the page is served, at most.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="web: the port to listen on. 0 takes any free one.")]
Browsers = Annotated[int, typer.Option(min=0, help="web: end when so many browsers have measured. 0: after --minutes, or on Ctrl-C.")]


def bench(
    bundle: BundleArgument,
    device: Annotated[str, typer.Option(help="host, arm64, adb, adb:SERIAL, apple or web.")] = "host",
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
        typer.Option(
            help="adb: executor_runner, benchmark_model, onnxruntime_perf_test, for an NPU qnn_executor_runner, a package that holds one, or one of your own."
        ),
    ] = None,
    lan: Lan = False,
    https: Https = False,
    adb: OverCable = False,
    minutes: Minutes = 30.0,
    port: Port = 0,
    browsers: Browsers = 0,
) -> None:
    """Measure the latency and its interval, load time, memory and share of the machine's limit, for every variant and component.

    Example: `f2i bench bundle --json bench.json --baseline last-release.json`
    """
    from f2i_bench.bench import BenchOptions, end_bench, json_path, run_bench
    from f2i_bench.core.protocol import read_bench
    from f2i_bench.devices.web.web_options import WebOptions
    from f2i_runtime.bundle.store import open_bundle
    from f2i_runtime.targets import Selection

    only, web = Selection(target, precision, accelerator), WebOptions(lan, https, adb, minutes, port, browsers)
    options = BenchOptions(device, only, warmup, runs, seconds, threads, sustained, max_temp, megapixels, tuple(runner or ()), web)
    before = read_bench(baseline) if baseline else None
    with Steps(err) as steps:
        reports = run_bench(open_bundle(bundle), options, steps.count, _announce)
    for report in reports:
        _show(report, before, str(baseline), json_path(json_file, report, len(reports)) if json_file else None)
    end_bench(reports)


def _show(report: BenchReport, before: BenchReport | None, source: str, json_file: Path | None) -> None:
    """Writes a report, compared with an earlier one where there is one, and prints it."""
    from f2i_bench.core.protocol import with_baseline

    from f2i.bench_tables import bench_notes, bench_table, compared_table

    if before:
        report = with_baseline(report, before, source)
    if json_file:
        write_json(json_file, report.as_json())
    print_table(bench_table(report))
    for note in bench_notes(report):
        out.print(note)
    if report.compared:
        print_table(compared_table(report))


def _announce(address: Address) -> None:
    """Shows where the page is, and a QR code where the console has the signs for it."""
    err.print(f"\nOpen {address.url}\n", highlight=False)
    with contextlib.suppress(UnicodeEncodeError):
        "".join(address.qr).encode(err.encoding)
        for line in address.qr:
            err.print(line, style="bright_white on black", highlight=False)
    for note in address.notes:
        err.print(note)
