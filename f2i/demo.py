"""``f2i demo``: the main job on a sample photo, from a checkpoint to upscaled photos, a validated bundle and a report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from f2i_export.write_bundle import ExportOptions, export_bundle
from f2i_quantize.models import checkpoint_files
from f2i_quantize.ptq.quantization_record import available, read_record
from f2i_quantize.ptq.quantize_job import QuantizeOptions, quantize_checkpoint
from f2i_quantize.ptq.recipe import Recipe, load_recipe
from f2i_runtime.bundle.store import BUNDLE_FOLDER, Bundle
from f2i_runtime.files import FolderKind, atomic_file, check_replaceable, remove_folder, write_json
from f2i_runtime.photo.resample import resize
from f2i_runtime.photo.samples import load_rgb, sample_photo
from f2i_runtime.pipeline import open_pipeline, upscale_photo
from f2i_runtime.targets import FLOAT, REFERENCE
from f2i_runtime.validation.results import Report
from f2i_runtime.validation.validate import validate
from f2i_runtime.validation.validate_options import ValidateOptions
from PIL import Image, ImageDraw

from f2i.inspection import inspect_bundle
from f2i.progress import Steps
from f2i.report.images import ReportImages
from f2i.report.page import write_report

WINDOW = 128
"""The side of the crop in the picture, in low-resolution pixels."""
ZOOM = 2
"""The factor by which the picture enlarges output pixels."""


_PAGES = ("inspect.json", "validate.json", "report.html", "before_after.png")


def _demo_files(folder: Path) -> tuple[str, ...]:
    """Pages and pictures have names that any folder may have: they are the demo's own beside a bundle or a checkpoint of it."""
    places = [(folder / "bundle", BUNDLE_FOLDER), *((path, checkpoint_files.CHECKPOINT_FOLDER) for path in folder.glob("checkpoint-*"))]
    begun = any(kind.files(place) for place, kind in places)
    return (*((*_PAGES, "*_*_*.png", "bundle/*", "checkpoint-*/*") if begun else ()), ".*f2i-*")


DEMO_FOLDER = FolderKind("what f2i demo writes", _demo_files)
"""The bundle and the checkpoints in it are replaced only if they hold nothing else, either."""


@dataclass(frozen=True)
class DemoOptions:
    """What the demo exports and shows; ``photo`` None takes one that scikit-image ships."""

    out: Path
    checkpoint: str
    targets: tuple[str, ...]
    precisions: tuple[str, ...]
    photo: Path | None
    command: list[str]


def run_demo(options: DemoOptions, steps: Steps) -> tuple[Bundle, Report]:
    """Export, upscale the photo through every engine, validate; writes everything below ``options.out``, which must exist.

    Leaves ``bundle/``, ``inspect.json``, ``validate.json``, ``report.html``, the upscaled photos and ``before_after.png``, and for int8 the calibrated
    checkpoint.
    """
    check_replaceable(options.out, DEMO_FOLDER)
    check_replaceable(options.out / "bundle", BUNDLE_FOLDER)
    for precision in options.precisions:
        check_replaceable(options.out / f"checkpoint-{precision}", checkpoint_files.CHECKPOINT_FOLDER)
    source = options.photo or sample_photo()
    calibrated = calibrate(options, steps)
    bundle = export_bundle(ExportOptions(calibrated, options.out / "bundle", options.targets, options.precisions), steps.event)
    write_json(options.out / "inspect.json", inspect_bundle(bundle).as_json())
    upscaled = []
    for variant in [REFERENCE, *bundle.manifest.variants()]:
        name = str(variant)
        path = options.out / f"{source.stem}_{name.replace('/', '_')}.png"
        with open_pipeline(bundle, variant) as pipeline:
            notes = upscale_photo(pipeline, source, path, progress=steps.counter(f"photo through {name.replace('/', ' ')}"))
        upscaled.append(path)
        if variant == REFERENCE:  # the others say the same of the photo
            for note in notes:
                steps.note(f"{source}: {note}")
    before_after(source, upscaled[-1], options.out / "before_after.png")
    images = ReportImages()
    report = validate(bundle, ValidateOptions(images=options.photo), steps.count, images.collect)
    write_json(options.out / "validate.json", report.as_json())
    write_report(options.out / "report.html", bundle, report, images, command=options.command)
    return bundle, report


def calibrate(options: DemoOptions, steps: Steps) -> str:
    """The checkpoint that holds every precision asked for: the one given, or ``options.out/checkpoint-PRECISION``, calibrated on the sample photos.

    What an earlier demo calibrated is used again where it is of the same weights and the same recipe.
    """
    current = options.checkpoint
    for precision in options.precisions:
        if precision in FLOAT or precision in available(current):
            continue
        recipe, out = load_recipe(precision), options.out / f"checkpoint-{precision}"
        if not _same(out, current, recipe):
            remove_folder(out, checkpoint_files.CHECKPOINT_FOLDER)
            quantize_checkpoint(QuantizeOptions(current, recipe, out), steps.count)
        current = str(out)
    return current


def _same(folder: Path, source: str, recipe: Recipe) -> bool:
    if recipe.precision not in available(folder):
        return False
    found = read_record(folder, recipe.precision)
    return found.recipe.sha256() == recipe.sha256() and found.calibration["checkpoint_sha256"] == checkpoint_files.checkpoint_sha256(source)


def before_after(photo: Path, upscaled: Path, destination: Path) -> None:
    """The most detailed window of ``photo``, enlarged by bicubic (left) and as in ``upscaled`` (right), each output pixel :data:`ZOOM` wide."""
    before, after = load_rgb(photo), load_rgb(upscaled)
    scale = after.shape[0] // before.shape[0]
    y, x = _most_detailed(before, WINDOW)
    side = min(WINDOW, *before.shape[:2])
    window = before[y : y + side, x : x + side]
    panels = (resize(window, side * scale, side * scale), after[y * scale : (y + side) * scale, x * scale : (x + side) * scale])
    picture = Image.fromarray(np.round(np.clip(np.hstack(panels), 0, 1) * 255).astype(np.uint8))
    picture = picture.resize((picture.width * ZOOM, picture.height * ZOOM), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)
    for k, label in enumerate(("bicubic", upscaled.stem.removeprefix(f"{photo.stem}_").replace("_", " "))):
        draw.text((k * picture.width // 2 + 10, 8), label, fill="white", stroke_width=2, stroke_fill="black", font_size=22)
    with atomic_file(destination) as temporary:
        picture.save(temporary, format="PNG")


def _most_detailed(photo: np.ndarray, side: int) -> tuple[int, int]:
    """Top left corner of the window whose mean gradient is largest, on a grid of half windows."""
    grey = photo.mean(2)
    detail = np.abs(np.diff(grey, axis=0, append=grey[-1:])) + np.abs(np.diff(grey, axis=1, append=grey[:, -1:]))
    corners = [
        (y, x) for y in range(0, max(1, grey.shape[0] - side + 1), side // 2) for x in range(0, max(1, grey.shape[1] - side + 1), side // 2)
    ]
    return max(corners, key=lambda c: float(detail[c[0] : c[0] + side, c[1] : c[1] + side].mean()))
