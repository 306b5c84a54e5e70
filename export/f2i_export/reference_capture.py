"""The reference job: full-precision programs of every component, golden vectors, the dataflow's constants, and its description."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from f2i_quantize.models import checkpoint
from f2i_quantize.models.checkpoint_files import is_preset
from f2i_quantize.models.whole_model import ComponentGraph, F2IModel, build_components
from f2i_quantize.rewrites.capture import capture
from f2i_runtime.photo.samples import cut_tiles, load_rgb, sample_photo
from torch import Tensor

from f2i_export.jobs import DRAWN, Job, weights_source
from f2i_export.stages import Stages

GOLDEN_CASES = (("portrait", "astronaut.png"), ("still_life", "coffee.png"))


def capture_reference(job: Job, out: Path, stages: Stages) -> dict[str, object]:
    """Write everything into ``out`` and return the description of the model, as JSON holds it."""
    stages.begin("load")
    if is_preset(job.checkpoint):
        # Drawn once; every other process maps the file.
        checkpoint.save(checkpoint.load(job.checkpoint), out / DRAWN)
    model = checkpoint.load(weights_source(job, out))
    graph = build_components(model, job.tile)
    stages.begin("golden")
    noise = _noise(model, graph)
    tensors, cases = _golden(graph, job.tile, noise, out)
    _constants(graph, out)
    overlap = None
    if dict(job.options).get("overlap") == "auto":
        stages.begin("overlap")
        overlap = _measure_overlap(model, graph, job.tile, noise)
    _programs(graph, tensors, out, stages)
    return {
        **_describe(graph),
        "cases": cases,
        "config": model.config.model_dump(mode="json"),
        "multiple": model.geometry().tile_multiple(),
        "overlap": overlap,
    }


def _noise(model: F2IModel, graph: ComponentGraph) -> dict[str, Tensor]:
    """The noise that the golden cases start with, where the model wants any."""
    shape = next((c.inputs["latent"] for c in graph.components.values() if "lr_latent" in c.inputs), None)
    if not (model.config.noise and shape):
        return {}
    return {"noise": torch.randn(shape, generator=torch.Generator().manual_seed(0))}


def _golden(graph: ComponentGraph, tile: int, noise: dict[str, Tensor], out: Path) -> tuple[dict[str, Tensor], list[dict[str, object]]]:
    """Write every tensor of a tile of each golden photo. Returns the last case's tensors, and every case's name, photo and tensors' names."""
    tensors: dict[str, Tensor] = {}
    cases: list[dict[str, object]] = []
    for case, photo in GOLDEN_CASES:
        [lr] = cut_tiles(load_rgb(sample_photo(photo)), tile, 1, seed=0)
        tensors = graph.run(torch.from_numpy(lr), noise)
        written: Sequence[str] = [name for name in tensors if name not in graph.constants]
        folder = out / "golden" / case
        folder.mkdir(parents=True)
        for name in written:
            np.save(folder / f"{name}.npy", tensors[name].numpy())
        cases.append({"name": case, "source": photo, "tensors": written})
    return tensors, cases


def _constants(graph: ComponentGraph, out: Path) -> None:
    for name, tensor in graph.constants.items():
        (out / "constants").mkdir(exist_ok=True)
        np.save(out / "constants" / f"{name}.npy", tensor.numpy())


def _measure_overlap(model: F2IModel, graph: ComponentGraph, tile: int, noise: dict[str, Tensor]) -> dict[str, object]:
    """The least overlap that meets the seam gate, as its record in the manifest."""
    from f2i_runtime.bundle.manifest import TileSpec, default_gates
    from f2i_runtime.tiling.overlap import choose_overlap

    spec = TileSpec(size=tile, scale=model.config.scale, overlap=0, multiple=model.geometry().tile_multiple())
    gates = default_gates(model.config.trained)
    return choose_overlap(lambda lr: graph.run(torch.from_numpy(lr), noise)["sr"].numpy(), spec, gates).model_dump()


def _programs(graph: ComponentGraph, tensors: dict[str, Tensor], out: Path, stages: Stages) -> None:
    """Capture each component on what its first call takes."""
    (out / "reference").mkdir()
    for name, component in graph.components.items():
        stages.begin(f"capture {name}")
        call = next(c for c in graph.calls if c.component == name)
        program = capture(component.module, [tensors[call.arguments[i]] for i in component.inputs])
        torch.export.save(program, out / "reference" / f"{name}.pt2")
        del program


def _describe(graph: ComponentGraph) -> dict[str, object]:
    """Components with their shapes, the calls between them, and the names of the constants."""
    return {
        "components": {
            name: {
                "inputs": {k: list(v) for k, v in c.inputs.items()},
                "output": c.output,
                "output_shape": list(c.output_shape),
                "parameters": sum(p.numel() for p in c.module.parameters()),
            }
            for name, c in graph.components.items()
        },
        "calls": [{"component": c.component, "inputs": c.arguments, "result": c.result} for c in graph.calls],
        "constants": list(graph.constants),
    }
