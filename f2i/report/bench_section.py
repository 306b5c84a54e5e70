"""A bench's part of the report: shares of the machine's limit, layers at the limit, and the engines' profiles, as data for the template."""

from __future__ import annotations

from typing import Any

from f2i_bench.core.protocol import BenchReport


def bench_parts(bench: BenchReport) -> dict[str, Any]:
    """Returns ``limits`` and ``browser_rows`` (rows), ``layers`` ({component: table}) and ``profiles`` of the template."""
    limits = [r for r in bench.rows if r.status == "ok" and r.limit_share is not None]
    browser_rows = bench.rows if bench.device.browser else ()
    return {"limits": limits, "layers": _layers(bench), "profiles": _profiles(bench), "browser_rows": browser_rows}


def _layers(bench: BenchReport) -> dict[str, Any]:
    """Layers by component, the costliest first, with their time at the machine's best fp32 peak. Empty when that was not measured."""
    peaks = {m.threads: m.fp32_flops for m in bench.limits if m.fp32_flops}
    if not peaks:
        return {}
    threads = max(peaks, key=lambda n: peaks[n])
    tables: dict[str, Any] = {}
    for component in dict.fromkeys(layer.component for layer in bench.layers):
        layers = sorted((x for x in bench.layers if x.component == component), key=lambda x: -x.flops)
        total = sum(x.flops for x in layers) or 1
        rows = [{"layer": x.layer, "flops": x.flops, "share": x.flops / total, "ms": 1e3 * x.flops / peaks[threads]} for x in layers]
        tables[component] = {"peak": peaks[threads] / 1e9, "threads": threads, "rows": rows}
    return tables


def _profiles(bench: BenchReport) -> list[dict[str, Any]]:
    return [
        {"name": f"{r.variant} {r.component}", "threads": r.threads, "ms": sum(o.ns for o in r.ops) / 1e6 or 1.0, "rows": r.ops}
        for r in bench.rows
        if r.ops
    ]
