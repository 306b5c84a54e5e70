"""Runs coremltools' own operation tests against the evaluator and writes the table in ``CONFORMANCE.md``.

    python -m runtime_py.mil.conformance                # a seeded sample: 4 tests of every test function, both suites
    python -m runtime_py.mil.conformance --all          # every test, hours
    python -m runtime_py.mil.conformance --sample 2 --minutes 25 --keep results --out table.md

The tests are those of the installed coremltools (its MIL operation tests and its PyTorch front end's), run in place and never copied. Each
runs its conversion, then compares ``MLModel.predict``, which the plugin routes to the evaluator, with the test's own expectation at 1e-2 or
tighter. Afterwards operations are made wrong by 1 % one at a time, and tests that passed must fail.
"""

from __future__ import annotations

import argparse
import collections
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime_py.errors import MissingPackageError, ToolchainError

OUT_OF_TIME = "not run: out of time"

SUITES = {
    "MIL operations": ("converters/mil/mil/ops/tests",),
    "PyTorch front end": (
        "converters/mil/frontend/torch/test/test_torch_ops.py",
        "converters/mil/frontend/torch/test/test_torch_quantization_ops.py",
        "converters/mil/frontend/torch/test/test_torch_stateful_model.py",
    ),
}
MUTATED = (
    "add", "avg_pool", "batch_norm", "conv", "conv_transpose", "erf", "exp", "gelu", "instance_norm", "layer_norm", "linear", "lstm",
    "matmul", "mul", "reduce_mean", "resize_bilinear", "rsqrt", "sigmoid", "silu", "softmax", "sqrt", "tanh", "upsample_bilinear",
)  # fmt: skip
MUTANT_TESTS = 8
"""Tests that each mutated operation is tried on, at most."""
OUT = Path(__file__).with_name("CONFORMANCE.md")

# Why a test fails, by a pattern of its name and reason; the first that matches is printed.
CAUSES: tuple[tuple[str, str], ...] = (
    ("DID NOT RAISE RuntimeError", "the test expects an input outside the declared range to be refused; the evaluator runs it"),
    (
        "TestScatter::test_ios17_invalid_indices",
        "an index outside the data without `validate_indices`; the evaluator refuses it, Core ML does not",
    ),
    (
        "TestCropResize::test_builder_to_backend_smoke",
        "a box that starts beyond the image and ends before it starts; the evaluator pads, Core ML returns the whole image resized",
    ),
    ("only 0-dimensional arrays", "coremltools 9.0 calls int() on one-element arrays, which NumPy 2.4 refuses (issue 2633)"),
    ("was never written", "reads an element of a list of run-time shape before it was written; the evaluator refuses to invent one"),
)
# Why a test never reached a prediction: failures of the conversion, before the evaluator is asked.
BEFORE: tuple[tuple[str, str], ...] = (
    (
        "only 0-dimensional arrays can be converted",
        "coremltools 9.0 calls int() on one-element arrays, which NumPy 2.4 refuses (issue 2633)",
    ),
    ("torchvision", "the test needs torchvision"),
    ("running_mean and running_var must either", "torch 2.13 refuses the module the test builds"),
)


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
    """Runs the command; 0 when both targets are met and every mutation is caught, 1 otherwise."""
    options = _parser().parse_args(arguments)
    root = _coremltools()
    size = 0 if options.all else options.sample
    with tempfile.TemporaryDirectory(prefix="mil-conformance-") as folder:
        results: dict[str, list[dict[str, Any]]] = {}
        for title in options.suite or SUITES:
            paths = SUITES[title]
            print(f"{title}: {', '.join(paths)}", file=sys.stderr)  # noqa: T201  # a command's progress
            tests = [str(root / path) for path in paths]
            kept = options.keep / f"{title}.jsonl" if options.keep else Path(folder) / "absent"
            if not kept.is_file():
                sample = ["--mil-sample", str(size), "--mil-seed", str(options.seed), "--mil-minutes", str(options.minutes)]
                lines = run_tests(tests, Path(folder), sample)
                if options.keep:
                    options.keep.mkdir(parents=True, exist_ok=True)
                    kept.write_text("".join(json.dumps(line) + "\n" for line in lines))
            else:
                lines = [json.loads(line) for line in kept.read_text().splitlines()]
            results[title] = [line for line in lines if OUT_OF_TIME not in line["reason"]]
        mutants: dict[str, tuple[int, int]] = {}
        options.out.write_text(render(results, mutants, options))
        if not options.no_mutants:
            mutants = run_mutants(results, root, Path(folder))
    options.out.write_text(render(results, mutants, options))
    print(options.out, file=sys.stderr)  # noqa: T201  # as above
    every = [line for lines in results.values() for line in lines]
    caught = all(failed == ran for ran, failed in mutants.values())
    return 0 if claimed_score(every).rate >= 0.99 and broad_score(every).rate >= 0.95 and caught else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m runtime_py.mil.conformance", description="coremltools' own tests against the evaluator"
    )
    parser.add_argument("--sample", type=int, default=4, help="tests taken per test function (default 4)")
    parser.add_argument("--all", action="store_true", help="every test")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample (default 0)")
    parser.add_argument("--minutes", type=float, default=0, help="longest that a suite may take, in shuffled order (default: no limit)")
    parser.add_argument("--keep", type=Path, help="folder to keep each suite's results in, or to take them from if they are there")
    parser.add_argument("--suite", action="append", choices=list(SUITES), help="suite to run, repeatable (default: all)")
    parser.add_argument("--no-mutants", action="store_true", help="leave out the mutation evidence")
    parser.add_argument("--out", type=Path, default=OUT, help="file to write (default: beside this module)")
    return parser


