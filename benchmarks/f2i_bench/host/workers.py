"""Child processes that measure: one per variant and number of threads, asked by JSON lines. A child that dies or hangs costs its own answer."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any

from f2i_runtime.child_process import python_child
from f2i_runtime.errors import ToolchainError

ANSWER_SECONDS = 900.0


class Worker:
    """A running ``f2i_bench.host.host_worker``. ``label`` is what errors call it."""

    def __init__(self, label: str, component: str = "the variant", target: str = "host") -> None:
        self.label, self.component, self.target = label, component, target
        self.log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        self.process = subprocess.Popen(
            python_child("f2i_bench.host.host_worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
        )

    def ask(self, request: dict[str, Any], seconds: float = ANSWER_SECONDS) -> Any:
        """Send a request and wait for its answer. Raises ToolchainError when the engine failed, the process died or the time is up."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as e:
            raise self._error(request["do"], f"the process ended with code {self.process.wait()}: {self._last_words()}") from e
        line, end = b"", time.monotonic() + seconds
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                self.close()
                raise self._error(request["do"], f"no answer in {seconds:.0f} s")
            piece = self.process.stdout.readline()
            if not piece:
                raise self._error(request["do"], f"the process ended with code {self.process.wait()}: {self._last_words()}")
            line += piece
        reply = json.loads(line)
        if "error" in reply:
            raise self._error(request["do"], reply["error"])
        return reply["ok"]

    def close(self) -> None:
        """End the process."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.log):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()

    def _last_words(self) -> str:
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def _error(self, stage: str, reason: str) -> ToolchainError:
        return ToolchainError(component=f"{self.component} ({self.label})", target=self.target, stage=stage, reason=reason)


@contextlib.contextmanager
def worker(label: str, target: str = "host") -> Iterator[Worker]:
    """A worker for one job, ended afterwards."""
    made = Worker(label, target=target)
    try:
        yield made
    finally:
        made.close()
