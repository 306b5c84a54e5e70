"""ONNX Runtime's ``onnxruntime_perf_test`` on Snapdragon's NPU: its QNN provider, with the context binary beside the model. It writes no outputs."""

from __future__ import annotations

from f2i_bench.devices.android.native_runners import NativeItem, Plan, Repeats
from f2i_bench.devices.android.run_onnxruntime_perf_test import read, stage

PROVIDER = '-e qnn -i "backend_path|libQnnHtp.so htp_performance_mode|burst"'
"""The provider and its options; the library is found where the programs' own are."""


def commands(item: NativeItem, repeats: Repeats) -> list[str]:
    """Returns one process, and the command that prints the file which it writes its times to."""
    times = f"{item.component}-times.csv"
    return [f"{PROVIDER} -m times -r {repeats.warmup + repeats.runs} -x {repeats.threads} {item.path} {times} && cat {times}"]


PLAN = Plan(stage, commands, read, writes_output=False)
