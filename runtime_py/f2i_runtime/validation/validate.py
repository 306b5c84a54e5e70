"""``f2i validate``: a bundle's artifacts against its full-precision reference, on real photo tiles, held to the bundle's own gates."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from f2i_runtime.bundle.manifest import Gates
from f2i_runtime.bundle.store import Bundle
from f2i_runtime.errors import UsageError
from f2i_runtime.metrics.fidelity import ErrorSums, psnr_db, psnr_y, relative_l2, ssim, ssim_y, token_cosine
from f2i_runtime.photo.photo_listing import photo_files
from f2i_runtime.photo.reader import PhotoReader
from f2i_runtime.photo.samples import cut_tiles, load_rgb
from f2i_runtime.pipeline import REFERENCE, Pipeline, open_pipeline, photo_plan
from f2i_runtime.tiling.blend import TilePlan, upscale_array
from f2i_runtime.tiling.seams import seam_figures
from f2i_runtime.validation import coreml_findings as diagnose
from f2i_runtime.validation import int8_parity as agreement

SCHEMA = 1
CONSTANT_STD = 1e-4
"""An output whose values vary less than this is constant, which no photo is."""


@dataclass(frozen=True)
class ValidateOptions:
    """What to validate with. Defaults: 16 tiles and two photos from those scikit-image ships, every variant of the bundle."""

    images: Path | None = None
    ground_truth: Path | None = None
    against: Bundle | None = None
    target: str | None = None
    precision: str | None = None
    tiles: int = 16
    photos: int = 2
    photo_side: float = 2.5
    """Side of the stitched crops, in tiles."""
    threads: int = 0
    seed: int = 0
    find_bad_op: bool = False
    """Walk every Core ML program beside the one it was converted from; see :mod:`f2i_runtime.validation.coreml_findings`."""


@dataclass(frozen=True)
class StitchedPhoto:
    """One crop as one variant upscaled it, for whoever wants to show it. Images are float32 (h, w, 3), nominally in [0, 1], not clipped."""

    target: str
    precision: str
    image: str
    lr: np.ndarray
    reference: np.ndarray
    result: np.ndarray
    plan: TilePlan
    component_seconds: dict[str, float]
    """Seconds per call of each component, over every call that this variant's validation has made so far."""


@dataclass
class Report:
    """Rows of the report; ``as_json`` is the documented schema."""

    components: list[dict[str, Any]] = field(default_factory=list)
    photos: list[dict[str, Any]] = field(default_factory=list)
    gates: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    located: list[dict[str, Any]] | None = None
    """Rows of :func:`f2i_runtime.validation.coreml_findings.locate`; None when that was not asked for."""

    @property
    def passed(self) -> bool:
        """Whether every gate passed. A report without gates has proved nothing."""
        return bool(self.gates) and all(gate["passed"] for gate in self.gates)

    def gate(self, name: str, value: float | None, limit: float, *, at_least: bool) -> None:
        """Record one gate. A figure that is not a number never passes; an infinite SQNR (equal outputs) does."""
        ok = value is not None and not math.isnan(value) and (value >= limit if at_least else value <= limit)
        self.gates.append({"name": name, "value": _number(value), "limit": limit, "passed": ok})

    def as_json(self) -> dict[str, Any]:
        """JSON-ready: numbers are finite or null (an error of exactly zero has no decibels)."""
        return {
            "schema": SCHEMA,
            "passed": self.passed,
            "components": self.components,
            "photos": self.photos,
            "gates": self.gates,
            "environment": self.environment,
            **({} if self.located is None else {"located": self.located}),
        }

    def as_junit(self) -> str:
        """One test case per gate."""
        failed = sum(not gate["passed"] for gate in self.gates)
        suite = ElementTree.Element("testsuite", name="f2i validate", tests=str(len(self.gates)), failures=str(failed))
        for gate in self.gates:
            case = ElementTree.SubElement(suite, "testcase", classname="f2i", name=gate["name"])
            if not gate["passed"]:
                ElementTree.SubElement(case, "failure", message=f"{gate['value']}, limit {gate['limit']}")
        return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


