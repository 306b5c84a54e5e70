"""The engines' own benchmark programs on a device: ExecuTorch's ``executor_runner``, LiteRT's ``benchmark_model``, ONNX Runtime's
``onnxruntime_perf_test``.

Each takes its own options and prints its own words; here both are translated to the job and the result of ``device_runner.py``. Options and words are
those of pytorch/executorch ``examples/portable/executor_runner``, tensorflow ``lite/tools/benchmark`` and microsoft/onnxruntime ``onnxruntime/test/perftest``.
"""

from __future__ import annotations

import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from f2i_runtime.bundle.store import Bundle, load_array
from f2i_runtime.errors import UsageError

from f2i_bench.devices.parity_job import Job

PROGRAMS = {"executor_runner": "executorch", "benchmark_model": "tflite", "onnxruntime_perf_test": "onnx"}
"""The part of a program's name that tells which target it runs. LiteRT's program is published as ``android_aarch64_benchmark_model``."""
PACKAGES = (".tgz", ".tar.gz", ".aar", ".jar", ".zip", ".whl")
ARM = re.compile(r"arm64|aarch64", re.I)


@dataclass(frozen=True)
class Runner:
    """A program to push. ``target`` None: one of the caller's own, for every target, that takes ``JOB.json RESULT.json``."""

    path: Path
    target: str | None


@dataclass(frozen=True)
class NativeItem:
    """One component for a native program, with paths beside it: inputs are raw little-endian float32."""

    component: str
    path: str
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Plan:
    """How to run a native program: command lines for one component, and what its words mean."""

    commands: Callable[[NativeItem, int, int, int, int], list[str]]
    """(item, threads, warm-up runs, runs, rounds) → command lines after the program's name, one process each."""
    read: Callable[[str, int], dict[str, Any]]
    """(words of one process, warm-up runs) → load_ns, first_ns, ns, peak_rss_bytes; ValueError when they are not what was expected."""
    writes_output: bool


def open_runners(paths: Sequence[Path], folder: Path) -> tuple[Runner, ...]:
    """Returns one runner for each path, at most one for each target. Raises UsageError as :func:`open_runner` does."""
    runners: list[Runner] = []
    for k, path in enumerate(paths):
        inside = folder / str(k)
        inside.mkdir(parents=True)
        runners.append(open_runner(path, inside))
    targets = [r.target or "every target" for r in runners]
    if twice := [t for t in targets if targets.count(t) > 1]:
        raise UsageError(f"--runner: {targets.count(twice[0])} programs for {twice[0]}; give one of each")
    return tuple(runners)


def open_runner(path: Path, folder: Path) -> Runner:
    """The runner that a path names: a program, or the one for ARM64 inside an npm, Maven or Python package, unpacked into ``folder``.

    Raises UsageError when there is no such file or the package holds none.
    """
    if not path.is_file():
        raise UsageError(f"--runner {path}: no such file")
    if not path.name.endswith(PACKAGES):
        return Runner(path, next((target for name, target in PROGRAMS.items() if name in path.name), None))
    try:
        found = _unpack(path, folder)
    except (tarfile.TarError, zipfile.BadZipFile, OSError) as e:
        raise UsageError(f"--runner {path}: it is no readable package: {e}") from e
    if found is None:
        raise UsageError(
            f"--runner {path}: the package holds none of {', '.join(PROGRAMS)} for ARM64; build one, or run Python on the device"
        )
    return open_runner(found, folder)


def _unpack(package: Path, folder: Path) -> Path | None:
    """The first program of ours in a package, and the libraries that lie beside it."""
    is_zip = zipfile.is_zipfile(package)
    with zipfile.ZipFile(package) if is_zip else tarfile.open(package) as archive:
        names = archive.namelist() if isinstance(archive, zipfile.ZipFile) else [m.name for m in archive.getmembers() if m.isfile()]
        paths = [PurePosixPath(n) for n in names]
        programs = [p for p in paths if any(n in p.name for n in PROGRAMS) and not p.suffix and ARM.search(str(p))]
        if not programs:
            return None
        for path in [programs[0], *(p for p in paths if p.parent == programs[0].parent and p.suffix == ".so")]:
            source = archive.open(str(path)) if isinstance(archive, zipfile.ZipFile) else archive.extractfile(str(path))
            if source:
                with source, (folder / path.name).open("wb") as target:
                    shutil.copyfileobj(source, target)
    return folder / programs[0].name


def libraries(runner: Runner) -> list[Path]:
    """Shared libraries beside a native program, which go to the device with it."""
    return sorted(runner.path.parent.glob("lib*.so")) if runner.target else []


def stage_item(bundle: Bundle, job: Job, staged: dict[str, Any]) -> NativeItem:
    """A component of a staged job for its native program: inputs written beside it as that reads them.

    For ONNX Runtime that is a folder with the model and a test data set, which it finds by their places.
    """
    component, name = bundle.manifest.components[staged["component"]], staged["component"]
    arguments = list(component.inputs)
    layers = arguments
    if job.target == "tflite":
        from f2i_runtime.engines.run_tflite import input_layers

        layers = input_layers(job.folder / staged["path"])
    order = [arguments[sorted(layers).index(layer)] if job.target == "tflite" else layer for layer in layers]
    arrays = [load_array(job.folder / staged["inputs"][arguments.index(a)]) for a in order]
    files = [f"{name}-{k}.bin" for k in range(len(order))]
    if job.target == "onnx":
        data = job.folder / name / "test_data_set_0"
        data.mkdir(parents=True)
        shutil.move(job.folder / staged["path"], job.folder / name / "model.onnx")
        for k, (layer, array) in enumerate(zip(layers, arrays, strict=True)):
            (data / f"input_{k}.pb").write_bytes(tensor_proto(layer, array))
    else:
        for file, array in zip(files, arrays, strict=True):
            (job.folder / file).write_bytes(np.ascontiguousarray(array, "<f4").tobytes())
    shapes = tuple(tuple(component.inputs[a].shape) for a in order)
    return NativeItem(name, staged["path"], tuple(layers), shapes, tuple(files), f"{name}-out-0.bin")


