"""The folder that a training run keeps beside its output, ``OUT.run``: what may lie in it, and what is taken out of it for a new run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from f2i_runtime.files import FolderKind, check_replaceable, remove_folder

from f2i_quantize.models.checkpoint_files import CHECKPOINT_FOLDER

OPTIONS, DATA, LOG, CURVES, STATE, BEST, ENCODER = "options.json", "data.json", "log.jsonl", "tensorboard", "state", "best", "encoder"
_STATE_FILES = ("state.json", "state.safetensors")


def _run_files(folder: Path) -> Sequence[str] | None:
    if not ((folder / OPTIONS).is_file() or (folder / ENCODER / _STATE_FILES[0]).is_file()):
        return None
    states = [f"{name}/{file}" for name in (STATE, ENCODER) for file in _STATE_FILES]
    best = [f"{BEST}/{pattern}" for pattern in CHECKPOINT_FOLDER.files(folder / BEST) or ()]
    return [OPTIONS, DATA, LOG, f"{CURVES}/*tfevents*", *states, *best, ".f2i-*"]


STATE_FOLDER = FolderKind("the state of a training run", lambda folder: _STATE_FILES if (folder / _STATE_FILES[0]).is_file() else None)
"""What a run needs to go on."""
RUN_FOLDER = FolderKind("the folder of a training run", _run_files)
"""All that a run keeps."""
_CURVES_FOLDER = FolderKind("the curves of a training run", lambda _: ("*tfevents*",))


def run_folder(out: Path) -> Path:
    """Returns where the run that writes the checkpoint ``out`` keeps its files."""
    return out.with_name(out.name + ".run")


def has_state(folder: Path) -> bool:
    """Returns whether a run's folder holds what it needs to go on."""
    return STATE_FOLDER.files(folder / STATE) is not None


def check_run_folder(folder: Path) -> None:
    """Raises UsageError when the folder holds anything but a run's own files."""
    check_replaceable(folder, RUN_FOLDER)


def start_anew(folder: Path) -> None:
    """Removes what an earlier run left in its folder. Raises UsageError when it holds anything else."""
    check_run_folder(folder)
    for name, kind in ((STATE, STATE_FOLDER), (BEST, CHECKPOINT_FOLDER), (CURVES, _CURVES_FOLDER)):
        remove_folder(folder / name, kind)
    (folder / LOG).unlink(missing_ok=True)
