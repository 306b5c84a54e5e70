"""Jobs of an export, and the content-addressed cache their results live in.

A job is one child process: capturing the reference, capturing the QDQ programs of one precision, or lowering one component to one target at one precision.
Its result is a folder named by the hash of everything that went in, so that a killed export goes on where it stopped and nothing stale is ever used.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from f2i_runtime.targets import CPU, Variant, find_target

SOURCES = (
    "export/f2i_export/qdq_programs.py",
    "export/f2i_export/worker.py",
    "quantize/f2i_quantize/rewrites/capture.py",
    "quantize/f2i_quantize/rewrites/passes.py",
    "quantize/f2i_quantize/rewrites/phone_modules.py",
    "quantize/f2i_quantize/rewrites/split_skips.py",
    "quantize/f2i_quantize/ptq/observe.py",
    "quantize/f2i_quantize/ptq/qdq.py",
    "quantize/f2i_quantize/ptq/quantized.py",
    "export/to_*.py",
    "quantize/models/*.py",
    "runtime_py/f2i_runtime/mil/execute/evaluator.py",
    "runtime_py/f2i_runtime/mil/judge/find_bad_op.py",
    "runtime_py/f2i_runtime/mil/judge/source_program.py",
    "runtime_py/f2i_runtime/tiling/overlap.py",
    "runtime_py/f2i_runtime/photo/resample.py",
)
"""The code that shapes a job's result, as patterns from the root."""
RESULT = "result.json"
REFERENCE_DISTRIBUTIONS = ("torch", "diffusers", "transformers", "numpy")


@dataclass(frozen=True)
class Job:
    """What one child process does."""

    kind: Literal["reference", "simulate", "lower"]
    checkpoint: str
    checkpoint_sha256: str
    tile: int
    component: str = ""
    target: str = ""
    precision: str = ""
    options: tuple[tuple[str, str], ...] = ()
    quantization: str = ""
    """Hash of the checkpoint's quantization to this precision; empty for float."""
    accelerator: str = CPU

    @property
    def variant(self) -> Variant:
        """What a lowering makes."""
        return Variant(self.target, self.precision, self.accelerator)

    @property
    def label(self) -> str:
        """For people."""
        if self.kind == "lower":
            return f"{self.component} → {str(self.variant).replace('/', ' ')}"
        return "reference" if self.kind == "reference" else f"QDQ programs {self.precision}"

    def tool_versions(self) -> dict[str, str]:
        """Versions of the packages whose output this job's result is."""
        names = find_target(self.target).distributions if self.kind == "lower" else REFERENCE_DISTRIBUTIONS
        return {name: _version(name) for name in names}

    def key(self) -> str:
        """Hash of the weights, the tile, the target, the precision, the options, the tools' versions and our own source."""
        content = asdict(self) | {"versions": self.tool_versions(), "source": source_hash()}
        if Path(self.checkpoint).exists():
            del content["checkpoint"]  # the same weights in another folder are the same weights
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"


def source_hash() -> str:
    """Hash of the code that shapes a result."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for pattern in SOURCES:
        for path in sorted(root.glob(pattern)):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
