"""Tables for people: the figures of a manifest and of a report, laid out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from f2i_runtime.targets import find_target
from rich.table import Table

from f2i.result_views import variant_summaries

if TYPE_CHECKING:
    from f2i_runtime.bundle.manifest import Artifact
    from f2i_runtime.bundle.store import Bundle
    from f2i_runtime.targets import Variant
    from f2i_runtime.validation.results import Report


def artifact_table(bundle: Bundle) -> Table:
    """One row per artifact: what it weighs and how much of it is delegated."""
    needs = dict.fromkeys(f"{a.target} {a.precision} needs {a.needs} or later" for a in bundle.manifest.artifacts if a.needs)
    table = Table(title=f"{bundle.root}: {bundle.manifest.name}, tile {bundle.manifest.tile.size}", caption="\n".join(needs) or None)
    for column in ("target", "precision", "component", "MB", "ops", "delegated", "partitions", "SQNR dB"):
        table.add_column(column, justify="left" if column in {"target", "precision", "component"} else "right")
    for a in bundle.manifest.artifacts:
        d = a.delegation
        sqnr = f"{a.parity.sqnr_db:.1f}" if a.parity and a.parity.sqnr_db is not None else "–"
        partitions = "–" if d.partitions is None else str(d.partitions)
        table.add_row(
            a.target, _precision(a.variant), a.component, f"{a.bytes / 1e6:.1f}", str(d.ops), share(d.delegated_share), partitions, sqnr
        )
    return table


def parity_table(bundle: Bundle, report: Report) -> Table:
    """Returns one row per variant: size, delegated share, latency and parity, as the report measured them."""
    untrained = None if bundle.manifest.model.trained else "random weights: photos and the quality of int8 are measured, not judged"
    context = report.environment.context_rel_l2
    moved = None if context is None else f"a context of zeros moves the reference's output by {context:.1e} of its size (relative L2)"
    table = Table(title="parity with the full-precision reference", caption="\n".join(filter(None, (untrained, moved))) or None)
    columns = (
        "target",
        "precision",
        "MB",
        "delegated",
        "latency ÷ torch",
        *(f"{c} SQNR dB" for c in bundle.manifest.components),
        "photo PSNR dB",
        "gates passed",
    )
    for column in columns:
        table.add_column(column, justify="left" if column in {"target", "precision"} else "right")
    for row in variant_summaries(report):
        artifacts = bundle.manifest.artifacts_of(row.variant)
        shares = [s for a in artifacts if (s := delegated_share(a, row.variant)) is not None]
        table.add_row(
            row.variant.target,
            _precision(row.variant),
            f"{sum(a.bytes for a in artifacts) / 1e6:.1f}",
            share(min(shares) if shares else None),
            figure(row.latency_ratio, 2),
            *(figure(row.sqnr_db.get(c), 1) for c in bundle.manifest.components),
            figure(row.psnr_db, 1),
            f"{row.passed}/{row.gates}",
        )
    return table


def delegated_share(artifact: Artifact, variant: Variant) -> float | None:
    """Returns the share of an artifact's ops that a variant's delegate takes; one on an accelerator that opens the CPU's artifacts whole or not at all."""
    return 1.0 if artifact.variant != variant else artifact.delegation.delegated_share


def _precision(variant: Variant) -> str:
    """The precision, and the accelerator where that is not the CPU: ``fp16``, ``fp16/hexagon``."""
    return str(variant).partition("/")[2]


def doctor_table(data: dict[str, Any]) -> Table:
    """What ``f2i doctor`` shows of :func:`f2i_bench.host.machine.examine`."""
    table = Table(
        title=f"{data['machine']}, Python {data['python']}, {data['cores']} cores, {data['free_gib']} of {data['memory_gib']} GiB free"
    )
    for column in ("target", "export", "run"):
        table.add_column(column)
    for name, install in data["install"].items():
        cells = [("yes" if data[what][name] else f"pip install '{install[what]}'") for what in ("export", "run")]
        table.add_row(name, cells[0], cells[1] + ("" if find_target(name).native_here else f" ({data['engine'][name]})"))
    return table


def share(value: float | None) -> str:
    """A share in percent; a dash where there is none."""
    return "–" if value is None else f"{value:.2%}"


def figure(value: float | None, digits: int) -> str:
    """A number with so many digits; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def quantization_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """What ``f2i quantize`` says of its record: of a quantization, or of a measurement alone."""
    if "units" in record:
        worst = sorted(record["units"], key=lambda u: -u["mse"])[:5]
        yield f"all layers in int8: {figure(record['quantized_psnr_db'], 1)} dB PSNR of a tile's output to the float model's"
        for u in worst:
            yield f"{u['name']}: {figure(u['psnr_db'], 1)} dB alone, {u['macs_share']:.1%} of the multiply-adds"
        return
    for component, sqnr in record["simulated_sqnr_db"].items():
        yield f"{component}: {figure(sqnr, 1)} dB SQNR in simulation"
    if (psnr := record["simulated_psnr_db"]) is not None:
        yield f"{figure(psnr, 2)} dB PSNR of a tile's output to the float model's, in simulation"
    if mixed := record.get("mixed"):
        yield (
            f"{len(mixed['layers'])} layers with {mixed['macs_share']:.1%} of the multiply-adds stay in float: "
            f"{figure(mixed['psnr_db'], 1)} dB PSNR of a tile's output, wanted {mixed['target_psnr_db']:g}"
        )
    if qat := record.get("qat"):
        what = "" if qat["kept"] else "; that is no better, so the calibrated weights were kept"
        yield f"{qat['steps']} steps of training: {figure(qat['psnr_db_before'], 2)} → {figure(qat['psnr_db_after'], 2)} dB PSNR of a tile's output{what}"
    yield f"calibrated on {record['tiles']} tiles of {len(record['images'])} photos"
