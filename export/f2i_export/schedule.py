"""Runs jobs in child processes: memory is checked before each starts, output goes to a log, finished results go to the cache."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from f2i_runtime.child_process import python_child
from f2i_runtime.errors import F2IError, ToolchainError, UsageError, system_message
from f2i_runtime.files import FolderKind, atomic_directory, cache_root
from f2i_runtime.locks import Claim, claim, exclusive_lock, sweep
from f2i_runtime.targets import target_of

from f2i_export.jobs import RESULT, WORKER, Job

GIB = 1 << 30
JOB_FOLDER = FolderKind("a finished job", lambda folder: ("*",) if re.fullmatch("[0-9a-f]{64}", folder.name) else None)
"""A folder in the cache is known by its name, a hash."""
SMALL_BYTES = 64 << 20
"""Weights of components that are lowered in one child."""
WORKING = "export"
"""What a child's working folder in the cache is staged for."""


@dataclass(frozen=True)
class Event:
    """Progress of an export, for the command to show. ``state``: cached, running, done."""

    job: Job
    state: str
    stage: str = ""
    seconds: float = 0.0


@dataclass
class _Child:
    """A process and the jobs it does, one after another; ``results`` has those that are finished."""

    jobs: list[Job]
    process: subprocess.Popen[bytes]
    needs: int
    began: float
    claim: Claim
    log: Path
    current: int = 0
    stage: str = "start"
    error: dict[str, str] | None = None
    fault: Exception | None = None
    """Why a finished result could not be kept."""
    results: dict[Job, Path] = field(default_factory=dict)
    reader: threading.Thread | None = field(default=None, repr=False)

    @property
    def out(self) -> Path:
        """The folder it works in."""
        return self.claim.path


def cached(job: Job) -> Path | None:
    """Folder of a finished result, or None."""
    folder = cache_root() / "jobs" / job.key()
    return folder if (folder / RESULT).is_file() else None


def needed_bytes(job: Job, weight_bytes: int) -> int:
    """Estimated peak memory of a job's child, from measurements per target."""
    if job.kind != "lower":
        return int(1.2 * GIB + 3.0 * weight_bytes)
    target = target_of(job.variant)
    return int(target.ram_base_gib * GIB + target.ram_factor * weight_bytes)


def run_jobs(
    jobs: list[Job], *, weight_bytes: Callable[[Job], int], reference: Path | None, parallel: int, on_event: Callable[[Event], None]
) -> dict[Job, Path]:
    """Run every job that is not in the cache, ``parallel`` at a time where memory allows. Returns each job's result folder.

    Raises UsageError when a job cannot fit in memory, ToolchainError (or the child's own error) when one fails; other children are ended first.
    """
    results: dict[Job, Path] = {}
    queue: list[list[Job]] = []
    for job in jobs:
        folder = cached(job)
        if folder:
            results[job] = folder
            on_event(Event(job, "cached"))
            continue
        group = next((g for g in queue if g[0].shares_child(job)), None)
        if group:
            group.append(job)
        else:
            queue.append([job])
    join_small(queue, weight_bytes, 2 * parallel)
    running: list[_Child] = []
    try:
        while queue or running:
            free = psutil.virtual_memory().available
            while queue and len(running) < parallel:
                first = queue[0][0]
                needs = max(needed_bytes(job, weight_bytes(job)) for job in queue[0])
                if running and needs > free - sum(c.needs for c in running) // 2:
                    break
                if needs > free and not os.environ.get("F2I_IGNORE_MEMORY"):
                    raise UsageError(
                        f"{first.label}: needs about {needs / GIB:.1f} GiB of memory, {free / GIB:.1f} GiB are free; close other programs, "
                        "use a machine with more, or set F2I_IGNORE_MEMORY=1 to try all the same"
                    )
                free -= needs
                running.append(_start(queue.pop(0), needs, reference, on_event))
            time.sleep(0.05)
            for child in [c for c in running if c.process.poll() is not None]:
                running.remove(child)
                results |= _finish(child)
    finally:
        for child in running:
            _end(child)
    return results


def join_small(queue: list[list[Job]], weight_bytes: Callable[[Job], int], least: int) -> None:
    """Join the groups of small components that share a toolchain, while ``least`` groups are left to keep all processes busy.

    To import a toolchain takes longer than to lower a small component.
    """

    def weigh(group: list[Job]) -> int:
        return sum({job.component: weight_bytes(job) for job in group}.values())

    for group in list(queue):
        for other in list(queue):
            alike = other is not group and other[0].toolchain == group[0].toolchain
            if alike and group in queue and len(queue) > least and weigh(group) + weigh(other) <= SMALL_BYTES:
                queue.remove(other)
                group += other


