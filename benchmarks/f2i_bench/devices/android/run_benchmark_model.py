"""LiteRT's ``benchmark_model`` on a device, published as ``android_aarch64_benchmark_model``. Options and words: tensorflow ``lite/tools/benchmark``."""

from __future__ import annotations

import re
from typing import Any

from f2i_bench.devices.android.native_runners import Component, NativeItem, Plan, Repeats, nanoseconds, write_raw


def stage(component: Component) -> NativeItem:
    """Writes the inputs in the model's own order, under the names of its layers, and returns the item."""
    from f2i_runtime.engines.run_tflite import input_layers

    layers, arguments = input_layers(component.folder / component.path), list(component.inputs)
    return write_raw(component, {layer: component.inputs[arguments[sorted(layers).index(layer)]] for layer in layers})


def commands(item: NativeItem, repeats: Repeats) -> list[str]:
    """Returns one process for each round, because a process says one median."""
    shapes = ":".join(",".join(map(str, shape)) for shape in item.shapes)
    files = ",".join(f"{name.replace(':', '::')}:{file}" for name, file in zip(item.names, item.inputs, strict=True))
    warmup, runs = (-(-count // repeats.rounds) for count in (repeats.warmup, repeats.runs))
    command = (
        f"--graph={item.path} --num_threads={repeats.threads} --warmup_runs={max(1, warmup)} --warmup_min_secs=0 "
        f"--num_runs={runs} --min_secs=0 --report_peak_memory_footprint=true --input_layer={','.join(item.names)} "
        f"--input_layer_shape={shapes} --input_layer_value_files={files} --output_filepath={item.output}"
    )
    return [command] * repeats.rounds


def read(words: str, warmup: int) -> dict[str, Any]:
    """See :attr:`Plan.read`."""
    said = re.search(r"Inference timings in us: Init: ([\d.e+]+), First inference: ([\d.e+]+), .*Inference \(avg\): ([\d.e+]+)", words)
    if not said:
        raise ValueError("it did not say 'Inference timings in us'")
    medians = re.findall(r"count=\d+ first=.* median=([\d.e+]+)", words)
    peak = re.search(r"[Pp]eak memory footprint \(MB\) via periodic monitoring: ([\d.]+)", words)
    return {
        "load_ns": nanoseconds(said[1], 1e3),
        "first_ns": nanoseconds(said[2], 1e3),
        "ns": [nanoseconds(medians[-1] if medians else said[3], 1e3)],
        "peak_rss_bytes": int(float(peak[1]) * (1 << 20)) if peak else None,
    }


PLAN = Plan(stage, commands, read, writes_output=True)
