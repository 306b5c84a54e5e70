"""A search among UNet shapes: what each costs on Snapdragon's NPU and on this CPU, and how good it is after the same short training.

    python -m f2i_bench.suites.shapes search --images photos --set Set5 --target TARGET [--shapes FILE.json] [--steps 2000]

Shapes come one after another, each is trained, measured and written to ``search/shapes.json`` before the next, and a run that was ended goes on where it
was. ``search/shapes.md`` is the table; the picture of all shapes is drawn by ``f2i estimate`` with the line that is printed at the end. Without ``--shapes``
the shapes are those of :data:`BUILT_IN`; a file names its own, {"NAME": SHAPE}, with the keys of ``f2i_quantize.train.new_student``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from f2i_runtime.errors import F2IError
from f2i_runtime.files import write_json, write_text
from f2i_runtime.photo.photo_listing import find_photos
from f2i_runtime.records import Document, Record, read_document
from f2i_runtime.targets import find_target
from pydantic import Field

if TYPE_CHECKING:
    from f2i_quantize.train.new_student import Shape

SINGLE = "fp32"
WARMUP, TIMED = 2, 7
"""Tiles that the CPU upscales before it is timed, and those of which the median is taken."""
BUILT_IN: dict[str, tuple[tuple[int, ...], int, int]] = {
    "32-64-64-128": ((32, 64, 64, 128), 1, 1),
    "64-64-96-128": ((64, 64, 96, 128), 1, 1),
    "64-64-96-128 x3": ((64, 64, 96, 128), 3, 1),
    "64-96-128 half": ((64, 96, 128), 1, 2),
    "128-192-256 x2 half": ((128, 192, 256), 2, 2),
}
"""Name → channels of each level, residual blocks a level, and the side of the block of pixels that the first level works on. All without norms, with ReLU,
and with attention in the mid block alone.
"""


class ShapeRow(Record):
    """What was found of one shape. A figure that was not asked for is null."""

    name: str
    key: str
    """A hash of the shape and of how it was trained; a row of another key is measured anew."""
    checkpoint: str
    parameters: int
    gflop: float = Field(ge=0)
    """Operations for a tile, two for each multiply-add, in all components."""
    psnr_y: float
    """PSNR-Y in dB, the mean over the photos of the set, or over the photos held out where no set was given."""
    training_seconds: float
    cpu_ms: float | None
    """The median of one thread's milliseconds for a tile, the target's engine in float32."""
    npu_ms: dict[str, float]
    """Precision → milliseconds for a tile by estimate, the encoder included."""
    uncosted_ops: int


class ShapeReport(Document):
    """All shapes that are done, in their order."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    tile: int
    steps: int
    rows: tuple[ShapeRow, ...]


@dataclass(frozen=True)
class SearchOptions:
    """How every shape is trained and what is measured of it."""

    out: Path
    images: Path
    truth: Path | None = None
    """A benchmark set (``HR/``, ``LR/``) that gives the PSNR."""
    steps: int = 2000
    batch: int = 8
    crop: int = 48
    tile: int = 128
    seed: int = 0
    precisions: tuple[str, ...] = ("fp16", "w8a8")
    """What the NPU is estimated in; none leaves it out."""
    target: str | None = None
    """Whose export gives the CPU's latency; none leaves it out."""
    encoder: str | None = "nano"
    """The model whose feature encoder's weights every shape starts with."""
    holdout: int = 8


def built_in() -> dict[str, Shape]:
    """Returns the shapes of :data:`BUILT_IN`, each with ``nano``'s feature encoder."""
    from f2i_quantize.models.presets import PRESETS
    from f2i_quantize.train.new_student import Shape

    nano, found = PRESETS["nano"], {}
    for name, (channels, layers, unshuffle) in BUILT_IN.items():
        unet = {
            "block_out_channels": channels,
            "layers_per_block": layers,
            "down_block_types": ("DownBlock2D",) * len(channels),
            "up_block_types": ("UpBlock2D",) * len(channels),
            "act_fn": "relu",
            "attention_head_dim": 4,
            "cross_attention_dim": 192,
        }
        model = {"name": name.replace(" ", "-"), "base": "bicubic", "unet_norm": "none"}
        found[name] = Shape.model_validate({"model": model, "unet": unet, "feature_encoder": nano.encoder, "codec": {"factor": unshuffle}})
    return found


