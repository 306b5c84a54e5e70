"""``f2i quantize``: calibrate a checkpoint to int8, or measure what each layer costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from f2i_runtime.errors import UsageError
from f2i_runtime.files import write_json

from f2i.progress import Steps
from f2i.tables import quantization_lines
from f2i.terminal import CheckpointArgument, Images, TileSize, err, out


def quantize(
    checkpoint: CheckpointArgument,
    out_dir: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The quantized checkpoint to write.")] = None,
    recipe: Annotated[str, typer.Option(help="w8a8, w8a8-mixed, w8a16, w8, p8, p6, p4, or a TOML file.")] = "w8a8",
    images: Images = None,
    tile_size: TileSize = 0,
    num_tiles: Annotated[int, typer.Option(min=0, help="The number of calibration tiles. 0 takes the number that the recipe names.")] = 0,
    sensitivity: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Only measure what each layer costs: write this JSON file and a picture (.svg).")
    ] = None,
    target_psnr: Annotated[
        float | None, typer.Option(metavar="DB", help="w8a8-mixed: the PSNR that a tile's output must reach. Default: the recipe's.")
    ] = None,
    rounding: Annotated[str | None, typer.Option(help="How weights are rounded: nearest or gptq. Default: the recipe's.")] = None,
    qat: Annotated[bool, typer.Option("--qat", help="Fine-tune the quantized layers against the float model. Ctrl-C saves.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="With --qat: the number of optimizer steps.")] = None,
) -> None:
    """Calibrate a checkpoint to int8, once for all targets. A run that was killed goes on after the last finished component.

    Example: `f2i quantize nano --recipe w8a8 --images photos --out nano-int8`
    """
    from f2i_quantize.ptq.quantize_job import QuantizeOptions, measure_sensitivity, quantize_checkpoint
    from f2i_quantize.ptq.recipe import load_recipe, with_options

    from f2i.report.sensitivity_charts import write_svg

    chosen = with_options(
        load_recipe(recipe), target_psnr=target_psnr, rounding=rounding, qat=qat, qat_steps=steps, tiles=num_tiles or None
    )
    record: dict[str, Any] = {}
    if (sensitivity is None) == (out_dir is None):
        raise UsageError("give either --out FOLDER, to quantize, or --sensitivity FILE.json, to measure only")
    with Steps(err) as progress:
        if sensitivity:
            record = measure_sensitivity(QuantizeOptions(checkpoint, chosen, sensitivity, images, tile_size), progress.count)
            write_json(sensitivity, record)
            write_svg(sensitivity.with_suffix(".svg"), record)
        elif out_dir:
            record = quantize_checkpoint(QuantizeOptions(checkpoint, chosen, out_dir, images, tile_size), progress.count)
    for line in quantization_lines(record):
        out.print(line, highlight=False)
    out.print(f"{out_dir or sensitivity}")
