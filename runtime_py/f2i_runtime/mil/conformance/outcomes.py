"""What a conformance run knows about each of coremltools' tests, one JSON line a test, and how many of them passed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Line = dict[str, Any]
"""What the plugin writes about one test."""
OUT_OF_TIME = "not run: out of time"
TIGHT = 1e-3
"""The tolerance, absolute and relative, at which mutations are judged: 1 % is ten times that."""


@dataclass(frozen=True)
class Score:
    """Counts for one group of the tests that reached the evaluator."""

    passed: int
    failed: int

    @property
    def rate(self) -> float:
        """Returns the share of tests that passed; 1 for an empty group."""
        return self.passed / (self.passed + self.failed) if self.passed + self.failed else 1.0

    def __str__(self) -> str:
        return f"{self.passed} of {self.passed + self.failed} ({self.rate:.2%})"


def read_lines(results: Path) -> list[Line]:
    """The lines of a results file, none when it does not exist; one cut short by a kill is left out."""
    text = results.read_text() if results.is_file() else ""
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def judged(line: Line) -> bool:
    """Returns whether a test reached the evaluator: it made a prediction, or it failed with a model that is an ML Program."""
    if line["old_format"] or line["outcome"] not in ("passed", "failed"):
        return False
    return bool(line["predicted"]) if line["outcome"] == "passed" else bool(line["operations"])


def within(line: Line, tolerance: float) -> bool:
    """Whether a test passed and no comparison of its predictions needed more than ``tolerance``."""
    return line["outcome"] == "passed" and (line["needed"] is None or line["needed"] <= tolerance)


def score(lines: list[Line], tolerance: float = 1e-2) -> Score:
    """Returns how many of the tests in ``lines`` that reached the evaluator stay within ``tolerance``. At 1e-2, the verdict of the test itself
    counts.
    """
    reached = [line for line in lines if judged(line)]
    passed = sum(line["outcome"] == "passed" if tolerance >= 1e-2 else within(line, tolerance) for line in reached)
    return Score(passed, len(reached) - passed)


def claimed_score(lines: list[Line], tolerance: float = 1e-2) -> Score:
    """Returns the tests whose operations are all known to the evaluator, without the tests of random operations."""
    return score([line for line in lines if not line["unclaimed"] and not line["random"]], tolerance)


def broad_score(lines: list[Line], tolerance: float = 1e-2) -> Score:
    """Returns all tests except those of random numbers."""
    return score([line for line in lines if not line["random"]], tolerance)
