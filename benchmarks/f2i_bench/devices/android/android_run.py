"""A job on one Android device: pushed into a folder of its own there, run, its outputs pulled, and nothing left behind."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from f2i_runtime.bundle.store import Bundle
from f2i_runtime.targets import CPU

from f2i_bench.core.protocol import Settings
from f2i_bench.devices.android.adb import DeviceError, Phone
from f2i_bench.devices.android.device_folders import end_command
from f2i_bench.devices.android.native_runners import Repeats, Runner, libraries, plan_of, stage_item
from f2i_bench.devices.parity_job import Job

SPARE_BYTES = 16 << 20
PYTHONS = ("python3", "/data/data/com.termux/files/usr/bin/python3")


@dataclass(frozen=True)
class Place:
    """A folder on a device, and the most seconds that a program may run there."""

    phone: Phone
    folder: str
    seconds: float


def run_job(job: Job, place: Place, *, python: str | None = None, program: Path | None = None) -> dict[str, Any]:
    """Run ``device_runner.py``, or a program that takes the same two arguments, in a folder of the device → its result; outputs lie in ``job.folder``.

    Raises DeviceError.
    """
    phone, remote = place.phone, place.folder
    _check_room(job, phone, remote)
    phone.push_content(job.folder, remote)
    if program:
        phone.push(program, f"{remote}/runner")
        command = "chmod 755 runner && exec ./runner job.json result.json"
    else:
        command = f"exec {shlex.quote(python or _python(phone))} device_runner.py job.json result.json"
    _shell(place, command)
    phone.pull(f"{remote}/result.json", job.folder / "result.json")
    result: dict[str, Any] = json.loads((job.folder / "result.json").read_text())
    for item, staged in zip(result["items"], job.items, strict=True):
        if item["error"] is None:
            phone.pull(f"{remote}/{staged['output']}", job.folder / staged["output"])
    return result


def run_native(bundle: Bundle, job: Job, runner: Runner, place: Place, settings: Settings) -> dict[str, Any]:
    """The same by an engine's own benchmark program. A component whose run fails says so and costs no other. Raises DeviceError when the device fails."""
    phone, remote = place.phone, place.folder
    plan = plan_of(job.target, job.variant.accelerator)
    repeats = Repeats(job.threads, settings.warmup, settings.runs, settings.rounds)
    items = [stage_item(bundle, job, staged) for staged in job.items]
    _check_room(job, phone, remote)
    phone.push_content(job.folder, remote)
    for file in [runner.path, *libraries(runner)]:
        phone.push(file, f"{remote}/{'runner' if file == runner.path else file.name}")
    found = []
    for item, staged in zip(items, job.items, strict=True):
        result: dict[str, Any] = {"component": item.component, "load_ns": None, "first_ns": None, "ns": [], "error": None}
        try:
            for arguments in plan.commands(item, repeats):
                # What a program prints may be on either stream.
                line = f"chmod 755 runner && {_libraries_here(job)} && mkdir -p {item.component}-out && ./runner {arguments} 2>&1"
                said = plan.read(_shell(place, line), settings.warmup)
                result = said | {"component": item.component, "error": None, "ns": [*result["ns"], *said["ns"]]}
            if plan.writes_output:
                (job.folder / item.output).parent.mkdir(exist_ok=True)
                phone.pull(f"{remote}/{item.output}", job.folder / item.output)
                shape = bundle.manifest.components[item.component].output_spec.shape
                np.save(job.folder / staged["output"], np.fromfile(job.folder / item.output, "<f4").reshape(shape))
        except (DeviceError, ValueError) as e:
            phone.check()
            phone.shell(end_command(remote))  # one that hangs would disturb the next
            result["error"] = str(e)
        found.append(result)
    peaks = [r["peak_rss_bytes"] for r in found if r.get("peak_rss_bytes")]
    return {"engine": runner.path.name, "items": found, "peak_rss_bytes": max(peaks, default=None), "unchecked": not plan.writes_output}


def _libraries_here(job: Job) -> str:
    """The command that lets a program find the libraries that were pushed beside it: an NPU's processor looks for its own in another variable."""
    here = "export LD_LIBRARY_PATH=.:$LD_LIBRARY_PATH"
    return here if job.variant.accelerator == CPU else f'{here} && export ADSP_LIBRARY_PATH="$PWD;/vendor/dsp/cdsp;/vendor/lib/rfsa/adsp"'


def _check_room(job: Job, phone: Phone, remote: str) -> None:
    size = sum(f.stat().st_size for f in job.folder.rglob("*") if f.is_file()) + SPARE_BYTES
    free = phone.free_bytes(remote)
    if free < size:
        where = remote.rpartition("/")[0]
        raise DeviceError(f"{phone.serial}: {free / 1e6:.0f} MB free in {where}, {job.variant} needs {size / 1e6:.0f} MB; free some")


def _shell(place: Place, command: str) -> str:
    """The process leaves its number, so that one that hangs can be ended."""
    return place.phone.shell(f"cd {shlex.quote(place.folder)} && echo $$ > pid && {command}", place.seconds)


def _python(phone: Phone) -> str:
    for name in PYTHONS:
        if found := phone.try_shell(f"command -v {name}").strip():
            return found
    raise DeviceError(f"{phone.serial}: it has no python3; install Termux's, or give an engine's own program or one of yours with --runner")