def _coremltools() -> Path:
    spec = importlib.util.find_spec("coremltools")
    if spec is None or spec.origin is None:
        raise MissingPackageError("coremltools", "the conformance run", "run-coreml")
    return Path(spec.origin).parent


def run_tests(tests: list[str], folder: Path, options: list[str]) -> list[dict[str, Any]]:
    """Runs ``tests`` (paths or node ids) in a process of its own; one record per test, as the plugin writes them."""
    results = folder / f"results-{len(list(folder.iterdir()))}.jsonl"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        os.devnull,
        "--rootdir",
        str(_coremltools()),
        "-p",
        "runtime_py.mil.conformance_plugin",
    ]
    command += ["-p", "no:cacheprovider", "-q", "-W", "ignore", "--no-header", "--tb=no", "--continue-on-collection-errors"]
    command += ["--mil-results", str(results), *options, *tests]
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if not results.exists():
        raise ToolchainError(component="conformance", target="coreml", stage="pytest", reason=done.stdout[-400:] + done.stderr[-400:])
    return [json.loads(line) for line in results.read_text().splitlines()]


def run_mutants(results: dict[str, list[dict[str, Any]]], root: Path, folder: Path) -> dict[str, tuple[int, int]]:
    """Tests that passed, run again with an operation they hold wrong by 1 %: operation → how many ran, how many failed.

    Each test is used for one operation, the rarest it holds that still lacks tests.
    """
    passed = [line for lines in results.values() for line in lines if line["outcome"] == "passed" and judged(line) and not line["random"]]
    holders = {name: [line["test"] for line in passed if name in line["operations"]] for name in MUTATED}
    chosen: dict[str, str] = {}
    for name in sorted(holders, key=lambda name: len(holders[name])):
        free = [test for test in holders[name] if test not in chosen]
        chosen |= dict.fromkeys(free[:MUTANT_TESTS], name)
    plan = folder / "mutants.json"
    plan.write_text(json.dumps(chosen))
    lines = run_tests([str(root / test) for test in chosen], folder, ["--mil-mutants", str(plan)]) if chosen else []
    outcomes: dict[str, list[bool]] = {name: [] for name in MUTATED}
    for line in lines:
        outcomes[chosen[line["test"]]].append(line["outcome"] == "failed")
    return {name: (len(failed), sum(failed)) for name, failed in outcomes.items()}


