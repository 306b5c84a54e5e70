"""``f2i validate``: a bundle's artifacts against its full-precision reference, on real photo tiles, judged by the bundle's own gates."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from f2i_runtime.bundle.manifest import Gates
from f2i_runtime.bundle.store import Bundle
from f2i_runtime.pipeline import open_pipeline
from f2i_runtime.targets import Variant, target_of
from f2i_runtime.validation.ground_truth import check_truths
from f2i_runtime.validation.int8_parity import Crops, Simulated, engine_agreement, simulate
from f2i_runtime.validation.judging import Judged, StitchedPhoto, judge_variant
from f2i_runtime.validation.reference_run import Array, ReferenceRun, run_reference
from f2i_runtime.validation.results import Environment, Gate, Report, Rows, Subject, finite, gate, joined, report_of
from f2i_runtime.validation.simulated_run import count_runs, few_tiles
from f2i_runtime.validation.validate_options import ValidateOptions, chosen_variants


@dataclass(frozen=True)
class Measured:
    """What one process measured: the reference, and variants beside it. Processes are put together by :func:`assemble`."""

    environment: Environment
    gates: tuple[Gate, ...]
    """The gates of the reference alone."""
    variants: tuple[Judged, ...]
    simulated: Mapping[str, Crops]
    """Precision → the crops as the QDQ programs upscaled them; without the precisions of which the bundle has no QDQ programs."""


def validate(
    bundle: Bundle,
    options: ValidateOptions,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    show: Callable[[StitchedPhoto], None] = lambda _: None,
) -> Report:
    """Measure every variant and judge it by the bundle's gates.

    ``progress(what, done, of)`` is called as work goes on, ``show`` with every stitched crop as soon as it is judged. Raises UsageError, BundleError, PhotoError, ToolchainError.
    """
    return assemble(bundle, [measure(bundle, options, progress, show)])


def measure(
    bundle: Bundle, options: ValidateOptions, progress: Callable[[str, int, int], None], show: Callable[[StitchedPhoto], None]
) -> Measured:
    """Returns what this process finds about the variants that the options select. Arguments and errors as :func:`validate`."""
    variants = chosen_variants(bundle, options)
    check_truths(options, bundle.manifest.tile.scale)
    truths: dict[bool, ReferenceRun] = {}
    simulated: dict[tuple[str, bool], Simulated | None] = {}
    kinds = list(dict.fromkeys((v.precision, target_of(v).simulated) for v in variants))
    for few in sorted({few for _, few in kinds}):
        truths[few] = few_tiles(bundle, options, progress) if few else run_reference(bundle, options, progress)
    truth = truths.get(False, next(iter(truths.values())))
    for precision, few in kinds:
        simulated[precision, few] = simulate(bundle, precision, truths[few], options.threads)
        progress("QDQ programs", len(simulated), len(kinds))
    judged: list[Judged] = []
    for variant in variants:
        few = target_of(variant).simulated
        with open_pipeline(bundle, variant, threads=options.threads) as pipeline:
            if few:
                count_runs(pipeline, truths[few], progress)
            judged.append(judge_variant(pipeline, truths[few], simulated[variant.precision, few], options, show))
        progress("variants", len(judged), len(variants))
    # Of a precision that both kinds have, the figures are those of more tiles.
    found = {precision: alone for (precision, _), alone in sorted(simulated.items(), key=lambda item: -item[0][1]) if alone}
    environment = Environment(
        machine=platform.machine(),
        python=platform.python_version(),
        bundle=bundle.manifest.name,
        reference=truth.engine,
        tiling_psnr_db=finite(truth.tiling_psnr_db),
        context_rel_l2=finite(truth.context_rel_l2),
        simulated_sqnr_db={p: {c: finite(v) for c, v in alone.sqnr_db.items()} for p, alone in found.items()},
    )
    crops: dict[str, dict[str, Array]] = {}
    for (precision, _), alone in simulated.items():
        if alone:
            crops.setdefault(precision, {}).update(alone.crops)
    return Measured(environment, _reference_gates(truth, bundle.manifest.gates), tuple(judged), crops)


def assemble(bundle: Bundle, measured: Sequence[Measured]) -> Report:
    """Returns one report of what one or several processes measured: their rows, and the gates between engines, which no process alone can judge.

    What every process says about the reference is said once; where they differ, a gate that failed is kept.
    """
    own: dict[str, Gate] = {}
    simulated: dict[str, Crops] = {}
    figures: dict[str, dict[str, float | None]] = {}
    for part in measured:
        for found in part.gates:
            own[found.id] = found if not found.passed else own.get(found.id, found)
        for precision, crops in part.simulated.items():
            simulated[precision] = {**crops, **simulated.get(precision, {})}
        figures = part.environment.simulated_sqnr_db | figures
    before: dict[str, list[tuple[Variant, Crops]]] = {}
    parts = [Rows(gates=tuple(own.values()))]
    for judged in (one for part in measured for one in part.variants):
        precision, rows = judged.variant.precision, judged.rows
        if precision in simulated:
            every = before.setdefault(precision, [])
            others = [other for other in every if set(judged.crops) <= set(other[1])]  # a simulated chip has crops of its own
            figure_rows, gates = engine_agreement(judged.variant, judged.crops, simulated[precision], others, bundle.manifest.gates)
            photos = tuple(row.model_copy(update={"psnr_db_to": figure_rows[row.image]}) for row in rows.photos)
            rows = replace(rows, photos=photos, gates=rows.gates + gates)
            every.append((judged.variant, judged.crops))
        parts.append(rows)
    return report_of(joined(parts), measured[0].environment.model_copy(update={"simulated_sqnr_db": figures}))


def _reference_gates(truth: ReferenceRun, limits: Gates) -> tuple[Gate, ...]:
    if truth.tiling_psnr_db is None or limits.tiling_psnr_db is None:
        return ()
    return (gate(Subject(), "tiling_psnr_db", truth.tiling_psnr_db, limits.tiling_psnr_db),)
