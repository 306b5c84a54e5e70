"""A float ``.onnx`` graph in integers, as the NPU wants them, on one sample: for estimates, which need the types of a graph and not its quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

from f2i_export.hexagon.to_graphs import input_shape

ACTIVATIONS = {"w8a8": QuantType.QUInt8, "w8a16": QuantType.QUInt16}
"""Precision → the type of what lies between the ops. Weights are int8, one scale for each output channel of a convolution."""
NORMS = ("LayerNormalization", "InstanceNormalization")


class _OneSample(CalibrationDataReader):
    """Gives the one sample, once."""

    def __init__(self, feed: dict[str, Any]) -> None:
        self.left = [feed]

    def get_next(self) -> Any:  # a dict of arrays, None at the end; the base class leaves None out
        return self.left.pop() if self.left else None


def random_feed(graph: onnx.GraphProto) -> dict[str, Any]:
    """One input for a graph: uniform in [0, 1), from a fixed seed."""
    rng = np.random.default_rng(0)
    stored = {initializer.name for initializer in graph.initializer}
    return {i.name: rng.random(input_shape(i)).astype(np.float32) for i in graph.input if i.name not in stored}


def give_norms_their_own(graph: onnx.GraphProto) -> int:
    """Gives each norm scale and bias of its own, where the exporter shares one constant among them; returns how many were copied.

    ONNX Runtime's quantizer copies a shared bias too, but under a name (``val_3`` and ``5``) that another tensor may have.
    """
    stored, seen, copies = {initializer.name: initializer for initializer in graph.initializer}, set(), 0
    for node in graph.node:
        for k, name in enumerate(node.input[1:], 1) if node.op_type in NORMS else ():
            if name not in stored:
                continue
            if name in seen:
                copy = graph.initializer.add()
                copy.CopyFrom(stored[name])
                copy.name = node.input[k] = f"{name}_of_{node.output[0]}_{k}"
                copies += 1
            seen.add(name)
    return copies


def quantize_for_npu(model: Path, path: Path, precision: str, sample: str) -> Path:
    """Write the QDQ graph of a float graph in ``w8a8`` or ``w8a16`` to ``path`` and return it; scales are those of one sample.

    ``sample``: an ``.npz`` with the graph's inputs by name, or empty for random ones. The scale of a norm is uint8, because the NPU refuses it in int8.
    Raises UsageError for inputs without fixed shapes.
    """
    proto = onnx.load(model, load_external_data=False)
    if give_norms_their_own(proto.graph):
        # Weights that lie outside are named relative to the file, so the changed graph goes beside it.
        model = model.with_name(f"{model.stem}-own-norms{model.suffix}")
        onnx.save(proto, model)
    if sample:
        with np.load(sample) as held:
            feed: dict[str, Any] = {name: held[name] for name in held.files}
    else:
        feed = random_feed(proto.graph)
    unsigned = [{"quant_type": QuantType.QUInt8, "symmetric": False}]
    overrides = {node.input[1]: [dict(unsigned[0])] for node in proto.graph.node if node.op_type in NORMS}
    config = get_qnn_qdq_config(
        model,
        _OneSample(feed),
        activation_type=ACTIVATIONS[precision],
        weight_type=QuantType.QInt8,
        per_channel=True,
        init_overrides=overrides or None,
    )
    quantize(model, path, config)
    return path
