"""A variant as a job for ``device_runner.py``: its files and golden inputs in one folder, and what came back judged."""

from __future__ import annotations

import importlib.util
import json
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from f2i_runtime.bundle.store import Bundle, load_array
from f2i_runtime.errors import BundleError, ToolchainError, UsageError
from f2i_runtime.metrics.fidelity import ErrorSums
from f2i_runtime.targets import Selection, Variant, find_target, target_of

from f2i_bench.core.protocol import Row, with_figures

RUNNER = Path(__file__).with_name("device_runner.py")
ENGINE_GATES = {"fp32": 1e-5, "fp16": 1e-2}
INTEGER_GATE = 5e-3
"""Relative L2 between the same file on x86 and on ARM kernels; measured 4e-8 to 4e-3, see README."""


def runnable(bundle: Bundle, only: Selection, where: str) -> list[Variant]:
    """Returns the bundle's variants that the Python runner can open on an ARM64 device. Raises UsageError, which names ``where``, when there is none."""
    variants = [v for v in bundle.manifest.variants(only) if target_of(v).arm64]
    if not variants:
        raise UsageError(f"{bundle.root}: nothing {where} for that target, precision and accelerator; it holds {bundle.manifest.listed()}")
    return variants


@dataclass(frozen=True)
class Job:
    """A folder that a device gets, and what is known about it."""

    folder: Path
    variant: Variant
    threads: int
    items: tuple[dict[str, Any], ...]
    """The items as ``job.json`` has them."""

    @property
    def target(self) -> str:
        """The variant's target."""
        return self.variant.target

    @property
    def components(self) -> tuple[str, ...]:
        """The names of the components, in the order of the dataflow."""
        return tuple(item["component"] for item in self.items)


@dataclass(frozen=True)
class NativeOutputs:
    """This machine's own outputs of the same files: the folder that holds them, and whether a difference from them fails a row or is only told."""

    folder: Path
    gated: bool = True


@dataclass(frozen=True)
class Load:
    """How often a device runs each component.

    ``warmup``: runs before ``runs`` timed ones. ``counted``: runs whose instructions are counted. ``sustained``: seconds of whole tiles without a
    pause, afterwards.
    """

    threads: int
    warmup: int = 0
    runs: int = 0
    counted: int = 0
    sustained: float = 0.0


def stage(bundle: Bundle, variant: Variant, folder: Path, load: Load) -> Job:
    """Write a job's folder: runner, what opens the artifacts with their engine, artifacts, inputs of the first golden case, ``job.json``.

    Raises UsageError when the bundle has no golden vectors, BundleError for a damaged file.
    """
    if not bundle.manifest.golden:
        raise UsageError(f"{bundle.root}: it holds no golden vectors to compare with; export it again")
    folder.mkdir(parents=True)
    golden = bundle.manifest.golden[0]
    items: list[dict[str, Any]] = []
    tensors = {**golden.tensors, **bundle.manifest.constants}
    for call in bundle.manifest.dataflow:
        component = bundle.manifest.components[call.component]
        artifact = bundle.manifest.artifact(call.component, variant)
        source = bundle.artifact_path(artifact)
        for file in artifact.files:  # weights or a chip's binary may lie beside the graph that names them
            shutil.copyfile(bundle.root / file.path, folder / Path(file.path).name)
        names = [call.inputs[argument] for argument in component.inputs]
        for name in names:
            shutil.copyfile(bundle.check(tensors[name]), folder / f"{name}.npy")
        items.append(
            {
                "component": call.component,
                "path": source.name,
                "inputs": [f"{n}.npy" for n in names],
                "output": f"out-{call.result}.npy",
            }
        )
    opener = _opener(variant.target)
    shutil.copyfile(opener, folder / opener.name)
    job = {"target": variant.target, "opener": opener.stem, **asdict(load), "items": items}
    (folder / "job.json").write_text(json.dumps(job))
    shutil.copyfile(RUNNER, folder / RUNNER.name)
    return Job(folder, variant, load.threads, tuple(items))


