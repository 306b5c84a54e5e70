"""Runs coremltools' own operation tests against the evaluator and writes the table in ``CONFORMANCE.md``.

    python -m f2i_runtime.mil.conformance.harness                # a seeded sample of both suites
    python -m f2i_runtime.mil.conformance.harness --all          # every test, hours
    python -m f2i_runtime.mil.conformance.harness --sample 2 --minutes 25 --keep results --out table.md

The tests are those of the installed coremltools (its MIL operation tests and its PyTorch front end's), run in place and never copied. Each
runs its conversion, then compares ``MLModel.predict``, which the plugin routes to the evaluator, with the test's own expectation at 1e-2 or
tighter; the error itself is kept, so that the same run says how many hold a tenth of that. Then every operation is made wrong by 1 %
in turn, and tests that held the tighter limit must break it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from f2i_runtime.child_process import python_child
from f2i_runtime.errors import MissingPackageError, ToolchainError

Line = dict[str, Any]
"""What the plugin writes about one test."""
OUT_OF_TIME = "not run: out of time"
TIGHT = 1e-3
"""The tolerance, absolute and relative, at which mutations are judged: 1 % is ten times that."""

SUITES = {
    "MIL operations": ("converters/mil/mil/ops/tests",),
    "PyTorch front end": (
        "converters/mil/frontend/torch/test/test_torch_ops.py",
        "converters/mil/frontend/torch/test/test_torch_quantization_ops.py",
        "converters/mil/frontend/torch/test/test_torch_stateful_model.py",
    ),
}
OUT = Path(__file__).with_name("CONFORMANCE.md")


@dataclass(frozen=True)
class Score:
    """Counts of one group of tests that reached the evaluator."""

    passed: int
    failed: int

    @property
    def rate(self) -> float:
        """Share passed, 1 for an empty group."""
        return self.passed / (self.passed + self.failed) if self.passed + self.failed else 1.0

    def __str__(self) -> str:
        return f"{self.passed} of {self.passed + self.failed} ({self.rate:.2%})"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0 when both targets are met and every mutated operation is noticed, 1 otherwise."""
    from f2i_runtime.mil.conformance.conformance_table import ELSEWHERE, render
    from f2i_runtime.mil.conformance.mutants import run_mutants

    options = _parser().parse_args(arguments)
    root = coremltools_folder()
    taken = (
        "every test"
        if options.all
        else f"at most {options.sample} tests of every test function and parameter that is a name, seed {options.seed}"
    )
    if options.minutes:
        taken += ", shuffled and stopped when the time given was up"
    with tempfile.TemporaryDirectory(prefix="mil-conformance-") as scratch:
        folder = options.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        results: dict[str, list[Line]] = {}
        for title in options.suite or SUITES:
            sample = ["--mil-sample", str(0 if options.all else options.sample), "--mil-seed", str(options.seed)]
            sample += ["--mil-minutes", str(options.minutes)]
            results[title] = run_tests([str(root / path) for path in SUITES[title]], folder / f"{title}.jsonl", sample)
        mutants = None if options.no_mutants else run_mutants([line for lines in results.values() for line in lines], folder)
    options.out.write_text(render(results, mutants, taken))
    print(options.out, file=sys.stderr)  # noqa: T201  # a command's answer
    every = [line for lines in results.values() for line in lines]
    missed = [name for name, (tried, caught) in (mutants or {}).items() if not caught and name not in ELSEWHERE]
    return 0 if claimed_score(every).rate >= 0.99 and broad_score(every).rate >= 0.95 and not missed else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m f2i_runtime.mil.conformance.harness", description="coremltools' own tests against the evaluator"
    )
    parser.add_argument("--sample", type=int, default=2, help="tests taken per test function and parameter that is a name (default 2)")
    parser.add_argument("--all", action="store_true", help="every test")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample (default 0)")
    parser.add_argument(
        "--minutes", type=float, default=0, help="longest that a suite may take this time, in shuffled order (default: no limit)"
    )
    parser.add_argument("--keep", type=Path, help="folder that keeps every test's result; a later run goes on from there")
    parser.add_argument("--suite", action="append", choices=list(SUITES), help="suite to run, repeatable (default: all)")
    parser.add_argument("--no-mutants", action="store_true", help="leave out the mutation evidence")
    parser.add_argument("--out", type=Path, default=OUT, help="file to write (default: beside this module)")
    return parser


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


def read_lines(results: Path) -> list[Line]:
    """The lines of a results file, none when it does not exist; one cut short by a kill is left out."""
    text = results.read_text() if results.is_file() else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def judged(line: Line) -> bool:
    """Whether a test reached the evaluator: it predicted, or failed with a model that is an ML Program."""
    if line["old_format"] or line["outcome"] not in ("passed", "failed"):
        return False
    return bool(line["predicted"]) if line["outcome"] == "passed" else bool(line["operations"])


def within(line: Line, tolerance: float) -> bool:
    """Whether a test passed and no comparison of its predictions needed more than ``tolerance``."""
    return line["outcome"] == "passed" and (line["needed"] is None or line["needed"] <= tolerance)


def score(lines: list[Line], tolerance: float = 1e-2) -> Score:
    """How many of the tests among ``lines`` that reached the evaluator hold ``tolerance``; at 1e-2 the tests' own verdict counts."""
    reached = [line for line in lines if judged(line)]
    passed = sum(line["outcome"] == "passed" if tolerance >= 1e-2 else within(line, tolerance) for line in reached)
    return Score(passed, len(reached) - passed)


def claimed_score(lines: list[Line], tolerance: float = 1e-2) -> Score:
    """Tests all of whose operations the evaluator claims to know, random ones apart."""
    return score([line for line in lines if not line["unclaimed"] and not line["random"]], tolerance)


def broad_score(lines: list[Line], tolerance: float = 1e-2) -> Score:
    """All tests but those of random numbers."""
    return score([line for line in lines if not line["random"]], tolerance)


if __name__ == "__main__":
    raise SystemExit(main())