def _start(jobs: list[Job], needs: int, reference: Path | None, on_event: Callable[[Event], None]) -> _Child:
    root = cache_root()
    try:
        (root / "logs").mkdir(parents=True, exist_ok=True)
        working = claim(root / WORKING)
        working.path.mkdir()
    except OSError as e:
        raise UsageError(f"{root}: the cache cannot be written: {system_message(e)}; set F2I_CACHE to a folder that can") from e
    log = root / "logs" / f"{jobs[0].key()}.log"
    request = working.path / "request.json"
    request.write_text(json.dumps({"jobs": [asdict(job) for job in jobs], "reference": str(reference) if reference else ""}))
    read_end, write_end = os.pipe()
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*python_child(WORKER), str(request), str(working.path), str(write_end)],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            pass_fds=(write_end,),
            env=_environment(),
            start_new_session=True,  # Ctrl-C reaches the parent, which ends its children in order
        )
    os.close(write_end)
    child = _Child(jobs, process, needs, time.monotonic(), working, log)
    on_event(Event(jobs[0], "running", "start"))
    child.reader = threading.Thread(target=_listen, args=(child, read_end, on_event), daemon=True)
    child.reader.start()
    return child


def _listen(child: _Child, read_end: int, on_event: Callable[[Event], None]) -> None:
    """Follow a child's events until it ends. A result that cannot be kept ends the child: what it does afterwards would be lost too."""
    with os.fdopen(read_end, "r") as events:
        for line in events:
            try:
                _hear(child, json.loads(line), on_event)
            except (OSError, F2IError) as e:
                child.fault = child.fault or e
                child.process.kill()


def _hear(child: _Child, event: dict[str, Any], on_event: Callable[[Event], None]) -> None:
    """Take in one event; a job's result goes to the cache as soon as it is there, whatever happens to the next."""
    child.current = event["job"]
    job = child.jobs[child.current]
    if "error" in event:
        child.error = event["error"]
    elif "done" in event:
        child.results[job] = _keep(job, child.out / str(child.current))
        on_event(Event(job, "done", seconds=time.monotonic() - child.began))
        child.began = time.monotonic()
    else:
        child.stage = event["stage"]
        on_event(Event(job, "running", child.stage, time.monotonic() - child.began))


def _keep(job: Job, result: Path) -> Path:
    """Moves a result into the cache."""
    folder = cache_root() / "jobs" / job.key()
    with exclusive_lock(cache_root() / "jobs.lock", busy="", wait=True):
        if not (folder / RESULT).is_file():
            with atomic_directory(folder, replace=JOB_FOLDER) as staging:
                staging.rmdir()
                result.rename(staging)
    return folder


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "2", "HF_HUB_OFFLINE": "1"}


def _finish(child: _Child) -> dict[Job, Path]:
    """Results of a child that has ended. Raises its error if it did not end well."""
    if child.reader:
        child.reader.join()
    child.claim.release()
    code, job, error = child.process.returncode, child.jobs[child.current], child.error
    if child.fault:
        raise UsageError(
            f"{cache_root()}: the result of {job.label} cannot be kept: {child.fault}; make room there, or set F2I_CACHE to another folder"
        ) from child.fault
    if error and "reason" in error:
        raise ToolchainError(
            component=error["component"], target=error["target"], stage=error["stage"], reason=error["reason"], log=child.log
        )
    if error:
        raise UsageError(error["message"])
    if code != 0:
        reason = f"the process was ended by signal {-code}" if code < 0 else f"the process ended with code {code}"
        if code < 0 and -code == signal.SIGKILL:
            reason += " (most likely by the system, for want of memory)"
        component, target = job.component or "all components", job.target or "torch"
        raise ToolchainError(component=component, target=target, stage=child.stage, reason=reason, log=child.log)
    absent = [j.label for j in child.jobs if j not in child.results]
    if absent:
        raise ToolchainError(
            component=job.component, target=job.target, stage=child.stage, reason=f"no result of {', '.join(absent)}", log=child.log
        )
    return child.results


def _end(child: _Child) -> None:
    if child.process.poll() is None:
        child.process.kill()
        child.process.wait()
    child.claim.release()


def sweep_cache() -> None:
    """Removes what exports that died left in the cache: working folders that nobody holds locked."""
    sweep(cache_root(), WORKING)
