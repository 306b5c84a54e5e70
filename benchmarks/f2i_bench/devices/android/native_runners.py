"""The engines' own benchmark programs on a device, such as ExecuTorch's ``executor_runner``.

Each takes its own options and prints its own words; the file that a target's record names (``run_<program>.py``) translates both to the job and the result
of ``device_runner.py``. Here is what they share.
"""

from __future__ import annotations

import importlib
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
from f2i_runtime.bundle.store import Bundle, load_array
from f2i_runtime.errors import UsageError
from f2i_runtime.targets import CPU, Selection, Variant, find_target, target_of, targets

from f2i_bench.devices.parity_job import Job, runnable

PACKAGES = (".tgz", ".tar.gz", ".aar", ".jar", ".zip", ".whl")
ARM = re.compile(r"arm64|aarch64", re.I)


@dataclass(frozen=True)
class Runner:
    """A program to push. ``target`` None: one of the caller's own, for every target, that takes ``JOB.json RESULT.json``."""

    path: Path
    target: str | None
    program: str = ""
    """Which of :func:`programs` it is."""


@dataclass(frozen=True)
class Component:
    """One component in a job's folder: its artifact's name there, and its inputs by name in calling order, float32."""

    name: str
    folder: Path
    path: str
    inputs: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class NativeItem:
    """One component for a native program, with paths beside it: the inputs' files are as that program reads them."""

    component: str
    path: str
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Repeats:
    """How often a component is run: ``warmup`` runs, then ``runs`` in ``rounds``."""

    threads: int
    warmup: int
    runs: int
    rounds: int


@dataclass(frozen=True)
class Plan:
    """How to run a native program. The module that a target's record names for its program has one, as ``PLAN``."""

    stage: Callable[[Component], NativeItem]
    """Writes a component's inputs as the program reads them."""
    commands: Callable[[NativeItem, Repeats], list[str]]
    """Returns the command lines after the program's name, one process each."""
    read: Callable[[str, int], dict[str, Any]]
    """(words of one process, warm-up runs) → load_ns, first_ns, ns, peak_rss_bytes; ValueError when they are not what was expected."""
    writes_output: bool


def programs() -> dict[str, str]:
    """Returns the target that each program runs, by the part of the program's file name that tells it, the longest part first."""
    found: dict[str, str] = {}
    for name, record in targets().items():
        found |= {r.device_program.name: name for r in (record, *(record.on(kind) for kind in record.on_chip)) if r.device_program}
    return {part: found[part] for part in sorted(found, key=len, reverse=True)}


def runner_of(runners: Sequence[Runner], variant: Variant) -> Runner | None:
    """Returns the engine's own program for a variant among those given; None where there is none."""
    program = target_of(variant).device_program
    return next((r for r in runners if program and r.program == program.name), None)


def measurable(bundle: Bundle, only: Selection, runners: Sequence[Runner]) -> tuple[list[Variant], tuple[str, ...]]:
    """Returns the bundle's variants that Python or one of the programs runs on an Android device, and a note on each that a missing program would run.

    Raises UsageError where there is none.
    """
    wanted = bundle.manifest.variants(only)
    found = [v for v in wanted if target_of(v).arm64 or runner_of(runners, v)]
    missing = {v: program.name for v in wanted if v not in found and (program := target_of(v).device_program)}
    notes = tuple(
        f"{variant} was not measured: only {name} runs it on a device; give it with --runner" for variant, name in missing.items()
    )
    if not found and notes:
        raise UsageError(notes[0])
    return (found or runnable(bundle, only, "for Android")), notes


def open_runners(paths: Sequence[Path], folder: Path) -> tuple[Runner, ...]:
    """Returns one runner for each path, at most one for each target. Raises UsageError as :func:`open_runner` does."""
    runners: list[Runner] = []
    for k, path in enumerate(paths):
        inside = folder / str(k)
        inside.mkdir(parents=True)
        runners.append(open_runner(path, inside))
    named = [r.program for r in runners]
    if twice := [r for r in runners if named.count(r.program) > 1]:
        raise UsageError(f"--runner: {named.count(twice[0].program)} programs for {twice[0].target or 'every target'}; give one of each")
    return tuple(runners)


