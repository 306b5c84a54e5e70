"""``f2i bench``: options to settings, and the table of devices."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from f2i_runtime.bundle.store import Bundle
from f2i_runtime.errors import GateError, ToolchainError, UsageError
from f2i_runtime.targets import EVERYTHING, Selection, target_of

from f2i_bench.core.protocol import BenchReport, Settings
from f2i_bench.devices.web.web_options import Address, WebOptions

ALL_SECONDS, ROW_SECONDS = 80.0, 6.0
"""The seconds that timing takes in all, and for one row. With loading, warm-up and photos, a bundle of nine variants ends within five minutes."""
DEVICES = ("host", "arm64", "adb", "apple", "web")


@dataclass(frozen=True)
class BenchOptions:
    """The options of ``f2i bench``; see ``f2i bench --help``."""

    device: str = "host"
    only: Selection = EVERYTHING
    warmup: int = 10
    runs: int = 50
    seconds: float | None = None
    threads: str = "2,1"
    sustained: float = 0.0
    max_temp: float | None = None
    megapixels: str = "12,50,200"
    runners: tuple[Path, ...] = ()
    web: WebOptions = field(default_factory=WebOptions)


def run_bench(
    bundle: Bundle,
    options: BenchOptions,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    announce: Callable[[Address], None] = lambda _: None,
) -> list[BenchReport]:
    """Measure the bundle on the device that was asked for, or on each of several. ``announce`` gets the address of the page, where there is one.

    Raises UsageError for a device, number of threads or photo size that cannot be, and whatever the device's own function raises.
    """
    kind, _, serial = options.device.partition(":")
    if kind not in DEVICES or (serial and kind != "adb"):
        raise UsageError(f"device {options.device!r} is unknown; choose from host, arm64, adb, adb:SERIAL, apple, web")
    threads = tuple(int(n) for n in _numbers(options.threads, "threads", r"[1-9]\d{0,2}"))
    settings = Settings(
        warmup=options.warmup,
        runs=options.runs,
        rounds=min(10, options.runs),
        seconds=options.seconds or _share(bundle, options.only, len(threads)),
        threads=threads,
        sustained_minutes=options.sustained,
        max_temp_celsius=options.max_temp,
    )
    megapixels = [float(n) for n in _numbers(options.megapixels, "megapixels", r"\d+(\.\d+)?")] if options.megapixels else []
    if kind == "apple":
        from f2i_bench.devices.apple.apple_mac import bench_apple

        return [bench_apple(bundle, settings, only=options.only)]
    if kind == "web":
        from f2i_bench.devices.web.web_bench import bench_web

        return bench_web(bundle, settings, options.web, only=options.only, progress=progress, announce=announce)
    from f2i_bench.host.host_bench import bench_host
    from f2i_bench.host.photo_predictor import with_predictions

    if kind == "arm64":
        from f2i_bench.devices.arm64.arm64_bench import bench_arm64

        return [bench_arm64(bundle, settings, only=options.only, progress=progress)]
    if kind == "adb":
        from f2i_bench.devices.android.android_bench import AdbOptions, bench_android
        from f2i_bench.devices.android.native_runners import open_runners

        with tempfile.TemporaryDirectory() as folder:
            where = AdbOptions(serials=(serial,) if serial else (), runners=open_runners(options.runners, Path(folder)))
            return bench_android(bundle, settings, where, only=options.only, progress=progress)
    report = bench_host(bundle, settings, only=options.only, progress=progress)
    return [with_predictions(bundle, report, megapixels)]


def _share(bundle: Bundle, only: Selection, threads: int) -> float:
    """Returns the seconds that a row may take where none are given: an equal share of :data:`ALL_SECONDS`, at most :data:`ROW_SECONDS`."""
    timed = [v for v in bundle.manifest.variants(only) if target_of(v).native_here]
    return min(ROW_SECONDS, round(ALL_SECONDS / max(1, len(timed) * len(bundle.manifest.components) * threads), 1))


def json_path(path: Path, report: BenchReport, reports: int) -> Path:
    """Returns the file for a report: ``path``, with the device in its name when there are several reports."""
    if reports == 1:
        return path
    return path.with_name(f"{path.stem}-{re.sub(r'[^A-Za-z0-9.-]+', '_', report.device.serial or report.device.name)}{path.suffix}")


def end_bench(reports: list[BenchReport]) -> None:
    """Raises GateError when a parity gate failed on a device, ToolchainError when nothing could be measured."""
    rows = [row for report in reports for row in report.rows]
    failed = [row for row in rows if row.status == "gate failed"]
    if failed:
        r = failed[0]
        where = f" on {r.cpu_level}" if r.cpu_level else ""
        raise GateError(f"{len(failed)} of {len(rows)} rows failed their gate; first: {r.variant} {r.component}{where}: {r.reason}")
    if rows and all(row.status == "failed" for row in rows):
        raise ToolchainError(component="every row", target=rows[0].target, stage="bench", reason=rows[0].reason)


def _numbers(text: str, option: str, pattern: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not re.fullmatch(pattern, part)]
    if wrong:
        raise UsageError(f"--{option} {text!r}: {wrong[0]!r} is not a number that this option takes; expected, for example, --{option} 2,1")
    return list(dict.fromkeys(parts))
