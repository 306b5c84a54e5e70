"""``f2i bench --device adb``: push, run, pull, judge, clean up, on one Android device or on all of them at once.

The runner is Python on the device with an engine's package (Termux, a rooted image, a development board), the engine's own benchmark program
(``native_runners.py``), or a program of the caller's that takes a job and where to write the result (see ``device_runner.py``).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from f2i_runtime.bundle.store import MANIFEST, Bundle
from f2i_runtime.errors import UsageError
from f2i_runtime.files import sha256_file
from f2i_runtime.hexagon.chips import find_chip
from f2i_runtime.targets import EVERYTHING, Selection, Variant, chip_of, target_of

from f2i_bench.core.protocol import BenchReport, Device, Row, Sample, Settings, Sustained, sustained_run, with_figures
from f2i_bench.core.sensors import TemperatureGate
from f2i_bench.devices.android.adb import DeviceError, Phone, connected, find_adb
from f2i_bench.devices.android.android_run import Place, run_job, run_native
from f2i_bench.devices.android.device_folders import remote_folder, sweep_device
from f2i_bench.devices.android.native_runners import Runner, measurable, runner_of
from f2i_bench.devices.parity_job import Load, judge, stage
from f2i_bench.host.host_bench import versions

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class AdbOptions:
    """How to reach devices and what runs on them. ``serials`` empty: every device attached. ``runners``: programs to push instead of Python."""

    serials: tuple[str, ...] = ()
    folder: str = "/data/local/tmp"
    python: str | None = None
    runners: tuple[Runner, ...] = ()
    run_seconds: float = 900.0
    adb: tuple[str, ...] = ()


def bench_android(
    bundle: Bundle,
    settings: Settings,
    options: AdbOptions,
    *,
    only: Selection = EVERYTHING,
    progress: Progress = lambda *_: None,
) -> list[BenchReport]:
    """One report per device, all devices at once. What fails on a device is in its report's rows and costs no other device anything.

    Raises UsageError when adb or a named device is missing, or nothing in the bundle matches.
    """
    variants, missing = measurable(bundle, only, options.runners)
    adb = options.adb or find_adb()
    attached = connected(adb)
    serials = options.serials or tuple(s for s, state in attached.items() if state == "device")
    wrong = [f"{s} is {attached.get(s, 'not attached')}" for s in serials if attached.get(s) != "device"]
    if wrong or not serials:
        listed = ", ".join(f"{s} ({state})" for s, state in attached.items()) or "none"
        raise UsageError(f"no usable device: {'; '.join(wrong) or 'nothing attached'}; adb devices lists: {listed}")
    with ThreadPoolExecutor(len(serials)) as pool:
        jobs = [pool.submit(_device, bundle, settings, options, Phone(adb, s), variants, progress) for s in serials]
        reports = [job.result() for job in jobs]
    return [report.model_copy(update={"notes": (*report.notes, *missing)}) for report in reports]


def _device(
    bundle: Bundle, settings: Settings, options: AdbOptions, phone: Phone, variants: Sequence[Variant], progress: Progress
) -> BenchReport:
    rows: list[Row] = []
    notes: list[str] = []
    sustained: list[Sustained] = []
    device = Device(
        kind="adb", name=phone.serial, serial=phone.serial, os="Android", machine="unknown", cpu="unknown", cores=0, memory_bytes=0
    )
    gate = TemperatureGate(_PhoneSensors(phone), settings.max_temp_celsius, settings.gate_seconds)
    try:
        device = describe(phone)
        sweep_device(phone, options.folder)
        notes.append(_condition(phone, "before"))
        for threads in settings.threads:
            for k, variant in enumerate(variants):
                gate.wait()
                rows += _variant(bundle, settings, options, phone, variant, threads)
                progress(f"{phone.serial}, {threads} threads", k + 1, len(variants))
            lasting = next((v for v in variants if target_of(v).arm64), None)
            if settings.sustained_minutes and lasting:
                sustained.append(_sustain(bundle, settings, options, phone, lasting, threads))
                notes.append(_condition(phone, f"after {settings.sustained_minutes:g} minutes on {threads} threads"))
        notes += [_condition(phone, "after"), gate.note()]
    except DeviceError as e:
        notes.append(str(e))
        done = {(r.variant, r.threads) for r in rows}
        missing = [(v, n) for n in settings.threads for v in variants if (v, n) not in done]
        rows += [row for v, n in missing for row in _failed(bundle, v, n, str(e))]
    return BenchReport(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        device=device,
        versions=versions(),
        bundle=bundle.manifest.name,
        manifest_sha256=sha256_file(bundle.root / MANIFEST),
        settings=settings,
        rows=tuple(rows),
        sustained=tuple(sustained),
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _PhoneSensors:
    """A phone's sensors in the shape that the temperature gate takes."""

    phone: Phone

    def celsius(self) -> float | None:
        return self.phone.celsius()