def open_runner(path: Path, folder: Path) -> Runner:
    """The runner that a path names: a program, or the one for ARM64 inside an npm, Maven or Python package, unpacked into ``folder``.

    Raises UsageError when there is no such file or the package holds none.
    """
    if not path.is_file():
        raise UsageError(f"--runner {path}: no such file")
    if not path.name.endswith(PACKAGES):
        found = next((name for name in programs() if name in path.name), "")
        return Runner(path, programs().get(found), found)
    try:
        unpacked = _unpack(path, folder)
    except (tarfile.TarError, zipfile.BadZipFile, OSError) as e:
        raise UsageError(f"--runner {path}: it is no readable package: {e}") from e
    if unpacked is None:
        raise UsageError(
            f"--runner {path}: the package holds none of {', '.join(programs())} for ARM64; build one, or run Python on the device"
        )
    return open_runner(unpacked, folder)


def _unpack(package: Path, folder: Path) -> Path | None:
    """The first program of ours in a package, and the libraries that lie beside it."""
    is_zip = zipfile.is_zipfile(package)
    with zipfile.ZipFile(package) if is_zip else tarfile.open(package) as archive:
        names = archive.namelist() if isinstance(archive, zipfile.ZipFile) else [m.name for m in archive.getmembers() if m.isfile()]
        paths = [PurePosixPath(n) for n in names]
        found = [p for p in paths if any(n in p.name for n in programs()) and not p.suffix and ARM.search(str(p))]
        if not found:
            return None
        for path in [found[0], *(p for p in paths if p.parent == found[0].parent and p.suffix == ".so")]:
            source = archive.open(str(path)) if isinstance(archive, zipfile.ZipFile) else archive.extractfile(str(path))
            if source:
                with source, (folder / path.name).open("wb") as target:
                    shutil.copyfileobj(source, target)
    return folder / found[0].name


def libraries(runner: Runner) -> list[Path]:
    """Shared libraries beside a native program, which go to the device with it."""
    return sorted(runner.path.parent.glob("lib*.so")) if runner.target else []


def plan_of(target: str, accelerator: str = CPU) -> Plan:
    """Returns how a target's own program is run. Raises UsageError for a target that has none."""
    program = find_target(target).on(accelerator).device_program
    if program is None:
        raise UsageError(f"{target} has no benchmark program of its own; run Python on the device")
    return cast("Plan", importlib.import_module(program.module).PLAN)


def stage_item(bundle: Bundle, job: Job, staged: dict[str, Any]) -> NativeItem:
    """A component of a staged job for its native program: inputs written beside it as that reads them."""
    name = staged["component"]
    arguments = bundle.manifest.components[name].inputs
    inputs = {argument: load_array(job.folder / file) for argument, file in zip(arguments, staged["inputs"], strict=True)}
    return plan_of(job.target, job.variant.accelerator).stage(Component(name, job.folder, staged["path"], inputs))


def write_raw(component: Component, inputs: Mapping[str, np.ndarray]) -> NativeItem:
    """Writes inputs as raw little-endian float32 beside the artifact, in their order, and returns the item that names them."""
    files = tuple(f"{component.name}-{k}.bin" for k in range(len(inputs)))
    for file, array in zip(files, inputs.values(), strict=True):
        (component.folder / file).write_bytes(np.ascontiguousarray(array, "<f4").tobytes())
    shapes = tuple(array.shape for array in inputs.values())
    return NativeItem(component.name, component.path, tuple(inputs), shapes, files, f"{component.name}-out-0.bin")


def nanoseconds(number: str, unit: float) -> int:
    """Returns a number that a program printed, in nanoseconds; ``unit``: how many of them it counts in."""
    return round(float(number) * unit)
