"""The ``f2i`` command: parse, call one typed function, print. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from f2i_runtime.errors import F2IError, UsageError
from f2i_runtime.files import make_folder, write_json

from f2i.commands.judge import commands
from f2i.progress import Steps
from f2i.tables import artifact_table, doctor_table, inspect_json, parity_table, quantization_lines
from f2i.terminal import BundleArgument, JsonFlag, Precisions, Targets, Threads, command_line, end, err, out

app = typer.Typer(name="f2i", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")
INTERRUPTED = 130


@app.callback()
def _setup(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the toolchain's own warnings.")] = False) -> None:
    """Take F2IDiff super-resolution models to phones, and prove what arrives there."""
    if not verbose:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@app.command()
def demo(
    out_dir: Annotated[Path, typer.Option("--out", help="Where everything is written.")] = Path("demo-out"),
    checkpoint: Annotated[str, typer.Option(help="Bundled model or checkpoint folder.")] = "nano",
    target: Targets = "coreml,executorch,tflite,onnx",
    precision: Precisions = "fp16,w8a8",
    photo: Annotated[Path | None, typer.Option(help="Your own photo; default: one that scikit-image ships.")] = None,
) -> None:
    """Export the bundled model to every target, upscale a photo through each engine, and validate.

    Example: `f2i demo --out demo-out`
    """
    from f2i.demo import DemoOptions, run_demo

    make_folder(out_dir)
    with Steps(err) as steps:
        options = DemoOptions(out_dir, checkpoint, tuple(_split(target)), tuple(_split(precision)), photo, command_line())
        bundle, report = run_demo(options, steps)
    out.print(parity_table(bundle, report))
    out.print(f"Photos, bundle and reports are in {out_dir}; look at report.html and before_after.png")
    end(report)


@app.command()
def doctor(as_json: JsonFlag = False) -> None:
    """What this machine can export and run: versions, memory, engines.

    Example: `f2i doctor`
    """
    from f2i_bench.host.machine import examine

    data = examine()
    if as_json:
        _print_json(data)
        return
    out.print(doctor_table(data))
    out.print(", ".join(f"{k} {v}" for k, v in data["versions"].items() if v))


@app.command()
def distill(
    data: Annotated[Path, typer.Option(help="Folder of training photos, searched recursively.", show_default=False)],
    out_dir: Annotated[Path, typer.Option("--out", help="The checkpoint to write; the run's own files go to OUT.run.", show_default=False)],
    student: Annotated[str, typer.Option(help="A preset (nano, mobile, …), or a checkpoint to go on from.")] = "nano",
    teacher: Annotated[str | None, typer.Option(help="A checkpoint; without one the student learns from the photos alone.")] = None,
    encoder: Annotated[
        Path | None, typer.Option(help="A DINOv2 folder: teach the student's feature encoder its tokens, nothing else.")
    ] = None,
    validation: Annotated[Path | None, typer.Option(help="Photos to evaluate on; default: 8 training photos are held out.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 20_000,
    batch: Annotated[int, typer.Option(min=1, help="Crops per step and process.")] = 8,
    crop: Annotated[int, typer.Option(min=16, help="Side of a low-resolution crop, pixels.")] = 64,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0, help="Of weights and crops.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run with the same options stopped.")] = False,
    setting: Annotated[list[str] | None, typer.Option("--set", help="Any other option as NAME=VALUE, e.g. --set weights.fft=0.02.")] = None,
) -> None:
    """Train a model on photos, from scratch or from a teacher. Ctrl-C saves; --resume goes on with the same losses.

    Example: `f2i distill --data photos --student nano --teacher big --out small`
    """
    from f2i_quantize.train.distill import distill as train
    from f2i_quantize.train.distill_options import parse_options
    from f2i_quantize.train.encoder_distill import EncoderOptions, distill_encoder_checkpoint

    if encoder:
        if teacher or validation or setting:
            raise UsageError(
                "--encoder teaches the feature encoder alone; --teacher, --validation and --set are for the whole model: run that next"
            )
        wanted = EncoderOptions(data=data, steps=steps, batch=batch, crop=crop, lr=lr, seed=seed)
        with Steps(err) as progress:
            count = progress.counter("encoder")
            losses = distill_encoder_checkpoint(student, encoder, out_dir, wanted, resume=resume, progress=lambda k, _: count(k, steps))
        out.print(f"{out_dir}: token loss {losses[0]:.4f} at first, {losses[-1]:.4f} at the end")
        return

    given = {"data": data, "out": out_dir, "student": student, "teacher": teacher, "validation": validation, "steps": steps, "batch": batch}
    options = parse_options(given | {"crop": crop, "lr": lr, "seed": seed, "resume": resume}, setting or [])
    with Steps(err) as progress:
        result = train(options, progress.training)
    for name, reason in result.skipped:
        err.print(f"{name}: not used: {reason}", style="yellow", markup=False)
    if result.interrupted:
        raise KeyboardInterrupt
    out.print(
        f"{result.out}: best at step {result.best_step} of {result.steps}, {result.best_psnr_y:.2f} dB PSNR-Y on the validation photos"
    )


@app.command()
def quantize(
    checkpoint: Annotated[str, typer.Argument(help="Checkpoint folder, or a model's name: nano, tiny, mobile, paper.", show_default=False)],
    out_dir: Annotated[Path | None, typer.Option("--out", help="The quantized checkpoint to write.")] = None,
    recipe: Annotated[str, typer.Option(help="w8a8, w8a8-mixed, w8a16, w8, p8, p6, p4, or a TOML file.")] = "w8a8",
    calib: Annotated[Path | None, typer.Option(help="Photos to calibrate on; default: those scikit-image ships.")] = None,
    tile: Annotated[int, typer.Option(help="Side of the calibration tiles; 0 takes the checkpoint's own.")] = 0,
    tiles: Annotated[int, typer.Option(min=0, help="Number of calibration tiles; 0 takes the recipe's.")] = 0,
    sensitivity: Annotated[
        Path | None, typer.Option(help="Only measure what each layer costs: a JSON file to write, and a picture (.svg) beside it.")
    ] = None,
    target_psnr: Annotated[
        float | None, typer.Option(help="w8a8-mixed: wanted PSNR of a tile's output in dB; default: the recipe's.")
    ] = None,
    rounding: Annotated[str | None, typer.Option(help="Of weights: nearest or gptq; default: the recipe's.")] = None,
    qat: Annotated[bool, typer.Option("--qat", help="Fine-tune the quantized layers against the float model. Ctrl-C saves.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="With --qat: optimizer steps.")] = None,
) -> None:
    """Calibrate a checkpoint to int8, once for every target. A killed run goes on after the last finished component.

    Example: `f2i quantize nano --recipe w8a8 --calib photos --out nano-int8`
    """
    from f2i_quantize.ptq.quantize_job import QuantizeOptions, measure_sensitivity, quantize_checkpoint
    from f2i_quantize.ptq.recipe import load_recipe, with_options

    from f2i.report.sensitivity_charts import write_svg

    chosen = with_options(load_recipe(recipe), target_psnr=target_psnr, rounding=rounding, qat=qat, qat_steps=steps, tiles=tiles or None)
    if (sensitivity is None) == (out_dir is None):
        raise UsageError("give either --out FOLDER, to quantize, or --sensitivity FILE.json, to measure only")
    with Steps(err) as progress:
        if sensitivity:
            record = measure_sensitivity(QuantizeOptions(checkpoint, chosen, sensitivity, calib, tile), progress.count)
            write_json(sensitivity, record)
            write_svg(sensitivity.with_suffix(".svg"), record)
        elif out_dir:
            record = quantize_checkpoint(QuantizeOptions(checkpoint, chosen, out_dir, calib, tile), progress.count)
    for line in quantization_lines(record):
        out.print(line, soft_wrap=True, markup=False, highlight=False)
    out.print(f"{out_dir or sensitivity}", soft_wrap=True)


@app.command()
def export(
    checkpoint: Annotated[
        str, typer.Argument(help="Checkpoint folder (Diffusers format), or a model's name: nano, tiny, mobile, paper.", show_default=False)
    ],
    out_dir: Annotated[Path, typer.Option("--out", help="The bundle to write.", show_default=False)],
    target: Targets = "coreml,executorch,tflite,onnx",
    precision: Precisions = "fp16",
    tile: Annotated[int, typer.Option(help="Side of the input tile in pixels; 0 takes the checkpoint's own.")] = 0,
    overlap: Annotated[
        str | None, typer.Option(help="Pixels that tiles share, or auto; default: a sixteenth of the tile, an eighth for w8a8.")
    ] = None,
    delegate: Annotated[str, typer.Option(help="ExecuTorch's delegate: xnnpack, coreml or vulkan.")] = "xnnpack",
    keep_fp32: Annotated[str | None, typer.Option("--keep-fp32", help="Core ML fp16: COMPONENT:OP,… to keep in fp32, or auto.")] = None,
    chunk: Annotated[int | None, typer.Option(min=0, metavar="MB", help="Core ML: cut packages larger than this in two.")] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Child processes at a time; 0: one per core, as memory allows.")] = 0,
) -> None:
    """Lower a checkpoint to every target: one bundle, complete or absent. A killed export goes on where it stopped.

    Example: `f2i export nano --target executorch,coreml --precision fp16 --out bundle`
    """
    from f2i_export.write_bundle import ExportOptions, export_bundle
    from f2i_runtime.tiling.tile_plan import parse_overlap

    options: tuple[tuple[str, str], ...] = (("delegate", delegate),) if delegate != "xnnpack" else ()
    options += (("keep_fp32", keep_fp32),) if keep_fp32 is not None else ()
    options += (("chunk", str(chunk)),) if chunk is not None else ()
    with Steps(err) as steps:
        request = ExportOptions(
            checkpoint, out_dir, tuple(_split(target)), tuple(_split(precision)), tile, parse_overlap(overlap), jobs, options
        )
        bundle = export_bundle(request, steps.event)
    out.print(artifact_table(bundle))


@app.command()
def inspect(bundle: BundleArgument, as_json: JsonFlag = False) -> None:
    """Per artifact: size, ops, delegated share, partitions, and every op left outside a delegate or the Neural Engine with the reason.

    Example: `f2i inspect bundle --json`
    """
    from f2i_runtime.bundle.store import open_bundle

    from f2i.neural_engine import ane_lines

    opened = open_bundle(bundle)
    if as_json:
        _print_json(inspect_json(opened))
        return
    out.print(artifact_table(opened))
    for a in opened.manifest.artifacts:
        for fallback in a.delegation.fallbacks:
            out.print(f"{a.target}/{a.precision} {a.component}: {fallback.op}: {fallback.reason}")
    for line in ane_lines(opened):
        out.print(line, soft_wrap=True, markup=False)


@app.command()
def verify(bundle: BundleArgument) -> None:
    """Check a bundle's manifest and the hash of every file. Needs no engine and no network.

    Example: `f2i verify bundle`
    """
    from f2i_runtime.bundle.store import open_bundle
    from f2i_runtime.bundle.store import verify as verify_bundle

    opened = open_bundle(bundle)
    total = verify_bundle(opened)
    out.print(f"{bundle}: {len(opened.manifest.files())} files, {total / 1e6:.1f} MB, all as the manifest says")


@app.command()
def run(
    bundle: BundleArgument,
    photos: Annotated[list[str], typer.Argument(help="Photos, folders of photos, URLs, or .txt lists of them.", show_default=False)],
    out_path: Annotated[Path, typer.Option("--out", help="A file for one photo, a folder for several.", show_default=False)],
    target: Annotated[str | None, typer.Option(help="coreml, executorch, tflite, onnx, or torch for the reference.")] = None,
    precision: Annotated[str | None, typer.Option(help="fp32 or fp16.")] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of JPEG, WebP and AVIF.")] = 95,
    bit_depth: Annotated[int | None, typer.Option(help="8 or 16; default: the photo's own.")] = None,
    overlap: Annotated[str | None, typer.Option(help="Pixels that tiles share, or auto: measured; default: the bundle's.")] = None,
    color_fix: Annotated[str | None, typer.Option(help="none, or adain: the photo's own colours; default: the bundle's.")] = None,
    output_format: Annotated[str | None, typer.Option("--format", help="Of several photos: jpg, png, …; default: each one's own.")] = None,
    threads: Threads = 0,
    ray: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Spread photos over a Ray cluster; `local` starts one here.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="With --ray: engines at a time; 0: as many as cores allow.")] = 0,
) -> None:
    """Upscale photos ×2, tile by tile. Of several photos, those that are done already are not done again.

    Example: `f2i run bundle photo.jpg --out photo_x2.jpg --target tflite`
    """
    from f2i_runtime.bundle.manifest import parse_color_fix
    from f2i_runtime.bundle.store import open_bundle
    from f2i_runtime.pipeline import REFERENCE, PhotoOptions, choose_variant
    from f2i_runtime.tiling.tile_plan import parse_overlap

    from f2i.commands.upscale_photos import AlbumOptions, upscale_all

    opened = open_bundle(bundle)
    variant = REFERENCE if target == "torch" else choose_variant(opened, target, precision)
    given = PhotoOptions(quality, bit_depth, parse_overlap(overlap), parse_color_fix(color_fix))
    upscale_all(opened, photos, out_path, AlbumOptions(variant, given, threads, output_format, ray, workers), out, err)


def _split(value: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in value.split(",") if part.strip()))


def _print_json(data: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(data, indent=1, allow_nan=False) + "\n")


app.add_typer(commands)


def main() -> NoReturn:
    """Entry point: every error on purpose is one line on stderr and its exit code."""
    try:
        if app(standalone_mode=False) == INTERRUPTED:  # Typer makes of Ctrl-C the code that a shell gives it, and returns it
            raise KeyboardInterrupt
    except F2IError as e:
        err.print(f"f2i: {e}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(e.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        err.print("f2i: interrupted; what was finished is kept, run the same command again to go on", style="bold red")
        sys.exit(INTERRUPTED)
    except Exception as e:
        if type(e).__module__.split(".")[0] in {"click", "typer"} and hasattr(e, "format_message"):
            err.print(f"f2i: {e.format_message()} (see: f2i --help)", style="bold red", markup=False, soft_wrap=True)
            sys.exit(2)
        raise
    sys.exit(0)


if __name__ == "__main__":
    main()
