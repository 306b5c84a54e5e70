"""``make bench-peers``: our ExecuTorch and LiteRT artifacts against the same graphs exported as each project's own documentation shows.

    python -m f2i_bench.suites.peers BUNDLE [--threads N] [--rounds N] [--component NAME] [--json F]

Both come from the bundle's full-precision reference programs and run on the same engine, in rounds that take turns, in one session.
Each target's ``to_<target>.py`` has that export, as ``CONVERTER.as_documented``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from f2i_export.lowering import load_converter
from f2i_runtime.bundle.store import Bundle, open_bundle
from f2i_runtime.engines.session import Session, open_session
from f2i_runtime.errors import F2IError, UsageError
from f2i_runtime.files import write_json
from f2i_runtime.stderr_filter import redirect_output
from f2i_runtime.targets import CPU, Selection, find_target
from rich.console import Console
from rich.table import Table

from f2i_bench.core.verdict import compare, summarize
from f2i_bench.host.host_worker import golden_inputs

RUNS = 3
"""The number of runs in a round."""


@dataclass(frozen=True)
class Peer:
    """One component, ours against the documented export. Ratio: ours ÷ theirs, below 1 is faster."""

    target: str
    component: str
    threads: int
    ours_ns: int
    theirs_ns: int
    ratio: float
    low: float
    high: float
    verdict: str


def compare_peers(bundle: Bundle, *, threads: int = 2, rounds: int = 10, component: str | None = None) -> list[Peer]:
    """Every component (or only one) of the bundle's fp32 ExecuTorch and LiteRT variants. Raises UsageError when it has none, ToolchainError when an engine fails."""
    held = [
        v
        for v in bundle.manifest.variants(Selection(precision="fp32"))
        if v.accelerator == CPU and find_target(v.target).converter.installed()
    ]
    documented = {v: load_converter(v.target).as_documented for v in held}
    peers = {v: export for v, export in documented.items() if export}
    if not peers:
        raise UsageError(f"{bundle.root}: it holds no fp32 of a target with a documented export; export one to compare")
    feeds, found = golden_inputs(bundle), []
    with tempfile.TemporaryDirectory() as folder:
        for variant, export_as_documented in peers.items():
            for name, record in bundle.manifest.components.items():
                if component not in (None, name):
                    continue
                theirs = Path(folder) / f"{name}{find_target(variant.target).suffix}"
                reference = bundle.check(record.reference)
                with open(os.devnull, "wb") as nowhere, redirect_output(nowhere):
                    export_as_documented(reference, theirs)
                ours = bundle.artifact_path(bundle.manifest.artifact(name, variant))
                shapes = {k: tuple(spec.shape) for k, spec in record.inputs.items()}
                sessions = [open_session(variant, p, component=name, inputs=shapes, threads=threads) for p in (ours, theirs)]
                times = _alternate(sessions, feeds[name], rounds)
                c = compare(times[1], times[0])
                medians = [summarize(t).median for t in times]
                found.append(Peer(variant.target, name, threads, medians[0], medians[1], c.ratio, c.low, c.high, c.verdict))
    return found


def _alternate(sessions: list[Session], feed: Mapping[str, np.ndarray], rounds: int) -> list[list[list[int]]]:
    """Rounds of latencies in ns of each session, taking turns, after one run each that is not timed."""
    times: list[list[list[int]]] = [[] for _ in sessions]
    for session in sessions:
        session.run(feed)
    for _ in range(rounds):
        for session, mine in zip(sessions, times, strict=True):
            latencies = []
            for _ in range(RUNS):
                began = time.perf_counter_ns()
                session.run(feed)
                latencies.append(time.perf_counter_ns() - began)
            mine.append(latencies)
    return times


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m f2i_bench.suites.peers", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--component", help="only this one")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    try:
        peers = compare_peers(open_bundle(options.bundle), threads=options.threads, rounds=options.rounds, component=options.component)
    except F2IError as e:
        sys.stderr.write(f"peers: {e}\n")
        sys.exit(e.exit_code)
    table = Table(title=f"{options.bundle}, fp32, {options.threads} threads: ours against the documented export")
    for column in ("target", "component", "ours ms", "documented ms", "ours ÷ documented", "98 % interval", "ours is"):
        table.add_column(column)
    for p in peers:
        cells = (f"{p.ours_ns / 1e6:.1f}", f"{p.theirs_ns / 1e6:.1f}", f"{p.ratio:.2f}", f"{p.low:.2f} … {p.high:.2f}", p.verdict)
        table.add_row(p.target, p.component, *cells)
    Console(width=None if sys.stdout.isatty() else 120, markup=False, emoji=False).print(table)
    if options.json:
        write_json(options.json, json.loads(json.dumps({"schema": 1, "peers": [asdict(p) for p in peers]})))


if __name__ == "__main__":
    main()
