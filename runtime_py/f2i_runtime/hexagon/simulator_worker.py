"""The child process of the simulator: ``python -m f2i_runtime.hexagon.simulator_worker REQUEST.json``.

It opens an artifact for one chip on Qualcomm's x86 simulator of the NPU, says ``ready`` on its standard output, and then answers one line at a time: the
path of an ``.npz`` with the inputs by name, for which it writes the output beside it as ``.npy``. It is a process of its own because the simulator can crash,
and because its libraries are of another build than those of other engines that hold Qualcomm's.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from f2i_runtime.child_process import die_with_parent
from f2i_runtime.hexagon.qnn_provider import register_provider


def open_graph(request: dict[str, Any]) -> Any:
    """Returns a session of the artifact. No op may run on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_provider_for_devices(register_provider(request["provider"]), request["options"])
    return onnxruntime.InferenceSession(request["model"], options)


def main(arguments: list[str]) -> int:
    """Opens the artifact and answers until its input ends. What the libraries print goes to standard error."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        session = open_graph(json.loads(Path(arguments[0]).read_text()))
    except Exception as e:  # ONNX Runtime raises its own classes and RuntimeError alike
        traceback.print_exc()
        print(json.dumps({"error": f"{type(e).__name__}: {e}"}), file=answers, flush=True)
        return 0
    shapes = {i.name: list(i.shape) for i in session.get_inputs()}
    print(json.dumps({"inputs": shapes}), file=answers, flush=True)
    for line in sys.stdin:
        path = Path(line.rstrip("\n"))
        try:
            with np.load(path) as held:
                output = session.run(None, {name: held[name] for name in shapes})[0]
            np.save(path.with_suffix(".npy"), np.asarray(output))
            print(json.dumps({}), file=answers, flush=True)
        except Exception as e:  # ONNX Runtime raises its own classes and RuntimeError alike
            traceback.print_exc()
            print(json.dumps({"error": f"{type(e).__name__}: {e}"}), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
