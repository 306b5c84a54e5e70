"""Judges one variant: each component alone, stitched photos, and what no engine may do. Every function returns rows and gates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from f2i_runtime.bundle.manifest import Call
from f2i_runtime.metrics.fidelity import ErrorSums, psnr_db, psnr_y, relative_l2, ssim, ssim_y, token_cosine
from f2i_runtime.metrics.st_lpips import LEAST_SIDE, st_lpips
from f2i_runtime.photo.resample import resize
from f2i_runtime.pipeline import Pipeline, photo_plan
from f2i_runtime.targets import Variant, target_of
from f2i_runtime.tiling.seams import seam_figures
from f2i_runtime.tiling.tile_plan import TilePlan
from f2i_runtime.validation.ground_truth import truth_crop
from f2i_runtime.validation.int8_parity import Simulated, component_gaps, layer_parity
from f2i_runtime.validation.reference_run import Crop, ReferenceRun, stitch
from f2i_runtime.validation.results import BadOpRow, ComponentRow, Gate, PhotoRow, Rows, Subject, finite, gate, joined
from f2i_runtime.validation.validate_options import ValidateOptions

Array = np.ndarray[Any, Any]

CONSTANT_STD = 1e-4
"""An output whose values vary less than this is constant, which no photo is."""


@dataclass(frozen=True)
class StitchedPhoto:
    """One crop as one variant upscaled it, for whoever wants to show it. Images are float32 (h, w, 3), nominally in [0, 1], not clipped."""

    variant: Variant
    image: str
    lr: Array
    reference: Array
    result: Array
    plan: TilePlan
    component_seconds: dict[str, float]
    """Seconds per call of each component, over every call that this variant's validation has made so far."""


@dataclass(frozen=True)
class Judged:
    """What was found about one variant alone, and its stitched crops by photo, which are compared with other engines' afterwards."""

    variant: Variant
    rows: Rows
    crops: dict[str, Array]


def variant_of(pipeline: Pipeline) -> Variant:
    """Returns the variant that a pipeline runs."""
    return pipeline.variant


def judge_variant(
    pipeline: Pipeline,
    truth: ReferenceRun,
    simulated: Simulated | None,
    options: ValidateOptions,
    show: Callable[[StitchedPhoto], None],
) -> Judged:
    """Returns every row and gate that needs no other engine. ``show`` gets every stitched crop as soon as it is judged.

    Raises UsageError, BundleError, MissingPackageError, ToolchainError.
    """
    components, worst = judge_components(pipeline, truth)
    parts = [components, _sources(pipeline, {name: truth.tiles[k] for name, k in worst.items()}, options.find_bad_op)]
    crops: dict[str, Array] = {}
    for crop in truth.crops:
        found, crops[crop.name] = judge_crop(pipeline, crop, options, show)
        parts.append(found)
    parts.append(Rows(gates=judge_sanity(pipeline, truth.tiles[0]["lr"])))
    if simulated:
        variant = variant_of(pipeline)
        parts += [
            Rows(gates=component_gaps(simulated, variant, components.components, pipeline.bundle.manifest.gates)),
            layer_parity(simulated, variant, pipeline.bundle),
        ]
    return Judged(variant_of(pipeline), joined(parts), crops)


def _limit(limits: Mapping[Any, float], variant: Variant) -> float | None:
    """Returns the limit by which a variant is judged; None where its precision has none."""
    return limits.get(target_of(variant).judged_as(variant.precision))


def judge_components(pipeline: Pipeline, truth: ReferenceRun) -> tuple[Rows, dict[str, int]]:
    """Returns rows and gates of each component alone, on the reference's inputs, so that one's error is not another's; and each one's worst tile."""
    rows, worst = [], {}
    for call in pipeline.bundle.manifest.dataflow:
        found, worst[call.component] = _component(pipeline, call, truth)
        rows.append(found)
    return joined(rows), worst


def _component(pipeline: Pipeline, call: Call, truth: ReferenceRun) -> tuple[Rows, int]:
    sums = ErrorSums()
    errors, cosines = [], []
    for tensors in truth.tiles:
        output = pipeline.run(call.component, {a: tensors[t] for a, t in call.inputs.items()})
        sums.update(tensors[call.result], output)
        if output.ndim == 3:
            cosines.append(token_cosine(tensors[call.result], output))
        error = relative_l2(tensors[call.result], output)
        errors.append(error if math.isfinite(error) else math.inf)
    variant, sqnr, limits = variant_of(pipeline), sums.sqnr_db(), pipeline.bundle.manifest.gates
    row = ComponentRow(
        **variant._asdict(),
        component=call.component,
        engine=pipeline.engine,
        tiles=len(truth.tiles),
        sqnr_db=finite(sqnr),
        rel_l2=finite(sums.relative_l2()),
        max_abs=finite(sums.max_abs()),
        cosine=finite(sums.cosine()),
    )
    gates, subject = [], Subject(variant, component=call.component)
    limit = _limit(limits.component_sqnr_db, variant)
    if limit is not None:
        gates.append(gate(subject, "sqnr_db", sqnr, limit))
    limit = _limit(limits.token_cosine, variant)
    if limit is not None and cosines:
        gates.append(gate(subject, "token_cosine", float(np.mean(cosines)), limit))
    return Rows(components=(row,), gates=tuple(gates)), int(np.argmax(errors))


