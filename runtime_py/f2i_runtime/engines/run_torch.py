"""The full-precision reference: ``torch.export`` programs run by torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # registers the ops of QDQ programs

from f2i_runtime.engines.quantized_layers import QuantizedLayer
from f2i_runtime.errors import ToolchainError
from f2i_runtime.targets import CPU


class TorchSession:
    """A ``.pt2`` program on the CPU: full precision, or QDQ."""

    def __init__(self, path: Path, component: str, inputs: Mapping[str, tuple[int, ...]], threads: int) -> None:
        self.component, self.names = component, list(inputs)
        self.engine = f"torch {torch.__version__} (eager, full precision)"
        self.threads = threads
        try:
            self.module = torch.export.load(path).module()
        except (RuntimeError, ValueError, OSError, KeyError, AttributeError) as e:
            raise ToolchainError(component=component, target="torch", stage="load", reason=f"{path}: {e}") from e

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """Runs the component on inputs by name and returns the output, float32."""
        if self.threads:
            torch.set_num_threads(self.threads)
        with torch.no_grad():
            return self.module(*(torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self.names)).numpy()

    def close(self) -> None:
        """Releases the program."""
        del self.module


def open_session(
    path: Path, *, component: str, inputs: Mapping[str, tuple[int, ...]], accelerator: str = CPU, threads: int = 0
) -> TorchSession:
    """See :func:`f2i_runtime.engines.session.open_session`."""
    return TorchSession(path, component, inputs, threads)


class _Recorder(torch.fx.Interpreter):
    """Keeps the results of the nodes in ``wanted``."""

    def __init__(self, module: Any, wanted: set[Any]) -> None:
        super().__init__(module)
        self.wanted, self.kept = wanted, dict[Any, torch.Tensor]()

    def run_node(self, n: Any) -> Any:
        result = super().run_node(n)
        if n in self.wanted:
            self.kept[n] = result
        return result


LAYERS: dict[Any, str] = {torch.ops.aten.conv2d.default: "conv2d", torch.ops.aten.linear.default: "linear"}
_Q, _DQ = torch.ops.quantized_decomposed.quantize_per_tensor.default, torch.ops.quantized_decomposed.dequantize_per_tensor.default
_WEIGHTS = torch.ops.quantized_decomposed.dequantize_per_channel.default


def quantized_layers(session: TorchSession, inputs: Mapping[str, np.ndarray]) -> list[QuantizedLayer]:
    """The layers of a QDQ program with int8 weights and activations, with what each, and the ReLU that alone reads it, was given and gave on ``inputs``."""
    found = []
    for node in session.module.graph.nodes:
        if node.target not in LAYERS or node.args[1].target is not _WEIGHTS or node.args[0].target is not _DQ:
            continue
        [rounded] = [user for user in _behind_relu(node).users if user.target is _Q]
        found.append((node, node.args[1].args[0], node.args[0].args[0], rounded))
    recorder = _Recorder(session.module, {n for layer in found for n in layer[1:]})
    with torch.no_grad():
        recorder.run(*(torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in session.names))
    values = {node: tensor.numpy() for node, tensor in recorder.kept.items()}
    names = [_name(node) for node, *_ in found]
    return [
        QuantizedLayer(
            name if names.count(name) == 1 else f"{name} ({node.name})",  # phases of one upsampling share their bias
            LAYERS[node.target],  # type: ignore[arg-type]
            values[weight],
            values[given],
            values[rounded],
            float(rounded.args[1]),
            int(rounded.args[2]),
        )
        for name, (node, weight, given, rounded) in zip(names, found, strict=True)
    ]


def _behind_relu(node: Any) -> Any:
    """Returns the ReLU that alone reads a layer, whose result is then what kernels give for it; else the layer."""
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and readers[0].target is torch.ops.aten.relu.default else node


def _name(node: Any) -> str:
    """Returns the path of the module, which the layer's bias carries; the node's own name where there is no bias."""
    bias = node.args[2] if len(node.args) > 2 else None
    return node.name if bias is None else str(bias.target).removesuffix(".bias")
