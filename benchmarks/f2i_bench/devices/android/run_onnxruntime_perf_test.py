"""ONNX Runtime's ``onnxruntime_perf_test`` on a device. Options and words: microsoft/onnxruntime ``onnxruntime/test/perftest``."""

from __future__ import annotations

import re
import shutil
from typing import Any

import numpy as np

from f2i_bench.devices.android.native_runners import Component, NativeItem, Plan, Repeats, nanoseconds


def stage(component: Component) -> NativeItem:
    """Makes a folder with the model and a test data set, which the program finds by their places, and returns the item."""
    folder = component.folder / component.name
    data = folder / "test_data_set_0"
    data.mkdir(parents=True)
    shutil.move(component.folder / component.path, folder / "model.onnx")
    for beside in component.folder.glob(f"{component.path}.*"):  # the model names them
        shutil.move(beside, folder / beside.name)
    files = [data / f"input_{k}.pb" for k in range(len(component.inputs))]
    for file, (name, array) in zip(files, component.inputs.items(), strict=True):
        file.write_bytes(tensor_proto(name, array))
    return NativeItem(
        component=component.name,
        path=f"{component.name}/model.onnx",
        names=tuple(component.inputs),
        shapes=tuple(array.shape for array in component.inputs.values()),
        inputs=tuple(file.relative_to(component.folder).as_posix() for file in files),
        output="",
    )


def tensor_proto(name: str, array: np.ndarray) -> bytes:
    """Returns a float32 array as ONNX's ``TensorProto`` (onnx.proto: dims 1, data_type 2, name 8, raw_data 9)."""
    raw = np.ascontiguousarray(array, "<f4").tobytes()
    dims = b"".join(b"\x08" + _varint(n) for n in array.shape)
    return dims + b"\x10\x01" + b"\x42" + _varint(len(name.encode())) + name.encode() + b"\x4a" + _varint(len(raw)) + raw


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def commands(item: NativeItem, repeats: Repeats) -> list[str]:
    """Returns one process, and the command that prints the file which it writes its times to."""
    times = f"{item.component}-times.csv"
    return [f"-e cpu -m times -r {repeats.warmup + repeats.runs} -x {repeats.threads} {item.path} {times} && cat {times}"]


def read(words: str, warmup: int) -> dict[str, Any]:
    """See :attr:`Plan.read`."""
    runs = re.findall(r"^[^,\n]*,([\d.e+-]+),(\d+),\d+,\d+\s*$", words, re.M)
    created = re.search(r"Session creation time cost: ?([\d.e+-]+) s", words)
    first = re.search(r"First inference time cost: ?([\d.e+-]+) ms", words)
    if not runs:
        raise ValueError("its result file holds no runs")
    return {
        "load_ns": created and nanoseconds(created[1], 1e9),
        "first_ns": first and nanoseconds(first[1], 1e6),
        "ns": [nanoseconds(seconds, 1e9) for seconds, _ in runs[warmup:]],
        "peak_rss_bytes": int(runs[-1][1]) or None,
    }


PLAN = Plan(stage, commands, read, writes_output=False)
