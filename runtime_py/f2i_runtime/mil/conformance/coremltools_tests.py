"""Runs test files of the installed coremltools in a process of their own, with the evaluator in Core ML's place."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from f2i_runtime.child_process import python_child
from f2i_runtime.errors import MissingPackageError, ToolchainError
from f2i_runtime.mil.conformance.outcomes import Line, read_lines


def coremltools_folder() -> Path:
    """Where coremltools is installed; raises :class:`MissingPackageError` when it is not."""
    spec = importlib.util.find_spec("coremltools")
    if spec is None or spec.origin is None:
        raise MissingPackageError("coremltools", "the conformance run", "run-coreml")
    return Path(spec.origin).parent


def run_tests(tests: list[str], results: Path, options: list[str]) -> list[Line]:
    """Runs the test files ``tests`` in a process of its own, but not those that the file ``results`` holds already; all its lines.

    Raises :class:`ToolchainError` when pytest itself fails.
    """
    command = [*python_child("pytest"), "-c", os.devnull, "--rootdir", str(coremltools_folder())]
    command += [
        "-p",
        "f2i_runtime.mil.conformance.coremltools_plugin",
        "-p",
        "no:cacheprovider",
        "-q",
        "-W",
        "ignore",
        "--no-header",
        "--tb=no",
    ]
    command += ["--continue-on-collection-errors", "--mil-results", str(results.resolve()), *options, *tests]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    before = len(read_lines(results))
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, cwd=results.parent, env=environment, stdout=said, stderr=subprocess.STDOUT)
        try:
            _watch(process, results, before)
        finally:
            process.terminate()
            process.wait()
        said.seek(0)
        output = said.read()
    if process.returncode not in (0, 1, 2, 5):  # 2: the time was up; 5: every test is in the file already
        raise ToolchainError(component="conformance", target="coreml", stage="pytest", reason=output[-800:])
    return read_lines(results)


def _watch(process: subprocess.Popen[bytes], results: Path, before: int) -> None:
    began = time.monotonic()
    while process.poll() is None:
        time.sleep(0.5)
        if sys.stderr.isatty():
            done, spent = len(read_lines(results)) - before, (time.monotonic() - began) / 60
            print(f"\r{results.stem}: {done} tests, {spent:.1f} min", end="", file=sys.stderr)  # noqa: T201  # a command's progress