def validate(
    bundle: Bundle,
    options: ValidateOptions,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    show: Callable[[StitchedPhoto], None] = lambda _: None,
) -> Report:
    """Measure every variant and gate it.

    ``progress(what, done, of)`` is called as work goes on, ``show`` with every stitched crop as soon as it is judged. Raises UsageError, BundleError, PhotoError, ToolchainError.
    """
    variants = chosen_variants(bundle, options)
    sources = photo_files(options.images)
    report = Report(environment={"machine": platform.machine(), "python": platform.python_version(), "bundle": bundle.manifest.name})
    gates = bundle.manifest.gates
    size = bundle.manifest.tile.size
    with open_pipeline(options.against or bundle, *REFERENCE, threads=options.threads) as reference:
        report.environment["reference"] = reference.engine
        tiles = list(_tiles(sources, size, options))
        expected = []
        for k, tile in enumerate(tiles):
            expected.append(reference.tensors(tile))
            progress("reference tiles", k + 1, len(tiles))
        crops = [(path, _crop(path, round(size * options.photo_side))) for path in sources[: options.photos]]
        stitched = []
        for k, (path, crop) in enumerate(crops):
            stitched.append((path, crop, *_stitch(reference, crop)))
            progress("reference photos", k + 1, len(crops))
        _tiling(report, gates, reference, crops, stitched)
    simulated = {}
    named = [(path.name, crop) for path, crop in crops]
    for done, precision in enumerate(dict.fromkeys(p for _, p in variants)):
        simulated[precision] = agreement.simulate(bundle, precision, expected, named, lambda p, crop: _stitch(p, crop)[0], options.threads)
        progress("QDQ programs", done + 1, len({p for _, p in variants}))
    for done, (target, precision) in enumerate(variants):
        with open_pipeline(bundle, target, precision, threads=options.threads) as pipeline:
            worst = _components(report, gates, pipeline, expected)
            _sources(report, pipeline, {component: expected[k] for component, k in worst.items()}, options.find_bad_op)
            photos = _photos(report, gates, pipeline, stitched, options, show)
            _sanity(report, pipeline, tiles[0])
            if alone := simulated[precision]:
                _agreement(report, alone, pipeline, photos)
        progress("variants", done + 1, len(variants))
    return report


def chosen_variants(bundle: Bundle, options: ValidateOptions) -> list[tuple[str, str]]:
    """(target, precision) of every complete variant that the options select. Raises UsageError when there is none."""
    variants = [(t, p) for t, p in bundle.manifest.variants() if options.target in (None, t) and options.precision in (None, p)]
    if not variants:
        have = ", ".join(f"{t}/{p}" for t, p in bundle.manifest.variants()) or "no complete variant"
        raise UsageError(f"{bundle.root}: nothing to validate for that target and precision; it holds {have}")
    return list(variants)


def _agreement(report: Report, simulated: agreement.Simulated, pipeline: Pipeline, photos: dict[str, np.ndarray]) -> None:
    """Whether this engine computes the quantized function that the QDQ programs compute; their SQNR goes into the report's environment."""
    own = {k: _number(v) for k, v in simulated.sqnr_db.items()}
    report.environment.setdefault("simulated_sqnr_db", {})[pipeline.precision] = own
    rows, crops = (
        [r for r in found if (r["target"], r["precision"]) == (pipeline.target, pipeline.precision)]
        for found in (report.components, report.photos)
    )
    beside = agreement.photos_beside(simulated, pipeline.target, photos)
    for row in crops:
        row["psnr_db_to"] = {other: _number(value) for other, value in beside[row["image"]].items()}
    for name, value, limit, at_least in agreement.judge(simulated, pipeline, {r["component"]: r["sqnr_db"] for r in rows}, beside):
        report.gate(name, value, limit, at_least=at_least)


def read_photo(path: Path) -> np.ndarray:
    """A whole photo, float32 (h, w, 3) in [0, 1], upright."""
    with PhotoReader(path) as reader:
        return reader.rows(0, reader.height)


def _tiles(sources: Sequence[Path], size: int, options: ValidateOptions) -> Iterator[np.ndarray]:
    photos: dict[Path, np.ndarray] = {}
    for k in range(options.tiles):
        path = sources[k % len(sources)]
        if path not in photos:
            photos[path] = read_photo(path) if options.images else load_rgb(path)
        yield cut_tiles(photos[path], size, 1, options.seed + k)[0]


