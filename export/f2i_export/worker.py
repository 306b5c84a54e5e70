"""The child process of an export: ``python -m f2i_export.worker JOBS.json OUTPUT_DIR EVENTS_FD``.

It does one or more jobs that share a component and a target, so that toolchains are imported, weights loaded and rewrites proved once for all
precisions. Job ``i`` leaves its result in ``OUTPUT_DIR/i``. Everything printed goes to the log that the parent chose.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from f2i_runtime.errors import F2IError, ToolchainError
from f2i_runtime.memory import peak_rss, trim_heap

from f2i_export.jobs import RESULT, Job

if TYPE_CHECKING:
    from f2i_quantize.ptq.quantized import PaletteLayer
    from f2i_quantize.rewrites.capture import Rewritten
    from torch import nn

DRAWN = "checkpoint"
"""Folder of a reference result that holds a preset's random weights."""
LARGE = 20_000_000
"""Parameters of a component above which rewrites are proved on one tile."""
GOLDEN_CASES = (("portrait", "astronaut.png"), ("still_life", "coffee.png"))


def tell(events: int, event: dict[str, object]) -> None:
    """Sends one line of JSON to the parent."""
    os.write(events, (json.dumps(event) + "\n").encode())


class Stages:
    """Times the stages of job number ``index`` and tells the parent which one has begun."""

    def __init__(self, events: int, index: int) -> None:
        self.events, self.index, self.began, self.name = events, index, time.monotonic(), ""
        self.done: list[dict[str, object]] = []

    def begin(self, name: str) -> None:
        """End the current stage and begin the next; an empty name only ends."""
        now = time.monotonic()
        if self.name:
            self.done.append({"name": self.name, "seconds": round(now - self.began, 3), "peak_rss_bytes": peak_rss(forget=True)})
        self.name, self.began = name, now
        if name:
            tell(self.events, {"job": self.index, "stage": name})


def capture_reference(job: Job, out: Path, stages: Stages) -> dict[str, object]:
    """Full-precision programs of every component, golden vectors, the dataflow's constants, and its description."""
    import numpy as np
    import torch
    from f2i_quantize.models import checkpoint
    from f2i_quantize.models.whole_model import build_components
    from f2i_quantize.rewrites.capture import capture
    from f2i_runtime.photo.samples import cut_tiles, load_rgb, sample_photo

    stages.begin("load")
    if checkpoint.is_preset(job.checkpoint):
        # Drawn once; every other process maps the file.
        checkpoint.save(checkpoint.load(job.checkpoint), out / DRAWN)
    model = checkpoint.load(_weights(job, out))
    graph = build_components(model, job.tile)
    stages.begin("golden")
    extra = {}
    noise_shape = next((c.inputs["latent"] for c in graph.components.values() if "lr_latent" in c.inputs), None)
    cases = []
    tensors: dict[str, torch.Tensor] = {}
    for case, photo in GOLDEN_CASES:
        [tile] = cut_tiles(load_rgb(sample_photo(photo)), job.tile, 1, seed=0)
        if model.config.noise and noise_shape:
            extra["noise"] = torch.randn(noise_shape, generator=torch.Generator().manual_seed(0))
        tensors = graph.run(torch.from_numpy(tile), extra)
        folder = out / "golden" / case
        folder.mkdir(parents=True)
        for name, tensor in tensors.items():
            if name not in graph.constants:
                np.save(folder / f"{name}.npy", tensor.numpy())
        cases.append({"name": case, "source": photo, "tensors": [n for n in tensors if n not in graph.constants]})
    for name, tensor in graph.constants.items():
        (out / "constants").mkdir(exist_ok=True)
        np.save(out / "constants" / f"{name}.npy", tensor.numpy())
    overlap = None
    if dict(job.options).get("overlap") == "auto":
        from f2i_runtime.bundle.manifest import TileSpec, default_gates
        from f2i_runtime.tiling.overlap import choose_overlap

        stages.begin("overlap")
        spec = TileSpec(size=job.tile, scale=model.config.scale, overlap=0, multiple=model.tile_multiple())
        gates = default_gates(model.config.trained)
        overlap = choose_overlap(lambda lr: graph.run(torch.from_numpy(lr), extra)["sr"].numpy(), spec, gates).model_dump()
    (out / "reference").mkdir()
    for name, component in graph.components.items():
        stages.begin(f"capture {name}")
        call = next(c for c in graph.calls if c.component == name)
        program = capture(component.module, [tensors[call.arguments[i]] for i in component.inputs])
        torch.export.save(program, out / "reference" / f"{name}.pt2")
        del program
    describe = {
        name: {
            "inputs": {k: list(v) for k, v in c.inputs.items()},
            "output": c.output,
            "output_shape": list(c.output_shape),
            "parameters": sum(p.numel() for p in c.module.parameters()),
        }
        for name, c in graph.components.items()
    }
    calls = [{"component": c.component, "inputs": c.arguments, "result": c.result} for c in graph.calls]
    config = model.config.model_dump(mode="json")
    multiple = model.tile_multiple()
    return {
        "components": describe,
        "calls": calls,
        "constants": list(graph.constants),
        "cases": cases,
        "config": config,
        "multiple": multiple,
        "overlap": overlap,
    }


