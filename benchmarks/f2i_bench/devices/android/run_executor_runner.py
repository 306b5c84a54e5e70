"""ExecuTorch's ``executor_runner`` on a device. Options and words: pytorch/executorch ``examples/portable/executor_runner``."""

from __future__ import annotations

import re
from typing import Any

from f2i_bench.devices.android.native_runners import Component, NativeItem, Plan, Repeats, nanoseconds, write_raw


def stage(component: Component) -> NativeItem:
    """Writes the inputs in calling order and returns the item."""
    return write_raw(component, component.inputs)


def commands(item: NativeItem, repeats: Repeats) -> list[str]:
    """Returns one process, which runs the model as often as is asked. It appends ``-0.bin`` to the output's name."""
    return [
        f"--model_path={item.path} --inputs={','.join(item.inputs)} --output_file={item.output.removesuffix('-0.bin')} "
        f"--num_executions={1 + repeats.warmup + repeats.runs} --cpu_threads={repeats.threads}"
    ]


def read(words: str, warmup: int) -> dict[str, Any]:
    """See :attr:`Plan.read`. An older program says the sum alone, which becomes one mean."""
    times = [nanoseconds(ms, 1e6) for ms in re.findall(r"Iteration \d+ of \d+: ([\d.]+) ms", words)]
    loaded = re.search(r"Model loaded in ([\d.]+) ms", words)
    if not times:
        done = re.search(r"Model executed successfully (\d+) time\(s\) in ([\d.]+) ms", words)
        if not done:
            raise ValueError("it did not say 'Model executed successfully'; was it built with logging (EXECUTORCH_ENABLE_LOGGING)?")
        mean = nanoseconds(done[2], 1e6) // int(done[1])
        return {"load_ns": None, "first_ns": None, "ns": [mean], "peak_rss_bytes": None}
    return {"load_ns": loaded and nanoseconds(loaded[1], 1e6), "first_ns": times[0], "ns": times[1 + warmup :], "peak_rss_bytes": None}


PLAN = Plan(stage, commands, read, writes_output=True)
