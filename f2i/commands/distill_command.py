"""``f2i distill``: train a model on photos, from scratch or from a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from f2i_runtime.errors import UsageError

from f2i.progress import Steps
from f2i.terminal import err, out

if TYPE_CHECKING:
    from f2i_quantize.train.distill_options import DistillOptions
    from f2i_quantize.train.encoder_distill import EncoderOptions


def distill(
    images: Annotated[
        Path, typer.Option("--images", metavar="DIR", help="A folder of training photos, searched recursively.", show_default=False)
    ],
    out_dir: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The checkpoint to write. The run's own files go to DIR.run.", show_default=False)
    ],
    student: Annotated[str, typer.Option(help="A preset (nano, mobile, …), or a checkpoint to go on from.")] = "nano",
    teacher: Annotated[
        str | None, typer.Option(metavar="CHECKPOINT", help="A teacher. Without one, the student learns from the photos alone.")
    ] = None,
    encoder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A DINOv2 folder. Train only the student's feature encoder, to give the tokens of this one."),
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Photos to evaluate on. Default: 8 of the training photos are held out.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="The number of optimizer steps.")] = 20_000,
    batch: Annotated[int, typer.Option(min=1, help="Crops per step and process.")] = 8,
    crop: Annotated[int, typer.Option(min=16, metavar="PIXELS", help="The side of a low-resolution crop.")] = 64,
    lr: Annotated[float, typer.Option(help="The highest learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(min=0, help="The seed of the weights and the crops.")] = 0,
    freeze_norms: Annotated[
        bool,
        typer.Option(
            "--freeze-norms",
            help="Make the student's group norms constants, measured on the photos, and fine-tune it to give what it gave.",
        ),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a run with the same options stopped.")] = False,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Set any other option, for example --set weights.fft=0.02.")
    ] = None,
) -> None:
    """Train a model on photos, from scratch or from a teacher. Ctrl-C saves the run, and --resume goes on with the same losses.

    Example: `f2i distill --images photos --student nano --teacher big --out small`
    """
    from f2i_quantize.train.distill_options import parse_options
    from f2i_quantize.train.encoder_distill import EncoderOptions

    if encoder:
        if teacher or validation or setting or freeze_norms:
            raise UsageError(
                "--encoder trains the feature encoder alone; --teacher, --validation, --freeze-norms and --set are for the whole model: run that next"
            )
        wanted = EncoderOptions(images=images, steps=steps, batch=batch, crop=crop, lr=lr, seed=seed)
        _train_encoder(student, encoder, out_dir, wanted, resume)
        return
    given = {"images": images, "out": out_dir, "student": student, "teacher": teacher, "validation": validation, "steps": steps}
    given |= {"batch": batch, "crop": crop, "lr": lr, "seed": seed, "resume": resume, "freeze_norms": freeze_norms}
    _train(parse_options(given, setting or []))


def _train(options: DistillOptions) -> None:
    from f2i_quantize.train.distill import distill as train

    with Steps(err) as progress:
        result = train(options, progress.training)
    for name, reason in result.skipped:
        err.print(f"{name}: not used: {reason}", style="yellow")
    if result.interrupted:
        raise KeyboardInterrupt
    out.print(
        f"{result.out}: best at step {result.best_step} of {result.steps}, {result.best_psnr_y:.2f} dB PSNR-Y on the validation photos"
    )


def _train_encoder(student: str, encoder: Path, out_dir: Path, wanted: EncoderOptions, resume: bool) -> None:
    from f2i_quantize.train.encoder_distill import distill_encoder_checkpoint

    with Steps(err) as progress:
        count = progress.counter("encoder")
        losses = distill_encoder_checkpoint(
            student, encoder, out_dir, wanted, resume=resume, progress=lambda done, _: count(done, wanted.steps)
        )
    out.print(f"{out_dir}: the token loss was {losses[0]:.4f} at the start and is {losses[-1]:.4f} at the end")
