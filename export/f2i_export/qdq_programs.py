"""The QDQ programs of one precision, and the golden cases that a component is captured and checked on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from f2i_quantize.models import checkpoint
from f2i_quantize.models.whole_model import ComponentGraph, build_components
from f2i_quantize.ptq.quantized import qdq_graph, read
from f2i_quantize.rewrites.capture import capture
from f2i_quantize.rewrites.passes import rewritten
from numpy.typing import NDArray

from f2i_export.jobs import RESULT, Job, weights_source
from f2i_export.stages import Stages


def capture_simulated(job: Job, out: Path, stages: Stages, reference: Path) -> dict[str, object]:
    """Write the QDQ program of every component, folded, from which ``f2i validate`` knows what rounding alone costs."""
    stages.begin("load")
    graph = build_components(checkpoint.load(weights_source(job, reference)), job.tile)
    quantized = read(job.checkpoint, job.precision, verified=job.quantization)
    for name, component in graph.components.items():
        stages.begin(f"capture {name}")
        inputs, _ = golden_cases(graph, name, reference)[0]
        example = [torch.from_numpy(inputs[i]) for i in component.inputs]
        module = rewritten(component.module, split_skips=quantized.recipe.split_skips)
        program = capture(qdq_graph(module, example, name, quantized, fold=True), example)
        torch.export.save(program, out / f"{name}.pt2")
    return {}


def golden_cases(graph: ComponentGraph, component: str, reference: Path) -> list[tuple[dict[str, NDArray[Any]], NDArray[Any]]]:
    """Inputs of a component's first call and its reference output, of every golden case in the folder of a reference job."""
    call = next(c for c in graph.calls if c.component == component)
    constants = {name: np.load(reference / "constants" / f"{name}.npy") for name in graph.constants}
    cases = []
    for case in json.loads((reference / RESULT).read_text())["cases"]:
        folder = reference / "golden" / case["name"]
        tensors = constants | {name: np.load(folder / f"{name}.npy") for name in case["tensors"]}
        cases.append(({i: tensors[call.arguments[i]] for i in graph.components[component].inputs}, tensors[call.result]))
    return cases
