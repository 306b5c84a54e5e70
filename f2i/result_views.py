"""Views of a validation: one line per gate, the figures of each variant, JUnit XML, and Markdown for a pull request. All select records by their fields."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from f2i_runtime.targets import Variant
    from f2i_runtime.validation.results import Gate, Report

WORSE_DB = 0.5
"""A drop of so many decibels against the release is pointed out although the gate passed."""


@dataclass(frozen=True)
class VariantSummary:
    """One variant in a row: the worst SQNR of each component, the worst photo, its fastest photo's time relative to torch, and its gates."""

    variant: Variant
    engine: str
    sqnr_db: dict[str, float | None]
    psnr_db: float | None
    latency_ratio: float | None
    passed: int
    gates: int

    @property
    def worst_sqnr_db(self) -> float | None:
        """The least SQNR of all components; None where none is finite."""
        return _least(self.sqnr_db.values())


def variant_summaries(report: Report) -> list[VariantSummary]:
    """Returns a row per variant, in the order of the report."""
    rows = []
    for variant in report.variants():
        components = [row for row in report.components if row.variant == variant]
        photos = [row for row in report.photos if row.variant == variant]
        gates = [g for g in report.gates if g.variant == variant]
        rows.append(
            VariantSummary(
                variant=variant,
                engine=components[0].engine,
                sqnr_db={row.component: row.sqnr_db for row in components},
                psnr_db=_least(row.psnr_db for row in photos),
                latency_ratio=_least(row.latency_ratio for row in photos),
                passed=sum(g.passed for g in gates),
                gates=len(gates),
            )
        )
    return rows


def verdict(report: Report) -> str:
    """Returns how the gates ended, in words."""
    total, failed = len(report.gates), len(report.failed())
    if not total:
        return "no gate was judged"
    return f"{failed} of {total} gates failed" if failed else f"all {total} gates passed"


def gate_line(gate: Gate) -> str:
    """Returns a gate's id, value and limit, and where it is worst: ``VARIANT unet layer_rel_l2 is 0.02, must be at most 0.01 (conv_in)``."""
    value = "not finite" if gate.value is None else f"{gate.value:.5g}"
    bound = "least" if gate.at_least else "most"
    return f"{gate.id} is {value}, must be at {bound} {gate.limit:g}" + (f" ({gate.detail})" if gate.detail else "")


def junit(report: Report) -> str:
    """Returns JUnit XML: one test case per gate, its class the variant, with a failure where the gate failed."""
    total, failed = str(len(report.gates)), str(len(report.failed()))
    suite = ElementTree.Element("testsuite", name="f2i validate", tests=total, failures=failed)
    for gate in report.gates:
        case = ElementTree.SubElement(suite, "testcase", classname=f"f2i.{gate.variant or 'reference'}", name=gate.id)
        if not gate.passed:
            ElementTree.SubElement(case, "failure", message=gate_line(gate))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


def markdown(report: Report, before: Report | None = None) -> str:
    """Returns Markdown: the verdict, a row per variant with its worst figures, and every gate that failed. ``before``: changes since then are shown."""
    columns = ["variant", "worst SQNR dB", "worst photo PSNR dB", "latency ÷ torch", "gates passed"]
    lines = [
        f"### F2I parity: {'✅' if report.passed else '❌'} {verdict(report)}",
        "",
        f"| {' | '.join(columns)} |",
        f"|{'---|' * len(columns)}",
    ]
    then = {row.variant: row for row in variant_summaries(before)} if before else {}
    now = variant_summaries(report)
    for row in now:
        old = then.get(row.variant)
        cells = [
            _cell(row.worst_sqnr_db, old.worst_sqnr_db if old else None, decibels=True),
            _cell(row.psnr_db, old.psnr_db if old else None, decibels=True),
            _cell(row.latency_ratio, old.latency_ratio if old else None, decibels=False),
        ]
        lines.append(f"| {row.variant} | {' | '.join(cells)} | {row.passed}/{row.gates} |")
    gone = sorted(str(variant) for variant in set(then) - {row.variant for row in now})
    if gone:
        lines += ["", f"In the release, not here: {', '.join(gone)}."]
    if failed := report.failed():
        lines += ["", "Gates that failed:", "", *(f"- `{g.id}`{gate_line(g).removeprefix(g.id)}" for g in failed)]
    return "\n".join(lines) + "\n"


def _least(values: Iterable[float | None]) -> float | None:
    return min((v for v in values if v is not None), default=None)


def _cell(value: float | None, old: float | None, *, decibels: bool) -> str:
    """The figure, with its change since the release; decibels that are noticeably lower are marked."""
    if value is None or old is None:
        return "–" if value is None else f"{value:.2f}"
    mark = " ⚠️" if decibels and value < old - WORSE_DB else ""
    return f"{value:.2f} ({value - old:+.2f}){mark}"
