"""``f2i doctor``: what this machine can export and run."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
from f2i_export.lowering import TARGETS
from f2i_runtime.engines.session import ENGINES, installed

DISTRIBUTIONS = (
    "torch",
    "diffusers",
    "transformers",
    "coremltools",
    "executorch",
    "litert-torch",
    "ai-edge-litert",
    "onnx",
    "onnxruntime",
    "numpy",
    "pyvips",
)


def examine() -> dict[str, Any]:
    """Versions, memory, and per target whether it can be exported and run here (or the command that installs what is missing). JSON-ready."""
    memory = psutil.virtual_memory()
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory.total / 2**30, 1),
        "free_gib": round(memory.available / 2**30, 1),
        "export": {t: importlib.util.find_spec(line.package) is not None for t, line in TARGETS.items()},
        "run": {t: installed(t) for t in ENGINES},
        "install": {t: {"export": f"f2i-mobile[{line.extra}]", "run": f"f2i-mobile[{ENGINES[t].extra}]"} for t, line in TARGETS.items()},
        "coreml_engine": "Core ML" if sys.platform == "darwin" else "evaluator of the saved program (numerics only)",
        "versions": {name: _version(name) for name in DISTRIBUTIONS},
    }


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
