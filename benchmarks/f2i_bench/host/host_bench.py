"""``f2i bench --device host``: every variant and component on this machine, held against what the machine can do."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil
from f2i_runtime import __version__
from f2i_runtime.bundle.store import MANIFEST, Bundle
from f2i_runtime.errors import ToolchainError, UsageError
from f2i_runtime.files import sha256_file
from f2i_runtime.targets import EVERYTHING, Selection, Variant, target_of

from f2i_bench.core.protocol import BenchReport, Device, Layer, Limit, OpTime, Row, Sample, Settings, Sustained, sustained_run, with_figures
from f2i_bench.core.sensors import Sensors, TemperatureGate
from f2i_bench.host.machine import examine
from f2i_bench.host.workers import Worker, worker

MEMORY_PER_WORKER = 700 << 20
"""The bytes that an engine and its libraries take in addition to four times its artifact. As many run side by side as fit into half of the free
memory.
"""
LIMIT_SECONDS = 0.2
"""The seconds for each figure of the machine's limit, in every round."""
INTEGER = ("w8a8", "w8a8-mixed")
"""Precisions whose arithmetic is held against the int8 peak; all others against the fp32 peak."""
SYSTEMS = {"darwin": "macOS", "linux": "Linux", "win32": "Windows"}
"""``sys.platform`` → the system's name for people."""
Progress = Callable[[str, int, int], None]


@dataclass
class Measured:
    """A variant at one number of threads while it is being measured."""

    variant: Variant
    threads: int
    process: Worker
    engine: str = ""
    load: dict[str, int] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)
    rounds: dict[str, list[tuple[int, ...]]] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    peak_rss: int = 0
    ops: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    failure: str = ""


def bench_host(
    bundle: Bundle,
    settings: Settings,
    *,
    only: Selection = EVERYTHING,
    progress: Progress = lambda *_: None,
    slowdown: float = 0.0,
) -> BenchReport:
    """Measure every variant of the bundle that this machine can time.

    Rounds of the variants take turns, so that what disturbs the machine for a while disturbs all of them. An engine that fails costs its own rows.

    Args:
        only: the variants to measure.
        progress: called with (what, done, of).
        slowdown: 0.2 makes every run a fifth longer, to see that a comparison finds it.

    Raises:
        UsageError: nothing in the bundle matches, or no golden vectors. BundleError: a damaged file.
    """
    variants = bundle.manifest.variants(only)
    if not variants:
        raise UsageError(
            f"{bundle.root}: nothing to measure for that target, precision and accelerator; it holds {bundle.manifest.listed()}"
        )
    timed = [v for v in variants if target_of(v).native_here]
    rows = [_untimed(bundle, v, c, n) for v in variants if v not in timed for c in bundle.manifest.components for n in settings.threads]
    layers = _layers(bundle)
    flops = {c: sum(x.flops for x in layers if x.component == c) for c in bundle.manifest.components}
    sensors = Sensors()
    gate = TemperatureGate(sensors, settings.max_temp_celsius, settings.gate_seconds)
    plan = _Plan(bundle, settings, gate, progress, slowdown)
    limits, sustained = [], []
    for threads in settings.threads:
        peaks: list[Limit] = []
        done: list[Measured] = []
        for group in _groups(bundle, timed):
            measured_group, group_peaks = _measure(plan, group, threads)
            done += measured_group
            peaks += group_peaks
        limit = _best_limit(threads, peaks)
        limits.append(limit)
        for measured in done:
            rows += _rows(bundle, measured, flops, limit)
        if settings.sustained_minutes and timed:
            sustained.append(_sustain(bundle, timed[0], threads, settings, sensors, progress))
    return BenchReport(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        device=host_device(),
        versions=versions(),
        bundle=bundle.manifest.name,
        manifest_sha256=sha256_file(bundle.root / MANIFEST),
        settings=settings,
        limits=tuple(limits),
        layers=layers,
        rows=tuple(rows),
        sustained=tuple(sustained),
        notes=(gate.note(), *((f"every run made {slowdown:.0%} longer on purpose",) if slowdown else ())),
    )


def host_device() -> Device:
    """Returns the record of this machine."""
    return Device(
        kind="host",
        name=platform.node() or "host",
        os=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        cpu=_cpu_name(),
        cores=os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
    )


