"""Tables of ``f2i estimate``."""

from __future__ import annotations

from collections.abc import Iterator

from f2i_bench.npu.estimate_records import Cost, EstimateReport
from rich.table import Table

from f2i.tables import figure

MEGA = 1e-6
LEFT = {"model", "precision", "component"}


def estimate_table(report: EstimateReport) -> Table:
    """Returns one row for each model and precision."""
    table = Table(title=f"a tile on {report.chip.upper()}: {report.source}")
    columns = ["model", "precision", "tile", "M parameters", "ms", "bounds", "ms per megapixel", "DDR MB", "spilled MB", "uncosted ops"]
    quality = any(m.quality is not None for m in report.models)
    for column in columns + ["PSNR dB"] * quality:
        table.add_column(column, justify="left" if column in LEFT else "right")
    for m in report.models:
        size = figure(None if m.parameters is None else m.parameters * MEGA, 2)
        cells = [m.model, m.precision, str(m.tile), size, *_times(m), f"{m.ms_per_megapixel:.0f}", *_traffic(m)]
        table.add_row(*cells, *([figure(m.quality, 2)] * quality))
    return table


def precise_table(report: EstimateReport) -> Table:
    """Returns one row for each component of each model and precision."""
    table = Table(title=f"one run of each component: {report.source}")
    columns = ("model", "precision", "component", "runs for a tile", "ms", "bounds", "DDR MB", "spilled MB", "uncosted ops")
    for column in columns:
        table.add_column(column, justify="left" if column in LEFT else "right")
    for m in report.models:
        for c in m.components:
            table.add_row(m.model, m.precision, c.component, str(c.calls), *_times(c), *_traffic(c))
    return table


def estimate_notes(report: EstimateReport) -> Iterator[str]:
    """What must be said beside the figures."""
    yield "Megapixels are of the low-resolution photo, in tiles that do not overlap. Chips' clocks, heat, drivers and the app's own work are in no figure."
    if any(m.one_sample_scales for m in report.models):
        yield "Integer precisions: graphs were quantized on one tile, because a cost depends on types and not on numbers. They say nothing of quality."
    for m in report.models:
        for c in m.components:
            if c.uncosted_ops:
                which = f" ({', '.join(c.uncosted)})" if c.uncosted else ""
                yield f"{m.model} {m.precision}, {c.component}: {c.uncosted_ops} ops have no cost{which}: its milliseconds are too low or wrong."
        float16 = next((o for o in report.models if (o.model, o.precision) == (m.model, "fp16")), None)
        if m.one_sample_scales and float16 and m.ms > float16.ms:
            yield f"{m.model}: {m.precision} is estimated slower than fp16 ({m.ms:.2f} against {float16.ms:.2f} ms); norms between int8 convolutions do that."


def _times(cost: Cost) -> tuple[str, str]:
    return f"{cost.ms:.2f}", f"{cost.ms_lower:.2f} … {cost.ms_upper:.2f}"


def _traffic(cost: Cost) -> tuple[str, str, str]:
    traffic = cost.ddr_read_bytes + cost.ddr_write_bytes
    return f"{traffic * MEGA:.1f}", f"{cost.vtcm_spill_bytes * MEGA:.1f}", str(cost.uncosted_ops)
