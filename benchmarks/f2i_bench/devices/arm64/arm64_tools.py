"""What emulation of ARM64 needs, fetched and built once: qemu, an ARM64 Python, and the aarch64 engines."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from f2i_runtime.debian import closure, package_list, unpack
from f2i_runtime.errors import ToolchainError, UsageError
from f2i_runtime.files import atomic_directory
from f2i_runtime.locks import exclusive_lock
from f2i_runtime.targets import Arm64, targets

from f2i_bench.devices.arm64.qemu_build import build_qemu, compiler

SUITE, BACKPORTS = "bookworm", "bookworm-backports"
"""The guest's C library and Python 3.11; and where a qemu of version 10 is, since 7.2 crashes onnxruntime and LiteRT."""
GUEST = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6", "libgomp1")
NOT_NEEDED = ("debconf", "tzdata", "media-types", "dpkg", "tar", "readline-common")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
INSTRUCTIONS = "instructions.txt"
"""Where the counter writes, in the job's folder; device_runner.py reads it."""
TOOLS_VERSION = "1"
"""Raised when anything above or a target's wheels change, so that old folders are left alone."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Emulator:
    """A folder with qemu, an ARM64 root with Python, and one folder of wheels for each engine.

    ``uncounted`` says why this qemu does not count instructions; empty when it does.
    """

    root: Path
    uncounted: str = ""

    def command(self, cpu: str, target: str, *arguments: str) -> list[str]:
        """A command line that runs the guest's Python on an emulated processor."""
        guest = self.root / "guest"
        settings = {"PYTHONHOME": guest / "usr", "PYTHONPATH": self.root / target, "OPENBLAS_NUM_THREADS": 1, "PYTHONHASHSEED": 0}
        environment = [part for k, v in settings.items() for part in ("-E", f"{k}={v}")]
        built = self.root / "counting"
        counting = [str(built / "qemu-aarch64"), "-plugin", f"{built / 'instructions.so'},out={INSTRUCTIONS}"]
        qemu = [str(self.root / "qemu" / "usr" / "bin" / "qemu-aarch64")] if self.uncounted else counting
        return [*qemu, "-cpu", cpu, "-seed", "0", "-L", str(guest), *environment, str(guest / "usr" / "bin" / "python3.11"), *arguments]


def setup_arm64(progress: Progress = lambda *_: None) -> Emulator:
    """Everything that emulation needs, fetched once into ``~/.cache/f2i/arm64-1``: no root, no apt, no binfmt.

    With a C compiler a qemu that counts instructions is built, which takes some minutes; without one, or when that fails, Debian's is taken.

    Raises UsageError on a machine that cannot (anything but Linux on x86-64), or when a download fails.
    """
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise UsageError(
            f"device arm64 is emulated on Linux x86-64, got {sys.platform} {platform.machine()}; on an ARM machine use --device host"
        )
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "f2i" / f"arm64-{TOOLS_VERSION}"
    with exclusive_lock(home.with_suffix(".lock"), busy="another run is setting up the emulator; wait for it", wait=True):
        home.mkdir(parents=True, exist_ok=True)
        uncounted = _counting(home, progress)
        if uncounted and not (home / "qemu").exists():
            unpack(closure(["qemu-user"], [package_list(BACKPORTS, "amd64")]), home / "qemu", progress)
        if not (home / "guest").exists():
            unpack(closure(GUEST, [package_list(SUITE, "arm64")], NOT_NEEDED), home / "guest", progress)
        runnable = {name: target.arm64 for name, target in targets().items() if target.arm64}
        for k, (name, packages) in enumerate(runnable.items()):
            if not (home / name).exists():
                _wheels(name, packages, home / name)
            progress("aarch64 engines", k + 1, len(runnable))
    return Emulator(home, uncounted)


def _counting(home: Path, progress: Progress) -> str:
    """Build the qemu that counts → empty, or why there is none."""
    if not compiler():
        return "no C compiler to build qemu's plugin with (Debian: apt install gcc libc6-dev)"
    try:
        build_qemu(BACKPORTS, SUITE, home, progress)
    except ToolchainError as e:
        return str(e)
    return ""


def _wheels(target: str, packages: Arm64, destination: Path) -> None:
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
        command += ["--no-deps"] if packages.no_deps else []
        command += [part for p in PLATFORMS for part in ("--platform", p)]
        if subprocess.run([*command, *packages.wheels], stdout=log, stderr=log).returncode:
            log.seek(0)
            errors = [line for line in log.read().splitlines() if line.startswith("ERROR")] or ["no message"]
            raise UsageError(
                f"pip could not fetch the aarch64 wheels of {target}: {errors[-1]}; check the network and run the same command again"
            )
