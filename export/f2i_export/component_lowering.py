"""The lowering jobs: one component becomes one target's file, one precision after another, and is compared with the reference."""

from __future__ import annotations

import gc
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from f2i_quantize.models import checkpoint
from f2i_quantize.models.whole_model import COMPONENT_PARTS, build_components
from f2i_quantize.ptq.quantized import palettes, qdq_graph, read, stored_bytes
from f2i_quantize.rewrites.capture import rewrite, rewrite_for_half
from f2i_quantize.rewrites.graph_survey import spare_idle_shrinking, survey
from f2i_quantize.rewrites.passes import with_split_skips
from f2i_runtime.bundle.manifest import CHUNKS, Delegation
from f2i_runtime.engines import session as engines
from f2i_runtime.errors import F2IError, ToolchainError
from f2i_runtime.memory import trim_heap
from f2i_runtime.metrics.fidelity import ErrorSums
from f2i_runtime.targets import target_of

from f2i_export.jobs import Job, weights_source
from f2i_export.lowering import LoweringRequest, check_size, load_converter
from f2i_export.qdq_programs import golden_cases
from f2i_export.stages import Stages

if TYPE_CHECKING:
    from collections.abc import Callable

    from f2i_quantize.ptq.quantized import PaletteLayer, Quantized
    from f2i_quantize.rewrites.capture import Rewritten
    from f2i_runtime.bundle.graph_record import GraphRecord
    from torch import nn

LARGE = 20_000_000
"""Parameters of a component above which rewrites are proved, and values found, on one tile."""
SIMULATED_TILES = 1
"""Golden tiles on which the artifact of a simulated chip is compared, which takes seconds for each."""
INFINITE = 1e30
"""What stands for an infinite or undefined error, which JSON cannot hold."""


class Lowering:
    """Lowers one component to one target; what its precisions share is made once: weights, golden cases, rewrites and quantizations."""

    def __init__(self, job: Job, reference: Path) -> None:
        graph = build_components(checkpoint.load(weights_source(job, reference), only=COMPONENT_PARTS[job.component]), job.tile)
        self.component = graph.components[job.component]
        self.cases = golden_cases(graph, job.component, reference)
        self.tiles = [[torch.from_numpy(inputs[i]) for i in self.component.inputs] for inputs, _ in self.cases]
        self.rewritten: dict[bool, Rewritten] = {}
        """By whether skip concatenations are split."""
        self.quantizations: dict[str, Quantized] = {}
        """By precision."""
        self.surveys: dict[nn.Module, GraphRecord] = {}
        """By rewritten module, which float and int8 share."""
        self.converter = load_converter(job.target, job.accelerator)
        # One pass of a large decoder takes a minute; its artifact is compared on all tiles in any case.
        large = sum(p.numel() for p in self.component.module.parameters()) > LARGE
        self.proving = self.tiles[:1] if large else self.tiles
        """The golden tiles that rewrites are proved on, and a graph's values are found on."""

    def quantized(self, job: Job) -> Quantized | None:
        """The quantization of the job's precision, read once; None for float."""
        if job.quantization and job.precision not in self.quantizations:
            found = read(job.checkpoint, job.precision, verified=job.quantization)
            self.quantizations[job.precision] = self.converter.fit_quantization(found)
        return self.quantizations.get(job.precision)

    def module(self, job: Job, rewritten: Rewritten) -> tuple[nn.Module, list[PaletteLayer]]:
        """What is lowered: the rewritten module, or its QDQ graph; and the layers that Core ML's converter is to find palettes for."""
        quantized = self.quantized(job)
        if quantized is None:
            return rewritten.module, []
        found = palettes(quantized, job.component)
        if found:
            return rewritten.module, found
        return qdq_graph(rewritten.module, self.tiles[0], job.component, quantized, fold=self.converter.takes_folded_weights), []

    def rewrite(self, job: Job) -> Rewritten:
        """The component's module as the job's target and precision want it."""
        tiles = self.proving
        known = [torch.from_numpy(expected) for _, expected in self.cases][: len(tiles)]
        label = f"{job.component}/{job.target}"
        quantized = self.quantized(job)
        split = quantized is not None and quantized.recipe.split_skips
        if split not in self.rewritten:
            steps = with_split_skips(self.converter.rewrites) if split else self.converter.rewrites
            steps = (*steps, spare_idle_shrinking(tiles))
            self.rewritten[split] = rewrite(self.component.module, steps, label, tiles, known)
        if job.precision == "fp16" or (target_of(job.variant).half_inside and job.precision != "fp32"):
            return rewrite_for_half(self.rewritten[split], self.component.module, self.converter.half_rewrites, label, tiles, known)
        return self.rewritten[split]

    def survey(self, rewritten: Rewritten) -> GraphRecord:
        """What the rewritten module asks of an accelerator."""
        if rewritten.module not in self.surveys:
            self.surveys[rewritten.module] = survey(rewritten.module, self.proving)
        return self.surveys[rewritten.module]

    def parity(self, job: Job, path: Path) -> dict[str, object] | None:
        """The written file's error to the reference on the golden tiles; None where no engine on this machine can run it."""
        if not self.converter.runs_here(dict(job.options), job.accelerator):
            return None
        session = engines.open_session(job.variant, path, component=job.component, inputs=self.component.inputs)
        sums = ErrorSums()
        cases = self.cases[:SIMULATED_TILES] if target_of(job.variant).simulated else self.cases
        for inputs, expected in cases:
            sums.update(expected, session.run(inputs))
        relative, largest = _finite(sums.relative_l2), _finite(sums.max_abs)
        figures: dict[str, object] = {
            "engine": session.engine,
            "tiles": len(cases),
            "sqnr_db": _finite(sums.sqnr_db),
            "relative_l2": INFINITE if relative is None else relative,
            "max_abs": INFINITE if largest is None else largest,
            "cosine": _finite(sums.cosine),
        }
        session.close()
        return figures


