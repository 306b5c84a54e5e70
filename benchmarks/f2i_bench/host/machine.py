"""``f2i doctor``: what this machine can export and run."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
from f2i_runtime.targets import REFERENCE, REFERENCE_ENGINE, Adapter, targets

MODEL_DISTRIBUTIONS = ("torch", "diffusers", "transformers")
PHOTO_DISTRIBUTIONS = ("numpy", "pyvips")


def examine() -> dict[str, Any]:
    """Versions, memory, and per target whether it can be exported and run here (or the command that installs what is missing). JSON-ready."""
    memory, known = psutil.virtual_memory(), targets()
    of_targets = (name for target in known.values() for name in (*target.engine_distributions, *target.distributions))
    distributions = dict.fromkeys((*MODEL_DISTRIBUTIONS, *of_targets, *PHOTO_DISTRIBUTIONS))
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory.total / 2**30, 1),
        "free_gib": round(memory.available / 2**30, 1),
        "export": {name: target.converter.installed() for name, target in known.items()},
        "run": {REFERENCE.target: REFERENCE_ENGINE.installed()} | {name: target.engine.installed() for name, target in known.items()},
        "install": {name: {"export": _extra(target.converter), "run": _extra(target.engine)} for name, target in known.items()},
        "engine": {name: target.engine_label for name, target in known.items()},
        "accelerators": {name: target.accelerators for name, target in known.items()},
        "versions": {name: _version(name) for name in distributions},
    }


def _extra(adapter: Adapter) -> str:
    return f"f2i-mobile[{adapter.extra}]"


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
