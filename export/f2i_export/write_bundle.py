"""``f2i export``: a checkpoint becomes a bundle, complete or absent, resumable after a kill."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path

from f2i_runtime.bundle.store import BUNDLE_FOLDER, MANIFEST, Bundle, open_bundle
from f2i_runtime.errors import UsageError, system_message
from f2i_runtime.files import atomic_directory, check_replaceable
from f2i_runtime.locks import exclusive_lock

from f2i_export.bundle_contents import fill_bundle
from f2i_export.export_options import ExportOptions
from f2i_export.export_plan import ExportPlan, plan_export
from f2i_export.schedule import Event, run_jobs, sweep_cache

__all__ = ["ExportOptions", "export_bundle"]


def export_bundle(options: ExportOptions, on_event: Callable[[Event], None] = lambda _: None) -> Bundle:
    """Export and return the bundle.

    One export per folder at a time: a second is refused. An existing bundle is replaced in one step when the new one is complete; a folder that is not a
    bundle is never touched. Raises UsageError for a bad request, ToolchainError when a converter fails.
    """
    out = options.out.resolve()
    check_replaceable(out, BUNDLE_FOLDER)
    plan = plan_export(options)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"{out.parent}: cannot be written: {system_message(e)}") from e
    busy = f"{out}: another export is writing this bundle; wait until it ends or choose another --out"
    try:
        with exclusive_lock(out.with_name(f".{out.name}.f2i-lock"), busy=busy):
            _run(plan, out, on_event)
    except OSError as e:
        where = e.filename or out  # the disk of the bundle, or that of the cache
        raise UsageError(f"the export to {out} stopped at {where}: {system_message(e)}") from e
    return open_bundle(out)


def _run(plan: ExportPlan, out: Path, on_event: Callable[[Event], None]) -> None:
    """Do the plan's jobs, the reference first, and put their results into ``out``."""
    sweep_cache()
    parallel = plan.options.parallel or os.cpu_count() or 1
    run = functools.partial(run_jobs, weight_bytes=plan.weight_bytes, parallel=parallel, on_event=on_event)
    reference = run([plan.reference], reference=None)[plan.reference]
    results = run(list(plan.jobs), reference=reference)
    with atomic_directory(out, replace=BUNDLE_FOLDER) as staging:
        manifest = fill_bundle(plan, reference, results, staging)
        (staging / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
