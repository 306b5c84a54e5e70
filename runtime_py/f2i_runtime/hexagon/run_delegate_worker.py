"""The child process of ExecuTorch's simulator: ``python -m f2i_runtime.hexagon.run_delegate_worker REQUEST.json``.

It runs a ``.pte`` with ExecuTorch's own runtime and its Qualcomm backend, whose libraries the
loader finds only where the environment names them when a process starts: so it starts itself again with that environment.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from f2i_runtime.child_process import python_child
from f2i_runtime.hexagon.qnn_libraries import library_path, link_libraries
from f2i_runtime.hexagon.qnn_provider import find_wheel
from f2i_runtime.tile_answers import Run, answer_tiles

AGAIN = "again"


def open_method(request: dict[str, Any]) -> Run:
    """Opens the program of a request and returns what runs its one method; inputs are in calling order."""
    import torch
    from executorch.runtime import Runtime, Verification

    from f2i_runtime.hexagon.device_relay import DeviceRelay

    runtime = Runtime.get()
    # The table of functions is replaced after the runtime's library was loaded: before it the process crashes.
    relay = DeviceRelay(find_wheel().backend)
    program = runtime.load_program(Path(request["model"]), verification=Verification.InternalConsistency)
    method = program.load_method(min(program.method_names))

    def run(inputs: Mapping[str, np.ndarray], _kept: object = (relay, program)) -> np.ndarray:
        tensors = [torch.from_numpy(np.ascontiguousarray(value)) for value in inputs.values()]
        return np.asarray(method.execute(tensors)[0].numpy().copy())

    return run


def start_again(request: str) -> None:
    """Replaces this process by one whose loader finds Qualcomm's libraries; returns never."""
    wheel = find_wheel()
    folder = Path(request).parent / "sdk"
    environment = {**os.environ, "LD_LIBRARY_PATH": library_path(wheel, link_libraries(wheel, folder))}
    os.execve(sys.executable, [*python_child("f2i_runtime.hexagon.run_delegate_worker"), request, AGAIN], environment)


def main(arguments: list[str]) -> int:
    """Answers tiles, in a process whose loader finds Qualcomm's libraries."""
    if arguments[1:] != [AGAIN]:
        start_again(arguments[0])
    return answer_tiles(arguments[0], open_method)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
