"""``f2i summary``: a validation as a Markdown table for a pull request, against the last release's where there is one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from f2i_runtime.errors import UsageError
from f2i_runtime.text_files import read_text_file

SCHEMA = 1
WORSE_DB = 0.5
"""A drop of so many decibels against the release is pointed out although the gate passed."""


def read_report(path: Path) -> dict[str, Any]:
    """What ``f2i validate --json`` wrote. Raises UsageError."""
    try:
        data = json.loads(read_text_file(path))
    except ValueError as e:
        raise UsageError(f"{path}: cannot be read as JSON: {e}; expected what f2i validate --json writes") from e
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or not {"components", "photos", "gates"} <= set(data):
        raise UsageError(f"{path}: not a validation of schema {SCHEMA}; expected what f2i validate --json writes")
    return data


def summary(report: dict[str, Any], before: dict[str, Any] | None = None) -> str:
    """Markdown: the verdict, a row per target and precision with its worst figures, and every gate that failed."""
    failed = [g for g in report["gates"] if not g["passed"]]
    total = len(report["gates"])
    head = f"### F2I parity: {'✅ all ' + str(total) + ' gates passed' if not failed and total else f'❌ {len(failed)} of {total} gates failed'}"
    columns = ["variant", "worst SQNR dB", "worst photo PSNR dB", "latency ÷ torch", "gates"]
    lines = [head, "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    now, then = _variants(report), _variants(before) if before else {}
    for name, figures in now.items():
        old = then.get(name)
        cells = [_cell(figures[k], old[k] if old else None, better) for k, better in (("sqnr", 1), ("psnr", 1), ("latency", 0))]
        lines.append(f"| {name} | {' | '.join(cells)} | {figures['passed']}/{figures['gates']} |")
    gone = sorted(set(then) - set(now))
    if gone:
        lines += ["", f"In the release, not here: {', '.join(gone)}."]
    if failed:
        lines += ["", "Gates that failed:", "", *(f"- `{g['name']}` is {_number(g['value'])}, limit {g['limit']:g}" for g in failed)]
    return "\n".join(lines) + "\n"


def _variants(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for target, precision in dict.fromkeys((c["target"], c["precision"]) for c in report["components"]):
        name = f"{target}/{precision}"
        own = [g for g in report["gates"] if g["name"].startswith(f"{name} ")]
        rows[name] = {
            "sqnr": _worst(report["components"], target, precision, "sqnr_db"),
            "psnr": _worst(report["photos"], target, precision, "psnr_db"),
            "latency": _worst(report["photos"], target, precision, "latency_ratio"),
            "passed": sum(g["passed"] for g in own),
            "gates": len(own),
        }
    return rows


def _worst(rows: list[dict[str, Any]], target: str, precision: str, figure: str) -> float | None:
    values = [r[figure] for r in rows if (r["target"], r["precision"]) == (target, precision) and r[figure] is not None]
    return min(values, default=None)


def _cell(value: float | None, old: float | None, better: int) -> str:
    """The figure, with its change since the release; decibels that dropped noticeably are marked."""
    if value is None or old is None:
        return _number(value)
    mark = " ⚠️" if better and value < old - WORSE_DB else ""
    return f"{_number(value)} ({value - old:+.2f}){mark}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
