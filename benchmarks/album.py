"""``f2i run`` of several photos: what is missing is done, here or on a cluster, and every photo gets its line."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from benchmarks.progress import Steps
from runtime_py.errors import UsageError
from runtime_py.folder import FolderJob, Source, missing, run_folder


def upscale_album(job: FolderJob, sources: Sequence[Source], ray: str | None, workers: int, out: Console, err: Console) -> None:
    """Do what is missing of ``sources``; ``ray`` is a cluster's address. Raises UsageError at the end when photos could not be done."""
    todo = missing(job, sources)
    if len(todo) < len(sources):
        err.print(f"{len(sources) - len(todo)} of {len(sources)} photos are done already", style="dim")
    failed = 0
    with Steps(err) as steps:
        if ray and todo:
            from runtime_py.ray_folder import run_on_ray

            results = run_on_ray(job, todo, ray, workers)
        else:
            results = run_folder(job, todo, steps.count)
        for number, done in enumerate(results, 1):
            for note in done.notes:
                err.print(f"{done.source.location}: {note}", style="yellow", markup=False)
            if done.error:
                failed += 1
                err.print(f"{done.source.location}: {done.error}", style="red", markup=False, soft_wrap=True)
            else:
                out.print(f"{job.out / done.source.output} ({number} of {len(todo)}, {done.seconds:.1f} s)", soft_wrap=True)
    if failed:
        raise UsageError(f"{failed} of {len(todo)} photos could not be done; the others are in {job.out}")