def lower_component(job: Job, out: Path, scratch: Path, stages: Stages, lowering: Lowering) -> dict[str, object]:
    """Write one artifact into ``out`` and return the figures of its graph and its error to the reference."""
    stages.begin("rewrite")
    rewritten = lowering.rewrite(job)
    graph = lowering.survey(rewritten)
    stages.begin("lower")
    path = out / f"{job.component}{target_of(job.variant).suffix}"
    delegation = _lower(job, path, scratch, lowering, rewritten)
    path = path if path.exists() else path.with_suffix(CHUNKS)
    # What converters leave in cycles is as large as the weights.
    gc.collect()
    trim_heap()
    stages.begin("check")
    quantized = lowering.quantized(job)
    if quantized is not None and lowering.converter.size_tells and not palettes(quantized, job.component):
        written = sum(f.stat().st_size for f in (path.rglob("*") if path.is_dir() else [path]) if f.is_file())
        check_size(job.component, job.target, stored_bytes(rewritten.module, job.component, quantized), written, delegation.ops)
    return {
        "path": path.name,
        "delegation": delegation.model_copy(update={"graph": graph}).model_dump(mode="json"),
        "rewrites": [r.model_dump(mode="json") for r in rewritten.records],
        "parity": lowering.parity(job, path),
    }


def _lower(job: Job, path: Path, scratch: Path, lowering: Lowering, rewritten: Rewritten) -> Delegation:
    """Run the target's converter. Raises ToolchainError for whatever a converter raises."""
    component = lowering.component
    module, found = lowering.module(job, rewritten)
    request = LoweringRequest(
        job.component,
        module,
        component.inputs,
        component.output,
        lowering.tiles[0],
        job.precision,
        dict(job.options),
        path,
        scratch,
        component.module.state_dict(),
        {p.path: p.bits for p in found},
        rewritten.module if job.quantization else None,
        job.accelerator,
    )
    try:
        return lowering.converter.lower(request)
    except F2IError:
        raise
    except Exception as e:  # converters raise anything at all; the log has the whole story
        traceback.print_exc()
        raise ToolchainError(component=job.component, target=job.target, stage="lower", reason=f"{type(e).__name__}: {e}") from e


def _finite(figure: Callable[[], float]) -> float | None:
    """Returns a figure as a number that JSON can hold: infinite and undefined values become null."""
    value = float(figure())
    return value if value == value and abs(value) != float("inf") else None
