"""``f2i inspect``: the figures of each artifact, and what runs outside its accelerator."""

from __future__ import annotations

from f2i.tables import artifact_table, inspect_json
from f2i.terminal import BundleArgument, JsonFlag, out, print_json


def inspect(bundle: BundleArgument, as_json: JsonFlag = False) -> None:
    """Show each artifact's size, operations, delegated share and partitions, and why an operation runs outside the delegate or the Neural Engine.

    Example: `f2i inspect bundle --json`
    """
    from f2i_runtime.bundle.store import open_bundle

    from f2i.neural_engine import ane_lines

    opened = open_bundle(bundle)
    if as_json:
        print_json(inspect_json(opened))
        return
    out.print(artifact_table(opened))
    for a in opened.manifest.artifacts:
        for fallback in a.delegation.fallbacks:
            out.print(f"{a.target}/{a.precision} {a.component}: {fallback.op}: {fallback.reason}")
    for line in ane_lines(opened):
        out.print(line, soft_wrap=True, markup=False)
