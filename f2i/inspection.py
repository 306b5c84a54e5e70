"""What ``f2i inspect --json`` says, as typed records: each artifact's size, its ops and where they run."""

from __future__ import annotations

from typing import Literal

from f2i_bench.npu.npu_costs import NpuCost, npu_costs
from f2i_runtime.bundle.manifest import Fallback
from f2i_runtime.bundle.npu_record import NpuRecord
from f2i_runtime.bundle.store import Bundle
from f2i_runtime.records import Document, VariantRow
from pydantic import Field

from f2i.neural_engine import BrokenRule, ane_findings


class ArtifactRow(VariantRow):
    """One component lowered to one variant. A figure is null where the target has no delegate or the figure needs the device."""

    component: str
    bytes: int
    ops: int
    delegated_share: float | None
    partitions: int | None
    needs: str
    """The oldest system that it runs on, such as ``iOS 18 (macOS 15)``; empty where it comes with the app's own runtime library, or was not recorded."""
    fallbacks: tuple[Fallback, ...]
    """Ops that stay outside the delegate."""
    npu: NpuRecord | None
    """For an artifact that is compiled for a chip's NPU: the chip, the compiler's version, and its estimate for another chip. Nothing of it was measured."""
    ane: tuple[BrokenRule, ...] | None
    """Rules of the Neural Engine that the program breaks; null for other targets, and where coremltools is not installed."""


class Inspection(Document):
    """One bundle, inspected. Made by :func:`inspect_bundle`."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    artifacts: tuple[ArtifactRow, ...]
    npu: tuple[NpuCost, ...] = ()
    """A row per variant that is compiled for an NPU, with whole photos."""


def inspect_bundle(bundle: Bundle) -> Inspection:
    """Returns a row per artifact, in the manifest's order. Raises BundleError, MilError."""
    return Inspection(
        artifacts=tuple(
            ArtifactRow(
                target=a.target,
                precision=a.precision,
                accelerator=a.accelerator,
                component=a.component,
                bytes=a.bytes,
                ops=a.delegation.ops,
                delegated_share=a.delegation.delegated_share,
                partitions=a.delegation.partitions,
                needs=a.needs,
                fallbacks=a.delegation.fallbacks,
                npu=a.delegation.npu,
                ane=ane_findings(bundle, a),
            )
            for a in bundle.manifest.artifacts
        ),
        npu=npu_costs(bundle),
    )


def ane_lines(inspection: Inspection) -> list[str]:
    """Returns the rules of the Neural Engine that are broken, for people: a line for each rule and artifact, with the first place."""
    lines = []
    for artifact in inspection.artifacts:
        for rule in artifact.ane or ():
            first, *rest = rule.places
            others = f" and {len(rest)} more" if rest else ""
            name = f"{artifact.variant} {artifact.component}"
            lines.append(f"{name}: Neural Engine, {rule.rule}: {first.where}{others}: {rule.reason}; {rule.rewrite} [{rule.source}]")
    return lines
