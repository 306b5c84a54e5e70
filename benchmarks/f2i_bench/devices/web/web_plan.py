"""What the server hands out: a table of its files, and the plan that the page follows. Nothing outside this table can be asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from f2i_runtime.bundle.store import Bundle
from f2i_runtime.errors import UsageError
from f2i_runtime.targets import CPU, Selection, Variant, find_target

from f2i_bench.core.protocol import Settings
from f2i_bench.devices.web.web_runtimes import PACKAGES

PAGE = Path(str(files("f2i_bench.devices.web") / "page"))
TYPES = {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
    ".json": "application/json",
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
LANES = {"wasm": "cpu", "webgpu": "gpu"}
"""Where a browser computes → the accelerator that its rows are about."""


@dataclass(frozen=True)
class WebFile:
    """Something that the server hands out: a file, or bytes that are made at the start. ``lasting``: it never changes under its name."""

    content_type: str
    path: Path | None = None
    content: bytes = b""
    lasting: bool = False


@dataclass(frozen=True)
class WebPlan:
    """The files by their path below the token, the variants in the order of the page's job numbers, and the seconds that all of it may take."""

    files: Mapping[str, WebFile]
    variants: tuple[Variant, ...]
    settings: Settings


def page_variants(bundle: Bundle, only: Selection) -> list[Variant]:
    """Returns the bundle's variants that a page can run. Raises UsageError when there is none, or the bundle has no golden vectors."""
    # A portable file serves both lanes of a browser; what was compiled for a chip serves none.
    variants = [v for v in bundle.manifest.variants(Selection(only.target, only.precision, CPU)) if find_target(v.target).browser]
    if not variants:
        raise UsageError(f"{bundle.root}: nothing for a browser with that target and precision; it holds {bundle.manifest.listed()}")
    if not bundle.manifest.golden:
        raise UsageError(f"{bundle.root}: it holds no golden vectors to compare with; export it again")
    if only.accelerator not in (None, *LANES.values()):
        raise UsageError(f"a browser computes on {' or '.join(LANES.values())}, got accelerator {only.accelerator!r}")
    return variants


def packages_of(variants: Sequence[Variant]) -> list[str]:
    """Returns the names of the npm packages that the page needs for these variants."""
    return list(dict.fromkeys(name for v in variants if (browser := find_target(v.target).browser) for name in browser.packages))


def make_plan(bundle: Bundle, settings: Settings, only: Selection, runtimes: Mapping[str, Path]) -> WebPlan:
    """Returns the files and the plan. Files of the bundle are checked against the manifest's hashes. Raises BundleError, UsageError."""
    variants, found = page_variants(bundle, only), dict[str, WebFile]()
    for path in sorted(PAGE.iterdir()):
        found[path.name] = _file(path)
    for name, folder in runtimes.items():
        for inside in PACKAGES[name].files:
            found[f"npm/{PACKAGES[name].folder}/{inside}"] = _file(folder / inside, lasting=True)
    manifest, golden = bundle.manifest, bundle.manifest.golden[0]
    tensors = {**golden.tensors, **manifest.constants}
    used = {tensor for call in manifest.dataflow for tensor in call.inputs.values()} & set(tensors)
    for name in sorted(used):
        found[f"golden/{name}.npy"] = _file(bundle.check(tensors[name]))
    jobs = [_job(bundle, k, variant, found) for k, variant in enumerate(variants)]
    plan = {
        "bundle": manifest.name,
        "settings": {"warmup": settings.warmup, "runs": settings.runs, "rounds": settings.rounds, "seconds": settings.seconds},
        "threads": settings.threads,
        "backends": [lane for lane, accelerator in LANES.items() if only.accelerator in (None, accelerator)],
        "tile": manifest.tile.model_dump(mode="json", include={"size", "overlap", "scale", "window"}),
        "dataflow": [call.model_dump(mode="json") for call in manifest.dataflow],
        "noise": manifest.noise,
        "color_fix": manifest.color_fix,
        "constants": {name: f"golden/{name}.npy" for name in manifest.constants if name in used},
        "jobs": jobs,
    }
    found["plan.json"] = WebFile(TYPES[".json"], content=json.dumps(plan).encode())
    found[""] = found.pop("index.html")
    return WebPlan(found, tuple(variants), settings)


def output_bytes(bundle: Bundle, component: str) -> int:
    """Returns the size of a component's output in float32."""
    return 4 * math.prod(bundle.manifest.components[component].output_spec.shape)


def _job(bundle: Bundle, number: int, variant: Variant, found: dict[str, WebFile]) -> dict[str, Any]:
    target, components = find_target(variant.target), list[dict[str, Any]]()
    if target.browser is None:
        raise UsageError(f"{variant} does not run in a browser")
    for call in bundle.manifest.dataflow:
        component, url = bundle.manifest.components[call.component], f"model/{number}/{call.component}{target.suffix}"
        found[url] = _file(bundle.artifact_path(bundle.manifest.artifact(call.component, variant)))
        inputs = [
            {"name": argument, "tensor": call.inputs[argument], "url": f"golden/{call.inputs[argument]}.npy", "shape": spec.shape}
            for argument, spec in component.inputs.items()
        ]
        components.append(
            {"name": call.component, "precision": variant.precision, "url": url, "inputs": inputs, "output": component.output_spec.shape}
        )
    runtimes = [f"npm/{PACKAGES[name].folder}/" for name in target.browser.packages]
    versions = [f"{name} {PACKAGES[name].version}" for name in target.browser.packages[:1]]
    return {
        "job": number,
        "variant": str(variant),
        "label": f"{target.label} {variant.precision}",
        "script": target.browser.script,
        "runtime": runtimes[0],
        "engine": versions[0],
        "threads_need": target.browser.threads_need,
        "components": components,
    }


def _file(path: Path, *, lasting: bool = False) -> WebFile:
    return WebFile(TYPES.get(path.suffix, "application/octet-stream"), path, lasting=lasting)
