"""``f2i bench --device arm64``: the phone's instruction set without a phone, on ARM kernels under qemu's user-mode emulation.

It proves numbers, not speed: emulated times are a hundred times a processor's and say nothing about one. What does not depend on the machine is
how many instructions a run takes. The engines are the aarch64 wheels of PyPI, on named processors (never ``-cpu max``, whose SME emulation gives
wrong int8 results without a word).
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from f2i_runtime.bundle.store import MANIFEST, Bundle
from f2i_runtime.errors import ToolchainError
from f2i_runtime.files import sha256_file
from f2i_runtime.targets import EVERYTHING, Selection, targets

from f2i_bench.core.protocol import BenchReport, Row, Settings
from f2i_bench.devices.arm64.arm64_tools import BACKPORTS, Emulator, setup_arm64
from f2i_bench.devices.parity_job import Job, Load, NativeOutputs, judge, run_command, run_here, runnable, stage
from f2i_bench.host.host_bench import host_device, versions

LEVELS = {"cortex-a53": "plain NEON", "cortex-a76": "dot product, fp16", "cortex-a710": "i8mm, SVE2"}
"""Processors that qemu emulates, and what each adds."""
RUN_SECONDS = 1800.0
COUNTED_RUNS = 3
"""Runs of each component that follow the compared one. The median of their instructions goes into the row."""
Progress = Callable[[str, int, int], None]


def bench_arm64(
    bundle: Bundle,
    settings: Settings,
    *,
    only: Selection = EVERYTHING,
    levels: tuple[str, ...] = tuple(LEVELS),
    progress: Progress = lambda *_: None,
) -> BenchReport:
    """Every variant on every emulated processor: parity with the golden outputs, and with the same files on this machine's own kernels.

    Raises UsageError when nothing in the bundle matches or the emulator cannot be had; an engine that fails costs its own rows.
    """
    variants = runnable(bundle, only, "to emulate")
    emulator = setup_arm64(progress)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for k, variant in enumerate(variants):
            counted = 0 if emulator.uncounted else COUNTED_RUNS
            job = stage(bundle, variant, Path(folder) / "-".join(variant), Load(threads=1, counted=counted))
            rows += _variant(bundle, job, emulator, levels)
            shutil.rmtree(job.folder)
            progress("emulated variants", k + 1, len(variants))
    device = host_device().model_copy(
        update={"kind": "arm64", "machine": "aarch64", "cpu": ", ".join(levels), "cores": 1, "emulated": True, "name": "qemu-aarch64"}
    )
    return BenchReport(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        device=device,
        versions=versions()
        | {"qemu-user": BACKPORTS, **dict(w.split("==") for t in targets().values() if t.arm64 for w in t.arm64.wheels if "==" in w)},
        bundle=bundle.manifest.name,
        manifest_sha256=sha256_file(bundle.root / MANIFEST),
        settings=settings,
        rows=tuple(rows),
        notes=(
            "emulated: numbers are the ARM kernels' own, times are not a phone's",
            *([f"instructions were not counted: {emulator.uncounted}"] if emulator.uncounted else []),
            *(f"{c}: {what}" for c, what in LEVELS.items() if c in levels),
        ),
    )


def _variant(bundle: Bundle, job: Job, emulator: Emulator, levels: tuple[str, ...]) -> list[Row]:
    """One variant on this machine's own kernels, then on each emulated processor."""
    native = job.folder / "native"
    native.mkdir()
    rows: list[Row] = []
    missing: ToolchainError | None = None
    try:
        run_here(job, RUN_SECONDS)
        for output in job.folder.glob("out-*.npy"):
            output.rename(native / output.name)
    except ToolchainError as e:
        missing = e
    for cpu in levels:
        for left in [*job.folder.glob("out-*.npy"), *job.folder.glob("result.json")]:
            left.unlink()
        try:
            if missing:
                raise missing
            command = emulator.command(cpu, job.target, "device_runner.py", "job.json", "result.json")
            result = run_command(command, job, job.folder / "result.json", RUN_SECONDS, f"arm64 {cpu}")
            found = judge(bundle, job, result, job.folder, note=f", emulated {cpu}", native=NativeOutputs(native))
        except ToolchainError as e:
            base = {**job.variant._asdict(), "threads": job.threads, "status": "failed", "reason": str(e)}
            found = [Row.model_validate(base | {"component": c}) for c in job.components]
        rows += [row.model_copy(update={"cpu_level": cpu}) for row in found]
    return rows