def describe(phone: Phone) -> Device:
    """What the device says of itself. Raises DeviceError when it is gone."""
    cpuinfo = phone.try_shell("cat /proc/cpuinfo")
    memory = phone.try_shell("cat /proc/meminfo").split()
    names = [line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith(("Hardware", "model name"))]
    return Device(
        kind="adb",
        name=phone.property("ro.product.model") or phone.serial,
        serial=phone.serial,
        os=f"Android {phone.property('ro.build.version.release') or 'unknown'}",
        machine=phone.shell("uname -m").strip(),
        cpu=phone.property("ro.soc.model") or (names[0] if names else "unknown"),
        cores=cpuinfo.count("processor\t"),
        memory_bytes=int(memory[1]) * 1024 if len(memory) > 1 and memory[1].isdigit() else 0,
    )


def _variant(bundle: Bundle, settings: Settings, options: AdbOptions, phone: Phone, variant: Variant, threads: int) -> list[Row]:
    """One variant on one device, in a folder of its own there that is gone afterwards."""
    if other := _other_chip(phone, variant):
        return _failed(bundle, variant, threads, other)
    try:
        with tempfile.TemporaryDirectory() as folder, remote_folder(phone, options.folder) as remote:
            job = stage(bundle, variant, Path(folder) / "job", Load(threads, settings.warmup, settings.runs))
            place = Place(phone, remote, options.run_seconds)
            runner = runner_of(options.runners, variant)
            if runner:
                result = run_native(bundle, job, runner, place, settings)
            else:
                program = next((r.path for r in options.runners if r.target is None), None)
                result = run_job(job, place, python=options.python, program=program)
            return _in_rounds(judge(bundle, job, result, job.folder), settings)
    except DeviceError as e:
        phone.check()
        return _failed(bundle, variant, threads, str(e))


def _other_chip(phone: Phone, variant: Variant) -> str:
    """Returns why a variant that is compiled for one chip is not run on a device that has another, or nothing; also where the device's chip is unknown."""
    wanted, said = chip_of(variant.accelerator), phone.property("ro.soc.model")
    if not wanted or not said:
        return ""
    try:
        found = find_chip(said)
    except UsageError:
        return ""
    return "" if found.name == wanted else f"it is compiled for {find_chip(wanted).label}, and the device has {found.label}"


def _sustain(bundle: Bundle, settings: Settings, options: AdbOptions, phone: Phone, variant: Variant, threads: int) -> Sustained:
    """Whole tiles without a pause, by Python on the device. Raises DeviceError."""
    seconds = 60 * settings.sustained_minutes
    with tempfile.TemporaryDirectory() as folder, remote_folder(phone, options.folder) as remote:
        job = stage(bundle, variant, Path(folder) / "job", Load(threads, sustained=seconds))
        result = run_job(job, Place(phone, remote, options.run_seconds + seconds), python=options.python)
    failed = [i["error"] for i in result["items"] if i["error"]]
    if failed:
        raise DeviceError(f"{phone.serial}: sustained run of {variant}: {failed[0]}")
    return sustained_run(variant, threads, tuple(Sample.model_validate(s) for s in result["samples"]))


def _condition(phone: Phone, when: str) -> str:
    celsius, clock, battery = phone.celsius(), phone.megahertz(), phone.battery()
    parts = [
        f"{celsius:.1f} °C" if celsius is not None else "no thermal zone",
        f"{clock:.0f} MHz" if clock is not None else "no clock",
        f"battery {battery[0]} % at {battery[1]:.1f} °C" if battery else "no battery",
    ]
    return f"{when}: {', '.join(parts)}"


def _in_rounds(rows: list[Row], settings: Settings) -> list[Row]:
    """Runs of one process, cut into the settings' rounds, which intervals and verdicts are made of."""
    result = []
    for row in rows:
        runs = [ns for r in row.rounds_ns for ns in r]
        size = max(1, -(-len(runs) // settings.rounds))
        rounds = tuple(tuple(runs[i : i + size]) for i in range(0, len(runs), size))
        result.append(with_figures(row.model_copy(update={"rounds_ns": rounds})))
    return result


def _failed(bundle: Bundle, variant: Variant, threads: int, reason: str) -> list[Row]:
    base = {**variant._asdict(), "threads": threads, "status": "failed", "reason": reason}
    return [Row.model_validate(base | {"component": call.component}) for call in bundle.manifest.dataflow]
