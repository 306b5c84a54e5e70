"""``f2i bench``: options to settings, and the table of devices."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.protocol import BenchReport, Settings
from runtime_py.bundle import Bundle
from runtime_py.errors import UsageError

DEVICES = ("host", "arm64", "adb", "apple")


@dataclass(frozen=True)
class BenchOptions:
    """As the command takes them; see ``f2i bench --help``."""

    device: str = "host"
    target: str | None = None
    precision: str | None = None
    warmup: int = 10
    runs: int = 50
    seconds: float = 6.0
    threads: str = "2,1"
    sustained: float = 0.0
    gate: float | None = None
    photo: str = "12,50,200"


def run_bench(bundle: Bundle, options: BenchOptions, progress: Callable[[str, int, int], None] = lambda *_: None) -> BenchReport:
    """Measure the bundle on the device that was asked for.

    Raises UsageError for a device, number of threads or photo size that cannot be, and whatever the device's own function raises.
    """
    kind, _, serial = options.device.partition(":")
    if kind not in DEVICES or (serial and kind != "adb"):
        raise UsageError(f"device {options.device!r} is unknown; choose from host, arm64, adb, adb:SERIAL, apple")
    settings = Settings(
        warmup=options.warmup,
        runs=options.runs,
        rounds=min(10, options.runs),
        seconds=options.seconds,
        threads=tuple(int(n) for n in _numbers(options.threads, "threads", r"[1-9]\d{0,2}")),
        sustained_minutes=options.sustained,
        gate_celsius=options.gate,
    )
    megapixels = [float(n) for n in _numbers(options.photo, "photo", r"\d+(\.\d+)?")] if options.photo else []
    if kind == "apple" and sys.platform != "darwin":
        raise UsageError("device apple needs a Mac (Core ML runs nowhere else); on this machine use --device host, arm64 or adb")
    from benchmarks.host import bench_host
    from benchmarks.predict import with_predictions

    report = bench_host(bundle, settings, target=options.target, precision=options.precision, progress=progress)
    return with_predictions(bundle, report, megapixels)


def _numbers(text: str, option: str, pattern: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not re.fullmatch(pattern, part)]
    if wrong:
        raise UsageError(f"--{option} {text!r}: {wrong[0]!r} is no number that fits; expected for example --{option} 2,1")
    return list(dict.fromkeys(parts))
