"""Runs on the device: one engine, some components, real inputs. Standard library, numpy and the engine; nothing of this project is imported.

    python3 device_runner.py JOB.json RESULT.json

JOB is ``{"target", "opener", "threads", "warmup", "runs", "counted", "sustained", "items": [{"component", "path", "inputs": [npy, ...], "output": npy}]}``
with paths beside it. ``opener`` is a module beside it, whose ``open_model(path, threads)`` knows the engine. RESULT is
``{"engine", "machine", "items": [{"component", "load_ns", "first_ns", "ns": [...], "instructions": [...], "error"}],
"samples": [{"at_ns", "tile_ns", "celsius", "megahertz"}], "peak_rss_bytes"}``. ``counted`` is 0 but under the emulator whose plugin
(``instructions.c``) counts; with ``sustained`` seconds, whole tiles are run without a pause in the end.
"""

from __future__ import annotations

import ctypes
import gc
import glob
import importlib
import itertools
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

MARK = 3873
"""A system call that no kernel has: the emulator's plugin writes the instructions so far to the file below."""
INSTRUCTIONS = "instructions.txt"
THERMAL, CLOCKS = "/sys/class/thermal/thermal_zone*/temp", "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"
Opened = tuple[str, Callable[[list[Any]], Any]]
"""The engine's name, and a function from inputs in calling order to the output."""


def open_model(job: dict[str, Any], path: str) -> Opened:
    """Opens a model with the engine that the job's opener wraps, a module that lies beside this file."""
    opened: Opened = importlib.import_module(job["opener"]).open_model(path, job["threads"])
    return opened


def run_item(item: dict[str, Any], job: dict[str, Any], folder: str) -> tuple[str, dict[str, Any]]:
    """One component: load, first run (its output is kept), warm-up, timed runs."""

    def beside(name: str) -> str:
        return os.path.join(folder, name)

    feeds = [np.load(beside(name)) for name in item["inputs"]]
    began = time.perf_counter_ns()
    engine, run = open_model(job, beside(item["path"]))
    load = time.perf_counter_ns() - began
    latencies = []
    for k in range(1 + job["warmup"] + job["runs"]):
        began = time.perf_counter_ns()
        output = run(feeds)
        latencies.append(time.perf_counter_ns() - began)
        if k == 0 and item.get("output"):
            np.save(beside(item["output"]), output)
    found = {"component": item["component"], "load_ns": load, "first_ns": latencies[0], "ns": latencies[1 + job["warmup"] :], "error": None}
    return engine, found | {"instructions": count_instructions(lambda: run(feeds), job["counted"], beside(INSTRUCTIONS))}


def count_instructions(run: Callable[[], Any], times: int, counted: str) -> list[int]:
    """Instructions of each of several runs, from mark to mark. Nothing else may happen in between, so garbage is not collected."""
    if not times:
        return []
    system_call = ctypes.CDLL(None).syscall
    gc.collect()
    gc.disable()
    for _ in range(times):
        system_call(MARK)
        run()
    system_call(MARK)
    gc.enable()
    with open(counted) as file:
        marks = [int(line) for line in file][-times - 1 :]
    return [after - before for before, after in itertools.pairwise(marks)]


def sustain(job: dict[str, Any], folder: str) -> list[dict[str, Any]]:
    """Every component in turn, again and again, with temperature and clock beside each tile."""
    runs = []
    for item in job["items"]:
        feeds = [np.load(os.path.join(folder, name)) for name in item["inputs"]]
        runs.append((open_model(job, os.path.join(folder, item["path"]))[1], feeds))
    samples: list[dict[str, Any]] = []
    start = time.perf_counter_ns()
    while (began := time.perf_counter_ns()) - start < job["sustained"] * 1e9:
        for run, feeds in runs:
            run(feeds)
        spent = time.perf_counter_ns() - began
        celsius = [c for c in readings(THERMAL) if -30 <= c <= 150]
        samples.append(
            {
                "at_ns": began - start,
                "tile_ns": spent,
                "celsius": max(celsius, default=None),
                "megahertz": max(readings(CLOCKS), default=None),
            }
        )
    return samples


def readings(pattern: str) -> list[float]:
    """Reads numbers that the kernel gives in files, in thousandths. Files that cannot be read are left out."""
    found = []
    for path in glob.glob(pattern):
        try:
            with open(path) as file:
                found.append(int(file.read()) / 1e3)
        except (OSError, ValueError):
            continue
    return found


def main(job_path: str, result_path: str) -> None:
    """Runs the job. An item that fails says so, and the others still run."""
    with open(job_path) as file:
        job = json.load(file)
    folder = os.path.dirname(os.path.abspath(job_path))
    result: dict[str, Any] = {"engine": "", "machine": platform.machine(), "items": []}
    for item in job["items"]:
        try:
            result["engine"], found = run_item(item, job, folder)
        except Exception as e:  # whatever an engine raises is this item's result
            found = {"component": item["component"], "load_ns": None, "first_ns": None, "ns": [], "error": f"{type(e).__name__}: {e}"[:500]}
        result["items"].append(found)
    if job["sustained"]:
        result["samples"] = sustain(job, folder)
    result["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with open(result_path, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
