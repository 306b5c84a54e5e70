"""Tables of ``f2i bench``."""

from __future__ import annotations

from f2i_bench.core.protocol import BenchReport
from rich.table import Table
from rich.text import Text

from f2i.tables import figure, share

MILLI = 1e-6  # from ns


def bench_table(report: BenchReport) -> Table:
    """Returns a table with one row for each component, variant and number of threads."""
    device = report.device
    emulated = ", EMULATED: times say nothing about a phone" if device.emulated else ""
    table = Table(title=f"{report.bundle} on {device.name} ({device.cpu}, {device.cores} cores{emulated})")
    left = {"variant", "component", "bound", "processor", "result"}
    columns = ["variant", "component", "threads", "median ms", "95 % interval", "p90 ms", "load ms", "peak MB", "runs"]
    columns += ["limit", "bound"] if any(r.limit_share is not None for r in report.rows) else []
    columns += ["M instr."] if any(r.instructions is not None for r in report.rows) else []
    columns += ["SQNR dB"] if device.kind != "host" else []
    if device.kind == "web":
        columns.remove("peak MB")
        columns += ["rel. L2 to native"] + (["÷ native"] if any(r.native_ns for r in report.rows) else [])
    if device.emulated:
        timed = {"median ms", "95 % interval", "p90 ms", "load ms", "peak MB", "runs", "threads"}
        columns = [c for c in columns if c not in timed]
        columns[1:1] = ["processor"]
        columns += ["rel. L2 to x86", "emulated s", "result"]
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right")
    for r in report.rows:
        if r.status != "ok" and not device.emulated:
            continue
        cells = {
            "variant": str(r.variant),
            "component": r.component,
            "threads": str(r.threads),
            "median ms": _ms(r.median_ns),
            "95 % interval": "–" if r.low_ns is None else f"{_ms(r.low_ns)} … {_ms(r.high_ns)}",
            "p90 ms": _ms(r.p90_ns),
            "load ms": _ms(r.load_ns),
            "peak MB": "–" if r.peak_rss_bytes is None else f"{r.peak_rss_bytes / 1e6:.0f}",
            "runs": str(sum(map(len, r.rounds_ns))),
            "limit": share(r.limit_share),
            "bound": r.bound or "–",
            "M instr.": figure(None if r.instructions is None else r.instructions / 1e6, 1),
            "SQNR dB": figure(r.sqnr_db, 1),
            "processor": r.cpu_level or "–",
            "rel. L2 to x86": "–" if r.rel_l2 is None else f"{r.rel_l2:.1e}",
            "rel. L2 to native": "–" if r.rel_l2 is None else f"{r.rel_l2:.1e}",
            "÷ native": figure(r.median_ns / r.native_ns if r.median_ns and r.native_ns else None, 2),
            "emulated s": "–" if r.first_ns is None else f"{r.first_ns / 1e9:.1f}",
            "result": r.status,
        }
        table.add_row(*(cells[c] for c in columns))
    return table


def bench_notes(report: BenchReport) -> list[str]:
    """Yields what does not fit the table: the machine's limits, rows that failed or were not timed, predictions, sustained runs, and other notes."""
    lines = [
        f"limit at {m.threads} threads: {_giga(m.fp32_flops)} GFLOP/s fp32, {_giga(m.int8_ops)} Gop/s int8, {_giga(m.bandwidth)} GB/s"
        for m in report.limits
    ]
    reasons: dict[str, list[str]] = {}
    for r in report.rows:
        if r.status != "ok":
            reasons.setdefault(f"{r.status}: {r.reason}", []).append(str(r.variant))
    lines += [f"{', '.join(dict.fromkeys(which))} {reason}" for reason, which in reasons.items()]
    for s in report.sustained:
        change = s.last_minute_ns / s.first_minute_ns - 1
        lines.append(
            f"sustained {s.variant}, {s.threads} threads: first minute {_ms(s.first_minute_ns)} ms a tile, "
            f"last {_ms(s.last_minute_ns)} ({change:+.0%})"
        )
    for p in report.predictions:
        checked = f"; measured {p.measured_seconds:.1f} s, error {p.error:+.0%}" if p.measured_seconds and p.error is not None else ""
        lines.append(
            f"{p.megapixels:g} MP on {p.variant}, {p.threads} threads: {p.tiles} tiles, {p.seconds:.0f} s, "
            f"{p.peak_rss_bytes / 1e6:.0f} MB, {p.core_seconds:.0f} core seconds{checked}"
        )
    return lines + list(report.notes)


def compared_table(report: BenchReport) -> Table:
    """Returns a table with one verdict for each row that the baseline also has."""
    table = Table(title=f"against {report.baseline}")
    where = "processor" if report.device.emulated else "threads"
    for column in ("variant", "component", where, "this ÷ baseline", "98 % interval", "verdict"):
        table.add_column(column, justify="right" if column in {"threads", "this ÷ baseline", "98 % interval"} else "left")
    colours = {"faster": "green", "slower": "red", "inconclusive": "dim"}
    for c in report.compared:
        interval = f"{c.low:.3f} … {'∞' if c.high is None else format(c.high, '.3f')}"
        word = Text(c.verdict, style=colours[c.verdict])
        at = f"{c.cpu_level}, {c.measure}" if c.cpu_level else str(c.threads)
        table.add_row(str(c.variant), c.component, at, f"{c.ratio:.3f}", interval, word)
    return table


def _ms(ns: int | None) -> str:
    return "–" if ns is None else f"{ns * MILLI:.1f}" if ns * MILLI >= 10 else f"{ns * MILLI:.2f}"


def _giga(value: float | None) -> str:
    return "–" if value is None else f"{value / 1e9:.1f}"
