"""``f2i export``: a checkpoint becomes a bundle, complete or absent, resumable after a kill."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from f2i_quantize.models import checkpoint
from f2i_quantize.models.whole_model import build_components
from f2i_quantize.ptq import quantized
from f2i_runtime import __version__
from f2i_runtime.bundle.manifest import (
    STATIC,
    Artifact,
    Call,
    Component,
    Delegation,
    FileRecord,
    Golden,
    Manifest,
    ModelRecord,
    OverlapRecord,
    Parity,
    RewriteRecord,
    Stage,
    TensorSpec,
    TileSpec,
    default_gates,
)
from f2i_runtime.bundle.store import MANIFEST, Bundle, file_record, open_bundle, tree_records
from f2i_runtime.errors import UsageError
from f2i_runtime.files import atomic_directory, exclusive_lock
from f2i_runtime.targets import FLOAT, targets

from f2i_export.jobs import RESULT, Job
from f2i_export.lowering import check_target
from f2i_export.schedule import Event, run_jobs, sweep


@dataclass(frozen=True)
class ExportOptions:
    """What to export. ``tile`` 0 takes the checkpoint's own.

    ``overlap`` None is a sixteenth of the tile (an eighth with int8 activations), ``auto`` the least that meets the seam gate; ``parallel`` 0 runs one job per
    core, as far as memory allows.
    """

    checkpoint: str
    out: Path
    targets: tuple[str, ...] = field(default_factory=lambda: tuple(targets()))
    precisions: tuple[str, ...] = ("fp16",)
    tile: int = 0
    overlap: int | Literal["auto"] | None = None
    parallel: int = 0
    options: tuple[tuple[str, str], ...] = ()


def plan_jobs(options: ExportOptions) -> tuple[Job, list[Job], dict[str, int]]:
    """The reference job, all other jobs, and each component's float32 weight bytes. All that can be wrong with the request is found here.

    Raises UsageError, CheckpointError or MissingPackageError; nothing is written.
    """
    if not options.targets or not options.precisions:
        raise UsageError("nothing to export: name at least one target and one precision")
    for target in options.targets:
        own = {key: value for key, value in options.options if target in _takers(key)}
        check_target(target, options.precisions, own)
    for key, value in options.options:
        if not set(_takers(key)) & set(options.targets):
            raise UsageError(f"option {key}={value} is for {' and '.join(_takers(key)) or 'no target'}, got {', '.join(options.targets)}")
    model = checkpoint.load(options.checkpoint, only=())
    tile = options.tile or model.config.tile
    graph = build_components(model, tile)
    _overlap(tile, options)
    _check_kept(options, tuple(graph.components))
    digest = checkpoint.checkpoint_sha256(options.checkpoint)
    source = str(Path(options.checkpoint).absolute()) if Path(options.checkpoint).exists() else options.checkpoint
    hashes = {p: quantized.digest(source, p) for p in options.precisions if p not in FLOAT}
    reference = Job("reference", source, digest, tile, options=(("overlap", "auto"),) if options.overlap == "auto" else ())
    simulated = [p for p in hashes if quantized.has_integers(quantized.read(source, p))]
    jobs = [Job("simulate", source, digest, tile, precision=p, quantization=hashes[p]) for p in simulated]
    jobs += [
        Job(
            "lower",
            source,
            digest,
            tile,
            name,
            target,
            precision,
            _own_options(options, name, target, precision),
            hashes.get(precision, ""),
        )
        for name in sorted(graph.components, key=lambda n: n != "unet")  # the longest first
        for target in options.targets
        for precision in options.precisions
    ]
    weights = {name: 4 * sum(p.numel() for p in c.module.parameters()) for name, c in graph.components.items()}
    weights[""] = 4 * model.parameters()
    return reference, jobs, weights


def _takers(option: str) -> list[str]:
    """Targets that take an option."""
    return [name for name, line in targets().items() if option in line.options]


def _own_options(options: ExportOptions, component: str, target: str, precision: str) -> tuple[tuple[str, str], ...]:
    """The options that shape one artifact; operations to keep in float32 are an fp16 artifact's own."""
    own = {key: value for key, value in options.options if target in _takers(key)}
    kept = own.pop("keep_fp32", "")
    if kept and precision == "fp16":
        mine = "auto" if kept == "auto" else ",".join(item for item in kept.split(",") if item.startswith(f"{component}:"))
        own |= {"keep_fp32": mine} if mine else {}
    return tuple(own.items())