def _weights(job: Job, reference: Path) -> str:
    """The checkpoint to read: a preset's random weights are where the reference left them."""
    drawn = reference / DRAWN
    return str(drawn) if drawn.is_dir() else job.checkpoint


class Lowering:
    """Lowers one component to one target, one precision after another; what precisions share is made once."""

    def __init__(self, job: Job, reference: Path) -> None:
        import torch
        from f2i_quantize.models import checkpoint
        from f2i_quantize.models.whole_model import COMPONENT_PARTS, build_components

        from f2i_export.lowering import load_converter
        from f2i_export.qdq_programs import golden_cases

        graph = build_components(checkpoint.load(_weights(job, reference), only=COMPONENT_PARTS[job.component]), job.tile)
        self.component = graph.components[job.component]
        self.cases = golden_cases(graph, job.component, reference)
        self.tiles = [[torch.from_numpy(inputs[i]) for i in self.component.inputs] for inputs, _ in self.cases]
        self.rewritten: dict[bool, Rewritten] = {}
        """By whether skip concatenations are split."""
        self.checkpoint = job.checkpoint
        self.converter = load_converter(job.target)

    def module(self, job: Job, rewritten: Rewritten) -> tuple[nn.Module, list[PaletteLayer]]:
        """What is lowered: the rewritten module, or its QDQ graph; and the layers that Core ML's converter is to find palettes for."""
        if not job.quantization:
            return rewritten.module, []
        from f2i_quantize.ptq.quantized import palettes, qdq_graph, read

        quantized = read(self.checkpoint, job.precision)
        found = palettes(quantized, job.component)
        if found:
            return rewritten.module, found
        return qdq_graph(rewritten.module, self.tiles[0], job.component, quantized, fold=self.converter.takes_folded_weights), []

    def rewrite(self, job: Job) -> Rewritten:
        """The component's module as the job's target and precision want it."""
        import torch
        from f2i_quantize.ptq.quantized import read
        from f2i_quantize.rewrites.capture import rewrite, rewrite_for_half
        from f2i_quantize.rewrites.passes import with_split_skips
        from f2i_runtime.targets import find_target

        # One pass of a large decoder takes a minute; its artifact is compared on all tiles in any case.
        tiles = self.tiles[:1] if sum(p.numel() for p in self.component.module.parameters()) > LARGE else self.tiles
        known = [torch.from_numpy(expected) for _, expected in self.cases][: len(tiles)]
        label = f"{job.component}/{job.target}"
        split = bool(job.quantization) and read(self.checkpoint, job.precision).recipe.split_skips
        if split not in self.rewritten:
            steps = with_split_skips(self.converter.rewrites) if split else self.converter.rewrites
            self.rewritten[split] = rewrite(self.component.module, steps, label, tiles, known)
        if job.precision == "fp16" or (find_target(job.target).half_inside and job.precision != "fp32"):
            return rewrite_for_half(self.rewritten[split], self.component.module, self.converter.half_rewrites, label, tiles, known)
        return self.rewritten[split]


