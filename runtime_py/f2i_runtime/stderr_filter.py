"""Keeps the log lines that engines and converters write in C++ away from the terminal."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO

ENGINE_LOG = re.compile(rb"INFO: |\[\w+\.cpp:\d+\] ")
"""How log lines of LiteRT and ExecuTorch begin that only say that they work."""


@contextlib.contextmanager
def redirect_output(file: IO[bytes], places: Sequence[int] = (1, 2)) -> Iterator[None]:
    """Sends what the process writes to the file descriptors ``places`` (1 is stdout, 2 is stderr) to ``file`` while the context lasts, C++ included."""
    _flush()
    kept = [os.dup(place) for place in places]
    for place in places:
        os.dup2(file.fileno(), place)
    try:
        yield
    finally:
        _flush()
        for place, copy in zip(places, kept, strict=True):
            os.dup2(copy, place)
            os.close(copy)


@contextlib.contextmanager
def drop_engine_logs() -> Iterator[None]:
    """Drops such lines when ``$TF_CPP_MIN_LOG_LEVEL`` asks for none, which neither engine obeys. The other lines arrive at the end, and all lines
    after an error.
    """
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "0") == "0" or sys.stderr is None:
        yield
        return
    with tempfile.TemporaryFile() as heard:
        failed = True
        try:
            with redirect_output(heard, (2,)):
                yield
            failed = False
        finally:
            heard.seek(0)
            os.write(2, b"".join(line for line in heard if failed or not ENGINE_LOG.match(line)))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
