"""The table of a conformance run as Markdown: every failure with its cause, every mutation with what noticed it."""

from __future__ import annotations

import collections
import importlib.metadata
import re

from f2i_runtime.mil.conformance.outcomes import TIGHT, Line, broad_score, claimed_score, judged, score

# Why a test fails, by a pattern of its name and reason; the first that matches is printed.
CAUSES: tuple[tuple[str, str], ...] = (
    (
        "test_stack_dynamic_range_dim.*DID NOT RAISE",
        "Core ML also refuses a program that does not fit the default size of a flexible input; the evaluator runs the size it is given",
    ),
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
    ("time.time", "the test measures its own speed"),
)
# Operations that no test of coremltools judges, and what does instead.
OWN_TESTS = "our own comparison with coremltools' value inference notices it: tests/runtime_py/test_mil_mutants.py"
ELSEWHERE: dict[str, str] = {
    **dict.fromkeys(("acos", "asin", "atanh", "ceil", "cosh", "exp2", "fill", "mod", "reduce_l1_norm", "sinh", "tan"), OWN_TESTS),
    "classify": "returns a name and a dictionary, no tensor; tests/runtime_py/test_mil_mutants.py compares both",
    "make_list": "its elements are zero or unset, of which 1 % is nothing; tests of list_write and list_read judge its length",
    "non_maximum_suppression": "tests/runtime_py/test_mil_mutants.py notices it, on boxes counted by hand",
}


def cause(line: Line, table: tuple[tuple[str, str], ...]) -> str:
    """Returns the cause that is listed for a failure, or the failure's own message."""
    text = f"{line['test']} {line['reason']}"
    for pattern, reason in table:
        if re.search(pattern, text):
            return reason
    return f"unexplained: {line['reason'][:160].replace('|', '/')}"


def render(results: dict[str, list[Line]], mutants: dict[str, tuple[int, int]] | None, taken: str) -> str:
    """Returns the text of the whole file. ``taken`` says which tests were taken. ``mutants`` is None when the mutation part was left out."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("coremltools", "torch", "numpy"))
    every = [line for lines in results.values() for line in lines]
    text = [
        "# Conformance of the ML Program evaluator",
        "",
        "Written by `python -m f2i_runtime.mil.conformance.harness`; do not edit. coremltools' own tests are the judge: each converts a model and",
        "compares `MLModel.predict`, routed to the evaluator, with its own expectation, at its own tolerance or 1e-2 absolute and",
        "relative, whichever is tighter (never under 1e-3). The last column counts those that hold 1e-3: |error| ≤ 1e-3 + 1e-3·|expected|.",
        "",
        f"{versions}; {taken}; suites: {', '.join(results)}; {sum(line['seconds'] for line in every) / 60:.0f} minutes of tests.",
        "",
        "| group | passed at 1e-2 | target | hold 1e-3 |",
        "|---|---|---|---|",
        f"| operations the evaluator claims, random ones apart | {claimed_score(every)} | 99 % | {claimed_score(every, TIGHT)} |",
        f"| all operations but random | {broad_score(every)} | 95 % | {broad_score(every, TIGHT)} |",
        "",
        "| suite | compared | passed | failed | hold 1e-3 | only built | skipped, expected to fail | old format | stopped before a prediction |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for title, lines in results.items():
        compared = score(lines)
        built = sum(line["outcome"] == "passed" and not judged(line) for line in lines)
        left = sum(line["outcome"] in ("skipped", "xfailed") for line in lines)
        old = sum(line["old_format"] and line["outcome"] == "failed" for line in lines)
        text.append(
            f"| {title} | {compared.passed + compared.failed} | {compared.passed} | {compared.failed} | {score(lines, TIGHT).passed} | {built}"
            f" | {left} | {old} | {len(_early(lines))} |"
        )
    text += ["", "## Every failure and its cause", "", "| test | cause |", "|---|---|"]
    for line in every:
        if judged(line) and line["outcome"] == "failed":
            text.append(f"| `{line['test'].split('/')[-1].replace('|', '/')}` | {cause(line, CAUSES)} |")
    text += ["", "## Stopped before a prediction", "", "The conversion itself failed; the evaluator was not asked.", ""]
    text += ["| tests | cause |", "|---|---|"]
    early = collections.Counter(cause(line, BEFORE) for line in _early(every))
    text += [f"| {count} | {reason} |" for reason, count in early.most_common()]
    return "\n".join([*text, *([] if mutants is None else _mutations(mutants))]) + "\n"


def _early(lines: list[Line]) -> list[Line]:
    return [line for line in lines if line["outcome"] == "failed" and not judged(line) and not line["old_format"]]


def _mutations(mutants: dict[str, tuple[int, int]]) -> list[str]:
    ran, caught = (sum(pair[side] for pair in mutants.values()) for side in (0, 1))
    noticed = [name for name, pair in mutants.items() if pair[1]]
    text = [
        "",
        "## Mutations: one operation wrong",
        "",
        "Each operation in turn returns floats wrong by 1 % (integers off by one and booleans inverted in one element of a hundred). The judges",
        "are tests that hold the operation and, unmutated, hold 1e-3; a mutation is caught when they no longer do.",
        "",
        f"{len(noticed)} of {len(mutants)} operations are caught; {caught} of {ran} pairs of operation and test.",
        "",
        "| operation | tests tried | caught |",
        "|---|---|---|",
    ]
    text += [f"| {name} | {ran} | {caught} |" for name, (ran, caught) in mutants.items() if caught]
    rest = [name for name, pair in mutants.items() if not pair[1]]
    if rest:
        text += ["", "Operations that no test of the sample notices:", "", "| operation | tests tried | what judges it |", "|---|---|---|"]
        text += [f"| {name} | {mutants[name][0]} | {ELSEWHERE.get(name, 'nothing yet')} |" for name in rest]
    return text
