"""What ``f2i run`` does with its photos: skip those that are finished, upscale the others here or on a cluster, and print a line for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from f2i_runtime.album.album_plan import AlbumPlan, plan_album
from f2i_runtime.album.upscale_album import FolderJob, missing, run_folder
from f2i_runtime.bundle.store import Bundle
from f2i_runtime.errors import UsageError
from f2i_runtime.files import make_folder
from f2i_runtime.photo.photo_listing import LIST_SUFFIX
from f2i_runtime.photo.writer import WRITABLE
from f2i_runtime.pipeline import PhotoOptions, measured_overlap, open_pipeline, upscale_photo
from f2i_runtime.targets import Variant
from rich.console import Console

from f2i.progress import Steps


@dataclass(frozen=True)
class AlbumOptions:
    """How photos are upscaled. ``threads`` the engine's threads (0: its default), ``ray`` a cluster's address.

    ``format`` is the format of every output when there are several photos; None keeps each photo's own.
    """

    variant: Variant
    photo: PhotoOptions
    threads: int = 0
    format: str | None = None
    ray: str | None = None
    workers: int = 0


def with_overlap(bundle: Bundle, options: AlbumOptions, err: Console) -> PhotoOptions:
    """Returns the photo options. Where the overlap is ``auto``, it is measured once for all photos, and printed."""
    if options.photo.overlap != "auto":
        return options.photo
    with open_pipeline(bundle, options.variant, threads=options.threads) as pipeline:
        record = measured_overlap(pipeline)
    felt = f"a tile's edge is felt for {record.receptive_field} px"
    err.print(f"overlap {record.overlap} px: {felt}; where tiles meet, the error is {record.seam_ratio:.2f} x that elsewhere", style="dim")
    return replace(options.photo, overlap=record.overlap)


def upscale_all(bundle: Bundle, photos: Sequence[str], out_path: Path, options: AlbumOptions, out: Console, err: Console) -> None:
    """Upscales one photo to a file, or photos, folders, lists and URLs to a folder. Raises UsageError; where some photos could not be done, at the
    end.
    """
    photo = with_overlap(bundle, options, err)
    single = len(photos) == 1 and Path(photos[0]).is_file() and not photos[0].lower().endswith(LIST_SUFFIX)
    if single and not out_path.is_dir() and not options.ray:
        if options.format:
            raise UsageError(f"--format {options.format} is for photos that go to a folder; for one photo, the suffix of --out decides")
        with open_pipeline(bundle, options.variant, threads=options.threads) as pipeline, Steps(err) as steps:
            notes = upscale_photo(pipeline, Path(photos[0]), out_path, photo, steps.counter(Path(photos[0]).name))
        for note in notes:
            err.print(f"{photos[0]}: {note}", style="yellow")
        out.print(f"{out_path} ({pipeline.engine}, {options.variant.precision})")
        return
    suffix = None if options.format is None else f".{options.format.lower().removeprefix('.')}"
    if suffix is not None and suffix not in WRITABLE:
        raise UsageError(f"--format {options.format}: cannot be written; expected one of {', '.join(s[1:] for s in WRITABLE)}")
    plan = plan_album(photos, out_path, suffix)
    if out_path.suffix and not out_path.is_dir():
        raise UsageError(f"{out_path}: {len(plan.sources)} photos need a folder, got what looks like a file; use --out FOLDER")
    make_folder(out_path)
    job = FolderJob(bundle.root.absolute(), out_path.absolute(), options.variant, photo, options.threads)
    upscale_album(job, plan, options.ray, options.workers, out, err)


def upscale_album(job: FolderJob, plan: AlbumPlan, ray: str | None, workers: int, out: Console, err: Console) -> None:
    """Upscales the photos of ``plan`` that are not finished. ``ray`` is a cluster's address. Raises UsageError at the end when photos could not be done."""
    todo = missing(job, plan.sources)
    for note in plan.notes:
        err.print(note, style="yellow")
    for entry, reason in plan.failed:
        err.print(f"{entry}: {reason}", style="red")
    if len(todo) < len(plan.sources):
        err.print(f"{len(plan.sources) - len(todo)} of {len(plan.sources)} photos are done already", style="dim")
    failed, wanted = len(plan.failed), len(todo) + len(plan.failed)
    with Steps(err) as steps:
        if ray and todo:
            from f2i_runtime.album.album_on_ray import run_on_ray

            results = run_on_ray(job, todo, ray, workers)
        else:
            results = run_folder(job, todo, steps.count)
        for number, done in enumerate(results, 1):
            for note in done.notes:
                err.print(f"{done.source.location}: {note}", style="yellow")
            if done.error:
                failed += 1
                err.print(f"{done.source.location}: {done.error}", style="red")
            else:
                out.print(f"{job.out / done.source.output} ({number} of {len(todo)}, {done.seconds:.1f} s)")
    if failed:
        raise UsageError(f"{failed} of {wanted} photos could not be done; the others are in {job.out}")
