"""``make bench-npu-truth``: Qualcomm's estimate of four networks beside what Qualcomm measured of them on a device and published.

    python -m f2i_bench.suites.estimate_truth [--only NAMES] [--precision fp16,w8a8] [--json F]

The networks are built from their papers' descriptions with random weights, enlarging 128 × 128 pixels by four. The device is the SA8255P, whose NPU is a Hexagon v73.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from f2i_runtime.errors import F2IError, UsageError
from f2i_runtime.files import write_json
from rich.console import Console
from rich.table import Table

from f2i_bench.npu.estimate import EstimateOptions, Progress, estimate_models
from f2i_bench.npu.estimate_records import EstimateReport

PUBLISHED_MS = {
    ("QuickSRNet-S", "fp16"): 1.08,
    ("QuickSRNet-L", "fp16"): 3.40,
    ("QuickSRNet-L", "w8a8"): 0.84,
    ("Real-ESRGAN general", "fp16"): 9.30,
    ("Real-ESRGAN x4plus", "fp16"): 105.2,
    ("Real-ESRGAN x4plus", "w8a8"): 21.0,
}
"""Milliseconds for a 128 × 128 input on the SA8255P, as Qualcomm publishes them on AI Hub for its own exports (read on 2026-11-27)."""
WIDE, NARROW = (0.7, 1.4), (0.8, 1.25)
"""Where every ratio, and where most ratios, of an estimate to a measurement are to be."""
TILE = 128


@dataclass(frozen=True)
class Truth:
    """One network in one precision. ``ratio``: estimated ÷ measured; null where nothing is published."""

    network: str
    precision: str
    estimated_ms: float
    low_ms: float
    high_ms: float
    measured_ms: float | None
    ratio: float | None
    uncosted_ops: int


def truths(report: EstimateReport) -> list[Truth]:
    """Returns every estimate beside its published measurement."""
    rows = []
    for m in report.models:
        measured = PUBLISHED_MS.get((m.model, m.precision))
        ratio = None if measured is None else m.ms / measured
        rows.append(Truth(m.model, m.precision, m.ms, m.ms_lower, m.ms_upper, measured, ratio, m.uncosted_ops))
    return rows


def verdict(rows: Sequence[Truth]) -> tuple[bool, str]:
    """Returns whether the ratios are where they are to be, and one line that says so."""
    ratios = [row.ratio for row in rows if row.ratio is not None]
    wide, narrow = (sum(low <= ratio <= high for ratio in ratios) for low, high in (WIDE, NARROW))
    passed = wide == len(ratios) and 2 * narrow > len(ratios)
    said = f"{wide} of {len(ratios)} ratios within {WIDE[0]} … {WIDE[1]} (all are to be), {narrow} within {NARROW[0]} … {NARROW[1]} (most)"
    return passed, said


def measure(names: Sequence[str], precisions: tuple[str, ...], progress: Progress) -> EstimateReport:
    """Returns the estimates of networks by their names. Raises UsageError for a name that is unknown."""
    from f2i_bench.npu.peer_networks import NETWORKS, build_network
    from f2i_bench.npu.subjects import module_subject

    for name in names:
        if name not in NETWORKS:
            raise UsageError(f"network {name!r} is unknown; choose from {', '.join(NETWORKS)}")
    subjects = [module_subject(name, build_network(name), TILE) for name in names]
    return estimate_models(subjects, EstimateOptions(precisions), progress)


def main() -> None:
    """Runs the command; exit code 1 where a ratio is not where it is to be."""
    parser = argparse.ArgumentParser(prog="python -m f2i_bench.suites.estimate_truth", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--only", help="networks, separated by commas")
    parser.add_argument("--precision", default="fp16,w8a8")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    names = options.only.split(",") if options.only else list(dict.fromkeys(name for name, _ in PUBLISHED_MS))
    try:
        report = measure(names, tuple(options.precision.split(",")), tell)
    except F2IError as e:
        sys.stderr.write(f"estimate_truth: {e}\n")
        sys.exit(e.exit_code)
    rows = truths(report)
    table = Table(title=f"128 × 128 input: {report.source}, beside Qualcomm's measurements on the SA8255P")
    for column in ("network", "precision", "estimated ms", "bounds", "measured ms", "estimated ÷ measured", "ops without a cost"):
        table.add_column(column)
    for r in rows:
        measured = ("–", "–") if r.measured_ms is None or r.ratio is None else (f"{r.measured_ms:.2f}", f"{r.ratio:.2f}")
        bounds = f"{r.low_ms:.2f} … {r.high_ms:.2f}"
        table.add_row(r.network, r.precision, f"{r.estimated_ms:.2f}", bounds, *measured, str(r.uncosted_ops))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    passed, said = verdict(rows)
    sys.stdout.write(said + "\n")
    if options.json:
        write_json(options.json, json.loads(json.dumps({"schema": 1, "source": report.source, "networks": [asdict(r) for r in rows]})))
    sys.exit(0 if passed else 1)


def tell(what: str, done: int, of: int) -> None:
    """Says on stderr how far it is."""
    sys.stderr.write(f"{what}: {done} of {of}\n")


if __name__ == "__main__":
    main()