def lower_component(job: Job, out: Path, scratch: Path, stages: Stages, lowering: Lowering) -> dict[str, object]:
    """One artifact, with the figures of its graph and its error to the reference on the golden tiles."""
    from f2i_runtime.bundle.manifest import CHUNKS
    from f2i_runtime.engines import session as engines
    from f2i_runtime.metrics.fidelity import ErrorSums
    from f2i_runtime.targets import find_target

    from f2i_export.lowering import LoweringRequest, check_size

    component, cases = lowering.component, lowering.cases
    stages.begin("rewrite")
    rewritten = lowering.rewrite(job)
    stages.begin("lower")
    path = out / f"{job.component}{find_target(job.target).suffix}"
    module, palettes = lowering.module(job, rewritten)
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
        {p.path: p.bits for p in palettes},
    )
    try:
        delegation = lowering.converter.lower(request)
    except F2IError:
        raise
    except Exception as e:  # converters raise anything at all; the log has the whole story
        traceback.print_exc()
        raise ToolchainError(component=job.component, target=job.target, stage="lower", reason=f"{type(e).__name__}: {e}") from e
    path = path if path.exists() else path.with_suffix(CHUNKS)
    # What converters leave in cycles is as large as the weights.
    del request, module
    gc.collect()
    trim_heap()
    stages.begin("check")
    if job.quantization and not palettes:
        from f2i_quantize.ptq.quantized import read, stored_bytes

        written = sum(f.stat().st_size for f in (path.rglob("*") if path.is_dir() else [path]) if f.is_file())
        stored = stored_bytes(rewritten.module, job.component, read(job.checkpoint, job.precision))
        check_size(job.component, job.target, stored, written, delegation.ops)
    parity = None
    if lowering.converter.runs_here(dict(job.options)):
        session = engines.open_session(job.variant, path, component=job.component, inputs=component.inputs)
        sums = ErrorSums()
        for inputs, expected in cases:
            sums.update(expected, session.run(inputs))
        parity = {
            "engine": session.engine,
            "tiles": len(cases),
            "sqnr_db": _finite(sums.sqnr_db),
            "relative_l2": _finite(sums.relative_l2) if _finite(sums.relative_l2) is not None else 1e30,
            "max_abs": _finite(sums.max_abs) if _finite(sums.max_abs) is not None else 1e30,
            "cosine": _finite(sums.cosine),
        }
        session.close()
    return {
        "path": path.name,
        "delegation": delegation.model_dump(mode="json"),
        "rewrites": [r.model_dump(mode="json") for r in rewritten.records],
        "parity": parity,
    }


def _finite(figure: object) -> float | None:
    """Returns a figure as a number that JSON can hold. Properties and methods are read alike; infinite and undefined values become null."""
    value = float(figure() if callable(figure) else figure)  # type: ignore[arg-type]
    return value if value == value and abs(value) != float("inf") else None


def _die_with_parent() -> None:
    """Ends this process when its parent has gone, because nobody would collect the result."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str]) -> int:
    """Do all jobs. Exit code 0, or that of the error, whose text goes to the parent as the last event."""
    request_file, out, events = Path(arguments[0]), Path(arguments[1]), int(arguments[2])
    request = json.loads(request_file.read_text())
    jobs = [Job(**job | {"options": tuple(tuple(o) for o in job["options"])}) for job in request["jobs"]]
    lowering: Lowering | None = None
    scratch = out / "scratch"
    scratch.mkdir()
    _die_with_parent()
    for index, job in enumerate(jobs):
        stages, folder = Stages(events, index), out / str(index)
        folder.mkdir()
        try:
            if job.kind == "reference":
                result = capture_reference(job, folder, stages)
            elif job.kind == "simulate":
                from f2i_export.qdq_programs import capture_simulated

                reference = Path(request["reference"])
                result = capture_simulated(job, _weights(job, reference), folder, stages.begin, reference)
            else:
                stages.begin("load")
                lowering = lowering or Lowering(job, Path(request["reference"]))
                result = lower_component(job, folder, scratch, stages, lowering)
            stages.begin("")
        except F2IError as e:
            failure: dict[str, object] = {"message": str(e), "exit_code": e.exit_code}
            if isinstance(e, ToolchainError):
                failure |= {"component": e.component, "target": e.target, "stage": e.stage, "reason": e.reason}
            tell(events, {"job": index, "error": failure})
            traceback.print_exc()
            return e.exit_code
        (folder / RESULT).write_text(json.dumps(result | {"stages": stages.done, "tool_versions": job.tool_versions()}, indent=1))
        tell(events, {"job": index, "done": True})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
