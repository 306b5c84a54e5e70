"""From a component or any module to the ``.onnx`` graph that the NPU's compiler is given: rewritten with proof, then exported as for ONNX Runtime."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from f2i_quantize.models.whole_model import Component
from f2i_quantize.rewrites.capture import rewrite
from f2i_quantize.rewrites.hexagon_rewrites import HEXAGON
from f2i_runtime.bundle.manifest import RewriteRecord
from torch import Tensor, nn

from f2i_export.lowering import LoweringRequest
from f2i_export.to_onnx import EXTERNAL_ABOVE, OPSET, lower


def write_component(component: Component, example: Sequence[Tensor], path: Path) -> tuple[RewriteRecord, ...]:
    """Write the component's graph for the NPU; ``example``: its inputs on a real tile, which the rewrites are proved on. Returns the rewrites.

    Raises ToolchainError where a rewrite changes the numbers by more than :data:`~f2i_quantize.rewrites.capture.REWRITE_LIMIT`.
    """
    rewritten = rewrite(component.module, HEXAGON, f"{component.name}/hexagon", [example])
    _write(rewritten.module, component.inputs, component.output, example, path)
    return rewritten.records


def write_module(module: nn.Module, inputs: dict[str, tuple[int, ...]], path: Path) -> None:
    """Write any module with one output as it is; its inputs by name and shape. Random inputs are what it is traced with."""
    generator = torch.Generator().manual_seed(0)
    _write(module, inputs, "output", [torch.rand(shape, generator=generator) for shape in inputs.values()], path)


def write_sample(names: Sequence[str], example: Sequence[Tensor], path: Path) -> Path:
    """Write a component's inputs on one tile to an ``.npz``, for scales; returns its path."""
    np.savez(path, **{name: tensor.numpy() for name, tensor in zip(names, example, strict=True)})  # type: ignore[arg-type]
    return path


def _write(module: nn.Module, inputs: dict[str, tuple[int, ...]], output: str, example: Sequence[Tensor], path: Path) -> None:
    """Float32 edges and weights: the compiler makes float16 of them.

    The tracing exporter is used, which takes a second where the one of :mod:`f2i_export.to_onnx` takes twenty; what is shipped is estimated again as it is
    shipped. It cannot write weights of more than 2 GiB.
    """
    if sum(t.numel() * t.element_size() for t in module.state_dict().values()) > EXTERNAL_ABOVE:
        lower(LoweringRequest(path.stem, module, inputs, output, example, "fp32", {}, path, path.parent))
        return
    with warnings.catch_warnings():  # it warns that it is the older one, and of every number that it takes for a constant
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            tuple(example),
            str(path),
            input_names=list(inputs),
            output_names=[output],
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load(path)
    constants_as_weights(model.graph)
    onnx.save(model, path)


def constants_as_weights(graph: onnx.GraphProto) -> None:
    """Makes an initializer of each constant that is an op: a quantizer takes such a constant for an activation."""
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        tensor = graph.initializer.add()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        graph.node.remove(node)
