"""``report.html``: a validation in one offline file, readable on a phone, in the dark, and with the keyboard alone."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Collection
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from f2i_bench.core.protocol import BenchReport
from f2i_bench.host.machine import examine
from f2i_runtime import __version__
from f2i_runtime.bundle.store import MANIFEST, Bundle
from f2i_runtime.files import sha256_file, write_text
from f2i_runtime.targets import Variant as VariantKey
from f2i_runtime.targets import target_of, targets
from f2i_runtime.validation.results import FIGURES, Gate, Report
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from f2i.report.bench_section import bench_parts
from f2i.report.charts import Variant, scatter, shares
from f2i.report.images import HEAT_DECADES, INFERNO, ReportImages
from f2i.report.npu_section import npu_part
from f2i.report.sensitivity_charts import trade_off, unit_rows
from f2i.result_views import VariantSummary, gate_line, variant_summaries, verdict
from f2i.tables import figure, share


def write_report(
    path: Path, bundle: Bundle, report: Report, images: ReportImages, *, command: list[str], bench: BenchReport | None = None
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


def render(bundle: Bundle, report: Report, images: ReportImages, *, command: list[str], bench: BenchReport | None = None) -> str:
    """The page as text. Arguments as :func:`write_report`."""
    environment = Environment(
        loader=PackageLoader("f2i.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(figure=_figure, share=share, target=_label)
    summaries = variant_summaries(report)
    evaluated = [row.variant for row in summaries if _stood_in(row.variant)]
    variants = [_mark(bundle, row) for row in summaries]
    timed = [mark for mark, row in zip(variants, summaries, strict=True) if row.variant not in evaluated]
    page = environment.get_template("report.html.j2")
    return page.render(
        manifest=bundle.manifest,
        passed=report.passed,
        verdict=verdict(report),
        failed=[gate_line(g) for g in report.failed()],
        report=report,
        variants=variants,
        engines={str(row.variant): row.engine for row in summaries},
        matrix=_matrix(report),
        chart=scatter(timed),
        evaluated={str(v): target_of(v).engine_label for v in evaluated},
        colours=Markup(_colours()),
        where=_where(bundle, images, evaluated),
        mixed=_mixed(bundle),
        photos=images.photos,
        images=Markup(_script_json(images.photos)),
        inferno=INFERNO,
        decades=HEAT_DECADES,
        npu=npu_part(bundle, summaries),
        bench=bench,
        **(bench_parts(bench) if bench else {}),
        doctor=examine(),
        command=shlex.join(command),
        manifest_sha256=sha256_file(bundle.root / MANIFEST),
        version=__version__,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _mark(bundle: Bundle, row: VariantSummary) -> Variant:
    """What the charts show of a variant."""
    target, precision, accelerator = row.variant
    size = sum(a.bytes for a in bundle.manifest.artifacts_of(row.variant))
    return Variant(target, precision, size / 1e6, row.latency_ratio, row.psnr_db, accelerator)


def _mixed(bundle: Bundle) -> list[dict[str, Any]]:
    """Per precision whose layers were chosen by measuring: what was wanted and reached, and both pictures."""
    found = []
    for precision, record in (bundle.manifest.model.calibration or {}).items():
        mixed = record.get("mixed")
        if mixed:
            found.append({"precision": precision, **mixed, "rows": unit_rows(mixed["sensitivity"]), "chart": trade_off(mixed)})
    return found


def _matrix(report: Report) -> dict[str, Any]:
    """Gates as rows by variant and columns by what is judged; ``rest`` are those of the reference alone."""
    columns: dict[tuple[str | None, ...], str] = {}
    rows: dict[str, dict[tuple[str | None, ...], Gate]] = {}
    rest = []
    for gate in report.gates:
        if gate.variant is None:
            rest.append((gate.passed, gate_line(gate)))
            continue
        what = (gate.component, gate.image, gate.figure, gate.other)
        columns.setdefault(what, _heading(gate))
        rows.setdefault(str(gate.variant), {})[what] = gate
    return {"columns": columns, "rows": rows, "rest": rest}


def _heading(gate: Gate) -> str:
    words = [gate.component or gate.image or "", FIGURES[gate.figure].words, f"to {gate.other}" if gate.other else ""]
    return " ".join(word for word in words if word)


def _where(bundle: Bundle, images: ReportImages, evaluated: Collection[VariantKey]) -> list[dict[str, Any]]:
    """Per variant whose time means something, milliseconds per tile of each component, and a bar as long as the whole against the slowest."""
    calls: dict[str, int] = {}
    for call in bundle.manifest.dataflow:
        calls[call.component] = calls.get(call.component, 0) + 1
    rows: list[dict[str, Any]] = []
    for variant, seconds in images.component_seconds.items():
        if variant in evaluated:
            continue
        parts = {name: 1e3 * seconds[name] * count for name, count in calls.items() if name in seconds}
        rows.append({"name": str(variant), "target": variant.target, "total": sum(parts.values()), "parts": shares(parts)})
    slowest = max((r["total"] for r in rows), default=1.0)
    return [r | {"length": 100 * r["total"] / slowest} for r in sorted(rows, key=lambda r: r["total"])]


def _stood_in(variant: VariantKey) -> bool:
    """Whether something else computes in the place of the variant's engine here, so that its time means nothing."""
    known = targets().get(variant.target)
    return known is not None and not known.on(variant.accelerator).native_here


def _colours() -> str:
    """CSS of every target's colour in charts and dots, on a light and on a dark page, as its record has it."""
    light, dark = ("".join(f"--t-{name}:{record.colour[k]};" for name, record in targets().items()) for k in (0, 1))
    marks = "".join(f"i.t-{name}{{background:var(--t-{name})}}.point.t-{name}{{fill:var(--t-{name})}}\n" for name in targets())
    return f":root{{{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}\n{marks}"


def _label(name: str) -> str:
    """A target's name for people; the reference's and an unknown target's own."""
    known = targets().get(name)
    return known.label if known else name


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