def versions() -> dict[str, str]:
    """Returns the versions of this tool and of the engines."""
    return {"f2i-mobile": __version__, **{k: v for k, v in examine()["versions"].items() if v}}


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith(("model name", "Hardware")):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _untimed(bundle: Bundle, variant: Variant, component: str, threads: int) -> Row:
    """The row of a variant that something else computes here, with its estimate where it has one."""
    target = target_of(variant)
    where = " and ".join(SYSTEMS.get(p, p) for p in target.platforms)
    place = f"{target.label} runs on {where} only" if where else f"{variant} is for a phone's {variant.accelerator}"
    reason = f"{place}; the {target.stand_in} that computes here has no meaningful time"
    npu = bundle.manifest.artifact(component, variant).delegation.npu
    if npu and npu.estimate:
        reason += f"; {npu.estimate.ms:.2f} ms are {npu.estimate.source}"
    return Row(**variant._asdict(), component=component, threads=threads, status="not timed", reason=reason)


def _layers(bundle: Bundle) -> tuple[Layer, ...]:
    """Operations of one call of each component by layer, in the graph's order, counted in a process of its own."""
    with worker("counting") as one:
        programs = {name: str(bundle.check(c.reference)) for name, c in bundle.manifest.components.items()}
        counted = {name: one.ask({"do": "cost", "program": program}) for name, program in programs.items()}
    return tuple(Layer(component=c, layer=name, flops=flops) for c, cost in counted.items() for name, flops in cost["layers"].items())


def _groups(bundle: Bundle, variants: Sequence[Variant]) -> list[list[Variant]]:
    """Returns the groups of variants that are held in memory together."""
    room, groups, used = psutil.virtual_memory().available / 2, [list[Variant]()], 0.0
    for variant in variants:
        need = MEMORY_PER_WORKER + 4 * sum(a.bytes for a in bundle.manifest.artifacts_of(variant))
        if groups[-1] and used + need > room:
            groups.append([])
            used = 0.0
        groups[-1].append(variant)
        used += need
    return [g for g in groups if g]


@dataclass(frozen=True)
class _Plan:
    """What all groups of variants are measured with."""

    bundle: Bundle
    settings: Settings
    gate: TemperatureGate
    progress: Progress
    slowdown: float


def _measure(plan: _Plan, group: Sequence[Variant], threads: int) -> tuple[list[Measured], list[Limit]]:
    """Open, warm up, run in rounds and profile a group of variants; the machine's own limit is measured once in every round."""
    settings, peaks = plan.settings, list[Limit]()
    all_ = [Measured(v, threads, Worker(f"{v}, {threads} threads", target=v.target)) for v in group]
    machine = Worker("limits")
    what = f"{threads} thread{'s' if threads > 1 else ''}"
    try:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            list(pool.map(lambda m: _try(m, _import), all_))
        for m in all_:
            _try(m, lambda m: _open(plan.bundle, m, settings, plan.slowdown))
        for k in range(settings.rounds):
            peaks.append(Limit.model_validate(machine.ask({"do": "limit", "threads": threads, "seconds": LIMIT_SECONDS})))
            for m in all_:
                plan.gate.wait()
                _try(m, lambda m: _round(m, settings))
            plan.progress(what, k + 1, settings.rounds)
        for m in all_ if threads == settings.threads[0] else ():
            _try(m, _profile)
    finally:
        for process in (machine, *(m.process for m in all_)):
            process.close()
    return all_, peaks


def _best_limit(threads: int, peaks: Sequence[Limit]) -> Limit:
    """Returns the best value of every figure, because a limit is what the machine can do when nothing disturbs it."""

    def best(figures: list[float | None]) -> float | None:
        return max((f for f in figures if f is not None), default=None)

    return Limit(
        threads=threads,
        fp32_flops=best([p.fp32_flops for p in peaks]),
        int8_ops=best([p.int8_ops for p in peaks]),
        bandwidth=best([p.bandwidth for p in peaks]),
    )


def _try(m: Measured, step: Callable[[Measured], None]) -> None:
    """Runs one step of a variant that still works."""
    if m.failure:
        return
    try:
        step(m)
    except ToolchainError as e:
        m.failure = str(e)


def _import(m: Measured) -> None:
    """Start the engine's library; nothing is timed yet, so the variants do this at once."""
    m.process.ask({"do": "import", **m.variant._asdict()})


