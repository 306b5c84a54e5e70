"""The mutation part of the conformance run: every operation made wrong in turn, judged by the tests that hold it.

A test is a control before it is a judge: unmutated it must have held :data:`f2i_runtime.mil.conformance.outcomes.TIGHT`. A mutation is caught when the
test then fails or exceeds that.
"""

from __future__ import annotations

import json
from pathlib import Path

from f2i_runtime.mil.conformance.coremltools_tests import coremltools_folder, run_tests
from f2i_runtime.mil.conformance.outcomes import TIGHT, Line, judged, within
from f2i_runtime.mil.format import constexpr
from f2i_runtime.mil.ops import optable

TESTS = 2
"""The most tests that each operation is tried on. Tests with few operations come first, then fast ones."""
ROUNDS = 3
"""The most runs. In each run, a test judges one operation."""
RANDOM = frozenset({"random_bernoulli", "random_categorical", "random_normal", "random_uniform"})


def operations() -> list[str]:
    """Returns all operations that can be mutated: those that the evaluator knows, decompression included, without the random ones."""
    return sorted((set(optable.OPERATIONS) | set(constexpr.TABLE)) - RANDOM)


def run_mutants(lines: list[Line], folder: Path) -> dict[str, tuple[int, int]]:
    """Runs tests of ``lines`` again with one operation they hold made wrong: operation → how many tests ran, how many noticed.

    Results are kept in ``folder``, a file per round; a run that finds them there goes on.
    """
    controls = [line for line in lines if judged(line) and within(line, TIGHT) and not line["random"]]
    controls.sort(key=lambda line: (len(line["operations"]), line["seconds"], line["test"]))
    holders = {name: [line["test"] for line in controls if name in line["operations"]] for name in operations()}
    verdicts: dict[str, list[bool]] = {name: [] for name in holders}
    tried: set[tuple[str, str]] = set()
    for number in range(ROUNDS):
        chosen = _assign({name: [t for t in tests if (name, t) not in tried] for name, tests in holders.items() if not any(verdicts[name])})
        if not chosen:
            break
        plan = folder / f"mutants-{number}.json"
        if plan.is_file():  # a run that was stopped: its assignment holds, whatever tests have come in since
            chosen = json.loads(plan.read_text())
        plan.write_text(json.dumps(chosen))
        tests = sorted({str(coremltools_folder() / test.partition("::")[0]) for test in chosen})
        for line in run_tests(tests, folder / f"mutants-{number}.jsonl", ["--mil-mutants", str(plan.resolve())]):
            verdicts[chosen[line["test"]]].append(not within(line, TIGHT))
        tried |= {(name, test) for test, name in chosen.items()}
    return {name: (len(noticed), sum(noticed)) for name, noticed in verdicts.items()}


def _assign(holders: dict[str, list[str]]) -> dict[str, str]:
    """Returns a map from each test to the operation that it judges. Rare operations come first."""
    chosen: dict[str, str] = {}
    for name in sorted(holders, key=lambda name: len(holders[name])):
        free = [test for test in holders[name] if test not in chosen]
        chosen |= dict.fromkeys(free[:TESTS], name)
    return chosen
