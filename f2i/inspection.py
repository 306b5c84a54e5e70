"""What ``f2i inspect --json`` says, as typed records: each artifact's size, its ops and where they run."""

from __future__ import annotations

from typing import Literal

from f2i_bench.npu.npu_costs import NpuCost, npu_costs
from f2i_runtime.bundle.graph_record import GraphRecord
from f2i_runtime.bundle.manifest import Artifact, Delegation, Fallback
from f2i_runtime.bundle.npu_record import NpuRecord
from f2i_runtime.bundle.store import Bundle
from f2i_runtime.errors import UsageError
from f2i_runtime.records import Document, VariantRow
from f2i_runtime.targets import Selection, Variant, target_of
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
    graph: GraphRecord | None
    """The largest value in the graph on the golden tiles, and the most axes, each with its place; null where the bundle is older than that."""
    ane: tuple[BrokenRule, ...] | None
    """Rules of the Neural Engine that the program breaks; null for other targets, and where coremltools is not installed."""


class Inspection(Document):
    """One bundle, inspected. Made by :func:`inspect_bundle`."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    artifacts: tuple[ArtifactRow, ...]
    npu: tuple[NpuCost, ...] = ()
    """A row per variant that is compiled for an NPU, with whole photos."""


def inspect_bundle(bundle: Bundle, accelerator: str | None = None) -> Inspection:
    """Returns a row per artifact, in the manifest's order; with ``accelerator`` for the variants that it selects.

    A delegate that opens the CPU's artifacts, such as ``gpu``, is asked on this machine what it takes and what it refuses. Raises UsageError where nothing is
    selected, BundleError, MilError, ToolchainError.
    """
    if accelerator is None:
        rows = tuple(_row(bundle, a, a.variant, a.delegation) for a in bundle.manifest.artifacts)
        return Inspection(artifacts=rows, npu=npu_costs(bundle))
    variants = bundle.manifest.variants(Selection(accelerator=accelerator))
    if not variants:
        raise UsageError(f"{bundle.root}: no artifact of it runs on {accelerator!r}; it holds {bundle.manifest.listed()}")
    return Inspection(
        artifacts=tuple(_row(bundle, a, v, _delegation(bundle, a, v)) for v in variants for a in bundle.manifest.artifacts_of(v))
    )


def _delegation(bundle: Bundle, artifact: Artifact, variant: Variant) -> Delegation:
    """The figures of the manifest, or where they are known only when the file is opened, what the delegate says now."""
    asked = target_of(variant).asked
    if asked is None:
        return artifact.delegation
    inputs = {name: tuple(spec.shape) for name, spec in bundle.manifest.components[artifact.component].inputs.items()}
    path = bundle.artifact_path(artifact)
    found: Delegation = asked.load(f"asking what {variant} takes").delegation(
        path, component=artifact.component, inputs=inputs, accelerator=variant.accelerator
    )
    return found


def _row(bundle: Bundle, artifact: Artifact, variant: Variant, delegation: Delegation) -> ArtifactRow:
    return ArtifactRow(
        **variant._asdict(),
        component=artifact.component,
        bytes=artifact.bytes,
        ops=delegation.ops,
        delegated_share=delegation.delegated_share,
        partitions=delegation.partitions,
        needs=artifact.needs,
        fallbacks=delegation.fallbacks,
        npu=delegation.npu,
        graph=artifact.delegation.graph,
        ane=ane_findings(bundle, artifact),
    )


def asked_lines(inspection: Inspection) -> list[str]:
    """Returns what each artifact's delegate takes, for people: a line for each."""
    return [
        f"{row.variant} {row.component}: {row.delegated_share:.1%} of {row.ops} operations are taken"
        for row in inspection.artifacts
        if row.delegated_share is not None
    ]


def graph_lines(bundle: Bundle) -> list[str]:
    """Returns what accelerators do not take of a bundle's graphs, for people: a line for each artifact and finding."""
    graphs = [(f"{a.variant} {a.component}", a.delegation.graph) for a in bundle.manifest.artifacts]
    return [f"{name}: {finding}" for name, graph in graphs if graph for finding in graph.findings()]


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
