"""Many photos through one bundle: folders, lists of paths and URLs; what is done is written down as it comes, and a rerun does only what is missing.

OUT/
  <name>_x2.<suffix>      one per photo, under its path below the folder it was found in
  f2i-done.jsonl          one line per finished photo: source, its size and time, output and its size, settings
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from f2i_runtime.bundle.store import MANIFEST, open_bundle
from f2i_runtime.errors import PhotoError, UsageError
from f2i_runtime.files import sha256_file
from f2i_runtime.pipeline import PhotoOptions, Pipeline, open_pipeline, upscale_photo

DONE = "f2i-done.jsonl"
LIST_SUFFIX = ".txt"
PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".avif", ".heic", ".heif"})
MAX_DOWNLOAD_BYTES = 1 << 30


@dataclass(frozen=True)
class Source:
    """One photo to do: a path or a URL, and where its output goes below the output folder."""

    location: str
    output: str

    @property
    def is_url(self) -> bool:
        """Whether the photo must be downloaded first."""
        return self.location.startswith(("http://", "https://"))


@dataclass(frozen=True)
class FolderJob:
    """How photos are upscaled; picklable, so that other processes can be handed it."""

    bundle: Path
    out: Path
    target: str
    precision: str
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


def find_sources(inputs: Sequence[str], suffix: str | None = None) -> list[Source]:
    """Photos of files, folders (searched recursively, in name order), URLs, and ``.txt`` lists with one path or URL per line.

    ``suffix``: of every output, such as ``.png``; None keeps the photo's own, but HEIC, which cannot be written, becomes ``.jpg``.
    Raises UsageError when an input does not exist, holds no photos, or two photos would be written to one output.
    """
    sources: list[Source] = []
    for text in inputs:
        if text.startswith(("http://", "https://")):
            sources.append(Source(text, _output_name(Path(unquote(urlsplit(text).path)).name or "photo.jpg", suffix)))
        elif text.endswith(LIST_SUFFIX) and Path(text).is_file():
            lines = [line.strip() for line in Path(text).read_text(encoding="utf-8").splitlines()]
            listed = [line for line in lines if line and not line.startswith("#")]
            if not listed:
                raise UsageError(f"{text}: the list is empty; expected one path or URL per line")
            sources += find_sources(listed, suffix)
        elif Path(text).is_dir():
            found = sorted(p for p in Path(text).rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES and p.is_file())
            if not found:
                raise UsageError(f"{text}: it holds no photos; expected files ending in {', '.join(sorted(PHOTO_SUFFIXES))}")
            sources += [Source(str(p.absolute()), _output_name(p.relative_to(text).as_posix(), suffix)) for p in found]
        elif Path(text).is_file():
            sources.append(Source(str(Path(text).absolute()), _output_name(Path(text).name, suffix)))
        else:
            raise UsageError(f"{text}: no such photo or folder")
    taken: dict[str, Source] = {}
    for source in sources:
        other = taken.setdefault(source.output, source)
        if other.location != source.location:
            raise UsageError(f"{source.location} and {other.location} would both be written to {source.output}; do them in two runs")
    return list(taken.values())


def missing(job: FolderJob, sources: Iterable[Source]) -> list[Source]:
    """Returns the photos whose output does not exist yet, or was made from another photo or with other settings."""
    records = {entry["output"]: entry for entry in _records(job.out)}
    settings = job.settings()

    def done(source: Source) -> bool:
        entry = records.get(source.output)
        output = job.out / source.output
        if not entry or entry["settings"] != settings or entry["source"] != source.location or not output.is_file():
            return False
        return output.stat().st_size == entry["bytes"] and (source.is_url or entry["stamp"] == _stamp(Path(source.location)))

    return [source for source in sources if not done(source)]


def run_folder(job: FolderJob, sources: Sequence[Source], progress: Callable[[str, int, int], None]) -> Iterator[Done]:
    """Upscale photos one after another in this process. A photo that cannot be done does not stop the others.

    ``progress(what, done, of)`` follows the tiles of the current photo. Raises BundleError or ToolchainError when the engine itself cannot run.
    """
    job.out.mkdir(parents=True, exist_ok=True)
    with open_pipeline(open_bundle(job.bundle), job.target, job.precision, threads=job.threads) as pipeline:
        for source in sources:
            yield upscale_source(job, pipeline, source, functools.partial(progress, source.output))


def upscale_source(job: FolderJob, pipeline: Pipeline, source: Source, progress: Callable[[int, int], None] | None = None) -> Done:
    """One photo, and the line about it in :data:`DONE`. What is wrong with the photo comes back as ``error``."""
    began = time.perf_counter()
    output = job.out / source.output
    try:
        with tempfile.TemporaryDirectory(prefix="f2i-download-") as scratch:
            path = _fetch(source.location, Path(scratch)) if source.is_url else Path(source.location)
            before = _stamp(path)
            output.parent.mkdir(parents=True, exist_ok=True)
            notes = upscale_photo(pipeline, path, output, job.options, progress)
        seconds = time.perf_counter() - began
        _record(job, source, before, seconds)
    except (UsageError, OSError) as e:
        return Done(source, time.perf_counter() - began, error=str(e))
    return Done(source, seconds, tuple(notes))


def _output_name(relative: str, suffix: str | None) -> str:
    path = Path(relative)
    own = ".jpg" if path.suffix.lower() in {".heic", ".heif"} else path.suffix
    return (path.parent / f"{path.stem}_x2{suffix or own}").as_posix()


def _stamp(path: Path) -> list[int]:
    """Returns size and time of change, which tell one version of a file from another without reading it. Zeros when the file does not exist."""
    try:
        status = path.stat()
    except OSError:
        return [0, 0]
    return [status.st_size, status.st_mtime_ns]


def _record(job: FolderJob, source: Source, stamp: list[int], seconds: float) -> None:
    entry = {
        "source": source.location,
        "stamp": stamp,
        "output": source.output,
        "bytes": (job.out / source.output).stat().st_size,
        "settings": job.settings(),
        "seconds": round(seconds, 3),
    }
    # One write to a file opened for appending: lines of several processes do not mix, and a kill leaves at most one cut line.
    handle = os.open(job.out / DONE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(handle, (json.dumps(entry) + "\n").encode())
    finally:
        os.close(handle)


def _records(out: Path) -> Iterator[dict[str, Any]]:
    if not (out / DONE).is_file():
        return
    for line in (out / DONE).read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # cut by a kill: that photo is done again
            continue
        if isinstance(entry, dict) and entry.keys() >= {"source", "stamp", "output", "bytes", "settings"}:
            yield entry


def _fetch(url: str, folder: Path) -> Path:
    """Downloads a photo. Raises PhotoError with the reason."""
    path = folder / (Path(unquote(urlsplit(url).path)).name or "photo.jpg")
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, path.open("wb") as file:
            length = int(answer.headers.get("Content-Length") or 0)
            if length > MAX_DOWNLOAD_BYTES:
                raise PhotoError(f"{url}: {length} bytes, expected at most {MAX_DOWNLOAD_BYTES}")
            shutil.copyfileobj(answer, file)
    except (urllib.error.URLError, TimeoutError, OSError, ValueError) as e:
        raise PhotoError(f"{url}: cannot be downloaded: {e}") from e
    if length and path.stat().st_size != length:
        raise PhotoError(f"{url}: {path.stat().st_size} bytes came, expected {length}; run the same command again")
    return path