def _sources(pipeline: Pipeline, worst: dict[str, dict[str, Array]], walk: bool) -> Rows:
    """Artifacts beside the programs they were converted from, where the target can be asked: what is asked always, and every op where that is asked for."""
    bundle, variant = pipeline.bundle, variant_of(pipeline)
    source = target_of(variant).source
    if source is None:
        return Rows(bad_ops=() if walk else None)
    diagnose = source.load(f"comparing {variant.target} with its source program")
    gates: list[Gate] = []
    bad_ops: list[BadOpRow] = []
    for call in bundle.manifest.dataflow:
        artifact = bundle.manifest.artifact(call.component, variant)
        inputs = {name: worst[call.component][tensor] for name, tensor in call.inputs.items()}
        subject = Subject(variant, component=call.component)
        gates += [gate(subject, f.figure, f.value, f.limit, f.detail) for f in diagnose.findings(bundle, artifact, inputs)]
        if walk and (row := diagnose.locate(bundle, artifact, inputs)):
            bad_ops.append(row)
    return Rows(gates=tuple(gates), bad_ops=tuple(bad_ops) if walk else None)


def judge_crop(
    pipeline: Pipeline, crop: Crop, options: ValidateOptions, show: Callable[[StitchedPhoto], None] = lambda _: None
) -> tuple[Rows, Array]:
    """Returns the row and gates of one stitched crop, and the stitched result. Raises UsageError where ``options.ground_truth`` has no truth for it."""
    variant, limits = variant_of(pipeline), pipeline.bundle.manifest.gates
    result, seconds = stitch(pipeline, crop.lr)
    value = psnr_db(np.clip(crop.reference, 0, 1), np.clip(result, 0, 1))
    plan = photo_plan(pipeline.bundle, *crop.lr.shape[:2])
    seam, steps = seam_figures((result - crop.reference).astype(np.float32), plan) if plan.count > 1 else (None, None)
    row = PhotoRow(
        **variant._asdict(),
        image=crop.name,
        psnr_db=finite(value),
        ssim=finite(ssim(np.clip(crop.reference, 0, 1), np.clip(result, 0, 1))),
        lr_consistency_db=finite(_lr_consistency_db(crop.lr, result)),
        seam_ratio=finite(seam),
        seam_gradient_ratio=finite(steps),
        latency_ratio=finite(seconds / crop.seconds),
    )
    gates, subject = [], Subject(variant, image=crop.name)
    limit = _limit(limits.photo_psnr_db, variant)
    if limit is not None:
        gates.append(gate(subject, "psnr_db", value, limit))
    if seam is not None and not math.isnan(seam):
        gates.append(gate(subject, "seam_ratio", seam, limits.seam_ratio))
    if options.ground_truth is not None:
        figures, more = _against_truth(pipeline, crop, result, options.ground_truth)
        row = row.model_copy(update=figures)
        gates += more
    per_call = {c: s / pipeline.calls[c] for c, s in pipeline.seconds.items()}
    show(StitchedPhoto(variant, crop.name, crop.lr, crop.reference, result, plan, per_call))
    return Rows(photos=(row,), gates=tuple(gates)), result


def _against_truth(pipeline: Pipeline, crop: Crop, result: Array, folder: Path) -> tuple[dict[str, float | None], list[Gate]]:
    """PSNR-Y, SSIM-Y and ST-LPIPS to the high-resolution photo of the same name, on the same crop: fields of the photo's row, and gates."""
    scale, limits, variant = pipeline.bundle.manifest.tile.scale, pipeline.bundle.manifest.gates, variant_of(pipeline)
    truth = truth_crop(crop.path, crop.photo_size, (*crop.corner, *crop.lr.shape[:2]), scale, folder)
    height, width = truth.shape[:2]
    own, reference = result[:height, :width], crop.reference[:height, :width]
    figures = {
        "psnr_y_hr": finite(psnr_y(truth, own, scale)),
        "ssim_y_hr": finite(ssim_y(truth, own, scale)),
        "reference_psnr_y_hr": finite(psnr_y(truth, reference, scale)),
        "st_lpips_hr": _perceived(truth, own),
        "reference_st_lpips_hr": _perceived(truth, reference),
    }
    gates, subject = [], Subject(variant, image=crop.name)
    limit = _limit(limits.psnr_y_drop_db, variant)
    if limit is not None and figures["psnr_y_hr"] is not None and figures["reference_psnr_y_hr"] is not None:
        gates.append(gate(subject, "psnr_y_drop_db", figures["reference_psnr_y_hr"] - figures["psnr_y_hr"], limit))
    limit = _limit(limits.ssim_y_drop, variant)
    if limit is not None and figures["ssim_y_hr"] is not None:
        gates.append(gate(subject, "ssim_y_drop", ssim_y(truth, reference, scale) - figures["ssim_y_hr"], limit))
    return figures, gates


def _perceived(truth: Array, image: Array) -> float | None:
    return finite(st_lpips(truth, image)) if min(truth.shape[:2]) >= LEAST_SIDE else None


def _lr_consistency_db(lr: Array, result: Array) -> float:
    return psnr_db(lr, np.clip(resize(np.clip(result, 0, 1), *lr.shape[:2]), 0, 1))


def judge_sanity(pipeline: Pipeline, tile: Array) -> tuple[Gate, ...]:
    """Returns the gates of what no engine may do: repeated runs are equal, values are finite, and the output is not constant."""
    first, second = pipeline.tile(tile), pipeline.tile(tile)
    subject = Subject(variant_of(pipeline))
    return (
        gate(subject, "repeat_max_abs", float(np.max(np.abs(first - second))), 0.0),
        gate(subject, "finite_share", float(np.isfinite(first).mean()), 1.0),
        gate(subject, "output_std", float(np.nanstd(first)), CONSTANT_STD),
    )
