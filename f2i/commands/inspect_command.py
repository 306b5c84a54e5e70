"""``f2i inspect``: the figures of each artifact, and what runs outside its accelerator."""

from __future__ import annotations

from f2i.tables import artifact_table
from f2i.terminal import BundleArgument, JsonFlag, OneAccelerator, out, print_json, print_table


def inspect(bundle: BundleArgument, accelerator: OneAccelerator = None, as_json: JsonFlag = False) -> None:
    """Show each artifact's size, operations, delegated share and partitions, and why an operation runs outside the delegate or the Neural Engine.

    With `--accelerator gpu`, LiteRT's GPU delegate is asked what it takes, and what it refuses is listed in its own words.

    Example: `f2i inspect bundle --json`
    """
    from f2i_bench.npu.npu_costs import npu_notes
    from f2i_runtime.bundle.store import open_bundle

    from f2i.inspection import ane_lines, asked_lines, graph_lines, inspect_bundle
    from f2i.npu_view import npu_table

    opened = open_bundle(bundle)
    inspection = inspect_bundle(opened, accelerator)
    if as_json:
        print_json(inspection.as_json())
        return
    if accelerator is None:
        print_table(artifact_table(opened))
    else:
        for line in asked_lines(inspection):
            out.print(line)
    for a in inspection.artifacts:
        for fallback in a.fallbacks:
            out.print(f"{a.variant} {a.component}: {fallback.op}: {fallback.reason}")
    for line in (*graph_lines(opened), *ane_lines(inspection)):
        out.print(line)
    if inspection.npu:
        print_table(npu_table(inspection.npu))
        for note in npu_notes(inspection.npu):
            out.print(note)