def _open(bundle: Bundle, m: Measured, settings: Settings, slowdown: float) -> None:
    request = {"do": "open", "bundle": str(bundle.root.resolve()), **m.variant._asdict()}
    opened = m.process.ask(request | {"threads": m.threads, "slowdown": slowdown})
    m.engine, m.load = opened["engine"], opened["load_ns"]
    for component in m.load:
        m.first[component] = _run(m, component, 1, settings.seconds)[0]
        if settings.warmup > 1:
            _run(m, component, settings.warmup - 1, settings.seconds / 4)


def _round(m: Measured, settings: Settings) -> None:
    """Every component's share of runs; at least one, and none once the component has had its seconds, after three rounds."""
    for component in m.load:
        rounds, spent = m.rounds.setdefault(component, []), m.spent.get(component, 0.0)
        if spent > settings.seconds and len(rounds) >= 3:
            continue
        times = -(-settings.runs // settings.rounds)
        latencies = _run(m, component, times, settings.seconds / settings.rounds)
        rounds.append(tuple(latencies))
        m.spent[component] = spent + sum(latencies) / 1e9


def _run(m: Measured, component: str, times: int, seconds: float) -> list[int]:
    done = m.process.ask({"do": "run", "component": component, "times": times, "seconds": seconds})
    m.peak_rss = max(m.peak_rss, done["peak_rss_bytes"])
    return list(done["ns"])


def _profile(m: Measured) -> None:
    for component in m.load:
        ops = m.process.ask({"do": "profile", "component": component})
        if ops is not None:
            m.ops[component] = ops


def _rows(bundle: Bundle, m: Measured, flops: dict[str, int], limit: Limit) -> list[Row]:
    rows = []
    for name, component in bundle.manifest.components.items():
        base: dict[str, Any] = {**m.variant._asdict(), "component": name, "threads": m.threads, "engine": m.engine}
        if m.failure:
            rows.append(Row(**base, status="failed", reason=m.failure))
            continue
        tensors = [*component.inputs.values(), component.output_spec]
        moved = bundle.manifest.artifact(name, m.variant).bytes + sum(4 * _size(t.shape) for t in tensors)
        row = Row(
            **base,
            status="ok",
            load_ns=m.load[name],
            first_ns=m.first[name],
            rounds_ns=tuple(m.rounds[name]),
            peak_rss_bytes=m.peak_rss,
            flops=flops[name],
            bytes_moved=moved,
            ops=tuple(OpTime.model_validate(op) for op in m.ops.get(name, [])),
        )
        rows.append(_against_limit(with_figures(row), limit))
    return rows


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def _against_limit(row: Row, limit: Limit) -> Row:
    """The row with its share of the roofline (Williams, Waterman, Patterson 2009): the longer of arithmetic and compulsory traffic ÷ the median."""
    peak = limit.int8_ops if row.precision in INTEGER else limit.fp32_flops
    if not (peak and limit.bandwidth and row.flops and row.bytes_moved and row.median_ns):
        return row
    arithmetic, memory = row.flops / peak, row.bytes_moved / limit.bandwidth
    share = max(arithmetic, memory) * 1e9 / row.median_ns
    return row.model_copy(update={"limit_share": share, "bound": "arithmetic" if arithmetic >= memory else "memory"})


def _sustain(bundle: Bundle, variant: Variant, threads: int, settings: Settings, sensors: Sensors, progress: Progress) -> Sustained:
    """Whole tiles without a pause, with temperature and clock beside each."""
    m = Measured(variant, threads, Worker(f"{variant} sustained", target=variant.target))
    samples: list[Sample] = []
    seconds = 60 * settings.sustained_minutes
    try:
        _open(bundle, m, settings, 0.0)
        began = time.monotonic_ns()
        while (at := time.monotonic_ns() - began) < seconds * 1e9:
            tile = sum(_run(m, component, 1, seconds)[0] for component in m.load)
            samples.append(Sample(at_ns=at, tile_ns=tile, celsius=sensors.celsius(), megahertz=sensors.megahertz()))
            progress(f"sustained, {threads} threads", min(int(at / 1e9), int(seconds)), max(1, int(seconds)))
    finally:
        m.process.close()
    return sustained_run(variant, threads, tuple(samples))
