"""From the results of all jobs to the folder of a bundle: files are copied to their places, and the manifest that describes them is made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal, cast

from f2i_quantize.ptq.quantization_record import recipe_record
from f2i_runtime import __version__
from f2i_runtime.bundle.manifest import (
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
    Precision,
    RewriteRecord,
    Stage,
    TensorSpec,
    TileSpec,
    default_gates,
)
from f2i_runtime.bundle.store import file_record, tree_records
from f2i_runtime.targets import target_of

from f2i_export.export_plan import ExportPlan
from f2i_export.jobs import RESULT, Job


def fill_bundle(plan: ExportPlan, reference: Path, results: dict[Job, Path], root: Path) -> Manifest:
    """Copy what the jobs made into ``root`` and return the manifest.

    ``reference``: result folder of the plan's reference job; ``results``: those of all its other jobs.
    """
    described = json.loads((reference / RESULT).read_text())
    for folder in ("reference", "golden", "constants"):
        if (reference / folder).is_dir():
            shutil.copytree(reference / folder, root / folder)
    components = _components(described, _simulated_programs(results, root), root)
    config: dict[str, Any] = described["config"]
    model = _model_record(plan, config)
    return Manifest(
        name=f"{config['name']}-{plan.reference.tile}",
        created_by=f"f2i-mobile {__version__}",
        model=model,
        tile=_tile_spec(plan, described),
        components=components,
        dataflow=tuple(Call(**c) for c in described["calls"]),
        constants={n: file_record(root, root / "constants" / f"{n}.npy") for n in described["constants"]},
        noise=config["noise"],
        color_fix=config["color_fix"],
        artifacts=_artifacts(plan, results, root, list(components)),
        reference_stages=tuple(Stage(**s) for s in described["stages"]),
        golden=_golden(described, root),
        gates=default_gates(model.trained),
    )


def _simulated_programs(results: dict[Job, Path], root: Path) -> dict[tuple[str, str], FileRecord]:
    """Records of the QDQ programs by component and precision, after copying them beside the reference's."""
    programs = {}
    for job, folder in results.items():
        for path in sorted(folder.glob("*.pt2")) if job.kind == "simulate" else ():
            place = root / "reference" / f"{path.stem}.{job.precision}.pt2"
            shutil.copy2(path, place)
            programs[path.stem, job.precision] = file_record(root, place)
    return programs


def _components(described: dict[str, Any], programs: dict[tuple[str, str], FileRecord], root: Path) -> dict[str, Component]:
    components = {}
    for name, c in described["components"].items():
        components[name] = Component(
            inputs={k: _tensor(k, shape) for k, shape in c["inputs"].items()},
            output=c["output"],
            output_spec=_tensor(c["output"], c["output_shape"]),
            parameters=c["parameters"],
            reference=file_record(root, root / "reference" / f"{name}.pt2"),
            simulated={precision: record for (component, precision), record in programs.items() if component == name},  # type: ignore[misc]
        )
    return components


def _artifacts(plan: ExportPlan, results: dict[Job, Path], root: Path, components: list[str]) -> tuple[Artifact, ...]:
    """Every lowered file at its place in ``root``, in the order in which targets, precisions, accelerators and components were asked for."""
    artifacts = []
    for job, folder in results.items():
        if job.kind != "lower":
            continue
        result = json.loads((folder / RESULT).read_text())
        place = root / job.variant.folder
        place.mkdir(parents=True, exist_ok=True)
        for entry in sorted(folder.iterdir()):
            if entry.name != RESULT:
                shutil.copytree(entry, place / entry.name) if entry.is_dir() else shutil.copy2(entry, place / entry.name)
        artifacts.append(_artifact(job, result, root, place))
    asked = plan.options

    def order(a: Artifact) -> tuple[int, ...]:
        variant = (asked.targets.index(a.target), asked.precisions.index(a.precision), asked.every_accelerator.index(a.accelerator))
        return (*variant, components.index(a.component))

    artifacts.sort(key=order)
    return tuple(artifacts)


def _artifact(job: Job, result: dict[str, Any], root: Path, place: Path) -> Artifact:
    path = place / result["path"]
    extra = [p for p in sorted(place.glob(f"{result['path']}.*")) if p.is_file()]
    files = tree_records(root, path) + tuple(file_record(root, p) for p in extra)
    return Artifact(
        component=job.component,
        target=job.target,
        precision=cast("Precision", job.precision),
        accelerator=job.accelerator,
        path=path.relative_to(root).as_posix(),
        files=files,
        options=dict(job.options),
        needs=target_of(job.variant).needs(dict(job.options)),
        rewrites=tuple(RewriteRecord(**r) for r in result["rewrites"]),
        delegation=Delegation(**result["delegation"]),
        parity=Parity(**result["parity"]) if result["parity"] else None,
        stages=tuple(Stage(**s) for s in result["stages"]),
        tool_versions=result["tool_versions"],
    )


def _golden(described: dict[str, Any], root: Path) -> tuple[Golden, ...]:
    return tuple(
        Golden(
            name=case["name"],
            source=f"scikit-image {case['source']}",
            tensors={n: file_record(root, root / "golden" / case["name"] / f"{n}.npy") for n in case["tensors"]},
        )
        for case in described["cases"]
    )


def _tile_spec(plan: ExportPlan, described: dict[str, Any]) -> TileSpec:
    measured = OverlapRecord(**described["overlap"]) if described["overlap"] else None
    return TileSpec(
        size=plan.reference.tile,
        scale=described["config"]["scale"],
        overlap=measured.overlap if measured else plan.overlap,
        multiple=described["multiple"],
        measured=measured,
    )


def _model_record(plan: ExportPlan, config: dict[str, Any]) -> ModelRecord:
    """Where the weights came from; recipe and calibration by precision, for those that are not float."""
    return ModelRecord(
        name=config["name"],
        checkpoint_sha256=plan.reference.checkpoint_sha256,
        config=config,
        recipe={p: recipe_record(q.recipe) for p, q in plan.quantizations.items()} or None,
        calibration={p: q.calibration for p, q in plan.quantizations.items()} or None,
    )


def _tensor(name: str, shape: list[int]) -> TensorSpec:
    layouts: dict[int, Literal["NCHW", "NTC", "NC"]] = {4: "NCHW", 3: "NTC", 2: "NC"}
    bounded = (0.0, 1.0) if name in {"lr", "sr"} else None
    return TensorSpec(shape=tuple(shape), layout=layouts[len(shape)], range=bounded)
