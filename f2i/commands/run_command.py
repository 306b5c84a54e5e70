"""``f2i run``: upscale photos with a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from f2i.terminal import BundleArgument, OneAccelerator, OnePrecision, RayAddress, Threads, err, out


def run(
    bundle: BundleArgument,
    photos: Annotated[list[str], typer.Argument(help="Photos, folders of photos, URLs, or .txt lists of them.", show_default=False)],
    out_path: Annotated[
        Path, typer.Option("--out", metavar="PATH", help="A file for one photo, a folder for several.", show_default=False)
    ],
    target: Annotated[
        str | None, typer.Option(help="A target of the bundle; torch runs the reference. Default: the fastest engine here.")
    ] = None,
    precision: OnePrecision = None,
    accelerator: OneAccelerator = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="The quality of JPEG, WebP and AVIF files.")] = 95,
    bit_depth: Annotated[int | None, typer.Option(help="8 or 16. Default: the bit depth of the photo.")] = None,
    overlap: Annotated[
        str | None,
        typer.Option(metavar="PIXELS", help="Pixels that neighbouring tiles share, or auto to measure it. Default: the bundle's."),
    ] = None,
    color_fix: Annotated[
        str | None, typer.Option(help="none, or adain to restore the colours of the photo. Default: the bundle's.")
    ] = None,
    output_format: Annotated[
        str | None, typer.Option("--format", help="The format of several photos: jpg, png, … Default: the format of each photo.")
    ] = None,
    threads: Threads = 0,
    ray: RayAddress = None,
    workers: Annotated[int, typer.Option(min=0, help="With --ray: engines at a time. 0 takes as many as the cores allow.")] = 0,
) -> None:
    """Upscale photos ×2, tile by tile. With several photos, those that are finished already are not done again.

    Example: `f2i run bundle photo.jpg --out photo_x2.jpg --target tflite`
    """
    from f2i_runtime.bundle.manifest import parse_color_fix
    from f2i_runtime.bundle.store import open_bundle
    from f2i_runtime.pipeline import PhotoOptions, choose_variant, why_chosen
    from f2i_runtime.targets import Selection
    from f2i_runtime.tiling.tile_plan import parse_overlap

    from f2i.commands.upscale_photos import AlbumOptions, upscale_all

    opened = open_bundle(bundle)
    variant = choose_variant(opened, Selection(target, precision, accelerator))
    if target is None:
        err.print(why_chosen(variant), style="dim")
    given = PhotoOptions(quality, bit_depth, parse_overlap(overlap), parse_color_fix(color_fix))
    upscale_all(opened, photos, out_path, AlbumOptions(variant, given, threads, output_format, ray, workers), out, err)
