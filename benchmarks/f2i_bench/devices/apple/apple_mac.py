"""``f2i bench --device apple``: Core ML packages on a Mac, per compute unit, with MLComputePlan's placement of every op. macOS only.

Not run by us: no Mac was at hand. The iPhone's side is the Swift package in ``benchmarks/f2i_bench/devices/apple``.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from datetime import datetime, timezone
from typing import Any

import numpy as np
from f2i_runtime.bundle.manifest import Call
from f2i_runtime.bundle.store import MANIFEST, Bundle, load_array
from f2i_runtime.engines.run_coreml import TARGET
from f2i_runtime.errors import MissingPackageError, UsageError
from f2i_runtime.files import sha256_file
from f2i_runtime.memory import peak_rss
from f2i_runtime.metrics.fidelity import ErrorSums
from f2i_runtime.targets import EVERYTHING, Selection, Variant, find_target

from f2i_bench.core.protocol import BenchReport, OpTime, Row, Settings, with_figures
from f2i_bench.host.host_bench import host_device, versions
from f2i_bench.host.host_worker import call_inputs

UNITS = ("CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE", "ALL")


def bench_apple(bundle: Bundle, settings: Settings, *, only: Selection = EVERYTHING) -> BenchReport:
    """Every Core ML variant and component on every compute unit. Raises UsageError off a Mac or when the bundle holds no Core ML."""
    if sys.platform != "darwin":
        raise UsageError("device apple needs a Mac (Core ML runs nowhere else); on this machine use --device host, arm64 or adb")
    try:
        import coremltools as ct
    except ImportError as e:
        raise MissingPackageError("coremltools", "device apple", find_target(TARGET).engine.extra) from e
    variants = [v for v in bundle.manifest.variants(only) if v.target == TARGET]
    if not variants:
        raise UsageError(f"{bundle.root}: it holds no Core ML of that precision; export with --target {TARGET}")
    rows = [_row(bundle, settings, v, call, unit, ct) for v in variants for call in bundle.manifest.dataflow for unit in UNITS]
    return BenchReport(
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        device=host_device().model_copy(update={"kind": "apple"}),
        versions=versions(),
        bundle=bundle.manifest.name,
        manifest_sha256=sha256_file(bundle.root / MANIFEST),
        settings=settings,
        rows=tuple(rows),
        notes=("threads are Core ML's own; the engine column names the compute unit; ops count the placement that MLComputePlan prefers",),
    )


def _row(bundle: Bundle, settings: Settings, variant: Variant, call: Call, unit: str, ct: Any) -> Row:
    component = call.component
    artifact = bundle.manifest.artifact(component, variant)
    path = bundle.artifact_path(artifact)
    base: dict[str, Any] = {**variant._asdict(), "component": component, "threads": 0, "engine": f"Core ML {unit}"}
    try:
        began = time.perf_counter_ns()
        model = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit[unit])
        load = time.perf_counter_ns() - began
        feed = call_inputs(bundle, call)
        began = time.perf_counter_ns()
        [output] = model.predict(feed).values()
        first = time.perf_counter_ns() - began
        for _ in range(settings.warmup):
            model.predict(feed)
        rounds = [[_timed(model, feed) for _ in range(-(-settings.runs // settings.rounds))] for _ in range(settings.rounds)]
        ops = _placement(model, ct, ct.ComputeUnit[unit])
    except Exception as e:  # coremltools raises bare Exception and RuntimeError for every failure of the framework
        return Row(**base, status="failed", reason=" ".join(str(e).split())[:500])
    sums = ErrorSums()
    sums.update(load_array(bundle.check(bundle.manifest.golden[0].tensors[call.result])), np.asarray(output, np.float32))
    sqnr = sums.sqnr_db()
    limit = bundle.manifest.device_limit_db(artifact)
    failed = limit is not None and not sqnr >= limit
    return with_figures(
        Row(
            **base,
            status="gate failed" if failed else "ok",
            reason=f"SQNR {sqnr:.1f} dB, limit {limit:g}" if failed else "",
            load_ns=load,
            first_ns=first,
            rounds_ns=tuple(tuple(r) for r in rounds),
            peak_rss_bytes=peak_rss(),
            sqnr_db=float(sqnr) if np.isfinite(sqnr) else None,
            ops=ops,
        )
    )


def _timed(model: Any, feed: dict[str, np.ndarray]) -> int:
    began = time.perf_counter_ns()
    model.predict(feed)
    return time.perf_counter_ns() - began


def _placement(model: Any, ct: Any, unit: Any) -> tuple[OpTime, ...]:
    """How many ops MLComputePlan would put on each device (macOS 14.4 and later); no times, which it does not give."""
    plan = ct.models.compute_plan.MLComputePlan.load_from_path(path=model.get_compiled_model_path(), compute_units=unit)
    program = plan.model_structure.program
    devices: Counter[str] = Counter()
    for function in program.functions.values() if program else ():
        for operation in function.block.operations:
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            if usage is not None:
                devices[type(usage.preferred_compute_device).__name__] += 1
    return tuple(OpTime(op=device, calls=count, ns=0) for device, count in devices.most_common())