def tensor_proto(name: str, array: np.ndarray) -> bytes:
    """A float32 array as ONNX's ``TensorProto`` (onnx.proto: dims 1, data_type 2, name 8, raw_data 9)."""
    raw = np.ascontiguousarray(array, "<f4").tobytes()
    dims = b"".join(b"\x08" + _varint(n) for n in array.shape)
    return dims + b"\x10\x01" + b"\x42" + _varint(len(name.encode())) + name.encode() + b"\x4a" + _varint(len(raw)) + raw


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _executorch(item: NativeItem, threads: int, warmup: int, runs: int, rounds: int) -> list[str]:
    # It appends "-0.bin" to the output's name.
    return [
        f"--model_path={item.path} --inputs={','.join(item.inputs)} --output_file={item.output.removesuffix('-0.bin')} "
        f"--num_executions={1 + warmup + runs} --cpu_threads={threads}"
    ]


def _read_executorch(words: str, warmup: int) -> dict[str, Any]:
    times = [_ns(ms, 1e6) for ms in re.findall(r"Iteration \d+ of \d+: ([\d.]+) ms", words)]
    loaded = re.search(r"Model loaded in ([\d.]+) ms", words)
    if not times:  # an older one, which says the sum alone
        done = re.search(r"Model executed successfully (\d+) time\(s\) in ([\d.]+) ms", words)
        if not done:
            raise ValueError("it did not say 'Model executed successfully'; was it built with logging (EXECUTORCH_ENABLE_LOGGING)?")
        mean = _ns(done[2], 1e6) // int(done[1])
        return {"load_ns": None, "first_ns": None, "ns": [mean], "peak_rss_bytes": None}
    return {"load_ns": loaded and _ns(loaded[1], 1e6), "first_ns": times[0], "ns": times[1 + warmup :], "peak_rss_bytes": None}


def _tflite(item: NativeItem, threads: int, warmup: int, runs: int, rounds: int) -> list[str]:
    # One process says one median, so each round is a process.
    shapes = ":".join(",".join(map(str, shape)) for shape in item.shapes)
    files = ",".join(f"{name.replace(':', '::')}:{file}" for name, file in zip(item.names, item.inputs, strict=True))
    command = (
        f"--graph={item.path} --num_threads={threads} --warmup_runs={max(1, -(-warmup // rounds))} --warmup_min_secs=0 "
        f"--num_runs={-(-runs // rounds)} --min_secs=0 --report_peak_memory_footprint=true --input_layer={','.join(item.names)} "
        f"--input_layer_shape={shapes} --input_layer_value_files={files} --output_filepath={item.output}"
    )
    return [command] * rounds


def _read_tflite(words: str, warmup: int) -> dict[str, Any]:
    said = re.search(r"Inference timings in us: Init: ([\d.e+]+), First inference: ([\d.e+]+), .*Inference \(avg\): ([\d.e+]+)", words)
    if not said:
        raise ValueError("it did not say 'Inference timings in us'")
    medians = re.findall(r"count=\d+ first=.* median=([\d.e+]+)", words)
    peak = re.search(r"[Pp]eak memory footprint \(MB\) via periodic monitoring: ([\d.]+)", words)
    return {
        "load_ns": _ns(said[1], 1e3),
        "first_ns": _ns(said[2], 1e3),
        "ns": [_ns(medians[-1] if medians else said[3], 1e3)],
        "peak_rss_bytes": int(float(peak[1]) * (1 << 20)) if peak else None,
    }


def _onnx(item: NativeItem, threads: int, warmup: int, runs: int, rounds: int) -> list[str]:
    times = f"{item.component}-times.csv"
    return [f"-e cpu -m times -r {warmup + runs} -x {threads} {item.component}/model.onnx {times} && cat {times}"]


def _read_onnx(words: str, warmup: int) -> dict[str, Any]:
    runs = re.findall(r"^[^,\n]*,([\d.e+-]+),(\d+),\d+,\d+\s*$", words, re.M)
    created = re.search(r"Session creation time cost: ?([\d.e+-]+) s", words)
    first = re.search(r"First inference time cost: ?([\d.e+-]+) ms", words)
    if not runs:
        raise ValueError("its result file holds no runs")
    return {
        "load_ns": created and _ns(created[1], 1e9),
        "first_ns": first and _ns(first[1], 1e6),
        "ns": [_ns(seconds, 1e9) for seconds, _ in runs[warmup:]],
        "peak_rss_bytes": int(runs[-1][1]) or None,
    }


def _ns(number: str, unit: float) -> int:
    return round(float(number) * unit)


PLANS = {
    "executorch": Plan(_executorch, _read_executorch, writes_output=True),
    "tflite": Plan(_tflite, _read_tflite, writes_output=True),
    "onnx": Plan(_onnx, _read_onnx, writes_output=False),
}
