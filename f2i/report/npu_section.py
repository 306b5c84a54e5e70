"""The report's part about phones' NPUs: estimated milliseconds beside the photo PSNR that the simulator gave, as a table and a chart."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from f2i_bench.npu.npu_costs import npu_costs, npu_notes
from f2i_runtime.bundle.store import Bundle

from f2i.npu_view import PROVES
from f2i.report.estimate_chart import SHAPES, Mark, chart_of, picture
from f2i.result_views import VariantSummary


def npu_part(bundle: Bundle, summaries: Sequence[VariantSummary]) -> dict[str, Any] | None:
    """Returns ``costs``, ``quality`` (variant → photo PSNR in dB), ``notes``, ``proves`` and ``chart`` (a data address) of the template; None without an NPU."""
    costs = npu_costs(bundle)
    if not costs:
        return None
    quality = {str(row.variant): row.psnr_db for row in summaries}
    marks = []
    for cost in costs:
        db = quality.get(str(cost.variant))
        if db is not None and cost.ms and cost.precision in SHAPES:
            bounds = (cost.ms_lower or cost.ms, cost.ms, cost.ms_upper)
            name = f"{cost.target} {cost.accelerator.rpartition('_')[2]}"
            marks.append(Mark(name, str(cost.variant), cost.precision, bounds, db, bool(cost.uncosted_ops)))
    chart = base64.b64encode(picture(chart_of(marks, costs[0].source)).encode()).decode() if marks else None
    return {"costs": costs, "quality": quality, "notes": npu_notes(costs), "proves": PROVES, "chart": chart}
