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
import sys
import tempfile
from pathlib import Path

from f2i_runtime.mil.conformance.conformance_table import ELSEWHERE, render
from f2i_runtime.mil.conformance.coremltools_tests import coremltools_folder, run_tests
from f2i_runtime.mil.conformance.mutants import run_mutants
from f2i_runtime.mil.conformance.outcomes import Line, broad_score, claimed_score

SUITES = {
    "MIL operations": ("converters/mil/mil/ops/tests",),
    "PyTorch front end": (
        "converters/mil/frontend/torch/test/test_torch_ops.py",
        "converters/mil/frontend/torch/test/test_torch_quantization_ops.py",
        "converters/mil/frontend/torch/test/test_torch_stateful_model.py",
    ),
}
OUT = Path(__file__).with_name("CONFORMANCE.md")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0 when both targets are met and every mutated operation is noticed, 1 otherwise."""
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


if __name__ == "__main__":
    raise SystemExit(main())
