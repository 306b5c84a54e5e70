"""A compiler's process, watched: with a limit of time and of memory, a working folder that is removed whatever happens, and a log that a failure keeps."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
from f2i_runtime.errors import UsageError, system_message
from f2i_runtime.files import cache_root
from f2i_runtime.locks import claim, sweep

GIB = 1 << 30
POLL_SECONDS = 0.05
WORKING = "compile"
"""What a child's working folder in the cache is staged for; one whose parent died is removed by the next compilation."""


@dataclass(frozen=True)
class Limits:
    """What a child and its own children may take: seconds, and bytes of resident memory. 0 bytes: nine tenths of what is free when it starts."""

    seconds: float = 1800.0
    memory_bytes: int = 0


@contextlib.contextmanager
def working_folder(name: str) -> Iterator[tuple[Path, Path]]:
    """Gives an empty folder in the cache, and the path of a log, named for ``name``. The folder is removed afterwards, the log only where the block succeeds.

    Raises UsageError where the cache cannot be written.
    """
    try:
        logs = cache_root() / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        handle, path = tempfile.mkstemp(prefix=f"hexagon-{name.replace('/', '-')}-", suffix=".log", dir=logs)
    except OSError as e:
        raise UsageError(f"{cache_root()}: the cache cannot be written: {system_message(e)}; set F2I_CACHE to a folder that can") from e
    os.close(handle)
    log = Path(path)
    sweep(cache_root(), WORKING)
    working = claim(cache_root() / WORKING)
    try:
        working.path.mkdir()
        yield working.path, log
    finally:
        working.release()
    log.unlink(missing_ok=True)


def watch(command: Sequence[str], folder: Path, log: Path, limits: Limits) -> str:
    """Runs a command in ``folder`` until it ends or takes more than it may; its words are added to ``log``. Returns what went wrong, or nothing.

    The command is the leader of a process group, and whatever is left of the group when it ends is ended with it.
    """
    with log.open("ab") as sink:
        process = _start(command, folder, sink)
    began, limit = time.monotonic(), limits.memory_bytes or int(psutil.virtual_memory().available * 0.9)
    try:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            if time.monotonic() - began > limits.seconds:
                return f"it took more than {limits.seconds:g} s and was ended; try a smaller tile"
            if (used := _resident(process.pid)) > limit:
                return f"it took {used / GIB:.1f} GiB of memory, more than {limit / GIB:.1f}, and was ended; try a smaller tile"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return _ending(process.returncode)


def _start(command: Sequence[str], folder: Path, sink: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True)


def _resident(pid: int) -> int:
    """Bytes of memory that a process and its descendants hold."""
    total = 0
    with contextlib.suppress(psutil.Error):
        own = psutil.Process(pid)
        for process in (own, *own.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += int(process.memory_info().rss)
    return total


def _ending(code: int) -> str:
    if code == -signal.SIGKILL:
        return "the compiler's process was killed (most likely by the system, for want of memory)"
    if code:
        return f"the compiler's process was ended by signal {-code}" if code < 0 else f"the compiler's process ended with code {code}"
    return ""