def _check_kept(options: ExportOptions, components: tuple[str, ...]) -> None:
    kept = dict(options.options).get("keep_fp32", "auto")
    if "keep_fp32" in dict(options.options) and "fp16" not in options.precisions:
        raise UsageError(f"--keep-fp32 applies to fp16, got {', '.join(options.precisions)}; add --precision fp16")
    for item in [] if kept == "auto" else kept.split(","):
        component, _, operation = item.partition(":")
        if component not in components or not operation:
            raise UsageError(f"--keep-fp32: got {item!r}, expected auto or COMPONENT:OP with a component of {', '.join(components)}")


def _overlap(tile: int, options: ExportOptions) -> int:
    """The overlap asked for, or a sixteenth of the tile; an eighth where activations are int8, whose rounding is worst at a tile's edge.

    Raises UsageError unless it is below half the tile.
    """
    usual = tile // (8 if set(STATIC) & set(options.precisions) else 16)
    if options.overlap is None or options.overlap == "auto":
        return usual
    if options.overlap < 0 or options.overlap * 2 >= tile:
        raise UsageError(f"overlap {options.overlap} does not fit a tile of {tile}; use --overlap {usual}")
    return options.overlap


def export_bundle(options: ExportOptions, on_event: Callable[[Event], None] = lambda _: None) -> Bundle:
    """Export and return the bundle.

    One export per folder at a time: a second is refused. An existing bundle is replaced in one step when the new one is complete; a folder that is not a
    bundle is never touched. Raises UsageError for a bad request, ToolchainError when a converter fails.
    """
    out = options.out.absolute()
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST).is_file())):
        raise UsageError(f"{out}: it exists and is not a bundle; choose another folder")
    reference_job, jobs, weights = plan_jobs(options)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"{out.parent}: cannot be written: {e.strerror}") from e
    busy = f"{out}: another export is writing this bundle; wait until it ends or choose another --out"
    lock = out.with_name(f".{out.name}.f2i-lock")
    try:
        with exclusive_lock(lock, busy=busy):
            sweep()
            parallel = options.parallel or os.cpu_count() or 1
            run = functools.partial(run_jobs, weight_bytes=lambda job: weights[job.component], parallel=parallel, on_event=on_event)
            reference = run([reference_job], reference=None)[reference_job]
            results = run(jobs, reference=reference)
            with atomic_directory(out, replace=True) as staging:
                manifest = _assemble(options, reference_job, reference, results, staging)
                (staging / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n")
    except OSError as e:
        raise UsageError(f"{out}: cannot be written: {e.strerror or e}") from e
    return open_bundle(out)


def _assemble(options: ExportOptions, reference_job: Job, reference: Path, results: dict[Job, Path], root: Path) -> Manifest:
    described = json.loads((reference / RESULT).read_text())
    for folder in ("reference", "golden", "constants"):
        if (reference / folder).is_dir():
            shutil.copytree(reference / folder, root / folder)
    programs: dict[str, dict[str, FileRecord]] = {name: {} for name in described["components"]}
    for job, result_folder in results.items():
        for path in sorted(result_folder.glob("*.pt2")) if job.kind == "simulate" else ():
            place = root / "reference" / f"{path.stem}.{job.precision}.pt2"
            shutil.copy2(path, place)
            programs[path.stem][job.precision] = file_record(root, place)
    tensors: dict[str, TensorSpec] = {}
    components = {}
    for name, c in described["components"].items():
        inputs = {k: _tensor(k, shape) for k, shape in c["inputs"].items()}
        components[name] = Component(
            inputs=inputs,
            output=c["output"],
            output_spec=_tensor(c["output"], c["output_shape"]),
            parameters=c["parameters"],
            reference=file_record(root, root / "reference" / f"{name}.pt2"),
            simulated=programs[name],  # type: ignore[arg-type]
        )
        tensors |= inputs
    artifacts = []
    for job, result_folder in results.items():
        if job.kind != "lower":
            continue
        result = json.loads((result_folder / RESULT).read_text())
        place = root / str(job.variant)
        place.mkdir(parents=True, exist_ok=True)
        for entry in sorted(result_folder.iterdir()):
            if entry.name != RESULT:
                shutil.copytree(entry, place / entry.name) if entry.is_dir() else shutil.copy2(entry, place / entry.name)
        artifacts.append(_artifact(job, result, root, place))
    order = {t: k for k, t in enumerate(options.targets)}
    artifacts.sort(key=lambda a: (order[a.target], options.precisions.index(a.precision), list(components).index(a.component)))
    golden = tuple(
        Golden(
            name=case["name"],
            source=f"scikit-image {case['source']}",
            tensors={n: file_record(root, root / "golden" / case["name"] / f"{n}.npy") for n in case["tensors"]},
        )
        for case in described["cases"]
    )
    config: dict[str, Any] = described["config"]
    measured = OverlapRecord(**described["overlap"]) if described["overlap"] else None
    model = _model_record(options, reference_job, config)
    return Manifest(
        name=f"{config['name']}-{reference_job.tile}",
        created_by=f"f2i-mobile {__version__}",
        model=model,
        tile=TileSpec(
            size=reference_job.tile,
            scale=config["scale"],
            overlap=measured.overlap if measured else _overlap(reference_job.tile, options),
            multiple=described["multiple"],
            measured=measured,
        ),
        components=components,
        dataflow=tuple(Call(**c) for c in described["calls"]),
        constants={n: file_record(root, root / "constants" / f"{n}.npy") for n in described["constants"]},
        noise=config["noise"],
        color_fix=config["color_fix"],
        artifacts=tuple(artifacts),
        reference_stages=tuple(Stage(**s) for s in described["stages"]),
        golden=golden,
        gates=default_gates(model.trained),
    )


def _model_record(options: ExportOptions, reference_job: Job, config: dict[str, Any]) -> ModelRecord:
    """Where the weights came from; recipe and calibration by precision, for those that are not float."""
    read = {p: quantized.read(reference_job.checkpoint, p) for p in options.precisions if p not in FLOAT}
    return ModelRecord(
        name=config["name"],
        checkpoint_sha256=reference_job.checkpoint_sha256,
        config=config,
        recipe={p: q.record() for p, q in read.items()} or None,
        calibration={p: q.calibration for p, q in read.items()} or None,
    )


def _artifact(job: Job, result: dict[str, Any], root: Path, place: Path) -> Artifact:
    path = place / result["path"]
    extra = [p for p in sorted(place.glob(f"{result['path']}.*")) if p.is_file()]
    files = tree_records(root, path) + tuple(file_record(root, p) for p in extra)
    return Artifact(
        component=job.component,
        target=job.target,
        precision=job.precision,  # type: ignore[arg-type]
        accelerator=job.accelerator,
        path=path.relative_to(root).as_posix(),
        files=files,
        options=dict(job.options),
        rewrites=tuple(RewriteRecord(**r) for r in result["rewrites"]),
        delegation=Delegation(**result["delegation"]),
        parity=Parity(**result["parity"]) if result["parity"] else None,
        stages=tuple(Stage(**s) for s in result["stages"]),
        tool_versions=result["tool_versions"],
    )


def _tensor(name: str, shape: list[int]) -> TensorSpec:
    layout = {4: "NCHW", 3: "NTC", 2: "NC"}[len(shape)]
    bounded = (0.0, 1.0) if name in {"lr", "sr"} else None
    return TensorSpec(shape=tuple(shape), layout=layout, range=bounded)  # type: ignore[arg-type]