def judged(line: dict[str, Any]) -> bool:
    """Whether a test reached the evaluator: it predicted, or failed with a model that is an ML Program."""
    if line["old_format"] or line["outcome"] not in ("passed", "failed"):
        return False
    return bool(line["predicted"]) if line["outcome"] == "passed" else bool(line["operations"])


def _score(lines: list[dict[str, Any]]) -> Score:
    return Score(sum(line["outcome"] == "passed" for line in lines), sum(line["outcome"] == "failed" for line in lines))


def claimed_score(lines: list[dict[str, Any]]) -> Score:
    """Tests all of whose operations the evaluator claims to know, random ones apart."""
    return _score([line for line in lines if judged(line) and not line["unclaimed"] and not line["random"]])


def broad_score(lines: list[dict[str, Any]]) -> Score:
    """All tests but those of random numbers."""
    return _score([line for line in lines if judged(line) and not line["random"]])


def cause(line: dict[str, Any], table: tuple[tuple[str, str], ...]) -> str:
    """The cause listed for a failure, or what it says itself."""
    text = f"{line['test']} {line['reason']}"
    for pattern, reason in table:
        if re.search(pattern, text):
            return reason
    return f"unexplained: {line['reason'][:160].replace('|', '/')}"


def render(results: dict[str, list[dict[str, Any]]], mutants: dict[str, tuple[int, int]], options: argparse.Namespace) -> str:
    """The table as Markdown."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("coremltools", "torch", "numpy"))
    taken = "every test" if options.all else f"at most {options.sample} tests of every test function, seed {options.seed}"
    if options.minutes:
        taken += ", shuffled and stopped when the time given was up"
    every = [line for lines in results.values() for line in lines]
    text = [
        "# Conformance of the ML Program evaluator",
        "",
        "Written by `python -m runtime_py.mil.conformance`; do not edit. coremltools' own tests are the judge: each converts a model and",
        "compares `MLModel.predict`, routed to the evaluator, with its own expectation, at its own tolerance or 1e-2 absolute and",
        "relative, whichever is tighter (never under 1e-4).",
        "",
        f"{versions}; {taken}; suites: {', '.join(results)}; {sum(line['seconds'] for line in every) / 60:.0f} minutes of tests.",
        "",
        "| group | passed | target |",
        "|---|---|---|",
        f"| operations the evaluator claims, random ones apart | {claimed_score(every)} | 99 % |",
        f"| all operations but random | {broad_score(every)} | 95 % |",
        "",
        "| suite | compared | passed | failed | only built | skipped, expected to fail | old format | stopped before a prediction |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for title, lines in results.items():
        compared = _score([line for line in lines if judged(line)])
        built = sum(line["outcome"] == "passed" and not judged(line) for line in lines)
        left = sum(line["outcome"] in ("skipped", "xfailed") for line in lines)
        old = sum(line["old_format"] and line["outcome"] == "failed" for line in lines)
        early = sum(line["outcome"] == "failed" and not judged(line) and not line["old_format"] for line in lines)
        text.append(
            f"| {title} | {compared.passed + compared.failed} | {compared.passed} | {compared.failed} | {built} | {left} | {old}"
            f" | {early} |"
        )
    text += ["", "## Every failure and its cause", "", "| test | cause |", "|---|---|"]
    for line in every:
        if judged(line) and line["outcome"] == "failed":
            text.append(f"| `{line['test'].split('/')[-1].replace('|', '/')}` | {cause(line, CAUSES)} |")
    text += [
        "",
        "## Stopped before a prediction",
        "",
        "The conversion itself failed; the evaluator was not asked.",
        "",
        "| tests | cause |",
        "|---|---|",
    ]
    early_causes = collections.Counter(
        cause(line, BEFORE) for line in every if line["outcome"] == "failed" and not judged(line) and not line["old_format"]
    )
    text += [f"| {count} | {reason} |" for reason, count in early_causes.most_common()]
    if mutants:
        text += [
            "",
            "## Mutations: an operation wrong by 1 %",
            "",
            "| operation | tests that hold it and passed | fail with the mutation |",
            "|---|---|---|",
        ]
        text += [f"| {name} | {ran} | {failed} |" for name, (ran, failed) in mutants.items()]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
