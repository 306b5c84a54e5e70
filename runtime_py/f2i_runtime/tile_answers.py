"""What a child process of :class:`f2i_runtime.tile_child.TileChild` does: it opens an artifact, and answers one tile after another."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from f2i_runtime.child_process import die_with_parent

Run = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""Inputs by name, in calling order → the output."""


def answer_tiles(request: str, open_artifact: Callable[[dict[str, Any]], Run]) -> int:
    """Opens the artifact of a request file and answers until standard input ends. Returns the process's exit code.

    Each line names an ``.npz`` with the inputs by name; the output is written beside it as ``.npy``. An answer is a line of JSON, with ``error`` where something
    went wrong. What the libraries print goes to standard error.
    """
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        run = open_artifact(json.loads(Path(request).read_text()))
    except Exception as e:  # engines raise their own classes, RuntimeError and OSError alike, and the loader ImportError
        _say_error(e, answers)
        return 0
    print(json.dumps({}), file=answers, flush=True)
    for line in sys.stdin:
        path = Path(line.rstrip("\n"))
        try:
            with np.load(path) as held:
                output = run({name: held[name] for name in held.files})
            np.save(path.with_suffix(".npy"), np.asarray(output))
            print(json.dumps({}), file=answers, flush=True)
        except Exception as e:  # as above
            _say_error(e, answers)
    return 0


def _say_error(error: Exception, answers: IO[str]) -> None:
    traceback.print_exception(error)
    print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers, flush=True)
