"""ExecuTorch's ``qnn_executor_runner`` on Snapdragon's NPU. Options and words: pytorch/executorch ``examples/qualcomm/executor_runner``.

It calls a program's first method, which is the only one that ours have.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from f2i_bench.devices.android.native_runners import Component, NativeItem, Plan, Repeats, nanoseconds, write_raw


def stage(component: Component) -> NativeItem:
    """Writes the inputs in calling order, and the list that names them in a line."""
    item = write_raw(component, component.inputs)
    (component.folder / f"{component.name}-list.txt").write_text(" ".join(item.inputs) + "\n")
    return replace(item, output=f"{component.name}-out/output_0_0.raw")


def commands(item: NativeItem, repeats: Repeats) -> list[str]:
    """Returns one process for each round, because a process says one mean; each makes the folder that the output goes to."""
    warmup, runs = (-(-count // repeats.rounds) for count in (repeats.warmup, repeats.runs))
    folder = item.output.partition("/")[0]
    command = (
        f"--model_path={item.path} --input_list_path={item.component}-list.txt --output_folder_path={folder} "
        f"--warm_up={warmup} --iteration={runs}"
    )
    return [command] * repeats.rounds


def read(words: str, warmup: int) -> dict[str, Any]:
    """See :attr:`Plan.read`. The first of its lines is of the one set of inputs that it was given."""
    mean = re.search(r"(\d+) inference took ([\d.]+) ms, avg ([\d.]+) ms", words)
    if not mean:
        raise ValueError("it did not say 'inference took'; was it built with logging (EXECUTORCH_ENABLE_LOGGING)?")
    return {"load_ns": None, "first_ns": None, "ns": [nanoseconds(mean[3], 1e6)], "peak_rss_bytes": None}


PLAN = Plan(stage, commands, read, writes_output=True)