def _opener(target: str) -> Path:
    """Returns the file that opens a target's artifacts on a device. Raises UsageError for a target that does not run there."""
    arm64 = find_target(target).arm64
    found = importlib.util.find_spec(arm64.opener) if arm64 else None
    if found is None or found.origin is None:
        raise UsageError(f"{target} does not run on ARM64 devices")
    return Path(found.origin)


def run_here(job: Job, seconds: float) -> dict[str, Any]:
    """The job on this machine's own engine and processor. Raises ToolchainError."""
    command = [sys.executable, RUNNER.name, "job.json", "result.json"]
    return run_command(command, job, job.folder / "result.json", seconds, "host")


def run_command(command: list[str], job: Job, result: Path, seconds: float, where: str) -> dict[str, Any]:
    """Run something that writes a result. Raises ToolchainError with its last words when it fails, or when the time is up."""
    what = str(job.variant)
    try:
        done = subprocess.run(command, cwd=job.folder, capture_output=True, text=True, errors="replace", timeout=seconds)
    except subprocess.TimeoutExpired as e:
        raise ToolchainError(component=what, target=where, stage="run", reason=f"no result in {seconds:.0f} s") from e
    if done.returncode or not result.is_file():
        words = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise ToolchainError(component=what, target=where, stage="run", reason=f"it ended with code {done.returncode}: {words[0]}")
    data: dict[str, Any] = json.loads(result.read_text())
    return data


def judge(
    bundle: Bundle, job: Job, result: dict[str, Any], outputs: Path, *, note: str = "", native: NativeOutputs | None = None
) -> list[Row]:
    """Rows with parity against the golden outputs and, where ``native`` holds this machine's outputs of the same files, the difference of kernels.

    A result that is ``unchecked`` has no outputs. A row's status is ``gate failed`` when its SQNR is below the bundle's gate, or when its distance
    to the native output is above the engine's.
    """
    rows = []
    golden = bundle.manifest.golden[0]
    for item, call in zip(result["items"], bundle.manifest.dataflow, strict=True):
        row = Row(
            **job.variant._asdict(),
            component=call.component,
            threads=job.threads,
            engine=result["engine"] + note,
            status="failed",
            reason=item["error"] or "",
        )
        if item["error"] is None:
            output = outputs / f"out-{call.result}.npy"
            row = row.model_copy(
                update={
                    "status": "ok",
                    "load_ns": item["load_ns"],
                    "first_ns": item["first_ns"],
                    "rounds_ns": tuple((ns,) for ns in item["ns"]),
                    "peak_rss_bytes": result["peak_rss_bytes"],
                    "instructions": statistics.median_low(item["instructions"]) if item.get("instructions") else None,
                }
            )
            if not result.get("unchecked"):
                row = _parity(bundle, row, golden.tensors[call.result], output, native)
            row = with_figures(row)
        rows.append(row)
    return rows


def _parity(bundle: Bundle, row: Row, truth: Any, output: Path, native: NativeOutputs | None) -> Row:
    expected = load_array(bundle.check(truth))
    try:
        got = load_array(output)
    except BundleError as e:
        return row.model_copy(update={"status": "failed", "reason": str(e)})
    if got.shape != expected.shape:
        return row.model_copy(update={"status": "gate failed", "reason": f"output has shape {got.shape}, expected {expected.shape}"})
    sums = ErrorSums()
    sums.update(expected, got)
    sqnr, reasons = sums.sqnr_db(), []
    limit = bundle.manifest.device_limit_db(bundle.manifest.artifact(row.component, row.variant))
    if limit is not None and not sqnr >= limit:
        reasons.append(f"SQNR {sqnr:.1f} dB, limit {limit:g}")
    distance = None
    if native is not None:
        here = np.load(native.folder / output.name)
        distance = float(np.linalg.norm(got - here)) / max(float(np.linalg.norm(here)), 1e-30)
        gate = ENGINE_GATES.get(row.precision, INTEGER_GATE)
        if native.gated and not distance <= gate:
            reasons.append(f"relative L2 to this machine's own output {distance:.1e}, limit {gate:g}")
    found: dict[str, Any] = {"sqnr_db": float(sqnr) if np.isfinite(sqnr) else None, "rel_l2": distance}
    if reasons:
        found |= {"status": "gate failed", "reason": "; ".join(reasons)}
    return row.model_copy(update=found)
