"""What the Core ML evaluator costs: a call beside torch eager of the original module, memory beside the weights, loading beside reading.

    python -m f2i_bench.suites.mil_cost BUNDLE [--component unet] [--precision fp16] [--rounds 5]

Times are of this machine; the ratios are what is held to limits (exit code 1 when one is exceeded): a call at most 1.5 times eager's median
in the same run, taking turns; peak memory at most 3 times the float32 weights; loading at most twice reading the package's files and
decompressing their weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from f2i_runtime.bundle.store import open_bundle
from f2i_runtime.engines.run_coreml import TARGET
from f2i_runtime.targets import Variant

LIMITS = {"call_ratio": 1.5, "memory_ratio": 3.0, "load_ratio": 2.0}


class PeakMemory:
    """Highest resident memory of this process above what it was at the start, bytes, sampled every 2 ms."""

    def __enter__(self) -> PeakMemory:
        self._process, self._done = psutil.Process(), threading.Event()
        self._start = self.bytes = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(0.002):
            self.bytes = max(self.bytes, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.bytes = max(self.bytes, self._process.memory_info().rss) - self._start


def seconds(action: Callable[[], Any], rounds: int) -> float:
    """Shortest of ``rounds``: what loading takes when nothing else runs."""
    spent = []
    for _ in range(rounds):
        began = time.perf_counter()
        action()
        spent.append(time.perf_counter() - began)
    return min(spent)


def measure(root: Path, component: str, precision: str, rounds: int) -> dict[str, float]:
    """Figures of one component of a bundle; see the module's description."""
    import torch
    from f2i_runtime.mil import load
    from f2i_runtime.mil.execute.constants import Constants
    from f2i_runtime.mil.format.package import Package
    from f2i_runtime.mil.format.program import decode

    bundle = open_bundle(root)
    package = bundle.artifact_path(bundle.manifest.artifact(component, Variant(TARGET, precision)))
    call = next(item for item in bundle.manifest.dataflow if item.component == component)
    shapes = {name: tuple(spec.shape) for name, spec in bundle.manifest.components[component].inputs.items()}
    random = np.random.default_rng(0)
    inputs = {name: random.random(shapes[name], dtype=np.float32) for name in call.inputs}

    def read() -> None:
        with Package(package) as opened:
            function = decode(opened)
            constants = Constants(opened, function)
            for name in constants.names():
                constants.tensor(name)

    load(package)  # imports, and the file into the page cache
    reading, loading = seconds(read, rounds), seconds(lambda: load(package), rounds)
    with PeakMemory() as peak:
        evaluator = load(package)
        evaluator(inputs)
    weights = 4 * bundle.manifest.components[component].parameters
    original = torch.export.load(bundle.check(bundle.manifest.components[component].reference)).module()
    tensors = [torch.from_numpy(inputs[name]) for name in bundle.manifest.components[component].inputs]
    ours, eager = [], []
    with torch.inference_mode():
        original(*tensors)
        for _ in range(rounds):
            began = time.perf_counter()
            evaluator(inputs)
            between = time.perf_counter()
            original(*tensors)
            ours.append(between - began)
            eager.append(time.perf_counter() - between)
    return {
        "call_s": statistics.median(ours),
        "eager_s": statistics.median(eager),
        "call_ratio": statistics.median(a / b for a, b in zip(ours, eager, strict=True)),
        "peak_bytes": peak.bytes,
        "weight_bytes": weights,
        "memory_ratio": peak.bytes / weights,
        "load_s": loading,
        "read_s": reading,
        "load_ratio": loading / reading,
    }


def main(arguments: list[str] | None = None) -> int:
    """Prints the figures as JSON; 1 when a limit is exceeded."""
    parser = argparse.ArgumentParser(prog="python -m f2i_bench.suites.mil_cost", description="cost of the Core ML evaluator")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--component", default="unet")
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    figures = measure(options.bundle, options.component, options.precision, options.rounds)
    sys.stdout.write(json.dumps({**{name: round(value, 4) for name, value in figures.items()}, "limits": LIMITS}, indent=1) + "\n")
    return int(any(figures[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    raise SystemExit(main())
