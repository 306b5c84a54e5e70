"""The child process of LiteRT's GPU delegate: ``python -m f2i_runtime.gpu.gpu_worker REQUEST.json``.

It compiles a file for the GPU alone, and then answers one tile at a time. It is a process of its own because a driver can crash or hang, and because drivers are
found by environment variables that are read when a process starts.

``is_fully_accelerated`` says True even with hundreds of operations on the CPU, so the CPU is never offered: what the delegate refuses fails to compile.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from f2i_runtime.tile_answers import Run, answer_tiles

KEY_OF_INPUT = "args_{}"
"""How litert-torch names a component's inputs, in calling order."""
BUSY, PATIENCE = "Failed to lock", 8
"""What LiteRT says when a GPU has not finished in its time (a software driver translates all shaders of a graph in its first run), and the most runs."""


class GpuModel:
    """A file that is compiled for the GPU, with its buffers."""

    def __init__(self, path: str, inputs: Mapping[str, list[int]], half: bool) -> None:
        from ai_edge_litert.compiled_model import CompiledModel, GpuOptions, HardwareAccelerator, Options

        options = Options(hardware_accelerators=HardwareAccelerator.GPU, gpu_options=GpuOptions(enforce_f32=not half))
        self.model: Any = CompiledModel.from_file(path, options=options)
        ((self.signature, tensors),) = self.model.get_signature_list().items()
        shapes = self.model.get_input_tensor_details(self.signature)
        self.inputs: dict[str, Any] = {}
        self.keys = {name: KEY_OF_INPUT.format(k) for k, name in enumerate(inputs)}
        for name, key in self.keys.items():
            if key not in shapes or list(shapes[key]["shape"]) != inputs[name]:
                found = {k: list(v["shape"]) for k, v in shapes.items()}
                raise ValueError(f"input {name} is not {key} of shape {inputs[name]}: the file has {found}")
            self.inputs[key] = self.model.create_input_buffer_by_name(self.signature, key)
        (self.output,) = tensors["outputs"]
        self.shape = [int(n) for n in self.model.get_output_tensor_details(self.signature)[self.output]["shape"]]
        self.outputs = {self.output: self.model.create_output_buffer_by_name(self.signature, self.output)}

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Returns the output, float32, for float32 inputs by name."""
        for name, key in self.keys.items():
            self.inputs[key].write(np.ascontiguousarray(inputs[name], dtype=np.float32))
        for patience in reversed(range(PATIENCE)):
            self.model.run_by_name(self.signature, self.inputs, self.outputs)
            try:
                return np.array(self.outputs[self.output].read(int(np.prod(self.shape)), np.float32)).reshape(self.shape)
            except RuntimeError as e:
                if BUSY not in str(e) or not patience:
                    raise
                sys.stderr.write("the GPU was not done in LiteRT's own time; running again\n")
                # The buffer stays locked for good.
                self.outputs = {self.output: self.model.create_output_buffer_by_name(self.signature, self.output)}
        raise ValueError("no run was allowed")


def open_model(request: dict[str, Any]) -> Run:
    """Compiles the file of a request and returns what runs it."""
    return GpuModel(request["model"], request["inputs"], request["half"]).run


if __name__ == "__main__":
    sys.exit(answer_tiles(sys.argv[1], open_model))
