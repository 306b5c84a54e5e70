"""What the compiler's profile says: the rows of its CSV file, read into one record."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypedDict

MICROSECONDS = "Simulated (Accelerator exec time us)"
LOWER = "Simulated (Accelerator exec time us (lower estimate))"
UPPER = "Simulated (Accelerator exec time us (upper estimate))"
MISSING = "Missing Ops (Number of Ops with no Costs associated)"
INPUT_FILL, FILL, SPILL, OUTPUT_SPILL = "Input Fill", "Intermediate Fill", "Intermediate Spill", "Output Spill"
PER_MS = 1000
"""Microseconds in a millisecond."""
VALUE = 2
"""The column of a row that holds its figure; the last one holds its name."""


class Milliseconds(TypedDict):
    """The time of one run between the compiler's two bounds, under the names that the records of estimates have for it."""

    ms: float
    ms_lower: float
    ms_upper: float


@dataclass(frozen=True)
class CompilerEstimate:
    """What the compiler expects one run of a graph to cost: microseconds between two bounds, and bytes between DDR and VTCM (its fast memory).

    ``read_bytes`` and ``write_bytes`` are all traffic with DDR; ``fill_bytes`` and ``spill_bytes`` the part of it that is there only because VTCM was full.
    ``uncosted``: ops that the compiler has no cost for; with any, the time is too low or wrong. ``uncosted_names`` are those that it names.
    """

    microseconds: int
    lower: int
    upper: int
    read_bytes: int
    write_bytes: int
    fill_bytes: int
    spill_bytes: int
    uncosted: int
    uncosted_names: tuple[str, ...]

    @property
    def milliseconds(self) -> Milliseconds:
        """The time, for a record."""
        return {"ms": self.microseconds / PER_MS, "ms_lower": self.lower / PER_MS, "ms_upper": self.upper / PER_MS}


def read_profile(lines: Iterable[str]) -> CompilerEstimate | None:
    """Returns the estimate in a profile's CSV lines, or None where it has none. A context of several graphs has rows for each: they are added."""
    totals: dict[str, int] = {}
    names: set[str] = set()
    for row in csv.reader(lines):
        if len(row) <= VALUE:
            continue
        if "OpId" in row[-1]:
            names.add(row[-1].split(" : ")[0].strip())
        elif row[VALUE].isdigit():
            totals[row[-1]] = totals.get(row[-1], 0) + int(row[VALUE])
    if MICROSECONDS not in totals:
        return None
    return _estimate(totals, tuple(sorted(names)))


def _estimate(totals: Mapping[str, int], names: tuple[str, ...]) -> CompilerEstimate:
    fill, spill = totals.get(FILL, 0), totals.get(SPILL, 0)
    return CompilerEstimate(
        microseconds=totals[MICROSECONDS],
        lower=totals.get(LOWER, totals[MICROSECONDS]),
        upper=totals.get(UPPER, totals[MICROSECONDS]),
        read_bytes=totals.get(INPUT_FILL, 0) + fill,
        write_bytes=totals.get(OUTPUT_SPILL, 0) + spill,
        fill_bytes=fill,
        spill_bytes=spill,
        uncosted=totals.get(MISSING, 0),
        uncosted_names=names,
    )