def read_shapes(path: Path) -> dict[str, Shape]:
    """Returns the shapes of a file by name. Raises CheckpointError or UsageError naming the file and the first wrong key."""
    from f2i_quantize.train.new_student import read_shape_file, shape_of

    return {name: shape_of(content, f"{path}: {name}") for name, content in read_shape_file(path).items()}


def search(shapes: Mapping[str, Shape], options: SearchOptions) -> ShapeReport:
    """Returns the report of all shapes; those that an earlier run finished are not done again. Raises F2IError."""
    _check(options)
    path, done = options.out / "shapes.json", {}
    if path.is_file():
        done = {row.key: row for row in read_document(path, ShapeReport, "the search for shapes").rows}
    report = ShapeReport(tile=options.tile, steps=options.steps, rows=())
    for name, shape in shapes.items():
        key = _key(shape, options)
        row = done.get(key) or _measure(name, shape, key, options)
        report = report.model_copy(update={"rows": (*report.rows, row)})
        options.out.mkdir(parents=True, exist_ok=True)
        write_json(path, report.as_json())
        write_json(options.out / "quality.json", {r.checkpoint: round(r.psnr_y, 3) for r in report.rows})
        write_text(options.out / "shapes.md", table(report))
    return report


def _check(options: SearchOptions) -> None:
    """Raises UsageError for what would end the search after its first training: no photos, no benchmark, a target or a precision that cannot be had."""
    find_photos(options.images)
    if options.truth:
        for side in ("HR", "LR"):
            find_photos(options.truth / side)
    if options.target:
        find_target(options.target)
    if options.precisions:
        from f2i_bench.npu.estimate import EstimateOptions, check_options

        check_options(EstimateOptions(options.precisions))


def _key(shape: Shape, options: SearchOptions) -> str:
    content = [shape.model_dump(mode="json"), options.steps, options.batch, options.crop, options.seed, options.tile, options.encoder]
    content += [str(options.images), str(options.truth), options.precisions, options.target, options.holdout]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _measure(name: str, shape: Shape, key: str, options: SearchOptions) -> ShapeRow:
    from f2i_quantize.models import checkpoint
    from f2i_quantize.train.distill import distill
    from f2i_quantize.train.distill_options import DistillOptions
    from f2i_quantize.train.held_out import evaluate, upscaler
    from f2i_quantize.train.new_student import new_student
    from f2i_quantize.train.run_folder import has_state, run_folder

    folder = options.out / key
    start, trained = folder / "start", folder / "trained"
    if not start.is_dir():
        encoder = checkpoint.load(options.encoder) if options.encoder else None
        checkpoint.save(new_student(shape, options.seed, encoder), start)
    training = DistillOptions(
        images=options.images, out=trained, student=str(start), steps=options.steps, batch=options.batch, crop=options.crop, seed=options.seed,
        holdout=options.holdout, cache=options.out / "photos", evaluation_tile=options.tile, evaluate_every=options.steps,
        save_every=max(1, options.steps // 10), resume=has_state(run_folder(trained)),
    )  # fmt: skip
    result = distill(training)
    if result.interrupted:
        raise KeyboardInterrupt
    model = checkpoint.load(trained)
    quality = evaluate(options.truth, upscaler(model, None)).psnr_y if options.truth else result.best_psnr_y
    npu, uncosted = _npu(trained, options)
    return ShapeRow(
        name=name,
        key=key,
        checkpoint=str(trained),
        parameters=model.parameters(),
        gflop=gflop(model, options.tile),
        psnr_y=quality,
        training_seconds=round(result.seconds, 1),
        cpu_ms=cpu_ms(trained, folder / "bundle", options) if options.target else None,
        npu_ms=npu,
        uncosted_ops=uncosted,
    )


def gflop(model: Any, tile: int) -> float:
    """Returns the operations for one tile, in 10⁹, two for each multiply-add; convolutions and matrix products only."""
    import torch
    from f2i_quantize.models.differentiable import Pipeline
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        Pipeline(model, tile).eval()(torch.zeros(1, 3, tile, tile))
    return float(counter.get_total_flops() / 1e9)


def cpu_ms(checkpoint: Path, bundle: Path, options: SearchOptions) -> float:
    """Returns the median milliseconds of a tile on one thread, through the model's export to the target in float32."""
    import numpy as np
    from f2i_export.write_bundle import ExportOptions, export_bundle
    from f2i_runtime.bundle.store import open_bundle
    from f2i_runtime.pipeline import open_pipeline
    from f2i_runtime.targets import Variant, find_target

    target = find_target(str(options.target)).name
    wanted = ExportOptions(str(checkpoint), bundle, (target,), (SINGLE,), tile=options.tile)
    exported = open_bundle(bundle) if bundle.is_dir() else export_bundle(wanted)
    lr, seconds = np.random.default_rng(0).random((1, 3, options.tile, options.tile), np.float32), []
    with open_pipeline(exported, Variant(target, SINGLE), threads=1) as pipeline:
        for _ in range(WARMUP + TIMED):
            began = time.perf_counter()
            pipeline.tile(lr)
            seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[WARMUP:]) * 1e3)


