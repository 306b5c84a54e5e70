"""The log of a training run: JSON lines, and TensorBoard where it is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from f2i_runtime.errors import MissingPackageError


class RunLog:
    """Appends to ``log.jsonl`` in ``folder``. Lines of steps after ``step``, left by a run killed after its last save, are dropped."""

    def __init__(self, folder: Path, step: int, *, tensorboard: bool = False) -> None:
        path = folder / "log.jsonl"
        kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step] if path.exists() else []
        self._file = path.open("w")
        self._file.writelines(line + "\n" for line in kept)
        self._file.flush()
        self._board = _board(folder / "tensorboard", step) if tensorboard else None

    def write(self, entry: Mapping[str, float | int]) -> None:
        """One line; ``entry`` has a ``step``."""
        self._file.write(json.dumps({k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in entry.items()}) + "\n")
        self._file.flush()
        if self._board:
            for name, value in entry.items():
                if name != "step":
                    self._board.add_scalar(name, value, entry["step"])

    def close(self) -> None:
        self._file.close()
        if self._board:
            self._board.close()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as e:
        raise MissingPackageError("tensorboard", "TensorBoard logs", "tensorboard") from e
    return SummaryWriter(str(folder), purge_step=step)
