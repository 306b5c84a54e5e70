"""One Android device over ``adb``: shell, push, pull, sensors. Every call has a time limit, so that a device that hangs cannot hang us."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from f2i_runtime.errors import F2IError, UsageError

from f2i_bench.core.sensors import PLAUSIBLE

SHELL_SECONDS = 60.0
TRANSFER_SECONDS = 600.0


class DeviceError(F2IError):
    """A device that went away, filled up, hung or refused. It costs that device's result."""

    exit_code = 3


def find_adb() -> tuple[str, ...]:
    """The adb command: on PATH, or in $ANDROID_HOME. Raises UsageError with where to get it."""
    home = os.environ.get("ANDROID_HOME") or os.environ.get("ANDROID_SDK_ROOT")
    inside = Path(home) / "platform-tools" / "adb" if home else None
    found = shutil.which("adb") or (str(inside) if inside and inside.is_file() else None)
    if not found:
        raise UsageError(
            "device adb needs the adb command, which is not on PATH; install Android's platform-tools (Debian: apt install adb)"
        )
    return (found,)


def connected(adb: tuple[str, ...]) -> dict[str, str]:
    """Serial → state (``device``, ``offline``, ``unauthorized``) of everything attached."""
    try:
        done = subprocess.run([*adb, "devices"], capture_output=True, text=True, timeout=SHELL_SECONDS)
    except subprocess.TimeoutExpired as e:
        raise UsageError(f"{shlex.join(adb)} devices did not answer in {SHELL_SECONDS:.0f} s; run: adb kill-server") from e
    if done.returncode:
        raise UsageError(f"{shlex.join(adb)} devices failed: {_last(done.stderr)}")
    lines = [line.split("\t") for line in done.stdout.splitlines()[1:] if "\t" in line]
    return {serial: state.split()[0] for serial, state in lines}


@dataclass(frozen=True)
class Phone:
    """A device by its serial."""

    adb: tuple[str, ...]
    serial: str

    def shell(self, command: str, seconds: float = SHELL_SECONDS) -> str:
        """Run a shell command on the device → its output. Raises DeviceError when it fails or does not end in time."""
        done = self._adb(["shell", command], seconds, f"shell {command[:60]!r}")
        if done.returncode:
            words = _last(done.stderr or done.stdout)
            raise DeviceError(f"{self.serial}: {command[:60]!r} ended with code {done.returncode}: {words}")
        return done.stdout

    def check(self) -> None:
        """Raises DeviceError when the device is gone."""
        if connected(self.adb).get(self.serial) != "device":
            raise DeviceError(f"{self.serial}: the device is gone")

    def try_shell(self, command: str) -> str:
        """Runs a command for something that a device may not have, and returns an empty text when it fails. A device that is gone still raises
        DeviceError.
        """
        done = self._adb(["shell", command], SHELL_SECONDS, f"shell {command[:60]!r}")
        return "" if done.returncode else done.stdout

    def push(self, local: Path, remote: str) -> None:
        """Copy a file to the device. Raises DeviceError, for example when it is full."""
        self._transfer(["push", str(local), remote])

    def push_content(self, local: Path, remote: str) -> None:
        """Copy what a folder holds into a folder of the device. Raises DeviceError."""
        self._transfer(["push", f"{local}/.", remote])  # a Path would drop the dot, and adb would make a folder inside

    def pull(self, remote: str, local: Path) -> None:
        """Copy a file from the device. Raises DeviceError."""
        self._transfer(["pull", remote, str(local)])

    def forward_here(self, port: int) -> None:
        """Lets the device's own port of that number lead to this machine's. Raises DeviceError."""
        self._transfer(["reverse", f"tcp:{port}", f"tcp:{port}"])

    def end_forward(self, port: int) -> None:
        """Takes back what :meth:`forward_here` did, if the device is still there."""
        with contextlib.suppress(DeviceError):
            self._transfer(["reverse", "--remove", f"tcp:{port}"])

    def free_bytes(self, folder: str) -> int:
        """Free space where a folder is. Raises DeviceError when the device does not say."""
        last = self.shell(f"df -k {shlex.quote(folder)}").strip().splitlines()[-1]
        numbers = re.findall(r"\s(\d+)", last)
        if len(numbers) < 3:
            raise DeviceError(f"{self.serial}: df said {last!r}, which names no free space")
        return int(numbers[2]) * 1024

    def property(self, name: str) -> str:
        """A system property, empty when the device has none."""
        return self.try_shell(f"getprop {name}").strip()

    def celsius(self) -> float | None:
        """Returns the temperature of the hottest thermal zone."""
        found = self.try_shell("cat /sys/class/thermal/thermal_zone*/temp 2>/dev/null; true")
        values = [int(word) / 1e3 for word in found.split() if re.fullmatch(r"-?\d+", word)]
        return max((v for v in values if PLAUSIBLE[0] <= v <= PLAUSIBLE[1]), default=None)

    def megahertz(self) -> float | None:
        """Returns the present clock of the fastest core."""
        found = self.try_shell("cat /sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq 2>/dev/null; true")
        return max((int(word) / 1e3 for word in found.split() if word.isdigit()), default=None)

    def battery(self) -> tuple[int, float] | None:
        """(percent, degrees Celsius) from ``dumpsys battery``; None when there is none."""
        found = dict(re.findall(r"^\s*(level|temperature): (\d+)", self.try_shell("dumpsys battery 2>/dev/null"), re.M))
        return (int(found["level"]), int(found["temperature"]) / 10) if {"level", "temperature"} <= set(found) else None

    def _transfer(self, arguments: list[str]) -> None:
        done = self._adb(arguments, TRANSFER_SECONDS, f"{arguments[0]} {arguments[1]}")
        if done.returncode:
            raise DeviceError(f"{self.serial}: {arguments[0]} of {arguments[1]} failed: {_last(done.stderr or done.stdout)}")

    def _adb(self, arguments: list[str], seconds: float, what: str) -> subprocess.CompletedProcess[str]:
        try:
            command = [*self.adb, "-s", self.serial, *arguments]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds)
        except subprocess.TimeoutExpired as e:
            raise DeviceError(f"{self.serial}: {what} did not end in {seconds:.0f} s") from e
        gone = re.search(r"device (.* not found|offline)|no devices|error: closed|unauthorized", done.stderr)
        if done.returncode and gone:
            raise DeviceError(f"{self.serial}: the device is gone: {_last(done.stderr)}")
        return done


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"
