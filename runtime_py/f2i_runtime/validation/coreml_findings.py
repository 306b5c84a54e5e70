"""What ``f2i validate`` asks of a Core ML package beyond its output: is it still what was converted, and which op goes wrong first.

The package is walked beside the float32 program it was converted from (kept in the bundle as ``*.source.pt2``), on the tile that the
component handles worst. Every figure is a plain number, so that a report can be written as JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from f2i_runtime.bundle.manifest import SOURCE_SUFFIX, STATIC, Artifact
from f2i_runtime.bundle.store import Bundle
from f2i_runtime.validation.results import BadOpRow, ChangedAttribute, Figure, KeptOps, OpError, finite

if TYPE_CHECKING:
    from f2i_runtime.mil.judge.op_errors import Comparison

COMPRESSED = ("w8", "p8", "p6", "p4")
"""Precisions that change weights only."""


@dataclass(frozen=True)
class Finding:
    """A figure that must not exceed its limit, and where it is worst."""

    figure: Figure
    value: float
    limit: float
    detail: str = ""


def findings(bundle: Bundle, artifact: Artifact, inputs: Mapping[str, np.ndarray[Any, Any]]) -> list[Finding]:
    """What is asked of a Core ML package beside the program it was converted from, on ``inputs``; nothing where the bundle keeps no program.

    Weights and attributes are compared element by element: one bit of one weight, an epsilon or GELU's form can stay inside any reasonable
    error band. Static int8 is compared op by op, each value then replaced by the reference's. Compressed weights are taken out of the error
    by giving them to the reference. Raises BundleError, MilError.
    """
    program = _source(bundle, artifact)
    if program is None:
        return []
    from f2i_runtime.mil.judge.attribute_audit import audit_attributes
    from f2i_runtime.mil.judge.find_bad_op import find_bad_op
    from f2i_runtime.mil.judge.weight_audit import audit_weights, own_weights_error

    package, gates = bundle.artifact_path(artifact), bundle.manifest.gates
    weights = [item.parameter for item in audit_weights(package, program).compared if not item.exact]
    attributes = [f"{item.attribute} of {item.where}" for item in audit_attributes(package, program)]
    found = [
        Finding("changed_weights", len(weights), 0, weights[0] if weights else ""),
        Finding("changed_attributes", len(attributes), 0, attributes[0] if attributes else ""),
    ]
    if artifact.precision in STATIC:
        worst = find_bad_op(package, program, inputs).worst
        found.append(Finding("forced_rel_l2", worst.rel_l2 if worst else math.nan, gates.forced_rel_l2, worst.name if worst else ""))
    if artifact.precision in COMPRESSED:
        found.append(Finding("own_weights_rel_l2", own_weights_error(package, program, inputs), gates.own_weights_rel_l2))
    return found


def locate(bundle: Bundle, artifact: Artifact, inputs: Mapping[str, np.ndarray[Any, Any]]) -> BadOpRow | None:
    """The first op of a Core ML package whose error leaves the expected band on ``inputs``, and the fewest to keep in float32.

    ``first`` and ``worst`` take each op by itself (its inputs are the reference's), ``first_accumulated`` lets errors grow, which is how a
    value leaves the range of fp16. Returns None where the bundle does not hold the program that the package was converted from. Raises BundleError, MilError.
    """
    program = _source(bundle, artifact)
    if program is None:
        return None
    from f2i_runtime.mil.judge.attribute_audit import audit_attributes
    from f2i_runtime.mil.judge.find_bad_op import find_bad_op, keep_fp32
    from f2i_runtime.mil.judge.weight_audit import audit_weights

    package = bundle.artifact_path(artifact)
    own = find_bad_op(package, program, inputs)
    grown = find_bad_op(package, program, inputs, forced=False)
    gate = bundle.manifest.gates.component_sqnr_db.get(artifact.precision)
    kept = None
    if artifact.precision == "fp16" and gate is not None and own.sqnr_db < gate:
        found = keep_fp32(package, program, inputs, gate_db=gate)
        kept = KeptOps(
            ops=tuple(f"{artifact.component}:{name}" for name in found.operations),
            before_db=finite(found.before_db),
            sqnr_db=finite(found.sqnr_db),
            reached=found.reached,
        )
    return BadOpRow(
        target=artifact.target,
        precision=artifact.precision,
        accelerator=artifact.accelerator,
        component=artifact.component,
        compared=own.matched,
        not_compared=own.unmatched,
        sqnr_db=finite(own.sqnr_db),
        gate_db=gate,
        worst=_op_error(own.worst),
        first=_op_error(own.first),
        first_accumulated=_op_error(grown.first),
        keep_fp32=kept,
        changed_weights=tuple(item.parameter for item in audit_weights(package, program).compared if not item.exact),
        changed_attributes=tuple(
            ChangedAttribute(
                where=item.where,
                module=item.module,
                attribute=item.attribute,
                package=str(item.package),
                reference=str(item.reference),
            )
            for item in audit_attributes(package, program)
        ),
    )


def describe(row: BadOpRow) -> list[str]:
    """Returns one component's bad ops for people, a line per finding."""
    name = f"{row.variant} {row.component}"
    lines = [f"{name}: {row.compared} ops compared, {row.not_compared} without counterpart, SQNR {_db(row.sqnr_db)} dB"]
    for found, label in (
        (row.worst, "largest error of an op by itself"),
        (row.first, "first op out of its band by itself"),
        (row.first_accumulated, "first op out of band in the running program"),
    ):
        if found is None:
            lines.append(f"  {label}: none")
            continue
        lines.append(
            f"  {label}: {found.op} '{found.name}' in {found.module or 'the model itself'}: relative L2 {_db(found.rel_l2, '.1e')},"
            f" largest value {_db(found.magnitude, '.4g')}, reference {_db(found.reference_magnitude, '.4g')},"
            f" {found.overflowed} overflowed, {found.underflowed} underflowed"
        )
    if row.changed_weights:
        lines.append(f"  weights that are not the program's: {', '.join(row.changed_weights[:8])}")
    lines += [
        f"  attribute {item.attribute} of {item.where} is {item.package}, the program says {item.reference}"
        for item in row.changed_attributes
    ]
    if (kept := row.keep_fp32) is not None:
        if kept.reached:
            lines.append(f"  with {len(kept.ops)} ops in fp32 SQNR is {_db(kept.sqnr_db)} dB: --keep-fp32 {','.join(kept.ops)}")
        else:
            lines.append(f"  even with every op in fp32 SQNR is only {_db(kept.sqnr_db)} dB: the fault is not precision")
    return lines


def _source(bundle: Bundle, artifact: Artifact) -> Any:
    """The program an artifact was converted from, its files checked, or None where the bundle keeps none."""
    if not any(record.path == artifact.path + SOURCE_SUFFIX for record in artifact.files):
        return None
    from f2i_runtime.mil.judge.source_program import load_source

    package = bundle.artifact_path(artifact)
    reference: Path = bundle.check(bundle.manifest.components[artifact.component].reference)
    return load_source(package, reference)


def _op_error(found: Comparison | None) -> OpError | None:
    if found is None:
        return None
    return OpError(
        op=found.operation,
        name=found.name,
        where=found.where,
        module=found.module,
        node=found.node,
        rel_l2=finite(found.rel_l2),
        magnitude=finite(found.magnitude),
        reference_magnitude=finite(found.reference_magnitude),
        overflowed=found.overflowed,
        underflowed=found.underflowed,
    )


def _db(value: float | None, form: str = ".1f") -> str:
    return "not finite" if value is None else format(value, form)