def _crop(path: Path, side: int) -> np.ndarray:
    photo = read_photo(path)
    h, w = photo.shape[:2]
    y, x = max(0, (h - side) // 2), max(0, (w - side) // 2)
    return np.ascontiguousarray(photo[y : y + side, x : x + side])


def _stitch(pipeline: Pipeline, photo: np.ndarray) -> tuple[np.ndarray, float]:
    """The stitched photo and the engine's own seconds per tile."""
    before, calls = sum(pipeline.seconds.values()), max(pipeline.calls.values(), default=0)
    plan = photo_plan(pipeline.bundle, *photo.shape[:2])
    began = time.perf_counter()
    result = upscale_array(photo, plan, pipeline.tile)
    spent = sum(pipeline.seconds.values()) - before or time.perf_counter() - began
    return result, spent / max(1, max(pipeline.calls.values()) - calls)


def _tiling(report: Report, gates: Gates, reference: Pipeline, crops: list[tuple[Path, np.ndarray]], stitched: list[Any]) -> None:
    """How much the reference's output depends on where tiles lie: the same photo on two grids half a tile apart, compared where both have it."""
    if not crops:
        return
    tile, scale = reference.bundle.manifest.tile, reference.bundle.manifest.tile.scale
    shift = min(tile.size // 2 // tile.multiple * tile.multiple, max(0, min(crops[0][1].shape[:2]) - tile.size))
    if shift == 0:
        return
    moved, _ = _stitch(reference, np.ascontiguousarray(crops[0][1][shift:, shift:]))
    margin = tile.overlap * scale
    first = stitched[0][2][shift * scale :, shift * scale :]
    value = psnr_db(first[margin:, margin:], moved[margin:, margin:])
    report.environment["tiling_psnr_db"] = _number(value)
    if gates.tiling_psnr_db is not None:
        report.gate("reference tiling psnr_db", value, gates.tiling_psnr_db, at_least=True)


def _components(report: Report, gates: Gates, pipeline: Pipeline, expected: list[dict[str, np.ndarray]]) -> dict[str, int]:
    """Each component alone, on the reference's inputs, so that one component's error is not another's. Returns each one's worst tile."""
    worst: dict[str, int] = {}
    for call in pipeline.bundle.manifest.dataflow:
        sums = ErrorSums()
        errors, cosines = [], []
        for tensors in expected:
            output = pipeline.run(call.component, {a: tensors[t] for a, t in call.inputs.items()})
            sums.update(tensors[call.result], output)
            if output.ndim == 3:
                cosines.append(token_cosine(tensors[call.result], output))
            error = relative_l2(tensors[call.result], output)
            errors.append(error if math.isfinite(error) else math.inf)
        worst[call.component] = int(np.argmax(errors))
        sqnr = sums.sqnr_db()
        row = {
            "target": pipeline.target,
            "precision": pipeline.precision,
            "component": call.component,
            "engine": pipeline.engine,
            "tiles": len(expected),
            "sqnr_db": _number(sqnr),
            "rel_l2": _number(sums.relative_l2()),
            "max_abs": _number(sums.max_abs()),
            "cosine": _number(sums.cosine()),
        }
        report.components.append(row)
        limit = gates.component_sqnr_db.get(pipeline.precision)  # type: ignore[call-overload]
        if limit is not None:
            report.gate(f"{pipeline.target}/{pipeline.precision} {call.component} sqnr_db", sqnr, limit, at_least=True)
        limit = gates.token_cosine.get(pipeline.precision)  # type: ignore[call-overload]
        if limit is not None and cosines:
            report.gate(
                f"{pipeline.target}/{pipeline.precision} {call.component} token_cosine", float(np.mean(cosines)), limit, at_least=True
            )
    return worst


def _sources(report: Report, pipeline: Pipeline, worst: dict[str, dict[str, np.ndarray]], walk: bool) -> None:
    """Core ML packages beside the programs they were converted from: what must hold always, every op where that is asked for."""
    bundle = pipeline.bundle
    if walk and report.located is None:
        report.located = []
    for call in bundle.manifest.dataflow if pipeline.target == "coreml" else ():
        artifact = bundle.manifest.artifact(call.component, pipeline.target, pipeline.precision)
        inputs = {name: worst[call.component][tensor] for name, tensor in call.inputs.items()}
        for found in diagnose.findings(bundle, artifact, inputs):
            report.gate(f"{pipeline.target}/{pipeline.precision} {call.component} {found.name}", found.value, found.limit, at_least=False)
        if walk and report.located is not None:
            row = diagnose.locate(bundle, artifact, inputs)
            report.located += [row] if row else []


def _photos(
    report: Report, gates: Gates, pipeline: Pipeline, stitched: list[Any], options: ValidateOptions, show: Callable[[StitchedPhoto], None]
) -> dict[str, np.ndarray]:
    """Rows and gates of every crop; returns the stitched results by the photo's name."""
    results = {}
    name = f"{pipeline.target}/{pipeline.precision}"
    for path, crop, reference, reference_seconds in stitched:
        result, seconds = _stitch(pipeline, crop)
        results[path.name] = result
        value = psnr_db(np.clip(reference, 0, 1), np.clip(result, 0, 1))
        plan = photo_plan(pipeline.bundle, *crop.shape[:2])
        seam, steps = seam_figures((result - reference).astype(np.float32), plan) if plan.count > 1 else (None, None)
        row = {
            "target": pipeline.target,
            "precision": pipeline.precision,
            "image": path.name,
            "psnr_db": _number(value),
            "psnr_db_to": None,
            "ssim": _number(ssim(np.clip(reference, 0, 1), np.clip(result, 0, 1))),
            "psnr_y_hr": None,
            "ssim_y_hr": None,
            "lpips_hr": None,
            "reference_psnr_y_hr": None,
            "seam_ratio": _number(seam),
            "seam_gradient_ratio": _number(steps),
            "latency_ratio": _number(seconds / reference_seconds),
        }
        if options.ground_truth is not None:
            _against_truth(report, gates, row, path, crop, reference, result, options.ground_truth, pipeline)
        report.photos.append(row)
        limit = gates.photo_psnr_db.get(pipeline.precision)  # type: ignore[call-overload]
        if limit is not None:
            report.gate(f"{name} {path.name} psnr_db", value, limit, at_least=True)
        if seam is not None and not math.isnan(seam):
            report.gate(f"{name} {path.name} seam_ratio", seam, gates.seam_ratio, at_least=False)
        per_call = {c: s / pipeline.calls[c] for c, s in pipeline.seconds.items()}
        show(StitchedPhoto(pipeline.target, pipeline.precision, path.name, crop, reference, result, plan, per_call))
    return results


def _against_truth(
    report: Report,
    gates: Gates,
    row: dict[str, Any],
    path: Path,
    crop: np.ndarray,
    reference: np.ndarray,
    result: np.ndarray,
    folder: Path,
    pipeline: Pipeline,
) -> None:
    """PSNR-Y and SSIM-Y to the high-resolution photo of the same name, on the same crop."""
    matches = [p for p in photo_files(folder) if p.stem == path.stem]
    if not matches:
        raise UsageError(f"{folder}: no high-resolution photo named {path.stem}.*; --ground-truth needs one for every photo of --images")
    scale = pipeline.bundle.manifest.tile.scale
    truth = read_photo(matches[0])
    side_h, side_w = crop.shape[0] * scale, crop.shape[1] * scale
    y, x = (truth.shape[0] - side_h) // 2 // scale * scale, (truth.shape[1] - side_w) // 2 // scale * scale
    if y < 0 or x < 0:
        raise UsageError(f"{matches[0]}: {truth.shape[1]}x{truth.shape[0]}, expected {scale} times the size of {path.name}")
    truth = truth[y : y + side_h, x : x + side_w]
    row["psnr_y_hr"], row["ssim_y_hr"] = _number(psnr_y(truth, result, scale)), _number(ssim_y(truth, result, scale))
    row["reference_psnr_y_hr"] = _number(psnr_y(truth, reference, scale))
    limit = gates.psnr_y_drop_db.get(pipeline.precision)  # type: ignore[call-overload]
    if limit is not None and row["psnr_y_hr"] is not None:
        drop = row["reference_psnr_y_hr"] - row["psnr_y_hr"]  # pyright: ignore[reportOptionalOperand]  # both are numbers, or neither is
        report.gate(f"{pipeline.target}/{pipeline.precision} {path.name} psnr_y_drop_db", drop, limit, at_least=False)
    limit = gates.ssim_y_drop.get(pipeline.precision)  # type: ignore[call-overload]
    if limit is not None and row["ssim_y_hr"] is not None:
        drop = ssim_y(truth, reference, scale) - row["ssim_y_hr"]
        report.gate(f"{pipeline.target}/{pipeline.precision} {path.name} ssim_y_drop", drop, limit, at_least=False)


def _sanity(report: Report, pipeline: Pipeline, tile: np.ndarray) -> None:
    """Repeated runs are equal, values are finite, and the output is not constant."""
    first, second = pipeline.tile(tile), pipeline.tile(tile)
    name = f"{pipeline.target}/{pipeline.precision}"
    report.gate(f"{name} repeat max_abs", float(np.max(np.abs(first - second))), 0.0, at_least=False)
    report.gate(f"{name} finite share", float(np.isfinite(first).mean()), 1.0, at_least=True)
    report.gate(f"{name} output std", float(np.nanstd(first)), CONSTANT_STD, at_least=True)


def _number(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None
