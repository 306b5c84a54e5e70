"""``make bench-npu``: our models and other people's networks side by side on the NPU: milliseconds for a 128 × 128 input, parameters, bytes of DDR.

    python -m f2i_bench.suites.npu_peers [--models NAMES] [--only NAMES] [--precision fp16,w8a8] [--json F]

All figures are estimates by Qualcomm's compiler. The others' networks enlarge by two (EDSR-baseline) or by four, as Qualcomm publishes them.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from f2i_runtime.errors import F2IError, UsageError
from f2i_runtime.files import write_json
from rich.console import Console
from rich.table import Table

from f2i_bench.npu.estimate import EstimateOptions, estimate_models
from f2i_bench.npu.estimate_records import EstimateReport
from f2i_bench.suites.estimate_truth import TILE, tell

OURS = "pico,nano"
PEERS = "EDSR-baseline,QuickSRNet-L,Real-ESRGAN general"
MEGA = 1e-6


def compare(models: Sequence[str], networks: Sequence[str], precisions: tuple[str, ...]) -> EstimateReport:
    """Returns the estimates of our models and of networks by their names. Raises UsageError for a network that is unknown."""
    from f2i_bench.npu.peer_networks import NETWORKS, build_network
    from f2i_bench.npu.subjects import module_subject, subject

    for name in networks:
        if name not in NETWORKS:
            raise UsageError(f"network {name!r} is unknown; choose from {', '.join(NETWORKS)}")
    subjects = [subject(name, TILE) for name in models] + [module_subject(name, build_network(name), TILE) for name in networks]
    return estimate_models(subjects, EstimateOptions(precisions), tell)


def peers_table(report: EstimateReport) -> Table:
    """Returns one row for each model: every precision's milliseconds and DDR traffic."""
    precisions = list(dict.fromkeys(m.precision for m in report.models))
    table = Table(title=f"{TILE} × {TILE} input on {report.chip.upper()}: {report.source}")
    columns = [f"{precision} {what}" for precision in precisions for what in ("ms", "DDR MB", "uncosted ops")]
    for column in ("model", "M parameters", *columns):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name in dict.fromkeys(m.model for m in report.models):
        rows = {m.precision: m for m in report.models if m.model == name}
        first = rows[precisions[0]]
        cells = []
        for m in (rows[precision] for precision in precisions):
            cells += [f"{m.ms:.2f}", f"{(m.ddr_read_bytes + m.ddr_write_bytes) * MEGA:.1f}", str(m.uncosted_ops)]
        table.add_row(name, "–" if first.parameters is None else f"{first.parameters * MEGA:.2f}", *cells)
    return table


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m f2i_bench.suites.npu_peers", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--models", default=OURS, help="our models, separated by commas")
    parser.add_argument("--only", default=PEERS, help="other people's networks, separated by commas")
    parser.add_argument("--precision", default="fp16,w8a8")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    models, networks, precisions = (tuple(filter(None, text.split(","))) for text in (options.models, options.only, options.precision))
    try:
        report = compare(models, networks, precisions)
    except F2IError as e:
        sys.stderr.write(f"npu_peers: {e}\n")
        sys.exit(e.exit_code)
    Console(width=None if sys.stdout.isatty() else 140).print(peers_table(report))
    if options.json:
        write_json(options.json, report.as_json())


if __name__ == "__main__":
    main()
