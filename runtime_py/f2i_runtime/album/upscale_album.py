"""Many photos through one bundle: folders, lists of paths and URLs; what is done is written down as it comes, and a rerun does only what is missing.

OUT/
  <name>_x2.<suffix>      one per photo, under its path below the folder it was found in
  f2i-done.jsonl          what was begun and what is done, see :mod:`f2i_runtime.album.album_records`
"""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from f2i_runtime.album.album_plan import Source
from f2i_runtime.album.album_records import Record, add_record, is_ours, read_records, stamp_of
from f2i_runtime.album.download import fetch
from f2i_runtime.bundle.store import MANIFEST, open_bundle
from f2i_runtime.errors import UsageError
from f2i_runtime.files import sha256_file
from f2i_runtime.pipeline import PhotoOptions, Pipeline, open_pipeline, upscale_photo
from f2i_runtime.targets import Variant


@dataclass(frozen=True)
class FolderJob:
    """How photos are upscaled; picklable, so that other processes can be handed it."""

    bundle: Path
    out: Path
    variant: Variant
    options: PhotoOptions = field(default_factory=PhotoOptions)
    threads: int = 0

    def settings(self) -> str:
        """Returns the hash of everything that decides an output besides the photo."""
        decisive = {k: v for k, v in asdict(self).items() if k not in {"bundle", "out", "threads"}}
        content = json.dumps(decisive, sort_keys=True) + sha256_file(self.bundle / MANIFEST)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Done:
    """How one photo ended. ``error`` is None when its output exists."""

    source: Source
    seconds: float
    notes: tuple[str, ...] = ()
    error: str | None = None


def missing(job: FolderJob, sources: Iterable[Source]) -> list[Source]:
    """Returns those whose output is not there yet, or was made of another photo or with other settings."""
    records = read_records(job.out)
    settings = job.settings()

    def done(source: Source) -> bool:
        record = records.get(source.output)
        if record is None or record.bytes is None or record.settings != settings or record.source != source.location:
            return False
        if not (job.out / source.output).is_file() or not is_ours(job.out, record):
            return False
        return source.is_url or record.stamp == stamp_of(Path(source.location))

    return [source for source in sources if not done(source)]


def run_folder(job: FolderJob, sources: Sequence[Source], progress: Callable[[str, int, int], None]) -> Iterator[Done]:
    """Upscale photos one after another in this process. A photo that cannot be done does not stop the others.

    ``progress(what, done, of)`` follows the tiles of the current photo. Raises BundleError or ToolchainError when the engine itself cannot run.
    """
    job.out.mkdir(parents=True, exist_ok=True)
    with open_pipeline(open_bundle(job.bundle), job.variant, threads=job.threads) as pipeline:
        for source in sources:
            yield upscale_source(job, pipeline, source, functools.partial(progress, source.output))


def upscale_source(job: FolderJob, pipeline: Pipeline, source: Source, progress: Callable[[int, int], None] | None = None) -> Done:
    """Upscale one photo and write down that it was done. Returns how it ended; what is wrong with the photo is in ``error``."""
    began = time.perf_counter()
    output = job.out / source.output
    with tempfile.TemporaryDirectory(prefix="f2i-download-") as scratch:
        record = None
        path = Path(scratch) / "photo" if source.is_url else Path(source.location)
        try:
            if source.is_url:
                fetch(source.location, path)
            record = Record(source.location, stamp_of(path), source.output, None, job.settings())
            output.parent.mkdir(parents=True, exist_ok=True)
            add_record(job.out, record)
            notes = upscale_photo(pipeline, path, output, job.options, progress)
            seconds = time.perf_counter() - began
            add_record(job.out, replace(record, bytes=output.stat().st_size), seconds)
        except (UsageError, OSError) as e:
            if record is not None:  # what is there is what was there before
                add_record(job.out, replace(record, bytes=stamp_of(output)[0], settings=""))
            reason = " ".join(str(e).split()).replace(str(path), source.location)
            return Done(source, time.perf_counter() - began, error=reason.removeprefix(f"{source.location}: "))
    return Done(source, seconds, tuple(notes))
