"""Statistics of latencies: summaries with intervals, and the verdict faster, slower or inconclusive between two measurements.

Latencies that follow one another are not independent: a neighbour on the machine, a clock that steps down, last for many runs. So a row is
measured in rounds with other rows in between, and the round, not the run, is the unit that intervals are made of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import t as student

Verdict = Literal["faster", "slower", "inconclusive"]
MARGIN = 0.05
"""A difference that nobody would act on. A verdict needs the whole interval beyond it, so that a longer run cannot make noise significant."""
COUNT_MARGIN, COUNT_NOISE = 0.01, 0.001
"""The margin for counted instructions, which do not depend on the machine: a difference that nobody would act on, and how far a repeated count may
differ.
"""
CONFIDENCE = 0.98
LEAST_ROUNDS = 3
RESAMPLES = 2000


@dataclass(frozen=True)
class Summary:
    """A summary of latencies in ns: the median, the 90th percentile, and the 95 % bootstrap interval of the median."""

    median: int
    p90: int
    low: int
    high: int


@dataclass(frozen=True)
class Comparison:
    """The ratio current ÷ baseline (above 1 is slower), its interval, and the verdict."""

    ratio: float
    low: float
    high: float
    verdict: Verdict


def summarize(rounds: Sequence[Sequence[int]], seed: int = 0) -> Summary:
    """Latencies in ns, by round, at least one in all → their summary.

    The interval is a cluster bootstrap: rounds are drawn with replacement, then runs within each (Davison and Hinkley, Bootstrap Methods, 1997,
    section 3.8), percentile method.
    """
    filled = [np.asarray(r, np.float64) for r in rounds if len(r)]
    pooled = np.concatenate(filled)
    draw = np.random.default_rng(seed)
    medians = np.empty(RESAMPLES)
    for k in range(RESAMPLES):
        chosen = draw.integers(0, len(filled), len(filled))
        medians[k] = np.median(np.concatenate([filled[c][draw.integers(0, len(filled[c]), len(filled[c]))] for c in chosen]))
    low, high = np.quantile(medians, (0.025, 0.975))
    return Summary(int(np.median(pooled)), int(np.quantile(pooled, 0.9)), int(low), int(high))


def compare(baseline: Sequence[Sequence[int]], current: Sequence[Sequence[int]], margin: float = MARGIN) -> Comparison:
    """Rounds of latencies in ns, of the same thing measured twice → whether it changed.

    The interval is Welch's, on the logarithms of the rounds' medians, which a few rounds support where a bootstrap of so few would be too narrow.
    ``faster`` or ``slower`` only when all of it lies beyond ``margin``. With fewer than three rounds on a side nothing is concluded.
    """
    a, b = (np.log([float(np.median(r)) for r in side if len(r)]) for side in (baseline, current))
    difference = float(b.mean() - a.mean())
    if min(len(a), len(b)) < LEAST_ROUNDS:
        return Comparison(math.exp(difference), 0.0, math.inf, "inconclusive")
    half = _half_width(a, b)
    low, high = math.exp(difference - half), math.exp(difference + half)
    verdict: Verdict = "slower" if low > 1 + margin else "faster" if high < 1 / (1 + margin) else "inconclusive"
    return Comparison(math.exp(difference), low, high, verdict)


def compare_counts(baseline: int, current: int) -> Comparison:
    """Instructions of the same thing, counted twice → whether it changed by more than a hundredth."""
    ratio = current / baseline
    low, high = ratio / (1 + COUNT_NOISE), ratio * (1 + COUNT_NOISE)
    verdict: Verdict = "slower" if low > 1 + COUNT_MARGIN else "faster" if high < 1 / (1 + COUNT_MARGIN) else "inconclusive"
    return Comparison(ratio, low, high, verdict)


def _half_width(a: np.ndarray, b: np.ndarray) -> float:
    """Half of Welch's interval for the difference of means (Welch 1947), with Satterthwaite's degrees of freedom."""
    variances = np.array([a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)])
    total = float(variances.sum())
    if total == 0:
        return 0.0
    freedom = total**2 / float((variances**2 / np.array([len(a) - 1, len(b) - 1])).sum())
    return float(student.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(total)
