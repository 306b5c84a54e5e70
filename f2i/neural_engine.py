"""What ``f2i inspect`` says about the Neural Engine: ops of each Core ML package that are known to leave it, by rule."""

from __future__ import annotations

import importlib.util
from typing import Any

from f2i_runtime.bundle.manifest import Artifact
from f2i_runtime.bundle.store import Bundle


def ane_findings(bundle: Bundle, artifact: Artifact) -> list[dict[str, Any]] | None:
    """Rules that an artifact's program breaks, each with every place, the rewrite that avoids it and who says so.

    Null for other targets, and where coremltools is not installed, which reads the program. Raises BundleError, MilError.
    """
    if artifact.target != "coreml" or importlib.util.find_spec("coremltools") is None:
        return None
    from f2i_runtime.engines.run_coreml import lint

    rules: dict[str, dict[str, Any]] = {}
    for finding in lint(bundle.artifact_path(artifact)):
        rule = finding.rule
        row = rules.setdefault(
            rule.name, {"rule": rule.name, "reason": rule.reason, "rewrite": rule.rewrite, "source": rule.source, "places": []}
        )
        row["places"].append({"op": finding.operation, "where": finding.where, "detail": finding.detail})
    return list(rules.values())


def ane_lines(bundle: Bundle) -> list[str]:
    """Returns the same findings for people: a line for each rule and artifact, with the first place."""
    lines = []
    for artifact in bundle.manifest.artifacts:
        for row in ane_findings(bundle, artifact) or []:
            first, more = row["places"][0], len(row["places"]) - 1
            others = f" and {more} more" if more else ""
            name = f"{artifact.target}/{artifact.precision} {artifact.component}"
            lines.append(
                f"{name}: Neural Engine, {row['rule']}: {first['where']}{others}: {row['reason']}; {row['rewrite']} [{row['source']}]"
            )
    return lines
