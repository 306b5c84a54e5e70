"""The NPU's figures for people: what stands beside every one of them is who says it, and what it does not prove."""

from __future__ import annotations

from collections.abc import Sequence

from f2i_bench.npu.npu_costs import NpuCost
from rich.table import Table

PROVES = (
    "The simulator proves that the compiled file computes what it should, up to rounding. It does not prove a chip's own rounding, its drivers, or a time. "
    "Milliseconds are the NPU's alone: without copies, reading, blending and writing."
)
"""What the figures of a simulated and estimated NPU are worth."""


def npu_table(costs: Sequence[NpuCost]) -> Table:
    """Returns a row per variant: milliseconds for a tile between two bounds, and seconds for whole photos."""
    sources = dict.fromkeys(cost.source for cost in costs)
    table = Table(title="on the NPU", caption="; ".join(sources) + ". " + PROVES)
    photos = [photo.megapixels for photo in costs[0].photos] if costs else []
    table.add_column("variant", no_wrap=True)
    for column in ("ms for a tile", "lower … upper", "fp16 ms", "spilled MB", "uncosted ops", *(f"{size:g} MP s" for size in photos)):
        table.add_column(column, justify="right")
    for cost in costs:
        table.add_row(
            str(cost.variant),
            f"{cost.ms:.2f}",
            f"{cost.ms_lower:.2f} … {cost.ms_upper:.2f}",
            "–" if cost.ms_fp16 is None else f"{cost.ms_fp16:.2f}",
            f"{cost.vtcm_spill_bytes / 1e6:.1f}",
            str(cost.uncosted_ops),
            *(f"{photo.seconds:.2f}" for photo in cost.photos),
        )
    return table
