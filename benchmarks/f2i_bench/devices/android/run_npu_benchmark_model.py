"""LiteRT's ``benchmark_model`` on an NPU. Options and words: google-ai-edge/LiteRT ``litert/tools/benchmark_litert_model``.

It is another program than the one of that name that measures the CPU: it makes up its inputs, and writes no outputs.
"""

from __future__ import annotations

import re
from typing import Any

from f2i_bench.devices.android.native_runners import Component, NativeItem, Plan, Repeats, nanoseconds, write_raw


def stage(component: Component) -> NativeItem:
    """Returns the item; its inputs are written as for the others, and not read."""
    return write_raw(component, component.inputs)


def commands(item: NativeItem, repeats: Repeats) -> list[str]:
    """Returns one process for each round, because a process says one mean. An op that the NPU does not take is an error."""
    warmup, runs = (-(-count // repeats.rounds) for count in (repeats.warmup, repeats.runs))
    command = (
        f"--graph={item.path} --use_npu=true --use_cpu=false --use_gpu=false --require_full_delegation=true --dispatch_library_path=. "
        f"--warmup_runs={max(1, warmup)} --warmup_min_secs=0 --num_runs={runs} --min_secs=0"
    )
    return [command] * repeats.rounds


def read(words: str, warmup: int) -> dict[str, Any]:
    """See :attr:`Plan.read`."""
    mean = re.search(r"Inference \(avg\): +([\d.]+) ms \(\d+ runs\)", words)
    if not mean:
        raise ValueError("it did not say 'Inference (avg)'")
    loaded = re.search(r"Model initialization: +([\d.]+) ms", words)
    first = re.search(r"Warmup \(first\): +([\d.]+) ms", words)
    peak = re.search(r"Peak memory: +([\d.]+) MB", words)
    return {
        "load_ns": nanoseconds(loaded[1], 1e6) if loaded else None,
        "first_ns": nanoseconds(first[1], 1e6) if first else None,
        "ns": [nanoseconds(mean[1], 1e6)],
        "peak_rss_bytes": int(float(peak[1]) * (1 << 20)) if peak else None,
    }


PLAN = Plan(stage, commands, read, writes_output=False)