def _npu(checkpoint: Path, options: SearchOptions) -> tuple[dict[str, float], int]:
    if not options.precisions:
        return {}, 0
    from f2i_bench.npu.estimate import EstimateOptions, estimate_models
    from f2i_bench.npu.subjects import subject
    from f2i_bench.suites.estimate_truth import tell

    report = estimate_models([subject(str(checkpoint), options.tile)], EstimateOptions(options.precisions), tell)
    return {m.precision: m.ms for m in report.models}, max(m.uncosted_ops for m in report.models)


def table(report: ShapeReport) -> str:
    """Returns the rows as Markdown, best first."""
    precisions = list(dict.fromkeys(precision for row in report.rows for precision in row.npu_ms))
    head = ["shape", "M parameters", "GFLOP", *(f"NPU {precision} ms" for precision in precisions), "CPU fp32 ms", "PSNR-Y dB"]
    lines = [" | ".join(head), "|".join(["---"] + ["--:"] * (len(head) - 1))]
    for row in sorted(report.rows, key=lambda r: -r.psnr_y):
        npu = [f"{row.npu_ms[p]:.2f}{'*' * bool(row.uncosted_ops)}" if p in row.npu_ms else "–" for p in precisions]
        cpu = "–" if row.cpu_ms is None else f"{row.cpu_ms:.0f}"
        lines.append(" | ".join([row.name, f"{row.parameters / 1e6:.2f}", f"{row.gflop:.1f}", *npu, cpu, f"{row.psnr_y:.2f}"]))
    about = f"After {report.steps} steps; a tile of {report.tile} × {report.tile} px, whole model. NPU: estimated for Hexagon v73, not measured."
    return "\n".join([*(f"| {line} |" for line in lines), "", about, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m f2i_bench.suites.shapes", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("out", type=Path, help="the folder of the search")
    parser.add_argument("--images", type=Path, required=True, help="training photos")
    parser.add_argument("--set", type=Path, dest="truth", help="a benchmark folder with HR/ and LR/ that gives the PSNR")
    parser.add_argument("--shapes", type=Path, help="shapes by name, a JSON file")
    parser.add_argument("--steps", type=int, default=SearchOptions.steps, help="optimizer steps for every shape")
    parser.add_argument("--batch", type=int, default=SearchOptions.batch)
    parser.add_argument("--crop", type=int, default=SearchOptions.crop)
    parser.add_argument("--tile-size", type=int, dest="tile", default=SearchOptions.tile)
    parser.add_argument("--target", help="whose export gives the CPU's latency; without, it is left out")
    parser.add_argument("--precision", default=",".join(SearchOptions.precisions), help="of the NPU's estimate; empty leaves it out")
    given = vars(parser.parse_args(arguments))
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    shapes, precisions = given.pop("shapes"), tuple(filter(None, given.pop("precision").split(",")))
    try:
        report = search(read_shapes(shapes) if shapes else built_in(), SearchOptions(**given, precisions=precisions))
    except F2IError as e:
        sys.stderr.write(f"shapes: {e}\n")
        return e.exit_code
    sys.stdout.write(table(report))
    if precisions:
        models = " ".join(row.checkpoint for row in report.rows)
        line = f"f2i estimate {models} --tile-size {given['tile']} --precision {','.join(precisions)}"
        sys.stdout.write(f"\nThe picture: {line} --quality {given['out'] / 'quality.json'} --picture {given['out'] / 'shapes.svg'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
