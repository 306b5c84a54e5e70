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

from f2i_runtime.targets import CPU, Variant, find_target, kind_of, target_of

from f2i_export.source_closure import SourceReader

RESULT = "result.json"
REFERENCE_DISTRIBUTIONS = ("torch", "diffusers", "transformers", "numpy", "scikit-image")
DRAWN = "checkpoint"
"""Folder of a reference result that holds a preset's random weights."""
WORKER = "f2i_export.worker"
"""The module that a child process runs."""


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
    source: str = ""
    """Hash of the code that the child can run; see :func:`job_source`."""

    @property
    def variant(self) -> Variant:
        """What a lowering makes."""
        return Variant(self.target, self.precision, self.accelerator)

    @property
    def toolchain(self) -> tuple[str, str, str]:
        """What a child imports for it."""
        return self.kind, self.target, kind_of(self.accelerator)

    def shares_child(self, other: Job) -> bool:
        """Returns whether one child does both: they share a toolchain and a component."""
        return (self.component, self.toolchain) == (other.component, other.toolchain)

    @property
    def label(self) -> str:
        """For people."""
        if self.kind == "lower":
            return f"{self.component} → {str(self.variant).replace('/', ' ')}"
        return "reference" if self.kind == "reference" else f"QDQ programs {self.precision}"

    def tool_versions(self) -> dict[str, str]:
        """Versions of the packages whose output this job's result is."""
        names = target_of(self.variant).distributions if self.kind == "lower" else REFERENCE_DISTRIBUTIONS
        return {name: _version(name) for name in names}

    def key(self) -> str:
        """Hash of the weights, the tile, the target, the precision, the options, the tools' versions and our own source."""
        content = asdict(self) | {"versions": self.tool_versions()}
        if Path(self.checkpoint).exists():
            del content["checkpoint"]  # the same weights in another folder are the same weights
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"


def weights_source(job: Job, reference: Path) -> str:
    """Returns the checkpoint that a child reads: a preset's random weights lie where the reference job left them."""
    drawn = reference / DRAWN
    return str(drawn) if drawn.is_dir() else job.checkpoint


def job_source(target: str = "", reader: SourceReader | None = None, accelerator: str = CPU) -> str:
    """Returns the hash of all code of ours that a job can run: what the worker imports, and for a lowering the target's own modules with it, which are
    those of its accelerator.

    Recipes are not part of it: what a recipe says is in the hash of the quantization that was made with it. ``reader`` keeps what several calls share.
    """
    record = find_target(target).on(accelerator) if target else None
    own = [record.converter.module, record.engine.module] if record else []
    return (reader or SourceReader()).sha256([WORKER, *own])
