"""``f2i bench --device arm64``: the phone's instruction set without a phone, on ARM kernels under qemu's user-mode emulation.

It proves numbers, not speed: emulated times are a hundred times a processor's and say nothing about one. The engines are the aarch64 wheels of
PyPI, on named processors (never ``-cpu max``, whose SME emulation gives wrong int8 results without a word).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.debian import closure, package_list, unpack
from benchmarks.host import host_device, versions
from benchmarks.parity_job import RUNNABLE, Job, judge, run_command, run_here, stage
from benchmarks.protocol import BenchReport, Row, Settings
from runtime_py.bundle import MANIFEST, Bundle
from runtime_py.errors import ToolchainError, UsageError
from runtime_py.files import atomic_directory, exclusive_lock, sha256_file

LEVELS = {"cortex-a53": "plain NEON", "cortex-a76": "dot product, fp16", "cortex-a710": "i8mm, SVE2"}
"""Processors that qemu emulates, and what each adds."""
SUITE, BACKPORTS = "bookworm", "bookworm-backports"
"""The guest's C library and Python 3.11; and where a qemu of version 10 is, since 7.2 crashes onnxruntime and LiteRT."""
GUEST = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6", "libgomp1")
NOT_NEEDED = ("debconf", "tzdata", "media-types", "dpkg", "tar", "readline-common")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
WHEELS = {
    "onnx": ("onnxruntime==1.32.0", "numpy==2.4.6"),
    "tflite": ("ai-edge-litert==2.3.0", "numpy==2.4.6"),
    # 1.4.1 wants torch 2.13, whose aarch64 build on PyPI needs CUDA; this pair runs the same files. --no-deps: the binding needs torch and numpy only.
    "executorch": ("executorch==1.0.1", "torch==2.9.1", "numpy==2.4.6", "typing-extensions", "sympy==1.14.0", "mpmath==1.3.0"),
}
TOOLS_VERSION = "1"
"""Raised when anything above changes, so that old folders are left alone."""
RUN_SECONDS = 1800.0
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Emulator:
    """A folder with qemu, an ARM64 root with Python, and one folder of wheels for each engine."""

    root: Path

    def command(self, cpu: str, target: str, *arguments: str) -> list[str]:
        """A command line that runs the guest's Python on an emulated processor."""
        guest = self.root / "guest"
        settings = {"PYTHONHOME": guest / "usr", "PYTHONPATH": self.root / target, "OPENBLAS_NUM_THREADS": 1, "PYTHONHASHSEED": 0}
        environment = [part for k, v in settings.items() for part in ("-E", f"{k}={v}")]
        qemu = str(self.root / "qemu" / "usr" / "bin" / "qemu-aarch64")
        return [qemu, "-cpu", cpu, "-L", str(guest), *environment, str(guest / "usr" / "bin" / "python3.11"), *arguments]


