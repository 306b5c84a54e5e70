"""The child process of an export: ``python -m export.worker JOB.json OUTPUT_DIR EVENTS_FD``. Everything it prints goes to the log its parent chose."""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
import traceback
from pathlib import Path

from export.jobs import RESULT, Job
from runtime_py.errors import F2IError, ToolchainError

GOLDEN_CASES = (("portrait", "astronaut.png"), ("still_life", "coffee.png"))


class Stages:
    """Times the stages of a job and tells the parent which one has begun."""

    def __init__(self, events: int) -> None:
        self.events, self.began, self.name = events, time.monotonic(), ""
        self.done: list[dict[str, object]] = []

    def begin(self, name: str) -> None:
        """End the current stage and begin the next; an empty name only ends."""
        now = time.monotonic()
        if self.name:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            self.done.append({"name": self.name, "seconds": round(now - self.began, 3), "peak_rss_bytes": peak})
        self.name, self.began = name, now
        if name:
            os.write(self.events, (json.dumps({"stage": name}) + "\n").encode())


def capture_reference(job: Job, out: Path, stages: Stages) -> dict[str, object]:
    """Full-precision programs of every component, golden vectors, the dataflow's constants, and its description."""
    import numpy as np
    import torch

    from export.capture import capture
    from quantize import checkpoint
    from quantize.models.model import build_components
    from runtime_py.samples import cut_tiles, load_rgb, sample_photo

    stages.begin("load")
    model = checkpoint.load(job.checkpoint)
    graph = build_components(model, job.tile)
    stages.begin("golden")
    extra = {}
    noise_shape = next((c.inputs["latent"] for c in graph.components.values() if "lr_latent" in c.inputs), None)
    cases = []
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
    }


def lower_component(job: Job, out: Path, stages: Stages, reference: Path) -> dict[str, object]:
    """One artifact, with the figures of its graph and its error to the reference on the golden tiles."""
    import numpy as np
    import torch

    from export.capture import rewrite
    from export.lowering import TARGETS, LoweringRequest, lower
    from quantize import checkpoint
    from quantize.models.model import build_components
    from runtime_py import engines
    from runtime_py.metrics import ErrorSums

    stages.begin("load")
    graph = build_components(checkpoint.load(job.checkpoint), job.tile)
    component = graph.components[job.component]
    described = json.loads((reference / RESULT).read_text())
    call = next(c for c in graph.calls if c.component == job.component)
    cases = []
    for case in described["cases"]:
        folder = reference / "golden" / case["name"]
        tensors = {n: np.load(folder / f"{n}.npy") for n in case["tensors"]} | {n: t.numpy() for n, t in graph.constants.items()}
        cases.append(({i: tensors[call.arguments[i]] for i in component.inputs}, tensors[call.result]))
    tiles = [[torch.from_numpy(inputs[i]) for i in component.inputs] for inputs, _ in cases]
    stages.begin("rewrite")
    rewritten = rewrite(component.module, job.target, job.component, job.precision, tiles[:1] if job.tile >= 512 else tiles)
    stages.begin("lower")
    path = out / f"{job.component}{TARGETS[job.target].suffix}"
    request = LoweringRequest(
        job.component, rewritten.module, component.inputs, component.output, tiles[0], job.precision, dict(job.options), path
    )
    try:
        delegation = lower(job.target, request)
    except F2IError:
        raise
    except Exception as e:  # converters raise anything at all; the log has the whole story
        traceback.print_exc()
        raise ToolchainError(component=job.component, target=job.target, stage="lower", reason=f"{type(e).__name__}: {e}") from e
    stages.begin("check")
    delegate = dict(job.options).get("delegate", "xnnpack")
    parity = None
    if delegate == "xnnpack" or job.target != "executorch":
        session = engines.open_session(job.target, path, component=job.component, inputs=component.inputs)
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
    """A figure as a number JSON can hold: properties and methods alike; infinite and undefined become null."""
    value = float(figure() if callable(figure) else figure)  # type: ignore[arg-type]
    return value if value == value and abs(value) != float("inf") else None


def _die_with_parent() -> None:
    """End this process when its parent has gone: nobody would collect the result."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def main(arguments: list[str]) -> int:
    """Run one job. Exit code 0, or that of the error, whose text goes to the parent as the last event."""
    job_file, out, events = Path(arguments[0]), Path(arguments[1]), int(arguments[2])
    request = json.loads(job_file.read_text())
    reference = request.pop("reference")
    job = Job(**request | {"options": tuple(tuple(o) for o in request["options"])})
    stages = Stages(events)
    _die_with_parent()
    try:
        result = capture_reference(job, out, stages) if job.kind == "reference" else lower_component(job, out, stages, Path(reference))
        stages.begin("")
    except F2IError as e:
        failure = {"message": str(e), "exit_code": e.exit_code}
        if isinstance(e, ToolchainError):
            failure |= {"component": e.component, "target": e.target, "stage": e.stage, "reason": e.reason}
        os.write(events, (json.dumps({"error": failure}) + "\n").encode())
        traceback.print_exc()
        return e.exit_code
    (out / RESULT).write_text(json.dumps(result | {"stages": stages.done, "tool_versions": job.tool_versions()}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
