"""A folder of photos on a Ray cluster: every actor holds one engine, results come as they are done.

The output folder and the photos must be at the same paths on every node (a network file system), or the photos be URLs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from f2i_runtime.album.album_plan import Source
from f2i_runtime.album.upscale_album import Done, FolderJob, upscale_source
from f2i_runtime.bundle.store import open_bundle
from f2i_runtime.pipeline import open_pipeline
from f2i_runtime.ray_cluster import ray_cluster


class PhotoActor:
    """One engine in one worker process, kept for all photos that come to it."""

    def __init__(self, job: FolderJob) -> None:
        self.job = job
        self.pipeline = open_pipeline(open_bundle(job.bundle), job.variant, threads=job.threads)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row with ``location`` and ``output`` → the same with ``seconds``, ``notes`` and ``error``."""
        done = upscale_source(self.job, self.pipeline, Source(str(row["location"]), str(row["output"])))
        return {**row, "seconds": done.seconds, "notes": "\n".join(done.notes), "error": done.error or ""}


def run_on_ray(job: FolderJob, sources: Sequence[Source], address: str, workers: int) -> Iterator[Done]:
    """Upscale photos on ``workers`` actors (0: one per free core, or per ``job.threads`` cores) of the cluster at ``address``.

    An actor that dies is started again and its photo done again; outputs are complete or absent whatever dies.
    Raises MissingPackageError without Ray, ToolchainError when the cluster gives up.
    """
    job.out.mkdir(parents=True, exist_ok=True)
    with ray_cluster(address, command="f2i run", target=job.variant.target) as ray:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        cores = max(1, job.threads)
        count = workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // cores)
        rows = ray.data.from_items([{"location": s.location, "output": s.output} for s in sources], override_num_blocks=len(sources))
        done = rows.map(
            PhotoActor,
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(size=min(count, len(sources)), max_tasks_in_flight_per_actor=2),
            num_cpus=cores,
            max_restarts=-1,
            max_task_retries=-1,
        )
        for row in done.iter_rows():
            notes = tuple(filter(None, row["notes"].split("\n")))
            yield Done(Source(row["location"], row["output"]), row["seconds"], notes, row["error"] or None)
