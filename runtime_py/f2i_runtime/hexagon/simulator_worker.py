"""The child process of the simulator: ``python -m f2i_runtime.hexagon.simulator_worker REQUEST.json``.

It opens an artifact for one chip on Qualcomm's x86 simulator of the NPU, and then answers one tile at a time. It is a process of its own because the simulator can
crash, and because its libraries are of another build than those of other engines that hold Qualcomm's.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from f2i_runtime.hexagon.qnn_provider import register_provider
from f2i_runtime.tile_answers import Run, answer_tiles


def open_graph(request: dict[str, Any]) -> Run:
    """Opens the artifact of a request, of which no op may run on the CPU, and returns what runs it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_provider_for_devices(register_provider(request["provider"]), request["options"])
    session = onnxruntime.InferenceSession(request["model"], options)
    names = [i.name for i in session.get_inputs()]

    def run(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.asarray(session.run(None, {name: inputs[name] for name in names})[0])

    return run


if __name__ == "__main__":
    sys.exit(answer_tiles(sys.argv[1], open_graph))