def setup_arm64(progress: Progress = lambda *_: None) -> Emulator:
    """Everything that emulation needs, fetched once into ``~/.cache/f2i/arm64``: no root, no apt, no binfmt.

    Raises UsageError on a machine that cannot (anything but Linux on x86-64), or when a download fails.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise UsageError(
            f"device arm64 is emulated on Linux x86-64, got {sys.platform} {platform.machine()}; on an ARM machine use --device host"
        )
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "f2i" / f"arm64-{TOOLS_VERSION}"
    with exclusive_lock(home.with_suffix(".lock"), busy="another run is setting up the emulator; wait for it", wait=True):
        if not (home / "qemu").exists():
            unpack(closure(["qemu-user"], [package_list(BACKPORTS, "amd64")]), home / "qemu", progress)
        if not (home / "guest").exists():
            unpack(closure(GUEST, [package_list(SUITE, "arm64")], NOT_NEEDED), home / "guest", progress)
        for k, target in enumerate(WHEELS):
            if not (home / target).exists():
                _wheels(target, home / target)
            progress("aarch64 engines", k + 1, len(WHEELS))
    return Emulator(home)


def _wheels(target: str, destination: Path) -> None:
    with atomic_directory(destination) as staging, tempfile.TemporaryFile("w+") as log:
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--target",
            str(staging),
            "--only-binary=:all:",
            "--python-version",
            "3.11",
        ]
        command += ["--no-deps"] if target == "executorch" else []
        command += [part for p in PLATFORMS for part in ("--platform", p)]
        if subprocess.run([*command, *WHEELS[target]], stdout=log, stderr=log).returncode:
            log.seek(0)
            errors = [line for line in log.read().splitlines() if line.startswith("ERROR")] or ["no message"]
            raise UsageError(
                f"pip could not fetch the aarch64 wheels of {target}: {errors[-1]}; check the network and run the same command again"
            )


def bench_arm64(
    bundle: Bundle,
    settings: Settings,
    *,
    target: str | None = None,
    precision: str | None = None,
    levels: tuple[str, ...] = tuple(LEVELS),
    progress: Progress = lambda *_: None,
) -> BenchReport:
    """Every variant on every emulated processor: parity with the golden outputs, and with the same files on this machine's own kernels.

    Raises UsageError when nothing in the bundle matches or the emulator cannot be had; an engine that fails costs its own rows.
    """
    have = bundle.manifest.variants()
    variants = [(t, p) for t, p in have if t in RUNNABLE and target in (None, t) and precision in (None, p)]
    if not variants:
        raise UsageError(
            f"{bundle.root}: nothing to emulate for that target and precision; it holds {', '.join(f'{t}/{p}' for t, p in have)}"
        )
    emulator = setup_arm64(progress)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for k, (t, p) in enumerate(variants):
            job = stage(bundle, t, p, Path(folder) / f"{t}-{p}", threads=1, warmup=0, runs=0)
            rows += _variant(bundle, job, emulator, levels)
            shutil.rmtree(job.folder)
            progress("emulated variants", k + 1, len(variants))
    device = host_device().model_copy(
        update={"kind": "arm64", "machine": "aarch64", "cpu": ", ".join(levels), "cores": 1, "emulated": True, "name": "qemu-aarch64"}
    )
    return BenchReport(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        device=device,
        versions=versions() | {"qemu-user": BACKPORTS, **dict(w.split("==") for ws in WHEELS.values() for w in ws if "==" in w)},
        bundle=bundle.manifest.name,
        manifest_sha256=sha256_file(bundle.root / MANIFEST),
        settings=settings,
        rows=tuple(rows),
        notes=(
            "emulated: numbers are the ARM kernels' own, times are not a phone's",
            *(f"{c}: {what}" for c, what in LEVELS.items() if c in levels),
        ),
    )


def _variant(bundle: Bundle, job: Job, emulator: Emulator, levels: tuple[str, ...]) -> list[Row]:
    """One variant on this machine's own kernels, then on each emulated processor."""
    native = job.folder / "native"
    native.mkdir()
    rows: list[Row] = []
    try:
        run_here(job, RUN_SECONDS)
        for output in job.folder.glob("out-*.npy"):
            output.rename(native / output.name)
        missing = ""
    except ToolchainError as e:
        missing = str(e)
    for cpu in levels:
        for left in [*job.folder.glob("out-*.npy"), *job.folder.glob("result.json")]:
            left.unlink()
        try:
            if missing:
                raise ToolchainError(component=f"{job.target}/{job.precision}", target="host", stage="run", reason=missing)
            command = emulator.command(cpu, job.target, "device_runner.py", "job.json", "result.json")
            result = run_command(command, job, job.folder / "result.json", RUN_SECONDS, f"arm64 {cpu}")
            found = judge(bundle, job, result, job.folder, note=f", emulated {cpu}", native=native)
        except ToolchainError as e:
            base = {"target": job.target, "precision": job.precision, "threads": job.threads, "status": "failed", "reason": str(e)}
            found = [Row.model_validate(base | {"component": c}) for c in job.components]
        rows += [row.model_copy(update={"cpu_level": cpu}) for row in found]
    return rows
