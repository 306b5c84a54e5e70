"""``report.html``: a validation in one offline file, readable on a phone, in the dark, and with the keyboard alone."""

from __future__ import annotations

import json
import math
import shlex
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from f2i_bench.host.machine import examine
from f2i_runtime import __version__
from f2i_runtime.bundle.store import MANIFEST, Bundle
from f2i_runtime.files import sha256_file, write_text
from f2i_runtime.validation.validate import Report
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from f2i.report.bench_section import bench_parts
from f2i.report.charts import Variant, scatter, shares
from f2i.report.images import HEAT_DECADES, INFERNO, ReportImages
from f2i.report.sensitivity_charts import trade_off, unit_rows
from f2i.tables import figure, share

TARGET_NAMES = {"coreml": "Core ML", "executorch": "ExecuTorch", "tflite": "LiteRT", "onnx": "ONNX Runtime", "torch": "torch"}
GATE_WORDS = {
    "sqnr_db": "SQNR dB",
    "psnr_db": "PSNR dB",
    "seam_ratio": "seam ratio",
    "psnr_y_drop_db": "PSNR-Y drop dB",
    "repeat max_abs": "repeat max abs",
    "finite share": "finite share",
    "output std": "output std",
}
"""How a gate's figure is called in the parity matrix, by the end of the gate's name."""


def write_report(
    path: Path, bundle: Bundle, report: Report, images: ReportImages, *, command: list[str], bench: dict[str, Any] | None = None
) -> None:
    """Write the page, complete or not at all.

    Args:
        path: the file.
        bundle, report: what was validated, and the result.
        images: what collected the pictures while ``validate`` ran.
        command: the command line that a reader repeats.
        bench: what ``f2i bench --json`` wrote, to show latencies against the machine's limits; None leaves that part out.

    Raises:
        UsageError: the file cannot be written.
    """
    write_text(path, render(bundle, report, images, command=command, bench=bench))


def render(bundle: Bundle, report: Report, images: ReportImages, *, command: list[str], bench: dict[str, Any] | None = None) -> str:
    """The page as text. Arguments as :func:`write_report`."""
    environment = Environment(
        loader=PackageLoader("f2i.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(figure=_figure, share=share, target=lambda name: TARGET_NAMES.get(name, name))
    variants = _variants(bundle, report)
    engines = {(r["target"], r["precision"]): r["engine"] for r in report.components}
    page = environment.get_template("report.html.j2")
    return page.render(
        manifest=bundle.manifest,
        passed=report.passed,
        failed=[g for g in report.gates if not g["passed"]],
        report=report,
        variants=variants,
        engines={f"{t}/{p}": engine for (t, p), engine in engines.items()},
        matrix=_matrix(report),
        chart=scatter([v for v in variants if "evaluator" not in engines.get((v.target, v.precision), "")]),
        evaluated=[v.name for v in variants if "evaluator" in engines.get((v.target, v.precision), "")],
        where=_where(bundle, images, {v for v, engine in engines.items() if "evaluator" not in engine}),
        mixed=_mixed(bundle),
        photos=images.photos,
        images=Markup(_script_json(images.photos)),
        inferno=INFERNO,
        decades=HEAT_DECADES,
        bench=bench,
        **(bench_parts(bench) if bench else {}),
        doctor=examine(),
        command=shlex.join(command),
        manifest_sha256=sha256_file(bundle.root / MANIFEST),
        version=__version__,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _variants(bundle: Bundle, report: Report) -> list[Variant]:
    result = []
    for target, precision in dict.fromkeys((r["target"], r["precision"]) for r in report.components):
        size = sum(a.bytes for a in bundle.manifest.artifacts if (a.target, a.precision) == (target, precision))
        photos = [p for p in report.photos if (p["target"], p["precision"]) == (target, precision)]
        latencies = [p["latency_ratio"] for p in photos if p["latency_ratio"] is not None]
        qualities = [p["psnr_db"] for p in photos if p["psnr_db"] is not None]
        result.append(Variant(target, precision, size / 1e6, min(latencies, default=None), min(qualities, default=None)))
    return result


def _mixed(bundle: Bundle) -> list[dict[str, Any]]:
    """Per precision whose layers were chosen by measuring: what was wanted and reached, and both pictures."""
    found = []
    for precision, record in (bundle.manifest.model.calibration or {}).items():
        mixed = record.get("mixed")
        if mixed:
            found.append({"precision": precision, **mixed, "rows": unit_rows(mixed["sensitivity"]), "chart": trade_off(mixed)})
    return found


def _matrix(report: Report) -> dict[str, Any]:
    """Gates as rows by variant and columns by what is gated; ``rest`` are those of no variant."""
    columns: dict[str, str] = {}
    rows: dict[str, dict[str, Any]] = {}
    rest = []
    known = {f"{r['target']}/{r['precision']}" for r in report.components}
    for gate in report.gates:
        variant, _, what = gate["name"].partition(" ")
        if variant not in known:
            rest.append(gate)
            continue
        columns.setdefault(what, _heading(what))
        rows.setdefault(variant, {})[what] = gate
    return {"columns": columns, "rows": rows, "rest": rest}


def _heading(what: str) -> str:
    for end, words in GATE_WORDS.items():
        if what.endswith(end):
            return f"{what[: -len(end)].strip()} {words}".strip()
    return what


def _where(bundle: Bundle, images: ReportImages, timed: set[tuple[str, str]]) -> list[dict[str, Any]]:
    """Per variant whose time means something, milliseconds per tile of each component, and a bar as long as the whole against the slowest."""
    calls: dict[str, int] = {}
    for call in bundle.manifest.dataflow:
        calls[call.component] = calls.get(call.component, 0) + 1
    rows: list[dict[str, Any]] = []
    for (target, precision), seconds in images.component_seconds.items():
        if (target, precision) not in timed:
            continue
        parts = {name: 1e3 * seconds[name] * count for name, count in calls.items() if name in seconds}
        rows.append({"name": f"{target}/{precision}", "target": target, "total": sum(parts.values()), "parts": shares(parts)})
    slowest = max((r["total"] for r in rows), default=1.0)
    return [r | {"length": 100 * r["total"] / slowest} for r in sorted(rows, key=lambda r: r["total"])]


def _figure(value: float | None) -> str:
    """Three significant figures for people; a dash where there is none."""
    if value is None:
        return "–"
    if value and (abs(value) < 0.01 or abs(value) >= 1e5):
        return f"{value:.2e}"
    return figure(value, max(0, 2 - math.floor(math.log10(abs(value))))) if 0 < abs(value) < 100 else f"{value:.1f}"


def _script_json(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
