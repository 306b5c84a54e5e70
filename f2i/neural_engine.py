"""What ``f2i inspect`` says about the Neural Engine: ops of each Core ML package that are known to leave it, by rule."""

from __future__ import annotations

from f2i_runtime.bundle.manifest import Artifact
from f2i_runtime.bundle.store import Bundle
from f2i_runtime.records import Record
from f2i_runtime.targets import targets


class RulePlace(Record):
    """An op that breaks a rule."""

    op: str
    where: str
    detail: str


class BrokenRule(Record):
    """A rule with every place that breaks it, the rewrite that avoids it, and who says so."""

    rule: str
    reason: str
    rewrite: str
    source: str
    places: tuple[RulePlace, ...]


def ane_findings(bundle: Bundle, artifact: Artifact) -> tuple[BrokenRule, ...] | None:
    """Returns the rules that an artifact's program breaks.

    None for other targets, and where coremltools is not installed, which reads the program. Raises BundleError, MilError.
    """
    known = targets().get(artifact.target)
    if known is None or known.placement is None or not known.placement.installed():
        return None
    findings = known.placement.load("the placement of operations").lint(bundle.artifact_path(artifact))
    return tuple(
        BrokenRule(
            rule=rule.name,
            reason=rule.reason,
            rewrite=rule.rewrite,
            source=rule.source,
            places=tuple(RulePlace(op=f.operation, where=f.where, detail=f.detail) for f in findings if f.rule.name == rule.name),
        )
        for rule in {f.rule.name: f.rule for f in findings}.values()
    )
