"""The child process of ExecuTorch's simulator: ``python -m f2i_runtime.hexagon.run_delegated REQUEST.json``.

It speaks as :mod:`f2i_runtime.hexagon.simulator_worker` does, and runs a ``.pte`` with ExecuTorch's own runtime and its Qualcomm backend, whose libraries the
loader finds only where the environment names them when a process starts: so it starts itself again with that environment.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from f2i_runtime.child_process import die_with_parent, python_child
from f2i_runtime.hexagon.qnn_libraries import library_path, link_libraries
from f2i_runtime.hexagon.qnn_provider import find_wheel

AGAIN = "again"


def open_method(model: str) -> Any:
    """Returns the program's one method, and what must live as long as it."""
    import torch
    from executorch.runtime import Runtime, Verification

    from f2i_runtime.hexagon.device_relay import DeviceRelay

    runtime = Runtime.get()
    # The table of functions is replaced after the runtime's library was loaded: before it the process crashes.
    relay = DeviceRelay(find_wheel().backend)
    program = runtime.load_program(Path(model), verification=Verification.InternalConsistency)
    method = program.load_method(min(program.method_names))

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        tensors = [torch.from_numpy(np.ascontiguousarray(value)) for value in inputs.values()]
        return np.asarray(method.execute(tensors)[0].numpy().copy())

    return run, (relay, program)


def start_again(request: str) -> None:
    """Replaces this process by one whose loader finds Qualcomm's libraries; returns never."""
    wheel = find_wheel()
    folder = Path(request).parent / "sdk"
    environment = {**os.environ, "LD_LIBRARY_PATH": library_path(wheel, link_libraries(wheel, folder))}
    os.execve(sys.executable, [*python_child("f2i_runtime.hexagon.run_delegated"), request, AGAIN], environment)


def main(arguments: list[str]) -> int:
    """Opens the artifact and answers until its input ends. Inputs are in calling order in their file. What the libraries print goes to standard error."""
    if arguments[1:] != [AGAIN]:
        start_again(arguments[0])
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        run, _kept = open_method(json.loads(Path(arguments[0]).read_text())["model"])
    except Exception as e:  # the runtime raises RuntimeError and OSError alike, the loader ImportError
        traceback.print_exc()
        print(json.dumps({"error": f"{type(e).__name__}: {e}"}), file=answers, flush=True)
        return 0
    print(json.dumps({}), file=answers, flush=True)
    for line in sys.stdin:
        path = Path(line.rstrip("\n"))
        try:
            with np.load(path) as held:
                output = run({name: held[name] for name in held.files})
            np.save(path.with_suffix(".npy"), output)
            print(json.dumps({}), file=answers, flush=True)
        except Exception as e:
            traceback.print_exc()
            print(json.dumps({"error": f"{type(e).__name__}: {e}"}), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
