"""What is written down about an album: one line when a photo is begun and one when it is done, in a file beside the outputs.

A line is ``{"source", "stamp", "output", "bytes", "settings", "seconds"}``; ``bytes`` and ``seconds`` are null in the line that is written before the output is.
So every file that an album wrote can be told from one that the user put there, whatever process was killed when.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DONE = "f2i-done.jsonl"
_KEYS = {"source", "stamp", "output", "bytes", "settings"}


@dataclass(frozen=True)
class Record:
    """The last line about one output."""

    source: str
    """Path or URL of the photo."""
    stamp: tuple[int, int]
    """The photo's size in bytes and time of change in ns, see :func:`stamp_of`."""
    output: str
    """Path below the album's folder, with ``/``."""
    bytes: int | None
    """Size of the output; None when it was begun only."""
    settings: str
    """Hash of everything that decides the output besides the photo."""


def stamp_of(path: Path) -> tuple[int, int]:
    """Returns size and time of change, which tell one version of a file from another without reading it; zeros when it is not there."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return 0, 0
    return status.st_size, status.st_mtime_ns


def read_records(out: Path) -> dict[str, Record]:
    """Returns the last record of each output of the folder ``out``, by output, in the order in which they were written."""
    records: dict[str, Record] = {}
    for entry in _lines(out / DONE):
        record = Record(entry["source"], tuple(entry["stamp"]), entry["output"], entry["bytes"], entry["settings"])
        records.pop(record.output, None)
        records[record.output] = record
    return records


def add_record(out: Path, record: Record, seconds: float | None = None) -> None:
    """Append a record. One write to a file opened for appending: lines of several processes do not mix, and a kill leaves at most one cut line."""
    entry = {
        "source": record.source,
        "stamp": list(record.stamp),
        "output": record.output,
        "bytes": record.bytes,
        "settings": record.settings,
        "seconds": None if seconds is None else round(seconds, 3),
    }
    handle = os.open(out / DONE, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
    try:
        # A line that a kill cut short is ended first, or it would take this one with it.
        size = os.lseek(handle, 0, os.SEEK_END)
        cut = size and os.lseek(handle, size - 1, os.SEEK_SET) >= 0 and os.read(handle, 1) != b"\n"
        os.write(handle, (("\n" if cut else "") + json.dumps(entry) + "\n").encode())
    finally:
        os.close(handle)


def is_ours(out: Path, record: Record | None) -> bool:
    """Returns whether the output of ``record`` is as the album left it: a file that somebody else wrote or changed is not."""
    if record is None:
        return False
    return record.bytes is None or stamp_of(out / record.output)[0] == record.bytes


def recorded_outputs(folder: Path) -> Iterator[Path]:
    """Returns the outputs, among what lies in ``folder`` or below, of every album whose folder is ``folder``, one above it or one below it."""
    folder = folder.resolve()
    for album in [folder, *folder.parents]:
        for output in read_records(album):
            yield album / output
    for current, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if DONE in names and Path(current) != folder:
            for output in read_records(Path(current)):
                yield Path(current) / output


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return
    for line in text.split("\n"):
        try:
            entry = json.loads(line)
        except ValueError:  # cut by a kill: that photo is done again
            continue
        if isinstance(entry, dict) and entry.keys() >= _KEYS and isinstance(entry["stamp"], list) and isinstance(entry["output"], str):
            yield entry
